"""DreamBooth on any of the 30 subjects of the paper's dataset, with the recipe of dog.py.

Expected result: as dog.py's, for the subject named.
Measured: the dog alone (dog.py), for which the recipe was chosen. One trial each of the backpack: half learned after
the 200 steps, with its colours but often without its star; learned with --config.base.steps=400, in most contexts.
Command: python -m dreambooth_jax.train --config=configs/subject.py:backpack --workdir=runs/backpack
"""

import pathlib
import runpy

from dreambooth_jax.config import ConfigError
from dreambooth_jax.storybook.subjects import SUBJECTS


def get_config(subject: str = 'dog'):
    """The run of dog.py on `subject`: --config=configs/subject.py:SUBJECT."""
    if subject not in SUBJECTS:
        raise ConfigError(
            f'--config=configs/subject.py:{subject} names no subject; the name must be one of {tuple(SUBJECTS)}'
        )
    noun = SUBJECTS[subject].class_noun
    # By path: configs/ is no package, and the config file may be read from any folder.
    config = runpy.run_path(str(pathlib.Path(__file__).with_name('dog.py')))['get_config']()
    config.data.subject = subject
    config.data.instance_prompt = f'a sks {noun}'
    config.data.class_prompt = f'a {noun}'
    config.samples.prompts = (f'a sks {noun}', f'a sks {noun} in the snow', f'a red sks {noun}', f'a {noun}')
    return config
