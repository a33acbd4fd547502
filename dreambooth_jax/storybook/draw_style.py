"""Turns a finished image into one in the manner of each artist of `world.STYLES`.

A style is a cheap effect on the whole image at its final resolution. The content stays recognisable. The six styles can
be told apart at 32 px by their palette and light, not only by texture.

Images are RGB uint8; lengths are fractions of the side, x to the right and y down. All random numbers come from the
`Random` that is passed in, so a seed determines the image.
"""

import functools
import math
from collections.abc import Callable
from random import Random

import numpy as np
from PIL import Image, ImageDraw

_LUMA = np.array([0.299, 0.587, 0.114], np.float32)


@functools.cache
def _grid(side: int) -> tuple[np.ndarray, np.ndarray]:
    """Returns x as a row and y as a column of pixel centres in 0..1; cached, because few sizes are used."""
    centres = (np.arange(side, dtype=np.float32) + 0.5) / side
    return centres[None, :, None], centres[:, None, None]


def _floats(image: Image.Image) -> np.ndarray:
    return np.asarray(image, np.float32)


def _luma(pixels: np.ndarray) -> np.ndarray:
    return (pixels @ _LUMA)[..., None]


def _image(pixels: np.ndarray) -> Image.Image:
    return Image.fromarray(np.clip(pixels, 0, 255).astype(np.uint8))


def _noise(random: Random, cells: int, side: int) -> np.ndarray:
    """Returns smooth noise in -1..1 of shape (side, side, 1), from a coarse random grid."""
    grid = Image.frombytes('L', (cells, cells), random.randbytes(cells * cells))
    return (np.asarray(grid.resize((side, side), Image.Resampling.BILINEAR), np.float32) / 127.5 - 1)[..., None]


def _van_gogh(image: Image.Image, random: Random) -> Image.Image:
    side = image.width
    pixels = _floats(image)
    luma = _luma(pixels)
    light = luma / 255
    pixels = luma + (pixels - luma) * 1.5
    # Dark pixels move halfway to ultramarine and light ones to chrome yellow, so the subject keeps some of its own hue.
    blue, yellow = np.array([14, 44, 150], np.float32), np.array([255, 222, 84], np.float32)
    pixels = np.clip(0.56 * pixels + 0.44 * (blue + (yellow - blue) * light), 0, 255)
    canvas = _image(pixels)
    draw = ImageDraw.Draw(canvas)
    count = 16
    width = max(1, round(side * 0.024))
    rng = np.random.default_rng(random.getrandbits(32))  # NumPy samples all 256 strokes at once; Python is too slow
    y, x = (np.indices((count, count)) + rng.random((2, count, count))) / count
    dx, dy = np.full_like(x, 0.35), np.zeros_like(y)
    for _ in range(3):  # swirls in the upper half, as in van Gogh's night skies
        ax, ay = x - random.random(), y - random.random() * 0.6
        pull = random.choice((-1, 1)) * 0.2 / (0.03 + ax * ax + ay * ay)
        dx, dy = dx - ay * pull, dy + ax * pull
    reach = 0.62 / count / (np.hypot(dx, dy) + 1e-6)
    ends = np.stack((x - dx * reach, y - dy * reach, x + dx * reach, y + dy * reach), -1) * side
    inks = pixels[(y * side).astype(int), (x * side).astype(int)]
    inks = inks + rng.choice((-34, -16, 18, 40), size=(count, count, 1)) * np.array([1, 1, 0.5])
    inks = np.clip(inks, 0, 255).astype(int).reshape(-1, 3).tolist()
    for end, ink in zip(ends.reshape(-1, 4).tolist(), inks, strict=True):
        draw.line(end, fill=tuple(ink), width=width)
    return canvas


def _michelangelo(image: Image.Image, random: Random) -> Image.Image:
    side = image.width
    pixels = _floats(image)
    luma = _luma(pixels)
    # Fresco pigments are chalky: they have little saturation and no true black, and tend to the colour of warm plaster.
    pixels = luma + (pixels - luma) * 0.6
    plaster = np.array([250, 214, 176], np.float32)
    pixels = 0.52 * pixels + 0.48 * plaster + 12 + 9 * _noise(random, 7, side) + 7 * _noise(random, 24, side)
    canvas = _image(pixels)
    draw = ImageDraw.Draw(canvas)
    width = max(1, round(side * 0.011))
    for _ in range(5):  # cracks that start at the edges
        edge, along = random.randrange(4), random.random()
        x, y = ((along, 0.0), (along, 1.0), (0.0, along), (1.0, along))[edge]
        angle = (math.pi / 2, -math.pi / 2, 0.0, math.pi)[edge]
        points = [(x * side, y * side)]
        for _ in range(random.randint(5, 9)):
            angle += random.uniform(-0.8, 0.8)
            x, y = x + 0.07 * math.cos(angle), y + 0.07 * math.sin(angle)
            points.append((x * side, y * side))
        draw.line(points, fill=(136, 98, 74), width=width)
    return canvas


def _rembrandt(image: Image.Image, random: Random) -> Image.Image:
    x, y = _grid(image.width)
    pixels = _floats(image)
    luma = _luma(pixels)
    cx, cy = 0.47 + random.uniform(-0.05, 0.05), 0.5 + random.uniform(-0.05, 0.05)
    distance = ((x - cx) / 0.46) ** 2 + ((y - cy) / 0.5) ** 2
    glow = np.exp(-distance)
    pixels = luma + (pixels - luma) * 0.62
    warm = np.array([1.16, 0.90, 0.58], np.float32)
    umber = np.array([30, 17, 8], np.float32)
    return _image(umber + pixels * warm * (0.1 + 0.95 * glow))


def _vermeer(image: Image.Image, random: Random) -> Image.Image:
    x, y = _grid(image.width)
    pixels = _floats(image)
    light = _luma(pixels) / 255
    slope = random.uniform(0.5, 0.8)
    # The light comes from a window outside the image, at the upper left: cool there, warm and dim on the far right.
    fall = np.clip(1.2 - 0.95 * x - 0.25 * y, 0, 1)
    beam = np.clip(1 - np.abs(y - slope * x - 0.06) / 0.17, 0, 1) * fall
    cool, warm = np.array([0.80, 0.98, 1.30], np.float32), np.array([0.98, 0.86, 0.42], np.float32)
    tint = warm + (cool - warm) * fall
    shadow = np.array([12, 26, 74], np.float32) * (1 - light)
    lit = pixels * 0.8 + 44 * light
    return _image(lit * tint * (0.62 + 0.48 * fall) + shadow + beam * np.array([48, 60, 76], np.float32))


def _warhol(image: Image.Image, random: Random) -> Image.Image:
    pixels = _floats(image)
    luma = _luma(pixels)
    # Each channel is on or off at a threshold near the image's median, so that dark and pale scenes keep their detail.
    middle = float(np.median(luma)) * 0.5 + 64
    vivid = luma + (pixels - luma) * 2.2
    bits = (vivid > middle) @ np.array([4, 2, 1], np.uint8)
    # Grey pixels have no hue to exaggerate, so they also get loud inks. Light greys get two, so that a pale thing
    # differs from a pale background.
    loud = [(255, 240, 30), (255, 120, 200), (90, 255, 240), (190, 255, 50)]
    random.shuffle(loud)
    black = random.choice(((26, 10, 60), (70, 0, 90), (0, 20, 90)))
    palette = np.array(
        [
            black,
            (30, 60, 255),
            (0, 210, 70),
            (0, 220, 240),
            (255, 30, 50),
            (255, 20, 170),
            (255, 225, 0),
            loud[0],
            (140, 50, 230),
            loud[1],
        ],
        np.float32,
    )
    bright = luma[..., 0]
    bits[(bits == 7) & (bright > 0.55 * bright.max() + 0.45 * middle)] = 9
    bits[(bits == 0) & (bright > 0.6 * middle)] = 8
    # Each ink has a second, darker print, which keeps the shading by which subjects can be told apart.
    ink = np.where((bits < 7) & (bright <= 0.8 * bright.mean()), 0.62, 1.0).astype(np.float32)
    return _image(palette[bits] * ink[..., None])


def _hokusai(image: Image.Image, random: Random) -> Image.Image:
    side = image.width
    _, y = _grid(side)
    pixels = _floats(image)
    luma = _luma(pixels)
    inks = np.array([(24, 42, 96), (58, 104, 160), (146, 186, 204), (238, 226, 192)], np.float32)
    level = np.clip((luma[..., 0] + 6 * _noise(random, 3, side)[..., 0]) / 64, 0, 3).astype(np.int32)
    flat = np.floor(pixels / 64) * 64 + 32
    pixels = 0.70 * inks[level] + 0.30 * flat
    # Bokashi: a graded band of Prussian blue along the top edge, as printers make it.
    band = np.clip(1 - y / random.uniform(0.16, 0.22), 0, 1) * 0.85
    pixels += (np.array([16, 34, 92], np.float32) - pixels) * band
    # The outlines of the key block follow jumps of the tone; they are 1 px wide at 32 px, and wider in larger images.
    reach = max(1, side // 64)
    source = _floats(image)
    edge = np.zeros((side, side), bool)
    edge[:, reach:] |= np.abs(source[:, reach:] - source[:, :-reach]).sum(2) > 110
    edge[reach:] |= np.abs(source[reach:] - source[:-reach]).sum(2) > 110
    pixels[edge] = (20, 30, 78)
    return _image(pixels)


STYLE_PAINTERS: dict[str, Callable[[Image.Image, Random], Image.Image]] = {
    'Vincent van Gogh': _van_gogh,
    'Michelangelo': _michelangelo,
    'Rembrandt': _rembrandt,
    'Johannes Vermeer': _vermeer,
    'Andy Warhol': _warhol,
    'Katsushika Hokusai': _hokusai,
}


def apply_style(style: str | None, image: Image.Image, random: Random) -> Image.Image:
    """Renders a square RGB image in the manner of an artist; returns the same image for None."""
    return image if style is None else STYLE_PAINTERS[style](image, random)
