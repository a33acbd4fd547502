"""Other names of the same tensors: files of other versions and of larger networks are read, ours are read by others."""

import functools

import diffusers
import numpy as np
import pytest
import transformers
from flax import nnx

from dreambooth_jax.models import functional
from dreambooth_jax.models.clip import CLIPTextModel
from dreambooth_jax.models.vae import AutoencoderKL
from dreambooth_jax.weights import aliases, files, mapping
from tests.support.torch_reference import randomise, to_ours

TEXT = {
    'eos_token_id': 2,
    'hidden_act': 'gelu',
    'hidden_size': 16,
    'intermediate_size': 24,
    'max_position_embeddings': 7,
    'num_attention_heads': 2,
    'num_hidden_layers': 2,
    'projection_dim': 12,
    'vocab_size': 30,
}
VAE = {
    'block_out_channels': [8, 16],
    'down_block_types': 2 * ['DownEncoderBlock2D'],
    'norm_num_groups': 4,
    'up_block_types': 2 * ['UpDecoderBlock2D'],
}
CLASSES = {False: transformers.CLIPTextModel, True: transformers.CLIPTextModelWithProjection}


@functools.cache
def text_encoder(projection):
    return randomise(CLASSES[projection](transformers.CLIPTextConfig(**TEXT)), seed=0)


@functools.cache
def autoencoder():
    return randomise(diffusers.AutoencoderKL(**VAE), seed=0)


def network(projection):
    return nnx.eval_shape(lambda: CLIPTextModel(TEXT, projection=projection, rngs=functional.Keys(0)))


def load(projection, tensors):
    return mapping.load(network(projection), tensors, aliases=aliases.CLIP_ALIASES, ignored=aliases.CLIP_IGNORED)


def arrays(tensors):
    return {name: np.asarray(tensor) for name, tensor in tensors.items()}


def equal(ours, theirs):
    return ours.keys() == theirs.keys() and all(np.array_equal(ours[name], theirs[name]) for name in ours)


def named_as_published(projection):
    """An independent translation of the names of transformers 5 to those of all files before it."""
    tensors = arrays(text_encoder(projection).state_dict())
    return tensors if projection else {f'text_model.{name}': tensor for name, tensor in tensors.items()}


def expected(projection):
    params = to_ours(text_encoder(projection))
    return params if projection else {f'text_model.{name}': value for name, value in params.items()}


@pytest.mark.parametrize('projection', [False, True])
def test_clip_is_read_as_this_transformers_writes_it(projection, tmp_path):
    text_encoder(projection).save_pretrained(tmp_path)
    assert equal(load(projection, files.read_tensors(tmp_path / 'model.safetensors')), expected(projection))


@pytest.mark.parametrize('projection', [False, True])
def test_clip_is_read_as_published_with_the_numbers_of_positions(projection):
    tensors = named_as_published(projection)
    tensors['text_model.embeddings.position_ids'] = np.arange(7)[None]
    assert equal(load(projection, tensors), expected(projection))


@pytest.mark.parametrize('projection', [False, True])
def test_clip_is_written_as_published_and_read_by_transformers(projection, tmp_path):
    tensors = mapping.export(network(projection), expected(projection))
    assert equal(tensors, named_as_published(projection))
    files.write_tensors(tmp_path / 'model.safetensors', tensors)
    text_encoder(projection).config.save_pretrained(tmp_path)
    theirs, told = CLASSES[projection].from_pretrained(tmp_path, output_loading_info=True)
    assert not any(told.values()), told
    assert equal(arrays(theirs.state_dict()), arrays(text_encoder(projection).state_dict()))


@pytest.mark.parametrize('projection', [False, True])
def test_the_text_side_of_a_whole_clip_is_read(projection):
    vision = {'hidden_size': 16, 'intermediate_size': 24, 'num_attention_heads': 2, 'num_hidden_layers': 1}
    config = transformers.CLIPConfig(
        text_config=TEXT, vision_config={**vision, 'image_size': 8, 'patch_size': 4}, projection_dim=12
    )
    whole = arrays(transformers.CLIPModel(config).state_dict())
    ours = load(projection, whole)
    assert ('text_projection.kernel' in ours) == projection
    name = 'text_model.encoder.layers.1.mlp.fc1'
    assert np.array_equal(ours[f'{name}.kernel'], whole[f'{name}.weight'].T)


def test_a_projection_that_is_missing_is_an_error():
    with pytest.raises(mapping.WeightsError, match=r'missing: text_projection.weight \[12, 16\]'):
        load(True, named_as_published(False))


def vae_network():
    return nnx.eval_shape(lambda: AutoencoderKL(VAE, rngs=functional.Keys(0)))


def test_vae_survives_the_round_trip_bit_for_bit():
    tensors = arrays(autoencoder().state_dict())
    params = mapping.load(vae_network(), tensors)
    assert equal(params, to_ours(autoencoder()))
    assert equal(mapping.export(vae_network(), params), tensors)


def test_vae_is_read_under_the_old_names_of_its_attention(tmp_path):
    old = {'to_q': 'query', 'to_k': 'key', 'to_v': 'value', 'to_out.0': 'proj_attn'}
    tensors = {}
    for name, tensor in autoencoder().state_dict().items():
        for new, former in old.items():
            name = name.replace(f'attentions.0.{new}.', f'attentions.0.{former}.')
        tensors[name] = tensor
    assert sum('proj_attn' in name for name in tensors) == 4
    params = mapping.load(vae_network(), arrays(tensors), aliases=aliases.VAE_ALIASES)
    assert equal(params, to_ours(autoencoder()))
    # These are the names that diffusers reads too.
    autoencoder().save_config(tmp_path)
    files.write_tensors(tmp_path / 'diffusion_pytorch_model.safetensors', arrays(tensors))
    theirs = diffusers.AutoencoderKL.from_pretrained(tmp_path)
    assert equal(arrays(theirs.state_dict()), arrays(autoencoder().state_dict()))
