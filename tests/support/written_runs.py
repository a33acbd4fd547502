"""Folders of runs with settings and checkpoints as a training leaves them, written without one."""

import json

import jax
import numpy as np
import optax

from dreambooth_jax.config import DataConfig, DreamBoothConfig, to_dict
from dreambooth_jax.training.checkpoint import Checkpoints
from dreambooth_jax.training.state import init_state


def begun(folder, model, **settings):
    """A run that has written its settings and no checkpoint yet."""
    folder.mkdir()
    data = DataConfig(instance_dir='photos', instance_prompt='a sks dog', class_prompt='a dog')
    config = DreamBoothConfig(model=str(model), data=data, **settings)
    (folder / 'config.json').write_text(json.dumps(to_dict(config)))
    return folder


def save(workdir, stage, steps, params, *, ema=False):
    """Checkpoints whose weights are `params` + step, and their average `params` + step + 0.5."""
    checkpoints = Checkpoints(workdir / stage / 'checkpoints', keep=9)
    for step in steps:
        state = init_state(jax.tree.map(lambda x, at=step: x + at, params), optax.sgd(1e-3), ema=ema)
        if ema:
            state.ema = jax.tree.map(lambda x: x + 0.5, state.ema)
        checkpoints.save(step, state, wait=True)
    checkpoints.close()


def assert_shifted(params, original, shift):
    assert params.keys() == original.keys()
    for name, value in original.items():
        np.testing.assert_allclose(params[name], value + np.float32(shift), atol=1e-6)
