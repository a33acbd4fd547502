"""Answers requests for images of a run's models: the work of the program generate.

One request after the other, model by model and batch by batch; images are written as they come, and those that are
there already, of a request whose process was killed, stay: they depend only on the weights, the prompt, the seed and
their number.
"""

import dataclasses
import time
from collections.abc import Callable

import numpy as np
from absl import logging
from PIL import Image

from dreambooth_jax.data.content_credentials import Sign
from dreambooth_jax.finetune.run_models import RunModels
from dreambooth_jax.generation import request_queue, sample_files, signed_files
from dreambooth_jax.generation.origin import Origin
from dreambooth_jax.generation.request_queue import Asked, RequestQueue
from dreambooth_jax.monitoring import grids
from dreambooth_jax.training import memory

_LOOK_EVERY = 0.2  # seconds
_SIDE = 128  # pixels of an image on the sheet
_WORDS = {request_queue.MODEL: 'the trained model', request_queue.BASE_MODEL: 'the base model'}


class _CancelledError(Exception):
    """The request is not wanted any more."""


def answer_all(
    queue: RequestQueue,
    models: RunModels,
    idle_seconds: float,
    explained: Callable[[Exception], str | None] = lambda error: None,
) -> None:
    """Answers requests until none has come for a while, or somebody else waits for the devices.

    Args:
      queue: the requests; the caller holds the lock of its folder.
      models: the run's models.
      idle_seconds: how long a loaded model waits for the next request.
      explained: the sentence for the user about an error; None if it was not foreseen.

    Raises:
      OSError: if the disk does not take what is written about a request.
    """
    last = time.monotonic()
    while True:
        asked = queue.take()
        if asked is not None:
            answer(queue, asked, models, explained)
            last = time.monotonic()
        elif queue.gives_way or time.monotonic() - last > idle_seconds:
            return
        else:
            time.sleep(_LOOK_EVERY)


def answer(queue: RequestQueue, asked: Asked, models: RunModels, explained: Callable[[Exception], str | None]) -> Asked:
    """Generates what is asked for and returns the request with its last status, DONE, FAILED or CANCELLED.

    Arguments and errors are those of answer_all; an error of a request is its message.
    """
    changed = {'state': request_queue.DONE}
    try:
        # For each request anew, so that it is known before its images are generated that a certificate has expired.
        sign = signed_files.signer_of(models.settings.samples, 'start train again with both set to None')
        asked = _generate(queue, asked, models, sign)
        signed_files.write(_sheet(asked), asked.folder / request_queue.GRID, sign=sign)
    except _CancelledError:
        changed = {'state': request_queue.CANCELLED}
    except Exception as error:  # the next request may have none, so that the process goes on
        sentence = explained(error)
        if sentence is None:
            logging.exception('request %d', asked.number)
        models.forget()  # its memory may be what is missing
        message = sentence or f'{type(error).__name__}: {error}'.strip(': ')
        changed = {'state': request_queue.FAILED, 'message': message}
    if not asked.folder.is_dir():
        return asked  # it was removed meanwhile
    return queue.write(asked, doing='', done=_count(asked), **changed)


def _generate(queue: RequestQueue, asked: Asked, models: RunModels, sign: Sign | None) -> Asked:
    """Generates the images of all models; raises _CancelledError as soon as they are not wanted any more."""
    request = asked.request
    for name in request.models:
        _check_wanted(queue, asked)
        asked = queue.write(asked, doing=f'reads {_words(name)}', done=_count(asked))
        model = models.get(name)
        options = models.settings.options(model.cascade, request.given)
        told = {'options': dataclasses.asdict(options), 'origins': {**asked.status.origins, name: model.origins}}
        compiles = '' if model.cascade.programs else 'compiles and '
        asked = queue.write(asked, doing=f'{compiles}generates with {_words(name)}', **told)
        origin = Origin.of(model.cascade, options, models.metadata)
        trained = {stage: of._replace(name=model.title) for stage in model.stages if (of := getattr(origin, stage))}
        origin = dataclasses.replace(origin, **trained)
        there = asked.images()[name]
        places = [(prompt, number) for prompt in range(len(request.prompts)) for number in range(request.num_images)]
        places = [place for place in places if sample_files.image_name(*place).removesuffix('.png') not in there]
        if not places:
            continue
        smaller = ['a smaller batch_size'] if (options.batch_size or 2) > 1 else []
        with memory.explained('images are generated', smaller, kept=False):
            for span, images in model.cascade.stream(request.prompts, places, options):
                _check_wanted(queue, asked)
                written = [places[index] for index in span]
                folder = asked.folder / name
                sample_files.write_images(images, written, request.prompts, folder, origin, sign, step=model.step)
                asked = queue.write(asked, done=_count(asked))
    return asked


def _check_wanted(queue: RequestQueue, asked: Asked) -> None:
    if queue.is_cancelled(asked):
        raise _CancelledError


def _count(asked: Asked) -> int:
    return sum(map(len, asked.images().values()))


def _words(name: str) -> str:
    return _WORDS.get(name, f'checkpoint {name}')


def _sheet(asked: Asked) -> Image.Image:
    """Returns all images of a request: a row for each prompt, and for each model as many columns as it has images."""
    request, images = asked.request, asked.images()
    headings = [_words(name) for name in request.models for _ in range(request.num_images)]
    rows = [
        [
            np.asarray(Image.open(images[name][sample_files.image_name(prompt, number).removesuffix('.png')]))
            for name in request.models
            for number in range(request.num_images)
        ]
        for prompt in range(len(request.prompts))
    ]
    return grids.contact_sheet(rows, request.prompts, side=_SIDE, headings=headings)
