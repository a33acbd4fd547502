"""Encoders are written as transformers writes them: it opens them, computes the same, and we read the same again."""

import json

import numpy as np
import pytest
import torch
import transformers

from dreambooth_jax.models import functional
from dreambooth_jax.models.clip import CLIPTextModel
from dreambooth_jax.models.vit import VisionTransformer
from dreambooth_jax.weights.encoder_export import write_encoder
from dreambooth_jax.weights.encoder_folders import IMAGE, TEXT, own_configs, read_encoder
from dreambooth_jax.weights.errors import WeightsError
from tests.support import tiny_clip, tiny_encoders

CONFIGS = {
    'dino': {'model_type': 'vit', **tiny_encoders.CONFIGS['dino']},
    'clip': {'model_type': 'clip', **tiny_encoders.CONFIGS['clip']},
}


def random_params(config):
    """Parameters that are all different from zero, as zeros would hide an exchange."""
    rng, found = np.random.default_rng(5), {}
    for part, own in own_configs(config).items():
        make = VisionTransformer if part == IMAGE else lambda own, rngs: CLIPTextModel(own, rngs=rngs, projection=True)
        _, params = functional.abstract(lambda make=make, own=own: make(own, rngs=functional.Keys(0)))
        found[part] = {path: 0.2 * rng.standard_normal(p.shape).astype(np.float32) for path, p in params.items()}
    return found


@pytest.mark.parametrize('name', CONFIGS)
def test_what_was_written_is_read_again(name, tmp_path):
    params = random_params(CONFIGS[name])
    write_encoder(tmp_path, CONFIGS[name], params, logit_scale=3.0, dtype='float32')
    if name == 'clip':
        tiny_clip.tokenizer().save_pretrained(tmp_path)
    read = read_encoder(tmp_path)
    assert read.networks.keys() == params.keys()
    for part, network in read.networks.items():
        assert network.params.keys() == params[part].keys()
        for path, value in params[part].items():
            np.testing.assert_array_equal(network.params[path], value, err_msg=path)


@pytest.mark.parametrize('name', CONFIGS)
def test_transformers_opens_it_and_computes_the_same(name, tmp_path):
    params = random_params(CONFIGS[name])
    write_encoder(tmp_path, CONFIGS[name], params, logit_scale=3.0)
    if name == 'clip':
        tiny_clip.tokenizer().save_pretrained(tmp_path)
    model, about = getattr(transformers, f'{"ViT" if name == "dino" else "CLIP"}Model').from_pretrained(
        tmp_path, output_loading_info=True
    )
    # Only the pooler, which DINO does not have, is not in the file.
    assert not about['unexpected_keys'] and all('pooler' in key for key in about['missing_keys'])
    model = model.float().eval()
    networks = read_encoder(tmp_path).networks
    pixels = np.random.default_rng(6).standard_normal((2, 32, 32, 3)).astype(np.float32)
    images = torch.from_numpy(pixels).permute(0, 3, 1, 2)
    with torch.no_grad():
        if name == 'dino':
            theirs = model(images).last_hidden_state[:, 0]
        else:
            theirs = model.get_image_features(images).pooler_output
            ids = np.array([[tiny_clip.START, 3, 4, tiny_clip.END], [tiny_clip.START, 9, tiny_clip.END, 0]])
            told = model.get_text_features(torch.from_numpy(ids)).pooler_output
            ours = networks[TEXT].apply(networks[TEXT].params, ids)[1]
            np.testing.assert_allclose(ours, told.numpy(), atol=1e-4)
            assert float(model.logit_scale) == 3.0
    np.testing.assert_allclose(networks[IMAGE].apply(networks[IMAGE].params, pixels)[1], theirs.numpy(), atol=1e-4)


def test_parameters_that_do_not_fit_are_refused_and_nothing_is_written(tmp_path):
    params = random_params(CONFIGS['dino'])
    params[IMAGE].pop('layernorm.bias')
    with pytest.raises(WeightsError, match='layernorm.bias'):
        write_encoder(tmp_path / 'new', CONFIGS['dino'], params)
    assert not (tmp_path / 'new').exists()


def test_the_configuration_is_the_one_given(tmp_path):
    write_encoder(tmp_path, CONFIGS['dino'], random_params(CONFIGS['dino']))
    assert json.loads((tmp_path / 'config.json').read_text()) == CONFIGS['dino']
