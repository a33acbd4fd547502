"""Scores many runs of one subject each, as the paper's tables do: 25 prompts x 4 images, means over subjects.

    workdir/images/<run>/<model>/*.png    the images of a run
    workdir/images/base/<model>/*.png     those of the model before it: runs that began with the same model share them
    workdir/<run>.json                    the scores of a finished run, and a key of all that they depend on
    workdir/scores.json                   everything together

A subject is told from all others of the benchmark: their photos are its look-alikes, besides the images of its class.
What was interrupted goes on with the images that are missing, and a finished run whose key is still the same is not
measured again.

The mean of a score is the paper's: over all pairs of an image and a photo of one subject, then over subjects. Its
interval comes from the bootstrap over subjects.

Source: Ruiz et al. 2023, section 4.1 and table 1.
"""

import contextlib
import dataclasses
import hashlib
import json
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import numpy as np
from absl import logging
from tqdm import tqdm

from dreambooth_jax.config import ConfigError
from dreambooth_jax.evaluation import scores
from dreambooth_jax.evaluation.protocol import Subject, fingerprint
from dreambooth_jax.evaluation.run_scores import BASE, RUN, Measures, Opened, score
from dreambooth_jax.system import disk, lock

_CONFIG = 'config.json'
_VERSION = 1  # of the scores; a change of what they mean makes finished runs be measured again


class Known(NamedTuple):
    """What is known of a run before its weights are read.

    Attributes:
      subjects: what it was trained on.
      chosen: metric -> what it is measured with (run_scores.choose).
    """

    subjects: Sequence[Subject]
    chosen: Mapping[str, str]


class Runs(Protocol):
    """How runs are read, which whoever calls knows."""

    def read(self, run: Path) -> Known:
        """Reads what is known of a run without its weights."""

    def open(self, run: Path, subjects: Sequence[Subject]) -> Opened:
        """Reads a run's models, to be scored with these subjects."""

    def explained(self, error: Exception) -> str | None:
        """Returns the sentence about an error that people can mend; None for a bug."""


def run_folders(folder: Path) -> list[Path]:
    """Returns the folders of the runs that lie in a folder, sorted by name.

    Raises:
      ConfigError: if there is none.
    """
    found = sorted(path.parent for path in folder.glob(f'*/{_CONFIG}'))
    if not found:
        raise ConfigError(
            f"--benchmark is {str(folder)!r} but no folder in it is a run's (with {_CONFIG}); give the folder that "
            f'holds the --workdir of every run'
        )
    return found


def score_all(
    folders: Sequence[Path], workdir: Path, runs: Runs, load: Callable[[Mapping[str, str]], Measures]
) -> dict[str, Any]:
    """Scores runs of one subject each. A run that cannot be scored is a warning, and is named in the result.

    Args:
      folders: the runs' folders.
      workdir: where images and scores are kept.
      load: loads what runs are measured with.

    Returns:
      'subjects': run -> its scores, in the form of run_scores.score; 'missing': run -> why it has none; 'means': as
      `means` returns them.

    Raises:
      ConfigError: if no run can be scored, or if they would be measured with different networks.
      LockError: if another process works in `workdir`.
      OSError: if the disk is full.
    """
    known, missing, found = {}, {}, {}
    with lock.locked(workdir, 'wait until it has ended, or give another --workdir'):
        for run in folders:
            with _told(run, missing, runs):
                known[run] = _of_one_subject(run, runs.read(run))
        if known:
            measures = load(_same_for_all(known))
        photos = {run: _hashes(one.subjects[0].photos) for run, one in known.items()}
        for run in (bar := tqdm(known, unit='subject', dynamic_ncols=True)):
            bar.set_description(run.name)
            with _told(run, missing, runs):
                subject = _among_others(run, {other: one.subjects[0] for other, one in known.items()}, photos)
                found[run.name] = _score(run, runs.open(run, [subject]), measures, workdir)
    if not found:
        raise ConfigError(f'none of the {len(folders)} runs in {folders[0].parent} could be scored')
    return {'subjects': found, 'missing': missing, 'means': means(found)}


@contextlib.contextmanager
def _told(run: Path, missing: dict[str, str], runs: Runs) -> Iterator[None]:
    """Turns an error in the block that people can mend into a warning and an entry of `missing`; others pass."""
    try:
        yield
    except Exception as error:
        # Every other run would meet a full disk as well.
        sentence = None if disk.is_full(error) else runs.explained(error)
        if sentence is None:
            raise
        missing[run.name] = sentence
        logging.warning('%s is left out: %s', run.name, sentence)


def _of_one_subject(run: Path, known: Known) -> Known:
    if len(known.subjects) != 1:
        raise ConfigError(
            f'{run} has {len(known.subjects)} subjects but a benchmark compares runs of one; score it with --model'
        )
    return known


def _same_for_all(known: Mapping[Path, Known]) -> Mapping[str, str]:
    (first, one), *others = known.items()
    for run, other in others:
        if other.chosen != one.chosen:
            told = [', '.join(map(str, chosen.values())) for chosen in (one.chosen, other.chosen)]
            raise ConfigError(
                f'{first.name} would be measured with {told[0]} and {run.name} with {told[1]}, so that no mean of both '
                f'says anything; give --metrics, --dino and --clip for all'
            )
    return one.chosen


def _among_others(run: Path, subjects: Mapping[Path, Subject], photos: Mapping[Path, Sequence[str]]) -> Subject:
    """Returns the subject with all others' photos as look-alikes; photos that are its own too are none."""
    seen, look_alikes = set(photos[run]), []
    for other, subject in subjects.items():
        for photo, content in zip(subject.photos, photos[other], strict=True):
            if content not in seen:
                seen.add(content)
                look_alikes.append(photo)
    return dataclasses.replace(subjects[run], look_alikes=tuple(look_alikes))


def _score(run: Path, opened: Opened, measures: Measures, workdir: Path) -> dict[str, Any]:
    path, key = workdir / f'{run.name}.json', _key(opened, measures)
    try:
        kept = json.loads(path.read_text('utf-8'))
        if kept['key'] == key:
            return kept['scores']
    except (OSError, ValueError, TypeError, KeyError):
        pass  # there is none yet, or it was not written by this program: it is measured (again)
    images = workdir / 'images'
    found = score(opened, measures, {RUN: images / run.name, BASE: images / BASE})
    with disk.writing(path) as new:
        new.write_text(json.dumps({'key': key, 'scores': found}, indent=1) + '\n', 'utf-8')
    return found


def _key(opened: Opened, measures: Measures) -> str:
    """Returns a hash of everything that the scores of a run depend on."""
    (subject,) = opened.subjects
    parts = {
        'version': _VERSION,
        'models': {title: fingerprint(model, opened.options) for title, model in opened.models.items()},
        'sampling': vars(opened.options),
        'origins': list(opened.origins),
        'measures': [type(one).__name__ for one in measures.evaluators],
        'networks': dict(measures.used),
        'counts': [measures.num_images, measures.class_images],
        'subject': [subject.name, subject.class_prompt, subject.prompts, subject.built_in],
        'photos': _hashes(subject.photos),
        'masks': [None if mask is None else _hashes([mask]) for mask in subject.masks],
        'look_alikes': _hashes(subject.look_alikes),
    }
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()


def _hashes(images: Iterable[np.ndarray]) -> list[str]:
    return [hashlib.sha256(repr(image.shape).encode() + image.tobytes()).hexdigest() for image in images]


def means(found: Mapping[str, Any]) -> dict[str, Any]:
    """Returns the means over subjects.

    Args:
      found: run -> its scores, in the form of run_scores.score.

    Returns:
      model -> score -> value, low, high and the number of subjects; under 'live', 'objects' and 'kinds' the same for
      the subjects that can wear things, for the others, and for each kind of prompt. 'ceiling' -> score -> value: of
      the photos with each other, of the subjects that have more than one.
    """
    models: dict[str, dict[str, Any]] = {}
    ceilings: dict[str, list[float]] = {}
    for scored in found.values():
        ((subject, about),) = scored['subjects'].items()
        for model, measured in scored['models'].items():
            for name, told in measured[subject].items():
                rows = models.setdefault(model, {}).setdefault(
                    name, {'all': [], 'live': [], 'objects': [], 'kinds': {}}
                )
                for group in ('all', 'live' if about['live'] else 'objects'):
                    rows[group].append(told['value'])
                for kind, part in told['kinds'].items():
                    rows['kinds'].setdefault(kind, []).append(part['value'])
        for name, of_subjects in scored['ceiling'].items():
            if of_subjects[subject]['others'] is not None:
                ceilings.setdefault(name, []).append(of_subjects[subject]['others'])
    return {
        **{
            model: {
                name: {
                    **_mean(rows['all']),
                    **{group: _mean(rows[group]) for group in ('live', 'objects') if rows[group]},
                    'kinds': {kind: _mean(values) for kind, values in rows['kinds'].items()},
                }
                for name, rows in by_name.items()
            }
            for model, by_name in models.items()
        },
        'ceiling': {name: float(np.mean(values)) for name, values in ceilings.items()},
    }


def _mean(values: Sequence[float]) -> dict[str, Any]:
    found = scores.score(values, [f'{number:06d}' for number in range(len(values))])
    return {'value': found.value, 'low': found.low, 'high': found.high, 'subjects': len(values)}
