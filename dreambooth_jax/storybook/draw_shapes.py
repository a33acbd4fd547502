"""The shapes of Storybook's subjects: one painter for each class, as seen from the front.

A painter takes a `Pen` and a `Look` and returns a `Form`. It says what to draw, in three functions, so that
draw_subject.py can put patterns between the body and the face, and where marks and worn things go. Everything that
identifies a class is in its silhouette or at least two pixels wide at 32 px.

Coordinates are those of draw_pen.py; a subject fills about [-0.5, 0.5] in both directions.
"""

import math

from dreambooth_jax.storybook import draw_figures
from dreambooth_jax.storybook.draw_pen import INK, PINK, SILVER, WHITE, Form, mix, nothing


def backpack(p, k):
    def parts():
        p.arc(0, -0.38, 0.13, 0.13, 180, 360, 0.06, k.dark)
        for s in (-1, 1):
            p.box(s * 0.28, 0.04, s * 0.44, 0.4, k.dark, 0.06)

    def body():
        p.box(-0.35, -0.42, 0.35, 0.47, k.main, 0.2)

    def details():
        p.arc(0, -0.05, 0.27, 0.3, 180, 360, 0.03, SILVER)
        # The pocket is only an outline, so that a pattern or a second half can be seen through it.
        p.line([(-0.25, 0.09), (-0.25, 0.4), (0.25, 0.4), (0.25, 0.09), (-0.25, 0.09)], 0.035, k.dark)
        p.line([(-0.17, 0.12), (0.17, 0.12)], 0.03, SILVER)

    return Form(parts, body, details, (0, -0.14, 0.15), (0, 0.26), ('u', 1, 0.0), face=(0, 0.03, 0.8))


def bowl(p, k):
    def parts():
        p.on_body = False  # patterns cover the bowl but not the berries
        places = ((-0.3, -0.1), (0.3, -0.1), (-0.1, -0.12), (0.12, -0.12), (-0.2, -0.22), (0.22, -0.22), (0.0, -0.26))
        for i, (u, v) in enumerate(places):
            p.ellipse(u, v, 0.12, 0.12, ((196, 30, 60), (60, 60, 150), (214, 44, 84))[i % 3])
            p.ellipse(u - 0.03, v - 0.04, 0.03, 0.03, PINK)
        p.poly([(0.0, -0.34), (0.06, -0.48), (0.16, -0.42)], (70, 170, 60))

    def body():
        p.box(-0.2, 0.36, 0.2, 0.47, k.dark, 0.03)
        angles = [math.pi * i / 20 for i in range(21)]
        p.poly([(0.52 * math.cos(t), -0.06 + 0.47 * math.sin(t)) for t in angles], k.main)

    def details():
        p.box(-0.54, -0.1, 0.54, -0.02, k.light, 0.03)

    return Form(
        parts,
        body,
        details,
        (-0.19, 0.14, 0.13),
        (0.14, 0.15),
        ('u', 1, -0.03),
        face=(0, -0.06, 0.6),
        lift=-0.2,
        is_round=True,
    )


def can(p, k):
    def body():
        p.box(-0.27, -0.38, 0.27, 0.42, k.main)

    def details():
        p.ellipse(0, -0.39, 0.27, 0.075, SILVER)
        p.ellipse(0, -0.39, 0.21, 0.05, mix(SILVER, INK, 0.3))
        p.ellipse(0.05, -0.4, 0.08, 0.03, WHITE)
        p.box(-0.27, 0.4, 0.27, 0.46, SILVER)
        p.ellipse(0, 0.0, 0.19, 0.16, k.light)
        p.ellipse(0, 0.0, 0.11, 0.09, k.second)

    return Form(nothing, body, details, (0, -0.14, 0.14), (0, 0.2), ('v', 1, 0.02), face=(0, 0.03, 0.7), is_round=True)


def candle(p, k):
    def parts():
        p.on_body = False
        p.ellipse(0, 0.44, 0.4, 0.07, (190, 150, 70))
        p.line([(0, -0.2), (0, -0.3)], 0.035, INK)
        for a, b, dv, colour in ((0.1, 0.12, 0.0, (255, 150, 30)), (0.06, 0.08, 0.03, (255, 236, 120))):
            p.ellipse(0, -0.34 + dv, a, b, colour)
            p.poly([(-a * 0.8, -0.4 + dv), (0, -0.42 - b * 1.1 + dv), (a * 0.8, -0.4 + dv)], colour)

    def body():
        p.box(-0.23, -0.2, 0.23, 0.45, k.main, 0.03)

    def details():
        p.ellipse(0, -0.2, 0.23, 0.05, k.light)
        p.line([(-0.19, -0.18), (-0.19, 0.02)], 0.08, k.light)
        p.line([(0.18, -0.18), (0.18, -0.08)], 0.08, k.light)

    return Form(
        parts,
        body,
        details,
        (0.02, -0.03, 0.13),
        (0, 0.27),
        ('v', 1, 0.11),
        face=(0, -0.1, 1.2),
        lift=-0.2,
        is_round=True,
    )


def clock(p, k):
    def parts():
        for s in (-1, 1):
            p.ellipse(s * 0.27, -0.4, 0.12, 0.1, k.dark)
            p.line([(s * 0.3, 0.4), (s * 0.36, 0.47)], 0.08, k.dark)

    def body():
        p.ellipse(0, -0.08, 0.4, 0.38, k.main)
        p.box(-0.4, -0.08, 0.4, 0.44, k.main, 0.05)

    def details():
        p.ellipse(0, -0.15, 0.28, 0.28, INK)
        p.ellipse(0, -0.15, 0.255, 0.255, WHITE)
        for i in range(0, 360, 90):
            p.ellipse(0.2 * math.cos(math.radians(i)), -0.15 + 0.2 * math.sin(math.radians(i)), 0.022, 0.022, INK)
        p.line([(0, -0.15), (0, -0.33)], 0.04, INK)
        p.line([(0, -0.15), (0.13, -0.1)], 0.05, INK)

    return Form(parts, body, details, (-0.215, 0.275, 0.125), (0.18, 0.28), ('u', 1, -0.02), face=(0, -0.15, 1.15))


def sneaker(p, k):
    def body():
        p.poly(
            [
                (-0.47, 0.32),
                (-0.5, -0.14),
                (-0.44, -0.22),
                (-0.2, -0.18),
                (-0.06, -0.3),
                (0.06, -0.25),
                (0.27, -0.06),
                (0.44, 0.08),
                (0.52, 0.2),
                (0.52, 0.32),
            ],
            k.main,
        )

    def details():
        p.box(-0.52, 0.29, 0.55, 0.42, WHITE, 0.06)
        p.line([(-0.5, 0.36), (0.53, 0.36)], 0.025, k.dark)
        p.poly([(0.34, 0.29), (0.37, 0.09), (0.46, 0.11), (0.53, 0.2), (0.53, 0.29)], WHITE)
        p.line([(-0.44, -0.2), (-0.2, -0.16), (-0.07, -0.28)], 0.06, k.dark)
        for u, v in ((-0.01, -0.19), (0.09, -0.11), (0.19, -0.03)):
            p.line([(u, v + 0.04), (u + 0.1, v - 0.05)], 0.045, WHITE)

    return Form(nothing, body, details, (-0.31, 0.08, 0.13), (0.03, 0.135), ('u', -1, -0.14), face=(0, 0.12, 0.62))


def boot(p, k):
    def body():
        p.box(-0.32, -0.5, 0.12, 0.36, k.main, 0.03)
        p.box(-0.32, 0.06, 0.48, 0.38, k.main, 0.15)

    def details():
        p.box(-0.35, 0.36, 0.5, 0.44, INK, 0.03)
        p.box(-0.35, 0.4, -0.12, 0.49, INK)
        p.box(-0.35, -0.52, 0.15, -0.42, k.dark, 0.03)
        for v in (-0.3, -0.18, -0.06):
            p.line([(0.02, v), (0.14, v + 0.04)], 0.045, (246, 226, 150))

    return Form(nothing, body, details, (-0.15, -0.23, 0.14), (-0.05, 0.17), ('v', 1, 0.0), face=(0.06, 0.0, 0.66))


def glasses(p, k):
    def parts():
        for s in (-1, 1):
            p.line([(s * 0.5, -0.08), (s * 0.56, -0.2), (s * 0.42, -0.3)], 0.06, k.dark)

    def body():
        p.box(-0.54, -0.16, 0.54, -0.02, k.main, 0.05)
        for s in (-1, 1):
            p.box(s * 0.03, -0.16, s * 0.54, 0.3, k.main, 0.16)

    def details():
        for s in (-1, 1):
            p.box(s * 0.1, -0.1, s * 0.47, 0.23, (66, 66, 84), 0.11)
            p.line([(s * 0.285 - 0.1, 0.1), (s * 0.285 - 0.02, -0.05)], 0.04, (150, 160, 190))

    return Form(parts, body, details, (-0.285, 0.07, 0.13), (0.285, 0.065), ('u', 1, 0.0), face=(0, 0.05, 0.6))


def teapot(p, k):
    def parts():
        p.arc(-0.34, 0.08, 0.23, 0.2, 90, 270, 0.09, k.main)
        p.poly([(0.24, 0.28), (0.3, 0), (0.46, -0.22), (0.62, -0.24), (0.6, -0.16), (0.46, 0.14), (0.34, 0.3)], k.main)
        p.ellipse(0, -0.33, 0.075, 0.07, k.dark)

    def body():
        p.ellipse(0, 0.1, 0.38, 0.33, k.main)
        p.box(-0.2, 0.38, 0.2, 0.46, k.dark, 0.02)
        p.ellipse(0, -0.2, 0.2, 0.1, k.main)

    def details():
        p.arc(0, -0.22, 0.24, 0.06, 0, 180, 0.04, k.dark)

    return Form(
        parts,
        body,
        details,
        (-0.175, 0.08, 0.135),
        (0.14, 0.11),
        ('u', 1, -0.03),
        face=(0, -0.12, 1.2),
        lift=-0.1,
        is_round=True,
    )


def vase(p, k):
    def parts():
        p.on_body = False
        heads = ((-0.17, -0.4, (236, 90, 120)), (0.16, -0.42, (250, 200, 60)), (0.0, -0.5, (244, 244, 250)))
        for u, v, colour in heads:
            p.line([(u * 0.3, -0.2), (u, v)], 0.035, (60, 140, 60))
            p.ellipse(u, v, 0.085, 0.085, colour)
            p.ellipse(u, v, 0.03, 0.03, (150, 90, 30))

    def body():
        p.ellipse(0, 0.16, 0.35, 0.28, k.main)
        p.poly([(-0.2, -0.26), (-0.11, -0.14), (-0.14, 0.0), (0.14, 0.0), (0.11, -0.14), (0.2, -0.26)], k.main)
        p.box(-0.18, 0.38, 0.18, 0.47, k.dark, 0.02)

    def details():
        p.ellipse(0, -0.26, 0.2, 0.04, k.dark)

    return Form(
        parts,
        body,
        details,
        (-0.17, 0.15, 0.13),
        (0.14, 0.17),
        ('u', 1, -0.02),
        face=(0, -0.26, 1.2),
        lift=-0.12,
        is_round=True,
    )


PAINTERS = {
    painter.__name__: painter
    for painter in (
        *(backpack, bowl, can, candle, clock, sneaker, boot, glasses, teapot, vase),
        *(draw_figures.cat, draw_figures.dog, draw_figures.cartoon),
    )
}


def form_of(scene, p, k):
    """Returns the form of a scene's subject as seen from the front."""
    if scene.class_noun == 'stuffed animal':
        return draw_figures.plush(p, k, scene.kind or 'bear')
    if scene.class_noun == 'toy':
        toys = {name: getattr(draw_figures, name) for name in ('duck', 'robot', 'monster', 'car', 'poop')}
        return toys[scene.kind or 'duck'](p, k)
    return PAINTERS[scene.class_noun](p, k)
