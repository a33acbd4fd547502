"""Tensors of whole models to their original names and shapes and back: nothing is lost, added or computed."""

import numpy as np
import pytest

from dreambooth_jax.weights import original_layout
from dreambooth_jax.weights.errors import WeightsError
from tests.support import tiny_stable_diffusion as tiny
from tests.support.layouts import LAYOUTS


def same(ours, theirs):
    assert ours.keys() == theirs.keys()
    assert [name for name in ours if not np.array_equal(ours[name], theirs[name])] == []


@pytest.fixture(scope='module', params=tiny.FAMILIES)
def family(request):
    return request.param


@pytest.fixture(scope='module')
def original(family):
    return original_layout.to_original(tiny.components(family), tiny.CONFIGS[family], layout=LAYOUTS[family])


def test_from_original_is_the_inverse_of_to_original(family, original):
    back = original_layout.from_original(original, tiny.CONFIGS[family], layout=LAYOUTS[family])
    assert back.keys() == tiny.components(family).keys()
    for component, tensors in tiny.components(family).items():
        same(back[component], tensors)


BESIDES = {
    'sd1': [
        'model_ema.decay',
        'model_ema.diffusion_modelinput_blocks00weight',
        'betas',
        'alphas_cumprod',
        'alphas_cumprod_prev',
        'sqrt_one_minus_alphas_cumprod',
        'log_one_minus_alphas_cumprod',
        'sqrt_recipm1_alphas_cumprod',
        'posterior_log_variance_clipped',
        'first_stage_model.loss.logvar',
        'cond_stage_model.transformer.text_model.embeddings.position_ids',
        'cond_stage_model.logit_scale',
    ],
    'sd2': [
        'cond_stage_model.model.logit_scale',
        'cond_stage_model.model.text_projection',
        'cond_stage_model.model.attn_mask',
        'cond_stage_model.model.transformer.resblocks.23.attn.in_proj_weight',
    ],
    'sdxl': ['conditioner.embedders.1.model.logit_scale', 'denoiser.sigmas', 'v_pred'],
    'upscaler': ['low_scale_model.betas', 'low_scale_model.sqrt_alphas_cumprod', 'scale_factor'],
}


def test_what_the_originals_hold_besides_is_left_out(family, original):
    more = {name: np.zeros(3, np.float32) for name in BESIDES[family]}
    back = original_layout.from_original({**more, **original}, tiny.CONFIGS[family], layout=LAYOUTS[family])
    for component, tensors in tiny.components(family).items():
        same(back[component], tensors)


def test_every_unknown_tensor_is_named(original, family):
    unknown = {
        'model.diffusion_model.input_blocks.1.0.in_layers.9.weight': (2, 3),
        'model.diffusion_model.input_blocks.1.0.in_layers.2.scale': (1,),
        'first_stage_model.encoder.down.7.block.0.norm1.weight': (4,),
        'control_model.input_hint_block.0.weight': (5,),
    }
    more = {name: np.zeros(shape, np.float32) for name, shape in unknown.items()}
    with pytest.raises(WeightsError) as error:
        original_layout.from_original(
            {**original, **more}, tiny.CONFIGS[family], source='x.safetensors', layout=LAYOUTS[family]
        )
    first = str(error.value).splitlines()[0]
    assert first.startswith('x.safetensors holds tensors that are no part of ')
    assert first.endswith('; give a plain model of this family:')
    assert error.value.problems == tuple(f'{name} {list(unknown[name])}' for name in sorted(unknown))


def test_tensors_without_a_place_in_the_layout_are_named():
    components = {part: dict(tensors) for part, tensors in tiny.components('sd2').items()}
    components['unet']['down_blocks.0.attentions.0.proj_in.lora_A'] = np.zeros((2, 2), np.float32)
    query = 'text_model.encoder.layers.1.self_attn.q_proj'
    del components['text_encoder'][f'{query}.bias']  # its key and value cannot be fused
    with pytest.raises(WeightsError) as error:
        original_layout.to_original(components, tiny.CONFIGS['sd2'], layout=LAYOUTS['sd2'])
    assert str(error.value).splitlines()[0] == (
        'the original layout of Stable Diffusion 2.x has no place for these tensors; give networks that fit their '
        'configurations:'
    )
    assert error.value.problems == (
        'unet: down_blocks.0.attentions.0.proj_in.lora_A [2, 2]',
        f'text_encoder: {query.replace("q_proj", "k_proj")}.bias [32]',
        f'text_encoder: {query.replace("q_proj", "v_proj")}.bias [32]',
    )


@pytest.mark.parametrize('rank', [2, 3])
def test_vae_attention_written_as_matrices_is_read(rank):
    tensors = original_layout.to_original(tiny.components('sd1'), tiny.CONFIGS['sd1'], layout=LAYOUTS['sd1'])
    name = 'first_stage_model.decoder.mid.attn_1.proj_out.weight'
    tensors[name] = tensors[name].reshape(tensors[name].shape[:rank])
    same(
        original_layout.from_original(tensors, tiny.CONFIGS['sd1'], layout=LAYOUTS['sd1'])['vae'],
        tiny.components('sd1')['vae'],
    )


def test_values_are_moved_and_never_computed(family, original):
    """A file in another dtype stays in it, and is made of views where nothing is joined."""
    halves = {
        component: {name: value.astype(np.float16) for name, value in tensors.items()}
        for component, tensors in tiny.components(family).items()
    }
    moved = original_layout.to_original(halves, tiny.CONFIGS[family], layout=LAYOUTS[family])
    assert {value.dtype for value in moved.values()} == {np.dtype(np.float16)}
    assert moved.keys() == original.keys()
    assert {name: value.shape for name, value in moved.items()} == {name: v.shape for name, v in original.items()}
    count = sum(value.size for tensors in halves.values() for value in tensors.values())
    assert sum(value.size for value in moved.values()) == count


def test_components_of_another_model_are_one_sentence():
    parts = {**tiny.components('sd1'), 'text_encoder_2': {}}
    with pytest.raises(WeightsError) as error:
        original_layout.to_original(parts, tiny.CONFIGS['sd1'], layout=LAYOUTS['sd1'])
    assert str(error.value) == (
        'components are text_encoder, text_encoder_2, unet, vae but a single file of Stable Diffusion 1.x holds '
        'text_encoder, unet, vae; give exactly these.'
    )
