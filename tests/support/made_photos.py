"""Images that stand for photos: sharp shapes in random colours on a background, different for every number."""

import colorsys

import numpy as np
from PIL import Image, ImageDraw, ImageFont


def scene(number, size=(384, 384), background=None, subject=(200, 40, 60)):
    """A photo, RGB: polygons all over it and a disc in the middle.

    Args:
      number: of its random numbers; another number is another place.
      size: width and height.
      background: the colour behind the polygons and their hue; None: by the number.
      subject: the colour of the disc.
    """
    rng, (width, height) = np.random.default_rng(number), size
    hue = number * 0.381966 % 1 if background is None else 0

    def shade():
        if background is not None:
            return tuple(int(v) for v in np.clip(np.array(background) + rng.integers(-12, 13, 3), 0, 255))
        return tuple(round(255 * v) for v in colorsys.hsv_to_rgb(hue, rng.uniform(0.4, 0.9), rng.uniform(0.3, 0.9)))

    large = Image.new('RGB', (2 * width, 2 * height), background or shade())
    pen = ImageDraw.Draw(large)
    for _ in range(150):
        at = rng.uniform(0, 1, 2) * (2 * width, 2 * height)
        pen.polygon([tuple(at + rng.normal(0, 0.07 * min(size), 2)) for _ in range(5)], fill=shade())
    middle, radius = np.array(size), 0.5 * min(size)
    pen.ellipse([*(middle - radius), *(middle + radius)], fill=subject)
    return large.resize(size, Image.Resampling.LANCZOS)


def array(*arguments, **options):
    """The same as uint8[H, W, 3]."""
    return np.asarray(scene(*arguments, **options))


def written(image, text, place=(0.05, 0.9), size=0.06, alpha=255):
    """The image with white letters at a place, in shares of its sides."""
    image = Image.fromarray(image).convert('RGBA') if isinstance(image, np.ndarray) else image.convert('RGBA')
    over = Image.new('RGBA', image.size, (0, 0, 0, 0))
    at = (place[0] * image.width, place[1] * image.height)
    font = ImageFont.load_default(round(size * image.width))
    ImageDraw.Draw(over).text(at, text, font=font, fill=(255, 255, 255, alpha))
    return np.asarray(Image.alpha_composite(image, over).convert('RGB'))
