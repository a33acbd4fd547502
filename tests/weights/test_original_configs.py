"""Names and configurations of models of published size, and which files are which. Shapes only: no values, no memory.

Counts and configurations are the published ones; the names are those of the tensors in the published files.
"""

import numpy as np
import pytest
import torch
from diffusers.loaders import single_file_utils

from dreambooth_jax.families.originals import ORIGINALS
from dreambooth_jax.weights import original_configs, original_layout
from dreambooth_jax.weights.errors import WeightsError
from tests.support import published_stable_diffusion as real
from tests.support import tiny_stable_diffusion as tiny
from tests.support.layouts import LAYOUTS

NETWORKS = ('unet', 'vae', 'text_encoder', 'text_encoder_2')


@pytest.fixture(scope='module', params=real.CONFIGS)
def published(request):
    """Family, {component: {name: number}} and the original tensors, each full of its number."""
    configs, numbers, components = real.CONFIGS[request.param], {}, {}
    with torch.device('meta'):
        for component in configs.keys() & set(NETWORKS):
            network = tiny.build(component, configs[component])
            named = tiny.published_names(component, network)
            numbers |= {f'{component}.{name}': len(numbers) + i for i, name in enumerate(named)}
            components[component] = {
                name: np.broadcast_to(np.int16(numbers[f'{component}.{name}']), value.shape)
                for name, value in named.items()
            }
    return request.param, numbers, original_layout.to_original(components, configs, layout=LAYOUTS[request.param])


def test_published_names_and_shapes(published):
    family, numbers, original = published
    for line in real.NAMES[family].strip().splitlines():
        name, right = line.split(' = ')
        ours, *shape = right.split()
        assert original[name.strip()].shape == tuple(map(int, shape)), name
        assert original[name.strip()].flat[0] == numbers[ours], name
    assert sum(value.size for value in original.values()) == real.PARAMETERS[family]


def test_diffusers_gives_the_same_names_at_published_size(published):
    family, numbers, original = published
    theirs = {'sd1': 'v1', 'sd2': 'v2', 'sdxl': 'xl_base', 'upscaler': 'upscale'}
    assert single_file_utils.infer_diffusers_model_type(original) == theirs[family]
    for component, convert in (
        ('unet', single_file_utils.convert_ldm_unet_checkpoint),
        ('vae', single_file_utils.convert_ldm_vae_checkpoint),
    ):
        back = convert(dict(original), real.CONFIGS[family][component])
        expected = {name: number for name, number in numbers.items() if name.startswith(f'{component}.')}
        assert {f'{component}.{name}': value.flat[0] for name, value in back.items()} == expected


def test_fused_projections_are_query_key_value(published):
    family, numbers, original = published
    for name, value in original.items():
        if name.endswith('in_proj_bias'):
            component = 'text_encoder_2' if family == 'sdxl' else 'text_encoder'
            layer = f'{component}.text_model.encoder.layers.{name.split(".")[-3]}.self_attn'
            expected = [numbers[f'{layer}.{part}_proj.bias'] for part in 'qkv']
            assert value.reshape(3, -1)[:, 0].tolist() == expected


# What the published files leave out, because diffusers takes it by default.
DEFAULTS = {
    'model_type': 'clip_text_model',
    'scaling_factor': 0.18215,
    'transformer_layers_per_block': 1,
    'use_linear_projection': False,
}


def shapes_of(original):
    return {name: value.shape for name, value in original.items()}


def test_published_configurations_are_derived_from_shapes(published):
    family, _, original = published
    shapes = shapes_of(original)
    assert original_configs.detect(shapes, ORIGINALS) is LAYOUTS[family]
    derived = original_configs.derive(
        shapes, LAYOUTS[family], prediction_type='v_prediction' if family == 'sd2' else None
    )
    assert derived.keys() == real.CONFIGS[family].keys()
    for part, expected in real.CONFIGS[family].items():
        besides = {key: DEFAULTS[key] for key in derived[part].keys() - expected.keys()}
        assert derived[part] == besides | expected
    assert original_configs.layout_of(derived, ORIGINALS) is LAYOUTS[family]
    if family == 'sd2':  # 2.1-base
        base = original_configs.derive(shapes, LAYOUTS[family])
        assert base['scheduler'] == real.CONFIGS['sd1']['scheduler']
        assert base['vae']['sample_size'] == 512 and base['unet']['sample_size'] == 64
        assert 'upcast_attention' not in base['unet']


def test_the_last_layer_of_open_clip_h_is_not_counted(published):
    family, _, original = published
    if family not in ('sd2', 'upscaler'):
        return
    layer = 'cond_stage_model.model.transformer.resblocks.{}.mlp.c_fc.weight'
    shapes = shapes_of(original) | {layer.format(23): (4096, 1024)}
    assert original_configs.derive(shapes, LAYOUTS[family])['text_encoder']['num_hidden_layers'] == 23


CONV_IN, QUANT_CONV = 'model.diffusion_model.input_blocks.0.0.weight', 'first_stage_model.quant_conv.weight'
TEXT = 'cond_stage_model.transformer.text_model.final_layer_norm.weight'
WHOLE = {CONV_IN: (320, 4, 3, 3), QUANT_CONV: (8, 8, 1, 1), TEXT: (768,)}


@pytest.mark.parametrize(
    ('shapes', 'sentence'),
    [
        (
            {'lora_unet_down_blocks_0.lora_down.weight': (4, 320)},
            'x holds no UNet and no VAE and no text encoder under names of the original Stable Diffusion layout (its '
            'first is lora_unet_down_blocks_0.lora_down.weight); give a whole model of Stable Diffusion 1.x, Stable '
            'Diffusion 2.x, Stable Diffusion XL, the Stable Diffusion x4 upscaler, or a pipeline folder.',
        ),
        (
            {CONV_IN: (320, 4, 3, 3), TEXT: (768,)},
            f'x holds no VAE under names of the original Stable Diffusion layout (its first is {TEXT}); give a whole '
            'model of Stable Diffusion 1.x, Stable Diffusion 2.x, Stable Diffusion XL, the Stable Diffusion x4 '
            'upscaler, or a pipeline folder.',
        ),
        (
            {**WHOLE, CONV_IN: (320, 9, 3, 3)},
            'x is a variant of Stable Diffusion 1.x that takes 9 channels (inpainting, editing or depth), but 4 are '
            'supported; give the plain model.',
        ),
        (
            {CONV_IN: (384, 4, 3, 3), QUANT_CONV: (8, 8, 1, 1), 'conditioner.embedders.0.model.ln_final.bias': (1280,)},
            'x has a text encoder of another model, such as the SDXL refiner; supported are Stable Diffusion 1.x, '
            'Stable Diffusion 2.x, Stable Diffusion XL, the Stable Diffusion x4 upscaler.',
        ),
    ],
)
def test_what_is_no_whole_model_is_one_sentence(shapes, sentence):
    with pytest.raises(WeightsError) as error:
        original_configs.detect(shapes, ORIGINALS, source='x')
    assert str(error.value) == sentence


def test_what_cannot_be_derived_is_one_sentence():
    with pytest.raises(WeightsError) as error:
        original_configs.derive(WHOLE, LAYOUTS['sd1'], source='x')
    assert str(error.value) == (
        'x holds no first_stage_model.encoder.conv_in.weight; it is no complete model: download or export it again.'
    )
    with pytest.raises(WeightsError) as error:
        original_configs.derive(WHOLE, LAYOUTS['sd1'], prediction_type='flow')
    assert str(error.value) == "prediction_type is 'flow'; it must be one of ('epsilon', 'v_prediction')."


def test_networks_without_an_original_layout_are_named():
    with pytest.raises(WeightsError) as error:
        original_configs.layout_of({'unet': {}, 'text_encoder': {'d_model': 24, 'hidden_act': 'gelu_new'}}, ORIGINALS)
    assert str(error.value) == (
        "text_encoder is no CLIP (its hidden_act is 'gelu_new'), but only Stable Diffusion 1.x, Stable Diffusion 2.x, "
        'Stable Diffusion XL, the Stable Diffusion x4 upscaler have an original layout; export a diffusers folder '
        'instead.'
    )
    with pytest.raises(WeightsError, match='configs holds vae but must hold unet and text_encoder.$'):
        original_configs.layout_of({'vae': {}}, ORIGINALS)
