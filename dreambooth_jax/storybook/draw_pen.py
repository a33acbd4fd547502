"""The pen that draws Storybook's subjects, and the record in which the painter of a class describes its shape.

Coordinates are (u, v) around the subject's centre, u to the right and v down; the unit is the subject's `scale`.
Nothing is drawn outside [-REACH, REACH]. Subjects face right or the viewer; the pen mirrors a flipped subject.
"""

import dataclasses
import math
from collections.abc import Callable

from PIL import Image, ImageDraw

REACH = 0.84
INK = (26, 24, 28)
WHITE = (250, 250, 248)
SKIN = (246, 208, 172)
SILVER = (200, 204, 210)
PINK = (238, 120, 140)


def mix(a, b, t):
    """Returns the colour a fraction t of the way from a to b."""
    return tuple(round(x + (y - x) * t) for x, y in zip(a, b, strict=True))


@dataclasses.dataclass(frozen=True)
class Look:
    """A subject's main colour, with a darker and a lighter shade of it, and its second colour."""

    main: tuple
    second: tuple

    @property
    def dark(self):
        """The darker shade, for small parts of the body."""
        # On a black body a darker shade would be invisible, so it is lighter there.
        return mix(self.main, (0, 0, 0), 0.35) if sum(self.main) > 210 else mix(self.main, WHITE, 0.22)

    @property
    def light(self):
        """The lighter shade."""
        return mix(self.main, WHITE, 0.5)


class Pen:
    """Draws in unit coordinates on a transparent layer. While `on_body` is set, it also draws on the body mask."""

    def __init__(self, side, x, y, scale, flip):
        self.unit = scale * side
        self.left, self.top = round(x * side - REACH * self.unit), round(y * side - REACH * self.unit)
        self.size = (math.ceil(2 * REACH * self.unit) + 1,) * 2
        self.cx, self.cy, self.mirror = x * side - self.left, y * side - self.top, -1 if flip else 1
        self.layer, self.mask = Image.new('RGBA', self.size), Image.new('L', self.size)
        self.ink, self.body_ink = ImageDraw.Draw(self.layer), ImageDraw.Draw(self.mask)
        self.on_body = False
        self.frame()

    def frame(self, su=1.0, sv=1.0, du=0.0, dv=0.0):
        """Makes all following drawing go through the map (u, v) -> (su u + du, sv v + dv)."""
        self.su, self.sv, self.du, self.dv = su, sv, du, dv

    def at(self, u, v):
        """Returns the pixel (x, y) on the layer for a point in unit coordinates."""
        u, v = self.su * u + self.du, self.sv * v + self.dv
        return self.cx + self.mirror * u * self.unit, self.cy + v * self.unit

    def corners(self, u0, v0, u1, v1):
        """Returns the pixel box (left, top, right, bottom) on the layer for two opposite corners."""
        (x0, y0), (x1, y1) = self.at(u0, v0), self.at(u1, v1)
        return min(x0, x1), min(y0, y1), max(x0, x1), max(y0, y1)

    def ellipse(self, u, v, a, b, fill):
        """Fills an ellipse with centre (u, v) and half axes a, b."""
        xy = self.corners(u - a, v - b, u + a, v + b)
        self.ink.ellipse(xy, fill=fill)
        if self.on_body:
            self.body_ink.ellipse(xy, fill=255)

    def box(self, u0, v0, u1, v1, fill, radius=0.0):
        """Fills a rectangle, with round corners if `radius` is not zero."""
        xy = self.corners(u0, v0, u1, v1)
        radius = min(radius * self.unit * min(abs(self.su), abs(self.sv)), (xy[2] - xy[0]) / 2, (xy[3] - xy[1]) / 2)
        self.ink.rounded_rectangle(xy, radius, fill=fill)
        if self.on_body:
            self.body_ink.rounded_rectangle(xy, radius, fill=255)

    def poly(self, points, fill):
        """Fills a polygon."""
        xy = [self.at(u, v) for u, v in points]
        self.ink.polygon(xy, fill=fill)
        if self.on_body:
            self.body_ink.polygon(xy, fill=255)

    def line(self, points, width, fill):
        """Draws a line with round ends and joints."""
        xy = [self.at(u, v) for u, v in points]
        width = max(1.0, width * self.unit * min(1.0, abs(self.su) + 0.2))
        r = width / 2 - 0.5
        for ink, colour in ((self.ink, fill), (self.body_ink, 255)):
            if ink is self.ink or self.on_body:
                ink.line(xy, fill=colour, width=round(width), joint='curve')
                if width > 2:
                    for x, y in (xy[0], xy[-1]):
                        ink.ellipse((x - r, y - r, x + r, y + r), fill=colour)

    def arc(self, u, v, a, b, start, end, width, fill):
        """Draws an arc of an ellipse; angles are in degrees, clockwise from the right."""
        angles = [math.radians(start + (end - start) * i / 10) for i in range(11)]
        self.line([(u + a * math.cos(t), v + b * math.sin(t)) for t in angles], width, fill)


def nothing():
    """Draws nothing; for a form without parts or details."""
    pass


@dataclasses.dataclass(frozen=True)
class Form:
    """The shape of a subject; its three functions draw with the pen that the painter was given.

    `parts` (tails, ears, handles, which stick out even of a cube) and `body` make the body mask. `details` (face,
    laces, dial) are drawn over any pattern.
    """

    parts: Callable
    body: Callable
    details: Callable
    mark: tuple  # (u, v, half size) of the badge
    fine: tuple  # (u, v) of the centre of the fine texture
    split: tuple  # (axis, sign, threshold): the second half is where sign * (u or v) > sign * threshold
    head: tuple = (0.0, -0.42, 0.2)  # (u, v, half width) of a hat's brim
    eyes: tuple = (0.0, -0.2, 0.1)  # (u, v) of the middle between the eyes, and half their distance
    neck: tuple = (0.0, 0.0, 0.2)  # (u, v, half width)
    torso: tuple = (-0.4, 0.0, 0.4, 0.5)  # box that clothes cover, clipped to the body
    face: tuple = (0.0, 0.1, 0.8)  # (u, v, scale) of the details on the front of a cube
    lift: float = 0.0  # shift in v of the parts around a cube
    is_round: bool = False  # whether it is a circle from the top
    alive: bool = False  # whether it has a face and paws
