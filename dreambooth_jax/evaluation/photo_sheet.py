"""photos.html: every photo with its crops as training has them and what was found, in one file to look at.

On each photo, what the centre crop leaves out is darkened, and a better crop is outlined where there is one. All text
is escaped, the images are inside, and a Content-Security-Policy forbids everything else.
"""

import math
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw

from dreambooth_jax.data.checked_photos import CheckedSubject
from dreambooth_jax.data.photo_checks import CheckedPhoto, Finding
from dreambooth_jax.evaluation import page
from dreambooth_jax.evaluation.embedded_images import Detail, EmbeddedImages, Shown
from dreambooth_jax.evaluation.markup import Markup, element
from dreambooth_jax.system import disk

FILE = 'photos.html'
_PHOTO_SIDE = 320  # pixels
_LARGEST = 512  # pixels, of crops
_DARKER = 0.35  # of the light that the part outside the crop keeps
_OUTLINE = (255, 140, 0)


def write(folder: Path, subjects: Sequence[CheckedSubject], verdict: str, steps: str) -> None:
    """Writes the sheet.

    Args:
      folder: where photos.html goes; it exists.
      subjects: the checked photos.
      verdict: a sentence about all findings.
      steps: a sentence about the number of steps.

    Raises:
      OSError: if the disk does not take the file.
    """
    detail = Detail(side=_LARGEST, grid_side=0, grids=0, class_images=0, per_prompt=0, with_base=False)
    embedded = EmbeddedImages(detail=detail, limit=math.inf)
    parts = [element('h1', 'Photos before training'), element('p', verdict, class_='verdict'), element('p', steps)]
    parts.append(element('p', _KEY, class_='muted'))
    for subject in subjects:
        parts.append(element('h2', subject.place))
        parts.append(_listed([finding for finding in subject.findings if finding.photo is None]))
        parts += [_photo(subject, photo, embedded) for photo in subject.photos]
        names = {photo.name for photo in subject.photos}
        others = [finding for finding in subject.findings if finding.photo and finding.photo not in names]
        parts.append(_listed(others, named=True))
    text = page.document('Photos before training', element('main', *parts), page.own_file('photos.css'))
    with disk.writing(folder / FILE) as new:
        new.write_text(text, 'utf-8')


_KEY = (
    'What the centre crop leaves out is darkened; an orange square is a crop that may be better. Beside the photo are '
    'the crops as the model sees them. An error is refused by training, a warning is likely to spoil what is learned, '
    'a note is for you to judge. No check knows what a photo shows: look whether the subject is inside every crop, '
    'sharp, and the same on all photos.'
)


def _photo(subject: CheckedSubject, photo: CheckedPhoto, embedded: EmbeddedImages) -> Markup:
    size = f'{photo.size[0]} x {photo.size[1]} pixels' if photo.size else 'cannot be read'
    whole = []
    if photo.shown is not None:
        image = np.asarray(_drawn(photo))
        whole.append(embedded.image(Shown(image, photo.name), _PHOTO_SIDE))
    crops = []
    for stage, cut in photo.crops.items():
        height, width = cut[0].image.shape[:2]
        # Not smaller than they are, so that their sharpness can be seen.
        shown = (Shown(crop.image, f'{photo.name}, crop {number}') for number, crop in enumerate(cut, start=1))
        images = [embedded.image(one, _LARGEST, class_='crop') for one in shown]
        crops.append(element('figure', *images, element('figcaption', f'{stage}, {width} x {height}')))
    about = element(
        'div', element('h3', photo.name), element('p', size, class_='muted'), _listed(subject.of_photo(photo))
    )
    columns = [element('div', *whole, class_='whole'), element('div', *crops, class_='crops'), about]
    return element('section', *columns, class_='photo')


def _drawn(photo: CheckedPhoto) -> Image.Image:
    """Returns the photo with what its centre crop leaves out darkened, and its better crop outlined."""
    shown = photo.shown.copy()
    shown.thumbnail((2 * _PHOTO_SIDE, 2 * _PHOTO_SIDE), Image.Resampling.LANCZOS)
    scale = shown.width / photo.size[0]
    if photo.centre is not None:
        box = tuple(round(side * scale) for side in photo.centre.box)
        darker = shown.point(lambda level: round(level * _DARKER))
        darker.paste(shown.crop(box), box)
        shown = darker
    if photo.proposal is not None:
        left, top, right, bottom = (round(side * scale) for side in photo.proposal)
        ImageDraw.Draw(shown).rectangle((left, top, right - 1, bottom - 1), outline=_OUTLINE, width=4)
    return shown


def _listed(findings: Sequence[Finding], named: bool = False) -> Markup | None:
    if not findings:
        return None
    lines = []
    for one in findings:
        name = f'{one.photo}: ' if named else ''
        words = [element('b', one.severity), f' {name}{one.found}; {one.advice}']
        lines.append(element('li', *words, class_=one.severity))
    return element('ul', *lines, class_='findings')
