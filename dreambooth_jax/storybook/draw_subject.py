"""Paints a scene's subject: first its shape, then pattern, second half, material, marks and what it wears.

The marks make a subject unique. `mark` is a badge that is visible at 32 px. `fine_mark` is a texture that exists only
at 128 px: it changes the local colour by at most +-60, with mean zero over every 4 x 4 block of the 128 px image. So
box-averaging to 32 px leaves no trace of it, and only the 128 px stage can learn it.

Coordinates are those of draw_pen.py. The order of random numbers does not depend on the size of the canvas.
"""

import dataclasses
import math
import random

import numpy as np
from PIL import Image, ImageChops, ImageDraw

from dreambooth_jax.storybook import draw_shapes, draw_worn, world
from dreambooth_jax.storybook.draw_pen import INK, PINK, SILVER, WHITE, Form, Look, Pen, mix, nothing

MARKS = ('disc', 'star', 'heart', 'cross', 'band', 'diamond')
FINE_MARKS = ('hatch', 'checker', 'rings', 'zigzag', 'dots', 'grid')
FINE_UNITS = 0.31  # side of the fine texture in units; it is never less than 24 px at 128 px
FLOATING = tuple(context for context in world.CONTEXTS if context.startswith('floating'))
CUBE = (-0.4, -0.24, 0.3, 0.46)  # box of its front face
DEPTH = 0.14


def _pattern(p, name, colour):
    """Paints a pattern in the second colour over the body."""
    stencil = Image.new('L', p.size)
    ink = ImageDraw.Draw(stencil)
    steps = [0.2 * i for i in range(-4, 5)]
    if name == 'spotted':
        r = 0.068 * p.unit
        for i, v in enumerate(steps):
            for u in steps:
                x, y = p.at(u + (0.1 if i % 2 else 0.0), v)
                ink.ellipse((x - r, y - r, x + r, y + r), fill=255)
    elif name == 'striped':
        for u in steps:
            ink.polygon([p.at(u + du, v) for du, v in ((-0.1, -0.8), (0.0, -0.8), (0.1, 0.8), (0.0, 0.8))], fill=255)
    else:
        cell = 0.14
        for i in range(-6, 6):
            for j in range(-6 + i % 2, 6, 2):
                ink.rectangle(p.corners(j * cell, i * cell, (j + 1) * cell, (i + 1) * cell), fill=255)
    p.layer.paste((*colour, 255), (0, 0), ImageChops.darker(stencil, p.mask))


def _split(p, split, colour):
    axis, sign, at = split
    span = (at, 0.84) if sign > 0 else (-0.84, at)
    corners = (span[0], -0.84, span[1], 0.84) if axis == 'u' else (-0.84, span[0], 0.84, span[1])
    stencil = Image.new('L', p.size)
    ImageDraw.Draw(stencil).rectangle(p.corners(*corners), fill=255)
    p.layer.paste((*colour, 255), (0, 0), ImageChops.darker(stencil, p.mask))


def _shade(p):
    """Darkens the body along its lower right rim, so that it looks round."""
    d = round(0.045 * p.unit)
    lit = Image.new('L', p.size)
    lit.paste(p.mask, (-d, -d))
    rim = ImageChops.subtract(p.mask, lit).point(lambda a: a // 5)
    p.layer.paste((0, 0, 0, 255), (0, 0), rim)


def _shiny(p):
    d = round(0.07 * p.unit)
    p.layer.paste((255, 255, 255, 255), (0, 0), p.mask.point(lambda a: a // 5))
    # A bright band follows the upper left rim, one step inside it.
    rim, inner = Image.new('L', p.size), Image.new('L', p.size)
    rim.paste(p.mask, (d, d))
    inner.paste(p.mask, (2 * d, 2 * d))
    band = ImageChops.darker(ImageChops.subtract(rim, inner), p.mask)
    p.layer.paste((255, 255, 255, 255), (0, 0), band.point(lambda a: a * 17 // 20))


def _sparkles(p):
    for u, v, r in ((-0.3, -0.34, 0.13), (0.36, -0.02, 0.11), (-0.36, 0.34, 0.09)):
        p.poly(
            [
                (u, v - r),
                (u + 0.2 * r, v - 0.2 * r),
                (u + r, v),
                (u + 0.2 * r, v + 0.2 * r),
                (u, v + r),
                (u - 0.2 * r, v + 0.2 * r),
                (u - r, v),
                (u - 0.2 * r, v - 0.2 * r),
            ],
            (255, 255, 255),
        )


def _wet(p):
    p.layer.paste((24, 60, 130, 255), (0, 0), p.mask.point(lambda a: a * 2 // 5))


def _drops(p, rng):
    blue, pale = (120, 196, 250), (226, 244, 255)
    for i in range(15):
        u, v = 0.24 * (i % 5 - 2) + rng.uniform(-0.08, 0.08), 0.3 * (i // 5 - 1) + rng.uniform(-0.1, 0.1)
        r = rng.uniform(0.03, 0.05)
        p.poly([(u - 0.85 * r, v - 0.3 * r), (u, v - 2.4 * r), (u + 0.85 * r, v - 0.3 * r)], blue)
        p.ellipse(u, v, r, r, blue)
        p.ellipse(u - 0.3 * r, v - 0.2 * r, 0.4 * r, 0.4 * r, pale)


def _cube(p, k, form):
    """Returns the form with a cube as its body: parts stick out from behind it and details are on its front face."""
    u0, v0, u1, v1 = CUBE
    fu, fv, scale = form.face
    cu, cv = (u0 + u1) / 2, (v0 + v1) / 2

    def parts():
        p.frame(dv=form.lift)
        form.parts()
        p.frame()

    def body():
        p.box(u0, v0, u1, v1, k.main)
        p.poly([(u0, v0), (u0 + DEPTH, v0 - DEPTH), (u1 + DEPTH, v0 - DEPTH), (u1, v0)], k.main)
        p.poly([(u1, v0), (u1 + DEPTH, v0 - DEPTH), (u1 + DEPTH, v1 - DEPTH), (u1, v1)], k.main)

    def details():
        # The other faces are shaded with transparent paint, so that patterns continue over the edges.
        top, side = Image.new('L', p.size), Image.new('L', p.size)
        ImageDraw.Draw(top).polygon(
            [p.at(u, v) for u, v in ((u0, v0), (u0 + DEPTH, v0 - DEPTH), (u1 + DEPTH, v0 - DEPTH), (u1, v0))], fill=130
        )
        ImageDraw.Draw(side).polygon(
            [p.at(u, v) for u, v in ((u1, v0), (u1 + DEPTH, v0 - DEPTH), (u1 + DEPTH, v1 - DEPTH), (u1, v1))], fill=120
        )
        p.layer.paste((255, 255, 255, 255), (0, 0), top)
        p.layer.paste((0, 0, 0, 255), (0, 0), side)
        for a, b in (((u0, v0), (u1, v0)), ((u1, v0), (u1, v1)), ((u1, v0), (u1 + DEPTH, v0 - DEPTH))):
            p.line([a, b], 0.025, INK)
        p.frame(scale, scale, cu - scale * fu, (cv - 0.1 if form.alive else cv) - scale * fv)
        form.details()
        p.frame()

    eu, ev, gap = form.eyes
    return dataclasses.replace(
        form,
        parts=parts,
        body=body,
        details=details,
        mark=(u0 + 0.18, v1 - 0.18, 0.13),
        fine=(0.12, v1 - 0.17),
        split=('u', 1, cu),
        head=(cu + DEPTH / 2, v0 - 0.06, 0.24),
        neck=(cu, 0.2, 0.3),
        torso=(u0, 0.18, 0.5, v1),
        eyes=(cu + scale * (eu - fu), cv - 0.1 + scale * (ev - fv), scale * gap),
    )


def _animal_behind(p, k, floppy, tail):
    """The form of a sitting creature's back: a head's outline over a round body, no face, the tail in the middle."""

    def parts():
        for s in (-1, 1):
            if not floppy:
                p.poly([(s * 0.24, -0.2), (s * 0.25, -0.52), (s * 0.06, -0.38)], k.dark)

    def body():
        p.ellipse(0, -0.24, 0.25, 0.2, k.main)
        p.box(-0.3, -0.1, 0.3, 0.46, k.main, 0.24)

    def details():
        p.line([(0, -0.05), (0, 0.2)], 0.025, k.dark)
        for s in (-1, 1):
            if floppy:
                p.line([(s * 0.22, -0.36), (s * 0.3, -0.14)], 0.13, k.dark)
        p.line([(0, 0.4), (0.06, 0.24), (-0.03, 0.1)] if tail else [(0, 0.4), (0, 0.38)], 0.11, k.dark)

    return Form(parts, body, details, (-0.17, 0.16, 0.12), (0.15, 0.16), ('v', 1, 0.0), head=(0, -0.4, 0.2))


def _creature_above(p, k, form, belly):
    """The form of a creature from the top (a back, no face) or, with `belly`, from below (paws towards the viewer)."""

    def parts():
        p.line([(-0.34, 0.1), (-0.54, 0.02)], 0.09, k.dark)

    def body():
        for u in (-0.24, 0.14):
            for s in (-1, 1):
                p.ellipse(u, 0.1 + s * 0.24, 0.1, 0.1, k.main)
        p.ellipse(-0.06, 0.1, 0.36, 0.26, k.main)
        p.ellipse(0.34, 0.1, 0.2, 0.2, k.main)

    def details():
        if belly:
            p.ellipse(-0.06, 0.1, 0.24, 0.15, k.light)
            for u in (-0.24, 0.14):
                for s in (-1, 1):
                    p.ellipse(u, 0.1 + s * 0.25, 0.075, 0.075, PINK)
                    for du in (-0.05, 0.0, 0.05):
                        p.ellipse(u + du, 0.1 + s * 0.34, 0.025, 0.025, PINK)
        else:
            p.line([(-0.36, 0.1), (0.14, 0.1)], 0.03, k.dark)
            for s in (-1, 1):
                p.ellipse(0.3, 0.1 + s * 0.17, 0.1, 0.06, k.dark)
        p.ellipse(0.53, 0.1, 0.04, 0.05, INK)

    return Form(parts, body, details, (-0.22, 0.1, 0.12), (0.06, 0.1), ('u', -1, -0.06), head=(0.34, 0.0, 0.18))


def _circle(p, k, scene, form, below):
    """The form of a round object from the top (rim and opening) or from below (base ring)."""
    name = scene.class_noun

    def parts():
        if name == 'teapot':
            p.line([(0.3, 0.08), (0.58, 0.08)], 0.13, k.main)
            p.arc(-0.42, 0.08, 0.14, 0.12, 90, 270, 0.08, k.main)

    def body():
        r = {'can': 0.36, 'candle': 0.32, 'vase': 0.38}.get(name, 0.42)
        p.ellipse(0, 0.08, r, r, k.main)

    def details():
        if below:
            p.ellipse(0, 0.08, 0.26, 0.26, k.dark)
            p.ellipse(0, 0.08, 0.2, 0.2, SILVER if name == 'can' else k.light)
        elif name == 'bowl':
            for i in range(7):
                t = math.pi * i / 3
                r = 0.2 if i < 6 else 0.0
                p.ellipse(r * math.cos(t), 0.08 + r * math.sin(t), 0.11, 0.11, ((196, 30, 60), (60, 60, 150))[i % 2])
        elif name == 'candle':
            p.ellipse(0, 0.08, 0.24, 0.24, k.light)
            p.ellipse(0, 0.08, 0.12, 0.12, (255, 150, 30))
            p.ellipse(0, 0.08, 0.07, 0.07, (255, 240, 150))
        elif name == 'can':
            p.ellipse(0, 0.08, 0.31, 0.31, SILVER)
            p.ellipse(0.08, 0.08, 0.13, 0.08, mix(SILVER, INK, 0.5))
        elif name == 'vase':
            p.ellipse(0, 0.08, 0.2, 0.2, k.light)
            p.ellipse(0, 0.08, 0.14, 0.14, INK)
        else:
            p.ellipse(0, 0.08, 0.22, 0.22, k.dark)
            p.ellipse(0, 0.08, 0.08, 0.08, k.light)

    return dataclasses.replace(form, parts=parts, body=body, details=details, split=('u', 1, 0.0))


def _sole(p, k, form):
    def body():
        p.ellipse(-0.26, 0.1, 0.26, 0.18, k.main)
        p.box(-0.3, -0.05, 0.2, 0.25, k.main, 0.05)
        p.ellipse(0.22, 0.1, 0.32, 0.24, k.main)

    def details():
        p.ellipse(-0.28, 0.1, 0.17, 0.1, (70, 70, 76))
        p.ellipse(0.22, 0.1, 0.23, 0.16, (70, 70, 76))
        for u in (-0.34, -0.22, 0.08, 0.2, 0.32):
            p.line([(u, 0.02), (u, 0.18)], 0.035, SILVER)

    return dataclasses.replace(form, parts=nothing, body=body, details=details)


def _seen_from(p, k, scene, form):
    """The form as seen from scene.view. If a view only needs a squashed form, the pen's frame stays squashed."""
    view, name = scene.view, scene.class_noun
    creature = form.alive and scene.kind not in ('duck', 'robot', 'poop')
    if view == 'back':
        if creature and scene.kind != 'monster' and name != 'cartoon':
            return _animal_behind(p, k, name == 'dog', name in world.LIVE_CLASSES or scene.kind == 'wolf')

        def seam():
            p.line([(0, -0.12), (0, 0.3)], 0.03, k.dark)
            if name == 'clock':
                p.ellipse(0, -0.12, 0.13, 0.13, k.dark)
            elif name == 'backpack':
                for s in (-1, 1):
                    p.line([(s * 0.12, -0.36), (s * 0.19, 0.36)], 0.09, k.dark)

        return dataclasses.replace(form, details=seam)
    if view == 'side':
        p.frame(su=0.58)
        if not form.alive:
            return form

        def profile():
            p.frame(su=0.58, du=0.12)
            form.details()
            p.frame(su=0.58)

        return dataclasses.replace(form, details=profile)
    if creature:
        return _creature_above(p, k, form, view == 'bottom')
    if form.is_round:
        return _circle(p, k, scene, form, view == 'bottom')
    if view == 'bottom' and name in ('sneaker', 'boot'):
        return _sole(p, k, form)
    p.frame(sv=0.55 if view == 'top' else -0.55, dv=0.1)

    def underside():
        p.ellipse(0, 0.05, 0.2, 0.2, k.dark)
        p.ellipse(0, 0.05, 0.1, 0.1, SILVER)

    return form if view == 'top' else dataclasses.replace(form, details=underside)


def _mark(p, scene, form):
    """Paints the badge, with a thin contrasting edge."""
    name, (u, v, r), colour = scene.mark, form.mark, world.COLOURS[scene.mark_colour]
    edge = WHITE if sum(colour) < 330 else INK
    for q, fill in ((r, edge), (r - 0.025, colour)):
        if name == 'disc':
            p.ellipse(u, v, q, q, fill)
        elif name == 'star':
            draw_worn.star(p, u, v, 1.3 * q, fill)
        elif name == 'heart':
            for s in (-1, 1):
                p.ellipse(u + s * 0.48 * q, v - 0.4 * q, 0.56 * q, 0.56 * q, fill)
            p.poly([(u - q, v - 0.2 * q), (u + q, v - 0.2 * q), (u, v + 1.1 * q)], fill)
        elif name == 'cross':
            t = q - 0.62 * r  # keeps the edge equally thin along the arms
            p.box(u - q, v - t, u + q, v + t, fill)
            p.box(u - t, v - q, u + t, v + q, fill)
        elif name == 'band':
            p.box(u - q * 1.05, v - q + 0.45 * r, u + q * 1.05, v + q - 0.45 * r, fill)
        else:
            p.poly([(u, v - 1.2 * q), (u + q, v), (u, v + 1.2 * q), (u - q, v)], fill)


def _fine_sign(name, n):
    """Returns the n x n px texture at 128 px, in [-1, 1], with mean zero over each 4 x 4 block."""
    y, x = np.mgrid[:n, :n]
    if name == 'hatch':
        sign = (x + y) // 2 % 2
    elif name == 'checker':
        sign = (x // 2 + y // 2) % 2
    elif name == 'rings':
        sign = (np.hypot(x - (n - 1) / 2, y - (n - 1) / 2) // 2) % 2
    elif name == 'zigzag':
        sign = (y + np.abs(x % 8 - 4)) // 2 % 2
    elif name == 'dots':
        sign = np.where((x % 4 < 2) & (y % 4 < 2), 1, 0)
    else:
        sign = np.where((x % 4 == 0) | (y % 4 == 0), 0, 1)
    blocks = sign.reshape(n // 4, 4, n // 4, 4).astype(np.float32)
    blocks = blocks - blocks.mean(axis=(1, 3), keepdims=True)
    return (blocks / np.abs(blocks).max(axis=(1, 3), keepdims=True).clip(0.5)).reshape(n, n)


def _fine(p, scene, form, side):
    """Adds the fine texture in whole blocks of 4 x 4 px at 128 px, but not outside the body or on the mark."""
    zoom = side // 128
    if zoom * 128 != side or zoom < 2:
        return  # this canvas is for 32 px, where the texture averages out anyway
    block = 4 * zoom
    n = max(6, round(FINE_UNITS * scene.scale * 32))
    x, y = p.at(*form.fine)
    x0 = round((x + p.left) / block - n / 2) * block - p.left
    y0 = round((y + p.top) / block - n / 2) * block - p.top
    box = (x0, y0, x0 + n * block, y0 + n * block)
    sign = _fine_sign(scene.fine_mark, 4 * n).repeat(zoom, axis=0).repeat(zoom, axis=1)
    pixels = np.asarray(p.layer.crop(box)).reshape(n, block, n, block, 4).astype(np.float32)
    colour, alpha = pixels[..., :3], pixels[..., 3]
    # The contrast is limited so that no colour leaves 0..255, because clipping would change the mean.
    room = np.minimum(colour, 255 - colour).min(axis=(1, 3), keepdims=True) - 1
    whole = alpha.min(axis=(1, 3)) == 255
    if scene.mark:
        # The mark is painted here only to find its place; later it is painted over what the subject wears.
        marked = Image.new('L', p.size)
        p.body_ink, p.on_body = ImageDraw.Draw(marked), True
        _mark(p, scene, form)
        p.body_ink, p.on_body = ImageDraw.Draw(p.mask), False
        whole &= np.asarray(marked.crop(box)).reshape(n, block, n, block).max(axis=(1, 3)) == 0
    swing = np.clip(room, 0, 60) * whole[:, None, :, None, None]
    pixels[..., :3] += swing * sign.reshape(n, block, n, block)[..., None]
    p.layer.paste(Image.fromarray((pixels + 0.5).astype(np.uint8).reshape(n * block, n * block, 4)), box[:2])


def _shadow(image, side, scene):
    x, y, a, b = (v * side for v in (scene.x, scene.y + 0.46 * scene.scale, 0.5 * scene.scale, 0.09 * scene.scale))
    left, top = int(x - a), int(y - b)
    soft = Image.new('L', (int(2 * a) + 2, int(2 * b) + 2))
    ImageDraw.Draw(soft).ellipse((x - a - left, y - b - top, x + a - left, y + b - top), fill=90)
    image.paste((0, 0, 0), (left, top), soft)


def paint_subject(scene: world.Scene, image: Image.Image, random: random.Random) -> Image.Image:
    """Paints the scene's subject onto its backdrop.

    Args:
      scene: what to paint. Its context decides whether there is a shadow, and its style is not used.
      image: the square RGB backdrop, which is painted over in place.
      random: the source of colour jitter and droplets.

    Returns:
      The same image.
    """
    side = image.width
    jitter = 4 if scene.split or scene.mark or scene.fine_mark else 12
    main, second = (
        tuple(min(255, max(0, round(c + random.uniform(-jitter, jitter)))) for c in world.COLOURS[name])
        for name in (scene.colour, scene.second_colour)
    )
    p, k = Pen(side, scene.x, scene.y, scene.scale, scene.flip), Look(main, second)
    form = draw_shapes.form_of(scene, p, k)
    if scene.view:
        form = _seen_from(p, k, scene, form)
    elif scene.material == 'cube shaped':
        form = _cube(p, k, form)

    # The body mask must be complete before patterns and materials, which cover only the body.
    p.on_body = True
    form.parts()
    p.on_body = True  # parts with their own colours have reset it
    form.body()
    p.on_body = False
    if scene.pattern:
        _pattern(p, scene.pattern, second)
    if scene.split:
        _split(p, form.split, second)
    _shade(p)
    if scene.material == 'shiny':
        _shiny(p)
    elif scene.material == 'wet':
        _wet(p)
    # Details come after patterns and materials, so that a face stays visible.
    form.details()
    if scene.fine_mark:
        _fine(p, scene, form, side)
    if scene.accessory and scene.view is None:
        draw_worn.WORN[scene.accessory](p, form)
    if scene.mark:
        _mark(p, scene, form)
    # Sparkles and drops must not be squashed by a view's frame.
    p.frame()
    if scene.material == 'shiny':
        _sparkles(p)
    elif scene.material == 'wet':
        _drops(p, random)

    if scene.context not in FLOATING:
        _shadow(image, side, scene)
    # A dark outline separates a subject from a backdrop of the same colour.
    alpha, d = p.layer.getchannel('A'), max(1, round(0.012 * p.unit))
    for dx, dy in ((-d, 0), (d, 0), (0, -d), (0, d)):
        image.paste(INK, (p.left + dx, p.top + dy), alpha)
    image.paste(p.layer, (p.left, p.top), p.layer)
    return image
