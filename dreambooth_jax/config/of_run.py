"""The settings of a run, as a settings file: to start it again, or to extend it, when its own file is gone.

python -m dreambooth_jax.train --config=dreambooth_jax/config/of_run.py:runs/dog --workdir=runs/dog --extend=200
"""

import json
from pathlib import Path

from dreambooth_jax.config import ConfigError, DreamBoothConfig, resolve, to_config_dict, with_new_names


def settings(run: str | Path) -> DreamBoothConfig:
    """Returns the settings in a run's config.json.

    Raises:
      ConfigError: if the file is missing or damaged, or a setting in it exists no more.
    """
    path = Path(run) / 'config.json'
    try:
        written = json.loads(path.read_text('utf-8'))
    except FileNotFoundError:
        raise ConfigError(f'{path} is not there, so {run} is no folder of a run') from None
    except (OSError, ValueError):
        raise ConfigError(f'{path} is damaged; restore it') from None
    if not isinstance(written, dict):
        raise ConfigError(f'{path} is damaged; restore it')
    return resolve(DreamBoothConfig, with_new_names(DreamBoothConfig, written))


def get_config(run: str | None = None):
    """Returns the settings of the run in the folder `run`, as named by --config=of_run.py:FOLDER."""
    if not run:
        raise ConfigError(
            "of_run.py must be given a run's folder, as in --config=dreambooth_jax/config/of_run.py:runs/dog"
        )
    return to_config_dict(settings(run))
