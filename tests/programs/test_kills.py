"""A run that is killed in its phases, paused, asked and stopped goes on and ends as an undisturbed one, to the byte."""

import random
import shutil
import signal

import numpy as np
import pytest
from PIL import Image

from tests.programs.test_train import CONFIG
from tests.support import killed_runs, smallest_pipelines, tiny_encoders

pytestmark = pytest.mark.slow
MODES = killed_runs.MODES
START_UP = 1.0  # seconds; a fast machine makes the first class image after two


@pytest.fixture(scope='module')
def new_run(tmp_path_factory):
    """(mode, name of its folder) -> a run that has not begun; all of a mode share compiled programs."""
    folder = tmp_path_factory.mktemp('killed_runs')
    (folder / 'photos').mkdir()
    for number, image in enumerate(np.random.default_rng(0).integers(0, 256, (3, 24, 24, 3), np.uint8)):
        Image.fromarray(image).save(folder / 'photos' / f'{number}.png')
    config = folder / 'config.py'
    text = CONFIG.format(model=str(smallest_pipelines.folder('pixels')), photos=str(folder / 'photos'))
    scores = tiny_encoders.settings(folder / 'encoders')
    config.write_text(text.replace('    return config', f'{scores}    return config'))

    def new(mode, name):
        return killed_runs.Run(MODES[mode], config, folder / mode / name, folder / mode / 'cache', random.Random(0))

    return new


@pytest.mark.parametrize('mode', MODES)
def test_a_run_that_is_killed_in_every_phase_ends_as_an_undisturbed_one(mode, new_run):
    whole, run = new_run(mode, 'undisturbed'), new_run(mode, 'killed_in_every_phase')
    whole.folder.parent.mkdir()
    whole.end()
    assert run.kill(killed_runs.at_any_moment(START_UP))
    if killed_runs.PHASES['class_images'].marks(run.folder):
        shutil.rmtree(run.folder)  # the machine is faster still; all class images could be there, and the phase be over
    for name, phase in MODES[mode].phases().items():
        while not run.kill(phase):
            assert name == 'export'  # it may be over before the kill; a run that is started again exports again
        if (mode, name) == ('two_processes', 'class_images'):
            ask_and_stop(run)
    assert set(run.killed_alone) == set(range(MODES[mode].processes))
    # Of processes that lost another. Once, in CI, native code crashed; more than one in a run would be no accident.
    crashed = [code for code, _ in run.last_words if code == -signal.SIGSEGV]
    assert len(crashed) <= 1
    for code, words in run.last_words:
        if code in crashed:
            continue
        assert code in (1, -signal.SIGABRT)
        assert 'another process of this run has ended' in words or 'another task died' in words
    run.end()
    run.assert_same(whole)


def ask_and_stop(run):
    said = run.ask_and_stop()
    assert 'stopped in the base stage, saved; start the same command again to go on' in said
    samples = run.folder / 'samples' / 'base' / '000000.png'  # of no step, so nobody else has them
    samples.unlink()
    shutil.rmtree(samples.with_suffix(''))
