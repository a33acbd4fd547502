"""More steps for a finished run: `train --extend=200`.

The base stage goes on from its newest checkpoint as if it had been asked for more steps at first. Everything that a
step depends on is a function of the seed and the step, and the optimizer goes on with its moments. The learning rate
stays what it was at the last step with the schedules 'constant' and 'warmup'; a cosine ends at the last step, so a run
with one cannot be extended. The second stage, if it is trained already, stays as it is, and standing.py says so.

    extended.json   {"from": 200, "steps": 400}: the last extension, so that one that was interrupted goes on
"""

import dataclasses
import json
from pathlib import Path
from typing import NamedTuple

from dreambooth_jax.config import ConfigError, DreamBoothConfig
from dreambooth_jax.generation.cascade import BASE, SUPER_RESOLUTION
from dreambooth_jax.system import disk
from dreambooth_jax.training import best_checkpoint, run

FILE = 'extended.json'


class Extension(NamedTuple):
    """An extension of the base stage from one step to another; of a run that has none, both are 0."""

    since: int = 0
    steps: int = 0

    def write(self, workdir: Path) -> None:
        """Writes it into the run's folder, if there is one."""
        if self.steps:
            with disk.writing(workdir / FILE) as new:
                new.write_text(json.dumps({'from': self.since, 'steps': self.steps}) + '\n', 'utf-8')


def extended(config: DreamBoothConfig, workdir: Path, more: int | None) -> tuple[DreamBoothConfig, Extension]:
    """Returns the settings with the number of steps of the base stage that the run is to have, and the extension.

    A run that was extended before keeps its steps, whether it is extended now or goes on.

    Args:
      more: so many more steps; None: none. An extension that was interrupted goes on instead.

    Raises:
      ConfigError: if there is no finished run in the folder, or its learning rate has come to its end.
    """
    last = _read(workdir / FILE)
    if more is not None:
        last = _next(config, workdir, last, more)
    if last.steps > config.base.steps:
        config = dataclasses.replace(config, base=dataclasses.replace(config.base, steps=last.steps))
    return config, last


def _next(config: DreamBoothConfig, workdir: Path, last: Extension, more: int) -> Extension:
    asked = f'--extend={more} goes on with a finished run'
    newest = max(run.checkpoints(workdir, BASE), default=0)
    if not newest:
        raise ConfigError(f'{asked}, but {workdir} has no checkpoint of the base stage; train it first')
    if config.optimizer.schedule == 'cosine':
        raise ConfigError(
            f"{asked}, but config.optimizer.schedule is 'cosine', which has brought the learning rate to 0; start "
            f'another run with --workdir and more config.base.steps'
        )
    # A stage that patience has ended does not go on by other settings if a second one has been trained (standing.py).
    scored = config.evaluation.every or SUPER_RESOLUTION in run.trained_stages(workdir)
    found = best_checkpoint.read(workdir) if scored else None
    had_enough = found is not None and found.get('enough') == newest  # by evaluation.patience
    if last.since <= newest < last.steps and not (had_enough and newest > last.since):
        return last
    steps = max(_steps_begun(workdir / 'config.json'), last.steps)
    if newest < steps and not had_enough:
        raise ConfigError(
            f'{asked}, but {workdir} has checkpoint {newest} of {steps} steps; start it without --extend until it ends'
        )
    return Extension(newest, newest + more)


def _steps_begun(path: Path) -> int:
    try:
        return int(json.loads(path.read_text('utf-8'))['base']['steps'])
    except (OSError, ValueError, KeyError, TypeError):
        raise ConfigError(f'{path} is missing or damaged; restore it, or start another run with --workdir') from None


def _read(path: Path) -> Extension:
    try:
        found = json.loads(path.read_text('utf-8'))
        return Extension(int(found['from']), int(found['steps']))
    except FileNotFoundError:
        return Extension()
    except (ValueError, KeyError, TypeError):
        raise ConfigError(f'{path} is damaged; restore it, or start another run with --workdir') from None
