"""What the folders of runs say: their settings, how far they are, whether a process works there, and their files.

A run is a folder with a config.json of train. It is named by the folder's name, which is looked up in a listing, so
that no path comes from outside. What is read is kept until the file's time changes.
"""

import contextlib
import dataclasses
import json
import os
import re
import socket
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psutil

from dreambooth_jax.config import NO_MODEL, ConfigError, DreamBoothConfig
from dreambooth_jax.config.of_run import settings as settings_of
from dreambooth_jax.monitoring.metrics import FILE as METRICS
from dreambooth_jax.system import lock
from dreambooth_jax.training import control
from dreambooth_jax.web import numbers
from dreambooth_jax.web.numbers import STAGES

# Files of a run, by the names that train gives them; its own modules need JAX. A test compares them.
CONFIG, EXTENDED, BEST, CHECKPOINTS, SAMPLES, CLASS_IMAGES = (
    'config.json',
    'extended.json',
    'best.json',
    'checkpoints',
    'samples',
    'prior',
)
MODEL_INDEX = Path('model') / 'model_index.json'
NAME = re.compile(r'[A-Za-z0-9][A-Za-z0-9_.-]{0,63}')  # of a run or of photos that are made here
_ALIKE_FOR = 10.0  # seconds
_CLOCKS = 5.0  # seconds by which a process may seem younger than its lock, as clocks are set


@dataclasses.dataclass(frozen=True, kw_only=True)
class Progress:
    """How far a run is.

    Attributes:
      stage: the one that trains, or trained last; None: none has yet.
      step, steps: of that stage.
      share: of all steps of the run, from 0 to 1.
      seconds_left: of the run or of that stage, without samples, scores and export; None: not known.
      is_of_run: whether that is the time of the whole run; False: of the stage alone, because nobody has measured yet
        how fast the next one is, or no process works.
      as_in: the run whose next stage, which has the same settings, was measured instead; None: there is no next stage,
        or no such run.
      loss: the mean of the last steps; None: there is none.
    """

    stage: str | None
    step: int
    steps: int
    share: float
    seconds_left: float | None
    loss: float | None
    is_of_run: bool = True
    as_in: str | None = None


@dataclasses.dataclass(frozen=True, kw_only=True)
class Run:
    """A run as its folder is now.

    Attributes:
      id: the folder's name.
      state: 'running', 'paused', 'finished' or 'stopped'; it may be started again when it is stopped.
      doing: what a process that works there does, in words; '' if none does.
      asked: what it was asked for and has not answered yet.
      progress: how far it is.
      model, prompt, photos: of its settings; None if they cannot be read.
      error: why its settings cannot be read; None: they can.
      has_weights: whether a checkpoint or the trained model is there.
      changed: when something was last written, in seconds since 1970.
    """

    id: str
    state: str
    doing: str
    asked: list[str]
    progress: Progress
    model: str | None
    prompt: str | None
    photos: str | None
    error: str | None
    has_weights: bool
    changed: float

    @property
    def works(self) -> bool:
        """Whether a process works in the folder."""
        return self.state in ('running', 'paused')


class Runs:
    """The runs in a folder.

    Args:
      folder: the folder that holds theirs.
    """

    def __init__(self, folder: Path):
        self.folder = folder
        self._kept: dict[tuple[str, Path], tuple[Any, Any]] = {}
        self._idle: dict[Path, tuple[Any, Run | None]] = {}
        self._found_alike: dict[tuple[Path, str], tuple[float, Path | None]] = {}
        self._numbers: dict[Path, numbers.Numbers] = {}

    def folders(self) -> dict[str, Path]:
        """Returns the name of each run -> its folder."""
        names = sorted(name for name in os.listdir(self.folder) if not name.startswith('.'))
        return {name: self.folder / name for name in names if os.path.isfile(f'{self.folder}/{name}/{CONFIG}')}

    def folder_of(self, name: str) -> Path | None:
        """Returns the folder of a run; None if there is none of that name.

        The name is looked for among those that are there, and only then is a path made of it.
        """
        is_there = not name.startswith('.') and name in os.listdir(self.folder)
        return self.folder / name if is_there and (self.folder / name / CONFIG).is_file() else None

    def _folder(self, name: str) -> Path:
        """Returns the folder of a run; KeyError if there is none of that name."""
        if (path := self.folder_of(name)) is None:
            raise KeyError(name)
        return path

    def all(self) -> list[Run]:
        """Returns all runs, the one that was changed last first."""
        found = (self._read(name, self.folder / name) for name in os.listdir(self.folder) if not name.startswith('.'))
        return sorted(filter(None, found), key=lambda run: (-run.changed, run.id))

    def find(self, name: str) -> Run | None:
        """Returns the run of that name; None if there is none."""
        path = self.folder_of(name)
        return None if path is None else self._read(name, path)

    def numbers(self, run: str) -> numbers.Numbers:
        """Returns the numbers of a run that is there."""
        path = self._folder(run)
        while len(self._numbers) > 8:
            self._numbers.pop(next(iter(self._numbers)))
        return self._numbers.setdefault(path, numbers.Numbers(path))

    def samples(self, run: str) -> dict[str, dict[int, Path]]:
        """Returns stage -> step -> the sample grid of a run that is there."""
        return self._samples(self._folder(run))

    def settings(self, run: str) -> DreamBoothConfig:
        """Returns the settings of a run that is there.

        Raises:
          ConfigError: if they cannot be read.
        """
        return self._settings(self._folder(run))

    def best(self, run: str) -> dict[str, Any] | None:
        """Returns which checkpoint of a run is the best and why (best.json); None if none was chosen."""
        return self._json(self._folder(run) / BEST)

    def _read(self, name: str, path: Path) -> Run | None:
        """Returns the run of a folder, None if it is none of train; anew only if it has changed."""
        stamp = _stamp(path)
        kept = self._idle.get(path)
        if stamp is None or kept is None or kept[0] != stamp:
            is_one = (path / CONFIG).is_file() and self._is_of_train(path)
            kept = self._idle[path] = stamp, self._read_anew(name, path) if is_one else None
        return kept[1]

    def _read_anew(self, name: str, path: Path) -> Run:
        works = working_in(path)
        settings, error = None, None
        try:
            settings = self._settings(path)
        except ConfigError as wrong:
            error = str(wrong)
        progress = Progress(stage=None, step=0, steps=0, share=0.0, seconds_left=None, loss=None)
        if settings is not None:
            progress = self._progress(path, settings, works is not None)
        paused = works is not None and (path / control.FOLDER / control.PAUSED).exists()
        if works is not None:
            state = 'paused' if paused else 'running'
        else:
            state = 'finished' if settings is not None and self._is_finished(path, settings) else 'stopped'
        subjects = settings.subjects() if settings is not None else ()
        asked = [kind for kind in control.KINDS if (path / control.FOLDER / kind).exists()] if works else []
        return Run(
            id=name,
            state=state,
            doing='' if works is None else 'waits' if paused else self._doing(path, settings, works, progress),
            asked=asked,
            progress=progress,
            model=settings and settings.model,
            prompt=', '.join(one.instance_prompt for one in subjects) or None,
            photos=next((one.instance_dir for one in subjects), None),
            error=error,
            has_weights=any(checkpoints(path, stage) for stage in STAGES) or (path / MODEL_INDEX).is_file(),
            changed=max(_time(path / CONFIG), _time(path / METRICS), _time(path / MODEL_INDEX)),
        )

    def _doing(self, path: Path, settings: DreamBoothConfig | None, works: lock.Holder, progress: Progress) -> str:
        if settings is None:
            return 'works'
        if _time(path / METRICS) < works.since:  # nothing was trained since it was started
            wanted, made = self._class_images(path, settings)
            return f'generates class images: {made} of {wanted}' if made < wanted else 'reads the model and compiles'
        names = {'base': 'the base stage', 'super_resolution': 'the super-resolution stage'}
        last = [stage for stage in STAGES if self._wanted(path, settings)[stage]][-1:]
        if progress.step >= progress.steps:
            return 'exports the model' if [progress.stage] == last else 'prepares the next stage'
        return f'trains {names[progress.stage or "base"]}'

    def _class_images(self, path: Path, settings: DreamBoothConfig) -> tuple[int, int]:
        if not settings.class_image_stages() or settings.prior.dir is not None:
            return 0, 0
        prompts = {one.class_prompt for one in settings.subjects()}
        made = sum(1 for file in (path / CLASS_IMAGES).glob('**/*.png') if file.parent.name != 'super_resolution')
        return settings.prior.num_images * len(prompts), made

    def _progress(self, path: Path, settings: DreamBoothConfig, works: bool) -> Progress:
        wanted = self._wanted(path, settings)
        lines = self._tail(path)
        if not lines:
            steps = next((wanted[stage] for stage in STAGES if wanted[stage]), 0)
            return Progress(stage=None, step=0, steps=steps, share=0.0, seconds_left=None, loss=None)
        last = lines[-1]
        stage, step = last['stage'], last['step']
        before = sum(wanted[one] for one in STAGES[: STAGES.index(stage)])
        seconds = self._seconds(path, settings, stage, max(wanted[stage] - step, 0))
        is_of_run, as_in = True, None
        for later in STAGES[STAGES.index(stage) + 1 :]:
            steps = wanted[later] - max(checkpoints(path, later), default=0)
            if steps > 0 and seconds is not None:
                other = self._alike(path, settings, later) if works else None
                is_of_run, as_in = other is not None, other and other.name
                seconds += self._seconds(other, settings, later, steps) if other else 0
        recent = [line['loss'] for line in lines if line['stage'] == stage][-20:]
        return Progress(
            stage=stage,
            step=step,
            steps=max(wanted[stage], step),
            share=min((before + step) / max(sum(wanted.values()), 1), 1.0),
            seconds_left=seconds,
            is_of_run=is_of_run,
            as_in=as_in,
            loss=statistics.fmean(recent),
        )

    def _seconds(self, measured: Path, settings: DreamBoothConfig, stage: str, steps: int) -> float | None:
        """Returns how long so many steps of a stage take as they were measured last in a run's folder."""
        lines = [line for line in self._tail(measured) if line['stage'] == stage][-20:]
        speeds = [line['images_per_second'] for line in lines if line.get('images_per_second')]
        return steps * settings.examples_per_step(stage) / statistics.median(speeds) if speeds else None

    def _alike(self, path: Path, settings: DreamBoothConfig, stage: str) -> Path | None:
        """Returns the folder of the run, itself included, that trained such a stage last; None if none has.

        All runs are looked at for it, so what is found is kept for a while.
        """
        now = time.monotonic()
        until, found_before = self._found_alike.get((path, stage), (0.0, None))
        if now < until:
            return found_before
        found = []
        for other in self.folders().values():
            with contextlib.suppress(ConfigError):
                if self._is_of_train(other) and _work(self._settings(other), stage) == _work(settings, stage):
                    found += [other] if self._seconds(other, settings, stage, 1) else []
        chosen = max(found, key=lambda one: _time(one / METRICS), default=None)
        self._found_alike[path, stage] = now + _ALIKE_FOR, chosen
        return chosen

    def _wanted(self, path: Path, settings: DreamBoothConfig) -> dict[str, int]:
        """Returns the number of steps of each stage, extensions included."""
        extended = (self._json(path / EXTENDED) or {}).get('steps', 0)
        second = 0 if settings.super_resolution_model == NO_MODEL else settings.super_resolution.steps
        return {'base': max(settings.base.steps, extended), 'super_resolution': second}

    def _is_finished(self, path: Path, settings: DreamBoothConfig) -> bool:
        enough = (self._json(path / BEST) or {}).get('enough')
        for stage, steps in self._wanted(path, settings).items():
            newest = max(checkpoints(path, stage), default=0)
            if newest < steps and not (stage == 'base' and enough == newest > 0):
                return False
        return not settings.export or (path / MODEL_INDEX).is_file()

    def _is_of_train(self, path: Path) -> bool:
        return 'data' in (self._json(path / CONFIG) or {'data': None})  # a damaged one is shown, with its error

    def _settings(self, path: Path) -> DreamBoothConfig:
        found = self._unchanged('settings', path / CONFIG, lambda: _caught(path))
        if isinstance(found, ConfigError):
            raise found
        return found

    def _tail(self, path: Path) -> list[dict[str, Any]]:
        def read():  # callbacks write lines of their own, without a loss
            return [line for line in numbers.tail(path) if isinstance(line.get('loss'), int | float)]

        return self._unchanged('tail', path / METRICS, read) or []

    def _samples(self, path: Path) -> dict[str, dict[int, Path]]:
        found = {}
        for stage in STAGES:
            grids = {int(file.stem): file for file in (path / SAMPLES / stage).glob('*.png') if file.stem.isdigit()}
            if grids:
                found[stage] = dict(sorted(grids.items()))
        return found

    def _json(self, path: Path) -> dict[str, Any] | None:
        return self._unchanged('json', path, lambda: _read_json(path))

    def _unchanged(self, kind: str, path: Path, read: Callable[[], Any]) -> Any:
        """Returns what `read` returned when the file was last changed; None if it is not there."""
        stamp = _status(path)
        if stamp is None:
            self._kept.pop((kind, path), None)
            return None if kind != 'settings' else read()
        kept = self._kept.get((kind, path))
        if kept is None or kept[0] != stamp:
            kept = self._kept[kind, path] = stamp, read()
        return kept[1]


def checkpoints(path: Path, stage: str) -> list[int]:
    """Returns the steps of the checkpoints of a stage in a run's folder."""
    try:
        names = os.listdir(path / stage / CHECKPOINTS)
    except OSError:
        return []
    return sorted(int(name) for name in names if name.isdigit())


def _stamp(path: Path) -> tuple | None:
    """Returns what changes whenever a run in which nobody works changes; None if somebody may work there."""
    if os.path.lexists(f'{path}/{lock.FILE}'):
        return None
    # Whatever else train leaves there is renamed when it is whole, which changes the folder. Each look costs.
    parts = '', CONFIG, METRICS, *(f'{stage}/{CHECKPOINTS}' for stage in STAGES)
    return tuple(_status(f'{path}/{part}') for part in parts)


def _status(path: str | Path) -> tuple[int, int, int] | None:
    try:
        status = os.stat(path)
    except OSError:
        return None
    return status.st_mtime_ns, status.st_size, status.st_ino


def working_in(path: Path) -> lock.Holder | None:
    """Returns the process that works in a run's folder; None if none does, or the one that did was killed.

    A process on another machine, which shares the disk, cannot be seen and counts as one that works.
    """
    holder = lock.holder(path)
    if holder is None or holder.host != socket.gethostname():
        return holder
    try:
        process = psutil.Process(holder.pid)
        alive = process.status() != psutil.STATUS_ZOMBIE and process.create_time() <= holder.since + _CLOCKS
    except psutil.Error:
        alive = False
    return holder if alive else None


def _work(settings: DreamBoothConfig, stage: str) -> tuple[Any, ...]:
    """Returns the settings that a step's time depends on."""
    of_stage = getattr(settings, stage)
    names = ('batch_size', 'gradient_accumulation_steps', 'train_text_encoder', 'crop')
    own = tuple(getattr(of_stage, name, None) for name in names)
    shared = settings.model, settings.super_resolution_model, settings.data.resolution, settings.lora, settings.parallel
    return *own, *shared, settings.optimizer, settings.has_teacher(stage), settings.examples_per_step(stage)


def _caught(path: Path) -> DreamBoothConfig | ConfigError:
    try:
        return settings_of(path)
    except ConfigError as error:
        return error


def _read_json(path: Path) -> dict[str, Any] | None:
    try:
        found = json.loads(path.read_text('utf-8'))
    except (OSError, ValueError):
        return None
    return found if isinstance(found, dict) else None


def _time(path: Path) -> float:
    try:
        return path.stat().st_mtime
    except OSError:
        return 0.0
