"""Paths as people write them: ~ is their home, an empty one is refused, and what cannot be one is a sentence."""

import json
import os
import re
from pathlib import Path

import pytest

from dreambooth_jax.config import ConfigError, DreamBoothConfig, PretrainConfig, resolve, schema, to_config_dict
from dreambooth_jax.generation.cascade import Cascade
from dreambooth_jax.training import run
from tests.support import smallest_pipelines

ROOT = Path(__file__).parents[2]
PROGRAMS = ('train', 'sample', 'generate_prior', 'export', 'find_identifier', 'pretrain', 'evaluate')
# Names of flags and settings that are a path, or may be one.
IS_PATH = re.compile(
    r'workdir|output|model|benchmark|lora|embedding|\w*_dir|\w*_file|dir|\w+_lora|\w+_model|init|init_from|'
    r'dino|dinov2|clip|lpips|c2pa_certificate|c2pa_key'
)
DOG = {'data': {'subject': 'dog', 'instance_prompt': 'a sks dog', 'class_prompt': 'a dog'}}


@pytest.fixture
def home(tmp_path, monkeypatch):
    monkeypatch.setenv('HOME', str(tmp_path / 'home'))
    (tmp_path / 'home').mkdir()
    (tmp_path / 'here').mkdir()
    monkeypatch.chdir(tmp_path / 'here')
    return tmp_path / 'home'


def text_settings(cls, prefix=''):
    """{dotted name: its field} of all settings that are texts."""
    found = {}
    for name, field in schema._fields(cls).items():
        kinds = {field.kind, *schema.typing.get_args(field.kind)}
        groups = [kind for kind in kinds if schema.dataclasses.is_dataclass(kind)]
        for group in groups:
            found |= text_settings(group, f'{prefix}{name}.')
        if field.kind is str:
            found[prefix + name] = field
    return found


@pytest.mark.parametrize('cls', [DreamBoothConfig, PretrainConfig])
def test_every_setting_that_is_a_path_is_treated_as_one(cls):
    found = text_settings(cls)
    named = {name for name in found if IS_PATH.fullmatch(name.split('.')[-1])} | {'base'} & found.keys()
    assert named == {name for name, field in found.items() if field.is_path} and named


@pytest.mark.parametrize('name', PROGRAMS)
def test_every_flag_that_is_a_path_is_defined_as_one(name):
    source = (ROOT / 'dreambooth_jax' / f'{name}.py').read_text('utf-8')
    defined = re.findall(r"(\w+)\.DEFINE_(\w+)\(\s*'(\w+)'", source)
    kinds = {flag: (module, kind) for module, kind, flag in defined if IS_PATH.fullmatch(flag)}
    assert kinds and set(kinds.values()) <= {('program', 'path'), ('program', 'multi_path')}


@pytest.mark.parametrize('given', ['~/x', '~', '~/a b/犬', 'x/~/y', './~', 'owner/model-1.0', 'storybook', '/a/b'])
def test_home_is_where_a_shell_would_say(given, home):
    expected = given.replace('~', str(home), 1) if given.startswith('~') else given
    assert schema.expanded('--x', given) == expected
    subject = {'instance_dir': given, 'instance_prompt': 'a sks dog', 'class_prompt': 'a dog'}
    written = {'model': given, 'prior': {'dir': given}, 'data': {'subjects': [subject]}}
    for config in (resolve(DreamBoothConfig, written), resolve(DreamBoothConfig, resolve(DreamBoothConfig, written))):
        assert [config.model, config.prior.dir, config.data.subjects[0].instance_dir] == [expected] * 3


def test_a_folder_that_is_really_called_so_is_used(home):
    (home.parent / 'here' / '~nobody-here').mkdir()
    assert schema.expanded('--x', '~nobody-here') == '~nobody-here'


WRONG = {
    '': "is '', which is no path; give one (is a shell variable not set?)",
    ' \t': "is ' \\t', which is no path; give one (is a shell variable not set?)",
    '~nobody-here/x': (
        "is '~nobody-here/x' but there is no home folder ~nobody-here; write the whole path, or ./~nobody-here/x"
    ),
    'a\0b': "is 'a\\x00b', which holds characters that no path can hold here; give another",
}


@pytest.mark.parametrize('given', WRONG)
def test_what_is_no_path_is_one_sentence_in_every_setting(given, home):
    for name in (name for name, field in text_settings(DreamBoothConfig).items() if field.is_path):
        config = to_config_dict(DreamBoothConfig())
        if name.startswith('data.subjects.'):
            name, change = 'data.subjects[0].instance_dir', {'data.subjects': (dict(instance_dir=given),)}
        else:
            change = {name: given}
        with pytest.raises(ConfigError) as error:
            config.update_from_flattened_dict(change)
        assert str(error.value) == f'config.{name} {WRONG[given]}'


@pytest.mark.parametrize('given', [given for given in WRONG if '\0' not in given])  # no command line can hold it
@pytest.mark.parametrize(
    'arguments',
    [
        ('train', '--config=configs/dog.py', '--workdir'),
        ('train', '--workdir=x', '--config'),
        ('train', '--workdir=x', f'--config={ROOT}/configs/dog.py', '--config.data.instance_dir'),
        ('pretrain', f'--config={ROOT}/configs/storybook_base.py', '--workdir'),
        ('generate_prior', f'--config={ROOT}/configs/dog.py', '--workdir'),
        ('export', '--workdir=x', '--output'),
        ('export', '--output=x', '--workdir'),
        ('sample', '--model=storybook', '--prompt=a dog', '--output'),
        ('sample', '--output=x', '--prompt=a dog', '--model'),
        ('sample', '--output=x', '--prompt=a dog', '--model=storybook', '--lora'),
        ('sample', '--output=x', '--prompt=a dog', '--model=storybook', '--super_resolution_lora'),
        ('sample', '--output=x', '--prompt=a dog', '--model=storybook', '--super_resolution_model'),
        ('sample', '--output=x', '--prompt=a dog', '--model=storybook', '--model_transformer_file'),
        ('find_identifier', '--model_tokenizer_dir'),
    ],
    ids=lambda arguments: f'{arguments[0]}{arguments[-1]}',
)
def test_what_is_no_path_is_one_sentence_in_every_flag_and_nothing_is_written(program, arguments, given, home):
    name, *others, last = arguments
    if last == '--workdir' and name == 'train':
        others = [f'--config={ROOT}/configs/dog.py']
    ended = program(name, *others, f'{last}={given}')
    flag = last if last.count('.') == 0 else last.removeprefix('--')
    assert ended == (1, '', f'{flag} {WRONG[given]}')
    assert list(Path().iterdir()) == [] == list(home.iterdir())


def test_flags_and_a_config_file_find_home(program, home):
    (home / 'my.py').write_text((ROOT / 'configs/dog.py').read_text('utf-8'), 'utf-8')
    ended = program('train', '--config=~/my.py', '--workdir=~/run', '--config.data.instance_dir=~/photos')
    assert ended.code == 1 and f'{home}/photos' in ended.error  # which is not there
    (home / 'run').write_text('')
    ended = program('export', '--workdir=~/run', '--output=~/out')
    assert ended.code == 1 and ended.error.startswith(f"{home}/run is no run's folder")
    assert list(Path().iterdir()) == []


def test_a_run_named_by_its_home_is_generated_with_its_own_settings(program, home, monkeypatch):
    (home / 'run').mkdir()
    (home / 'run' / 'model').symlink_to(smallest_pipelines.folder('pixels'))
    written = {'samples': {'steps': 3, 'guidance_scale': 2.5, 'sampler': 'ddim'}}
    (home / 'run' / 'config.json').write_text(json.dumps(written))
    seen = []

    def generate(self, prompts, options, *, num_images):
        seen.append(options)
        raise ConfigError('enough')

    monkeypatch.setattr(Cascade, 'generate', generate)
    for model in ('~/run', home / 'run'):
        assert program('sample', f'--model={model}', '--prompt=a dog', '--output=~/out').error == 'enough'
    assert seen[0] == seen[1] and (seen[0].steps, seen[0].guidance_scale) == (3, 2.5)
    assert list(Path().iterdir()) == [] and (home / 'out').is_dir()


def test_a_run_remembers_the_whole_path(home, tmp_path):
    config = resolve(DreamBoothConfig, {**DOG, 'prior': {'dir': '~/class'}})
    run.begin(config, tmp_path / 'run')
    path = tmp_path / 'run' / 'config.json'
    assert json.loads(path.read_text())['prior']['dir'] == f'{home}/class'
    path.write_text(path.read_text().replace(f'{home}/class', '~/class'))  # as runs did before
    run.begin(config, tmp_path / 'run')


def bad_path(kind, tmp_path):
    if kind == 'below_a_file':
        (tmp_path / 'file').write_text('')
        return tmp_path / 'file' / 'run', 'Not a directory'
    if kind == 'broken_link':
        (tmp_path / 'link').symlink_to(tmp_path / 'nowhere' / 'else')
        return tmp_path / 'link', 'File exists'
    if kind == 'too_long':
        return tmp_path / ('x' * 300), 'File name too long'
    (tmp_path / 'closed').mkdir(mode=0o500)
    return tmp_path / 'closed' / 'run', 'Permission denied'


KINDS = ['below_a_file', 'broken_link', 'too_long'] + ['closed'] * (os.geteuid() != 0)  # root may write everywhere


@pytest.mark.parametrize('kind', KINDS)
def test_a_folder_that_cannot_be_made_is_one_sentence(program, kind, tmp_path):
    path, reason = bad_path(kind, tmp_path)
    with pytest.raises(ConfigError) as error, run.alone(path):
        raise AssertionError
    assert str(error.value) == f'--workdir={path} cannot be written: {reason}'
    before = sorted(tmp_path.rglob('*'))
    ended = program('sample', f'--model={smallest_pipelines.folder("pixels")}', '--prompt=a dog', f'--output={path}')
    assert (ended.code, ended.error.splitlines()[-1]) == (1, f'{path}: {reason}')
    assert sorted(tmp_path.rglob('*')) == before


def config_file(tmp_path, content):
    path = tmp_path / 'config.py'
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    return path


@pytest.mark.parametrize(
    ('content', 'sentence'),
    [
        ('def get_config(:\n', 'line 1: SyntaxError: invalid syntax'),
        ('\nimport nowhere_at_all\n', "line 2: ModuleNotFoundError: No module named 'nowhere_at_all'"),
        ('def get_config():\n    return 1 / 0\n', 'line 2: ZeroDivisionError: division by zero'),
        ("x = '\xff'\n".encode('latin-1'), "line 1: SyntaxError: (unicode error) 'utf-8' codec can't decode byte"),
        (b'\0\1', ': '),  # the words are of Python's version
        ('{"seed": true}', "line 1: NameError: name 'true' is not defined"),
        ("def get_config():\n    open('/nowhere/at_all')\n", 'line 2: FileNotFoundError: '),
    ],
)
def test_a_config_file_that_fails_is_one_sentence_with_its_line(program, tmp_path, content, sentence):
    path = config_file(tmp_path, content)
    ended = program('train', f'--config={path}', f'--workdir={tmp_path / "run"}')
    assert ended.code == 1 and ended.error.startswith(f'--config={path}: ') and '\n' not in ended.error
    assert sentence in ended.error and not (tmp_path / 'run').exists()


def test_a_config_file_that_is_none_is_one_sentence(program, tmp_path):
    path = config_file(tmp_path, 'x = 1\n')
    ended = program('train', f'--config={path}', '--workdir=x')
    assert ended.error == f'--config={path} has no function get_config(); give a config file, such as configs/dog.py'
    path = config_file(tmp_path, 'def get_config(): pass\n')
    ended = program('train', f'--config={path}', '--workdir=x')
    assert ended.error == f'--config={path}: get_config() returns NoneType but must return what to_config_dict() gave'
    ended = program('train', f'--config={tmp_path}', '--workdir=x')
    assert ended.error == (
        f'the file given to --config={tmp_path} cannot be read: Is a directory; give the path of a config file, such '
        f'as configs/dog.py'
    )


@pytest.mark.parametrize(
    ('argument', 'sentence'),
    [
        ('base.steps=abc', "flag --config.base.steps=abc: invalid literal for int() with base 10: 'abc'"),
        ('base.steps.more=1', 'config.base.steps.more is not a known setting; what stands before its last dot is one'),
        ('=1', "Could not parse ''"),
        ('base=5', "flag --config.base=5: Failed to parse '5' as a ConfigDict"),
        ("samples.prompts=('a dog'", "flag --config.samples.prompts=('a dog': it is no tuple of strings ("),
        ('samples.prompts=(1,2)', 'config.samples.prompts[0] must be a string, got 1 (int)'),
        ('lora.rank.more=1', 'config.lora.rank.more is not a known setting; what stands before its last dot is one'),
        ('parallel.mode.x=1', 'config.parallel.mode.x is not a known setting; what stands before its last dot is one'),
        ('data.instance_prompt=a \udcff', "config.data.instance_prompt is 'a \\udcff', which is not UTF-8"),
    ],
)
def test_a_setting_that_cannot_be_read_is_one_sentence(program, argument, sentence, home):
    ended = program('train', f'--config={ROOT}/configs/dog.py', '--workdir=x', f'--config.{argument}')
    assert ended.code == 1 and ended.error.startswith(sentence) and '\n' not in ended.error
    assert list(Path().iterdir()) == []
