"""A benchmark that is killed at any moment goes on, and ends with what an undisturbed one leaves, to the byte."""

import signal
import time

import pytest

from tests.programs.test_evaluate import write_run
from tests.support import forked, script, tiny_encoders

pytestmark = pytest.mark.slow
MOST_SECONDS = 900  # that one process may take, on a busy machine
# What is there when a process is killed: how many files match, in the order in which they appear.
MOMENTS = {
    'the images of the first run': ('images/dog/*/*.png', 3),
    'the images of the model before it': ('images/base/*/*.png', 9),
    'the scores of the first run': ('dog.json', 1),
    'the images of the second run': ('images/dog2/*/*.png', 17),
    'the scores of the second run': ('dog2.json', 1),
}


@pytest.fixture(scope='module')
def start(tmp_path_factory):
    """workdir -> a process that scores two runs into it."""
    folder = tmp_path_factory.mktemp('benchmark')
    for seed, name in enumerate(('dog', 'dog2')):
        write_run(folder / 'runs' / name, folder / 'photos' / name, seed)
    sources = [f'--{name}={tiny_encoders.write(name, folder / name)}' for name in ('dino', 'clip')]
    words = [f'--benchmark={folder / "runs"}', *sources, '--num_images=1', '--class_images=2', '--batch_size=4']

    def process(workdir):
        # Killed, a process may leave half a compiled program in the cache: they have one of their own.
        env = script.environment(JAX_ENABLE_COMPILATION_CACHE='true', JAX_COMPILATION_CACHE_DIR=str(folder / 'cache'))
        arguments, log = [*words, f'--workdir={workdir}'], folder / f'{workdir.name}.log'
        return forked.start('dreambooth_jax.evaluate', arguments, environment=env, log=log)

    return process


def content(workdir):
    # The page tells when it was written.
    files = [path for path in sorted(workdir.rglob('*')) if path.is_file() and path.name != 'report.html']
    return {path.relative_to(workdir): path.read_bytes() for path in files}


def test_a_benchmark_that_is_killed_again_and_again_ends_as_an_undisturbed_one(start, tmp_path):
    whole, killed = tmp_path / 'whole', tmp_path / 'killed'
    assert start(whole).wait(MOST_SECONDS) == 0
    for moment, (pattern, count) in MOMENTS.items():
        process, until = start(killed), time.monotonic() + MOST_SECONDS
        try:
            while len(list(killed.glob(pattern))) < count:
                assert process.poll() is None and time.monotonic() < until, moment
                time.sleep(0.001)
        finally:
            process.kill()
            code = process.wait()
        assert code == -signal.SIGKILL, moment
        assert not (killed / 'scores.json').exists()
    kept = {path: path.stat().st_mtime_ns for path in killed.rglob('*.png')}
    assert len(kept) == 3 * 27
    assert start(killed).wait(MOST_SECONDS) == 0
    assert {path: path.stat().st_mtime_ns for path in killed.rglob('*.png')} == kept
    found, wanted = content(killed), content(whole)
    assert found.keys() == wanted.keys() and [name for name in wanted if found[name] != wanted[name]] == []
