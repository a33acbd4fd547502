"""Programs ask for huge pages where Linux wants to be asked, and leave everything else as it was."""

import os
import signal
import subprocess
import sys

import pytest

from dreambooth_jax.system import huge_pages
from tests.support import script

CONFIG = """
import os, sys
def get_config():
    print(os.getpid(), os.environ.get('GLIBC_TUNABLES'), sys.flags.dev_mode, *sys.argv[1:], sep='|', flush=True)
    sys.exit(3)
"""


@pytest.fixture
def mode(tmp_path):
    """A file that says that memory is given in huge pages if asked."""
    path = tmp_path / 'enabled'
    path.write_text('always [madvise] never\n')
    return path


@pytest.fixture
def library(monkeypatch):
    """Sets what this system says about its C library."""

    def is_(version):
        monkeypatch.setattr(os, 'confstr', {'CS_GNU_LIBC_VERSION': version}.__getitem__, raising=False)

    is_('glibc 2.35')
    return is_


def test_the_rest_of_the_environment_stays(mode, library):
    assert huge_pages.asking({'HOME': '/h'}, mode) == {'HOME': '/h', 'GLIBC_TUNABLES': 'glibc.malloc.hugetlb=1'}


@pytest.mark.parametrize('value', ['', 'glibc.malloc.hugetlb=0', 'glibc.malloc.hugetlb=1', 'glibc.malloc.check=3'])
def test_what_the_user_has_set_is_left_alone(mode, library, value):
    assert huge_pages.asking({'GLIBC_TUNABLES': value}, mode) is None


@pytest.mark.parametrize('text', ['[always] madvise never', 'always madvise [never]', ''])
def test_nothing_is_asked_where_the_answer_is_known(mode, library, text):
    mode.write_text(text)
    assert huge_pages.asking({}, mode) is None


def test_nothing_is_asked_of_other_systems(mode, library, tmp_path, monkeypatch):
    assert huge_pages.asking({}, tmp_path / 'absent') is None
    for version in ('glibc 2.34', 'glibc 2.4', 'other 3.1', 'musl', None):
        library(version)
        assert huge_pages.asking({}, mode) is None, version

    def unknown(name):
        raise ValueError('unrecognized configuration name')

    monkeypatch.setattr(os, 'confstr', unknown)
    assert huge_pages.asking({}, mode) is None
    monkeypatch.delattr(os, 'confstr')
    assert huge_pages.asking({}, mode) is None


def test_a_program_that_cannot_be_started_anew_goes_on(mode, library, monkeypatch):
    blocked = []

    def refuse(*_):
        blocked.extend(signal.pthread_sigmask(signal.SIG_BLOCK, ()))
        raise OSError('no')

    monkeypatch.setattr(os, 'execve', refuse)
    monkeypatch.setattr(huge_pages, 'asking', lambda environment: {**environment})
    huge_pages.use()
    # Ctrl-C waits until the program has started anew.
    assert {signal.SIGINT, signal.SIGTERM} <= set(blocked)
    assert not signal.pthread_sigmask(signal.SIG_BLOCK, ()) & {signal.SIGINT, signal.SIGTERM}
    monkeypatch.setattr(sys, 'executable', '')
    monkeypatch.setattr(os, 'execve', None)
    huge_pages.use()


@pytest.mark.skipif(huge_pages.asking({}) is None, reason='this system is not asked for huge pages')
def test_a_program_keeps_its_process_arguments_and_options(tmp_path):
    config = tmp_path / 'a config.py'
    config.write_text(CONFIG)
    command = [sys.executable, '-X', 'dev', '-m', 'dreambooth_jax.train', f'--config={config}', '--workdir=a "b" $c']
    for set_before, found in ((None, 'glibc.malloc.hugetlb=1'), ('glibc.malloc.hugetlb=0', 'glibc.malloc.hugetlb=0')):
        environment = script.environment()
        environment.pop('GLIBC_TUNABLES', None)
        if set_before:
            environment['GLIBC_TUNABLES'] = set_before
        process = subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, text=True)
        out, _ = process.communicate(timeout=60)
        assert process.returncode == 3
        assert out == f'{process.pid}|{found}|True|--config={config}|--workdir=a "b" $c\n'
