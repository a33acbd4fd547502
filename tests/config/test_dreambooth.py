"""Settings: every error sentence, the way through ConfigDict, command line and JSON, and the rules between settings."""

import copy
import pathlib

import pytest

from dreambooth_jax.config import ConfigError, DreamBoothConfig, resolve, to_config_dict

ROOT = pathlib.Path(__file__).parents[2]
DOG = {'data': {'subject': 'dog', 'instance_prompt': 'a sks dog', 'class_prompt': 'a dog'}}
UNET = {'unet': {'sample_size': 32}, 'text_encoder': {'d_model': 8}}


def nest(name, value, start=DOG):
    """A copy of `start` with the setting of a dotted name."""
    out = copy.deepcopy(start)
    *groups, last = name.split('.')
    group = out
    for part in groups:
        group = group.setdefault(part, {})
    group[last] = value
    return out


def dog():
    config = to_config_dict(DreamBoothConfig())
    for name, value in DOG['data'].items():
        config.data[name] = value
    return config


def assign(config, name, value):
    *groups, last = name.split('.')
    for part in groups:
        config = config[part]
    setattr(config, last, value)


WRONG = [
    ('prior.weight', -1.0, 'config.prior.weight must be >= 0, got -1.0'),
    ('prior.weight', float('nan'), 'config.prior.weight must be a finite number, got nan'),
    ('prior.weight', 'much', "config.prior.weight must be a number, got 'much' (str)"),
    ('prior.weight', None, 'config.prior.weight must be a number, got None'),
    ('prior.weight', True, 'config.prior.weight must be a number, got True (bool)'),
    ('prior.num_images', 0, 'config.prior.num_images must be > 0, got 0'),
    ('prior.num_images', 10.0, 'config.prior.num_images must be an int, got 10.0 (float)'),
    ('prior.guidance_scale', 0.5, 'config.prior.guidance_scale must be >= 1, got 0.5'),
    ('prior.dir', 3, 'config.prior.dir must be a string or None, got 3 (int)'),
    ('prior.kind', 'none', "config.prior.kind must be one of 'images', 'distillation', got 'none'"),
    ('seed', True, 'config.seed must be an int, got True (bool)'),
    ('seed', -1, 'config.seed must be >= 0, got -1'),
    ('export', 1, 'config.export must be True or False, got 1 (int)'),
    ('parallel.mode', 'ddp', "config.parallel.mode must be one of 'pmap', 'fsdp', got 'ddp'"),
    ('optimizer.betas', (0.9,), 'config.optimizer.betas must be a tuple of 2 numbers or None, got (0.9,) (tuple)'),
    ('optimizer.betas', (0.9, 1.0), 'config.optimizer.betas[1] must be in [0, 1), got 1.0'),
    ('optimizer.betas', (0.9, 'x'), "config.optimizer.betas[1] must be a number, got 'x' (str)"),
    (
        'optimizer.kind',
        'sgd',
        "config.optimizer.kind must be one of 'adamw', 'adafactor', 'lion', 'prodigy', got 'sgd'",
    ),
    (
        'optimizer.state_dtype',
        'int4',
        "config.optimizer.state_dtype must be one of 'float32', 'bfloat16', 'int8', got 'int4'",
    ),
    ('base.gradient_accumulation_steps', 0, 'config.base.gradient_accumulation_steps must be > 0, got 0'),
    ('optimizer.ema_decay', 1.0, 'config.optimizer.ema_decay must be in (0, 1), got 1.0'),
    ('super_resolution.ema_decay', 0, 'config.super_resolution.ema_decay must be in (0, 1), got 0.0'),
    ('optimizer.ema_decay', 'x', "config.optimizer.ema_decay must be a number or None, got 'x' (str)"),
    ('data.resolution', 0, 'config.data.resolution must be > 0, got 0'),
    ('samples.prompts', 'a dog', "config.samples.prompts must be a tuple of strings, got 'a dog' (str)"),
    ('super_resolution.noise_level', (0, 1000), 'config.super_resolution.noise_level[1] must be in [0, 999], got 1000'),
    (
        'parallel',
        3,
        'config.parallel must be a group of settings (mode, dtype, fsdp_min_bytes, remat, steps_per_dispatch, '
        'cpu_devices), got 3 (int)',
    ),
    (
        'data.subjects',
        ({'subjct': 'cat'},),
        'config.data.subjects[0].subjct is not a known setting; did you mean config.data.subjects[0].subject?',
    ),
    (
        'data.subjects',
        ('cat',),
        (
            'config.data.subjects[0] must be a group of settings (instance_dir, tfds, tfds_split, subject, '
            "subject_captions, subject_masks, instance_prompt, class_prompt), got 'cat' (str)"
        ),
    ),
    ('prior.wieght', 1.0, 'config.prior.wieght is not a known setting; did you mean config.prior.weight?'),
    (
        'model_prediction_type',
        'sample',
        "config.model_prediction_type must be one of 'epsilon', 'v_prediction' or None, got 'sample'",
    ),
    ('modle', 'x', 'config.modle is not a known setting; did you mean config.model?'),
    (
        'learning_rate',
        1e-4,
        (
            'config.learning_rate is not a known setting; did you mean config.base.learning_rate or '
            'config.super_resolution.learning_rate or config.textual_inversion.learning_rate?'
        ),
    ),
    ('checkpoint.zzz', 1, 'config.checkpoint.zzz is not a known setting; known here: every, keep'),
]

BETWEEN = [
    (
        'super_resolution.noise_level',
        (50, 0),
        'config.super_resolution.noise_level must be (low, high) with low <= high, got (50, 0)',
    ),
    (
        'optimizer.kind',
        'prodigy',
        (
            "config.base.learning_rate is 5e-06 but the optimizer's kind is 'prodigy', which finds the learning rate "
            'and multiplies it by this; set it to 1.0 (at least 0.01)'
        ),
    ),
    (
        'prior',
        {'kind': 'distillation', 'dir': 'class_dogs'},
        (
            "config.prior.dir is 'class_dogs' but config.prior.kind is 'distillation', which has no class images; "
            "leave dir None, or set kind to 'images'"
        ),
    ),
    (
        'base.gradient_accumulation_steps',
        3,
        (
            'config.base.gradient_accumulation_steps is 3 but a step has only 2 examples to cut into micro-batches '
            '(config.base.batch_size, and as many class examples if there are some); set it to at most 2'
        ),
    ),
    (
        'super_resolution.gradient_accumulation_steps',
        2,
        (
            'config.super_resolution.gradient_accumulation_steps is 2 but a step has only 1 examples to cut into '
            'micro-batches (config.super_resolution.batch_size, and as many class examples if there are some); set '
            'it to at most 1'
        ),
    ),
    (
        'base.text_encoder_learning_rate',
        1e-4,
        (
            'config.base.text_encoder_learning_rate is 0.0001 but config.base.train_text_encoder is False; set that to '
            'True, or the learning rate to None'
        ),
    ),
    (
        'textual_inversion.initializer',
        'dog',
        "config.textual_inversion.initializer is 'dog' but config.textual_inversion.token is None; set the token",
    ),
    (
        'textual_inversion.num_vectors',
        2,
        'config.textual_inversion.num_vectors is 2 but config.textual_inversion.token is None; set the token',
    ),
    (
        'textual_inversion.token',
        '<Sks>',
        "config.textual_inversion.token is '<Sks>' but must be one word in lower case, like <sks-dog>",
    ),
    (
        'textual_inversion.token',
        'sks dog',
        "config.textual_inversion.token is 'sks dog' but must be one word in lower case, like <sks-dog>",
    ),
    (
        'textual_inversion.token',
        '<new>',
        "config.textual_inversion.token is '<new>' but no instance_prompt holds it; write it in there",
    ),
    (
        'textual_inversion.token',
        'do',
        "config.textual_inversion.token is 'do' but a class_prompt holds it too; choose another word",
    ),
    (
        'base.train_denoiser',
        False,
        (
            'config.base.train_denoiser and config.base.train_text_encoder are False, so nothing trains; set '
            'config.textual_inversion.token, or one of the two'
        ),
    ),
    (
        'model',
        'runs/sd',
        (
            "config.data.instance_dir must be given when config.model is 'runs/sd': the folder of the subject's "
            "images, or config.data.tfds, a dataset of them (only 'storybook' and 'storybook-flow' have built-in "
            'subjects)'
        ),
    ),
    (
        'data.subject',
        None,
        'config.data.instance_dir (a folder), config.data.tfds (a dataset) or config.data.subject (a built-in one) '
        'must be given',
    ),
    ('data.instance_prompt', '', "config.data.instance_prompt must be given, for example 'a sks dog'"),
    (
        'data.class_prompt',
        ' ',
        "config.data.class_prompt must be given, for example 'a dog', or config.prior.weight be "
        '0 to train without the class',
    ),
    (
        'data.subjects',
        ({'subject': 'cat'},),
        "config.data.subject is 'dog' but config.data.subjects names the subjects of this run; leave one of the two "
        'empty',
    ),
]


@pytest.mark.parametrize(('name', 'value', 'sentence'), WRONG + BETWEEN)
def test_resolve_names_the_setting_the_value_and_what_is_allowed(name, value, sentence):
    with pytest.raises(ConfigError) as error:
        resolve(DreamBoothConfig, nest(name, value))
    assert str(error.value) == sentence


@pytest.mark.parametrize(('name', 'value', 'sentence'), WRONG)
def test_config_dict_refuses_a_wrong_value_at_once_with_the_same_sentence(name, value, sentence):
    with pytest.raises(ConfigError) as error:
        assign(dog(), name, value)
    assert str(error.value) == sentence


@pytest.mark.parametrize(('name', 'value', 'sentence'), BETWEEN)
def test_rules_between_settings_are_checked_once_all_are_set(name, value, sentence):
    config = dog()
    assign(config, name, value)
    with pytest.raises(ConfigError) as error:
        resolve(DreamBoothConfig, config)
    assert str(error.value) == sentence


def test_class_images_are_refused_where_only_a_words_rows_train():
    settings = nest('base.train_denoiser', False) | {'textual_inversion': {'token': 'sks'}}
    with pytest.raises(ConfigError) as error:
        resolve(DreamBoothConfig, settings)
    assert str(error.value) == (
        'config.base.train_denoiser and config.base.train_text_encoder are False, so class images teach nothing; set '
        'config.prior.weight to 0'
    )
    assert resolve(DreamBoothConfig, settings | {'prior': {'weight': 0.0}}).textual_inversion.num_vectors == 1


def test_a_words_own_rate_is_one_that_the_optimiser_can_mean():
    inversion = {'token': 'sks', 'learning_rate': 5e-4}
    settings = DOG | {'optimizer': {'kind': 'prodigy'}, 'base': {'learning_rate': 1.0}, 'textual_inversion': inversion}
    with pytest.raises(ConfigError, match="^config.textual_inversion.learning_rate is 0.0005 but .* is 'prodigy'"):
        resolve(DreamBoothConfig, settings)


def test_every_assigned_setting_arrives():
    config = dog()
    config.prior.weight = 2  # an int for a float
    config.optimizer.ema_decay = 0.99
    config.optimizer.grad_clip_norm = None
    config.super_resolution.noise_level = [1, 5]
    config.data = {'resolution': 64, 'crops': 2}  # some settings of a group
    resolved = resolve(DreamBoothConfig, config)
    assert resolved.prior.weight == 2.0 and isinstance(resolved.prior.weight, float)
    assert resolved.optimizer.ema_decay == 0.99
    assert resolved.optimizer.grad_clip_norm is None
    assert resolved.super_resolution.noise_level == (1, 5)
    assert (resolved.data.resolution, resolved.data.crops, resolved.data.subject) == (64, 2, 'dog')


def test_aspect_buckets_take_one_step_a_dispatch():
    config = dog()
    config.data.aspect_buckets = True
    config.parallel.steps_per_dispatch = 4
    with pytest.raises(ConfigError) as error:
        resolve(DreamBoothConfig, config)
    assert str(error.value) == (
        'config.parallel.steps_per_dispatch is 4 but config.data.aspect_buckets changes the size of the images from '
        'step to step; set it to 1 or None'
    )
    for allowed in (None, 1):
        config.parallel.steps_per_dispatch = allowed
        assert resolve(DreamBoothConfig, config).data.aspect_buckets


def test_examples_of_a_step_are_instance_and_class_examples():
    given = nest('base.batch_size', 3)
    assert resolve(DreamBoothConfig, given).examples_per_step('base') == 6
    assert resolve(DreamBoothConfig, nest('prior.weight', 0, given)).examples_per_step('base') == 3
    assert resolve(DreamBoothConfig, given).examples_per_step('super_resolution') == 1
    with_prior = nest('super_resolution.with_prior', True, given)
    assert resolve(DreamBoothConfig, with_prior).examples_per_step('super_resolution') == 2


def test_the_class_prompt_is_asked_for_where_class_examples_train_and_left_out_of_samples_elsewhere():
    empty = nest('data.class_prompt', '')
    for name, value in (('prior.weight', 0.0), ('base.steps', 0)):
        assert resolve(DreamBoothConfig, nest(name, value, empty)).sample_prompts() == ('a sks dog',)
    for given in ({'kind': 'distillation'}, {'kind': 'images'}):
        with pytest.raises(ConfigError, match='config.data.class_prompt must be given'):
            resolve(DreamBoothConfig, nest('prior', given, empty))
    second = nest('super_resolution', {'steps': 5, 'with_prior': True}, nest('base.steps', 0, empty))
    with pytest.raises(ConfigError, match='config.data.class_prompt must be given'):
        resolve(DreamBoothConfig, second)


def test_class_images_are_for_stages_that_train_on_them():
    def stages(base, second, **more):
        given = {'base': {'steps': base}, 'super_resolution': second, **more}
        return resolve(DreamBoothConfig, {**DOG, **given}).class_image_stages()

    assert stages(1, {'steps': 1}) == ('base',)
    assert stages(1, {'steps': 1, 'with_prior': True}) == ('base', 'super_resolution')
    assert stages(0, {'steps': 1, 'with_prior': True}) == ('super_resolution',)
    assert stages(0, {'steps': 1}) == stages(0, {'with_prior': True}) == ()
    assert stages(1, {}, prior={'weight': 0.0}) == stages(1, {}, prior={'kind': 'distillation'}) == ()


def test_class_examples_have_a_teacher_where_there_are_any():
    def stages(**prior):
        given = nest('super_resolution.with_prior', prior.pop('both', False), nest('prior', prior))
        resolved = resolve(DreamBoothConfig, given)
        both = ('base', 'super_resolution')
        assert all(resolved.has_teacher(name) for name in both if resolved.is_distilled(name))
        return [name for name in both if resolved.is_distilled(name)]

    assert stages() == stages(kind='distillation', weight=0.0) == []
    assert stages(kind='distillation') == ['base']
    assert stages(kind='distillation', both=True) == ['base', 'super_resolution']
    phrases = resolve(DreamBoothConfig, nest('prior.phrases', ('in the snow',)))
    assert phrases.has_teacher('base') and not phrases.is_distilled('base')
    assert not phrases.has_teacher('super_resolution') and phrases.class_image_stages() == ('base',)
    none = resolve(DreamBoothConfig, nest('prior', {'phrases': ('in the snow',), 'weight': 0.0}))
    assert not none.has_teacher('base')


def test_a_blank_phrase_is_refused():
    with pytest.raises(ConfigError) as error:
        resolve(DreamBoothConfig, nest('prior.phrases', ('in the snow', ' ')))
    assert str(error.value) == "config.prior.phrases has ' ', which is blank; leave it out"
