"""Requests for images of a run's models, on disk: asked for by the server or a user, answered by the program generate.

    <run>/generated/000003/request.json      what is asked for; written once
    <run>/generated/000003/status.json       how far it is; written by whoever answers
    <run>/generated/000003/cancel            it is not wanted any more
    <run>/generated/000003/<model>/          the images of one model, as sample writes them (sample_files.py)
    <run>/generated/000003/grid.png          all of them, a row for each prompt, a column for each model
    <run>/generated/give_way                 somebody else waits for the devices: requests that were asked for later
                                             than the time in this file, in seconds since 1970, are left for later
    <run>/generated/.lock                    the process that answers

Whoever is killed leaves a request that says it is running while nobody answers; it is taken again, and images that are
there stay. It needs no JAX.
"""

import contextlib
import dataclasses
import json
import re
import shutil
import time
from pathlib import Path
from typing import Any

from dreambooth_jax.config import ConfigError, Sampler
from dreambooth_jax.config.schema import Config, setting
from dreambooth_jax.generation.options import SamplingOptions
from dreambooth_jax.system import disk

FOLDER = 'generated'
QUEUED, RUNNING, DONE, FAILED, CANCELLED = STATES = ('queued', 'running', 'done', 'failed', 'cancelled')
MODEL, BASE_MODEL = 'model', 'base_model'  # names of models; other names are steps of checkpoints
GRID = 'grid.png'
MOST_PROMPTS, MOST_MODELS, MOST_IMAGES, LONGEST_PROMPT = 16, 8, 256, 1000
_REQUEST, _STATUS, _CANCEL, _GIVE_WAY = 'request.json', 'status.json', 'cancel', 'give_way'
_IMAGE = re.compile(r'\d{3}_\d{2}\.png')
_CONTROL = re.compile('[\x00-\x1f\x7f-\x9f]')
_NUMBER = re.compile('[0-9]{6}')  # of a folder
_STEP = re.compile(r'[0-9]{1,9}')


@dataclasses.dataclass(frozen=True, kw_only=True)
class Request(Config):
    """Images that are asked for. Sampling options that are None are those of the run's settings `samples`.

    Raises:
      ConfigError: if a value is not allowed.
    """

    # What to generate, one image or more of each.
    prompts: tuple[str, ...]
    # Whose images: `model`, what the run has trained; `base_model`, what it began with; or the step of a checkpoint.
    models: tuple[str, ...]
    # Images per prompt and model.
    num_images: int = setting(1, 'in [1, 16]')
    # Of the noise; image j of every prompt and model starts from the same.
    seed: int = setting(0, 'in [0, 4294967295]')
    # What guidance leads away from.
    negative_prompt: str = ''
    # Denoising steps.
    steps: int | None = setting(None, 'in [1, 1000]')
    # Classifier-free guidance; 1 is none.
    guidance_scale: float | None = setting(None, 'in [1, 100]')
    sampler: Sampler | None = None
    # Images generated at once.
    batch_size: int | None = setting(None, 'in [1, 64]')
    # False leaves the second stage out.
    super_resolution: bool = True
    # Denoising steps of the second stage.
    super_resolution_steps: int | None = setting(None, 'in [1, 1000]')
    # Guidance of the second stage.
    super_resolution_guidance_scale: float | None = setting(None, 'in [1, 100]')
    # Noise put on the image that the second stage enlarges.
    noise_level: int | None = setting(None, 'in [0, 999]')

    def __post_init__(self):
        super().__post_init__()
        for name, most in (('prompts', MOST_PROMPTS), ('models', MOST_MODELS)):
            if not 1 <= len(getattr(self, name)) <= most:
                raise ConfigError(f'{name} has {len(getattr(self, name))} entries but must have 1 to {most}')
        for index, text in enumerate((*self.prompts, self.negative_prompt)):
            name = f'prompts[{index}]' if index < len(self.prompts) else 'negative_prompt'
            if len(text) > LONGEST_PROMPT:
                raise ConfigError(f'{name} has {len(text)} characters but may have {LONGEST_PROMPT}; shorten it')
            if _CONTROL.search(text):
                raise ConfigError(f'{name} is {text[:40]!r}, which holds a line break or another control character')
        for name in self.models:
            if name not in (MODEL, BASE_MODEL) and not _STEP.fullmatch(name):
                raise ConfigError(
                    f"models holds {name[:40]!r} but may hold '{MODEL}', '{BASE_MODEL}' and steps of checkpoints"
                )
        if len({*self.models}) < len(self.models):
            raise ConfigError('models names a model twice; name each once')
        if self.total > MOST_IMAGES:
            raise ConfigError(
                f'{len(self.prompts)} prompts x {len(self.models)} models x {self.num_images} images are {self.total} '
                f'images but a request may be for {MOST_IMAGES}; ask for fewer'
            )

    @property
    def total(self) -> int:
        """The number of images of all models together."""
        return len(self.prompts) * len(self.models) * self.num_images

    @property
    def given(self) -> dict[str, Any]:
        """The sampling options that are given, by their names in SamplingOptions."""
        names = [field.name for field in dataclasses.fields(SamplingOptions)]
        return {name: value for name in names if (value := getattr(self, name)) is not None}


@dataclasses.dataclass(frozen=True, kw_only=True)
class Status:
    """How far a request is.

    Attributes:
      state: QUEUED, RUNNING, DONE, FAILED or CANCELLED.
      doing: what is done for it now, in words.
      taken: when it was last taken, in seconds since 1970; None: it was not.
      done: how many images there are.
      message: why it failed; None: it has not.
      options: the sampling options with which it is answered; {}: not known yet.
      origins: model -> lines of text that say where the weights of each stage come from.
    """

    state: str = QUEUED
    doing: str = ''
    taken: float | None = None
    done: int = 0
    message: str | None = None
    options: dict[str, Any] = dataclasses.field(default_factory=dict)
    origins: dict[str, list[str]] = dataclasses.field(default_factory=dict)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Asked:
    """A request as its folder is now.

    Attributes:
      number: its number among those of the run.
      folder: its folder.
      asked: when it was asked for, in seconds since 1970.
      request: what is asked for; None: the file is damaged, and `status` says so.
      status: how far it is.
      cancel: whether it is not wanted any more.
    """

    number: int
    folder: Path
    asked: float
    request: Request | None
    status: Status
    cancel: bool

    @property
    def is_open(self) -> bool:
        """Whether it is not answered yet."""
        return self.status.state in (QUEUED, RUNNING)

    def images(self) -> dict[str, dict[str, Path]]:
        """Returns model -> name, such as '000_01' for prompt 0 and image 1 -> the image; those that are there."""
        found = {}
        for model in self.request.models if self.request else ():
            files = sorted((self.folder / model).glob('*.png'))
            found[model] = {file.stem: file for file in files if _IMAGE.fullmatch(file.name)}
        return found


class RequestQueue:
    """The requests of one run.

    Args:
      run: the run's folder.

    Attributes:
      folder: the folder of the requests; it need not exist.
    """

    def __init__(self, run: Path):
        self.folder = run / FOLDER

    def add(self, request: Request) -> Asked:
        """Adds a request at the end.

        Raises:
          OSError: if the disk does not take it.
        """
        self.folder.mkdir(exist_ok=True)
        while True:
            taken = [int(path.name) for path in self.folder.glob('[0-9]*') if _NUMBER.fullmatch(path.name)]
            number = max(taken, default=0) + 1
            folder = self.folder / f'{number:06d}'
            with contextlib.suppress(FileExistsError):  # somebody else adds one at this moment
                folder.mkdir()
                break
        content = {'asked': time.time(), **dataclasses.asdict(request)}
        with disk.writing(folder / _REQUEST) as new:
            new.write_text(json.dumps(content, indent=1) + '\n', 'utf-8')
        return self._read(number, folder)

    def all(self) -> list[Asked]:
        """Returns all requests in their order."""
        return [self._read(number, path) for number, path in sorted(self._folders().items())]

    def find(self, number: int) -> Asked | None:
        """Returns the request of that number; None if there is none."""
        folder = self._folders().get(number)
        return None if folder is None else self._read(number, folder)

    def open(self) -> list[Asked]:
        """Returns the requests that are not answered yet in their order."""
        return [asked for asked in self.all() if asked.is_open]

    def cancel(self, number: int) -> None:
        """Says that a request is not wanted any more: whoever answers it stops after the images at hand."""
        (self._folders()[number] / _CANCEL).touch()

    def remove(self, number: int) -> None:
        """Removes a request and its images."""
        folder = self._folders()[number]
        with contextlib.suppress(FileNotFoundError):  # without this file it is no request any more
            (folder / _REQUEST).unlink()
        shutil.rmtree(folder, ignore_errors=True)

    def take(self) -> Asked | None:
        """Returns the next request to answer, which is RUNNING from now on; None if there is none.

        Requests that are not wanted any more are CANCELLED. The caller holds the lock of the folder.
        """
        until = self._until()
        for asked in self.open():
            if asked.cancel:
                self.write(asked, state=CANCELLED, doing='')
            elif until is None or asked.asked <= until:
                return self.write(asked, state=RUNNING, taken=time.time(), message=None)
        return None

    def write(self, asked: Asked, **changed: Any) -> Asked:
        """Writes the status of a request with changes, and returns the request with it.

        Raises:
          OSError: if the disk does not take it.
        """
        status = dataclasses.replace(asked.status, **changed)
        with disk.writing(asked.folder / _STATUS) as new:
            new.write_text(json.dumps(dataclasses.asdict(status), indent=1) + '\n', 'utf-8')
        return dataclasses.replace(asked, status=status)

    def is_cancelled(self, asked: Asked) -> bool:
        """Returns whether a request is not wanted any more, as its folder is now."""
        return (asked.folder / _CANCEL).exists() or not (asked.folder / _REQUEST).exists()

    def give_way(self, asked: float | None) -> None:
        """Says that somebody else waits for the devices.

        Args:
          asked: since when, in seconds since 1970; requests of before are still answered. None: nobody waits.
        """
        path = self.folder / _GIVE_WAY
        if asked is None:
            path.unlink(missing_ok=True)
        elif self._until() != asked:
            with disk.writing(path) as new:
                new.write_text(f'{asked!r}\n')

    @property
    def gives_way(self) -> bool:
        """Whether somebody else waits for the devices."""
        return self._until() is not None

    def _until(self) -> float | None:
        try:
            return float((self.folder / _GIVE_WAY).read_text())
        except (OSError, ValueError):
            return None

    def _folders(self) -> dict[int, Path]:
        try:
            found = list(self.folder.iterdir())
        except OSError:
            return {}
        there = [path for path in found if _NUMBER.fullmatch(path.name) and (path / _REQUEST).is_file()]
        return {int(path.name): path for path in there}

    def _read(self, number: int, folder: Path) -> Asked:
        path, request, asked, status = folder / _REQUEST, None, 0.0, _status(folder)
        try:
            values = json.loads(path.read_text('utf-8'))
            asked = float(values.pop('asked'))
            request = Request(**values)
        except (OSError, ValueError, TypeError, KeyError, AttributeError, ConfigError) as error:
            status = Status(state=FAILED, message=f'{path} is damaged: {error}')
        return Asked(
            number=number,
            folder=folder,
            asked=asked,
            request=request,
            status=status,
            cancel=(folder / _CANCEL).exists(),
        )


def _status(folder: Path) -> Status:
    try:
        found = Status(**json.loads((folder / _STATUS).read_text('utf-8')))
        return found if found.state in STATES else Status()
    except (OSError, ValueError, TypeError):
        return Status()
