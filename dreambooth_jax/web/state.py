"""What the server works with, and what can be asked of runs: one object, which the API and the pages share.

Its own files are in the hidden folder .serve of the runs' folder: jobs/, photos/ and the token.
"""

import contextlib
import dataclasses
import threading
import typing
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from dreambooth_jax.config import ExportFormat
from dreambooth_jax.config.price import Price
from dreambooth_jax.training import control
from dreambooth_jax.web import commands, devices, jobs, runs
from dreambooth_jax.web.commands import Recipes, Wanted
from dreambooth_jax.web.devices import DeviceSet
from dreambooth_jax.web.generations import Generations
from dreambooth_jax.web.jobs import Job, Queue
from dreambooth_jax.web.photos import Photos
from dreambooth_jax.web.refused import Refused
from dreambooth_jax.web.runs import Run, Runs

FOLDER = '.serve'
EXPORTS = 'exports'
FORMATS = typing.get_args(ExportFormat)
DTYPES = ('float32', 'float16', 'bfloat16')
_BY_SIGNAL = (-15, -2, 143, 130)  # exit codes of a process that was asked to end


@dataclasses.dataclass(frozen=True, kw_only=True)
class View:
    """A run as it is shown: its folder, and its jobs in the queue.

    Attributes:
      id, doing, asked, progress, model, prompt, photos, error, changed: as of runs.Run.
      state: as there, or 'queued', 'starting' or 'failed'.
      place: its place in the queue, from 1; None: it is not queued.
      devices: the accelerators that its training has, such as '0,1' (serve's --devices); None: all, or none runs.
      message: what its last process said at its end, if it failed.
      actions: what can be asked of it now.
      command: the command line of its last process; None: it was not started here.
    """

    id: str
    state: str
    doing: str
    asked: list[str]
    progress: runs.Progress
    model: str | None
    prompt: str | None
    photos: str | None
    error: str | None
    changed: float
    place: int | None
    devices: str | None
    message: str | None
    actions: list[str]
    command: str | None


class Desk:
    """The runs, the queue, the photos, the settings files and the requests for images of one server.

    Args:
      folder: the folder of the runs.
      configs: the folder of the settings files.
      price: of an hour of this machine, for plans; None: they say nothing of it.
      sets: the sets of accelerators, as of jobs.Queue.
    """

    def __init__(
        self, folder: Path, configs: Path, price: Price | None = None, sets: Sequence[DeviceSet] = (devices.ALL,)
    ):
        self.folder, self.price = folder.absolute(), price
        own = self.folder / FOLDER
        own.mkdir(parents=True, exist_ok=True)
        self.runs, self.photos, self.recipes = Runs(self.folder), Photos(own / 'photos'), Recipes(configs)
        self.queue = Queue(own / 'jobs', lambda run: self.folder / run, self._works_by_hand, sets)
        self.generations = Generations(self.runs, self.queue, self._works_by_hand, shown)
        self._making = threading.Lock()

    def watch(self) -> threading.Thread:
        """Starts what is asked for when its turn comes, in a thread, until the queue is closed."""
        return self.queue.watch(self.generations.tend)

    def all(self) -> list[View]:
        """Returns all runs, those that were changed last first, and before them those that are not begun yet."""
        by_run: dict[str, list[Job]] = {}
        for job in self.queue.all():
            by_run.setdefault(job.run, []).append(job)
        there = self.runs.all()
        others = [name for name in by_run.keys() - {run.id for run in there} if self.runs.folder_of(name) is None]
        others.sort(key=lambda name: -by_run[name][-1].number)
        unbegun = [_unbegun(name, by_run[name][-1].asked) for name in others]
        return [self._view(run, by_run.get(run.id, [])) for run in [*unbegun, *there]]

    def view(self, name: str) -> View:
        """Returns a run.

        Raises:
          Refused: if there is none of that name.
        """
        run, of_it = self.runs.find(name), self.queue.of(name)
        if run is None and not of_it:
            raise Refused(f'there is no run {name!r}', 404)
        return self._view(run or _unbegun(name, of_it[-1].asked), of_it)

    def begun(self, name: str) -> View:
        """Returns a run that has a folder with its settings.

        Raises:
          Refused: if there is none of that name, or it is not begun yet.
        """
        view = self.view(name)
        self._check_begun(name)
        return view

    def wanted(self, recipe: str, model: str, settings: Mapping[str, Any], photos: str | None) -> Wanted:
        """Returns what a new run is to be, checked as train checks it.

        Args:
          recipe, model, settings: as of commands.Wanted.
          photos: a folder of uploaded photos, which becomes data.instance_dir; None: the settings say it.

        Raises:
          ConfigError: if settings are not known, not allowed or incomplete.
          PhotoError: if there are no such photos.
        """
        settings = dict(settings)
        if photos is not None:
            settings['data.instance_dir'] = str(self.photos.folder(photos))
        wanted = Wanted(recipe=recipe, model=model, settings=settings)
        self.recipes.checked(wanted)
        return wanted

    def new(self, name: str, wanted: Wanted) -> View:
        """Queues a new run.

        Args:
          name: the name of its folder.
          wanted: what it is to be, from `wanted`.

        Raises:
          Refused: if the name cannot be one, or is taken.
        """
        if not runs.NAME.fullmatch(name):
            raise Refused(f'{name!r} cannot name a run; take up to 64 letters, digits, -, _ and .', 422)
        with self._making:
            folder = self.folder / name
            others = [path for path in folder.iterdir() if path.suffix != '.log'] if folder.is_dir() else []
            if others or (folder.exists() and not folder.is_dir()) or self.queue.active(name):
                raise Refused(f'there is a run or a file {name!r} already; take another name')
            self.queue.add(name, 'train', self.recipes.arguments(wanted, shown(folder)))
        return self.view(name)

    def ask(self, name: str, what: str) -> View:
        """Asks a run for something.

        Args:
          what: 'pause', 'resume', 'sample', 'save', 'stop' or 'start'.

        Raises:
          Refused: if it is not there, or not in a state for it.
        """
        view = self.view(name)
        if what not in view.actions:
            can = ', '.join(view.actions) or 'nothing'
            raise Refused(f'the run {name} is {view.state}, so it cannot {what}; it can be asked for: {can}')
        job = self.queue.active(name)
        folder = self.folder / name / control.FOLDER
        if what == 'start':
            self.queue.add(name, 'train', self._again(name))
        elif what == 'resume':
            (folder / control.PAUSE).unlink(missing_ok=True)
        elif what == 'stop' and job is not None:
            # A signal, since class images are generated before anybody looks for files.
            self.queue.stop(job)
        else:
            folder.mkdir(exist_ok=True)
            (folder / what).touch()
        return self.view(name)

    def extend(self, name: str, steps: int) -> View:
        """Queues more steps for a finished run.

        Raises:
          Refused: if it is not there, or not finished.
        """
        view = self.begun(name)
        if 'extend' not in view.actions:
            raise Refused(f'the run {name} is {view.state}, and only a finished one can be extended')
        self.queue.add(name, 'train', commands.again(shown(self.folder / name), f'--extend={steps}'))
        return self.view(name)

    def export(self, name: str, format: str, dtype: str, step: int | None) -> Job:
        """Queues an export of a run, which the CPU does, into its folder exports/.

        Raises:
          Refused: if the run is not there, has nothing to export, or the same is being exported.
        """
        view = self.begun(name)
        if 'export' not in view.actions:
            raise Refused(f'the run {name} has no checkpoint yet, so there is nothing to export')
        made = '-'.join(
            [name, format, *([] if step is None else [str(step)]), *([dtype] if dtype != DTYPES[0] else [])]
        )
        output = self.folder / name / EXPORTS / (made if format == 'diffusers' else f'{made}.safetensors')
        arguments = [f'--workdir={shown(self.folder / name)}', f'--format={format}', f'--output={shown(output)}']
        arguments += [f'--dtype={dtype}'] + ([] if step is None else [f'--step={step}'])
        with self._making:
            if any(job.arguments == arguments for job in self.queue.of(name) if job.state != jobs.ENDED):
                raise Refused(f'{output.name} is being exported already')
            output.parent.mkdir(exist_ok=True)
            return self.queue.add(name, 'export', arguments, jobs.HOST)

    def downloads(self, name: str) -> dict[str, Path]:
        """Returns what can be downloaded of a run: the trained model, and what was exported. Name -> file or folder.

        Raises:
          Refused: if there is no such run.
        """
        self._check_begun(name)
        folder = self.folder / name
        being_written = {
            argument.rpartition('/')[2]
            for job in self.queue.of(name)
            if job.program == 'export' and job.state == jobs.RUNNING
            for argument in job.arguments
        }
        found = {}
        if (folder / runs.MODEL_INDEX).is_file():
            found['model'] = folder / 'model'
        with contextlib.suppress(OSError):
            for path in sorted((folder / EXPORTS).iterdir()):
                if not path.name.startswith('.') and path.name not in being_written:
                    found[path.name] = path
        return found

    def jobs_of(self, name: str, program: str) -> list[Job]:
        """Returns the jobs of a run that run one program, the last one first."""
        return [job for job in reversed(self.queue.of(name)) if job.program == program]

    def _check_begun(self, name: str) -> None:
        if self.runs.folder_of(name) is None:
            self.view(name)  # raises if there is none of that name
            raise Refused(f'the run {name} is not begun yet', 404)

    def _again(self, name: str) -> list[str]:
        if self.runs.folder_of(name) is not None:
            return commands.again(shown(self.folder / name))
        return self.jobs_of(name, 'train')[0].arguments

    def _works_by_hand(self) -> str | None:
        """Returns a run in which a process works that the queue did not start; such a one has the devices."""
        for name, path in self.runs.folders().items():
            ours = any(job.state == jobs.RUNNING for job in self.jobs_of(name, 'train'))
            if not ours and runs.working_in(path):
                return name
        return None

    def _view(self, run: Run, of_it: list[Job]) -> View:
        trained = [job for job in of_it if job.program == 'train']
        job = trained[-1] if trained else None
        state, doing, message = run.state, run.doing, None
        if not run.works and job is not None:
            if job.state == jobs.QUEUED:
                state, doing = 'queued', self._waiting()
            elif job.state == jobs.RUNNING:
                state, doing = 'starting', 'starts'
            elif state == 'stopped' and job.code not in (0, None, *_BY_SIGNAL):
                state = 'failed'
                message = next(iter(jobs.log_tail(self.folder / run.id, 'train', 1)), None)
        place = None
        if state == 'queued':
            waiting = [one.number for one in self.queue.all() if one.state == jobs.QUEUED and one.program == 'train']
            place = waiting.index(job.number) + 1 if job.number in waiting else None
        fields = {one.name: getattr(run, one.name) for one in dataclasses.fields(View) if hasattr(run, one.name)}
        on = job.on if job is not None and job.state == jobs.RUNNING else None
        fields |= {'state': state, 'doing': doing, 'place': place, 'devices': on, 'message': message}
        return View(**fields, actions=self._actions(run, state, job), command=jobs.typed(job) if job else None)

    def _waiting(self) -> str:
        if self.queue.waits_for:
            return f'waits for {self.queue.waits_for}'
        sets = [one.name for one in self.queue.sets if one.numbers]
        return f'waits for accelerators {" or ".join(sets)}' if sets else 'waits for its turn'

    def _actions(self, run: Run, state: str, job: Job | None) -> list[str]:
        found = {
            'queued': ['stop'],
            'starting': ['stop'],
            'running': ['pause', 'sample', 'save', 'stop'],
            'paused': ['resume', 'sample', 'save', 'stop'],
            'finished': ['extend'],
        }.get(state, ['start'])
        if state == 'running' and control.PAUSE in run.asked:
            found = ['resume', *found[1:]]
        if run.error is not None and not run.works:
            found = [] if state != 'queued' else found
        if run.has_weights:
            found = [*found, 'export']
        return found


def shown(path: Path) -> Path:
    """Returns a path from where the server runs, if it lies below, as a user would type it."""
    return path.relative_to(Path.cwd()) if path.is_relative_to(Path.cwd()) else path


def files_below(path: Path) -> Iterator[tuple[str, Path]]:
    """Yields name -> file of everything in a folder that is downloaded as one."""
    for file in sorted(path.rglob('*')):
        if file.is_file() and not file.is_symlink():
            yield f'{path.name}/{file.relative_to(path).as_posix()}', file


def _unbegun(name: str, asked: float) -> Run:
    nothing = runs.Progress(stage=None, step=0, steps=0, share=0.0, seconds_left=None, loss=None)
    return Run(
        id=name,
        state='stopped',
        doing='',
        asked=[],
        progress=nothing,
        model=None,
        prompt=None,
        photos=None,
        error=None,
        has_weights=False,
        changed=asked,
    )
