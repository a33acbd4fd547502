"""The queue of processes, on disk: one at a time for each set of devices, first come, first served.

A job is one of the project's programs with the command line that a user would type. Its process has a session of its
own, so that it goes on when the server ends or is killed; a server that starts again finds it by its number, its time
of start and its command line, so that another process with the same number is not taken for it. What it prints is
added to <run>/<program>.log.

    <folder>/000012.json   one job; written as a whole, by one server at a time
"""

import contextlib
import dataclasses
import datetime
import json
import logging
import os
import shlex
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import psutil

from dreambooth_jax.system import disk
from dreambooth_jax.web.devices import ALL, DeviceSet, named

QUEUED, RUNNING, ENDED = 'queued', 'running', 'ended'
ACCELERATORS, HOST = 'accelerators', 'host'  # kinds of devices
_ENVIRONMENT = {ACCELERATORS: {}, HOST: {'JAX_PLATFORMS': 'cpu'}}  # else it would take the others from a training
_LOOK_EVERY = 0.3  # seconds
_CLOCKS = 60.0  # seconds by which the time of a process's start may seem to change when the clock is set


@dataclasses.dataclass(frozen=True, kw_only=True)
class Job:
    """A process that is to run, runs, or has ended.

    Attributes:
      number: its place in the order.
      run: the run that it is for.
      program: such as 'train'.
      arguments: its flags.
      devices: what it uses, ACCELERATORS or HOST.
      on: the set of accelerators that its process has, by name (devices.py); None: it has not begun, or has all.
      state: QUEUED, RUNNING or ENDED.
      asked: when it was asked for, in seconds since 1970.
      pid, started: number of its process and when that was started; None before.
      code: its exit code; None: it has not ended, or ended while no server was there to see it.
    """

    number: int
    run: str
    program: str
    arguments: list[str]
    devices: str = ACCELERATORS
    on: str | None = None
    state: str = QUEUED
    asked: float
    pid: int | None = None
    started: float | None = None
    code: int | None = None

    @property
    def command(self) -> list[str]:
        """The command line as it is run."""
        return [sys.executable, '-m', f'dreambooth_jax.{self.program}', *self.arguments]


class Queue:
    """The jobs of one folder of runs.

    Args:
      folder: has a file for each job.
      folder_of: name of a run -> its folder, which gets the log.
      busy: returns the run in which a process works that is not of this queue, and for which jobs on the accelerators
        wait; None if there is none.
      sets: the sets of accelerators, no device in two of them. One job at a time uses each, and one the host's CPU.

    Attributes:
      sets: those.
      waits_for: the run of `busy`, if a job waits for it; else None.
    """

    def __init__(
        self,
        folder: Path,
        folder_of: Callable[[str], Path],
        busy: Callable[[], str | None] = lambda: None,
        sets: Sequence[DeviceSet] = (ALL,),
    ):
        self._folder, self._folder_of, self._busy, self.sets = folder, folder_of, busy, tuple(sets)
        self._lock, self._ended = threading.RLock(), threading.Event()
        self._processes: dict[int, subprocess.Popen] = {}  # by the job's number; those that this server has started
        self.waits_for: str | None = None
        folder.mkdir(parents=True, exist_ok=True)
        self._jobs: dict[int, Job] = {}
        for path in sorted(folder.glob('*.json')):
            try:
                job = Job(**json.loads(path.read_text('utf-8')))
            except (OSError, ValueError, TypeError):
                logging.warning('%s is damaged and left out', path)
                continue
            self._jobs[job.number] = job

    def all(self) -> list[Job]:
        """Returns all jobs in their order."""
        with self._lock:
            return [self._jobs[number] for number in sorted(self._jobs)]

    def of(self, run: str) -> list[Job]:
        """Returns the jobs of a run in their order."""
        return [job for job in self.all() if job.run == run]

    def active(self, run: str, program: str = 'train') -> Job | None:
        """Returns the job of a run that is queued or runs; None if there is none."""
        found = (job for job in self.of(run) if job.program == program and job.state != ENDED)
        return next(found, None)

    def idle_set(self) -> DeviceSet | None:
        """Returns a set of accelerators on which nothing works; None if there is none.

        A process that is not of this queue may have any of them.
        """
        return None if self._busy() is not None else self.free_set()

    def free_set(self) -> DeviceSet | None:
        """Returns a set of accelerators on which no job of this queue runs; None if there is none."""
        return self._free([named(job.on) for job in self.all() if job.state == RUNNING and job.devices == ACCELERATORS])

    def add(self, run: str, program: str, arguments: Sequence[str], devices: str = ACCELERATORS) -> Job:
        """Adds a job at the end of the queue.

        Raises:
          OSError: if the disk does not take it.
        """
        with self._lock:
            number = max(self._jobs, default=0) + 1
            job = Job(
                number=number,
                run=run,
                program=program,
                arguments=list(arguments),
                devices=devices,
                asked=time.time(),
            )
            self._keep(job)
            return job

    def stop(self, job: Job) -> None:
        """Takes a job out of the queue, or asks its process to end (SIGTERM), which a training answers by saving."""
        with self._lock:
            job = self._jobs[job.number]
            if job.state == QUEUED:
                self._keep(dataclasses.replace(job, state=ENDED))
            elif job.state == RUNNING and (process := self._process(job)):
                with contextlib.suppress(psutil.Error):
                    process.send_signal(signal.SIGTERM)

    def look(self) -> None:
        """Notes which jobs have ended, and starts those whose turn it is."""
        with self._lock:
            for job in self.all():
                if job.state == RUNNING:
                    self._note_end(job)
            self.waits_for = None
            running = [job for job in self.all() if job.state == RUNNING]
            on_host = any(job.devices == HOST for job in running)
            training = [job for job in running if job.devices == ACCELERATORS]
            taken, runs = [named(job.on) for job in training], {job.run for job in training}
            for job in self.all():
                if job.state != QUEUED:
                    continue
                if job.devices == HOST:
                    if not on_host:
                        self._start(job)
                    on_host = True
                    continue
                free = self._free(taken)
                if free is None or job.run in runs:  # two processes of one run would be in each other's way
                    continue
                taken.append(free)
                runs.add(job.run)
                if other := self._busy():
                    self.waits_for = other
                    continue
                self._start(job, free)

    def watch(self, before: Callable[[], None] = lambda: None) -> threading.Thread:
        """Looks again and again, in a thread, until `close`.

        Args:
          before: called before each look.
        """

        def work():
            while not self._ended.wait(_LOOK_EVERY):
                try:
                    before()
                    self.look()
                except Exception:  # a full disk, say: the thread must live, or nothing would ever be started again
                    logging.exception('the queue could not be read or written')

        thread = threading.Thread(target=work, name='queue', daemon=True)
        thread.start()
        return thread

    def close(self) -> None:
        """Ends the thread; processes go on."""
        self._ended.set()

    def _free(self, taken: Sequence[DeviceSet]) -> DeviceSet | None:
        return next((one for one in self.sets if not any(map(one.overlaps, taken))), None)

    def _start(self, job: Job, devices: DeviceSet = ALL) -> None:
        folder = self._folder_of(job.run)
        folder.mkdir(parents=True, exist_ok=True)
        now = datetime.datetime.now().isoformat(' ', 'seconds')
        with open(folder / f'{job.program}.log', 'ab') as log:
            log.write(f'--- {now}: {typed(job)}\n'.encode(errors='backslashreplace'))
            log.flush()
            process = subprocess.Popen(
                job.command,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                env={**os.environ, **_ENVIRONMENT[job.devices], **devices.environment()},
                start_new_session=True,  # or a Ctrl-C for the server would reach it
            )
        self._processes[job.number] = process
        started = time.time()
        with contextlib.suppress(psutil.Error):
            started = psutil.Process(process.pid).create_time()
        self._keep(dataclasses.replace(job, state=RUNNING, on=devices.name or None, pid=process.pid, started=started))

    def _note_end(self, job: Job) -> None:
        if process := self._processes.get(job.number):
            if process.poll() is None:
                return
            del self._processes[job.number]
            self._keep(dataclasses.replace(job, state=ENDED, code=process.returncode))
        elif self._process(job) is None:
            self._keep(dataclasses.replace(job, state=ENDED))

    def _process(self, job: Job) -> psutil.Process | None:
        """Returns a job's process, if it is there and is the one that was started."""
        try:
            process = psutil.Process(job.pid)
            if process.status() == psutil.STATUS_ZOMBIE or abs(process.create_time() - job.started) > _CLOCKS:
                return None
            command = process.cmdline()  # Linux tells none for a moment while the process begins
            return process if not command or command[-len(job.arguments) :] == job.arguments else None
        except psutil.Error:
            return None

    def _keep(self, job: Job) -> None:
        with disk.writing(self._folder / f'{job.number:06d}.json') as new:
            new.write_text(json.dumps(dataclasses.asdict(job), indent=1) + '\n', 'utf-8')
        self._jobs[job.number] = job


def typed(job: Job) -> str:
    """Returns a job's command line as a user would type it."""
    return typed_command(job.program, job.arguments)


def typed_command(program: str, arguments: Sequence[str]) -> str:
    """Returns the command line of one of the project's programs as a user would type it in a shell."""
    quoted = []
    for argument in arguments:
        name, equals, value = argument.partition('=')
        quoted.append(name + equals + shlex.quote(value) if value else argument)
    return ' '.join(['python', '-m', f'dreambooth_jax.{program}', *quoted])


def log_tail(folder: Path, program: str, lines: int = 30) -> list[str]:
    """Returns the last lines that a program has printed for a run; of a line that is written over, as it is now."""
    try:
        with open(folder / f'{program}.log', 'rb') as file:
            file.seek(max(file.seek(0, os.SEEK_END) - 65_536, 0))
            text = file.read().decode('utf-8', 'replace')
    except OSError:
        return []
    shown = (line.rstrip('\r').rpartition('\r')[2].rstrip() for line in text.split('\n'))
    return [line for line in shown if line][-lines:]
