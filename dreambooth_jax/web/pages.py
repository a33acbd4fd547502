"""The pages: rendered here, brought up to date by static/app.js, which asks for the parts of a page that change.

Templates escape whatever they show. Charts are those of report.html, and so is the style sheet below ours.
"""

import dataclasses
import importlib.resources
import json
import time
import typing
import urllib.parse
from pathlib import Path
from typing import Any

import jinja2
from fastapi import APIRouter, Query, Request
from fastapi.responses import HTMLResponse, Response
from markupsafe import Markup

from dreambooth_jax.config import ConfigError, DreamBoothConfig, Sampler
from dreambooth_jax.config.described import described
from dreambooth_jax.generation.request_queue import BASE_MODEL, MODEL, MOST_PROMPTS
from dreambooth_jax.web import commands, jobs
from dreambooth_jax.web.generations import Generation
from dreambooth_jax.web.photos import MOST_BYTES, MOST_PHOTOS, TRAINED, USUAL
from dreambooth_jax.web.state import DTYPES, FORMATS, Desk

STAGES = {'base': 'Base stage', 'super_resolution': 'Super-resolution stage'}
# Chart -> the numbers that are drawn together in it.
_CHARTS = {
    'Loss': ('loss', 'instance_loss', 'prior_loss'),
    'Scores': ('subject_fidelity', 'prompt_fidelity', 'drift', 'trade_off'),
}
# The settings that the form asks for before "all settings".
_FIRST = ('data.instance_prompt', 'data.class_prompt', 'base.steps', 'samples.prompts')
_CROP = 256  # pixels of a square that is shown, if the settings do not say how many a model is shown
_FORMAT_WORDS = {
    'diffusers': 'a pipeline folder for diffusers',
    'single_file': 'one file for ComfyUI, AUTOMATIC1111',
    'lora_peft': 'LoRA for diffusers, PEFT',
    'lora_kohya': 'LoRA for ComfyUI, AUTOMATIC1111, Forge, kohya',
    'lora_comfyui': "LoRA of a transformer, ComfyUI's names",
}

_templates = jinja2.Environment(
    loader=jinja2.FileSystemLoader(Path(__file__).parent / 'templates'),
    autoescape=True,
    undefined=jinja2.StrictUndefined,
    trim_blocks=True,
    lstrip_blocks=True,
)


def router(desk: Desk) -> APIRouter:
    """Returns the pages' routes."""
    pages = APIRouter(include_in_schema=False, default_response_class=HTMLResponse)

    @pages.get('/')
    def of_runs(part: str = ''):
        template = 'runs_list.html' if part else 'runs.html'
        return _page(template, title='Runs', here='/', runs=desk.all(), folder=desk.folder, now=time.time())

    @pages.get('/photos')
    def of_all_photos():
        return _page('all_photos.html', title='Photos', here='/photos', folders=desk.photos.all(), **_limits())

    @pages.get('/photos/{folder}')
    def of_photos(folder: str, part: str = '', ratio: bool = False, checked: int = USUAL):
        found = desk.photos.photos_in(folder)
        template = 'photo_cards.html' if part else 'photos.html'
        path = desk.photos.folder(folder)
        return _page(
            template,
            title=folder,
            here='/photos',
            folder=folder,
            photos=found,
            path=path,
            side=_CROP,
            checked=checked,
            trained=TRAINED,
            ratio=ratio,
            **_limits(),
        )

    @pages.get('/photos/{folder}/findings')
    def of_findings(folder: str, side: int = Query(USUAL, ge=16, le=2048), ratio: bool = False):
        found = desk.photos.findings(folder, side, keeps_ratio=ratio)
        return _page('findings.html', folder=folder, findings=found, side=_CROP)

    @pages.get('/new')
    def new(request: Request, config: str = '', photos: str = ''):
        recipes = desk.recipes.all()
        choices = [f'{one.name}:{model}' if model else one.name for one in recipes for model in one.models or ('',)]
        chosen = config if config in choices else next(iter(choices), '')
        recipe, _, model = chosen.partition(':')
        error, values, unshown = None, {}, {}
        try:
            values, unshown = desk.recipes.defaults(recipe, model), desk.recipes.unshown(recipe, model)
        except ConfigError as wrong:
            error = str(wrong)
        folders = desk.photos.all()
        return _page(
            'new.html',
            title='New run',
            here='/new',
            choices=choices,
            chosen=chosen,
            folders=folders,
            photos=photos if photos in folders else '',
            error=error,
            first=[_field(one, values) for name in _FIRST for one in _settings() if one.name == name] if values else [],
            groups=_groups(values) if values else {},
            unshown={name: _lines(value) for name, value in unshown.items()},
            name=_free_name(desk),
        )

    @pages.get('/runs/{run}')
    def of_run(run: str, part: str = ''):
        view = desk.view(run)
        is_begun = desk.runs.folder_of(run) is not None
        template = 'run_parts.html' if part else 'run.html'
        return _page(
            template,
            title=run,
            here='/',
            run=view,
            after=_last(desk, run) if is_begun else '',
            curves=_curves(desk, run) if is_begun else [],
            samples={stage: list(grids) for stage, grids in desk.runs.samples(run).items()} if is_begun else {},
            best=(desk.runs.best(run) or {}).get('step') if is_begun else None,
            stages=STAGES,
            log=jobs.log_tail(desk.folder / run, 'train'),
            downloads=[_download(run, name, path) for name, path in desk.downloads(run).items()] if is_begun else [],
            exports=[_export(desk, run, job) for job in desk.jobs_of(run, 'export')[:8]],
            formats={name: _FORMAT_WORDS[name] for name in FORMATS if _can_be(name, desk, view)},
            dtypes=DTYPES,
            settings=commands.flat(desk.runs.settings(run)) if is_begun and view.error is None else {},
            written=commands.written,
            duration=duration,
            can_try=is_begun and view.error is None,
        )

    @pages.get('/runs/{run}/try')
    def try_it(run: str, part: str = ''):
        view, of_it = desk.begun(run), desk.generations
        shown = {'run': view, 'generations': [_generation(one) for one in of_it.all(run)], 'words': _model_words}
        if part:
            return _page('try_list.html', **shown)
        if view.error is None:
            shown['defaults'], shown['choices'] = of_it.defaults(run), of_it.choices(run)
            shown['prompts'] = desk.runs.settings(run).sample_prompts()[:MOST_PROMPTS]
        return _page('try.html', title=f'Try {run}', here='/', samplers=typing.get_args(Sampler), **shown)

    @pages.get('/report.css')
    def style():
        text = (
            importlib.resources.files('dreambooth_jax.evaluation').joinpath('page_files', 'page.css').read_text('utf-8')
        )
        return Response(text, media_type='text/css')

    return pages


def error_page(status: int, sentence: str) -> HTMLResponse:
    """Returns a page with one sentence."""
    return HTMLResponse(_render('error.html', title='Not here', here='', sentence=sentence), status)


def duration(seconds: float) -> str:
    """Returns a time in words, such as '3 min'."""
    if seconds < 90:
        return f'{max(seconds, 1):.0f} s'
    if seconds < 5400:
        return f'{seconds / 60:.0f} min'
    return f'{seconds / 3600:.1f} h'


def _page(template: str, **shown: Any) -> HTMLResponse:
    return HTMLResponse(_render(template, **shown))


def _render(template: str, **shown: Any) -> str:
    return _templates.get_template(template).render(ago=_ago, **shown)


def _ago(then: float, now: float) -> str:
    return (
        'now'
        if now - then < 5
        else f'{duration(now - then)} ago'
        if now - then < 86400
        else f'{(now - then) / 86400:.0f} d ago'
    )


def _limits() -> dict[str, int]:
    return {'most_bytes': MOST_BYTES, 'most_photos': MOST_PHOTOS}


def _settings():
    return described(DreamBoothConfig)


def _groups(values: dict[str, Any]) -> dict[str, list[dict[str, Any]]]:
    found: dict[str, list[dict[str, Any]]] = {}
    for one in _settings():
        if one.name not in (*_FIRST, 'data.instance_dir'):  # of the photos above
            found.setdefault(one.group or 'run', []).append(_field(one, values))
    return found


def _field(one, values: dict[str, Any]) -> dict[str, Any]:
    """Returns what a form needs to show a setting; app.js reads its value by `type`."""
    value = values[one.name]
    plain = one.kind.removesuffix(' or None')
    if one.choices:
        type_, text = 'choice', json.dumps(value)
    elif plain == 'True or False':
        type_, text = 'choice', json.dumps(value)
    elif plain in ('an int', 'a number'):
        type_, text = 'number', '' if value is None else repr(value)
    elif plain == 'a tuple of strings':
        type_, text = 'lines', '\n'.join(value or ())
    elif plain.startswith('a tuple'):
        type_, text = 'json', '' if value is None else json.dumps(value)
    else:
        type_, text = 'text', '' if value is None else value
    listed = one.choices or ((True, False) if type_ == 'choice' else ())
    choices = {json.dumps(choice): commands.written(choice) for choice in listed}
    optional = one.kind.endswith(' or None')
    return {**dataclasses.asdict(one), 'type': type_, 'text': text, 'choices': choices, 'optional': optional}


def _lines(value: Any) -> list[str]:
    """Returns a list of groups of settings as lines, what is not set left out."""
    groups = ({name: one for name, one in dict(group).items() if one not in (None, '', ())} for group in value)
    return [', '.join(f'{name} = {one!r}' for name, one in group.items()) for group in groups]


def _free_name(desk: Desk) -> str:
    there = {path.name for path in desk.folder.iterdir()} | {job.run for job in desk.queue.all()}
    return next(name for n in range(1, 10**6) if (name := f'run-{n}') not in there)


def _curves(desk: Desk, run: str) -> list[tuple[str, list[Markup]]]:
    from dreambooth_jax.evaluation import charts  # NumPy is not needed before

    found = []
    for stage, title in STAGES.items():
        numbers = desk.runs.numbers(run)
        drawn = [charts.curves(name, lines) for name, of in _CHARTS.items() if (lines := numbers.curves(of, stage))]
        if any(drawn):
            found.append((title, [Markup(one) for one in drawn if one]))  # escaped by charts
    return found


def _last(desk: Desk, run: str) -> str:
    lines = desk.runs.numbers(run).lines()
    return str(lines[-1].key) if lines else ''


def _download(run: str, name: str, path: Path) -> dict[str, Any]:
    is_folder = path.is_dir()
    size = sum(file.stat().st_size for file in path.rglob('*') if file.is_file()) if is_folder else path.stat().st_size
    shown = f'{name}.zip' if is_folder else name
    words = 'the trained model, a pipeline folder for diffusers' if name == 'model' else ''
    return {
        'name': shown,
        'url': f'/api/runs/{urllib.parse.quote(run)}/exports/{urllib.parse.quote(shown)}',
        'size': _size(size),
        'words': words,
    }


def _size(count: float) -> str:
    return f'{count / 2**30:.1f} GB' if count >= 2**30 else f'{count / 2**20:.1f} MB'


def _export(desk: Desk, run: str, job: jobs.Job) -> dict[str, Any]:
    failed = job.state == jobs.ENDED and job.code not in (0, None)
    message = next(iter(jobs.log_tail(desk.folder / run, 'export', 1)), '') if failed else ''
    state = 'failed' if failed else 'done' if job.state == jobs.ENDED else job.state
    return {'state': state, 'command': jobs.typed(job), 'message': message, 'number': job.number}


def _generation(one: Generation) -> dict[str, Any]:
    """Returns a request as its page shows it."""
    request = one.request
    given = {name: request[name] for name in ('negative_prompt', 'batch_size') if request and request[name]}
    names = ('sampler', 'steps', 'guidance_scale', 'seed')
    used = {name: value for name in names if (value := one.options.get(name, request.get(name))) is not None}
    return {
        **dataclasses.asdict(one),
        'shown': {name.replace('_', ' '): used_ for name, used_ in (used | given).items()},
    }


def _model_words(name: str) -> str:
    return {MODEL: 'the trained model', BASE_MODEL: 'the base model'}.get(name, f'checkpoint {name}')


def _can_be(format: str, desk: Desk, view) -> bool:
    """Whether a format may fit a run: adapters are only there if they were trained."""
    if view.error is not None or desk.runs.folder_of(view.id) is None:
        return False
    has_lora = desk.runs.settings(view.id).lora.rank is not None
    return has_lora or not format.startswith('lora_')
