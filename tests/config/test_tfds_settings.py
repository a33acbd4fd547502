"""Settings of a subject that comes from a dataset: what goes together."""

import pytest

from dreambooth_jax.config import ConfigError, DreamBoothConfig, resolve

WORDS = {'instance_prompt': 'a sks dog', 'class_prompt': 'a dog'}


def resolved(model='runs/sd', **data):
    return resolve(DreamBoothConfig, {'model': model, 'data': data})


@pytest.mark.parametrize('more', [{}, {'tfds_split': 'train[:5]', 'tfds_dir': 'sets', 'tfds_manual_dir': 'photos'}])
@pytest.mark.parametrize('model', ['storybook', 'runs/sd'])
def test_a_dataset_is_enough_for_any_model(model, more):
    (subject,) = resolved(model, tfds='dreambench/dog', **more, **WORDS).subjects()
    assert (subject.tfds, subject.tfds_split) == ('dreambench/dog', more.get('tfds_split'))


def test_a_built_in_subject_beside_a_dataset_is_not_used_as_beside_a_folder():
    assert resolved(tfds='dreambench/dog', subject='cat', **WORDS).subjects()[0].tfds == 'dreambench/dog'


def test_folders_of_datasets_serve_all_subjects():
    several = ({'tfds': 'dreambench/dog', **WORDS}, {'instance_dir': 'photos', **WORDS})
    config = resolved(subjects=several, tfds_dir='~', tfds_manual_dir='photos')
    assert config.data.tfds_dir.startswith('/')
    assert [subject.tfds for subject in config.subjects()] == ['dreambench/dog', None]


@pytest.mark.parametrize(
    ('data', 'sentence'),
    [
        (
            {'tfds': 'dreambench/dog', 'instance_dir': 'photos'},
            "config.data.instance_dir is 'photos' and config.data.tfds is 'dreambench/dog', but the images come from "
            'one of them; set the other to None',
        ),
        (
            {'subjects': ({'tfds': 'dreambench/dog', 'instance_dir': 'photos', **WORDS},)},
            "config.data.subjects[0].instance_dir is 'photos' and config.data.subjects[0].tfds is 'dreambench/dog', "
            'but the images come from one of them; set the other to None',
        ),
        (
            {'tfds': 'dreambench/dog', 'subjects': ({'tfds': 'dreambench/cat', **WORDS},)},
            "config.data.tfds is 'dreambench/dog' but config.data.subjects names the subjects of this run; leave one "
            'of the two empty',
        ),
        (
            {'instance_dir': 'photos', 'tfds_split': 'train'},
            "config.data.tfds_split is 'train' but config.data.tfds is None; set that too",
        ),
        (
            {'instance_dir': 'photos', 'tfds_dir': 'sets'},
            "config.data.tfds_dir is 'sets' but no subject is read from a dataset (tfds); leave it None",
        ),
        (
            {'instance_dir': 'photos', 'tfds_manual_dir': 'photos'},
            "config.data.tfds_manual_dir is 'photos' but no subject is read from a dataset (tfds); leave it None",
        ),
    ],
)
def test_what_does_not_go_together_is_refused(data, sentence):
    words = {} if 'subjects' in data else WORDS
    with pytest.raises(ConfigError) as error:
        resolved(**data, **words)
    assert str(error.value) == sentence
