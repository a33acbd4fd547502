"""The models of a run by their names in a request, and how many of them are kept."""

import numpy as np
import pytest

from dreambooth_jax.config import ConfigError
from dreambooth_jax.finetune import run_models
from dreambooth_jax.finetune.run_models import RunModels
from dreambooth_jax.generation.cascade import Cascade
from dreambooth_jax.training.checkpoint import CheckpointError
from dreambooth_jax.weights.errors import WeightsError
from tests.support import smallest_pipelines
from tests.support.written_runs import assert_shifted, begun, save

MODEL = smallest_pipelines.folder('pixels')


@pytest.fixture(scope='module')
def run(tmp_path_factory):
    folder = begun(tmp_path_factory.mktemp('runs') / 'rex', MODEL)
    original = Cascade.load(MODEL)
    save(folder, 'base', [1, 3], {'unet': original.base.denoiser.params})
    (folder / 'model').symlink_to(MODEL)
    return folder


def test_each_name_is_another_model_of_the_run(run):
    models, original = RunModels(run), Cascade.load(MODEL).base.denoiser.params
    assert_shifted(models.get('base_model').cascade.base.denoiser.params, original, 0)
    found = models.get('3')
    assert_shifted(found.cascade.base.denoiser.params, original, 3)
    assert (found.title, found.step, found.stages) == ('rex', 3, ('base',))
    assert found.origins[0] == 'base: checkpoint 3'
    exported = models.get('model')
    assert (exported.stages, exported.step) == ((), None) and exported.origins == ['model/ of the run']
    assert models.get('base_model').origins == [f'as in {MODEL}']
    assert models.metadata == 'full' and models.settings.samples.steps > 1


def test_what_is_not_there_is_told(run, tmp_path):
    with pytest.raises(CheckpointError, match='has no checkpoint 7'):
        RunModels(run).get('7')
    with pytest.raises(ConfigError, match="is no run's folder"):
        RunModels(tmp_path)
    with pytest.raises(WeightsError):
        RunModels(begun(tmp_path / 'new', MODEL)).get('model')


def test_models_are_kept_as_long_as_there_is_room(run):
    models = RunModels(run)
    first = models.get('1').cascade
    models.get('3')
    assert models.get('1').cascade is first
    size = run_models._bytes(first)
    assert size == sum(
        np.asarray(value).nbytes
        for stage in (first.base, first.super_resolution)
        for network in stage.components.values()
        for value in network.params.values()
    )
    few = RunModels(run, most_bytes=2 * size)
    one, three = few.get('1').cascade, few.get('3').cascade
    assert few.get('1').cascade is one  # now 3 was not used for longest
    few.get('base_model')
    assert few.get('1').cascade is one and few.get('3').cascade is not three
    few.forget()
    assert few.get('1').cascade is not one


def test_checkpoints_and_the_base_model_share_what_is_compiled_and_one_is_on_the_devices(run):
    models = RunModels(run)
    one = models.get('1').cascade
    one._on_device['part'] = object()
    assert models.get('1').cascade._on_device  # it stays there from request to request
    base = models.get('base_model').cascade
    assert base.programs is one.programs and not one._on_device
