"""How every program starts and ends: help, flags, config files, and errors as one sentence with exit code 1."""

import logging
import subprocess
import sys
from pathlib import Path

import pytest
from absl import flags

from dreambooth_jax import program as program_lib
from dreambooth_jax.config import ConfigError, DreamBoothConfig, to_config_dict
from dreambooth_jax.generation.cascade import Cascade

PROGRAMS = ('sample', 'generate', 'generate_prior', 'export', 'find_identifier', 'pretrain', 'train')


def test_help_is_printed_with_exit_code_0_and_before_anything_slow_is_imported():
    for name in PROGRAMS:
        command = [sys.executable, '-X', 'importtime', '-m', f'dreambooth_jax.{name}', '--help']
        ended = subprocess.run(command, capture_output=True, text=True)
        assert ended.returncode == 0, ended.stderr
        assert f'python -m dreambooth_jax.{name}' in ended.stdout
        lines = ended.stderr.splitlines()
        assert all(line.startswith('import time:') for line in lines)
        imported = {line.split('|')[-1].strip() for line in lines}
        assert 'absl.flags' in imported and not imported & {'jax', 'numpy', 'transformers', 'orbax', 'PIL.Image'}


def test_a_program_searches_for_garbage_less_often_than_python_itself(tmp_path):
    (tmp_path / 'config.py').write_text('import gc, sys\ndef get_config(): sys.exit(str(gc.get_threshold()))')
    command = [sys.executable, '-m', 'dreambooth_jax.train', f'--config={tmp_path}/config.py', '--workdir=x']
    ended = subprocess.run(command, capture_output=True, text=True)
    assert ended.stderr.splitlines()[-1] == '(20000, 10, 10)'


def test_every_error_for_people_is_known_by_its_name():
    for module, name in program_lib.SENTENCES:
        kind = getattr(__import__(module, fromlist=[name]), name)
        assert program_lib.explained(kind('a sentence')) == 'a sentence'
    assert program_lib.explained(OSError(28, 'No space left on device', 'out/a.png')) == (
        f'a.png could not be written to {Path("out").absolute()}: the disk is full; make room there and start the same '
        f'command again'
    )
    assert program_lib.explained(OSError('what happened')) == 'what happened'
    assert program_lib.explained(ValueError('a bug')) is None


def test_a_bug_keeps_its_traceback(program, tmp_path, monkeypatch):
    monkeypatch.setattr(Cascade, 'load', lambda *_, **__: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        program('sample', '--model=m', '--prompt=a', f'--output={tmp_path}')


def from_file(tmp_path, text, word=''):
    path = tmp_path / 'config.py'
    path.write_text(text)
    parser = program_lib._ConfigFileParser('config')
    return parser, parser.parse(f'{path}{word}')


FILE = """from dreambooth_jax.config import DreamBoothConfig, to_config_dict
def get_config(subject='dog'):
    config = to_config_dict(DreamBoothConfig())
    config.data.subject = subject
    return config
"""


@pytest.mark.parametrize(('word', 'subject'), [('', 'dog'), (':cat', 'cat')])
def test_a_config_file_may_be_told_a_word(tmp_path, word, subject):
    parser, config = from_file(tmp_path, FILE, word)
    assert config.data.subject == subject and config.is_locked and parser.config is config


@pytest.mark.parametrize(
    ('text', 'reason'),
    [
        ('x = 1', 'has no function get_config(); give a config file, such as configs/dog.py'),
        ('get_config = 3', 'has no function get_config(); give a config file, such as configs/dog.py'),
        ('def get_config():\n    return {}', 'get_config() returns dict but must return what to_config_dict() gave'),
        ('def get_config():\n    return 1 / 0', 'line 2: ZeroDivisionError: division by zero'),
        ('def get_config(:', 'line 1: SyntaxError: invalid syntax'),
        (
            'def get_config(a, b):\n    pass',
            "TypeError: get_config() missing 2 required positional arguments: 'a' and 'b'",
        ),
        ('import of_nothing_here', "line 1: ModuleNotFoundError: No module named 'of_nothing_here'"),
        ("open('/no/such/file')", "line 1: FileNotFoundError: [Errno 2] No such file or directory: '/no/such/file'"),
        (FILE.replace('subject = subject', 'subjct = 1'), 'config.data.subjct is not a known setting; did you mean '),
    ],
)
def test_a_config_file_that_cannot_be_used_is_one_sentence(tmp_path, text, reason):
    with pytest.raises(ConfigError) as error:
        from_file(tmp_path, text)
    said = str(error.value)
    assert '\n' not in said and reason in said
    assert said.startswith((f'--config={tmp_path}/config.py', 'config.data.subjct'))


def test_a_config_file_that_is_not_there_or_not_readable_is_one_sentence(tmp_path):
    parser = program_lib._ConfigFileParser('config')
    for path, reason in ((tmp_path / 'no.py', 'is not there'), (tmp_path, 'cannot be read: Is a directory')):
        with pytest.raises(ConfigError) as error:
            parser.parse(str(path))
        assert str(error.value) == (
            f'the file given to --config={path} {reason}; give the path of a config file, such as configs/dog.py'
        )


def test_paths_in_flags_begin_at_home_one_or_several(monkeypatch, tmp_path):
    monkeypatch.setenv('HOME', str(tmp_path))
    values = flags.FlagValues()
    parser = program_lib._PathParser('out')
    flags.DEFINE(parser, 'out', None, '', flag_values=values)
    flags.DEFINE_multi(parser, flags.ArgumentSerializer(), 'lora', [], '', flag_values=values)
    values(['program', '--out=~/a', '--lora=~/b', '--lora=c'])
    assert values.out == f'{tmp_path}/a' and values.lora == [f'{tmp_path}/b', 'c']
    with pytest.raises(ConfigError, match="^--out is '', which is no path; give one"):
        parser.parse('')


def test_what_stands_behind_a_single_setting_is_found():
    program_lib.DEFINE_config('some_config', 'Settings.', sys_argv=['program'])
    try:
        parser = flags.FLAGS['some_config'].parser
        parser.config = {}
        assert program_lib._behind_settings(['program', '--some_config.seed.x=1', '--other.seed.x=1', 'word']) == []
        parser.config = to_config_dict(DreamBoothConfig())
        arguments = ['--some_config.seed.x=1', '--some_config.data.subject.y=2', '--some_config.data.subject=dog']
        found = program_lib._behind_settings(['program', *arguments])
        assert found == ['some_config.seed.x', 'some_config.data.subject.y']
    finally:
        delattr(flags.FLAGS, 'some_config')


@pytest.mark.parametrize(
    ('name', 'file', 'message', 'shown'),
    [
        ('jax._src.xla_bridge', 'x.py', "Unable to initialize backend 'tpu'", False),
        ('jax._src.xla_bridge', 'x.py', 'An NVIDIA GPU may be present', True),
        ('absl', '/lib/orbax/checkpoint.py', 'saved', False),
        ('absl', '/lib/other/checkpoint.py', 'saved', True),
    ],
)
def test_messages_about_what_works_are_not_shown(name, file, message, shown):
    record = logging.LogRecord(name, logging.WARNING, file, 1, message, (), None)
    kept = program_lib._is_no_advice if name.startswith('jax') else program_lib._is_not_of_orbax
    assert kept(record) is shown
