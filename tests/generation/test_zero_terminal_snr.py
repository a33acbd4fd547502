"""The setting zero_terminal_snr changes the schedule of the stages that train, wherever a run reads its model."""

import json
import shutil

import pytest

from dreambooth_jax.config import DataConfig, DreamBoothConfig, ObjectiveConfig
from dreambooth_jax.generation.cascade import Cascade
from dreambooth_jax.weights.errors import WeightsError
from tests.support import tiny_latent_pipelines as tiny
from tests.support.published_schedulers import SD_1_5, SD_2_1

SUBJECT = dict(instance_dir='photos', instance_prompt='a sks dog', class_prompt='a dog')


def model(folder, scheduler):
    shutil.copytree(tiny.folder('sd1'), folder)
    (folder / 'scheduler' / 'scheduler_config.json').write_text(json.dumps(scheduler))
    return str(folder)


def config(name, **settings):
    return DreamBoothConfig(model=name, data=DataConfig(**SUBJECT), **settings)


def test_a_run_reads_its_model_with_the_changed_schedule(tmp_path):
    name = model(tmp_path / 'model', SD_2_1)
    plain = Cascade.of(config(name)).base
    changed = Cascade.of(config(name, objective=ObjectiveConfig(zero_terminal_snr=True))).base
    assert plain.scheduler == SD_2_1
    assert changed.scheduler == {**SD_2_1, 'rescale_betas_zero_snr': True, 'timestep_spacing': 'trailing'}
    assert changed.family.process(changed).alphas_cumprod[-1] == 0


def test_a_model_that_predicts_noise_is_refused_if_it_trains(tmp_path):
    name = model(tmp_path / 'model', SD_1_5)
    settings = config(name, objective=ObjectiveConfig(zero_terminal_snr=True))
    with pytest.raises(WeightsError, match='zero_terminal_snr is True but .* predicts epsilon'):
        Cascade.of(settings)
