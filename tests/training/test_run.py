"""A run's folder goes on under the settings that it was begun with."""

import dataclasses
import json

import pytest

from dreambooth_jax.config import ConfigError, DataConfig, DreamBoothConfig, PretrainConfig, resolve, to_dict
from dreambooth_jax.data.fingerprints import Fingerprint
from dreambooth_jax.training import run
from dreambooth_jax.training.inputs import Inputs


def changed(config, path, value):
    """A copy of frozen settings with one of them changed."""
    first, _, rest = path.partition('.')
    return dataclasses.replace(config, **{first: changed(getattr(config, first), rest, value) if rest else value})


CONFIG = DreamBoothConfig()


def trained(config, folder, stage='base', found=None):
    """A run's folder whose stage has a checkpoint."""
    run.begin(config, folder, found)
    (folder / stage / 'checkpoints' / '2').mkdir(parents=True)


def refusal(config, folder, found=None):
    before = {path: path.read_bytes() for path in folder.glob('*.json')}
    with pytest.raises(ConfigError) as caught:
        run.begin(config, folder, found)
    assert {path: path.read_bytes() for path in folder.glob('*.json')} == before
    return str(caught.value)


def test_settings_are_written_down(tmp_path):
    folder = tmp_path / 'runs' / 'dog'
    run.begin(CONFIG, folder)
    assert json.loads((folder / 'config.json').read_text()) == json.loads(json.dumps(to_dict(CONFIG)))
    assert [path.name for path in folder.iterdir()] == ['config.json']


def test_run_goes_on_with_the_same_settings(tmp_path):
    run.begin(CONFIG, tmp_path)
    run.begin(CONFIG, tmp_path)


@pytest.mark.parametrize(
    'path, value',
    [
        ('base.learning_rate', 1.0),
        ('prior.weight', 0.0),
        ('seed', 3),
        ('data.subject', 'dog'),
        ('lora.rank', 4),
        ('optimizer.state_dtype', 'int8'),
        ('parallel.dtype', 'bfloat16'),
        ('prior.steps', 7),
        ('model', 'other'),
        ('data.instance_dir', 'photos'),
        ('data.tfds', 'dreambench/dog'),
        ('data.tfds_split', 'train'),
    ],
)
def test_setting_that_changes_what_is_learned_is_refused_with_both_values(path, value, tmp_path):
    trained(CONFIG, tmp_path)
    old = CONFIG
    for name in path.split('.'):
        old = getattr(old, name)
    assert refusal(changed(CONFIG, path, value), tmp_path) == (
        f'config.{path} is {value!r} but {tmp_path} was begun with {old!r}; set it back, or start another run with '
        f'--workdir'
    )


@pytest.mark.parametrize(
    'path, value',
    [
        ('base.steps', 7),
        ('base.gradient_accumulation_steps', 2),
        ('super_resolution.gradient_accumulation_steps', 2),
        ('prior.batch_size', 2),
        ('prior.dir', 'shared'),
        ('checkpoint.every', 7),
        ('samples.num_images', 1),
        ('export', False),
        ('parallel.mode', 'fsdp'),
        ('parallel.remat', True),
        ('parallel.steps_per_dispatch', 3),
        ('parallel.fsdp_min_bytes', 0),
    ],
)
def test_setting_that_only_says_how_long_how_often_how_much_at_once_or_where_may_change(path, value, tmp_path):
    trained(CONFIG, tmp_path)
    trained(CONFIG, tmp_path, 'super_resolution')
    run.begin(changed(CONFIG, path, value), tmp_path)
    written = json.loads((tmp_path / 'config.json').read_text())
    for name in path.split('.'):
        written = written[name]
    assert written == value


def test_what_signs_samples_may_change(tmp_path):
    trained(CONFIG, tmp_path)
    for name in ('one.pem', 'other.pem', None):
        run.begin(changed(CONFIG, 'samples', {'c2pa_certificate': name, 'c2pa_key': name}), tmp_path)
        assert json.loads((tmp_path / 'config.json').read_text())['samples']['c2pa_key'] == name


def test_until_there_is_a_checkpoint_every_setting_may_change(tmp_path):
    run.begin(CONFIG, tmp_path)
    (tmp_path / 'base' / 'checkpoints' / '2.orbax-checkpoint-tmp').mkdir(parents=True)  # killed while it was written
    (tmp_path / 'prior').mkdir()
    run.begin(changed(CONFIG, 'optimizer.state_dtype', 'int8'), tmp_path)
    assert json.loads((tmp_path / 'config.json').read_text())['optimizer']['state_dtype'] == 'int8'


def test_a_stage_without_a_checkpoint_may_change_its_settings(tmp_path):
    trained(CONFIG, tmp_path)
    second = changed(CONFIG, 'super_resolution.learning_rate', 1.0)
    run.begin(second, tmp_path)
    trained(second, tmp_path, 'super_resolution')
    assert 'config.super_resolution.learning_rate' in refusal(CONFIG, tmp_path)


def test_a_finished_model_whose_checkpoints_are_gone_is_not_overwritten_by_other_settings(tmp_path):
    run.begin(CONFIG, tmp_path)
    (tmp_path / 'model').mkdir()
    (tmp_path / 'model' / 'model_index.json').write_text('{}')
    assert 'config.seed is 1' in refusal(changed(CONFIG, 'seed', 1), tmp_path)


@pytest.mark.parametrize('stage', ['base', 'super_resolution'])
def test_the_length_of_a_cosine_schedule_may_not_change_once_the_stage_has_trained(stage, tmp_path):
    config = changed(changed(CONFIG, 'optimizer.schedule', 'cosine'), 'super_resolution.steps', 1000)
    run.begin(config, tmp_path)
    run.begin(changed(config, f'{stage}.steps', 200), tmp_path)
    run.begin(config, tmp_path)
    trained(config, tmp_path, stage)
    other = {'base': 'super_resolution', 'super_resolution': 'base'}[stage]
    run.begin(changed(config, f'{other}.steps', 200), tmp_path)
    run.begin(config, tmp_path)
    assert refusal(changed(config, f'{stage}.steps', 400), tmp_path) == (
        f'config.{stage}.steps is 400 but {tmp_path} was begun with 1000, the length of its cosine schedule; set it '
        f'back, or start another run with --workdir'
    )


def test_the_length_of_pretraining_under_a_cosine_schedule_may_not_change(tmp_path):
    trained(PretrainConfig(), tmp_path)
    assert 'config.steps is 7 but' in refusal(PretrainConfig(steps=7), tmp_path)
    constant = PretrainConfig(schedule='constant', warmup_steps=0)
    trained(constant, tmp_path / 'constant')
    run.begin(dataclasses.replace(constant, steps=7, painters=0), tmp_path / 'constant')


def test_settings_of_class_images_may_change_where_there_are_none(tmp_path):
    without = changed(CONFIG, 'prior.weight', 0.0)
    trained(without, tmp_path)
    for path, value in (('prior.steps', 7), ('prior.num_images', 7), ('data.class_prompt', 'a cat')):
        run.begin(changed(without, path, value), tmp_path)


def test_settings_of_generated_class_images_may_change_where_they_are_photos_of_ones_own(tmp_path):
    own = Inputs({}, {'prior.dir': []})
    trained(CONFIG, tmp_path, found=own)
    fewer, generated = changed(CONFIG, 'prior.num_images', 7), Inputs({}, {})
    run.begin(fewer, tmp_path, own)
    assert 'config.prior.dir is None, no folder of photos of your own, but' in refusal(fewer, tmp_path, generated)
    trained(CONFIG, tmp_path / 'drawn', found=generated)
    assert refusal(changed(CONFIG, 'prior.dir', 'dogs'), tmp_path / 'drawn', own) == (
        f"config.prior.dir is 'dogs', a folder of photos of your own, but {tmp_path}/drawn was begun with class "
        f'images that the model generated; set it back, or start another run with --workdir'
    )


def test_how_the_second_stage_generates_may_change_unless_it_trains_on_what_it_generated(tmp_path):
    for number, (with_prior, refused) in enumerate(((False, False), (True, True))):
        folder = tmp_path / str(number)
        config = changed(CONFIG, 'super_resolution.with_prior', with_prior)
        trained(config, folder, 'super_resolution')
        other = changed(config, 'super_resolution.sample_steps', 7)
        assert 'sample_steps' in refusal(other, folder) if refused else run.begin(other, folder) is None


def test_a_subject_of_several_is_named_by_its_number(tmp_path):
    def subjects(prompt):
        listed = [
            {'subject': name, 'instance_prompt': f'{prompt} {name}', 'class_prompt': name} for name in ('cat', 'dog')
        ]
        return resolve(DreamBoothConfig, {'data': {'subjects': listed}})

    trained(subjects('a'), tmp_path)
    assert refusal(subjects('the'), tmp_path) == (
        f"config.data.subjects[0].instance_prompt is 'the cat' but {tmp_path} was begun with 'a cat'; set it back, or "
        f'start another run with --workdir'
    )


def test_a_run_of_an_older_version_knows_its_folders_by_their_paths(tmp_path, monkeypatch):
    config = changed(CONFIG, 'data.instance_dir', 'photos')
    found = Inputs({'base': {'weights': 'a'}}, {'data.instance_dir': []})
    trained(config, tmp_path)
    assert not (tmp_path / 'inputs.json').exists()
    run.begin(changed(config, 'super_resolution_model', 'sr'), tmp_path)  # that stage has learned nothing yet
    run.begin(config, tmp_path)
    monkeypatch.chdir(tmp_path)
    assert 'config.data.instance_dir' in refusal(changed(config, 'data.instance_dir', 'others'), tmp_path, found)
    run.begin(changed(config, 'data.instance_dir', str(tmp_path / 'photos')), tmp_path, found)
    assert (tmp_path / 'inputs.json').exists()
    run.begin(changed(config, 'data.instance_dir', 'others'), tmp_path, found)  # known by content from now on


def test_consent_may_be_written_down_later(tmp_path):
    trained(CONFIG, tmp_path)
    run.begin(changed(CONFIG, 'data.consent', 'mine'), tmp_path)
    assert json.loads((tmp_path / 'config.json').read_text())['data']['consent'] == 'mine'


def test_a_dataset_may_change_its_name_and_split_but_not_its_images(tmp_path):
    of = lambda sha256: Inputs({'base': {}}, {'data.tfds': [Fingerprint('00.png', sha256)]})  # noqa: E731
    config = changed(CONFIG, 'data.tfds', 'dreambench/dog')
    trained(config, tmp_path, found=of('a'))
    run.begin(changed(config, 'data.tfds', 'dreambench/dog:1.0.0'), tmp_path, of('a'))
    run.begin(changed(config, 'data.tfds_split', 'test'), tmp_path, of('a'))
    run.begin(changed(config, 'data.tfds_dir', 'sets'), tmp_path, of('a'))
    run.begin(changed(config, 'data.tfds_manual_dir', 'photos'), tmp_path, of('a'))
    assert refusal(changed(config, 'data.tfds', 'dreambench/cat'), tmp_path, of('b')) == (
        f"config.data.tfds is 'dreambench/cat', which does not hold what {tmp_path} was begun with: 00.png is another "
        f'image; put that back, or start another run with --workdir'
    )
    assert 'config.data.instance_dir' in refusal(changed(CONFIG, 'data.instance_dir', 'photos'), tmp_path, of('a'))


def test_a_home_folder_is_the_same_spelled_out(tmp_path, monkeypatch):
    monkeypatch.setenv('HOME', str(tmp_path))
    trained(changed(CONFIG, 'model', '~/sd'), tmp_path)
    run.begin(changed(CONFIG, 'model', str(tmp_path / 'sd')), tmp_path)


def test_settings_younger_than_the_run_have_their_defaults(tmp_path):
    data = DataConfig(subject='dog', instance_prompt='a sks dog', class_prompt='a dog')
    config = dataclasses.replace(CONFIG, data=data)
    trained(config, tmp_path)
    path = tmp_path / 'config.json'
    written = json.loads(path.read_text())
    del written['lora'], written['optimizer']['state_dtype']
    path.write_text(json.dumps(written))
    run.begin(config, tmp_path)
    path.write_text(json.dumps(written))
    with pytest.raises(ConfigError, match="config.optimizer.state_dtype is 'int8' but .* was begun with 'float32'"):
        run.begin(changed(config, 'optimizer.state_dtype', 'int8'), tmp_path)


def test_a_run_that_was_begun_under_old_names_goes_on(tmp_path):
    cats = {'subject': 'cat', 'instance_prompt': 'a sks cat', 'class_prompt': 'a cat'}
    changes = {
        'data': {'subjects': [cats]},
        'base': {'gradient_accumulation_steps': 2},
        'prior': {'kind': 'distillation'},
    }
    config = resolve(DreamBoothConfig, changes)
    trained(config, tmp_path)
    path = tmp_path / 'config.json'
    written = json.loads(path.read_text())
    written['data']['concepts'] = written['data'].pop('subjects')
    for stage in ('base', 'super_resolution'):
        written[stage]['accumulation'] = written[stage].pop('gradient_accumulation_steps')
    written['base']['train_unet'] = written['base'].pop('train_denoiser')
    written['optimizer']['moments'] = written['optimizer'].pop('state_dtype')
    written['prior']['kind'] = 'prediction'
    path.write_text(json.dumps(written))
    run.begin(config, tmp_path)
    path.write_text(json.dumps(written))
    with pytest.raises(ConfigError, match="config.prior.kind is 'images' but .* was begun with 'distillation'"):
        run.begin(changed(config, 'prior.kind', 'images'), tmp_path)


def test_a_model_is_held_to_that_of_the_stages_that_have_trained(tmp_path):
    def inputs(base, second):
        return Inputs({'base': {'weights': base}, 'super_resolution': {'weights': second}}, {})

    trained(CONFIG, tmp_path, found=inputs('a', 'b'))
    other = changed(changed(CONFIG, 'super_resolution_model', 'sr'), 'model', 'moved')
    run.begin(other, tmp_path, inputs('a', 'c'))
    assert refusal(other, tmp_path, inputs('b', 'c')) == (
        f"config.model is 'moved', which differs in weights from the model that {tmp_path} was begun with; put that "
        f'model back, or start another run with --workdir'
    )
    # So is a file that has a part of the model's weights.
    run.begin(changed(other, 'model_transformer_file', 'moved.safetensors'), tmp_path, inputs('a', 'c'))
    trained(other, tmp_path, 'super_resolution', inputs('a', 'c'))
    assert "config.super_resolution_model is 'sr', which differs in weights" in refusal(
        other, tmp_path, inputs('a', 'b')
    )


def test_folder_of_another_program_is_refused(tmp_path):
    trained(CONFIG, tmp_path)
    assert 'was begun with' in refusal(PretrainConfig(), tmp_path)


@pytest.mark.parametrize('text', ['{', '[]', '7', 'null'])
def test_damaged_settings_are_a_sentence(text, tmp_path):
    trained(CONFIG, tmp_path)
    (tmp_path / 'config.json').write_text(text)
    assert refusal(CONFIG, tmp_path) == (
        f'{tmp_path}/config.json is damaged; restore it, or start another run with --workdir'
    )


def test_folder_that_cannot_be_written_is_one_sentence(tmp_path):
    (tmp_path / 'a_file').write_text('')
    with pytest.raises(ConfigError, match='--workdir=.*a_file/run cannot be written'):
        run.begin(CONFIG, tmp_path / 'a_file' / 'run')
