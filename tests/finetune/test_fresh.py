"""Where pretraining starts: from fresh networks or another pipeline, and one sentence for what cannot be trained."""

import pytest

from dreambooth_jax.config import ConfigError, PretrainConfig
from dreambooth_jax.finetune.fresh import start_pipeline
from dreambooth_jax.weights.errors import WeightsError
from tests.support import smallest_pipelines, tiny_pipelines
from tests.support import tiny_networks as tiny

LATENTS, PIXELS = (str(smallest_pipelines.folder(kind)) for kind in ('latents', 'pixels'))
FRESH = {
    'unet': smallest_pipelines.PIXEL_UNET,
    'text_encoder': {**tiny.TEXT_ENCODER, 'num_layers': 1},
    'scheduler': tiny.SCHEDULER,
}
SECOND = {
    'stage': 'super_resolution',
    'base': PIXELS,
    'unet': smallest_pipelines.PIXEL_UPSCALER,
    'scheduler': tiny.SCHEDULER,
    'image_noising_scheduler': tiny.NOISING_SCHEDULER,
}


def test_a_folder_is_a_start_of_its_stage(tmp_path):
    start = start_pipeline(PretrainConfig(init=str(tiny_pipelines.folder())), tmp_path)
    assert start.class_name == 'IFPipeline' and start.denoiser is not None and 'text_encoder' in start.components


@pytest.mark.slow  # every start value is compiled
def test_fresh_networks_are_pipelines_of_their_stage(tmp_path):
    base = start_pipeline(PretrainConfig(**FRESH), tmp_path)
    assert base.class_name == 'IFPipeline' and base.size == 8
    assert base.tokenizers == {'text_encoder': tmp_path / 'tokenizer'}
    second = start_pipeline(PretrainConfig(**SECOND), tmp_path)
    assert second.class_name == 'IFSuperResolutionPipeline' and 'text_encoder' in second.components


@pytest.mark.parametrize(
    ('settings', 'sentence'),
    [
        (
            {'init': LATENTS},
            "config.init is '.*', which is a StableDiffusionPipeline, but a complete IFPipeline is nee",
        ),
        ({**SECOND, 'base': LATENTS}, "config.base is '.*', which is a StableDiffusionPipeline, but a complete IFPipe"),
        (
            {**SECOND, 'init': PIXELS},
            "config.init is '.*', which is a IFPipeline, but a complete IFSuperResolutionPipe",
        ),
        (
            {**FRESH, 'unet': {**FRESH['unet'], 'in_channels': 4}},
            "this run's settings is a variant of DeepFloyd IF that",
        ),
        ({**FRESH, 'unet': {'act_fn': 'x'}}, "the unet of this run's settings is not supported: .* act_fn is 'x'"),
        (
            {**FRESH, 'text_encoder': {'d_model': 8}},
            "the text_encoder of this run's settings is not supported: .*feed_forward_proj",
        ),
        ({**FRESH, 'scheduler': {'beta_end': 'x'}}, "config.scheduler is not supported: .*beta_end is 'x'"),
    ],
)
def test_what_cannot_be_trained_is_one_sentence(tmp_path, settings, sentence):
    settings = {'unet': {'in_channels': 3}, 'text_encoder': {'d_model': 8}, **settings}
    if settings.get('stage') == 'super_resolution':
        settings['text_encoder'] = {}
    with pytest.raises((ConfigError, WeightsError), match=sentence):
        start_pipeline(PretrainConfig(**settings), tmp_path)
