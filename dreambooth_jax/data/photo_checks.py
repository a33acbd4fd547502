"""Checks of a subject's photos before training: what is wrong with one, or with all of them together.

What is found is an error, if training would refuse the photo; a warning, if it is likely to spoil what is learned; or
a note, which only people can judge. No check knows what a photo shows. So nothing is found about a subject that is out
of focus before a sharp background, that is cut off by the edge of the photo, or that looks like another one; and where
there is no mask, nothing tells whether a crop cuts the subject. experiments/photo_checks measures how often the checks
find what they look for, and how often they are wrong.
"""

import dataclasses
import itertools
from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

import numpy as np
from PIL import Image

from dreambooth_jax.data import photo_measures, training_marks
from dreambooth_jax.data.buckets import Size
from dreambooth_jax.data.decode import ImageError, read_head
from dreambooth_jax.data.images import MAX_ZOOM, Crop, Photo, open_photo
from dreambooth_jax.data.subjects import ImageFile

ERROR, WARNING, NOTE = 'error', 'warning', 'note'
SEVERITIES = (ERROR, WARNING, NOTE)  # the worst first

# The limits. experiments/photo_checks says what they were chosen on, and what they find elsewhere.
BLUR = 1.0  # pixels, the width of the sharpest edges
SAME_PHOTO = 0.3  # share of the bits of two perceptual hashes
SAME_BACKGROUND = 0.88  # likeness of the colours at the edges
MOST = 0.8  # of all photos; so many on one background are too many
LETTERS = 8  # in a row
LETTERED = 256  # pixels, the side of crops below which neither letters nor a watermark could be told from other lines
DRAWN_ON_ALL = 100  # pixels with the same edge on all photos
DRAWN_EDGE = {4: 7.0, 5: 4.0}  # least number of photos -> levels, the least gradient of such an edge
OTHER_COLOURS = 0.17  # how much less alike one photo's middle is than those of the others are among each other
OTHER_FEATURES = 0.3  # the same for the features of an encoder
CUT = 0.02  # of the mask may lie outside the crop
LEFT_OUT = 0.2  # of the area of a photo is left out by its crop, from which on that is said
FEW = 3  # the paper has three to five photos of a subject
SHOWN = 640  # pixels, the longer side of photos that are kept to be looked at


class Finding(NamedTuple):
    """What a check has found.

    Attributes:
      severity: 'error', 'warning' or 'note'.
      check: the name of the check, such as 'blurred'.
      photo: the name of the photo; None: it is about all of them.
      found: what it is, as a phrase.
      advice: what to do about it, as a phrase.
    """

    severity: str
    check: str
    photo: str | None
    found: str
    advice: str

    def __str__(self) -> str:
        return f'{self.severity}: {self.photo or "all photos"}: {self.found}; {self.advice}'


@dataclasses.dataclass(frozen=True)
class Reading:
    """How a run reads its photos.

    Attributes:
      stages: name of a stage -> (height, width) pairs of the sizes that it trains on.
      crops: how many crops of each photo are trained on, the centre first.
      seed: of the random crops.
      consent: the setting data.consent.
      others: stage -> (crops, max_zoom) where it has other crops: how many, and up to which zoom.
    """

    stages: Mapping[str, Sequence[Size]]
    crops: int = 1
    seed: int = 0
    consent: str | None = None
    others: Mapping[str, tuple[int, float]] = dataclasses.field(default_factory=dict)


@dataclasses.dataclass(frozen=True, eq=False)
class CheckedPhoto:
    """A photo and what was found in it.

    Attributes:
      name: the name of its file.
      size: width and height in pixels; None if it cannot be read.
      shown: the photo, upright and in sRGB, at most SHOWN pixels large; None if it cannot be read.
      crops: stage -> the crops that the run trains on, the centre first; without stages for which it is too small.
      proposal: left, top, right and bottom in its pixels of a crop that may be better; None if there is no reason for
        one. Without a mask it leaves out bars and may cut the subject.
      findings: what was found, the worst first.
    """

    name: str
    size: tuple[int, int] | None
    shown: Image.Image | None
    crops: Mapping[str, Sequence[Crop]]
    proposal: tuple[int, int, int, int] | None
    findings: Sequence[Finding]

    @property
    def centre(self) -> Crop | None:
        """The centre crop of the stage with the largest one; None if there is none."""
        return max((crops[0] for crops in self.crops.values()), key=lambda crop: crop.image.size, default=None)


def check_photo(file: ImageFile, index: int, reading: Reading) -> CheckedPhoto:
    """Checks one photo.

    Args:
      file: the photo.
      index: its place in the order in which the run uses its photos.
      reading: how the run reads it.
    """
    name, findings = file.path.name, []

    def found(severity: str, check: str, what: str, advice: str) -> None:
        findings.append(Finding(severity, check, name, what, advice))

    try:
        head = read_head(file.path)
        photo = open_photo(file.path, file.mask)
    except ImageError as error:
        unreadable = _of_error('unreadable', file, error)
        return CheckedPhoto(name, None, None, {}, None, [unreadable])
    if marks := training_marks.find(head.data, head.format):
        words = f'it is marked "do not train" ({"; ".join(map(str, marks))})'
        if reading.consent is None:
            do = 'take it out, or say in config.data.consent whose consent to train on it there is and how it was given'
            found(ERROR, 'marked', words, do)
        else:
            found(NOTE, 'marked', words, f'config.data.consent says: {reading.consent}')
    crops = {}
    for stage, sizes in reading.stages.items():
        try:
            count, zoom = reading.others.get(stage, (reading.crops, MAX_ZOOM))
            crops[stage] = list(photo.cuts(sizes, index, crops=count, max_zoom=zoom, seed=reading.seed))
        except ImageError as error:
            findings.append(_of_error('too small', file, error))
            break
    needed = max(min(size) for sizes in reading.stages.values() for size in sizes)
    proposal = _propose(photo, found, crops, needed)
    if (image := CheckedPhoto(name, None, None, crops, None, ()).centre) is not None:
        findings += of_crop(name, image.image, image.mask)
    if head.format == 'HEIF':
        found(NOTE, 'HEIC', 'it is a HEIC image', 'it is read as it is, by pillow-heif')
    if head.is_turned:
        found(NOTE, 'orientation', 'it lies turned in its file', 'it is trained on upright, as shown here')
    if head.profile:
        found(NOTE, 'colours', f'its colours are those of the profile {head.profile}', 'they are converted to sRGB')
    shown = photo.image.copy()
    shown.thumbnail((SHOWN, SHOWN), Image.Resampling.LANCZOS)
    return CheckedPhoto(name, photo.image.size, shown, crops, proposal, worst_first(findings))


def of_crop(name: str, image: np.ndarray, mask: np.ndarray | None = None) -> list[Finding]:
    """Checks the pixels of a crop: whether it is blurred, and whether there is lettering at its edges.

    Args:
      name: the name of the photo.
      image: uint8[H, W, 3], at the size that is trained on.
      mask: uint8[H, W, 1]; only where it is not 0 the image must be sharp. None: anywhere.
    """
    findings = of_sharpness(name, image, mask)
    if min(image.shape[:2]) >= LETTERED and photo_measures.lettering(image, LETTERS):
        do = 'if it is a watermark or a date, crop it away or black it out in a mask, or the model will write it too'
        findings.append(Finding(NOTE, 'lettering', name, 'there may be lettering near its upper or lower edge', do))
    return findings


def of_sharpness(name: str, image: np.ndarray, mask: np.ndarray | None = None) -> list[Finding]:
    """Checks whether a crop is blurred; arguments as in `of_crop`."""
    width = photo_measures.edge_width(image, mask)
    if width is None or width <= BLUR:
        return []
    height, side = image.shape[:2]
    words = f'even its sharpest edges are blurred, by {width:.1f} pixels of its crop of {side} x {height}'
    return [Finding(WARNING, 'blurred', name, words, 'take a sharper photo, with more light or a steady hand')]


def check_together(
    names: Sequence[str], images: Sequence[np.ndarray], features: np.ndarray | None = None
) -> list[Finding]:
    """Checks the photos of one subject against each other.

    Args:
      names: the names of N photos.
      images: their centre crops, uint8[H, W, 3] of any sizes.
      features: f32[N, D], embeddings of length 1 by an encoder; None: there is none, and subjects are told apart by
        their colours alone.

    Returns:
      What was found, the worst first.
    """
    findings, twins = _duplicates(names, images)
    alone = [i for i in range(len(names)) if i not in twins]
    group = same_background(images)
    if len(group) >= max(FEW, MOST * len(images)):
        words = f'{len(group)} of {len(images)} have nearly the same colours all around, as of one background'
        do = 'take some in other places, or the model learns the place together with the subject'
        findings.append(Finding(WARNING, 'one background', None, words, do))
    elif drawn_on_all([images[i] for i in alone]):
        do = 'crop it away or black it out in masks, or the model will show it too'
        findings.append(Finding(WARNING, 'watermark', None, 'the same lines lie on all of them at one place', do))
    findings += _odd_one(names, images, features)
    if 0 < len(names) < FEW:
        words = f'there {"is only 1" if len(names) == 1 else f"are only {len(names)}"}'
        do = 'the paper has 3 to 5 photos of a subject; add some from other sides and in other places'
        findings.append(Finding(NOTE, 'few photos', None, words, do))
    return worst_first(findings)


def check_crops(photos: Sequence[CheckedPhoto]) -> list[Finding]:
    """Says how much of the photos the crops leave out, if that is much."""
    shares = {photo.name: _left_out(photo) for photo in photos if photo.centre}
    large = [share for share in shares.values() if share >= LEFT_OUT]
    if not large:
        return []
    least, most = (f'{100 * share:.0f}' for share in (min(large), max(large)))
    share = f'{most} %' if least == most else f'{least} to {most} %'
    words = f'the crop of {len(large)} of {len(shares)} leaves out {share} of the photo'
    do = (
        'look whether the subject is inside; if not, crop the photo by hand, set config.data.aspect_buckets=True, or '
        'paint a mask of the subject, by which the crop is checked'
    )
    return [Finding(NOTE, 'cropped', None, words, do)]


def same_background(images: Sequence[np.ndarray]) -> list[int]:
    """Returns the indices of images that are all alike in the colours around their middle.

    They are what is left when the image that is least like the others is taken away, until all are alike.
    """
    left = list(range(len(images)))
    colours = [photo_measures.border_colours(image) for image in images]
    while len(left) > 1:
        likeness = np.array([[colours[i] @ colours[j] for j in left] for i in left])
        if likeness.min() >= SAME_BACKGROUND:
            break
        left.pop(int(np.argmin(likeness.sum(axis=1))))
    return left


def drawn_on_all(images: Sequence[np.ndarray]) -> bool:
    """Returns whether the same lines lie on all images at one place.

    It takes four images to tell, none of them smaller than LETTERED.
    """
    if any(min(image.shape[:2]) < LETTERED for image in images):
        return False
    edge = next((edge for least, edge in sorted(DRAWN_EDGE.items(), reverse=True) if len(images) >= least), None)
    return edge is not None and photo_measures.shared_drawing(images, edge) > DRAWN_ON_ALL


def odd_one(likeness: np.ndarray) -> tuple[int, float]:
    """Returns the image that is least like the others, and by how much.

    Args:
      likeness: f[N, N], symmetric, of N >= 3 images.

    Returns:
      Its index, and the mean likeness of the others among each other less its own to them.
    """
    count = len(likeness)
    sums = likeness.sum(axis=1) - np.diag(likeness)
    index = int(np.argmin(sums))
    among = (sums.sum() - 2 * sums[index]) / ((count - 1) * (count - 2))
    return index, float(among - sums[index] / (count - 1))


def worst_first(findings: Sequence[Finding]) -> list[Finding]:
    """Returns findings with errors first, then warnings, then notes, otherwise in their order."""
    return sorted(findings, key=lambda finding: SEVERITIES.index(finding.severity))


def _of_error(check: str, file: ImageFile, error: ImageError) -> Finding:
    """Returns the finding about a photo that training refuses; the sentence of the error has an advice at its end."""
    words, _, advice = str(error).removeprefix(f'{file.path} ').partition('; ')
    return Finding(ERROR, check, file.path.name, f'it {words}' if not words.startswith('the ') else words, advice)


def _propose(
    photo: Photo, found: Callable[..., None], crops: Mapping[str, Sequence[Crop]], needed: int
) -> tuple[int, int, int, int] | None:
    """Looks for bars, and for a mask outside the crop.

    Args:
      found: records a finding: severity, check, words, advice.
      needed: the least side in pixels that a crop must have.

    Returns:
      A better crop; None if the centre is as good, or the better one would be too small.
    """
    width, height = photo.image.size
    inside, weights = photo_measures.without_bars(photo.image), None
    if photo.weights is not None and crops:
        weights = np.asarray(photo.weights, np.float64)
    better = _square(inside or (0, 0, width, height), weights)
    side = better[2] - better[0]
    left, top, right, bottom = better
    do = f'crop it to the {side} x {side} pixels that begin {left} from the left and {top} from the top'
    if side < needed:
        do = f'take another photo, for between them it has {side} pixels, of which the crop needs {needed}'
    if inside is not None:
        # Without a mask the square may cut a wide subject, for which somebody once added the bars.
        other = ' if the subject is inside, or cut the bars away and set config.data.aspect_buckets=True'
        words = 'it has bars of one colour at opposite edges, which the model would learn'
        found(WARNING, 'bars', words, do + (other if side >= needed and weights is None else ''))
    cut = 0.0
    if weights is not None:
        centre = max((some[0] for some in crops.values()), key=lambda crop: crop.image.size)
        left, top, right, bottom = (round(side) for side in centre.box)
        cut = 1 - weights[top:bottom, left:right].sum() / max(weights.sum(), 1)
    if cut > CUT:
        words = f'its crop cuts off {100 * cut:.0f} % of the subject, by its mask'
        found(WARNING, 'cut', words, f'{do}, or set config.data.aspect_buckets=True')
    return better if side >= needed and (inside is not None or cut > CUT) else None


def _square(inside: tuple[int, int, int, int], weights: np.ndarray | None) -> tuple[int, int, int, int]:
    """Returns the largest square in a part of a photo, where it holds most of the weights or else in the middle."""
    left, top, right, bottom = inside
    side = min(right - left, bottom - top)
    if weights is None:
        x, y = left + (right - left - side) // 2, top + (bottom - top - side) // 2
        return x, y, x + side, y + side
    is_wide = right - left > bottom - top
    along = weights[top:bottom, left:right].sum(axis=0 if is_wide else 1)
    sums = np.concatenate([[0], np.cumsum(along)])
    held = sums[side:] - sums[:-side]
    best = np.flatnonzero(held >= held.max() * (1 - 1e-9))
    start = int(best[len(best) // 2])  # of equally good ones the middle, so that the subject is not at the edge
    x, y = (left + start, top) if is_wide else (left, top + start)
    return x, y, x + side, y + side


def _left_out(photo: CheckedPhoto) -> float:
    left, top, right, bottom = photo.centre.box
    return 1 - (right - left) * (bottom - top) / (photo.size[0] * photo.size[1])


def _duplicates(names: Sequence[str], images: Sequence[np.ndarray]) -> tuple[list[Finding], set[int]]:
    """Returns findings about photos that are nearly the same as an earlier one, and the indices of these photos."""
    hashes = [photo_measures.perceptual_hashes(image) for image in images]
    findings, twins = [], set()
    for first, second in itertools.combinations(range(len(images)), 2):
        if (
            second in twins
            or first in twins
            or photo_measures.hash_distance(hashes[first], hashes[second]) > SAME_PHOTO
        ):
            continue
        twins.add(second)
        plain, mirrored = (np.mean(hashes[first][0] != one) for one in hashes[second])
        words = f'it shows nearly the same as {names[first]}{", mirrored" if mirrored < plain else ""}'
        do = 'keep one of the two, or take it from another side: twice the same photo is learned twice as fast'
        findings.append(Finding(WARNING, 'duplicate', names[second], words, do))
    return findings, twins


def _odd_one(names: Sequence[str], images: Sequence[np.ndarray], features: np.ndarray | None) -> list[Finding]:
    if len(images) < 4:  # with fewer there is no majority
        return []
    do = 'look whether it shows the same subject, and take it out if not'
    if features is not None:
        index, gap = odd_one(features @ features.T)
        words = f"the encoder's features of it are unlike those of the others, by {gap:.2f}"
        return [Finding(WARNING, 'other subject', names[index], words, do)] if gap > OTHER_FEATURES else []
    colours = np.stack([photo_measures.centre_colours(image) for image in images])
    index, gap = odd_one(colours @ colours.T)
    words = f'its middle has other colours than those of the others, by {gap:.2f}'
    return [Finding(NOTE, 'other subject', names[index], words, do)] if gap > OTHER_COLOURS else []
