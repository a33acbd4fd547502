"""What experiments share: they keep finished parts, train each run once, and write numbers into a README.

An experiment is a folder in experiments/ with a run.py. While it runs, its parts are kept in a working folder
(<part>.json with <part>.npz, and training runs), so that an interrupted experiment continues where it was. At the end
results.json and images are written beside run.py, and the part of the README between two marks is replaced.
"""

import hashlib
import json
import os
import platform
import runpy
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from datetime import date
from pathlib import Path
from typing import Any

import jax
import numpy as np

from dreambooth_jax.config import BUILT_IN, ConfigError
from dreambooth_jax.data import provenance
from dreambooth_jax.generation.cascade import Cascade
from dreambooth_jax.storybook import draw, subjects
from dreambooth_jax.training.loop import TrainingError
from dreambooth_jax.weights.pipeline import Pipeline

MARKS = '<!-- results -->', '<!-- end of results -->'


def kept(
    folder: Path,
    name: str,
    settings: Mapping[str, Any],
    make: Callable[[], tuple[dict[str, Any], dict[str, np.ndarray]]],
) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
    """Measures one part of an experiment, or reads it if it was measured with the same settings before.

    Args:
      folder: folder of the part's files.
      name: name of the part's files, without suffix.
      settings: everything that the numbers depend on, in a form that JSON can hold.
      make: measures; it returns numbers for JSON, and label -> images uint8[...].

    Returns:
      The numbers of make() with the additional entry 'measured' (seconds, hardware, date), and its images.
    """
    path, settings = folder / f'{name}.json', json.loads(json.dumps(settings))
    images_path = path.with_suffix('.npz')
    if path.is_file() and images_path.is_file():
        found = json.loads(path.read_text('utf-8'))
        if found['settings'] == settings:
            with np.load(images_path) as images:
                return found['numbers'], dict(images)
    started = time.perf_counter()
    numbers, images = make()
    seconds = round(time.perf_counter() - started, 1)
    measured = {'seconds': seconds, 'hardware': hardware(), 'date': date.today().isoformat()}
    numbers = json.loads(json.dumps({**numbers, 'measured': measured}))
    folder.mkdir(parents=True, exist_ok=True)
    path.unlink(missing_ok=True)  # first, so that numbers are never kept beside images of another measurement
    np.savez_compressed(images_path, **images)
    write_json(path, {'settings': settings, 'numbers': numbers})
    return numbers, images


def scored(
    score: Callable[..., dict[str, Any]], labels: Sequence[str] | None = None, count: int | None = None
) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
    """Returns the numbers of a function of storybook_scores and images behind them, as `kept` takes them.

    Args:
      score: called with the argument `gallery` alone.
      labels: labels of the images; None: all.
      count: the first images of each label; None: all.
    """
    gallery = {}
    numbers = score(gallery=gallery)
    return numbers, {label: gallery[label][:count] for label in (gallery if labels is None else labels)}


class Measurements:
    """What one experiment measures of several models with the same options, each once (see `kept`).

    Args:
      workdir: the working folder; parts are kept in its folder parts/.
      classifier: fingerprint of the classifier's parameters.
      options: everything else that the numbers depend on besides the weights, in a form that JSON can hold.

    Attributes:
      results: title of a model -> its numbers, in the order in which they were measured.
      images: title of a model -> label -> images.
    """

    def __init__(self, workdir: Path, classifier: str, options: Mapping[str, Any]):
        self.results: dict[str, dict[str, Any]] = {}
        self.images: dict[str, dict[str, np.ndarray]] = {}
        self._parts, self._classifier, self._options = workdir / 'parts', classifier, options

    def add(
        self,
        title: str,
        name: str,
        weights: str,
        make: Callable[[], tuple[dict[str, Any], dict[str, np.ndarray]]],
    ) -> None:
        """Measures one model, or reads what was measured of it before.

        Args:
          title: its name in tables and images.
          name: name of its files.
          weights: fingerprint of its parameters.
          make: as in `kept`.
        """
        print(f'measuring: {title}', flush=True)
        settings = {'weights': weights, 'classifier': self._classifier, **self._options}
        self.results[title], self.images[title] = kept(self._parts, name, settings, make)

    def write(self, output: Path, **about: Any) -> dict[str, Any]:
        """Writes <output>/results.json and returns its content: `about`, where it was measured, options, results."""
        found = {**about, 'measured': measured_on(list(self.results.values())), **self._options}
        found['results'] = self.results
        write_json(output / 'results.json', found)
        return found


def report(output: Path, expected: Path, found: Mapping[str, Any], text: str) -> None:
    """Writes the section of <output>/README.md: where it was measured, expected numbers beside those found, and `text`.

    Args:
      expected: the file expected.json; see `expectations`.
      found: the content of results.json.
    """
    write_section(output / 'README.md', f'{found["measured"]}\n\n{expectations(expected, found)}\n\n{text}')


def with_base_of(cascade: Cascade, run: Path) -> Cascade:
    """Returns the cascade with the base stage's weights of a finished run, so that compiled programs are shared."""
    finetuned = Cascade.load(run, super_resolution_model='none').base
    return cascade.with_params(base={name: network.params for name, network in finetuned.components.items()})


def fingerprint_of(*stages: Pipeline) -> str:
    """Returns the fingerprint of all networks of these stages."""
    return fingerprint(*(network.params for stage in stages for network in stage.components.values()))


def fingerprint(*params: Mapping[str, Any]) -> str:
    """Returns 16 hex digits that change with any name, shape or value of these parameters."""
    found = hashlib.sha256()
    for part in params:
        for name in sorted(part):
            value = np.ascontiguousarray(part[name], np.float32)
            found.update(f'{name} {value.shape}'.encode())
            found.update(value.data)
    return found.hexdigest()[:16]


def train_once(workdir: Path, config: Path | str, settings: Mapping[str, Any], *, weights: str) -> Path:
    """Runs `python -m dreambooth_jax.train` as a separate process, unless the same command has finished there before.

    If the settings file gives other settings than then, the program runs again, and refuses or takes what has changed.

    Args:
      workdir: the run's folder; an interrupted run continues.
      config: settings file, such as configs/dog.py or configs/dog.py:MODEL.
      settings: dotted name -> value, passed on the command line as --config.<name>=<value>.
      weights: fingerprint of the model that is fine-tuned, so that a run of another model is never reused.

    Returns:
      `workdir`.

    Raises:
      TrainingError: if the folder holds a run that began with other weights, or if the program fails or is stopped; it
        has then printed the reason.
    """
    arguments = [f'--config={config}', f'--workdir={workdir}']
    arguments += [f'--config.{name}={value}' for name, value in settings.items()]
    note, model = workdir / 'experiment.json', workdir / 'model' / 'model_index.json'
    before = json.loads(note.read_text('utf-8')) if note.is_file() else {'weights': weights, 'finished': None}
    done = {'weights': weights, 'recipe': _recipe(str(config)), 'finished': arguments}
    if before['weights'] != weights:
        raise TrainingError(f'{workdir} was begun with other weights than the model has now; delete that folder')
    if model.is_file() and before == done:
        return workdir
    write_json(note, before)
    print(f'training in {workdir}', flush=True)
    started = time.time()
    ended = subprocess.run([sys.executable, '-m', 'dreambooth_jax.train', *arguments], check=False)
    if ended.returncode or not model.is_file() or model.stat().st_mtime < started - 1:
        raise TrainingError(
            f'the training in {workdir} ended with exit code {ended.returncode} and without a model; the reason stands '
            f'above: start the same command again when it is mended'
        )
    write_json(note, done)
    return workdir


def _recipe(config: str) -> str:
    """Returns hex digits that change with any setting that a settings file gives."""
    path, _, variant = config.partition(':')
    given = runpy.run_path(path)['get_config'](*filter(None, [variant]))
    return hashlib.sha256(given.to_json_best_effort(sort_keys=True).encode()).hexdigest()[:16]


def settings_of(texts: Sequence[str]) -> dict[str, str]:
    """Returns dotted name -> value of the words of a flag --set, each like base.steps=300.

    Raises:
      ConfigError: if one looks otherwise.
    """
    if wrong := [text for text in texts if '=' not in text]:
        raise ConfigError(f'--set={wrong[0]} must look like base.steps=300')
    return dict(text.split('=', 1) for text in texts)


def sampling_of(config: Path) -> dict[str, Any]:
    """Returns the sampling settings of a file in configs/ as arguments of SamplingOptions."""
    samples = runpy.run_path(str(config))['get_config']().samples
    return {name: samples[name] for name in ('steps', 'guidance_scale', 'sampler')}


def of_model(model: str, subject: str, folder: Path) -> dict[str, str]:
    """Returns settings that train a built-in subject on any model; models of the package have its images built in.

    Args:
      model: the setting config.model.
      subject: one of the thirty subjects.
      folder: folder that the reference images are written to as PNG files, unless the model has them.
    """
    if model in BUILT_IN:
        return {'model': model}
    folder.mkdir(parents=True, exist_ok=True)
    for number, scene in enumerate(subjects.reference_scenes(subject)):
        provenance.save(draw.paint(scene), folder / f'{number:02d}.png', source=provenance.PAINTED)
    return {'model': model, 'data.instance_dir': str(folder)}


def hardware() -> str:
    """Describes this machine in words."""
    if jax.default_backend() == 'cpu':
        return f'{os.cpu_count()} CPU cores ({platform.machine()})'
    return f'{jax.device_count()} x {jax.devices()[0].device_kind}'


def measured_on(parts: Sequence[Mapping[str, Any]]) -> str:
    """Returns a sentence that says on what, when and for how long some results of `kept` were measured."""
    notes = [part['measured'] for part in parts]
    machines = ' and '.join(dict.fromkeys(note['hardware'] for note in notes))
    seconds = sum(note['seconds'] for note in notes)
    time_taken = f'{seconds:.0f} s' if seconds < 120 else f'{seconds / 60:.0f} min'
    return f'Measured on {machines}, {max(note["date"] for note in notes)}, in {time_taken}.'


def write_json(path: Path, content: Any) -> None:
    """Writes a JSON file in one step, so that it is never half written."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f'.{path.name}.part')
    temporary.write_text(json.dumps(content, indent=1) + '\n', 'utf-8')
    os.replace(temporary, path)


def write_section(readme: Path, text: str) -> None:
    """Puts Markdown between the two marks of a README, which is created if it does not exist.

    Raises:
      ConfigError: unless the README has exactly one pair of marks.
    """
    first, last = MARKS
    content = readme.read_text('utf-8') if readme.is_file() else f'{first}\n{last}\n'
    before, found, rest = content.partition(first)
    _, found_last, after = rest.partition(last)
    if not found or not found_last or first in after or last in after:
        raise ConfigError(f'{readme} must hold {first} and, behind it, {last}, once each; put them where numbers go')
    temporary = readme.with_name(f'.{readme.name}.part')
    temporary.write_text(f'{before}{first}\n{text.strip()}\n{last}{after}', 'utf-8')
    os.replace(temporary, readme)


def table(headings: Sequence[str], rows: Sequence[Sequence[Any]]) -> str:
    """Returns a Markdown table; the first column is aligned to the left, the others to the right."""
    lines = [headings, ['---', *['---:'] * (len(headings) - 1)], *rows]
    cells = [[str(cell).replace('|', '\\|') for cell in line] for line in lines]
    return '\n'.join(f'| {" | ".join(line)} |' for line in cells)


def expectations(path: Path, results: Mapping[str, Any]) -> str:
    """Returns a Markdown table of expected and measured numbers.

    Args:
      path: expected.json, a list of {"number": a name, "at": keys that lead to a share in `results`}, each with one of
        "at_least": share, "at_most": share, "more_than": keys of another share, or "within": share with "of": keys of
        another share, which the number may be so much below. With "model": a name, the number is one of that
        model's only, and is left out of the table where `results` are of another.
      results: the content of results.json. A number that it lacks (because of other flags) is shown as a dash.
    """

    def find(keys):
        value = results
        for key in keys:
            try:
                value = value[key]
            except (KeyError, IndexError):
                return None
        return value

    rows = []
    for aim in json.loads(path.read_text('utf-8')):
        if aim.get('model', results.get('model')) != results.get('model'):
            continue
        bound = next(word for word in ('at_least', 'at_most', 'more_than', 'within') if word in aim)
        limit, measured = aim[bound], find(aim['at'])
        if bound == 'more_than':
            limit = find(limit)
        elif bound == 'within':
            other, bound = find(aim['of']), 'at_least'
            limit = None if other is None else other - limit
        met = '-'
        if limit is not None and measured is not None:
            holds = {'at_least': measured >= limit, 'at_most': measured <= limit, 'more_than': measured > limit}
            met = 'yes' if holds[bound] else '**no**'
        rows.append([aim['number'], f'{bound.replace("_", " ")} {percent(limit)}', percent(measured), met])
    return table(['number', 'expected', 'measured', 'met'], rows)


def percent(share: float | None) -> str:
    """Formats a share in [0, 1] as '97 %', or None as a dash."""
    return '-' if share is None else f'{100 * share:.0f} %'
