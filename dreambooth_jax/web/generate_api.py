"""The part of the API about images of a run's models: ask, list, look, cancel, fetch. Progress is asked for again.

Fields of a request are those of generation/request_queue.py, which checks them and has their documentation.
"""

import dataclasses
from typing import Any

from fastapi import APIRouter
from fastapi import Path as InPath
from fastapi.responses import FileResponse
from pydantic import BaseModel, ConfigDict, Field

from dreambooth_jax.config import Sampler
from dreambooth_jax.generation import request_queue
from dreambooth_jax.generation.request_queue import Request
from dreambooth_jax.web.answers import file, refusals
from dreambooth_jax.web.generations import Choice, Generation
from dreambooth_jax.web.image_metadata import Metadata, metadata_of
from dreambooth_jax.web.state import Desk

_ALLOWED = {field.name: field.metadata.get('allowed') for field in dataclasses.fields(Request)}
_KEEP = {'cache-control': 'private, max-age=86400, immutable'}  # an image never changes
# The number of a request of a run.
_Number = InPath(ge=1, le=999_999)


def _field(name: str, default: Any, description: str) -> Any:
    """Returns a field with its range in the description of the API; Request refuses other values in its own words."""
    limits = {}
    if allowed := _ALLOWED[name]:  # 'in [1, 16]'
        low, high = allowed.removeprefix('in [').removesuffix(']').split(', ')
        limits = {'minimum': float(low), 'maximum': float(high)}
    return Field(default, description=description, json_schema_extra=limits)


class Generate(BaseModel):
    """Images that are asked for. What is null is as in the run's settings `samples`."""

    model_config = ConfigDict(extra='forbid', strict=True)
    prompts: list[str] = Field(
        description='What to generate, at most '
        f'{request_queue.MOST_PROMPTS} prompts of at most {request_queue.LONGEST_PROMPT} characters.'
    )
    models: list[str] | None = Field(
        None,
        description=f'At most {request_queue.MOST_MODELS} of: model, what the run has trained; base_model, what it '
        'began with; the step of a checkpoint; best, the best or newest checkpoint. null: model, or best.',
    )
    num_images: int = _field('num_images', 1, 'Images per prompt and model.')
    seed: int = _field('seed', 0, 'Of the noise; image j of every prompt and model starts from the same.')
    negative_prompt: str = Field('', description='What guidance leads away from.')
    steps: int | None = _field('steps', None, 'Denoising steps.')
    guidance_scale: float | None = _field('guidance_scale', None, '1 is none.')
    sampler: Sampler | None = None
    batch_size: int | None = _field('batch_size', None, 'Images generated at once.')
    super_resolution: bool = Field(True, description='False leaves the second stage out.')
    super_resolution_steps: int | None = _field('super_resolution_steps', None, 'Of the second stage.')
    super_resolution_guidance_scale: float | None = _field(
        'super_resolution_guidance_scale', None, 'Of the second stage.'
    )
    noise_level: int | None = _field('noise_level', None, 'Noise on the image that the second stage enlarges.')


def add_routes(api: APIRouter, desk: Desk) -> None:
    """Adds the routes; before those of /runs/{run}/{action}, which would else be asked."""

    @api.get('/runs/{run}/models', responses=refusals(404))
    def models(run: str) -> list[Choice]:
        """The models of a run that images can be generated with, the one to begin with first."""
        desk.begun(run)
        return desk.generations.choices(run)

    @api.post('/runs/{run}/generate', status_code=202, responses=refusals(404, 409))
    def generate(run: str, body: Generate) -> Generation:
        """Asks for images of a run's models; they wait for their turn on the accelerators."""
        desk.begun(run)
        return desk.generations.add(run, body.model_dump())

    @api.get('/runs/{run}/generate', responses=refusals(404))
    def generations(run: str) -> list[Generation]:
        """The requests for images of a run, the last one first."""
        desk.begun(run)
        return desk.generations.all(run)

    @api.get('/runs/{run}/generate/{number}', responses=refusals(404))
    def generation(run: str, number: int = _Number) -> Generation:
        """A request for images: how far it is, what it waits for, and the addresses of the images that are there."""
        desk.begun(run)
        return desk.generations.one(run, number)

    @api.post('/runs/{run}/generate/{number}/cancel', responses=refusals(404, 409))
    def cancel(run: str, number: int = _Number) -> Generation:
        """Cancels a request for images; those that are there stay."""
        desk.begun(run)
        return desk.generations.cancel(run, number)

    @api.delete('/runs/{run}/generate/{number}', status_code=204, responses=refusals(404, 409))
    def remove(run: str, number: int = _Number) -> None:
        """Removes a request that is answered, and its images."""
        desk.begun(run)
        desk.generations.remove(run, number)

    @api.get(
        '/runs/{run}/generate/{number}/grid',
        response_class=FileResponse,
        responses=file('image/png') | refusals(404),
    )
    def grid(run: str, number: int = _Number) -> FileResponse:
        """All images of a request on one sheet, PNG: a row for each prompt, columns for each model."""
        desk.begun(run)
        return FileResponse(desk.generations.grid(run, number), media_type='image/png', headers=_KEEP)

    @api.get(
        '/runs/{run}/generate/{number}/images/{model}/{image}',
        response_class=FileResponse,
        responses=file('image/png') | refusals(404),
    )
    def image(run: str, model: str, image: str, number: int = _Number) -> FileResponse:
        """An image, PNG; 000_01 is image 1 of prompt 0."""
        desk.begun(run)
        path = desk.generations.image(run, number, model, image)
        return FileResponse(path, media_type='image/png', headers=_KEEP)

    @api.get('/runs/{run}/generate/{number}/images/{model}/{image}/metadata', responses=refusals(404))
    def metadata(run: str, model: str, image: str, number: int = _Number) -> Metadata:
        """What the file of an image says of itself: prompt, seed, model and its hash, the mark of generated images."""
        desk.begun(run)
        return metadata_of(desk.generations.image(run, number, model, image))
