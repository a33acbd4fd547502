"""DreamBooth on any of the 30 subjects of the paper's dataset, with the recipe of dog.py.

Expected result: that of dog.py, for the named subject.
Measured: only the dog, for which the recipe was chosen (dog.py). The backpack was tried once with each of two settings:
after the 200 steps it is half learned, with its colours but often without its star; with --config.base.steps=400 it is
learned, in most contexts.
Command: python -m dreambooth_jax.train --config=configs/subject.py:backpack --workdir=runs/backpack

--config=configs/subject.py:backpack,storybook-flow takes the flow model and its recipe, which trains things longer
than cats and dogs (experiments/subjects).
"""

import pathlib
import runpy

from dreambooth_jax.config import STORYBOOK, STORYBOOK_FLOW, ConfigError
from dreambooth_jax.storybook.subjects import SUBJECTS
from dreambooth_jax.text.prompts import LIVE_CLASSES


def get_config(subject: str = 'dog'):
    """Returns the settings of dog.py for --config=configs/subject.py:SUBJECT or SUBJECT,MODEL."""
    subject, _, model = subject.partition(',')
    if subject not in SUBJECTS:
        raise ConfigError(
            f'--config=configs/subject.py:{subject} names no subject; the name must be one of {tuple(SUBJECTS)}'
        )
    noun = SUBJECTS[subject].class_noun
    # Read by path, because configs/ is not a package and the program may be started in any folder.
    recipe = runpy.run_path(str(pathlib.Path(__file__).with_name('dog.py')))
    config = recipe['get_config'](model or STORYBOOK)
    if config.model == STORYBOOK_FLOW and noun not in LIVE_CLASSES:
        config.prior.phrases = recipe['CONTEXTS']  # a vase wears no hat
        config.base.steps = recipe['FLOW_STEPS_OF_THINGS']
    config.data.subject = subject
    config.data.instance_prompt = f'a sks {noun}'
    config.data.class_prompt = f'a {noun}'
    config.samples.prompts = (f'a sks {noun}', f'a sks {noun} in the snow', f'a red sks {noun}', f'a {noun}')
    return config
