"""LoRA and DoRA: peft's layers with the same matrices, any network, and what is trained and merged."""

import functools
import re

import jax
import jax.numpy as jnp
import numpy as np
import peft
import pytest
import torch
from flax import nnx

from dreambooth_jax.models import functional, lora
from dreambooth_jax.models.convolution import convolve
from dreambooth_jax.models.layers import convolution
from dreambooth_jax.weights.folders import abstract_network
from tests.support import tiny_networks as tiny
from tests.support.torch_reference import largest_relative_difference, nchw, nhwc, quick_jit, randomise

RANK, ALPHA = 3, 6.0


class TorchNetwork(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.conv_in = torch.nn.Conv2d(3, 8, 3, stride=2, padding=1)
        self.layers = torch.nn.ModuleList([torch.nn.Conv2d(8, 6, 1), torch.nn.Linear(6, 5, bias=False)])
        self.proj = torch.nn.Linear(5, 4)

    def forward(self, x):
        x = torch.nn.functional.silu(self.layers[0](torch.nn.functional.silu(self.conv_in(x))))
        return self.proj(torch.nn.functional.silu(self.layers[1](x.permute(0, 2, 3, 1))))


class Network(nnx.Module):
    def __init__(self, rngs, dtype=jnp.float32):
        self.conv_in = convolution(3, 8, stride=2, dtype=dtype, rngs=rngs)
        dense = nnx.Linear(6, 5, use_bias=False, dtype=dtype, rngs=rngs)
        self.layers = nnx.List([convolution(8, 6, 1, dtype=dtype, rngs=rngs), dense])
        self.proj = nnx.Linear(5, 4, dtype=dtype, rngs=rngs)

    def __call__(self, x):
        x = jax.nn.silu(self.layers[0](jax.nn.silu(self.conv_in(x))))
        return self.proj(jax.nn.silu(self.layers[1](x)))


ALL = ('conv_in', r'layers\.[01]', 'proj')


@functools.cache
def initialised(dora, targets, dtype, alpha):
    def make(rngs):
        return lora.adapt(Network(rngs, dtype), rank=RANK, alpha=alpha, targets=targets, dora=dora, rngs=rngs)

    return functional.init(make, seed=0)


def adapted(dora=False, targets=ALL, dtype=jnp.float32, alpha=ALPHA):
    """(apply, params) with a fresh adapter."""
    apply, params = initialised(dora, targets, dtype, alpha)
    return apply, dict(params)


def randomised(params, seed=1):
    """The same names with B away from zero and magnitudes away from the norms."""
    rng = np.random.default_rng(seed)
    return {
        name: value + rng.normal(0, 0.3, value.shape).astype(np.float32) * lora.is_adapter(name)
        for name, value in params.items()
    }


@functools.cache
def peft_network(dora):
    """peft's network with random adapters, and its parameters under our names."""
    module = randomise(TorchNetwork(), seed=0, std=0.3)
    targets = ['conv_in', 'layers.0', 'layers.1', 'proj']
    config = peft.LoraConfig(r=RANK, lora_alpha=ALPHA, target_modules=targets, use_dora=dora)
    module = peft.inject_adapter_in_model(config, module)
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for name, parameter in module.named_parameters():
            if 'lora_' in name:
                noise = torch.randn(parameter.shape, generator=generator) * 0.3
                parameter.copy_(parameter + noise if 'magnitude' in name else noise)
    return module.eval()


def from_peft(module, read=lambda parameter: parameter):
    found = {}
    for name, parameter in module.named_parameters():
        value = read(parameter).detach().numpy()
        path = re.sub(r'\.base_layer|\.default|\.weight$', '', name)
        if 'lora_magnitude' in path:
            path, value = path.removesuffix('_vector'), value.reshape(-1)
        elif value.ndim == 4:
            value = value.transpose(2, 3, 1, 0)
            value = value[0, 0] if 'lora_B' in path else value
        elif value.ndim == 2:
            value = value.T
        if name.endswith('.weight') and 'lora_' not in name:
            path += '.kernel'
        found[path.replace('lora_A', 'lora_a').replace('lora_B', 'lora_b')] = jnp.asarray(value)
    return found


@pytest.mark.parametrize('dora', [False, True])
def test_outputs_and_gradients_are_those_of_peft(dora):
    module = peft_network(dora)
    params = from_peft(module)
    apply, fresh = adapted(dora)
    assert {name: value.shape for name, value in params.items()} == {name: v.shape for name, v in fresh.items()}
    x = np.random.default_rng(0).normal(size=(2, 6, 4, 3)).astype(np.float32)
    given = nchw(x).requires_grad_()
    theirs = module(given)
    module.zero_grad()
    theirs.square().sum().backward()

    def loss(params, x):
        result = apply(params, x)
        return jnp.sum(jnp.square(result)), result

    (_, ours), (gradients, of_x) = quick_jit(jax.value_and_grad(loss, (0, 1), has_aux=True))(params, x)
    assert largest_relative_difference(ours, theirs.detach()) < 1e-5
    assert largest_relative_difference(of_x, nhwc(given.grad)) < 1e-4
    # peft's base parameters are frozen and have no gradient.
    wanted = from_peft(module, lambda p: torch.zeros_like(p) if p.grad is None else p.grad)
    for name in filter(lora.is_adapter, wanted):
        assert np.any(wanted[name])
        assert largest_relative_difference(gradients[name], wanted[name]) < 1e-4, name


@pytest.mark.parametrize('dora', [False, True])
def test_merged_network_computes_what_the_adapted_one_does(dora):
    apply, params = adapted(dora)
    params = randomised(params)
    merged = lora.merge(params, rank=RANK, alpha=ALPHA)
    plain, names = functional.abstract(lambda: Network(functional.Keys(0)))
    assert merged.keys() == names.keys()
    x = jax.random.normal(jax.random.key(1), (2, 6, 4, 3))
    ours, wanted = quick_jit(plain)(merged, x), quick_jit(apply)(params, x)
    assert largest_relative_difference(ours, wanted) < 1e-5
    assert largest_relative_difference(quick_jit(plain)(lora.separate(params)[1], x), wanted) > 1e-2


@pytest.mark.parametrize('dora', [False, True])
def test_the_scale_of_a_merge_is_of_all_that_the_adapters_change(dora):
    _, params = adapted(dora)
    params = randomised(params)
    base = lora.separate(params)[1]
    none, half, whole = (lora.merge(params, rank=RANK, alpha=ALPHA, scale=scale) for scale in (0.0, 0.5, 1.0))
    assert whole.keys() == base.keys()
    for name, value in base.items():
        np.testing.assert_array_equal(none[name], value)
        np.testing.assert_allclose(half[name], (value + whole[name]) / 2, atol=1e-6)
        np.testing.assert_array_equal(whole[name], lora.merge(params, rank=RANK, alpha=ALPHA)[name])


@pytest.mark.slow
@pytest.mark.parametrize('outputs', ['all', 'one'])
def test_dora_on_a_kernel_of_zeros_is_finite_and_learns(outputs):
    """As output layers of fresh models are: there is no direction yet that a length could be given to."""
    apply, params = adapted(dora=True)
    _, base = lora.separate(params)
    zero = np.s_[:] if outputs == 'all' else np.s_[..., 1]
    base['proj.kernel'] = base['proj.kernel'].at[zero].set(0)
    adapter = lora.init_adapter(params, base, rngs=functional.Keys(1))
    assert (adapter['proj.lora_magnitude'][zero] == 0).all()
    x = jax.random.normal(jax.random.key(1), (2, 4, 4, 3))
    plain = functional.abstract(lambda: Network(functional.Keys(0)))[0]
    wanted = quick_jit(plain)(base, x)
    assert largest_relative_difference(quick_jit(apply)(base | adapter, x), wanted) < 1e-5
    loss = quick_jit(jax.value_and_grad(lambda a: jnp.mean(jnp.square(apply(a | base, x) - 1))))
    losses = []
    for _ in range(4):
        value, gradient = loss(adapter)
        losses.append(value)
        assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(gradient))
        adapter = jax.tree.map(lambda leaf, g: leaf - 0.1 * g, adapter, gradient)
    assert np.abs(adapter['proj.lora_b']).max() > 0 and losses[-1] < losses[0]
    merged = lora.merge(base | adapter, rank=RANK, alpha=ALPHA)
    assert all(np.isfinite(leaf).all() for leaf in merged.values())
    assert largest_relative_difference(quick_jit(plain)(merged, x), quick_jit(apply)(base | adapter, x)) < 1e-5


def test_merging_magnitudes_onto_kernels_that_stay_zero_gives_zeros():
    params = {
        'x.kernel': np.zeros((3, 2), np.float32),
        'x.lora_a': np.ones((3, 1)),
        'x.lora_b': np.zeros((1, 2)),
        'x.lora_magnitude': np.ones(2, np.float32),
    }
    by_input = {**params, 'x.lora_magnitude': np.ones((3, 1), np.float32)}
    for given in (params, by_input):
        assert (lora.merge(given, rank=1, alpha=1)['x.kernel'] == 0).all()


def test_merged_kernels_are_those_of_peft():
    for dora in (False, True):
        params = lora.merge(from_peft(peft_network(dora)), rank=RANK, alpha=ALPHA)
        for name, layer in [('conv_in', 'conv_in'), ('layers.1', 'layers.1'), ('proj', 'proj')]:
            module = peft_network(dora).get_submodule(layer)
            weight = module.get_base_layer().weight.detach()
            module.merge()
            theirs = module.get_base_layer().weight.detach().clone().numpy()
            module.unmerge()
            module.get_base_layer().weight.data.copy_(weight)
            theirs = theirs.transpose(2, 3, 1, 0) if theirs.ndim == 4 else theirs.T
            assert largest_relative_difference(params[f'{name}.kernel'], theirs) < 1e-5


@pytest.mark.parametrize('dora', [False, pytest.param(True, marks=pytest.mark.slow)])
@pytest.mark.parametrize('component, inputs', [('unet', 2), ('text_encoder', 1)])
def test_a_fresh_adapter_changes_nothing(component, inputs, dora):
    config = tiny.UNET if component == 'unet' else tiny.TEXT_ENCODER
    plain = abstract_network(component, config)
    apply, shapes = functional.split(plain)
    rng = np.random.default_rng(0)
    base = {name: rng.normal(0, 0.1, value.shape).astype(np.float32) for name, value in shapes.items()}
    changed = nnx.eval_shape(
        lambda model: lora.adapt(model, rank=2, alpha=2, dora=dora, rngs=functional.Keys(0)), plain
    )
    apply_adapted, shapes_adapted = functional.split(changed)
    assert functional.split(plain)[1].keys() == shapes.keys()  # the given abstract network is as it was
    adapter = lora.init_adapter(shapes_adapted, base, rngs=functional.Keys(0))
    assert (base | adapter).keys() == shapes_adapted.keys()
    # Every attention projection and nothing else.
    paths = {name.rpartition('.')[0] for name in adapter}
    last = {path.removesuffix('.0').rpartition('.')[2] for path in paths}
    unet_projections = {'to_q', 'to_k', 'to_v', 'to_out', 'add_k_proj', 'add_v_proj'}
    assert last == (unet_projections if component == 'unet' else set('qkvo'))
    assert len(adapter) == (3 if dora else 2) * len(paths)
    if component == 'unet':
        text = rng.normal(size=(1, 3, 24)).astype(np.float32)
        given = (rng.normal(size=(1, 8, 8, 3)).astype(np.float32), np.array([7]), text)
    else:
        given = (np.array([[5, 9, 1]]),)
    wanted = quick_jit(apply)(base, *given)
    ours = quick_jit(apply_adapted)(base | adapter, *given)
    assert largest_relative_difference(ours, wanted) < (1e-5 if dora else 1e-7)
    for name, value in adapter.items():
        if name.endswith('lora_a'):
            bound = np.prod(value.shape[:-1]) ** -0.5  # torch's kaiming_uniform_(a=sqrt(5))
            assert 0.5 * bound < np.abs(value).max() <= bound


def test_adapters_of_a_concrete_network_start_as_those_of_an_abstract_one():
    apply, params = adapted(dora=True)
    adapter, base = lora.separate(params)
    again = lora.init_adapter(params, base, rngs=functional.Keys(3))
    assert again.keys() == adapter.keys()
    for name, value in again.items():
        assert value.dtype == jnp.float32
        if not name.endswith('lora_a'):  # zeros and norms, the latter of another compiled program
            np.testing.assert_allclose(value, adapter[name], rtol=1e-6)


def test_training_the_adapter_alone_needs_no_gradient_of_a_kernel():
    apply, params = adapted()
    adapter, base = lora.separate(params)
    x = jnp.ones((8, 32, 32, 3))

    def flops(trained, frozen):
        gradient = jax.grad(lambda trained: jnp.sum(jnp.square(apply(trained | frozen, x))))
        return quick_jit(gradient).lower(trained).cost_analysis()['flops']

    assert quick_jit(jax.grad(lambda a: jnp.sum(apply(a | base, x))))(adapter).keys() == adapter.keys()
    assert flops(adapter, base) < 0.8 * flops(params, {})


def test_one_step_on_the_adapter_lowers_the_loss():
    apply, params = adapted()
    adapter, base = lora.separate(params)
    x = jax.random.normal(jax.random.key(1), (2, 4, 4, 3))
    loss = quick_jit(jax.value_and_grad(lambda a: jnp.mean(jnp.square(apply(a | base, x) - 1))))
    before, gradient = loss(adapter)
    after, _ = loss(jax.tree.map(lambda value, g: value - 0.1 * g, adapter, gradient))
    assert after < before


def test_adapters_are_f32_and_computed_in_the_layers_dtype():
    for dora in (False, True):
        apply, params = adapted(dora, dtype=jnp.bfloat16)
        params = randomised(params)
        assert {value.dtype for value in params.values()} == {jnp.dtype(jnp.float32)}
        x = jax.random.normal(jax.random.key(1), (2, 4, 4, 3))
        ours = quick_jit(apply)(params, x)
        assert ours.dtype == jnp.bfloat16
        exact = quick_jit(adapted(dora)[0])(params, x)
        assert largest_relative_difference(ours.astype(jnp.float32), exact) < 3e-2


def test_default_targets_are_the_attention_projections():
    (target,) = lora.ATTENTION_PROJECTIONS
    for path in ('text_model.encoder.layers.0.self_attn.out_proj', 'down_blocks.0.attentions.0.to_q'):
        assert re.fullmatch(target, path)
    # Neither CLIP's mlp nor the pooling of IF's text states.
    for path in ('text_model.encoder.layers.0.mlp.fc1', 'add_embedding.pool.q_proj', 'encoder.block.0.layer.1.wo'):
        assert not re.fullmatch(target, path)


def test_only_targets_are_adapted():
    _, params = adapted(targets=(r'layers\.1',))
    assert set(filter(lora.is_adapter, params)) == {'layers.1.lora_a', 'layers.1.lora_b'}


@pytest.mark.parametrize(
    'options, sentence',
    [
        ({'rank': 0}, "LoRA's rank is 0 but must be a positive integer."),
        ({'rank': 1.5}, "LoRA's rank is 1.5 but must be a positive integer."),
        ({'alpha': -1}, "LoRA's alpha is -1 but must be a positive number."),
        ({'targets': []}, "LoRA's targets is [] but must be a list of regular expressions of layer paths."),
        ({'targets': 'proj'}, "LoRA's targets is 'proj' but must be a list of regular expressions of layer paths."),
        ({'targets': ['(']}, "LoRA's target '(' is no regular expression: "),
        (
            {'targets': ['proj', r'layer\.\d']},
            "LoRA's target 'layer\\\\.\\\\d' matches no linear or convolution layer of Network; it must match a whole "
            'path, such as layers.0, layers.1, proj.',
        ),
    ],
)
def test_wrong_settings_are_refused_in_a_sentence(options, sentence):
    with pytest.raises(ValueError, match=re.escape(sentence)):
        lora.adapt(Network(nnx.Rngs(0)), **{'rank': 1, 'alpha': 1, 'targets': ALL, 'rngs': nnx.Rngs(0)} | options)


def test_layers_that_cannot_be_adapted_are_refused_by_name():
    model = lora.adapt(Network(nnx.Rngs(0)), rank=1, alpha=1, targets=['proj'], rngs=nnx.Rngs(0))
    with pytest.raises(ValueError, match='proj has a LoRA adapter already'):
        lora.adapt(model, rank=1, alpha=1, targets=ALL, rngs=nnx.Rngs(0))
    model.conv_in = nnx.Conv(3, 3, (3, 3), feature_group_count=3, conv_general_dilated=convolve, rngs=nnx.Rngs(0))
    with pytest.raises(ValueError, match='conv_in is a grouped, dilated or unusually padded convolution'):
        lora.adapt(model, rank=1, alpha=1, targets=['conv_in'], rngs=nnx.Rngs(0))
