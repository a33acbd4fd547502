"""The part of a page that shows a run: what it was trained on, its samples over the steps, its curves and settings."""

import importlib.metadata
import json
import platform
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np

from dreambooth_jax.data import provenance
from dreambooth_jax.data.images import ImageError
from dreambooth_jax.data.subjects import list_images
from dreambooth_jax.evaluation import charts
from dreambooth_jax.evaluation.embedded_images import EmbeddedImages, Shown, evenly
from dreambooth_jax.evaluation.markup import Markup, element, joined
from dreambooth_jax.generation.class_manifest import MANIFEST
from dreambooth_jax.monitoring import metrics

STAGES = {'base': 'Base stage', 'super_resolution': 'Super-resolution stage'}
# Chart -> the numbers that are drawn together in it; every other number of metrics.jsonl has a folded chart of its own.
_CHARTS = {
    'Loss': ('loss', 'instance_loss', 'prior_loss'),
    'Learning rate': ('learning_rate', 'text_encoder_learning_rate'),
    'Images per second': ('images_per_second',),
    'Evaluation': ('subject_fidelity', 'prompt_fidelity', 'drift', 'trade_off'),
}
_MOST_PHOTOS = 24
_PACKAGES = ('dreambooth-jax', 'jax', 'jaxlib', 'flax', 'optax', 'numpy')


def read_settings(run: Path) -> dict[str, Any]:
    """Returns the settings of a run as its config.json has them."""
    return json.loads((run / 'config.json').read_text('utf-8'))


def class_image_files(run: Path) -> list[Path]:
    """Returns the class images that a run was trained on, the largest that there are; empty if it has none."""
    folder = _class_image_folder(run)
    enlarged = folder / 'super_resolution'
    try:
        files, _ = list_images(enlarged if enlarged.is_dir() else folder)
    except ImageError:  # there is no such folder, or it has moved
        return []
    return [file.path for file in files]


def _class_image_folder(run: Path) -> Path:
    folder = read_settings(run).get('prior', {}).get('dir')
    return Path(folder) if folder else run / 'prior'


def _mark_of_class_images(run: Path) -> str | None:
    """Returns the mark of class images: none if they are the user's own photos, a folder without a manifest."""
    folder = _class_image_folder(run)
    is_own = folder != run / 'prior' and not (folder / MANIFEST).is_file()
    return None if is_own else provenance.GENERATED


def _mark_of_photos(run: Path) -> str | None:
    """Returns the mark of the subjects' images: they are painted if all subjects are built in, else photos."""
    data = read_settings(run)['data']
    subjects = data.get('subjects') or [data]
    painted = (one.get('instance_dir') is None and one.get('tfds') is None for one in subjects)
    return provenance.PAINTED if all(painted) else None


def trained_on(run: Path, photos: Sequence[np.ndarray], embedded: EmbeddedImages) -> Markup:
    """Returns the photos as the model saw them, and some of the class images.

    Args:
      photos: uint8[H, W, 3] each.

    Raises:
      TooLarge: if the images of the page take too much.
    """
    captions = [f'photo {i + 1} of the subject, as the model saw it' for i in range(len(photos))]
    mark = _mark_of_photos(run)
    shown = [Shown(photo, caption, mark) for photo, caption in zip(photos, captions, strict=True)]
    shown = evenly(shown, _MOST_PHOTOS)  # there may be many crops
    files, mark = class_image_files(run), _mark_of_class_images(run)
    some = [Shown(path, f'class image {path.stem}', mark) for path in evenly(files, embedded.detail.class_images)]
    parts = [element('h2', 'Photos as the model saw them'), embedded.thumbnails(shown)]
    if len(shown) < len(photos):
        parts.append(element('p', f'{len(shown)} of {len(photos)}.', class_='muted'))
    parts += [element('h2', 'Class images'), embedded.thumbnails(some)]
    told = f'{len(some)} of {len(files)} that the run was trained on.' if files else 'The run has none in its folder.'
    return joined(*parts, element('p', told, class_='muted'))


def samples(run: Path, embedded: EmbeddedImages) -> Markup:
    """Returns the sample grids of each stage with a slider over the steps.

    Raises:
      TooLarge: if the images of the page take too much.
    """
    sliders = []
    for stage, title in STAGES.items():
        files = {int(path.stem): path for path in (run / 'samples' / stage).glob('*.png') if path.stem.isdigit()}
        steps = evenly(sorted(files), embedded.detail.grids)
        if not steps:
            continue
        grids = [_grid(files[step], step, title, step == steps[-1], embedded) for step in steps]
        last = len(steps) - 1
        told = element('output', f'step {steps[-1]}')
        moved = element('input', type='range', min=0, max=last, value=last, step=1, aria_label=f'{title}: step')
        count = '' if len(steps) == len(files) else f' {len(steps)} of {len(files)} are shown.'
        parts = [element('h3', title), element('label', moved, told)] if last else [element('h3', title), told]
        parts += [*grids, element('p', count, class_='muted') if count else None]
        sliders.append(element('section', *parts, class_='slider'))
    if not sliders:
        return Markup('')
    return joined(element('h2', 'Samples over the training'), *sliders)


def _grid(path: Path, step: int, title: str, is_last: bool, embedded: EmbeddedImages) -> Markup:
    caption = f'{title}, step {step}: the subject, then each prompt by this model and by the one before'
    tag = embedded.image(Shown(path, caption), embedded.detail.grid_side)
    return element('div', tag, class_='grid', data_step=step, data_shown=is_last)


def curves(run: Path) -> Markup:
    """Returns charts of the numbers that the run has written while it was trained."""
    if not (run / metrics.FILE).is_file():
        return Markup('')
    parts = []
    for stage, title in STAGES.items():
        lines = _lines(metrics.read(run, stage))
        drawn = [
            charts.curves(heading, {name: lines.pop(name) for name in names if name in lines})
            for heading, names in _CHARTS.items()
        ]
        others = [charts.curves(name, {name: line}) for name, line in lines.items()]
        if any([*drawn, *others]):
            parts += [element('h3', title), element('div', *drawn, class_='charts')]
        if any(others):
            inside = element('div', *others, class_='charts')
            count = '1 more curve' if len(others) == 1 else f'{len(others)} more curves'
            parts.append(element('details', element('summary', count), inside))
    return joined(element('h2', 'Curves'), *parts) if parts else Markup('')


def _lines(entries: list[dict]) -> dict[str, tuple[list[float], list[float]]]:
    found: dict[str, tuple[list[float], list[float]]] = {}
    for entry in entries:
        for name, value in entry.items():
            if name not in ('stage', 'step') and isinstance(value, int | float):
                steps, values = found.setdefault(name, ([], []))
                steps.append(entry['step'])
                values.append(value)
    return found


def settings(run: Path, found: Mapping[str, Any]) -> Markup:
    """Returns what the run was trained with and how it was scored.

    Args:
      found: the content of scores.json.
    """
    sampling = {name: value for name, value in found['sampling'].items() if value is not None}
    counts = {'images per prompt': found['images_per_prompt'], 'images of the class': found['class_images']}
    facts = {
        'Weights': '; '.join(found['weights']),
        'Sampling': _listed(sampling),
        'Scored': _listed(counts),
        'Encoders': _listed(found['encoders']),
        'Versions': _listed(versions()),
    }
    rows = [part for name, value in facts.items() for part in (element('dt', name), element('dd', value))]
    text = json.dumps(read_settings(run), indent=1, ensure_ascii=False)
    folded = element('details', element('summary', 'config.json'), element('pre', text, tabindex='0'))
    best = run / 'best.json'
    if best.is_file():
        chosen = element('pre', best.read_text('utf-8'), tabindex='0')
        folded = joined(folded, element('details', element('summary', 'best.json'), chosen))
    return joined(element('h2', 'Settings and versions'), element('dl', *rows, class_='facts'), folded)


def versions() -> dict[str, str]:
    """Returns what the scores were measured with: the packages' versions and the devices."""
    found = {name: importlib.metadata.version(name) for name in _PACKAGES}
    devices = jax.devices()
    return {'Python': platform.python_version()} | found | {'devices': f'{len(devices)} x {devices[0].device_kind}'}


def _listed(values: Mapping[str, Any]) -> Markup:
    parts = [element('span', f'{name} ', element('b', value)) for name, value in values.items() if value != '']
    return element('span', *parts, class_='listed')
