"""Runs of train that are killed again and again, each time in a phase, and compared with undisturbed ones.

The cache of compiled programs is that of a user (system/program_cache.py), in a folder that the killed runs share.
"""

import dataclasses
import glob
import json
import os
import random
import shutil
import signal
import socket
import subprocess
import time
from collections.abc import Callable
from pathlib import Path
from typing import Literal, NamedTuple

import jax
import numpy as np
import orbax.checkpoint as ocp
from tensorboardX.proto import event_pb2

from dreambooth_jax.training import requests
from tests.conftest import FAST_CODE, XLA_FLAGS
from tests.support import forked, script

KEEP = 2  # checkpoints
SAMPLES_EVERY = 2
SETTINGS = {
    'prior.num_images': 6,
    'prior.batch_size': 2,
    'base.steps': 3,
    'super_resolution.steps': 2,
    'checkpoint.every': 1,
    'checkpoint.keep': KEEP,
    'samples.every': SAMPLES_EVERY,
}
# Evaluations come after the samples of the same step.
WHOLE = {'evaluation.every': SAMPLES_EVERY, 'evaluation.num_prompts': 1, 'evaluation.class_images': 1}
IN_PART = {'evaluation.every': 0, 'evaluation.dino': None, 'evaluation.clip': None, 'super_resolution_model': 'none'}
MOST_SECONDS = 600
DEVICES_FLAG = '--xla_force_host_platform_device_count'


class Mode(NamedTuple):
    """How a run computes.

    Attributes:
      devices, processes: on how many devices of how many processes.
      whole: whether it has a second stage and evaluations, which double the time of every start, and is killed in
        every phase; on several devices it is killed in those that write or compute together.
    """

    devices: int
    processes: int = 1
    whole: bool = False

    def phases(self) -> dict[str, 'Phase']:
        return {name: phase for name, phase in PHASES.items() if self.whole or not phase.whole}


MODES = {
    'one_device': Mode(1, whole=True),
    'pmap_on_four_devices': Mode(4),
    'two_processes': Mode(2, processes=2),
}


class Phase(NamedTuple):
    """A part of a run in which it is killed.

    Attributes:
      marks: folder of the run -> what shows that the phase has begun: a set that then gets another element.
      seconds: the kill comes at most so long after that.
      killed: of several processes, 'one' of them, in turn (the others must end by themselves), the 'first', which works
        alone there, or 'all' (where one might wait for others that were killed before they came: it does for five
        minutes).
      whole: whether only whole runs are killed in it (see Mode).
    """

    marks: Callable[[Path], set]
    seconds: float
    killed: Literal['one', 'first', 'all'] = 'one'
    whole: bool = False


def _found(folder: Path, pattern: str) -> list[str]:
    return glob.glob(str(folder / pattern), include_hidden=True)  # unlike Path.glob, it survives files that vanish


def _files(pattern: str) -> Callable[[Path], set]:
    """Marks are the files of this pattern, by name and by the time when they were made or last changed."""

    def marks(folder):
        found = set()
        for path in _found(folder, pattern):
            try:
                found.add((path, os.stat(path).st_mtime_ns))
            except FileNotFoundError:
                continue
        return found

    return marks


def _too_many_checkpoints(folder: Path) -> set:
    steps = {stage: _complete(folder / stage) for stage in ('base', 'super_resolution')}
    return {(stage, there[-1]) for stage, there in steps.items() if len(there) > KEEP}


def _lines_before_samples(folder: Path) -> set:
    # A line holds the speed, so the line of a step that is taken again differs.
    return {line for line in _lines(folder) if json.loads(line)['step'] % SAMPLES_EVERY == 0}


def at_any_moment(seconds: float) -> Phase:
    """Returns the phase that begins when the process is started."""
    return Phase(lambda folder: {object()}, seconds, killed='all')


# In the order in which a run comes through them. The seconds are so few that a fast machine is still in the phase.
PHASES = {
    'class_images': Phase(_files('prior/*.png*'), 0.2),
    'save': Phase(_files('base/checkpoints/*-tmp*'), 0.06),
    'samples': Phase(_lines_before_samples, 0.3),
    'evaluation': Phase(_files(f'samples/base/{SAMPLES_EVERY:06d}.png'), 0.3, whole=True),
    'score': Phase(_files('best.json'), 0.01, whole=True),  # the metrics do not have it yet
    'deletion': Phase(_too_many_checkpoints, 0.01, whole=True),
    'save_of_the_second_stage': Phase(_files('super_resolution/checkpoints/*-tmp*'), 0.06, whole=True),
    'export': Phase(_files('.model.part*'), 0.05, killed='first'),
}


def _complete(stage: Path) -> list[int]:
    return sorted(int(name) for path in _found(stage, 'checkpoints/*') if (name := os.path.basename(path)).isdigit())


def _lines(folder: Path) -> list[str]:
    """The complete lines of the metrics, as they are in the file."""
    try:
        text = (folder / 'metrics.jsonl').read_text('utf-8')
    except FileNotFoundError:
        return []
    return text.split('\n')[:-1]


@dataclasses.dataclass
class Run:
    """One run of train in its folder, which may be started often.

    Attributes:
      mode: how it computes.
      config: its settings file.
      folder: the folder of the run.
      cache: the folder of compiled programs.
      rng: draws the moments of kills.
      most_seconds: how long the others may live after one process was killed.
    """

    mode: Mode
    config: Path
    folder: Path
    cache: Path
    rng: random.Random
    most_seconds: float = 150.0
    kept: set = dataclasses.field(default_factory=set)  # lines of steps that a checkpoint holds
    killed_alone: list = dataclasses.field(default_factory=list)  # the numbers of processes, kill by kill
    last_words: list = dataclasses.field(default_factory=list)  # (exit code, output) of processes that were not killed

    def start(self) -> list[forked.Forked | subprocess.Popen]:
        """Starts all processes of the run; each prints to a file of its own beside the folder."""
        # Without FAST_CODE: with the first of its flags, runs that must end equal to the byte once differed by 1e-8.
        flags = {name: value for name, value in XLA_FLAGS.items() if name not in FAST_CODE}
        flags[DEVICES_FLAG] = str(self.mode.devices)
        environment = script.environment(
            XLA_FLAGS=' '.join(f'{name}={value}' for name, value in flags.items()),
            XDG_CACHE_HOME=str(self.cache),
            JAX_ENABLE_COMPILATION_CACHE='true',
        )
        environment.pop('JAX_COMPILATION_CACHE_DIR', None)
        # If others compiled what process 0 has kept, it would wait for them, and it does for 30 seconds at most.
        program = 'dreambooth_jax.train' if self.mode.processes == 1 else 'tests.support.keeping_train'
        words = [f'--config={self.config}', f'--workdir={self.folder}']
        settings = SETTINGS | (WHOLE if self.mode.whole else IN_PART)
        words += [f'--config.{name}={value}' for name, value in settings.items()]
        processes = []
        for number in range(self.mode.processes):
            more = self._address(number) if self.mode.processes > 1 else []
            processes.append(forked.start(program, words + more, environment=environment, log=self._log(number)))
        return processes

    def _address(self, number: int) -> list[str]:
        if number == 0:
            with socket.socket() as free:
                free.bind(('localhost', 0))
                self._port = free.getsockname()[1]
        count = f'--num_processes={self.mode.processes}'
        return ['--distributed', f'--coordinator_address=localhost:{self._port}', count, f'--process_id={number}']

    def _log(self, number: int) -> Path:
        return self.folder.with_name(f'{self.folder.name}.{number}.log')

    def said(self, number: int) -> str:
        """What a process has printed since its last start."""
        return self._log(number).read_text('utf-8', 'replace')

    def _all_said(self) -> str:
        return '\n'.join(self.said(number) for number in range(self.mode.processes))

    def end(self) -> float:
        """Starts the run and waits until it has ended well; returns the seconds."""
        begun = time.monotonic()
        processes = self.start()
        try:
            codes = [process.wait(MOST_SECONDS) for process in processes]
        finally:
            for process in processes:
                process.kill()
        assert codes == [0] * len(processes), self._all_said()
        return time.monotonic() - begun

    def kill(self, phase: Phase) -> bool:
        """Starts the run and kills it in the phase; returns False if it came to its end before."""
        before = phase.marks(self.folder)
        processes = self.start()
        try:
            until = time.monotonic() + MOST_SECONDS
            while not phase.marks(self.folder) - before:
                assert time.monotonic() < until and None in [process.poll() for process in processes], self._all_said()
                time.sleep(0.0005)
            time.sleep(self.rng.uniform(0, phase.seconds))
            victims = processes
            if phase.killed != 'all':
                one = 0 if phase.killed == 'first' else len(self.killed_alone) % len(processes)
                self.killed_alone.append(one)
                victims = [processes[one]]
            for process in victims:
                process.kill()
            killed = -signal.SIGKILL in [process.wait() for process in victims]
            for number, process in enumerate(processes):
                if process not in victims:
                    self.last_words.append((process.wait(self.most_seconds), self.said(number)))
        except subprocess.TimeoutExpired:
            raise AssertionError(f'alive {self.most_seconds} s after the kill: {self._all_said()}') from None
        finally:
            for process in processes:
                process.kill()
                process.wait()
        self._check_kept()
        return killed

    def ask_and_stop(self) -> str:
        """Starts the run and asks it, by files: to wait before the first step; for samples; for a checkpoint; to end.

        Returns:
          What its first process said.
        """
        control = self.folder / requests.FOLDER
        shutil.rmtree(control, ignore_errors=True)  # of an earlier start; requests before this one's would be lost
        processes = self.start()

        def until(there: Callable[[], bool]) -> None:
            last = time.monotonic() + MOST_SECONDS
            while not there():
                assert time.monotonic() < last and None in [process.poll() for process in processes], self._all_said()
                time.sleep(0.01)

        try:
            until(control.is_dir)
            (control / requests.PAUSE).touch()
            until((control / requests.PAUSED).exists)
            for name in (requests.SAMPLE, requests.SAVE):
                (control / name).touch()
                until(lambda name=name: not (control / name).exists())
            (control / requests.STOP).touch()
            codes = [process.wait(self.most_seconds) for process in processes]
        finally:
            for process in processes:
                process.kill()
        assert codes == [0] * len(processes), self._all_said()
        return self.said(0)

    def _check_kept(self) -> None:
        lines = _lines(self.folder)
        assert self.kept <= set(lines)
        for line in lines:
            entry = json.loads(line)
            there = _complete(self.folder / entry['stage'])
            if there and entry['step'] <= there[-1]:
                self.kept.add(line)

    def assert_same(self, other: 'Run') -> None:
        """The same files to the byte, the same numbers but for times, the same checkpoints, and nothing else."""
        self._check_kept()  # no step was taken again that a checkpoint held
        ours, theirs = _contents(self.folder), _contents(other.folder)
        assert ours.keys() == theirs.keys()
        assert [name for name in ours if ours[name] != theirs[name]] == []
        assert _numbers(self.folder) == _numbers(other.folder)
        assert _curves(self.folder) == _curves(other.folder)
        checkpoints = [_checkpoints(run.folder) for run in (self, other)]
        assert checkpoints[0].keys() == checkpoints[1].keys()
        for name, arrays in checkpoints[0].items():
            for one, two in zip(jax.tree.leaves(arrays), jax.tree.leaves(checkpoints[1][name]), strict=True):
                np.testing.assert_array_equal(one, two, err_msg=name)


def _contents(folder: Path) -> dict[str, bytes]:
    paths = [path for path in folder.rglob('*') if path.is_file() and 'checkpoints' not in path.parts]
    named = {path.relative_to(folder).as_posix(): path for path in paths if 'tfevents' not in path.name}
    return {name: path.read_bytes() for name, path in named.items() if name != 'metrics.jsonl'}


def _numbers(folder: Path) -> list[dict]:
    """The lines of the metrics in their order, without the speed."""
    return [{**json.loads(line), 'images_per_second': None} for line in _lines(folder)]


def _curves(folder: Path) -> set[tuple[int, str]]:
    """(step, name) of the numbers that TensorBoard finds in all event files; a kill may cut off the end of a file."""
    found = set()
    for path in folder.glob('events.out.tfevents*'):
        data = path.read_bytes()
        while len(data) >= 8 and len(data) >= 16 + (length := int.from_bytes(data[:8], 'little')):
            event = event_pb2.Event.FromString(data[12 : 12 + length])
            found |= {(event.step, value.tag) for value in event.summary.value}
            data = data[16 + length :]
    return found


def _checkpoints(folder: Path) -> dict[str, dict]:
    """Name of everything in the folders of checkpoints -> its arrays."""
    found = {}
    options = ocp.CheckpointManagerOptions(read_only=True)
    for stage in sorted(folder.glob('*/checkpoints')):
        manager = ocp.CheckpointManager(stage, options=options, item_handlers=ocp.PyTreeCheckpointHandler())
        with manager:
            for path in stage.iterdir():
                shapes = jax.tree.map(
                    lambda array: jax.ShapeDtypeStruct(array.shape, array.dtype),
                    manager.item_metadata(int(path.name)).tree,
                )
                to_host = jax.tree.map(lambda _: ocp.RestoreArgs(restore_type=np.ndarray), shapes)
                wanted = ocp.args.PyTreeRestore(item=shapes, restore_args=to_host)
                found[f'{stage.parent.name}/{path.name}'] = manager.restore(int(path.name), args=wanted)
    return found
