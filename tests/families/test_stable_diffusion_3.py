"""Stable Diffusion 3.5 generates, trains and is written as with diffusers: a tiny random pipeline in all its parts."""

import functools
import json

import diffusers
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from diffusers.loaders.single_file_utils import convert_sd3_transformer_checkpoint_to_diffusers

from dreambooth_jax.config import LoraConfig
from dreambooth_jax.families import stable_diffusion_3
from dreambooth_jax.families.reading import read_pipeline
from dreambooth_jax.finetune.stage import check_schedules
from dreambooth_jax.finetune.trainable import make_trainable
from dreambooth_jax.generation.cascade import Cascade
from dreambooth_jax.weights import files, folders, lora_files
from dreambooth_jax.weights.errors import WeightsError
from tests.support import tiny_flow, tiny_sd3
from tests.support.flow_model import PROMPT, STEPS
from tests.support.flow_models import SD3 as MODEL
from tests.support.flow_models import sd3_encoded
from tests.support.tiny_flow import changed, settings

PROMPTS = ['', 'A photo of SKS dog on the beach, in the snow, beside a red backpack', PROMPT]
IMAGES = np.random.default_rng(0).integers(0, 256, (3, tiny_sd3.SIZE, tiny_sd3.SIZE, 3), np.uint8)


def assert_sentence(function, sentence):
    with pytest.raises(WeightsError) as error:
        function()
    assert str(error.value) == sentence


@pytest.mark.slow
def test_ten_steps_with_guidance_give_the_image_of_diffusers():
    MODEL.check_image()


def test_every_step_is_that_of_diffusers():
    MODEL.check_steps()


def test_the_process_is_shifted_twice_in_generating_and_once_in_training():
    base, scheduler = MODEL.cascade.base, diffusers.FlowMatchEulerDiscreteScheduler(shift=3.0)
    process = base.family.process(base)
    scheduler.set_timesteps(STEPS)
    np.testing.assert_allclose(process.of_shape(MODEL.shape[:2]).sigmas(STEPS), scheduler.sigmas, atol=1e-6)
    assert (process.shift, base.native_size, base.size_divisor) == (3.0, 32, 4)


def test_prompts_are_read_as_by_diffusers():
    states, pooled = sd3_encoded(tiny_sd3.torch_pipeline(), PROMPTS)
    found = MODEL.cascade.encode(PROMPTS)
    assert found['encoder_hidden_states'].shape == (3, 20 + 256, 40)
    np.testing.assert_allclose(found['encoder_hidden_states'], states, atol=1e-4)
    np.testing.assert_allclose(found['pooled'], pooled, atol=1e-4)


def test_a_folder_without_a_t5_reads_zeros_in_its_place_as_diffusers_does(tmp_path):
    entries = {'text_encoder_3': [None, None], 'tokenizer_3': [None, None]}
    folder = changed(tiny_sd3.folder(), tmp_path / 'bare', None, **entries)
    cascade = Cascade.load(folder, size=tiny_sd3.SIZE)
    pipe = MODEL.torch_pipeline_of(folder, text_encoder_3=None, tokenizer_3=None)
    states, pooled = sd3_encoded(pipe, PROMPTS)
    found = cascade.encode(PROMPTS)
    np.testing.assert_allclose(found['encoder_hidden_states'], states, atol=1e-4)
    np.testing.assert_allclose(found['pooled'], pooled, atol=1e-4)
    assert not found['encoder_hidden_states'][:, 20:].any()
    folders.write_pipeline(cascade.base, tmp_path / 'written')
    index = json.loads((tmp_path / 'written' / 'model_index.json').read_text())
    assert index['text_encoder_3'] == index['tokenizer_3'] == [None, None]
    # The other text encoders must be there.
    folder = changed(tiny_sd3.folder(), tmp_path / 'one', None, text_encoder_2=[None, None])
    assert_sentence(
        lambda: Cascade.load(folder, size=tiny_sd3.SIZE),
        f'{folder} has no text_encoder_2; give a complete pipeline.',
    )


def test_clip_skip_is_that_of_diffusers():
    cascade = Cascade.load(tiny_sd3.folder(), size=tiny_sd3.SIZE, clip_skip=1)
    with torch.no_grad():
        states, *_ = tiny_sd3.torch_pipeline().encode_prompt(
            PROMPT, None, None, do_classifier_free_guidance=False, clip_skip=1
        )
    np.testing.assert_allclose(cascade.encode([PROMPT])['encoder_hidden_states'], states, atol=1e-4)


def test_a_training_loss_is_that_of_the_script():
    """Without the script's weight s^2 of every time, and with prompts at the pipeline's length."""
    MODEL.check_loss(IMAGES, PROMPTS)


def test_a_written_folder_gives_diffusers_the_same_image(tmp_path):
    pipe = MODEL.check_written_folder(tmp_path / 'model', diffusers.StableDiffusion3Pipeline, spread=0.02)
    assert pipe.image_encoder is None and pipe.transformer.config.dual_attention_layers == [0]


def test_the_table_of_positions_never_trains():
    base = MODEL.cascade.base
    options = {'dtype': jnp.float32, 'remat': False, 'seed': 0}
    trainable = make_trainable(base, ('transformer',), LoraConfig(rank=None), **options)
    table = 'pos_embed.pos_embed'
    assert trainable.frozen['transformer'].keys() == {table}
    assert trainable.params['transformer'].keys() == base.denoiser.params.keys() - {table}
    assert trainable.plain(trainable.params)['transformer'].keys() == base.denoiser.params.keys()


def test_a_lora_of_the_usual_layers_is_loaded_by_diffusers(tmp_path):
    names = ('to_q', 'to_k', 'to_v', 'to_out.0', 'add_q_proj', 'add_k_proj', 'add_v_proj', 'to_add_out')
    layers = {f'transformer_blocks.{i}.attn.{name}' for i in range(3) for name in names}
    layers -= {'transformer_blocks.2.attn.to_add_out'}
    assert {name.rpartition('.')[0] for name in MODEL.lora} == layers
    MODEL.check_lora(tmp_path, lora_files.PEFT)


@pytest.mark.parametrize('format', [lora_files.KOHYA, lora_files.COMFYUI])
def test_layers_have_the_names_of_the_makers_code_in_other_formats(tmp_path, format):
    """diffusers reads no such LoRA file, but its conversion of whole transformers knows the same names."""
    tiny_flow.read_back(tmp_path, MODEL.cascade.base, MODEL.lora, format)
    rank, alpha = tiny_flow.RANK, tiny_flow.ALPHA
    products = {}
    for name, a in MODEL.lora.items():
        if name.endswith('.lora_a'):
            path = name.removesuffix('.lora_a')
            products[path] = alpha / rank * np.asarray(a @ MODEL.lora[f'{path}.lora_b']).T
    tensors = files.read_tensors(tmp_path / lora_files.PEFT_FILE)
    ends = (
        ('.lora_down.weight', '.lora_up.weight') if format == lora_files.KOHYA else ('.lora_A.weight', '.lora_B.weight')
    )
    original = original_checkpoint()
    for name, a in tensors.items():
        if name.endswith(ends[0]):
            layer = name.removesuffix(ends[0])
            scale = tensors.get(f'{layer}.alpha', len(a)) / len(a)
            if format == lora_files.KOHYA:
                (layer,) = (key for key in original if f'lora_unet_{key[:-7].replace(".", "_")}' == layer)
            else:
                layer = f'{layer.removeprefix("diffusion_model.")}.weight'
            original[layer] += torch.from_numpy(np.array(scale * tensors[name.replace(*ends)] @ a))
    converted = convert_sd3_transformer_checkpoint_to_diffusers(original)
    for path, product in products.items():
        np.testing.assert_allclose(converted.pop(f'{path}.weight'), product, rtol=1e-4, atol=1e-5, err_msg=path)
    assert not any(value.any() for value in converted.values())


def original_checkpoint():
    """Zeros with the names and shapes of the makers' code, for the tiny transformer."""
    width, found = 32, {}

    def layer(name, outputs, inputs=width):
        found[f'{name}.weight'], found[f'{name}.bias'] = torch.zeros(outputs, inputs), torch.zeros(outputs)

    found |= {'pos_embed': torch.zeros(1, 64, width), 'x_embedder.proj.weight': torch.zeros(width, 4, 2, 2)}
    found['x_embedder.proj.bias'] = torch.zeros(width)
    for name, inputs in (('t_embedder.mlp.0', 256), ('y_embedder.mlp.0', 32), ('context_embedder', 40)):
        layer(name, width, inputs)
    for name in ('t_embedder.mlp.2', 'y_embedder.mlp.2'):
        layer(name, width)
    for i in range(3):
        for stream in ('x_block', 'context_block'):
            block, whole = f'joint_blocks.{i}.{stream}', stream == 'x_block' or i < 2
            parts = 9 if (i, stream) == (0, 'x_block') else 6 if whole else 2
            layer(f'{block}.adaLN_modulation.1', parts * width)
            for attention in ('attn', 'attn2') if parts == 9 else ('attn',):
                layer(f'{block}.{attention}.qkv', 3 * width)
                found[f'{block}.{attention}.ln_q.weight'] = torch.zeros(8)
                found[f'{block}.{attention}.ln_k.weight'] = torch.zeros(8)
                if whole:
                    layer(f'{block}.{attention}.proj', width)
            if whole:
                layer(f'{block}.mlp.fc1', 4 * width)
                layer(f'{block}.mlp.fc2', width, 4 * width)
    layer('final_layer.linear', 16)
    layer('final_layer.adaLN_modulation.1', 2 * width)
    return found


def test_wrong_parts_are_refused_in_one_sentence(tmp_path):
    cases = {
        ('transformer', 'joint_attention_dim', 64): (
            'joint_attention_dim 64, but the states of its text_encoder_3 have 40 channels'
        ),
        ('transformer', 'pooled_projection_dim', 48): (
            'pooled_projection_dim 48, but the pooled states of its two CLIPs have 32 channels'
        ),
        ('vae', 'latent_channels', 8): 'in_channels 4, but the latents of its vae have 8 channels',
    }
    for (component, key, value), sentence in cases.items():
        folder = changed(tiny_sd3.folder(), tmp_path / key, component, **{key: value})
        refusal = f'the transformer of {folder} has {sentence}; give the parts of one model.'
        assert_sentence(functools.partial(read_pipeline, folder), refusal)
    family, plain = stable_diffusion_3.FAMILY, {'model_type': 'clip_text_model', 'architectures': ['CLIPTextModel']}
    assert_sentence(
        lambda: family.check({'text_encoder_2': plain}, 'x'),
        'the text_encoder_2 of x is of the class CLIPTextModel, but Stable Diffusion 3 needs '
        'CLIPTextModelWithProjection; give the parts of one model.',
    )
    check_schedules(settings(), MODEL.cascade)


def test_other_pipelines_of_the_same_networks_are_read_as_this_one(tmp_path):
    assert all(hasattr(diffusers, name) for name in stable_diffusion_3.FAMILY.also_saved_as)
    entry = {'_class_name': 'StableDiffusion3Img2ImgPipeline'}
    saved = read_pipeline(changed(tiny_sd3.folder(), tmp_path / 'saved', None, **entry), components=['vae'])
    assert saved.family is stable_diffusion_3.FAMILY
    assert saved.family.usual_sampling(saved) == {'sampler': 'euler', 'steps': 28, 'guidance_scale': 7.0}
