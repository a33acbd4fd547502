"""What lies on a device while a run trains and after it has generated: its state and data, and no other weights."""

import gc

import jax
import numpy as np
import pytest
from PIL import Image

from dreambooth_jax.families.reading import read_pipeline
from dreambooth_jax.generation.sample_grid import SaveSamples
from dreambooth_jax.models.functional import parameter_count
from dreambooth_jax.training import loop
from tests.programs.test_train import CONFIG
from tests.support import smallest_pipelines

ADAMW, EMA = 2, 1  # numbers of the size of the weights that the state holds beside them


def on_first_device(arrays):
    device = jax.devices()[0]
    parts = [shard.data for x in arrays for shard in x.addressable_shards if shard.device == device]
    # Looking at a part of an array makes an array of it, which shares its memory.
    return sum({part.unsafe_buffer_pointer(): part.nbytes for part in parts}.values())


@pytest.fixture
def phases(monkeypatch):
    """[(what, bytes on the first device that were not there before the run)], in order."""
    gc.collect()
    before, found = jax.live_arrays(), []
    ids = {id(x) for x in before}

    def note(what):
        gc.collect()
        found.append((what, on_first_device(x for x in jax.live_arrays() if id(x) not in ids)))

    def run(*arguments, **options):
        note('training')
        return train(*arguments, **options)

    def generate(self, step, state):
        generated(self, step, state)
        note('after samples')

    train, generated = loop.run, SaveSamples.__call__
    monkeypatch.setattr(loop, 'run', run)
    monkeypatch.setattr(SaveSamples, '__call__', generate)
    yield found
    del before


@pytest.mark.slow
@pytest.mark.parametrize(('mode', 'share'), [('pmap', 1), ('fsdp', 4)])
def test_a_device_holds_its_share_of_what_trains_and_nothing_of_the_model_before(
    mode, share, phases, program, tmp_path
):
    photos = tmp_path / 'photos'
    photos.mkdir()
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (24, 24, 3), np.uint8)).save(photos / '1.png')
    config = tmp_path / 'config.py'
    config.write_text(CONFIG.format(model=str(smallest_pipelines.folder('pixels')), photos=str(photos)))
    ended = program(
        'train',
        f'--config={config}',
        f'--workdir={tmp_path / "run"}',
        f'--config.parallel.mode={mode}',
        '--config.parallel.fsdp_min_bytes=128',
        '--config.samples.every=2',
    )
    assert ended.code == 0, ended.error
    base = read_pipeline(smallest_pipelines.folder('pixels'))
    second = read_pipeline(base.super_resolution_folder)
    sizes = [4 * parameter_count(one.denoiser.params) * (1 + ADAMW + EMA) for one in (base, second)]
    training = [size for what, size in phases if what == 'training']
    samples = [size for what, size in phases if what == 'after samples']
    assert len(training) == 2 and len(samples) == 3
    # What comes on top: images, prompts and metrics, and arrays that no four devices can share.
    for expected, found in zip(sizes, training, strict=True):
        assert expected / share <= found < 1.25 * expected / share, (found, expected)
    for expected, found in zip([sizes[0], sizes[0], sizes[1]], samples, strict=True):
        assert found < 1.4 * expected / share, (found, expected)
