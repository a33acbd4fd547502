"""The ten accessories of world.ACCESSORIES that Storybook's subjects can wear.

Each is recognisable at 32 px by a colour or outline of its own (brim, pompom, stripes). Hats are placed at a form's
`head` and glasses at its `eyes`. Outfits recolour the part of the body inside its `torso` box, so they fit every shape.

Coordinates are those of draw_pen.py.
"""

import math

from PIL import Image, ImageChops, ImageDraw

from dreambooth_jax.storybook.draw_pen import WHITE

GOLD = (250, 204, 50)
RED = (216, 30, 36)
NAVY = (28, 42, 104)
PURPLE = (122, 46, 176)
YELLOW = (252, 218, 40)
RAINBOW = ((228, 40, 40), (250, 150, 30), (250, 226, 50), (60, 180, 70), (50, 110, 230), (150, 70, 200))


def _clothe(p, corners, colour):
    """Recolours the part of the body inside a box."""
    cloth = Image.new('L', p.size)
    ImageDraw.Draw(cloth).rectangle(p.corners(*corners), fill=255)
    p.layer.paste((*colour, 255), (0, 0), ImageChops.darker(cloth, p.mask))


def star(p, u, v, r, colour, points=5):
    """Fills a star with centre (u, v) and outer radius r."""
    angles = [math.pi * (i / points - 0.5) for i in range(2 * points)]
    p.poly(
        [
            (u + r * (0.45 if i % 2 else 1) * math.cos(t), v + r * (0.45 if i % 2 else 1) * math.sin(t))
            for i, t in enumerate(angles)
        ],
        colour,
    )


def _red_hat(p, f):
    u, v, w = f.head
    p.box(u - 0.75 * w, v - 0.22, u + 0.75 * w, v + 0.02, RED, 0.07)
    p.box(u - 0.75 * w, v - 0.06, u + 0.75 * w, v + 0.0, (60, 8, 14))
    p.ellipse(u, v + 0.02, w * 1.5, 0.05, RED)


def _santa_hat(p, f):
    u, v, w = f.head
    p.poly([(u - w, v), (u - 0.1 * w, v - 0.29), (u + 0.9 * w, v - 0.2), (u + w, v)], RED)
    p.poly([(u - 0.1 * w, v - 0.29), (u + 1.45 * w, v - 0.16), (u + 0.6 * w, v - 0.1)], RED)
    p.box(u - 1.15 * w, v - 0.04, u + 1.15 * w, v + 0.06, WHITE, 0.05)
    p.ellipse(u + 1.5 * w, v - 0.13, 0.075, 0.075, WHITE)


def _rainbow_scarf(p, f):
    u, v, w = f.neck
    step = 2.4 * w / 6
    for i, colour in enumerate(RAINBOW):
        p.box(u - 1.2 * w + i * step, v - 0.07, u - 1.2 * w + (i + 1) * step + 0.005, v + 0.06, colour)
        p.box(u + 0.35 * w, v + 0.05 + 0.05 * i, u + 0.35 * w + 0.16, v + 0.105 + 0.05 * i, colour)


def _top_hat(p, f):
    u, v, w = f.head
    black = (18, 18, 22)
    p.box(u - 0.8 * w, v - 0.33, u + 0.8 * w, v + 0.02, black, 0.02)
    p.box(u - 0.8 * w, v - 0.09, u + 0.8 * w, v - 0.03, (150, 150, 160))
    p.box(u - 1.4 * w, v - 0.02, u + 1.4 * w, v + 0.045, black, 0.03)
    eu, ev, gap = f.eyes
    p.arc(eu + gap, ev, 0.085, 0.085, 0, 360, 0.035, GOLD)
    p.line([(eu + gap + 0.07, ev + 0.06), (eu + gap + 0.1, ev + 0.26)], 0.02, GOLD)


def _chef(p, f):
    u, v, w = f.head
    grey = (206, 206, 214)
    tu, tv, tw = f.neck
    u0, v0, u1, v1 = f.torso
    low, half = min(v1, v0 + 0.36), min(0.75 * tw, (u1 - u0) / 2)
    p.line([(tu - half, v0 + 0.02), (tu - tw, tv - 0.06)], 0.04, WHITE)
    p.line([(tu + half, v0 + 0.02), (tu + tw, tv - 0.06)], 0.04, WHITE)
    _clothe(p, (tu - 1.1 * half, v0 - 0.01, tu + 1.1 * half, low + 0.01), grey)
    _clothe(p, (tu - half, v0, tu + half, low), WHITE)
    p.box(tu - 0.5 * half, (v0 + low) / 2, tu + 0.5 * half, (v0 + low) / 2 + 0.03, grey)
    for du, dv, r in ((-0.65, -0.24, 0.11), (0.65, -0.24, 0.11), (0, -0.28, 0.13)):
        p.ellipse(u + du * w, v + dv, r, r, WHITE)
    p.box(u - 0.8 * w, v - 0.24, u + 0.8 * w, v + 0.03, WHITE, 0.02)
    p.box(u - 0.8 * w, v - 0.04, u + 0.8 * w, v + 0.03, grey)


def _firefighter(p, f):
    u, v, w = f.head
    u0, v0, u1, v1 = f.torso
    _clothe(p, f.torso, (44, 42, 46))
    h = v1 - v0
    for t in (0.25, 0.65):
        _clothe(p, (u0, v0 + t * h, u1, v0 + t * h + 0.075), YELLOW)
    p.ellipse(u, v - 0.02, w * 1.0, 0.2, RED)
    p.line([(u, v - 0.22), (u, v - 0.05)], 0.035, (140, 10, 16))
    p.box(u - 1.5 * w, v - 0.0, u + 1.3 * w, v + 0.06, (176, 16, 22), 0.03)
    p.poly(
        [(u - 0.09, v - 0.15), (u + 0.09, v - 0.15), (u + 0.08, v - 0.04), (u, v + 0.03), (u - 0.08, v - 0.04)], YELLOW
    )


def _police(p, f):
    u, v, w = f.head
    u0, v0, u1, v1 = f.torso
    _clothe(p, f.torso, NAVY)
    nu, _, nw = f.neck
    star(p, nu + 0.4 * nw, v0 + 0.1, 0.085, GOLD)
    _clothe(p, (u0, v1 - 0.06, u1, v1), (14, 14, 20))
    p.poly([(u - 0.9 * w, v), (u - 1.3 * w, v - 0.16), (u, v - 0.23), (u + 1.3 * w, v - 0.16), (u + 0.9 * w, v)], NAVY)
    p.box(u - 0.9 * w, v - 0.05, u + 0.9 * w, v + 0.03, (120, 170, 240))
    p.ellipse(u, v + 0.035, w, 0.04, (12, 12, 18))
    star(p, u, v - 0.11, 0.085, GOLD)


def _pink_glasses(p, f):
    u, v, gap = f.eyes
    pink = (250, 60, 160)
    gap = max(gap, 0.12)
    p.line([(u - gap - 0.17, v - 0.03), (u + gap + 0.17, v - 0.03)], 0.045, pink)
    for s in (-1, 1):
        p.ellipse(u + s * gap, v, 0.115, 0.105, pink)
        p.ellipse(u + s * gap, v, 0.065, 0.06, (255, 214, 236))
        p.ellipse(u + s * gap, v, 0.025, 0.03, (20, 20, 24))


def _yellow_shirt(p, f):
    u0, v0, u1, v1 = f.torso
    _clothe(p, f.torso, YELLOW)
    _clothe(p, (u0, v1 - 0.035, u1, v1), (196, 150, 10))
    nu, _, nw = f.neck
    p.poly([(nu - 0.4 * nw, v0), (nu + 0.4 * nw, v0), (nu, v0 + 0.08)], (196, 150, 10))
    for dv in (0.13, 0.2):
        p.ellipse(nu, v0 + dv, 0.02, 0.02, WHITE)


def _wizard(p, f):
    u, v, w = f.head
    u0, v0, u1, v1 = f.torso
    _clothe(p, f.torso, PURPLE)
    _clothe(p, (u0, v1 - 0.05, u1, v1), GOLD)
    nu, _, nw = f.neck
    for du, dv in ((-0.6, 0.1), (0.5, 0.18)):
        star(p, nu + du * nw, v0 + dv, 0.06, GOLD)
    p.poly([(u - 0.95 * w, v), (u + 0.15 * w, v - 0.37), (u + 0.95 * w, v)], PURPLE)
    p.ellipse(u, v + 0.01, 1.5 * w, 0.05, PURPLE)
    p.line([(u - 0.75 * w, v - 0.035), (u + 0.75 * w, v - 0.035)], 0.03, GOLD)
    star(p, u + 0.05 * w, v - 0.14, 0.075, YELLOW)


WORN = {
    'wearing a red hat': _red_hat,
    'wearing a santa hat': _santa_hat,
    'wearing a rainbow scarf': _rainbow_scarf,
    'wearing a black top hat and a monocle': _top_hat,
    'in a chef outfit': _chef,
    'in a firefighter outfit': _firefighter,
    'in a police outfit': _police,
    'wearing pink glasses': _pink_glasses,
    'wearing a yellow shirt': _yellow_shirt,
    'in a purple wizard outfit': _wizard,
}
