"""The HTTP API; /api/openapi.json describes it. Errors are {"error": "one sentence"}."""

import dataclasses
from pathlib import Path
from typing import Any, Literal
from urllib.parse import quote

from fastapi import APIRouter, Header, Query, Request
from fastapi.responses import FileResponse, PlainTextResponse, Response, StreamingResponse
from pydantic import BaseModel, ConfigDict, Field
from starlette.concurrency import run_in_threadpool

from dreambooth_jax.config import ConfigError, DreamBoothConfig, ExportFormat
from dreambooth_jax.config.described import described
from dreambooth_jax.web import archive, commands, jobs
from dreambooth_jax.web.answers import EVENT_STREAM, EVENTS, TOKEN, file, refusals, upload
from dreambooth_jax.web.events import stream
from dreambooth_jax.web.generate_api import add_routes
from dreambooth_jax.web.numbers import STAGES, Key
from dreambooth_jax.web.photos import USUAL, Found, Photo
from dreambooth_jax.web.plans import Plan, Plans
from dreambooth_jax.web.refused import Refused
from dreambooth_jax.web.state import Desk, View, files_below, shown
from dreambooth_jax.web.uploads import Uploads

Stage = Literal['base', 'super_resolution']


class _Body(BaseModel):
    model_config = ConfigDict(extra='forbid')


class Settings(_Body):
    """What a run is to be."""

    config: str = Field('dog', description='A settings file of the folder --configs, without .py.')
    preset: str = Field('', description='What stands after its colon, such as sdxl.')
    photos: str | None = Field(None, description='Uploaded photos, which become data.instance_dir.')
    settings: dict[str, Any] = Field({}, description='Dotted names of settings and their values, where they differ.')


class NewRun(Settings):
    """A new run."""

    name: str = Field(description="The name of its folder: letters, digits, -, _ and '.'.")


class Extension(_Body):
    """More steps of the base stage."""

    steps: int = Field(gt=0, le=10_000_000)


class Export(_Body):
    """What is exported; each format is described by the program export."""

    format: ExportFormat = 'diffusers'
    dtype: Literal['float32', 'float16', 'bfloat16'] = 'float32'
    step: int | None = Field(None, ge=0, description='The checkpoint; None: the best or newest.')


class NewPhotos(_Body):
    """A new folder of photos."""

    name: str | None = Field(None, description='Letters, digits, - and _; None: photos-1, photos-2, ...')


class Caption(_Body):
    """What replaces the instance prompt for a photo; empty: nothing does."""

    caption: str


def router(desk: Desk, stopped) -> APIRouter:
    """Returns the API's routes.

    Args:
      stopped: whether the server ends, for streams, which would else go on.
    """
    api = APIRouter(prefix='/api', dependencies=[TOKEN], responses=refusals())
    plans, uploads = Plans(desk.queue.idle_set, desk.price), Uploads()

    @api.get('/runs')
    def list_runs() -> list[View]:
        """All runs, those that were started by hand included."""
        return desk.all()

    @api.post('/runs', status_code=201, responses=refusals(404, 409))
    def new_run(body: NewRun) -> View:
        """Queues a new run."""
        return desk.new(body.name, desk.wanted(body.config, body.preset, body.settings, body.photos))

    @api.get('/runs/{run}', responses=refusals(404))
    def one_run(run: str) -> View:
        """One run."""
        return desk.view(run)

    @api.get('/runs/{run}/settings', responses=refusals(404))
    def run_settings(run: str) -> dict[str, Any]:
        """The settings of a run by their dotted names."""
        desk.begun(run)
        return commands.flat(desk.runs.settings(run))

    @api.get('/runs/{run}/metrics', responses=refusals(404))
    def metrics(run: str, after: str | None = None, stage: Stage | None = None) -> list[dict[str, Any]]:
        """The numbers of a run; `after` names the last line that is known, such as base:120."""
        desk.begun(run)
        lines = desk.runs.numbers(run).lines(_key(after))
        return [line.values for line in lines if stage is None or STAGES[line.key.stage] == stage]

    @api.get('/runs/{run}/events', response_class=Response, responses=EVENTS | refusals(404))
    async def events(run: str, after: str | None = None, last_event_id: str | None = Header(None)) -> StreamingResponse:
        """The run's numbers, and itself whenever it changes, as a stream. The header Last-Event-ID, or else `after`,
        names the last line that is known; the stream goes on behind it."""
        desk.view(run)
        told = stream(desk, run, _key(last_event_id or after), stopped)
        return StreamingResponse(told, media_type=EVENT_STREAM, headers={'x-accel-buffering': 'no'})

    @api.get('/runs/{run}/samples', responses=refusals(404))
    def samples(run: str) -> list[dict[str, Any]]:
        """The sample grids of a run."""
        desk.begun(run)
        return [
            {'stage': stage, 'step': step, 'url': f'/api/runs/{quote(run)}/samples/{stage}/{step}'}
            for stage, grids in desk.runs.samples(run).items()
            for step in grids
        ]

    @api.get(
        '/runs/{run}/samples/{stage}/{step}',
        response_class=FileResponse,
        responses=file('image/png') | refusals(404),
    )
    def sample(run: str, stage: Stage, step: int) -> FileResponse:
        """A sample grid, PNG."""
        desk.begun(run)
        path = desk.runs.samples(run).get(stage, {}).get(step)
        if path is None:
            raise Refused(f'the run {run} has no samples of step {step} of the {stage} stage', 404)
        return FileResponse(path, media_type='image/png', headers={'cache-control': 'private, no-cache'})

    @api.get('/runs/{run}/log', response_class=Response, responses=file('text/plain') | refusals(404))
    def log(
        run: str, program: Literal['train', 'export'] = 'train', lines: int = Query(200, gt=0, le=2000)
    ) -> PlainTextResponse:
        """The last lines that a program has printed for a run that was started here."""
        desk.view(run)
        return PlainTextResponse('\n'.join(jobs.log_tail(desk.folder / run, program, lines)))

    @api.post('/runs/{run}/extend', responses=refusals(404, 409))
    def extend(run: str, body: Extension) -> View:
        """Queues more steps for a finished run."""
        return desk.extend(run, body.steps)

    @api.post('/runs/{run}/export', status_code=202, responses=refusals(404, 409))
    def export(run: str, body: Export) -> dict[str, Any]:
        """Queues an export; what it writes can be downloaded then."""
        job = desk.export(run, body.format, body.dtype, body.step)
        return {'state': job.state, 'command': jobs.typed(job)}

    @api.get('/runs/{run}/exports', responses=refusals(404))
    def exports(run: str) -> dict[str, Any]:
        """What can be downloaded of a run, and the exports that are asked for."""
        there = [
            {'name': name, 'bytes': sum(file.stat().st_size for _, file in _files(path)), 'url': _url(run, path)}
            for name, path in desk.downloads(run).items()
        ]
        asked = [
            {'state': job.state, 'code': job.code, 'command': jobs.typed(job)} for job in desk.jobs_of(run, 'export')
        ]
        return {'downloads': there, 'jobs': asked}

    @api.get(
        '/runs/{run}/exports/{name}',
        response_class=Response,
        responses=file('application/octet-stream', 'application/zip') | refusals(404),
    )
    def download(run: str, name: str) -> Response:
        """A file or, as zip, a folder."""
        found = {_download_name(path): path for path in desk.downloads(run).values()}
        if name not in found:
            raise Refused(f'the run {run} has no download {name!r}', 404)
        path = found[name]
        if path.is_file():
            return FileResponse(path, filename=name, media_type='application/octet-stream')
        filename = f'{run}-{name}' if name == 'model.zip' else name
        told = {'content-disposition': f'attachment; filename="{filename}"'}
        return StreamingResponse(archive.pieces(dict(_files(path))), media_type='application/zip', headers=told)

    add_routes(api, desk)

    @api.post('/runs/{run}/{action}', responses=refusals(404, 409))
    def ask(run: str, action: Literal['pause', 'resume', 'sample', 'save', 'stop', 'start']) -> View:
        """Asks a run for something; `actions` of the run says what it can be asked for."""
        return desk.ask(run, action)

    @api.get('/plan', responses=refusals(404, 409, 504))
    async def plan_of_run(run: str, request: Request) -> Plan:
        """The plan of a run that is there."""
        desk.begun(run)
        return await plans.plan(commands.again(shown(desk.folder / run)), request.is_disconnected)

    @api.post('/plan', responses=refusals(404, 409, 504))
    async def plan(body: Settings, request: Request) -> Plan:
        """The plan of a run that is not begun, which it does not begin."""
        wanted = desk.wanted(body.config, body.preset, body.settings, body.photos)
        arguments = desk.recipes.arguments(wanted, shown(desk.folder / 'new'))
        stamp = None if body.photos is None else desk.photos.stamp(body.photos)
        return await plans.plan(arguments, request.is_disconnected, stamp)

    @api.get('/settings')
    def settings(config: str | None = None, preset: str = '') -> list[dict[str, Any]]:
        """Every setting with its documentation, and its value in a settings file, if one is named."""
        values = desk.recipes.defaults(config, preset) if config is not None else {}
        return [
            {**dataclasses.asdict(one), 'value': values.get(one.name, one.default)}
            for one in described(DreamBoothConfig)
        ]

    @api.get('/configs')
    def configs() -> list[dict[str, Any]]:
        """The settings files that a run may begin with."""
        return [dataclasses.asdict(one) for one in desk.recipes.all()]

    @api.get('/photos')
    def list_photos() -> dict[str, int]:
        """The folders of photos, and how many each holds."""
        return desk.photos.all()

    @api.post('/photos', status_code=201, responses=refusals(409))
    def new_photos(body: NewPhotos) -> dict[str, str]:
        """Makes a folder for photos."""
        return {'name': desk.photos.create(body.name)}

    @api.get('/photos/{folder}', responses=refusals(404))
    def photos_of(folder: str) -> list[Photo]:
        """The photos of a folder."""
        return desk.photos.photos_in(folder)

    @api.delete('/photos/{folder}', status_code=204, responses=refusals(404))
    def remove_photos(folder: str) -> None:
        """Removes a folder of photos."""
        desk.photos.remove(folder)

    @api.post(
        '/photos/{folder}',
        status_code=201,
        responses=refusals(404, 408, 409, 415, 503),
        openapi_extra=upload(required=True),
    )
    async def add_photo(folder: str, request: Request, name: str = 'photo') -> Photo:
        """Adds a photo: the request's body is its file, at most 64 MB; `name` is only for messages."""
        desk.photos.folder(folder)
        async with uploads.file_in(request) as data:
            return await run_in_threadpool(desk.photos.add, folder, data, name)

    @api.get('/photos/{folder}/{photo}/crop', response_class=Response, responses=file('image/png') | refusals(404))
    def crop(
        folder: str,
        photo: str,
        side: int = Query(256, ge=16, le=1024),
        keeps_ratio: bool = False,
        box: str | None = Query(None, pattern=r'^\d{1,6}(,\d{1,6}){3}$'),
    ) -> Response:
        """What a model is shown of a photo, PNG: the square in its middle, or with `keeps_ratio` as with
        data.aspect_buckets; what its mask leaves out is darker. With `box`, such as the `crop` of a finding, written as
        left,top,right,bottom in pixels, it is what would be shown if the photo were cropped to that."""
        within = None if box is None else [int(side) for side in box.split(',')]
        data = desk.photos.crop(folder, photo, side, keeps_ratio=keeps_ratio, box=within)
        return Response(data, media_type='image/png', headers={'cache-control': 'private, max-age=3600'})

    @api.get('/photos/{folder}/findings', responses=refusals(404))
    def findings(folder: str, side: int = Query(USUAL, ge=16, le=2048), keeps_ratio: bool = False) -> list[Found]:
        """What check_photos finds, the worst first: `severity` (error, warning or note), `check`, `photo` (null: all of
        them), what was `found`, `advice`, and the `crop` that is proposed: left, top, right and bottom in pixels of the
        photo (null: none is). `side` is that of the crops that are trained on."""
        return desk.photos.findings(folder, side, keeps_ratio=keeps_ratio)

    @api.put('/photos/{folder}/{photo}/caption', status_code=204, responses=refusals(404))
    def set_caption(folder: str, photo: str, body: Caption) -> None:
        """Writes a photo's caption."""
        desk.photos.set_caption(folder, photo, body.caption)

    @api.put(
        '/photos/{folder}/{photo}/mask',
        status_code=204,
        responses=refusals(404, 408, 415, 503),
        openapi_extra=upload(required=False),
    )
    async def set_mask(folder: str, photo: str, request: Request, name: str = 'the mask') -> None:
        """Adds the mask of a photo: the request's body is an image of the same size, white where the photo counts; an
        empty body removes it. `name` is only for messages."""
        desk.photos.path(folder, photo)
        async with uploads.file_in(request) as data:
            await run_in_threadpool(desk.photos.set_mask, folder, photo, data, name)

    @api.delete('/photos/{folder}/{photo}', status_code=204, responses=refusals(404))
    def remove_photo(folder: str, photo: str) -> None:
        """Removes a photo with its caption and mask."""
        desk.photos.remove(folder, photo)

    return api


def sentence(error: Exception) -> tuple[int, str] | None:
    """Returns the HTTP status and the sentence of an error that is meant for users; None if it is none."""
    if isinstance(error, Refused):
        return error.status, str(error)
    if isinstance(error, ConfigError):
        return 422, str(error)
    return None


def _key(text: str | None) -> Key | None:
    if not text:
        return None
    key = Key.parsed(text)
    if key is None:
        raise Refused(f'{text[:100]!r} names no line of the metrics; name one as base:120', 422)
    return key


def _files(path: Path):
    return files_below(path) if path.is_dir() else [(path.name, path)]


def _download_name(path: Path) -> str:
    return f'{path.name}.zip' if path.is_dir() else path.name


def _url(run: str, path: Path) -> str:
    return f'/api/runs/{quote(run)}/exports/{quote(_download_name(path))}'
