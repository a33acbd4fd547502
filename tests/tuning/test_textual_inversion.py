"""Textual inversion on tiny pipelines: what trains, what does not, and what diffusers makes of the result."""

import functools
import tempfile
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image

from dreambooth_jax.config import DreamBoothConfig, resolve
from dreambooth_jax.generation.cascade import Cascade
from dreambooth_jax.training.placement import Pmap
from dreambooth_jax.tuning import pictures, stage, textual_inversion
from dreambooth_jax.weights import folders
from dreambooth_jax.weights.pipeline import COMPONENTS
from tests import tiny_latent_pipelines, tiny_pipelines

WORD = '<sks-dog>'
PROMPT = f'a {WORD} on a rug'
ALONE = {'base': {'train_unet': False}}
ENCODERS = {'sd1': 1, 'sdxl': 2, 'if': 1}
_ROOT = tempfile.TemporaryDirectory(prefix='textual_inversion_')


class NoGrid:
    """Draws nothing."""

    def save(self, cascade, path, title):
        pass


@functools.cache
def photos():
    folder = Path(_ROOT.name) / 'photos'
    folder.mkdir()
    rng = np.random.default_rng(0)
    for name in 'ab':
        Image.fromarray(rng.integers(0, 256, (40, 40, 3), np.uint8)).save(folder / f'{name}.png')
    return folder


@functools.cache
def original(family):
    folder = tiny_pipelines.folder() if family == 'if' else tiny_latent_pipelines.folder(family)
    return Cascade.load(folder, super_resolution_model='none')


def settings(steps=3, **changes):
    return resolve(DreamBoothConfig, {
        'model': 'tiny',
        'data': {'instance_dir': str(photos()), 'instance_prompt': PROMPT, 'class_prompt': 'a dog'},
        'prior': {'weight': 0.0},
        'textual_inversion': {'token': WORD, 'num_vectors': 2, 'initializer': 'dog', 'learning_rate': 1e-2},
        **changes,
        'base': {'steps': steps, 'batch_size': 2, 'learning_rate': 1e-3, **changes.get('base', {})},
    })  # fmt: skip


def begun(config, family):
    return textual_inversion.with_word(original(family), config.textual_inversion, dtype=jnp.float32, seed=config.seed)


def tables(config, cascade):
    return pictures.stage_tables(config, cascade, 'base', pictures.read_instance(config, cascade)['base'], [])


def tune(config, family, workdir):
    cascade = begun(config, family)
    place = Pmap(jax.devices()[:1])
    tuned, finished = stage.tune(config, workdir, 'base', cascade, tables(config, cascade), NoGrid(), place)
    assert finished
    return tuned


@functools.cache
def alone(family):
    """(the cascade before, after 3 steps of the rows alone, the run's folder with both results), once per session."""
    config, workdir = settings(**ALONE), Path(_ROOT.name) / family
    tuned = tune(config, family, workdir)
    textual_inversion.write_learned(tuned, workdir)
    folders.write_pipeline(tuned.base, workdir / 'model')
    return begun(config, family), tuned, workdir


def changed(before, after):
    """{component: names of parameters that differ}."""
    found = {}
    for component in COMPONENTS:
        networks = [getattr(cascade.base, component) for cascade in (before, after)]
        if networks[0] is not None:
            old, new = (network.params for network in networks)
            assert old.keys() == new.keys()
            found[component] = [name for name in old if not np.array_equal(old[name], new[name])]
    return found


def table_of(cascade, component):
    rows = textual_inversion.new_rows(cascade)[component]
    return rows, np.asarray(getattr(cascade.base, component).params[f'{rows.layer}.embedding'])


@pytest.mark.parametrize('family', ENCODERS)
def test_only_the_new_rows_change(family):
    before, after, _ = alone(family)
    found = changed(before, after)
    assert {name for name, params in found.items() if params} == {'text_encoder', 'text_encoder_2'} & found.keys()
    for component in list(original(family).base.text_encoders):
        rows, table = table_of(after, component)
        assert found[component] == [f'{rows.layer}.embedding']
        plain = np.asarray(getattr(original(family).base, component).params[f'{rows.layer}.embedding'])
        assert np.array_equal(np.delete(table, [rows.first, rows.first + 1], 0), plain)
        moved = np.abs(table - table_of(before, component)[1]).max(1)[rows.first : rows.first + 2]
        # Adam's steps are of the rate's size: 3 of 0.01.
        assert (0.01 < moved).all() and (moved < 0.04).all()
