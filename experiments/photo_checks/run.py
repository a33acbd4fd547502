"""Measures how often the checks of photos find what they look for, and how often they are wrong.

  python experiments/photo_checks/run.py --photos=dreambooth/dataset

The photos are those of the paper (a clone of https://github.com/google/dreambooth), 30 subjects, and Storybook's
paintings of the same subjects. They are taken as they are, for false findings, and bent, for what should be found. Half
of the subjects, every second by name, are those that the limits were chosen on. Expected: see expected.json. About 10
minutes on two CPU cores, no accelerator.
"""

import collections
import datetime
import io
import re
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import numpy as np
from absl import app, flags
from PIL import Image, ImageDraw, ImageFont
from scipy import ndimage

from dreambooth_jax.data import photo_checks, photo_measures, provenance
from dreambooth_jax.data.images import read_image
from dreambooth_jax.data.photo_checks import Finding
from dreambooth_jax.evaluation import experiment
from dreambooth_jax.evaluation.encoders import load_encoder
from dreambooth_jax.storybook import draw, subjects

HERE = Path(__file__).parent
_PHOTOS = flags.DEFINE_string('photos', None, "The paper's photos: a folder with a folder for each subject.")
_SIDE = flags.DEFINE_integer('side', 512, 'Side of the crops of photos in pixels.', lower_bound=128)
_OUTPUT = flags.DEFINE_string('output', str(HERE), 'Folder of results.json and README.md.')
_STRANGERS = flags.DEFINE_integer('strangers', 10, 'Strangers that are tried in each subject.', lower_bound=1)

PAINTED_SIDE = 128
# What can be seen by eye to be on one background, or twice the same photo: findings about them are right.
ONE_BACKGROUND = {'berry_bowl', 'red_cartoon', 'cat', 'dog6'}
SAME_PHOTOS = {('dog5', '03.jpg')}  # the mirror image of dog5/02.jpg
CHOSEN, REPORTED = 'chosen on', 'reported on'

Sets = dict[str, list[tuple[str, np.ndarray]]]  # subject -> (file name, image)


def real(folder: Path, side: int) -> Sets:
    """The paper's photos, cropped as for training."""
    found = {}
    for one in sorted(path for path in folder.iterdir() if path.is_dir()):
        found[one.name] = [(path.name, read_image(path, side)) for path in sorted(one.glob('*.jpg'))]
    return found


def painted() -> Sets:
    """Storybook's paintings of its subjects."""
    return {
        name: [
            (f'{number:02d}.png', draw.paint(scene, PAINTED_SIDE))
            for number, scene in enumerate(subjects.reference_scenes(name))
        ]
        for name in subjects.SUBJECTS
    }


def halves(sets: Sets) -> Iterator[tuple[str, Sets]]:
    """Every second subject by name, and the others."""
    names = sorted(sets)
    for which, chosen in ((CHOSEN, names[::2]), (REPORTED, names[1::2])):
        yield which, {name: sets[name] for name in chosen}


def of_all(sets: Sets) -> list[tuple[str, Finding]]:
    """What the checks find in photos as they are: (subject, finding)."""
    found = []
    for name, photos in sets.items():
        for file, image in photos:
            found += [(name, finding) for finding in photo_checks.of_crop(file, image)]
        found += [(name, one) for one in photo_checks.check_together(*zip(*photos, strict=True))]
    return found


def is_right(subject: str, finding: Finding) -> bool:
    if finding.check == 'one background':
        return subject in ONE_BACKGROUND
    return finding.check == 'duplicate' and (subject, finding.photo) in SAME_PHOTOS


def false_findings(sets: Sets) -> dict[str, dict]:
    """Check -> how many photos and subjects have a finding, and which of them are wrong."""
    found = of_all(sets)
    photos = sum(map(len, sets.values()))
    numbers = {}
    for check in ('blurred', 'lettering', 'duplicate', 'one background', 'watermark', 'other subject'):
        mine = [(subject, one) for subject, one in found if one.check == check]
        wrong = [(subject, one) for subject, one in mine if not is_right(subject, one)]
        numbers[check] = {
            'subjects': len({subject for subject, _ in mine}) / len(sets),
            'wrong subjects': len({subject for subject, _ in wrong}) / len(sets),
            'wrong photos': len(wrong) / photos,
            'wrong': [f'{subject}/{one.photo or "all"}' for subject, one in wrong],
        }
    any_wrong = {subject for subject, one in found if one.check in numbers and not is_right(subject, one)}
    warned = {subject for subject, one in found if one.severity == 'warning' and not is_right(subject, one)}
    return {**numbers, 'any': len(any_wrong) / len(sets), 'any warning': len(warned) / len(sets)}


# Bent photos


def blurred(width: float) -> Callable[[np.ndarray], np.ndarray]:
    return lambda image: ndimage.gaussian_filter(image, (width, width, 0))


def moved(length: int) -> Callable[[np.ndarray], np.ndarray]:
    """Blurred as by a camera that moves this many pixels, along rows or columns by chance of the image."""

    def move(image):
        axis = int(image.sum()) % 2
        return ndimage.uniform_filter1d(image.astype(np.float32), length, axis=axis).astype(np.uint8)

    return move


def stored(image: np.ndarray) -> np.ndarray:
    file = io.BytesIO()
    provenance.save(image, file, source=None, format='JPEG', quality=40)  # a photo, or a painting in its place
    return np.asarray(Image.open(file))


def cropped(share: float) -> Callable[[np.ndarray], np.ndarray]:
    """A corner of the image, enlarged again."""

    def crop(image):
        side = round(len(image) * share)
        return np.asarray(Image.fromarray(image[:side, :side]).resize(image.shape[1::-1], Image.Resampling.LANCZOS))

    return crop


def lettered(text: str, place: tuple[float, float], size: float, alpha: int) -> Callable[[np.ndarray], np.ndarray]:
    """With white letters at a place, which is given in shares of the sides."""

    def write(image):
        shown = Image.fromarray(image).convert('RGBA')
        over = Image.new('RGBA', shown.size, (0, 0, 0, 0))
        font = ImageFont.load_default(round(size * shown.width))
        at = (place[0] * shown.width, place[1] * shown.height)
        ImageDraw.Draw(over).text(at, text, font=font, fill=(255, 255, 255, alpha))
        return np.asarray(Image.alpha_composite(shown, over).convert('RGB'))

    return write


def barred(share: float) -> Callable[[np.ndarray], np.ndarray]:
    """With black bars at the top and bottom."""

    def bar(image):
        bent, side = np.zeros_like(image), round(share * len(image))
        inside = Image.fromarray(image).resize((image.shape[1], len(image) - 2 * side))
        bent[side:-side] = np.asarray(inside)
        return bent

    return bar


ON_PHOTOS = {
    'blur of 1.5 pixels': ('blurred', blurred(1.5)),
    'blur of 2 pixels': ('blurred', blurred(2)),
    'blur of 3 pixels': ('blurred', blurred(3)),
    'moved by 8 pixels': ('blurred', moved(8)),
    'moved by 16 pixels': ('blurred', moved(16)),
    'a line of text at the bottom': ('lettering', lettered('© Photo by Jane Doe', (0.04, 0.93), 0.04, 200)),
    'a date at the bottom': ('lettering', lettered('24.12.2025 18:05', (0.6, 0.93), 0.04, 255)),
}
TWICE = {
    'a poor JPEG of a photo': stored,
    'its mirror image': lambda image: np.ascontiguousarray(image[:, ::-1]),
    'brighter': lambda image: np.clip(image * 1.3 + 10, 0, 255).astype(np.uint8),
    'cropped to 97 %': cropped(0.97),
    'cropped to 90 %': cropped(0.9),
}
ON_ALL = {
    'a watermark in the middle': lettered('stockphotos.com', (0.25, 0.45), 0.06, 110),
    'a line of text at the bottom': lettered('© Photo by Jane Doe', (0.04, 0.93), 0.04, 200),
}


def found_in_photos(sets: Sets, bends: dict) -> dict[str, float]:
    """Bend -> the share of photos in which it is found."""
    images = [image for photos in sets.values() for _, image in photos]
    numbers = {}
    for name, (check, bend) in bends.items():
        findings = [photo_checks.of_crop('', bend(image)) for image in images]
        numbers[name] = float(np.mean([any(one.check == check for one in found) for found in findings]))
    bars = [photo_measures.without_bars(Image.fromarray(barred(0.1)(image))) for image in images]
    numbers['bars'] = float(np.mean([one is not None for one in bars]))
    return numbers


def found_in_sets(sets: Sets) -> dict[str, float]:
    """Bend -> the share of subjects in which it is found."""
    numbers = {}
    for name, bend in TWICE.items():
        found = []
        for photos in sets.values():
            image = photos[0][1]
            first, second = (photo_measures.perceptual_hashes(one) for one in (image, bend(image)))
            found.append(photo_measures.hash_distance(first, second) <= photo_checks.SAME_PHOTO)
        numbers[f'twice: {name}'] = float(np.mean(found))
    for name, bend in ON_ALL.items():
        found = [
            photo_checks.check_together([file for file, _ in photos], [bend(image) for _, image in photos])
            for photos in sets.values()
            if len(photos) >= min(photo_checks.DRAWN_EDGE)
        ]
        numbers[f'on all: {name}'] = float(np.mean([any(one.check == 'watermark' for one in all_) for all_ in found]))
    return numbers


def class_of(subject: str) -> str:
    return re.sub(r'\d+$', '', subject)


def strangers(sets: Sets, embed: Callable[[Sequence[np.ndarray]], np.ndarray] | None, count: int) -> dict[str, float]:
    """How often a photo of another subject in the place of the last photo is found, and how often wrongly."""
    rng, numbers = np.random.default_rng(0), collections.defaultdict(list)

    def told(images):
        features = None if embed is None else embed(images)
        found = photo_checks._odd_one([str(i) for i in range(len(images))], images, features)
        return found[0].photo if found else None

    for name, photos in sets.items():
        images = [image for _, image in photos]
        if len(images) < 4:
            continue
        numbers['wrongly'].append(told(images) is not None)
        others = [(other, image) for other, theirs in sets.items() if other != name for _, image in theirs]
        of_class = [one for one in others if class_of(one[0]) == class_of(name)]
        for kind, pool in (('of any class', others), ('of the same class', of_class)):
            for index in rng.integers(len(pool), size=count if pool else 0):
                numbers[kind].append(told([*images[:-1], pool[index][1]]) == str(len(images) - 1))
    return {kind: float(np.mean(found)) for kind, found in numbers.items()}


def measured(sets: dict[str, Sets]) -> dict[str, dict]:
    """All numbers, by kind of images and half."""
    encoder = load_encoder('storybook-dino')
    numbers = {}
    for kind, every in sets.items():
        for half, some in halves(every):
            numbers[f'{kind}, {half}'] = {
                'as they are': false_findings(some),
                'bent photos': found_in_photos(some, ON_PHOTOS),
                'bent sets': found_in_sets(some),
                'strangers by colours': strangers(some, None, _STRANGERS.value),
                'strangers by storybook-dino': strangers(some, encoder.embed_images, _STRANGERS.value),
            }
    return numbers


def tables(results: dict[str, dict]) -> str:
    """Returns what was measured as Markdown."""
    percent, kinds = experiment.percent, list(results)
    first = results[kinds[0]]
    wrong = [
        [check, *(percent(results[kind]['as they are'][check]['wrong subjects']) for kind in kinds)]
        for check, found in first['as they are'].items()
        if isinstance(found, dict)
    ]
    for name in ('any', 'any warning'):
        wrong.append([f'{name} of these', *(percent(results[kind]['as they are'][name]) for kind in kinds)])
    found = [
        [name, *(percent(results[kind][part][name]) for kind in kinds)]
        for part in ('bent photos', 'bent sets')
        for name in first[part]
    ]
    for part in ('strangers by colours', 'strangers by storybook-dino'):
        for name in first[part]:
            found.append([f'{part}: {name}', *(percent(results[kind][part].get(name)) for kind in kinds)])
    return '\n\n'.join(
        [
            'Subjects with a wrong finding:',
            experiment.table(['check', *kinds], wrong),
            'What is found, of all bent photos or sets:',
            experiment.table(['bent', *kinds], found),
        ]
    )


def main(_):
    output, started = Path(_OUTPUT.value), time.perf_counter()
    sets = {'photos': real(Path(_PHOTOS.value), _SIDE.value), 'paintings': painted()}
    if not sets['photos']:
        raise app.UsageError(f'--photos={_PHOTOS.value} holds no folder; give the folder dataset of a clone')
    results = measured(sets)
    seconds = round(time.perf_counter() - started)
    note = {'seconds': seconds, 'hardware': experiment.hardware(), 'date': f'{datetime.date.today()}'}
    found = {'measured': experiment.measured_on([{'measured': note}]), 'results': results}
    experiment.write_json(output / 'results.json', found)
    experiment.report(output, HERE / 'expected.json', found, tables(results))


if __name__ == '__main__':
    flags.mark_flag_as_required('photos')
    app.run(main)
