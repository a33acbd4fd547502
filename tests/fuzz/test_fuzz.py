"""Whatever users hand to `train`, one thing bent at a time: the right result, or one sentence and exit code 1.

Every case is a function of its number. Forty run with the fast tests, the others with the slow ones.
"""

import functools
import itertools
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import jax
import numpy as np
import pytest
from absl import logging as absl_logging

from dreambooth_jax.data import subjects
from dreambooth_jax.finetune import examples, plan
from dreambooth_jax.generation.cascade import Cascade, Images
from dreambooth_jax.training import placement
from tests.support import bends_models, bends_photos, bends_runs, script
from tests.support.fuzz_world import Log, Seen, World, check_accounting, check_message

ALL = range(500)
FAST = [case for case in ALL if case % 12 != 11][:40]  # of those that do not train
SIGNALS = 12  # processes of their own, in the slow tests alone
# Round and round, but for what trains: that is every twelfth case.
_CHEAP = [
    bend
    for group in itertools.zip_longest(bends_photos.BENDS, bends_models.BENDS, bends_runs.CHEAP)
    for bend in group
    if bend
]


def bend_of(case: int):
    turn, rest = divmod(case, 12)
    if rest == 11:
        return bends_runs.DEAR[turn % len(bends_runs.DEAR)]
    return _CHEAP[(turn * 11 + rest) % len(_CHEAP)]


@pytest.fixture(autouse=True)
def quickly(monkeypatch):
    """One device, a plan without measurements, no images drawn by `sample`."""
    one = functools.partial(placement.make_placement, devices=jax.devices()[:1])
    monkeypatch.setattr(placement, 'make_placement', one)
    monkeypatch.setattr(plan, 'device_speed', lambda: 1e9)
    monkeypatch.setattr(Cascade, 'generate', nothing_generated)


def nothing_generated(cascade, prompts, *, num_images, **options):
    """What `sample` gets in place of images: whether a file is read right is seen before that."""
    return Images(np.zeros((len(prompts) * num_images, 8, 8, 3), np.uint8), None)


@pytest.fixture
def train(program, monkeypatch):
    """Runs a world's program, mostly train; gives how it ended and what it saw."""

    def run(world: World):
        log, told, sight = Log(), [], {}
        list_images, read_instance = subjects.list_images, examples.read_instance

        def listing(folder):
            found, skipped = list_images(folder)
            told.append((found, skipped, folder))
            return found, skipped

        def reading(config, cascade, *order):
            sight['params'] = cascade.base.unet.params
            found = read_instance(config, cascade, *order)
            sight['images'] = [image for examples in found['base'] for image in examples.images]
            return found

        with monkeypatch.context() as patched:
            patched.setattr(subjects, 'list_images', listing)
            patched.setattr(examples, 'read_instance', reading)
            patched.chdir(world.here)
            patched.setenv('HOME', str(world.here / 'home'))
            absl_logging.get_absl_logger().addHandler(log)
            try:
                ended = program(world.program, *world.arguments)
            finally:
                absl_logging.get_absl_logger().removeHandler(log)
            for found, skipped, folder in told:
                if ended.code == 0:
                    check_accounting(found, skipped, world.here / folder, ended.out + ended.error + log.text)
        images = sight.get('images')
        if images is not None and len({image.shape for image in images}) == 1:
            images = np.stack(images)
        return ended, Seen(images, sight.get('params'), ended.out)

    return run


@pytest.fixture(scope='session')
def stages(tmp_path_factory):
    """kind -> a run after one step, and the losses of one that was not interrupted; made on first use."""
    return {'folder': tmp_path_factory.mktemp('begun')}


def begin(world: World, train, stages) -> None:
    """Puts a run of one step into the world; `world.undisturbed` are the losses of two steps at once."""
    if world.kind not in stages:
        losses = {}
        folder = Path(tempfile.mkdtemp(dir=stages['folder']))
        for steps in (1, bends_runs.RESUMED):
            clean = World(folder / str(steps), world.kind)
            (clean.photos / '2.txt').write_text('a sks dog on a rug')
            clean.arguments = ['--config=config.py', '--workdir=run', f'--config.base.steps={steps}']
            ended, _ = train(clean)
            assert ended.code == 0, ended.error
            lines = (clean.run / 'metrics.jsonl').read_text().splitlines()
            losses[steps] = [bends_runs.json.loads(line)['loss'] for line in lines]
        stages[world.kind] = (folder / '1' / 'here' / 'run', losses[bends_runs.RESUMED])
    begun, world.undisturbed = stages[world.kind]
    shutil.copytree(begun, world.run, symlinks=True)


@pytest.mark.parametrize('case', [pytest.param(case, marks=() if case in FAST else pytest.mark.slow) for case in ALL])
def test_one_thing_bent_gives_the_right_result_or_one_sentence(case, train, stages, tmp_path):
    bend, rng = bend_of(case), np.random.default_rng(case)
    world = World(tmp_path, 'pixels' if bend in bends_runs.DEAR else ('pixels', 'latents')[case // 12 % 2])
    world.begin = lambda: begin(world, train, stages)
    expected = bend(world, rng)
    before = world.snapshot()
    ended, seen = train(world)
    what = f'{bend.__name__}: {world.arguments}\n{ended.error}\n{ended.out[-500:]}'
    assert ended.code == expected.code or (expected.code is None and ended.code in (0, 1)), what
    if ended.code:
        check_message(ended.error, expected.words)
    elif expected.check:
        expected.check(world, seen)
    after = {name: value for name, value in world.snapshot().items() if not name.startswith(world.new)}
    assert after == before, what


@pytest.mark.slow
@pytest.mark.parametrize('case', range(SIGNALS))
def test_a_signal_at_any_moment_ends_the_run(case, tmp_path):
    rng = np.random.default_rng([1, case])
    world = World(tmp_path, 'pixels')
    world.arguments = ['--config=config.py', '--workdir=run', '--config.base.steps=100000']
    number = [signal.SIGINT, signal.SIGTERM][case % 2]
    before = world.snapshot()
    with subprocess.Popen(
        [sys.executable, '-m', 'dreambooth_jax.train', *world.arguments],
        cwd=world.here,
        env=script.environment(),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),  # ignored by what runs in the background
    ) as process:
        time.sleep(rng.uniform(0.3, 15))
        process.send_signal(number)
        out, error = process.communicate(timeout=60)
    allowed = {130, 0} if number == signal.SIGINT else {143, 0}
    assert process.returncode in allowed | {-number} and 'Traceback' not in error, (process.returncode, error)
    assert process.returncode or 'saved' in out
    assert world.snapshot() == before
