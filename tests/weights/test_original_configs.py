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
# Published name, where it comes from, and its published shape.
NAMES = {
    'sd1': """
        model.diffusion_model.time_embed.2.weight = unet.time_embedding.linear_2.weight 1280 1280
        model.diffusion_model.input_blocks.0.0.weight = unet.conv_in.weight 320 4 3 3
        model.diffusion_model.input_blocks.1.0.in_layers.2.weight \
            = unet.down_blocks.0.resnets.0.conv1.weight 320 320 3 3
        model.diffusion_model.input_blocks.1.1.transformer_blocks.0.attn1.to_q.weight \
            = unet.down_blocks.0.attentions.0.transformer_blocks.0.attn1.to_q.weight 320 320
        model.diffusion_model.input_blocks.3.0.op.weight = unet.down_blocks.0.downsamplers.0.conv.weight 320 320 3 3
        model.diffusion_model.input_blocks.4.0.skip_connection.weight \
            = unet.down_blocks.1.resnets.0.conv_shortcut.weight 640 320 1 1
        model.diffusion_model.input_blocks.8.1.proj_in.weight \
            = unet.down_blocks.2.attentions.1.proj_in.weight 1280 1280 1 1
        model.diffusion_model.input_blocks.11.0.out_layers.3.bias = unet.down_blocks.3.resnets.1.conv2.bias 1280
        model.diffusion_model.middle_block.1.norm.weight = unet.mid_block.attentions.0.norm.weight 1280
        model.diffusion_model.middle_block.2.emb_layers.1.weight \
            = unet.mid_block.resnets.1.time_emb_proj.weight 1280 1280
        model.diffusion_model.output_blocks.2.1.conv.weight = unet.up_blocks.0.upsamplers.0.conv.weight 1280 1280 3 3
        model.diffusion_model.output_blocks.5.2.conv.weight = unet.up_blocks.1.upsamplers.0.conv.weight 1280 1280 3 3
        model.diffusion_model.output_blocks.9.1.transformer_blocks.0.attn2.to_k.weight \
            = unet.up_blocks.3.attentions.0.transformer_blocks.0.attn2.to_k.weight 320 768
        model.diffusion_model.output_blocks.11.0.skip_connection.weight \
            = unet.up_blocks.3.resnets.2.conv_shortcut.weight 320 640 1 1
        model.diffusion_model.out.0.weight = unet.conv_norm_out.weight 320
        model.diffusion_model.out.2.bias = unet.conv_out.bias 4
        first_stage_model.encoder.down.0.downsample.conv.weight \
            = vae.encoder.down_blocks.0.downsamplers.0.conv.weight 128 128 3 3
        first_stage_model.encoder.down.1.block.0.nin_shortcut.weight \
            = vae.encoder.down_blocks.1.resnets.0.conv_shortcut.weight 256 128 1 1
        first_stage_model.encoder.mid.attn_1.q.weight = vae.encoder.mid_block.attentions.0.to_q.weight 512 512 1 1
        first_stage_model.decoder.mid.attn_1.proj_out.bias = vae.decoder.mid_block.attentions.0.to_out.0.bias 512
        first_stage_model.decoder.mid.block_2.conv1.weight = vae.decoder.mid_block.resnets.1.conv1.weight 512 512 3 3
        first_stage_model.decoder.up.3.block.0.norm1.weight = vae.decoder.up_blocks.0.resnets.0.norm1.weight 512
        first_stage_model.decoder.up.1.upsample.conv.weight \
            = vae.decoder.up_blocks.2.upsamplers.0.conv.weight 256 256 3 3
        first_stage_model.decoder.up.0.block.0.nin_shortcut.weight \
            = vae.decoder.up_blocks.3.resnets.0.conv_shortcut.weight 128 256 1 1
        first_stage_model.encoder.norm_out.weight = vae.encoder.conv_norm_out.weight 512
        first_stage_model.quant_conv.weight = vae.quant_conv.weight 8 8 1 1
        cond_stage_model.transformer.text_model.embeddings.position_embedding.weight \
            = text_encoder.text_model.embeddings.position_embedding.weight 77 768
        cond_stage_model.transformer.text_model.encoder.layers.11.self_attn.q_proj.weight \
            = text_encoder.text_model.encoder.layers.11.self_attn.q_proj.weight 768 768
    """,
    'sd2': """
        model.diffusion_model.input_blocks.2.1.transformer_blocks.0.attn2.to_k.weight \
            = unet.down_blocks.0.attentions.1.transformer_blocks.0.attn2.to_k.weight 320 1024
        model.diffusion_model.input_blocks.1.1.proj_in.weight = unet.down_blocks.0.attentions.0.proj_in.weight 320 320
        model.diffusion_model.output_blocks.8.2.conv.bias = unet.up_blocks.2.upsamplers.0.conv.bias 640
        first_stage_model.decoder.up.2.block.2.conv2.weight = vae.decoder.up_blocks.1.resnets.2.conv2.weight 512 512 3 3
        cond_stage_model.model.token_embedding.weight \
            = text_encoder.text_model.embeddings.token_embedding.weight 49408 1024
        cond_stage_model.model.positional_embedding \
            = text_encoder.text_model.embeddings.position_embedding.weight 77 1024
        cond_stage_model.model.ln_final.bias = text_encoder.text_model.final_layer_norm.bias 1024
        cond_stage_model.model.transformer.resblocks.0.attn.in_proj_weight \
            = text_encoder.text_model.encoder.layers.0.self_attn.q_proj.weight 3072 1024
        cond_stage_model.model.transformer.resblocks.3.attn.in_proj_bias \
            = text_encoder.text_model.encoder.layers.3.self_attn.q_proj.bias 3072
        cond_stage_model.model.transformer.resblocks.5.attn.out_proj.weight \
            = text_encoder.text_model.encoder.layers.5.self_attn.out_proj.weight 1024 1024
        cond_stage_model.model.transformer.resblocks.22.ln_1.weight \
            = text_encoder.text_model.encoder.layers.22.layer_norm1.weight 1024
        cond_stage_model.model.transformer.resblocks.22.mlp.c_fc.weight \
            = text_encoder.text_model.encoder.layers.22.mlp.fc1.weight 4096 1024
    """,
    'sdxl': """
        model.diffusion_model.label_emb.0.0.weight = unet.add_embedding.linear_1.weight 1280 2816
        model.diffusion_model.label_emb.0.2.weight = unet.add_embedding.linear_2.weight 1280 1280
        model.diffusion_model.input_blocks.4.1.transformer_blocks.1.attn2.to_k.weight \
            = unet.down_blocks.1.attentions.0.transformer_blocks.1.attn2.to_k.weight 640 2048
        model.diffusion_model.input_blocks.8.1.transformer_blocks.9.ff.net.0.proj.weight \
            = unet.down_blocks.2.attentions.1.transformer_blocks.9.ff.net.0.proj.weight 10240 1280
        model.diffusion_model.middle_block.1.transformer_blocks.9.norm3.weight \
            = unet.mid_block.attentions.0.transformer_blocks.9.norm3.weight 1280
        model.diffusion_model.output_blocks.2.2.conv.weight = unet.up_blocks.0.upsamplers.0.conv.weight 1280 1280 3 3
        model.diffusion_model.output_blocks.3.1.transformer_blocks.1.attn1.to_out.0.bias \
            = unet.up_blocks.1.attentions.0.transformer_blocks.1.attn1.to_out.0.bias 640
        model.diffusion_model.output_blocks.8.0.in_layers.0.weight = unet.up_blocks.2.resnets.2.norm1.weight 640
        conditioner.embedders.0.transformer.text_model.encoder.layers.11.mlp.fc2.weight \
            = text_encoder.text_model.encoder.layers.11.mlp.fc2.weight 768 3072
        conditioner.embedders.1.model.text_projection = text_encoder_2.text_projection.weight 1280 1280
        conditioner.embedders.1.model.transformer.resblocks.31.mlp.c_proj.bias \
            = text_encoder_2.text_model.encoder.layers.31.mlp.fc2.bias 1280
        conditioner.embedders.1.model.transformer.resblocks.9.attn.in_proj_weight \
            = text_encoder_2.text_model.encoder.layers.9.self_attn.q_proj.weight 3840 1280
    """,
    'upscaler': """
        model.diffusion_model.label_emb.weight = unet.class_embedding.weight 1000 1024
        model.diffusion_model.input_blocks.0.0.weight = unet.conv_in.weight 256 7 3 3
        model.diffusion_model.input_blocks.4.1.transformer_blocks.0.attn1.to_k.weight \
            = unet.down_blocks.1.attentions.0.transformer_blocks.0.attn1.to_k.weight 512 1024
        model.diffusion_model.input_blocks.10.0.skip_connection.bias \
            = unet.down_blocks.3.resnets.0.conv_shortcut.bias 1024
        model.diffusion_model.output_blocks.8.2.conv.weight = unet.up_blocks.2.upsamplers.0.conv.weight 512 512 3 3
        first_stage_model.decoder.up.2.block.0.norm1.weight = vae.decoder.up_blocks.0.resnets.0.norm1.weight 512
        cond_stage_model.model.transformer.resblocks.0.attn.in_proj_weight \
            = text_encoder.text_model.encoder.layers.0.self_attn.q_proj.weight 3072 1024
    """,
}


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
    for line in NAMES[family].strip().splitlines():
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
