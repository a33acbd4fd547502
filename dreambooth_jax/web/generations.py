"""Images of a run's models, asked for by its page or the API, and the processes that generate them.

A request is a folder of the run (generation/request_queue.py). As long as one is open, there is a job of the program
generate for its run in the queue of processes (jobs.py), which has the accelerators for itself like a training: it
waits for those that came before it. When it runs, it keeps the models loaded and answers what else is asked for,
until it is idle for some minutes, or a job or a run that was started by hand wants the accelerators.
"""

import contextlib
import dataclasses
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any
from urllib.parse import quote

from dreambooth_jax.generation import request_queue
from dreambooth_jax.generation.options import SamplingOptions
from dreambooth_jax.generation.request_queue import BASE_MODEL, MODEL, Asked, Request, RequestQueue
from dreambooth_jax.generation.run_settings import settings_of
from dreambooth_jax.web import jobs, runs
from dreambooth_jax.web.jobs import Job, Queue
from dreambooth_jax.web.refused import Refused
from dreambooth_jax.web.runs import Runs

PROGRAM = 'generate'
BEST = 'best'  # what may stand for the best or newest checkpoint in a request
MOST_OPEN = 32  # requests of a run that wait or are answered
_MOST_ENDS = 3  # bad ends of the process after which a request is not taken again
_NO_FAULT = (0, None, -15, -2, 143, 130)  # exit codes of a process that was idle, was asked to end, or was not seen


@dataclasses.dataclass(frozen=True)
class Choice:
    """A model of a run.

    Attributes:
      name: what a request calls it.
      words: what it is.
      is_best: whether it is the best checkpoint by its scores.
    """

    name: str
    words: str
    is_best: bool = False


@dataclasses.dataclass(frozen=True, kw_only=True)
class Generation:
    """A request for images as it is shown.

    Attributes:
      run, number: which one it is.
      asked: when it was asked for, in seconds since 1970.
      request: what is asked for, by the names of the fields of a request; {}: its file is damaged.
      state: 'queued', 'running', 'done', 'failed' or 'cancelled'.
      doing: what is done for it, or what it waits for, in words; '' if it is answered.
      done, total: images that are there, and all.
      message: why it failed; None: it has not.
      options: the sampling options with which it is answered; {}: not known yet.
      origins: model -> lines of text that say where the weights of each stage come from.
      images: model -> name, such as '000_01' for prompt 0 and image 1 -> the image's address.
      grid: the address of the sheet of all images; None: it is not there yet.
    """

    run: str
    number: int
    asked: float
    request: dict[str, Any]
    state: str
    doing: str
    done: int
    total: int
    message: str | None
    options: dict[str, Any]
    origins: dict[str, list[str]]
    images: dict[str, dict[str, str]]
    grid: str | None


class Generations:
    """The requests for images of all runs.

    Args:
      runs: the runs.
      queue: the queue of processes.
      busy: returns the run in which a process works that is not of the queue; None if there is none.
      shown: path -> the path as a user would type it.
    """

    def __init__(self, runs: Runs, queue: Queue, busy: Callable[[], str | None], shown: Callable[[Path], Path]):
        self._runs, self._queue, self._busy, self._shown = runs, queue, busy, shown
        self._open: set[str] | None = None  # runs with open requests; None: nobody has looked yet

    def choices(self, run: str) -> list[Choice]:
        """Returns the models of a run that is there, the trained one or the best first, the base model last."""
        folder, best = self._runs.folder_of(run), (self._runs.best(run) or {}).get('step')
        steps = next((found for stage in runs.STAGES if (found := runs.checkpoints(folder, stage))), [])
        found = [Choice(MODEL, 'the trained model')] if (folder / runs.MODEL_INDEX).is_file() else []
        checkpoints = [Choice(str(step), f'checkpoint {step}', step == best) for step in reversed(steps)]
        found += sorted(checkpoints, key=lambda one: not one.is_best)
        return [*found, Choice(BASE_MODEL, 'the base model')]

    def defaults(self, run: str) -> SamplingOptions | None:
        """Returns how images of a run are sampled where a request does not say it; None: as is usual for its model.

        Raises:
          ConfigError: if the settings of the run cannot be read.
        """
        settings = settings_of(str(self._runs.folder_of(run)))
        return SamplingOptions.of_samples(settings.samples, settings.super_resolution) if settings.has_samples else None

    def add(self, run: str, values: Mapping[str, Any]) -> Generation:
        """Asks for images of a run that is there.

        Args:
          values: fields of a request. Without models, those of the trained model or the best checkpoint are generated.

        Raises:
          Refused: if a model is not there, or too much is asked for already.
          ConfigError: if a value is not allowed, or the settings of the run cannot be read.
          OSError: if the disk does not take it.
        """
        self._runs.settings(run)
        choices = [one.name for one in self.choices(run)]
        newest = next((name for name in choices if name not in (MODEL, BASE_MODEL)), BEST)
        models = [newest if name == BEST else name for name in values.get('models') or choices[:1]]
        request = Request(**{**values, 'models': tuple(models)})
        for name in request.models:
            if name not in choices:
                raise Refused(f'the run {run} has no model {name!r}; it has: {", ".join(choices)}', 422)
        requests = self._requests(run)
        if len(requests.open()) >= MOST_OPEN:
            raise Refused(f'{MOST_OPEN} requests for images of {run} are open already; wait for one or cancel one')
        asked = requests.add(request)
        if self._open is not None:
            self._open.add(run)
        return self._shown_as(run, asked)

    def all(self, run: str) -> list[Generation]:
        """Returns the requests for images of a run that is there, the last one first."""
        return [self._shown_as(run, asked) for asked in reversed(self._requests(run).all())]

    def one(self, run: str, number: int) -> Generation:
        """Returns a request for images of a run that is there.

        Raises:
          Refused: if there is none of that number.
        """
        return self._shown_as(run, self._find(run, number))

    def cancel(self, run: str, number: int) -> Generation:
        """Cancels a request; images that are there stay.

        Raises:
          Refused: if there is none of that number, or it is not open.
        """
        asked = self._find(run, number)
        if not asked.is_open:
            raise Refused(f'request {number} of {run} is {asked.status.state}, so there is nothing to cancel')
        self._requests(run).cancel(number)
        return self.one(run, number)

    def remove(self, run: str, number: int) -> None:
        """Removes a request and its images.

        Raises:
          Refused: if there is none of that number, or it is still open.
        """
        if self._find(run, number).is_open:
            raise Refused(f'request {number} of {run} is not answered yet; cancel it first')
        self._requests(run).remove(number)

    def image(self, run: str, number: int, model: str, name: str) -> Path:
        """Returns the file of an image.

        Raises:
          Refused: if there is none.
        """
        path = self._find(run, number).images().get(model, {}).get(name)
        if path is None:
            raise Refused(f'request {number} of {run} has no image {name[:40]!r} of {model[:40]!r}', 404)
        return path

    def grid(self, run: str, number: int) -> Path:
        """Returns the file of the sheet of all images.

        Raises:
          Refused: if there is none.
        """
        path = self._find(run, number).folder / request_queue.GRID
        if not path.is_file():
            raise Refused(f'request {number} of {run} has no sheet yet', 404)
        return path

    def tend(self) -> None:
        """Sees to it that a process answers what is open, and gives way; called again and again by one thread."""
        if self._open is None:
            folders = self._runs.folders().items()
            self._open = {run for run, folder in folders if RequestQueue(folder).open()}
        for run in list(self._open):
            self._tend(run)
        running = [job for job in self._queue.all() if job.state == jobs.RUNNING]
        for job in running:
            if job.program == PROGRAM:
                self._give_way(job)

    def _tend(self, run: str) -> None:
        requests, job = self._requests(run), self._queue.active(run, PROGRAM)
        if job is not None and job.state == jobs.RUNNING:
            return
        if runs.working_in(requests.folder) is not None:  # started by hand
            return
        waiting = requests.open()
        for asked in waiting:  # nobody else would see it
            if asked.cancel:
                requests.write(asked, state=request_queue.CANCELLED, doing='')
        waiting = [asked for asked in waiting if not asked.cancel]
        if waiting and (blamed := self._blamed(run, waiting)) is not None:
            asked, why = blamed
            requests.write(asked, state=request_queue.FAILED, doing='', message=why)
        elif waiting and job is None:
            self._queue.add(run, PROGRAM, [f'--workdir={self._shown(requests.folder.parent)}'])
        elif not waiting:
            self._open.discard(run)
            if job is not None:
                self._queue.stop(job)

    def _blamed(self, run: str, waiting: Sequence[Asked]) -> tuple[Asked, str] | None:
        """Returns the request at which processes have ended badly, and how; None: the next process takes it."""
        asked = next((one for one in waiting if one.status.state == request_queue.RUNNING), waiting[0])
        ended = [job for job in self._queue.of(run) if job.program == PROGRAM and (job.started or 0) >= asked.asked]
        ended = [job for job in ended if job.code not in _NO_FAULT]
        if not ended or (ended[-1].code < 0 and len(ended) < _MOST_ENDS):
            return None
        folder, code = self._runs.folder / run, ended[-1].code
        if code < 0:
            return asked, f'the process that generates was ended by signal {-code} {len(ended)} times while it waited'
        return asked, next(iter(jobs.log_tail(folder, PROGRAM, 1)), f'generate ended with code {code}')

    def _give_way(self, job: Job) -> None:
        waiting = [one for one in self._queue.all() if one.state == jobs.QUEUED and one.devices == job.devices]
        if self._queue.free_set() is not None:  # all others begin there, but a training of this run waits for this job
            waiting = [one for one in waiting if one.run == job.run]
        since = min((one.asked for one in waiting), default=None)
        if since is None and self._busy() is not None:
            since = 0.0  # a training that was started by hand uses the devices now
        with contextlib.suppress(OSError):  # the run's folder is gone
            self._requests(job.run).give_way(since)

    def _requests(self, run: str) -> RequestQueue:
        return RequestQueue(self._runs.folder / run)

    def _find(self, run: str, number: int) -> Asked:
        asked = self._requests(run).find(number)
        if asked is None:
            raise Refused(f'the run {run} has no request {number} for images', 404)
        return asked

    def _shown_as(self, run: str, asked: Asked) -> Generation:
        request, status = asked.request, asked.status
        address = f'/api/runs/{quote(run)}/generate/{asked.number}'
        images = {
            model: {name: f'{address}/images/{model}/{name}' for name in found}
            for model, found in asked.images().items()
        }
        state, doing = status.state, ''
        if asked.is_open:
            job = self._queue.active(run, PROGRAM)
            works = job is not None and job.state == jobs.RUNNING
            works = works or runs.working_in(asked.folder.parent) is not None
            state = state if works else request_queue.QUEUED  # its process was killed, and another one comes
            doing = 'stops after the images at hand' if asked.cancel else self._doing(asked, job, works)
        return Generation(
            run=run,
            number=asked.number,
            asked=asked.asked,
            request={} if request is None else dataclasses.asdict(request),
            state=state,
            doing=doing,
            done=sum(map(len, images.values())),
            total=0 if request is None else request.total,
            message=status.message,
            options=status.options,
            origins=status.origins,
            images=images,
            grid=f'{address}/grid' if (asked.folder / request_queue.GRID).is_file() else None,
        )

    def _doing(self, asked: Asked, job: Job | None, works: bool) -> str:
        """Returns what is done for an open request, or what it waits for."""
        if asked.status.state == request_queue.RUNNING and works:
            return asked.status.doing
        if works:
            others = RequestQueue(asked.folder.parent.parent).open()
            before = next((one.number for one in others if one.status.state == request_queue.RUNNING), None)
            return 'starts' if before is None else f'waits for request {before}'
        if job is None:
            return 'waits for its turn'
        everything = [one for one in self._queue.all() if one.devices == job.devices]
        works = [one for one in everything if one.state == jobs.RUNNING]
        running = next((one for one in works if one.run == job.run), works[0] if works else None)
        queued = sum(one.state == jobs.QUEUED and one.number < job.number for one in everything)
        before = f', and {queued} more in the queue before it' if queued else ''
        if running is not None and running.program == PROGRAM:
            return f'waits until images of {running.run} are generated{before}'
        if running is not None:
            return f'waits for the accelerators until {running.run}, which trains, has ended{before}'
        if self._queue.waits_for is not None:
            by_hand = f'{self._queue.waits_for}, which was started by hand,'
            return f'waits for the accelerators until {by_hand} has ended{before}'
        return f'waits for its turn{before}'
