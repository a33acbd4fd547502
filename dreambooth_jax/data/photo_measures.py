"""Numbers about photos that checks are made of: sharpness, lettering, what is alike, bars.

All of them are computed from pixels with plain statistics, without a network, and none knows what a photo shows. The
limits up to which a number is no cause for a finding are in photo_checks.py, with what they were chosen on.
"""

from collections.abc import Sequence

import imagehash
import numpy as np
from PIL import Image, ImageCms
from scipy import ndimage

_FINE, _COARSE = 1.0, 2.0  # standard deviations in pixels of the two smoothings that widths of edges are told from
_LEAST_EDGE = 1.0  # levels for each pixel, below which a gradient is noise
_DIRECTIONS = 4
_LEAST_EDGES = 20  # of one direction, to say something about it
_HASH = 16  # a perceptual hash has 16 x 16 bits
_TEXT_SIDE = 512  # pixels, at which letters are looked for
_STROKES = 13  # pixels, more than the strokes of letters are wide
_TEXT_CONTRASTS = (14, 40, 80)  # levels; letters stand out at one of them, whatever is behind them
_TEXT_ZONE = 0.2  # of the height, at the top and at the bottom
_GRAIN = 64  # pixels, the side at which colours and backgrounds are compared
_BAR_STEP, _BAR_NOISE = 12, 6  # levels: where a bar ends, and how even it is


def edge_width(image: np.ndarray, mask: np.ndarray | None = None) -> float | None:
    """Returns how blurred the sharpest edges of an image are: the standard deviation of their blur in pixels.

    It is 0 where edges are as sharp as pixels allow. An edge is blurred already if edges of one direction are, as when
    the camera moved, so the value is that of the direction with the widest edges. The sharpest quarter of the strongest
    edges counts, so that a background out of focus does not.

    Args:
      image: uint8[H, W, 3].
      mask: uint8[H, W, 1]; edges where it is 0 do not count. None: all count.

    Returns:
      The width, or None if the image has too few edges of different directions to tell.

    Source: Zhuo and Sim, "Defocus map estimation from a single image" (2011), for the ratio of gradients.
    """
    grey = _grey(image)
    down, right = (ndimage.gaussian_filter(grey, _FINE, order=order) for order in ((1, 0), (0, 1)))
    fine = np.hypot(down, right)
    coarse = np.hypot(*(ndimage.gaussian_filter(grey, _COARSE, order=order) for order in ((1, 0), (0, 1))))
    peaks = (fine == ndimage.maximum_filter(fine, 3)) & (fine > _LEAST_EDGE)
    if mask is not None:
        peaks &= mask[..., 0] > 0
    for side in (slice(None, 6), slice(-6, None)):  # smoothing has mirrored the image there
        peaks[side] = peaks[:, side] = False
    # The gradient of an edge of width w, smoothed by s, is proportional to 1 / sqrt(w^2 + s^2).
    strength = fine[peaks]
    ratio = (strength / np.maximum(coarse[peaks], 1e-6)) ** 2
    ratio = np.clip(ratio, 1.001, (_COARSE / _FINE) ** 2)
    width = np.sqrt((_COARSE**2 - ratio * _FINE**2) / (ratio - 1))
    angle = np.arctan2(down[peaks], right[peaks])
    direction = np.rint(angle / np.pi * _DIRECTIONS).astype(int) % _DIRECTIONS
    widths = []
    for one in range(_DIRECTIONS):
        among = np.flatnonzero(direction == one)
        if len(among) >= _LEAST_EDGES:
            strongest = among[np.argsort(-strength[among])[: max(_LEAST_EDGES, len(among) // 10)]]
            widths.append(float(np.quantile(width[strongest], 0.25)))
    return max(widths) if len(widths) > 1 else None


def lettering(image: np.ndarray, least: int) -> list[tuple[float, float, float, float]]:
    """Finds what looks like a line of letters near the upper or the lower edge of an image.

    A line is a row of at least `least` spots side by side, of about one height, on one line, equally bright or dark.

    Args:
      image: uint8[H, W, 3]; it is looked at with its longer side at 512 pixels.

    Returns:
      left, top, right and bottom of every line as shares of the width and height; empty if there is none.
    """
    small = Image.fromarray(image)
    small.thumbnail((_TEXT_SIDE, _TEXT_SIDE), Image.Resampling.LANCZOS)
    grey = _grey(np.asarray(small))
    height, width = grey.shape
    zone, found = round(_TEXT_ZONE * height), []
    for start in (0, height - zone):
        for sign in (1, -1):  # bright letters, dark ones
            values = sign * grey[start : start + zone]
            strokes = values - ndimage.grey_opening(values, size=(_STROKES, _STROKES))
            for contrast in _TEXT_CONTRASTS:
                found += [
                    (left / width, (top + start) / height, right / width, (bottom + start) / height)
                    for left, top, right, bottom in _rows(_spots(strokes, contrast), least)
                ]
    return found


def _spots(strokes: np.ndarray, contrast: float) -> list[tuple[int, int, int, int, float]]:
    """Returns spots that may be letters, from left to right: left, top, right, bottom and their mean contrast."""
    labels, count = ndimage.label(strokes > contrast, structure=np.ones((3, 3)))
    areas = np.bincount(labels.ravel(), minlength=count + 1)
    contrasts = np.bincount(labels.ravel(), strokes.ravel(), minlength=count + 1) / np.maximum(areas, 1)
    found = []
    for number, (rows, columns) in enumerate(ndimage.find_objects(labels), start=1):
        height, width = rows.stop - rows.start, columns.stop - columns.start
        if 7 <= height <= 40 and 2 <= width <= 1.6 * height and 0.18 <= areas[number] / (height * width) <= 0.95:
            found.append((columns.start, rows.start, columns.stop, rows.stop, contrasts[number]))
    return sorted(found)


def _rows(spots: Sequence[tuple[int, int, int, int, float]], least: int) -> list[tuple[int, int, int, int]]:
    """Returns the boxes of the rows that at least so many spots form."""
    rows, used = [], set()
    for first in range(len(spots)):
        if first in used:
            continue
        row = [first]
        while (following := _following(spots, row)) is not None:
            row.append(following)
        if len(row) >= least:
            used.update(row)
            left, top, _, _ = np.min([spots[i][:4] for i in row], axis=0)
            _, _, right, bottom = np.max([spots[i][:4] for i in row], axis=0)
            rows.append((int(left), int(top), int(right), int(bottom)))
    return rows


def _following(spots: Sequence[tuple[int, int, int, int, float]], row: Sequence[int]) -> int | None:
    """Returns the spot that continues a row, None if none does."""
    left, top, right, bottom, contrast = spots[row[-1]]
    height = float(np.median([spots[i][3] - spots[i][1] for i in row]))
    for number in range(row[-1] + 1, len(spots)):
        other_left, other_top, _, other_bottom, other_contrast = spots[number]
        if other_left - right > 1.2 * height:
            return None
        offsets = sorted((abs(other_top - top), abs(other_bottom - bottom)))
        is_letter = (
            other_left >= right - 0.3 * height
            and 0.6 < (other_bottom - other_top) / height < 1.65
            and offsets[0] < 0.18 * height  # letters share their upper or their lower line
            and offsets[1] < 0.5 * height
            and 0.5 < other_contrast / contrast < 2
        )
        if is_letter:
            return number
    return None


def shared_drawing(images: Sequence[np.ndarray], least: float) -> int:
    """Counts the pixels at which all images have the same edge, as where one watermark lies on all of them.

    Args:
      images: N >= 2 images, uint8[H, W, 3] of any sizes; they are compared at 256 x 256 pixels.
      least: levels for each pixel, the least gradient that is an edge.

    Returns:
      The number of pixels, without spots of fewer than five.

    Source: after Dekel et al., "On the effectiveness of visible watermarks" (2017), who take the median of gradients
      over many images; few images need all of them to agree.
    """
    gradients = []
    for image in images:
        grey = _grey(np.asarray(Image.fromarray(image).resize((256, 256), Image.Resampling.LANCZOS)))
        gradients.append([ndimage.gaussian_filter(grey, 0.7, order=order) for order in ((0, 1), (1, 0))])
    stacked = np.array(gradients)
    agree = (stacked > 0).all(axis=0) | (stacked < 0).all(axis=0)
    common = np.where(agree, np.abs(stacked).min(axis=0), 0)
    labels, count = ndimage.label(np.hypot(*common) > least, structure=np.ones((3, 3)))
    sizes = np.bincount(labels.ravel(), minlength=count + 1)[1:]
    return int(sizes[sizes >= 5].sum())


def hash_distance(first: np.ndarray, second: np.ndarray) -> float:
    """Returns the share of the bits in which two images' perceptual hashes differ, the second mirrored if that is less.

    0 is alike and 0.5 unlike.

    Args:
      first, second: the hashes as `perceptual_hashes` returns them.
    """
    return float(min(np.mean(first[0] != second[0]), np.mean(first[0] != second[1])))


def perceptual_hashes(image: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Returns the perceptual hashes (pHash) of an image, uint8[H, W, 3], and of its mirror image, bool[256] each."""
    shown = Image.fromarray(image)
    mirrored = shown.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
    return tuple(imagehash.phash(one, hash_size=_HASH).hash.ravel() for one in (shown, mirrored))


def border_colours(image: np.ndarray) -> np.ndarray:
    """Returns the square roots of the shares of colours in the outer eighth of an image, uint8[H, W, 3].

    The dot product of two such vectors is 1 where the shares are equal and 0 where no colour is in both (Bhattacharyya
    coefficient).

    Returns:
      f64[320], of length 1.
    """
    lab = _lab(image)
    is_border = np.ones(lab.shape[:2], bool)
    edge = _GRAIN // 8
    is_border[edge:-edge, edge:-edge] = False
    return _colours(lab[is_border])


def centre_colours(image: np.ndarray) -> np.ndarray:
    """Returns the same as `border_colours` of the middle of an image, half as wide and high."""
    quarter = _GRAIN // 4
    return _colours(_lab(image)[quarter:-quarter, quarter:-quarter].reshape(-1, 3))


def without_bars(image: Image.Image) -> tuple[int, int, int, int] | None:
    """Finds bars of one colour on two opposite sides of an image, as cinema formats have.

    Returns:
      left, top, right and bottom of the image between the bars, in its pixels; None if there are none.
    """
    small = image.convert('L')
    small.thumbnail((512, 512), Image.Resampling.BOX)
    grey = np.asarray(small, np.float32)
    bars = {axis: _bars(grey if axis else grey.T) for axis in (0, 1)}  # axis 1: at the top and bottom
    if not any(bars.values()):
        return None
    (left, right), (top, bottom) = (bars[axis] or (0, 0) for axis in (0, 1))
    scale = image.width / small.width
    # One pixel of the small image more, because the edge of a bar may lie inside it.
    near, far = (lambda side: round((side + 1) * scale) if side else 0), (lambda side: round((side + 1) * scale))
    return (
        near(left),
        near(top),
        image.width - (far(right) if right else 0),
        image.height - (far(bottom) if bottom else 0),
    )


def _bars(grey: np.ndarray) -> tuple[int, int] | None:
    """Returns how many rows at the top and at the bottom are bars; None unless both are."""
    found = []
    for rows in (grey, grey[::-1]):
        level = np.median(rows[0])
        is_even = (np.abs(rows - level) <= _BAR_NOISE).mean(axis=1) > 0.99
        length = len(rows) if is_even.all() else int(np.argmin(is_even))
        # A bar ends with an edge along most of it; a plain background ends where a subject begins, here and there.
        behind = rows[length + 1] if length + 1 < len(rows) else rows[-1]
        has_end = (np.abs(behind - level) > _BAR_STEP).mean() > 0.5
        found.append((length, level) if length >= 0.02 * len(rows) and has_end else None)
    if None in found or abs(found[0][1] - found[1][1]) > _BAR_NOISE:
        return None
    return found[0][0], found[1][0]


def _grey(image: np.ndarray) -> np.ndarray:
    return np.asarray(image, np.float32) @ np.array([0.299, 0.587, 0.114], np.float32)


_TO_LAB = ImageCms.buildTransform(ImageCms.createProfile('sRGB'), ImageCms.createProfile('LAB'), 'RGB', 'LAB')


def _lab(image: np.ndarray) -> np.ndarray:
    """Returns an image at 64 x 64 pixels as CIE Lab, f64[64, 64, 3]: lightness 0 to 100, a and b around 0."""
    small = Image.fromarray(image).resize((_GRAIN, _GRAIN), Image.Resampling.BOX)
    stored = np.asarray(ImageCms.applyTransform(small, _TO_LAB))
    return np.stack([stored[..., 0] / 2.55, *(stored[..., i].astype(np.int8).astype(float) for i in (1, 2))], axis=-1)


def _colours(lab: np.ndarray) -> np.ndarray:
    """Returns the square roots of the shares of colours among f64[N, 3], smoothed over neighbouring colours."""
    edges = [np.linspace(0, 100, 6), np.linspace(-60, 60, 9), np.linspace(-60, 60, 9)]
    counts, _ = np.histogramdd(np.clip(lab, [0, -60, -60], [100, 60, 60]), bins=edges)
    shares = ndimage.gaussian_filter(counts, 0.7, mode='constant').ravel()
    return np.sqrt(shares / shares.sum())
