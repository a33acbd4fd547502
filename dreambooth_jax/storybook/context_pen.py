"""The pen that paints contexts (draw_context.py). Positions and sizes are fractions of the image's side."""

import math
from random import Random

from PIL import Image, ImageDraw

Colour = tuple[int, int, int]


def mix(first: Colour, second: Colour, share: float) -> Colour:
    """Returns the colour a fraction `share` of the way from `first` to `second`."""
    return tuple(round(a + (b - a) * share) for a, b in zip(first, second, strict=True))


def gradient(size: tuple[int, int], top: Colour, bottom: Colour) -> Image.Image:
    """Returns a vertical gradient, resized from four rows because bilinear resizing keeps the outer rows flat."""
    strip = Image.new('RGB', (1, 4))
    strip.putdata([mix(top, bottom, share) for share in (0.0, 0.33, 0.67, 1.0)])
    # The strip is first stretched vertically; repeating its pixels horizontally is cheaper than resampling both ways.
    return strip.resize((1, size[1]), Image.Resampling.BILINEAR).resize(size, Image.Resampling.NEAREST)


class ContextPen:
    """Draws on an image in fractions of its side, and holds the random numbers of this image."""

    def __init__(self, image: Image.Image, random: Random):
        self.image, self.side, self.draw = image, image.width, ImageDraw.Draw(image)
        self.random, self.uniform = random, random.uniform

    def near(self, colour: Colour, amount: int = 9) -> Colour:
        """Returns a similar colour. Brightness varies more than hue, because the hue identifies the context."""
        light = self.uniform(-amount, amount)
        return tuple(min(255, max(0, round(c + light + self.uniform(-amount, amount) / 2))) for c in colour)

    def fade(self, y0: float, y1: float, top: Colour, bottom: Colour):
        """Fills the rows from y0 to y1 with a vertical gradient."""
        a, b = round(y0 * self.side), round(y1 * self.side)
        self.image.paste(gradient((self.side, max(1, b - a)), top, bottom), (0, a))

    def rect(self, x0: float, y0: float, x1: float, y1: float, colour: Colour):
        """Fills a rectangle."""
        s = self.side
        # PIL's rectangles include their far edges, so 1 px is subtracted to keep neighbours from overlapping.
        self.draw.rectangle((x0 * s, y0 * s, max(x0 * s, x1 * s - 1), max(y0 * s, y1 * s - 1)), fill=colour)

    def poly(self, points: list[tuple[float, float]], colour: Colour):
        """Fills a polygon."""
        self.draw.polygon([(x * self.side, y * self.side) for x, y in points], fill=colour)

    def oval(self, x: float, y: float, rx: float, ry: float, colour: Colour):
        """Fills an ellipse with centre (x, y) and half axes rx, ry."""
        self.draw.ellipse([v * self.side for v in (x - rx, y - ry, x + rx, y + ry)], fill=colour)

    def line(self, points: list[tuple[float, float]], width: float, colour: Colour):
        """Draws a line of this width, at least 1 px."""
        points = [(x * self.side, y * self.side) for x, y in points]
        self.draw.line(points, fill=colour, width=max(1, round(width * self.side)))

    def wave(self, y: float, height: float, length: float, colour: Colour, depth: float | None = None):
        """Draws a wavy line or, with a depth, a band of this depth below it."""
        phase = self.uniform(0, math.tau)
        top = [(k / 24, y + height * math.sin(k / 24 * math.tau / length + phase)) for k in range(25)]
        if depth is None:
            self.line(top, 0.016, colour)
        else:
            self.poly([*top, (1, y + depth), (0, y + depth)], colour)

    def dots(self, count: int, xs: tuple[float, float], ys: tuple[float, float], size: float, colour: Colour):
        """Scatters small ellipses at random positions within the ranges xs and ys."""
        for _ in range(count):
            self.oval(self.uniform(*xs), self.uniform(*ys), size, size * 0.65, self.near(colour, 14))
