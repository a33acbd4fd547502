"""Shapes of the subjects with a face, and of all toys. For the painters see draw_shapes.py."""

from dreambooth_jax.storybook.draw_pen import INK, PINK, SILVER, SKIN, WHITE, Form, nothing


def _eyes(p, u, v, gap, size, white=True):
    for s in (-1, 1):
        if white:
            p.ellipse(u + s * gap, v, size, size * 1.15, WHITE)
        p.ellipse(u + s * gap + 0.25 * size, v + 0.1 * size, size * (0.6 if white else 1), size * 0.75, INK)


def dog(p, k):
    def parts():
        p.line([(-0.34, 0.0), (-0.46, -0.1), (-0.5, -0.27)], 0.1, k.main)

    def body():
        for u in (-0.2, 0.1):
            p.line([(u, 0.2), (u, 0.42)], 0.1, k.dark)
        for u in (-0.33, 0.23):
            p.box(u - 0.065, 0.08, u + 0.065, 0.48, k.main, 0.04)
        p.box(-0.41, -0.11, 0.33, 0.3, k.main, 0.16)
        p.ellipse(0.29, -0.24, 0.24, 0.22, k.main)

    def details():
        for s in (-1, 1):
            p.poly([(0.29 + s * u, v) for u, v in ((0.15, -0.43), (0.3, -0.34), (0.31, -0.08), (0.2, -0.12))], k.dark)
        p.ellipse(0.31, -0.13, 0.14, 0.1, k.light)
        p.ellipse(0.32, -0.04, 0.04, 0.06, PINK)
        p.ellipse(0.32, -0.18, 0.06, 0.045, INK)
        _eyes(p, 0.3, -0.29, 0.1, 0.05)

    return Form(
        parts,
        body,
        details,
        (-0.21, 0.09, 0.15),
        (0.13, 0.12),
        ('u', -1, -0.04),
        head=(0.29, -0.42, 0.2),
        eyes=(0.3, -0.28, 0.11),
        neck=(0.24, 0.03, 0.17),
        torso=(-0.1, 0.0, 0.4, 0.32),
        face=(0.3, -0.2, 1.0),
        alive=True,
    )


def cat(p, k):
    def parts():
        p.line([(0.22, 0.4), (0.42, 0.38), (0.48, 0.2), (0.42, 0.02), (0.47, -0.1)], 0.09, k.main)
        for s in (-1, 1):
            p.poly([(s * 0.27, -0.2), (s * 0.25, -0.54), (s * 0.04, -0.36)], k.main)

    def body():
        p.box(-0.32, -0.08, 0.32, 0.46, k.main, 0.24)
        p.ellipse(0, -0.2, 0.29, 0.22, k.main)
        for s in (-1, 1):
            p.ellipse(s * 0.13, 0.44, 0.12, 0.055, k.main)

    def details():
        for s in (-1, 1):
            p.poly([(s * 0.22, -0.34), (s * 0.215, -0.46), (s * 0.11, -0.37)], PINK)
            p.ellipse(s * 0.12, -0.22, 0.06, 0.065, (180, 226, 90))
            p.ellipse(s * 0.12, -0.22, 0.025, 0.06, INK)
            for v in (-0.1, -0.05):
                p.line([(s * 0.12, -0.1), (s * 0.4, v - 0.03)], 0.012, k.light)
        p.poly([(-0.045, -0.14), (0.045, -0.14), (0, -0.09)], PINK)

    return Form(
        parts,
        body,
        details,
        (-0.165, 0.2, 0.13),
        (0.145, 0.21),
        ('v', 1, 0.0),
        head=(0, -0.36, 0.19),
        eyes=(0, -0.22, 0.12),
        neck=(0, 0.0, 0.22),
        torso=(-0.36, 0.03, 0.34, 0.4),
        face=(0, -0.18, 1.1),
        alive=True,
    )


def plush(p, k, kind):
    """Paints a seated animal with legs forward, visible soles, a seam down the belly and button eyes."""

    def parts():
        for s in (-1, 1):
            if kind == 'bear':
                p.ellipse(s * 0.22, -0.4, 0.11, 0.11, k.main)
            elif kind == 'wolf':
                p.poly([(s * 0.3, -0.2), (s * 0.3, -0.56), (s * 0.06, -0.38)], k.main)
            p.line([(s * 0.26, 0.02), (s * 0.42, 0.2 if kind != 'sloth' else -0.02)], 0.15, k.main)
            if kind == 'sloth':  # long arms, raised
                p.line([(s * 0.42, -0.02), (s * 0.5, -0.34)], 0.12, k.main)
        if kind == 'wolf':
            p.line([(-0.3, 0.3), (-0.5, 0.14), (-0.52, 0.02)], 0.14, k.main)

    def body():
        p.box(-0.32, -0.1, 0.32, 0.44, k.main, 0.24)
        p.ellipse(0, -0.24, 0.29, 0.22, k.main)
        for s in (-1, 1):
            p.ellipse(s * 0.32, 0.37, 0.15, 0.12, k.main)

    def details():
        for s in (-1, 1):
            p.ellipse(s * 0.34, 0.375, 0.09, 0.075, k.light)
            if kind == 'bear':
                p.ellipse(s * 0.22, -0.4, 0.055, 0.055, k.light)
            elif kind == 'wolf':
                p.poly([(s * 0.29, -0.2), (s * 0.38, -0.08), (s * 0.14, -0.04)], WHITE)
        for v in (0.0, 0.1, 0.2, 0.3):
            p.line([(0, v), (0, v + 0.05)], 0.018, k.dark)
        if kind == 'sloth':
            p.ellipse(0, -0.22, 0.22, 0.15, (236, 218, 186))
            for s in (-1, 1):
                p.line([(s * 0.07, -0.25), (s * 0.2, -0.18)], 0.08, (92, 66, 50))
        else:
            p.ellipse(0, -0.15, 0.13 if kind == 'bear' else 0.1, 0.1, WHITE if kind == 'wolf' else k.light)
        for s in (-1, 1):
            p.ellipse(s * 0.12, -0.25, 0.05, 0.05, INK)
            p.ellipse(s * 0.12 + 0.01, -0.265, 0.015, 0.015, WHITE)
        p.ellipse(0, -0.19, 0.05, 0.035, INK)

    return Form(
        parts,
        body,
        details,
        (-0.165, 0.14, 0.125),
        (0.15, 0.14),
        ('v', 1, -0.03),
        head=(0, -0.41, 0.19),
        eyes=(0, -0.25, 0.12),
        neck=(0, -0.02, 0.22),
        torso=(-0.36, 0.0, 0.36, 0.32),
        face=(0, -0.2, 1.0),
        alive=True,
    )


def cartoon(p, k):
    def parts():
        for s in (-1, 1):
            p.line([(s * 0.24, 0.08), (s * 0.42, 0.0), (s * 0.47, -0.12)], 0.1, k.main)

    def body():
        for s in (-1, 1):
            p.line([(s * 0.13, 0.3), (s * 0.14, 0.42)], 0.13, k.main)
        p.box(-0.29, -0.04, 0.29, 0.35, k.main, 0.1)
        p.ellipse(0, -0.24, 0.29, 0.26, k.main)

    def details():
        for s in (-1, 1):
            p.ellipse(s * 0.48, -0.15, 0.065, 0.065, SKIN)
            p.ellipse(s * 0.17, 0.445, 0.11, 0.05, INK)
        p.ellipse(0, -0.2, 0.23, 0.19, SKIN)
        _eyes(p, 0, -0.22, 0.1, 0.085)
        p.arc(0, -0.1, 0.09, 0.05, 10, 170, 0.03, (190, 40, 50))

    return Form(
        parts,
        body,
        details,
        (-0.165, 0.16, 0.115),
        (0.125, 0.175),
        ('v', 1, 0.0),
        head=(0, -0.41, 0.21),
        eyes=(0, -0.22, 0.11),
        neck=(0, 0.01, 0.2),
        torso=(-0.46, 0.02, 0.46, 0.36),
        face=(0, -0.16, 1.1),
        alive=True,
    )


def duck(p, k):
    def parts():
        p.poly([(-0.36, 0.2), (-0.54, -0.12), (-0.12, 0.0)], k.main)

    def body():
        p.ellipse(-0.04, 0.2, 0.42, 0.26, k.main)
        p.ellipse(0.2, -0.18, 0.23, 0.22, k.main)

    def details():
        p.poly([(0.36, -0.24), (0.58, -0.13), (0.36, -0.05)], (244, 124, 24))
        p.ellipse(0.26, -0.25, 0.06, 0.065, WHITE)
        p.ellipse(0.28, -0.25, 0.035, 0.04, INK)
        p.arc(-0.16, 0.14, 0.2, 0.18, 0, 130, 0.03, k.dark)

    return Form(
        parts,
        body,
        details,
        (-0.23, 0.18, 0.13),
        (0.1, 0.21),
        ('u', -1, -0.06),
        head=(0.19, -0.35, 0.19),
        eyes=(0.26, -0.25, 0.11),
        neck=(0.17, 0.02, 0.2),
        torso=(-0.3, 0.05, 0.4, 0.4),
        face=(0.33, -0.17, 1.1),
        alive=True,
    )


def robot(p, k):
    def parts():
        p.line([(0, -0.42), (0, -0.52)], 0.04, SILVER)
        p.ellipse(0, -0.53, 0.05, 0.05, (220, 40, 40))
        for s in (-1, 1):
            p.box(s * 0.3, -0.04, s * 0.46, 0.06, k.dark)
            p.box(s * 0.38, -0.04, s * 0.48, 0.26, k.dark)

    def body():
        for s in (-1, 1):
            p.box(s * 0.07, 0.3, s * 0.22, 0.48, k.dark)
        p.box(-0.33, -0.08, 0.33, 0.35, k.main, 0.03)
        p.box(-0.25, -0.44, 0.25, -0.1, k.main, 0.03)

    def details():
        p.box(-0.19, -0.38, 0.19, -0.24, INK)
        for s in (-1, 1):
            p.ellipse(s * 0.1, -0.31, 0.055, 0.055, (255, 230, 90))
            p.ellipse(s * 0.43, 0.29, 0.07, 0.06, SILVER)
        p.box(-0.14, -0.19, 0.14, -0.14, SILVER)

    return Form(
        parts,
        body,
        details,
        (-0.16, 0.12, 0.125),
        (0.145, 0.13),
        ('v', 1, -0.09),
        head=(0, -0.43, 0.22),
        eyes=(0, -0.31, 0.1),
        neck=(0, -0.06, 0.2),
        torso=(-0.34, -0.06, 0.34, 0.34),
        face=(0, -0.25, 1.2),
        alive=True,
    )


def monster(p, k):
    def parts():
        for s in (-1, 1):
            p.poly([(s * 0.1, -0.3), (s * 0.3, -0.56), (s * 0.3, -0.16)], (240, 226, 190))
            p.line([(s * 0.3, 0.06), (s * 0.46, -0.08), (s * 0.48, -0.2)], 0.1, k.main)

    def body():
        p.box(-0.35, -0.36, 0.35, 0.44, k.main, 0.3)
        for u in (-0.24, 0.0, 0.24):
            p.ellipse(u, 0.43, 0.11, 0.06, k.main)

    def details():
        p.ellipse(0, -0.18, 0.13, 0.13, WHITE)
        p.ellipse(0.02, -0.17, 0.065, 0.07, INK)
        p.box(-0.2, 0.0, 0.2, 0.1, INK, 0.04)
        for u in (-0.13, 0.0, 0.13):
            p.poly([(u - 0.05, 0.0), (u + 0.05, 0.0), (u, 0.08)], WHITE)

    return Form(
        parts,
        body,
        details,
        (-0.17, 0.27, 0.125),
        (0.145, 0.27),
        ('v', 1, 0.06),
        head=(0, -0.35, 0.22),
        eyes=(0, -0.18, 0.11),
        neck=(0, 0.12, 0.33),
        torso=(-0.4, 0.12, 0.4, 0.44),
        face=(0, -0.09, 1.1),
        alive=True,
    )


def car(p, k):
    def parts():
        p.line([(-0.38, -0.05), (-0.44, -0.4)], 0.025, INK)

    def body():
        p.box(-0.52, -0.06, 0.52, 0.28, k.main, 0.1)
        p.poly([(-0.36, 0.0), (-0.25, -0.3), (0.16, -0.3), (0.32, 0.0)], k.main)

    def details():
        p.poly([(-0.28, -0.07), (-0.2, -0.25), (-0.06, -0.25), (-0.06, -0.07)], (176, 220, 240))
        p.poly([(-0.01, -0.07), (-0.01, -0.25), (0.13, -0.25), (0.23, -0.07)], (176, 220, 240))
        p.ellipse(0.48, 0.06, 0.05, 0.06, (255, 240, 150))
        for u in (-0.32, 0.32):
            p.ellipse(u, 0.3, 0.15, 0.15, INK)
            p.ellipse(u, 0.3, 0.07, 0.07, SILVER)

    return Form(
        parts,
        body,
        details,
        (-0.17, 0.11, 0.14),
        (0.17, 0.11),
        ('u', -1, 0.0),
        head=(-0.04, -0.29, 0.2),
        eyes=(0.0, -0.16, 0.12),
        neck=(0.0, -0.03, 0.36),
        torso=(-0.32, -0.04, 0.32, 0.3),
        face=(0, 0.08, 0.62),
    )


def poop(p, k):
    def body():
        p.ellipse(0, 0.3, 0.45, 0.18, k.main)
        p.ellipse(0, 0.08, 0.34, 0.19, k.main)
        p.ellipse(0, -0.13, 0.23, 0.16, k.main)
        p.poly([(-0.16, -0.2), (0.02, -0.5), (0.14, -0.42), (0.17, -0.2)], k.main)

    def details():
        p.arc(0, 0.06, 0.33, 0.17, 20, 160, 0.02, k.dark)
        p.arc(0, -0.15, 0.22, 0.14, 20, 160, 0.02, k.dark)
        _eyes(p, 0, -0.1, 0.11, 0.075)
        p.poly([(-0.15, 0.04), (0.15, 0.04), (0.08, 0.13), (-0.08, 0.13)], WHITE)

    return Form(
        nothing,
        body,
        details,
        (-0.21, 0.29, 0.12),
        (0.13, 0.3),
        ('v', 1, 0.0),
        head=(0, -0.27, 0.19),
        eyes=(0, -0.1, 0.12),
        neck=(0, 0.17, 0.3),
        torso=(-0.46, 0.18, 0.46, 0.5),
        face=(0, 0.0, 1.1),
        alive=True,
    )
