"""The UNet against diffusers' on random weights, and its errors."""

import functools
from types import SimpleNamespace

import diffusers
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from flax import nnx

from dreambooth_jax.models import functional
from dreambooth_jax.models.unet import UNet2DConditionModel
from dreambooth_jax.weights import mapping
from tests.support.torch_reference import (
    assert_same_gradients,
    gradients,
    largest_relative_difference,
    nchw,
    nhwc,
    quick_jit,
    randomise,
    to_ours,
)

SHARED = {
    'act_fn': 'gelu',
    'addition_embed_type': 'text',
    'addition_embed_type_num_heads': 4,
    'cross_attention_dim': 64,  # two channels in each of the 32 groups of norm_cross
    'cross_attention_norm': 'group_norm',
    'encoder_hid_dim': 24,
    'encoder_hid_dim_type': 'text_proj',
    'mid_block_type': 'UNetMidBlock2DSimpleCrossAttn',
    'norm_num_groups': 8,
    'out_channels': 6,
    'resnet_time_scale_shift': 'scale_shift',
}
STABLE_DIFFUSION = {
    'cross_attention_dim': 20,
    'in_channels': 4,
    'layers_per_block': 1,
    'norm_num_groups': 8,
    'out_channels': 4,
    'sample_size': 8,
}
ATTENTION_BELOW = {
    'block_out_channels': [16, 32],
    'down_block_types': ['DownBlock2D', 'CrossAttnDownBlock2D'],
    'up_block_types': ['CrossAttnUpBlock2D', 'UpBlock2D'],
    'use_linear_projection': True,
}
CONFIGS = {
    'stage_one': {
        **SHARED,
        '_class_name': 'UNet2DConditionModel',
        'in_channels': 3,
        'attention_head_dim': 16,
        'block_out_channels': [16, 32],
        'down_block_types': ['ResnetDownsampleBlock2D', 'SimpleCrossAttnDownBlock2D'],
        'up_block_types': ['SimpleCrossAttnUpBlock2D', 'ResnetUpsampleBlock2D'],
        'layers_per_block': 1,
        'sample_size': 8,
    },
    'stage_two': {
        **SHARED,
        'in_channels': 6,
        'attention_head_dim': [16, 8],
        'block_out_channels': [16, 32],
        'class_embed_type': 'timestep',
        'down_block_types': ['ResnetDownsampleBlock2D', 'SimpleCrossAttnDownBlock2D'],
        'up_block_types': ['SimpleCrossAttnUpBlock2D', 'ResnetUpsampleBlock2D'],
        'layers_per_block': [2, 1],
        'mid_block_scale_factor': 1.4142271248762552,
        'resnet_out_scale_factor': 1.4142271248762552,
        'resnet_skip_time_act': True,
        'time_embedding_dim': 40,
        'time_embedding_act_fn': 'gelu',
        'sample_size': 8,
    },
    # The values that no DeepFloyd network has but that the blocks allow; widths where layer_norm can work at all.
    'other_values': {
        **SHARED,
        'act_fn': 'silu',
        'addition_embed_type': None,
        'attention_head_dim': 8,
        'block_out_channels': [16, 16],
        'center_input_sample': True,
        'conv_in_kernel': 1,
        'cross_attention_dim': 16,
        'cross_attention_norm': 'layer_norm',
        'down_block_types': ['SimpleCrossAttnDownBlock2D', 'ResnetDownsampleBlock2D'],
        'encoder_hid_dim': None,
        'encoder_hid_dim_type': None,
        'flip_sin_to_cos': False,
        'freq_shift': 1,
        'in_channels': 3,
        'layers_per_block': 1,
        'only_cross_attention': [True, False],
        'resnet_time_scale_shift': 'default',
        'sample_size': 8,
        'up_block_types': ['ResnetUpsampleBlock2D', 'SimpleCrossAttnUpBlock2D'],
    },
    'sd_1': {
        **STABLE_DIFFUSION,
        'attention_head_dim': 2,
        'block_out_channels': [16, 32],
        'down_block_types': ['CrossAttnDownBlock2D', 'DownBlock2D'],
        'up_block_types': ['UpBlock2D', 'CrossAttnUpBlock2D'],
    },
    # A list whose order shows: read in the wrong direction, the up blocks would have no even heads.
    'sdxl': {
        **STABLE_DIFFUSION,
        **ATTENTION_BELOW,
        'addition_embed_type': 'text_time',
        'addition_time_embed_dim': 8,
        'attention_head_dim': [3, 4],
        'projection_class_embeddings_input_dim': 10 + 6 * 8,
        'transformer_layers_per_block': [1, 2],
        'upcast_attention': None,
    },
    'x4_upscaler': {
        **STABLE_DIFFUSION,
        **ATTENTION_BELOW,
        'attention_head_dim': 4,
        'in_channels': 7,
        'norm_eps': 0.01,  # not that of the transformers, which have their own
        'num_class_embeds': 300,
        'only_cross_attention': [False, True],
    },
}


@functools.cache
def both(name):
    """The same network and the same inputs on both sides, run forward and backward once."""
    config = CONFIGS[name]
    theirs = diffusers.UNet2DConditionModel(**{k: v for k, v in config.items() if not k.startswith('_')})
    randomise(theirs, seed=1)
    rng = np.random.default_rng(2)
    sample = rng.normal(size=(2, 8, 8, config['in_channels'])).astype(np.float32)
    text = rng.normal(size=(2, 5, config.get('encoder_hid_dim') or config['cross_attention_dim'])).astype(np.float32)
    cotangent = rng.normal(size=(2, 8, 8, config['out_channels'])).astype(np.float32)
    times = np.array([3, 997])
    conditions = {}
    if config.get('class_embed_type') or config.get('num_class_embeds'):
        conditions['class_labels'] = np.array([250, 40])
    if config.get('addition_embed_type') == 'text_time':
        pooled = rng.normal(size=(2, 10)).astype(np.float32)
        conditions['added_cond'] = {'text_embeds': pooled, 'time_ids': np.array([[512, 640, 0, 7, 512, 512]] * 2)}

    torch_sample = nchw(sample).requires_grad_()
    torch_conditions = jax.tree.map(torch.from_numpy, conditions)
    if 'added_cond' in torch_conditions:
        torch_conditions['added_cond_kwargs'] = torch_conditions.pop('added_cond')
    output = theirs(torch_sample, torch.from_numpy(times), torch.from_numpy(text), **torch_conditions).sample
    (output * nchw(cotangent)).sum().backward()

    apply, abstract = functional.abstract(lambda: UNet2DConditionModel(config, rngs=functional.Keys(0)))
    params = to_ours(theirs)
    assert {k: v.shape for k, v in params.items()} == {k: v.shape for k, v in abstract.items()}

    def product(params, sample):
        ours = apply(params, sample, jnp.asarray(times), jnp.asarray(text), **conditions)
        return jnp.sum(ours * cotangent), ours

    run = quick_jit(jax.value_and_grad(product, argnums=(0, 1), has_aux=True)).lower(params, sample).compile()
    (_, ours), (params_gradient, sample_gradient) = run(params, sample)
    return SimpleNamespace(
        apply=apply,
        params=params,
        inputs=(sample, times, text, conditions),
        cotangent=cotangent,
        memory=run.memory_analysis().temp_size_in_bytes,
        tensors={name: tensor.numpy() for name, tensor in theirs.state_dict().items()},
        output=(ours, nhwc(output)),
        params_gradient=(params_gradient, gradients(theirs)),
        sample_gradient=(sample_gradient, nhwc(torch_sample.grad)),
    )


# One of them is in the default suite, with the gradients of two smaller ones; all of them are in .ci/run.
NETWORKS = [pytest.param(name, marks=() if name == 'stage_one' else pytest.mark.slow) for name in CONFIGS]


@pytest.mark.parametrize('name', NETWORKS)
def test_unet_forward_matches_diffusers(name):
    ours, theirs = both(name).output
    assert ours.dtype == jnp.float32
    assert np.abs(theirs).max() > 0.1
    np.testing.assert_allclose(ours, theirs, rtol=0, atol=1e-4)


@pytest.mark.parametrize('name', NETWORKS)
def test_unet_gradients_match_diffusers(name):
    run = both(name)
    assert largest_relative_difference(*run.sample_gradient) < 1e-3
    assert_same_gradients(*run.params_gradient)


@pytest.mark.parametrize('name', [one for one in NETWORKS if one.values[0] in ('sd_1', 'sdxl', 'x4_upscaler')])
def test_the_one_rule_maps_the_weights_of_stable_diffusion_both_ways(name):
    run = both(name)
    model = nnx.eval_shape(lambda: UNet2DConditionModel(CONFIGS[name], rngs=functional.Keys(0)))
    assert mapping.torch_names(model).keys() == run.tensors.keys()
    params = mapping.load(model, run.tensors)
    assert all(np.array_equal(params[key], run.params[key]) for key in run.params)
    exported = mapping.export(model, params)
    assert all(np.array_equal(exported[key], run.tensors[key]) for key in run.tensors)


@pytest.mark.slow
def test_full_size_stable_diffusion_1_5_matches_diffusers():
    """860M parameters on a latent of 32 x 32: half a minute and 8 GB on two cores."""
    config = {'cross_attention_dim': 768}
    with torch.device('meta'):
        theirs = diffusers.UNet2DConditionModel(**config)
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():  # as `randomise`, but of uniform numbers, which take a quarter of the time
        for key, parameter in theirs.to_empty(device='cpu').eval().named_parameters():
            parameter.uniform_(-0.035, 0.035, generator=generator)
            parameter += key.endswith('weight') and parameter.ndim == 1
    rng = np.random.default_rng(2)
    sample = rng.normal(size=(1, 32, 32, 4)).astype(np.float32)
    text = rng.normal(size=(1, 77, 768)).astype(np.float32)
    with torch.no_grad():
        output = nhwc(theirs(nchw(sample), torch.tensor([500]), torch.from_numpy(text)).sample)
    params = to_ours(theirs)
    del theirs

    apply, _ = functional.abstract(lambda: UNet2DConditionModel(config, rngs=functional.Keys(0)))
    ours = quick_jit(apply)(params, sample, np.array([500]), text)
    assert np.abs(output).max() > 0.1
    print(f'largest difference {np.abs(ours - output).max():.1e} of {np.abs(output).max():.2f}')
    np.testing.assert_allclose(ours, output, rtol=0, atol=1e-3)


def recomputing(name):
    """The loss of both(name) as a function of (params, sample), by a network that recomputes its blocks."""
    run = both(name)
    _, times, text, conditions = run.inputs
    apply, abstract = functional.abstract(
        lambda: UNet2DConditionModel(CONFIGS[name], remat=True, rngs=functional.Keys(0))
    )
    assert abstract.keys() == run.params.keys()
    return lambda params, sample: jnp.sum(apply(params, sample, times, text, **conditions) * run.cotangent)


@pytest.mark.slow
def test_recomputing_blocks_changes_no_gradient_and_takes_less_memory():
    run = both('sd_1')
    # This pass of XLA's CPU backend, and of no other, drops the barriers that keep recomputation from being merged with
    # the first computation.
    options = {'xla_backend_optimization_level': 0, 'xla_disable_hlo_passes': 'cse_barrier_expander'}
    gradient = jax.jit(jax.grad(recomputing('sd_1')), compiler_options=options)
    compiled = gradient.lower(run.params, run.inputs[0]).compile()
    expected = run.params_gradient[0]
    for key, ours in compiled(run.params, run.inputs[0]).items():
        assert largest_relative_difference(ours, expected[key]) < 1e-5, key
    assert compiled.memory_analysis().temp_size_in_bytes < 0.5 * run.memory


@pytest.mark.slow
@pytest.mark.parametrize('name', ['stage_two', 'sdxl'])
def test_recomputing_blocks_keeps_less_for_the_backward_pass(name):
    def kept(loss, params, sample):
        backward = jax.eval_shape(lambda params, sample: jax.vjp(loss, params, sample)[1], params, sample)
        return sum(leaf.size for leaf in jax.tree.leaves(backward)) - functional.parameter_count(params)

    run = both(name)
    sample, times, text, conditions = run.inputs
    usual = kept(lambda params, x: jnp.sum(run.apply(params, x, times, text, **conditions)), run.params, sample)
    assert kept(recomputing(name), run.params, sample) < 0.3 * usual


@pytest.mark.slow
def test_unet_in_bfloat16_stays_near_float32_with_float32_output():
    run = both('stage_one')
    config = CONFIGS['stage_one']
    apply, abstract = functional.abstract(
        lambda: UNet2DConditionModel(config, dtype=jnp.bfloat16, rngs=functional.Keys(0))
    )
    assert {value.dtype for value in abstract.values()} == {jnp.dtype('float32')}
    sample, times, text, conditions = run.inputs
    output = quick_jit(apply)(run.params, sample, times, text, **conditions)
    assert output.dtype == jnp.float32
    assert 1e-5 < largest_relative_difference(output, run.output[1]) < 0.05


@pytest.mark.slow
def test_fresh_unet_predicts_zero_and_its_residual_branches_start_at_zero():
    config = {**CONFIGS['stage_one'], 'block_out_channels': [8, 16], 'layers_per_block': 1}
    _, params = functional.init(lambda rngs: UNet2DConditionModel(config, rngs=rngs), seed=0)
    zeros = {key for key, value in params.items() if key.endswith('kernel') and not np.any(value)}
    ends = ('conv2.kernel', 'to_out.0.kernel', 'conv_out.kernel')
    assert zeros == {key for key in params if key.endswith(ends)}
    kernel = params['mid_block.resnets.0.conv1.kernel']
    np.testing.assert_allclose(np.std(kernel), (9 * kernel.shape[2]) ** -0.5, rtol=0.1)


@pytest.mark.slow
def test_inputs_that_do_not_fit_are_named_in_one_sentence():
    run = both('stage_two')
    sample, times, text, conditions = run.inputs
    with pytest.raises(ValueError, match=r'sample has shape \(2, 8, 7, 6\) but must be \[B, H, W, 6\]'):
        run.apply(run.params, sample[:, :, :7], times, text, **conditions)
    with pytest.raises(ValueError, match='class_labels are missing but must be given'):
        run.apply(run.params, sample, times, text)
    with pytest.raises(ValueError, match='class_labels are given but must be left out'):
        run = both('stage_one')
        run.apply(run.params, *run.inputs[:3], **conditions)


@pytest.mark.slow
def test_conditions_of_stable_diffusion_that_do_not_fit_are_named_in_one_sentence():
    run = both('x4_upscaler')
    with pytest.raises(ValueError, match='class_labels are float32 but must be integers, indices below'):
        run.apply(run.params, *run.inputs[:3], class_labels=jnp.array([0.5, 1]))
    with pytest.raises(ValueError, match='added_cond is given but must be left out for this addition_embed_type'):
        run.apply(run.params, *run.inputs[:3], **run.inputs[3], added_cond={})
    run = both('sdxl')
    with pytest.raises(ValueError, match='added_cond is missing but must be given for this addition_embed_type'):
        run.apply(run.params, *run.inputs[:3])
    added = run.inputs[3]['added_cond']
    with pytest.raises(ValueError, match=r"added_cond has \['text_embeds'\] but must have \['text_"):
        run.apply(run.params, *run.inputs[:3], added_cond={'text_embeds': added['text_embeds']})
    with pytest.raises(ValueError, match='makes 50 features but must make 58 .*, 5 numbers of 8 features each'):
        run.apply(run.params, *run.inputs[:3], added_cond={**added, 'time_ids': added['time_ids'][:, :5]})
