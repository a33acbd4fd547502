"""What the stages of pretraining train and keep of a pool, and what each refuses."""

import numpy as np
import pytest

from dreambooth_jax.config import ConfigError, PretrainConfig
from dreambooth_jax.finetune.fresh import START, start_pipeline
from dreambooth_jax.finetune.pretraining import pretraining_of, with_scaled_latents
from dreambooth_jax.models.vae import latent_mode
from dreambooth_jax.storybook.pools import Pool
from tests.support import smallest_pipelines, tiny_flow_pretraining

SIZE = tiny_flow_pretraining.SIZE
IMAGES = np.random.default_rng(0).integers(0, 256, (3, SIZE, SIZE, 3), np.uint8)
POOL = Pool(IMAGES, ['a dog', 'a red cat in the snow', 'a vase'])


def config(**settings):
    return PretrainConfig(**{**tiny_flow_pretraining.SETTINGS, **settings})


@pytest.fixture(scope='module')
def flow(tmp_path_factory):
    """A fresh model on latents, and the folder of its run."""
    workdir = tmp_path_factory.mktemp('flow')
    return start_pipeline(config(), workdir), workdir


@pytest.mark.slow
def test_a_fresh_model_whose_text_encoder_is_read_in_part_is_kept_for_the_next_start(flow):
    pipeline, workdir = flow
    assert (workdir / START / 'model_index.json').is_file() and pipeline.folder == workdir / START
    assert pipeline.components.keys() == {'transformer', 'vae', 'text_encoder'} and pipeline.size == SIZE
    again = start_pipeline(config(seed=3), workdir)  # it is read, not made again
    assert again.weights_hash == pipeline.weights_hash


def test_the_autoencoder_trains_alone_on_pixels(flow):
    stage = pretraining_of(config(stage='autoencoder'), flow[0])
    assert stage.params.keys() == {'vae'} and not stage.samples
    kept = stage.data(POOL)
    assert kept.keys() == {'images'} and kept['images'] is IMAGES


def test_the_base_stage_trains_the_transformer_on_latents_and_states_of_text(flow):
    pipeline, _ = flow
    stage = pretraining_of(config(), pipeline)
    assert stage.params.keys() == {'transformer'} and stage.samples
    kept = stage.data(POOL)
    assert kept['latents'].shape == (3, SIZE // 2, SIZE // 2, 4) and kept['prompt_of'].tolist() == [1, 2, 3]
    text = kept['text']
    mask = text['encoder_attention_mask']
    assert text['encoder_hidden_states'].shape[0] == 4 and mask.sum(axis=1).tolist() == [8, 10, 14, 10]
    # With one layer, the state before it is the token's embedding.
    table = pipeline.components['text_encoder'].params['embed_tokens.embedding']
    assert {tuple(state) for state in text['encoder_hidden_states'][mask > 0]} <= {tuple(row) for row in table}


def test_latents_are_scaled_to_mean_zero_and_deviation_one(flow):
    scaled = with_scaled_latents(flow[0], IMAGES)
    space = scaled.space
    assert space.scaling_factor != 1.0 and space.shift_factor != 0.0
    latents = space.prepare(IMAGES, None, flip=False, pairs=False)['latents']
    assert (latents.mean(), latents.std()) == (pytest.approx(0, abs=1e-5), pytest.approx(1, abs=1e-5))
    assert latent_mode(np.zeros((1, 1, 1, 8)), space.scaling_factor, space.shift_factor).shape == (1, 1, 1, 4)


def test_every_network_must_be_described(tmp_path):
    with pytest.raises(ConfigError) as error:
        start_pipeline(config(vae={}), tmp_path)
    assert str(error.value) == 'config.vae must describe the vae of a ZImagePipeline'


def test_a_model_on_pixels_has_no_autoencoder(tmp_path):
    given = PretrainConfig(init=str(smallest_pipelines.folder('pixels')), stage='autoencoder')
    with pytest.raises(ConfigError) as error:
        pretraining_of(given, start_pipeline(given, tmp_path))
    assert str(error.value) == ("config.stage is 'autoencoder' but a IFPipeline works on pixels and has none")
