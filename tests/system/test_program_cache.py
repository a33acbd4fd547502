"""Compiled programs are kept in the user's cache folder, unless the user has said where, or nothing can be kept."""

import os
import subprocess
import sys

import pytest

from dreambooth_jax.system import program_cache
from tests.support import script

PROGRAM = """
from dreambooth_jax.system import program_cache
program_cache.SHORTEST = 0
program_cache.use()
import jax, jax.numpy as jnp
print(jax.jit(lambda x: (jnp.tanh(x @ x) * 3).sum())(jnp.ones((8, 8))))
"""


@pytest.fixture
def environment(tmp_path, monkeypatch):
    for name in ('DIR', 'MAX_SIZE'):
        monkeypatch.delenv(f'JAX_COMPILATION_CACHE_{name}', raising=False)
    monkeypatch.delenv('JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS', raising=False)
    monkeypatch.setenv('XDG_CACHE_HOME', str(tmp_path))
    return tmp_path / 'dreambooth_jax' / 'programs'


def test_programs_are_kept_and_found_again(environment):
    env = script.environment(JAX_ENABLE_COMPILATION_CACHE='true')
    for _ in range(2):
        run = subprocess.run([sys.executable, '-c', PROGRAM], env=env, capture_output=True, text=True)
        assert run.returncode == 0 and run.stderr == '', run.stderr
        kept = sorted(path.name for path in environment.glob('*-cache'))
        assert kept and all((environment / name.replace('-cache', '-atime')).is_file() for name in kept)
    before = {path.name: path.stat().st_mtime_ns for path in environment.glob('*-cache')}
    assert before.keys() == set(kept)


def test_the_users_own_folder_stays(environment, monkeypatch):
    monkeypatch.setenv('JAX_COMPILATION_CACHE_DIR', 'elsewhere')
    program_cache.use()
    assert not environment.exists()


def test_a_folder_that_cannot_be_made_is_no_error(environment, monkeypatch):
    environment.parent.write_text('a file')
    program_cache.use()
    assert 'JAX_COMPILATION_CACHE_DIR' not in os.environ


def test_what_a_killed_process_left_is_removed(tmp_path):
    for name in ('whole-cache', 'whole-atime', 'half-cache'):
        (tmp_path / name).write_text('')
    program_cache.clean(tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir()) == ['whole-atime', 'whole-cache']
