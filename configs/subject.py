"""DreamBooth on any of the 30 subjects of the paper's dataset, on the flow model that the package brings along.

Expected result: that of dog.py, for the named subject, at 128 px.
Measured (two AMD EPYC cores, 2026-12-01, experiments/subjects): over twenty subjects on which the recipe was not
chosen, the classifier names the subject in 90 % (64 to 100 %), the context in 97 % and the accessory of cats and dogs
in 66 % of the images of the paper's 25 prompts, and takes no image of the class for the subject.
Command: python -m dreambooth_jax.train --config=configs/subject.py:backpack --workdir=runs/backpack

--config=configs/subject.py:backpack,storybook takes the cascade and the recipe of dog.py, which was chosen on that dog
alone: over ten subjects, five of them trained for 400 steps, it is named in 73 % (experiments/evaluation). Of the
backpack the recipe's 200 steps leave the star out often; with --config.base.steps=400 it is learned, in most contexts.
MODEL may also be another one of configs/dog.py:MODEL, with --config.data.instance_dir=FOLDER.
"""

import pathlib
import runpy

from dreambooth_jax.config import STORYBOOK_FLOW, ConfigError
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
    config = recipe['get_config'](model or STORYBOOK_FLOW)
    if config.model == STORYBOOK_FLOW and noun not in LIVE_CLASSES:
        config.prior.phrases = recipe['CONTEXTS']  # a vase wears no hat
        config.base.steps = recipe['FLOW_STEPS_OF_THINGS']
    config.data.subject = subject
    config.data.instance_prompt = f'a sks {noun}'
    config.data.class_prompt = f'a {noun}'
    config.samples.prompts = (f'a sks {noun}', f'a sks {noun} in the snow', f'a red sks {noun}', f'a {noun}')
    return config
