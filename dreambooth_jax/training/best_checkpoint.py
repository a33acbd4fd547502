"""best.json: which checkpoint of a run is the best, and all that it was chosen from.

evaluation/score_checkpoints.py writes it during training; whoever reads a run's weights reads it here. Once a second
stage has been trained on the base stage's best checkpoint, the choice stands (finetune/standing.py).

    best.json   {"stage": "base", "step": 150 or null, "rule": "...", "enough": null or the step at which patience has
                 ended the stage, "candidates": [{"step": 50, ...}, ...], ...}
"""

import json
from pathlib import Path
from typing import Any

from absl import logging

from dreambooth_jax.config import ConfigError
from dreambooth_jax.system import disk

FILE = 'best.json'


def read(workdir: Path) -> dict[str, Any] | None:
    """Returns the content of the file; None if there is none.

    Raises:
      ConfigError: if it is damaged.
    """
    path = workdir / FILE
    try:
        found = json.loads(path.read_text('utf-8'))
        if not isinstance(found['candidates'], list) or not isinstance(found['step'], int | None):
            raise TypeError
    except FileNotFoundError:
        return None
    except (ValueError, KeyError, TypeError):
        raise ConfigError(
            f'{path} is damaged; restore it, or delete it and the checkpoints are evaluated from here on'
        ) from None
    return found


def write(workdir: Path, content: dict[str, Any]) -> None:
    """Writes the file as a whole or, if the disk does not take it, not at all."""
    with disk.writing(workdir / FILE) as new:
        new.write_text(json.dumps(content, indent=1) + '\n', 'utf-8')


def forget(workdir: Path) -> None:
    """Takes the choice back, if there is one: the last checkpoint counts then. What was measured stays in the file.

    Raises:
      ConfigError: as `read`.
    """
    found = read(workdir)
    if found is not None and found['step'] is not None:
        logging.warning(
            'config.evaluation.every is 0: the last checkpoint of the %s stage is taken, not step %d, which %s has '
            'named the best',
            found.get('stage'),
            found['step'],
            workdir / FILE,
        )
        write(workdir, {**found, 'step': None})


def step_of(workdir: Path, stage: str) -> int | None:
    """Returns the step of the best checkpoint of a stage; None if there is no such choice.

    Raises:
      ConfigError: as `read`.
    """
    found = read(workdir)
    return found['step'] if found is not None and found.get('stage') == stage else None
