"""What a file is that is no LoRA of this model: another kind of adapter, another model, or nothing that is known."""

import numpy as np
import pytest

from dreambooth_jax.families.originals import ORIGINALS
from dreambooth_jax.weights.lora_kinds import foreign

ATTENTION = 'down_blocks.0.attentions.0.transformer_blocks.0.attn1'
TEXT = 'mid_block.attentions.0.transformer_blocks.0.attn2.to_k'
LAYER = f'lora_unet_{ATTENTION}_to_q'.replace('.', '_')
MERGE = (
    'which is not read here (LoRA, LoCon and DoRA are); merge it into its model in the program that made it, and '
    'give that model.'
)
OTHER = 'which is not read here (LoRA, LoCon and DoRA are); use one that was trained on a model of the same kind.'


def networks(width=768, components=('text_encoder',)):
    """A model that reads text of this width."""
    return {'unet': {f'{TEXT}.kernel': np.zeros((width, 320), np.float32)}, **{name: {} for name in components}}


def of(*names, value=None):
    """Tensors of a file."""
    return {name: np.zeros((2, 2), np.float32) if value is None else value for name in names}


@pytest.mark.parametrize(
    ('keys', 'sentence'),
    [
        (
            [f'{LAYER}.hada_w1_a', f'{LAYER}.hada_w1_b', f'{LAYER}.hada_w2_a', f'{LAYER}.hada_w2_b', f'{LAYER}.alpha'],
            f'is a LoHa, {MERGE}',
        ),
        ([f'{LAYER}.lokr_w1', f'{LAYER}.lokr_w2', f'{LAYER}.alpha'], f'is a LoKr, {MERGE}'),
        ([f'{LAYER}.weight', f'{LAYER}.on_input'], f'is an (IA)^3, {MERGE}'),
        ([f'{LAYER}.{end}.weight' for end in ('a1', 'a2', 'b1', 'b2')], f'is a GLoRA, {MERGE}'),
        ([f'{LAYER}.oft_blocks', f'{LAYER}.alpha'], f'is an OFT or BOFT, {MERGE}'),
        ([f'{LAYER}.oft_R.weight'], f'is an OFT or BOFT, {MERGE}'),
        (
            [f'{LAYER}.diff', f'{LAYER}.diff_b'],
            f'is an adapter that changes whole tensors, biases or norms (.diff, .diff_b, .w_norm), {MERGE}',
        ),
        ([f'unet.{ATTENTION}.to_q.lora_B.bias'], f'is a LoRA whose matrices have biases (lora_bias of PEFT), {MERGE}'),
        (
            ['text_encoder.text_model.embeddings.token_embedding.lora_embedding_A'],
            f'is a LoRA of a token table, {MERGE}',
        ),
        (
            ['bundle_emb.<rex>.string_to_param.*'],
            'is a LoRA with a textual inversion inside (bundle_emb), which is not read here (LoRA, LoCon and DoRA '
            'are); save the two apart where it was trained, and give the embedding to sample as --embedding.',
        ),
        (['emb_params'], 'is a textual inversion and no LoRA; give it to sample as --embedding.'),
        (['clip_l', 'clip_g'], 'is a textual inversion and no LoRA; give it to sample as --embedding.'),
        (['lora_unet_double_blocks_0_img_attn_proj.lora_down.weight'], f'is a LoRA of Flux, {OTHER}'),
        (['transformer.single_transformer_blocks.0.attn.to_q.lora_A.weight'], f'is a LoRA of Flux, {OTHER}'),
        (['lora_unet_joint_blocks_0_x_block_attn_qkv.lora_down.weight'], f'is a LoRA of Stable Diffusion 3, {OTHER}'),
        (
            ['transformer.transformer_blocks.0.attn.to_q.lora_A.weight'],
            (
                f'is a LoRA of a model that has a transformer in place of the UNet, such as Stable Diffusion 3 '
                f'or Flux, {OTHER}'
            ),
        ),
        (
            ['lora_te2_text_model_encoder_layers_0_mlp_fc1.lora_down.weight'],
            'is a LoRA of a model with two text encoders, as Stable Diffusion XL has; use one that was trained on a '
            'model of the same kind.',
        ),
        (
            ['model.diffusion_model.out.2.weight'],
            'is a whole model and no adapter, which is not read here (LoRA, LoCon and DoRA are); give it as the '
            'model itself.',
        ),
    ],
)
def test_what_is_no_lora_that_is_read_is_named_in_one_sentence(keys, sentence):
    assert foreign(of(*keys), keys, networks()) == sentence


def test_only_tensors_that_belong_to_no_layer_say_what_a_file_is():
    tensors = of(f'unet.{ATTENTION}.to_q.lora_A.weight', f'{LAYER}.hada_w1_a')
    assert foreign(tensors, [], networks()) is None
    assert foreign(tensors, [f'{LAYER}.hada_w1_a'], networks()).startswith('is a LoHa, ')


def test_a_model_is_named_before_a_kind_of_adapter_which_merging_could_not_help():
    keys = ['lora_unet_double_blocks_0_img_attn_proj.lokr_w1', f'{LAYER}.lokr_w1']
    assert foreign(of(*keys), keys, networks()) == f'is a LoRA of Flux, {OTHER}'


def test_a_file_of_nothing_that_is_known_is_not_described():
    assert foreign(of('x.y.weight'), ['x.y.weight'], networks()) is None


@pytest.mark.parametrize(
    'name',
    [
        f'unet.{TEXT}.lora_A.weight',
        f'lora_unet_{TEXT}.lora_down.weight'.replace('.', '_', 5),
        f'unet.{TEXT.replace("attn2.", "attn2.processor.")}_lora.down.weight',
    ],
)
@pytest.mark.parametrize(
    ('theirs', 'ours', 'says'),
    [
        (
            2048,
            768,
            'Stable Diffusion XL (text of width 2048), but this model is Stable Diffusion 1.x (text of width 768',
        ),
        (
            768,
            1024,
            'Stable Diffusion 1.x (text of width 768), but this model is Stable Diffusion 2.x (text of width 10',
        ),
        (
            16,
            32,
            'a model that reads text of width 16, but this model is a model that reads text of width 32; use one ',
        ),
    ],
)
def test_another_model_is_known_by_the_width_of_its_text(name, theirs, ours, says):
    tensors = of(name, value=np.zeros((4, theirs), np.float32))
    assert foreign(tensors, [], networks(ours), ORIGINALS).startswith(f'is a LoRA of {says}')
    assert foreign(tensors, [], networks(theirs), ORIGINALS) is None


def test_without_the_layouts_a_width_has_no_name():
    tensors = of(f'unet.{TEXT}.lora_A.weight', value=np.zeros((4, 2048), np.float32))
    assert foreign(tensors, [], networks()) == (
        'is a LoRA of a model that reads text of width 2048, but this model is a model that reads text of width 768; '
        'use one that was trained on a model of the same kind.'
    )


def test_two_text_encoders_are_no_surprise_to_a_model_that_has_them():
    keys = ['text_encoders.clip_g.transformer.x.lora_A.weight']
    assert foreign(of(*keys), keys, networks()).startswith('is a LoRA of a model with two text encoders, as ')
    assert foreign(of(*keys), keys, networks(components=('text_encoder', 'text_encoder_2'))) is None
