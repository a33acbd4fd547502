"""Sampling settings that belong to a model: a run's own, Storybook's measured ones, the defaults of all others."""

import json

import pytest

from dreambooth_jax.config import (
    STORYBOOK_CPU_DEVICES,
    STORYBOOK_ENLARGING,
    STORYBOOK_FLOW_SAMPLING,
    STORYBOOK_SAMPLING,
    ConfigError,
    DreamBoothConfig,
    PretrainConfig,
    SamplesConfig,
    SuperResolutionConfig,
    to_dict,
)
from dreambooth_jax.generation.run_settings import settings_of

SAMPLES = {'steps': 3, 'guidance_scale': 2.0, 'sampler': 'ddim'}
DEFAULTS = (SamplesConfig(), SuperResolutionConfig(), None, 0, None, False)


@pytest.fixture
def written(tmp_path):
    """Writes a run's config.json, content as a text or for JSON, and returns its folder."""

    def write(content):
        (tmp_path / 'config.json').write_text(content if isinstance(content, str) else json.dumps(content))
        return str(tmp_path)

    return write


def test_a_run_of_train_gives_what_it_sampled_with(written):
    config = to_dict(DreamBoothConfig())
    config['samples'] |= SAMPLES
    config['super_resolution'] |= {'sample_noise_level': 9, 'sample_steps': 4}
    config['data']['resolution'], config['base']['clip_skip'] = 64, 1
    config['parallel']['cpu_devices'] = 3
    found = settings_of(written(config))
    assert found.samples == SamplesConfig(**SAMPLES)
    assert (found.super_resolution.sample_noise_level, found.super_resolution.sample_steps) == (9, 4)
    assert (found.size, found.clip_skip, found.cpu_devices, found.has_samples) == (64, 1, 3, True)


def test_of_a_run_that_samples_with_another_model_only_what_its_files_say_counts(written):
    files = {'metadata': 'mark', 'c2pa_certificate': 'chain.pem', 'c2pa_key': 'key.pem'}
    config = to_dict(DreamBoothConfig())
    config['samples'] |= {**SAMPLES, **files, 'model': 'turbo'}
    found = settings_of(written(config))
    assert (found.samples, found.has_samples) == (SamplesConfig(**files), False)
    config['samples']['model'] = None
    found = settings_of(written(config))
    assert (found.samples, found.has_samples) == (SamplesConfig(**SAMPLES, **files), True)


@pytest.mark.parametrize('base', [None, 'runs/storybook_base'])
def test_a_run_of_pretrain_gives_its_samples_and_devices_alone(written, base):
    """Its `base` is a folder or nothing, and no group of settings."""
    settings = {**to_dict(PretrainConfig()), 'base': base, 'samples': SAMPLES, 'super_resolution': 3}
    settings['parallel'] = {'cpu_devices': 3}
    assert settings_of(written(settings)) == (SamplesConfig(**SAMPLES), SuperResolutionConfig(), None, 0, 3, True)


def test_built_in_models_are_sampled_as_measured_and_others_by_default(tmp_path, monkeypatch):
    found = settings_of('storybook')
    assert {name: getattr(found.samples, name) for name in STORYBOOK_SAMPLING} == STORYBOOK_SAMPLING
    assert {name: getattr(found.super_resolution, name) for name in STORYBOOK_ENLARGING} == STORYBOOK_ENLARGING
    assert found.cpu_devices == STORYBOOK_CPU_DEVICES
    flow = settings_of('storybook-flow')
    assert {name: getattr(flow.samples, name) for name in STORYBOOK_FLOW_SAMPLING} == STORYBOOK_FLOW_SAMPLING
    assert flow.cpu_devices == STORYBOOK_CPU_DEVICES
    monkeypatch.chdir(tmp_path)
    assert settings_of('owner/model') == settings_of(str(tmp_path)) == DEFAULTS


def test_a_file_beside_a_model_index_is_no_run(written, tmp_path):
    (tmp_path / 'model_index.json').write_text('{}')
    assert settings_of(written('{"base": null, "model_type": "x"}')) == DEFAULTS


def test_names_of_older_runs_are_read(written):
    config = {'samples': {}, 'super_resolution': {'accumulation': 2}, 'base': {'train_unet': True}}
    assert settings_of(written(config)).super_resolution.gradient_accumulation_steps == 2


def test_home_is_found(written, monkeypatch, tmp_path):
    written({'samples': SAMPLES})
    monkeypatch.setenv('HOME', str(tmp_path))
    assert settings_of('~').samples == SamplesConfig(**SAMPLES)


@pytest.mark.parametrize(
    ('content', 'reason'),
    [
        ([], "holds a JSON list but must hold a run's settings; restore it"),
        ({'base': None}, 'is damaged: its base is None but must be a group of settings; restore it'),
        ({'data': 3}, 'is damaged: its data is 3 but must be a group of settings; restore it'),
        ({'samples': 'x'}, "is damaged: its samples is 'x' but must be a group of settings; restore it"),
        ({'samples': {'c2pa_key': 'x'}}, "is damaged: config.c2pa_key is 'x' but config.c2pa_certificate is None; "),
        ({'samples': {'steps': 'x'}}, "is damaged: config.steps must be an int, got 'x' (str); restore it"),
        ({'data': {'resolution': 'x'}}, "is damaged: its data.resolution is 'x'; restore it"),
        ({'data': {'resolution': 0}}, 'is damaged: its data.resolution is 0; restore it'),
        ({'parallel': {'cpu_devices': 0}}, 'is damaged: its parallel.cpu_devices is 0; restore it'),
        ({'base': {'clip_skip': None}}, 'is damaged: its base.clip_skip is None; restore it'),
        ({'base': {'clip_skip': True}}, 'is damaged: its base.clip_skip is True; restore it'),
        ('{', 'is no readable JSON ('),
    ],
)
def test_a_damaged_config_is_one_sentence(written, tmp_path, content, reason):
    with pytest.raises(ConfigError) as error:
        settings_of(written(content))
    assert str(error.value).startswith(f'{tmp_path / "config.json"} {reason}') and '\n' not in str(error.value)
