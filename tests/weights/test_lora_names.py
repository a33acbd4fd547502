"""The names of layers in LoRA files: those of published files, and every spelling found again without a doubt."""

import pytest

from dreambooth_jax.weights import lora_names
from dreambooth_jax.weights.errors import WeightsError

QUERY = 'down_blocks.1.attentions.0.transformer_blocks.0.attn1.to_q'
CLIP = 'text_model.encoder.layers.0.self_attn.q_proj'


def test_kohya_names_are_those_of_published_files():
    published = {
        (
            'unet',
            'down_blocks.0.attentions.1.transformer_blocks.0.attn1.to_out.0',
            False,
        ): 'lora_unet_down_blocks_0_attentions_1_transformer_blocks_0_attn1_to_out_0',
        (
            'unet',
            'mid_block.attentions.0.transformer_blocks.0.ff.net.0.proj',
            False,
        ): 'lora_unet_mid_block_attentions_0_transformer_blocks_0_ff_net_0_proj',
        ('text_encoder', 'text_model.encoder.layers.11.mlp.fc1', False): 'lora_te_text_model_encoder_layers_11_mlp_fc1',
        ('unet', 'down_blocks.1.attentions.0.proj_in', True): 'lora_unet_input_blocks_4_1_proj_in',
        (
            'unet',
            'down_blocks.2.attentions.1.transformer_blocks.9.attn2.to_v',
            True,
        ): 'lora_unet_input_blocks_8_1_transformer_blocks_9_attn2_to_v',
        (
            'unet',
            'mid_block.attentions.0.transformer_blocks.3.attn1.to_q',
            True,
        ): 'lora_unet_middle_block_1_transformer_blocks_3_attn1_to_q',
        ('unet', 'up_blocks.0.attentions.2.proj_out', True): 'lora_unet_output_blocks_2_1_proj_out',
        ('unet', 'up_blocks.1.resnets.1.conv_shortcut', True): 'lora_unet_output_blocks_4_0_skip_connection',
        ('unet', 'up_blocks.0.upsamplers.0.conv', True): 'lora_unet_output_blocks_2_2_conv',
        ('unet', 'down_blocks.0.downsamplers.0.conv', True): 'lora_unet_input_blocks_3_0_op',
        (
            'text_encoder',
            'text_model.encoder.layers.0.self_attn.q_proj',
            True,
        ): 'lora_te1_text_model_encoder_layers_0_self_attn_q_proj',
        (
            'text_encoder_2',
            'text_model.encoder.layers.31.mlp.fc2',
            True,
        ): 'lora_te2_text_model_encoder_layers_31_mlp_fc2',
    }
    for (component, path, sdxl), name in published.items():
        assert lora_names.kohya_name(component, path, original=sdxl) == name


@pytest.mark.parametrize(
    ('component', 'path'),
    [
        ('unet', 'mid_block.attentions.0.add_k_proj'),  # of DeepFloyd IF
        ('unet', 'class_embedding.linear_1'),
        ('text_encoder', 'encoder.block.0.layer.0.SelfAttention.q'),  # of a T5
        ('text_encoder_2', 'text_projection'),  # which we read, but which not all programs know
        ('vae', CLIP),
    ],
)
def test_a_layer_that_not_all_readers_find_has_no_name(component, path):
    for original in (False, True):
        with pytest.raises(WeightsError) as error:
            lora_names.kohya_name(component, path, original=original)
        assert str(error.value) == f'{component}.{path} has no name in the lora_kohya format.'


@pytest.mark.parametrize(
    ('component', 'path', 'spellings'),
    [
        (
            'unet',
            QUERY,
            [
                f'unet.{QUERY}',
                QUERY,
                f'base_model.model.{QUERY}',
                f'unet.base_model.model.{QUERY}',
                f'unet.{QUERY.replace(".to_q", ".processor.to_q")}',
                f'lora_unet_{QUERY}'.replace('.', '_'),
                f'lycoris_{QUERY}'.replace('.', '_'),
                'diffusion_model.input_blocks.4.1.transformer_blocks.0.attn1.to_q',
                'lora_unet_input_blocks_4_1_transformer_blocks_0_attn1_to_q',
            ],
        ),
        (
            'text_encoder',
            CLIP,
            [
                f'text_encoder.{CLIP}',
                f'text_encoder.{CLIP.removeprefix("text_model.")}',
                f'text_encoder.{CLIP.replace("q_proj", "to_q")}',
                f'lora_te_{CLIP}'.replace('.', '_'),
                f'lora_te1_{CLIP}'.replace('.', '_'),
                f'text_encoders.clip_l.transformer.{CLIP}',
                f'text_encoders.clip_h.transformer.{CLIP}',
            ],
        ),
        ('text_encoder_2', 'text_projection', ['lora_te2_text_projection', 'text_encoder_2.text_projection']),
        ('unet', 'conv_out', ['diffusion_model.out.2', 'lora_unet_out_2', 'lora_unet_conv_out']),
    ],
)
def test_every_spelling_is_one_of_the_layers_names(component, path, spellings):
    names = lora_names.layer_names(component, path)
    assert set(spellings) <= names
    found = lora_names.owners([(component, path)])
    assert {found[name] for name in spellings} == {(component, path)}


def test_the_upsampler_of_a_block_without_attention_has_both_original_names():
    names = lora_names.layer_names('unet', 'up_blocks.0.upsamplers.0.conv')
    assert {'diffusion_model.output_blocks.2.1.conv', 'diffusion_model.output_blocks.2.2.conv'} <= names


def test_a_name_of_two_layers_is_no_name():
    found = lora_names.owners([('text_encoder', CLIP), ('text_encoder_2', CLIP)])
    short = CLIP.removeprefix('text_model.')
    assert f'base_model.model.{CLIP}' not in found and f'base_model.model.{short}' not in found
    assert found[f'lora_te1_{CLIP}'.replace('.', '_')] == ('text_encoder', CLIP)
    assert found[f'lora_te2_{CLIP}'.replace('.', '_')] == ('text_encoder_2', CLIP)


def test_kohya_is_known_to_drop_the_ends_and_the_embeddings_alone():
    dropped = [
        name
        for name in ('conv_in', 'time_embedding.linear_2', QUERY, 'up_blocks.0.resnets.1.conv1', CLIP)
        if lora_names.UNKNOWN_TO_KOHYA.fullmatch(name)
    ]
    assert dropped == ['conv_in', 'time_embedding.linear_2']
