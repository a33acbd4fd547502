"""Paints each context of `world.CONTEXTS`, behind the subject and, for a few contexts, also in front of it.

A tiny network and people must be able to tell the twenty contexts apart at 32 px with a subject over the middle of the
image. So every context has its own palette and layout, and repeats its typical features at the sides, in the corners
and at the top.

Positions and sizes are fractions of the image's side, x to the right and y down; colours are RGB uint8. All random
numbers come from the `Random` that is passed in, so a seed determines the image.
"""

import math
from collections.abc import Callable
from random import Random

from PIL import Image

from dreambooth_jax.storybook.context_pen import Colour, ContextPen, gradient, mix


def _jungle(pen: ContextPen):
    pen.fade(0, 1, pen.near((58, 128, 52)), pen.near((10, 52, 26)))
    for k in range(8):  # trunks, then lianas
        x, low = pen.uniform(0, 1), 1.0 if k < 4 else pen.uniform(0.25, 0.6)
        pen.line([(x, 0), (x + 0.03, low)], 0.02, pen.near((22, 66, 30) if k < 4 else (122, 150, 48)))
    greens = ((30, 116, 44), (72, 160, 52), (18, 84, 40), (118, 186, 60))
    for k in range(14):  # fans of pointed leaves growing in from the top and the sides
        along = pen.uniform(0, 1)
        x, y, aim = ((along, -0.04, math.pi / 2), (-0.04, along, 0.0), (1.04, along, math.pi))[k % 3]
        colour, aim = pen.near(greens[k % 4], 14), aim + pen.uniform(-0.5, 0.5)
        for turn in (-0.75, 0.0, 0.75):
            reach = pen.uniform(0.17, 0.27)
            dx, dy = math.cos(aim + turn) * reach, math.sin(aim + turn) * reach
            left, right = (x + dx / 2 - dy / 5, y + dy / 2 + dx / 5), (x + dx / 2 + dy / 5, y + dy / 2 - dx / 5)
            pen.poly([(x, y), left, (x + dx, y + dy), right], colour)


def _pine(pen: ContextPen, x: float, foot: float, height: float):
    green = pen.near((26, 66, 60))
    for k in range(3):
        low, half = foot - height * 0.28 * k, height * (0.27 - 0.055 * k)
        tip, cap = low - height * 0.44, low - height * 0.25
        pen.poly([(x - half, low), (x, tip), (x + half, low)], green)
        pen.poly([(x - half * 0.42, cap), (x, tip), (x + half * 0.42, cap)], (238, 244, 252))


def _snow(pen: ContextPen):
    pen.fade(0, 0.6, pen.near((112, 146, 196)), pen.near((184, 206, 234)))
    ground = pen.uniform(0.5, 0.56)
    for x in (pen.uniform(0.3, 0.42), pen.uniform(0.6, 0.7)):
        _pine(pen, x, ground + 0.02, pen.uniform(0.26, 0.36))
    pen.wave(ground, 0.02, 1.1, pen.near((222, 232, 248), 4), 0.5)
    for x in (pen.uniform(0.05, 0.13), pen.uniform(0.87, 0.95)):
        _pine(pen, x, pen.uniform(0.62, 0.72), pen.uniform(0.48, 0.6))
    pen.wave(0.76, 0.025, 0.9, (246, 250, 255), 0.26)
    pen.dots(34, (0, 1), (0, 1), 0.015, (250, 250, 252))


def _beach(pen: ContextPen):
    horizon, shore, side = pen.uniform(0.28, 0.33), pen.uniform(0.5, 0.56), pen.random.choice((-1, 1))
    pen.fade(0, horizon, pen.near((96, 186, 244)), pen.near((186, 230, 252)))
    pen.fade(horizon, shore + 0.05, pen.near((22, 122, 190)), pen.near((70, 208, 210)))
    pen.wave(shore, 0.02, 0.7, (250, 252, 248), 0.08)
    pen.wave(shore + 0.035, 0.02, 0.7, pen.near((242, 214, 150)), 0.55)
    pen.dots(16, (0, 1), (0.64, 1), 0.009, (212, 178, 112))
    pen.oval(0.5 - side * pen.uniform(0.33, 0.4), 0.11, 0.075, 0.075, (255, 238, 110))
    x, top = 0.5 + side * pen.uniform(0.35, 0.39), pen.uniform(0.22, 0.28)  # a striped parasol
    pen.line([(x, top), (x + side * 0.03, 0.78)], 0.018, (250, 246, 236))
    stripe = pen.random.choice(((226, 56, 52), (240, 120, 40), (226, 70, 120)))
    for k in range(5):
        (a, b), (c, d) = [[x + (k + j - 2.5) * w for j in (0, 1)] for w in (0.068, 0.034)]  # at the rim, halfway up
        points = [(a, top + 0.14), (c, top + 0.02), (x, top - 0.02), (d, top + 0.02), (b, top + 0.14)]
        pen.poly(points, (252, 250, 244) if k % 2 else stripe)


def _cobblestone(pen: ContextPen):
    walls = ((222, 176, 112), (206, 132, 96), (230, 204, 160), (190, 150, 104))
    pen.rect(0, 0, 1, 0.36, (110, 90, 80))
    x = -pen.uniform(0, 0.12)
    while x < 1:  # old plastered houses
        width = pen.uniform(0.22, 0.3)
        pen.rect(x, 0, x + width - 0.012, 0.36, pen.near(pen.random.choice(walls)))
        for middle in (x + width * 0.27, x + width * 0.73):
            pen.rect(middle - 0.03, 0.07, middle + 0.03, 0.2, (92, 66, 54))
        x += width
    pen.rect(0, 0.34, 1, 1, pen.near((54, 54, 62), 5))
    y, height = 0.36, 0.062
    for row in range(9):
        width = height * 1.75
        for k in range(round(1 / width) + 2):
            x = (k + row % 2 * 0.5) * width
            pen.oval(x, y + height / 2, width * 0.46, height * 0.45, pen.near((136, 134, 142), 18))
        y, height = y + height, height * 1.14


def _pink_fabric(pen: ContextPen):
    base, slope = pen.near((242, 142, 190)), pen.random.choice((-1, 1)) * pen.uniform(0.35, 0.6)
    pen.fade(0, 1, mix(base, (255, 220, 238), 0.35), base)
    for k in range(7):  # folds: a dark side and a lit side each
        x, bend, width = (k + pen.uniform(-0.3, 0.3)) / 5 - 0.2, pen.uniform(-0.06, 0.06), pen.uniform(0.035, 0.06)
        spine = [(x + slope * (y - 0.5) + bend * math.sin(y * 6), y) for y in (0, 0.2, 0.4, 0.6, 0.8, 1.0)]
        for turn, tone in ((1, (206, 76, 146)), (-1, (255, 232, 244))):
            edge = [(px + turn * width * (0.4 + y), y) for px, y in reversed(spine)]
            pen.poly([*spine, *edge], mix(base, tone, pen.uniform(0.4, 0.6)))


def _wooden_floor(pen: ContextPen):
    pen.fade(0, 0.2, pen.near((240, 228, 204)), pen.near((228, 214, 188)))
    pen.rect(0, 0.155, 1, 0.2, (252, 248, 238))
    lean, gap = pen.uniform(-0.08, 0.08), (98, 54, 26)
    for k in range(11):
        (x0, x1), (x2, x3) = [[mid + (k + j - 5.5) * w for j in (0, 1)] for mid, w in ((0.5 + lean, 0.11), (0.5, 0.2))]
        pen.poly([(x0, 0.2), (x1, 0.2), (x3, 1.01), (x2, 1.01)], pen.near((184, 114, 58), 15))
        pen.line([(x0, 0.2), (x2, 1.01)], 0.011, gap)
        u = pen.uniform(0.1, 0.95)  # where two boards meet end to end
        pen.line([(x0 + (x2 - x0) * u, 0.2 + 0.81 * u), (x1 + (x3 - x1) * u, 0.2 + 0.81 * u)], 0.011, gap)


def _city(pen: ContextPen):
    pen.fade(0, 0.72, pen.near((70, 62, 128)), pen.near((250, 156, 118)))
    for depth, colour in ((0, (104, 86, 140)), (1, (38, 40, 78))):
        x = -pen.uniform(0, 0.08)
        while x < 1:
            width = pen.uniform(0.11, 0.19)
            # Towers are highest at the sides, where the subject never is.
            top = pen.uniform(0.05, 0.2) + (0.0 if depth == 0 else pen.uniform(0.04, 0.2))
            pen.rect(x, top, x + width - 0.012, 0.74, pen.near(colour, 7))
            y = top + 0.03
            while depth and y < 0.68:
                for k in range(int(width / 0.05)):
                    if pen.random.random() < 0.66:
                        pen.rect(x + 0.016 + k * 0.05, y, x + 0.043 + k * 0.05, y + 0.034, (255, 220, 104))
                y += 0.065
            x += width
    pen.rect(0, 0.72, 1, 1, pen.near((66, 64, 78), 5))
    for k in range(4):
        pen.rect(0.04 + k * 0.28, 0.87, 0.17 + k * 0.28, 0.895, (236, 232, 214))


def _mountain(pen: ContextPen):
    pen.fade(0, 0.6, pen.near((78, 148, 226)), pen.near((190, 222, 246)))
    side, foot = pen.random.choice((-1, 1)), 0.68
    ranges = ((0.5 - side * 0.4, pen.uniform(0.2, 0.28), 0.42), (0.5 + side * pen.uniform(0.16, 0.24), 0.04, 0.62))
    for x, top, half in ranges:
        rock = pen.near((112, 108, 134))
        pen.poly([(x - half, foot), (x, top), (x + half, foot)], rock)
        pen.poly([(x, top), (x + half, foot), (x + half * 0.1, foot)], mix(rock, (60, 58, 90), 0.5))
        cap = ((0.36, 0.36), (0.2, 0.29), (0.08, 0.42), (-0.06, 0.3), (-0.2, 0.4), (-0.36, 0.36))
        pen.poly([(x, top), *((x + half * u, top + (foot - top) * v) for u, v in cap)], (250, 252, 255))
    pen.wave(0.63, 0.02, 0.8, pen.near((62, 122, 70)), 0.2)
    pen.wave(0.74, 0.02, 1.2, pen.near((120, 182, 82)), 0.3)


def _blue_house(pen: ContextPen):
    pen.fade(0, 0.76, pen.near((206, 228, 240), 5), pen.near((240, 244, 238), 5))
    pen.rect(0, 0.56, 1, 0.76, pen.near((70, 132, 74)))
    x, blue, white = 0.5 + 0.12 * pen.random.choice((-1, 1)), pen.near((36, 92, 206)), (252, 252, 250)
    pen.rect(x - 0.3, 0.24, x + 0.3, 0.76, blue)
    for k in range(6):  # weatherboards
        pen.rect(x - 0.3, 0.3 + 0.075 * k, x + 0.3, 0.31 + 0.075 * k, mix(blue, (10, 30, 96), 0.45))
    pen.poly([(x - 0.355, 0.27), (x - 0.23, 0.07), (x + 0.23, 0.07), (x + 0.355, 0.27)], pen.near((170, 62, 48)))
    for middle in (x - 0.205, x + 0.205):
        pen.rect(middle - 0.065, 0.33, middle + 0.065, 0.52, white)
        pen.rect(middle - 0.04, 0.355, middle + 0.04, 0.495, (255, 226, 128))
        pen.rect(middle - 0.01, 0.355, middle + 0.01, 0.495, white)
    pen.fade(0.74, 1, pen.near((104, 178, 84)), pen.near((72, 146, 62)))
    pen.rect(0, 0.7, 1, 0.73, (240, 240, 238))
    for k in range(13):  # a picket fence
        left, right = 0.005 + k * 0.08, 0.049 + k * 0.08
        pen.poly([(left, 0.84), (left, 0.65), (left + 0.022, 0.62), (right, 0.65), (right, 0.84)], white)


def _purple_rug_forest(pen: ContextPen):
    pen.fade(0, 0.66, pen.near((38, 74, 40)), pen.near((92, 124, 62)))
    for x in (0.02, 0.16, 0.3, 0.47, 0.66, 0.83, 0.97):
        x, half, bark = x + pen.uniform(-0.035, 0.035), pen.uniform(0.025, 0.045), pen.near((104, 70, 46))
        pen.poly([(x - half, 0), (x + half, 0), (x + half * 1.3, 0.68), (x - half * 1.3, 0.68)], bark)
        pen.rect(x + half * 0.4, 0, x + half, 0.67, mix(bark, (40, 24, 18), 0.5))
    pen.wave(0.61, 0.02, 0.4, pen.near((66, 72, 34)), 0.4)
    for _ in range(18):
        x = pen.uniform(0, 1)
        pen.oval(x, pen.uniform(-0.02, 0.1), pen.uniform(0.06, 0.1), 0.05, pen.near((40, 98, 46), 16))
    purple, y = pen.near((134, 52, 188)), pen.uniform(0.8, 0.83)
    for rx, ry, share in ((0.5, 0.18, 0.7), (0.47, 0.16, 0.0), (0.4, 0.125, 0.45), (0.37, 0.11, 0.05)):
        pen.oval(0.5, y, rx, ry, mix(purple, (240, 206, 252), share))


def _wheat_field(pen: ContextPen):
    horizon = pen.uniform(0.22, 0.28)
    pen.fade(0, horizon, pen.near((128, 190, 238)), pen.near((216, 232, 236)))
    pen.fade(horizon, 1, pen.near((240, 206, 98)), pen.near((196, 140, 40)))
    for depth in range(3):
        for k in range(17 - 3 * depth):
            x = (k + pen.uniform(0, 1)) / (17 - 3 * depth)
            top = horizon + 0.02 + depth * 0.2 + pen.uniform(-0.06, 0.06)
            lean, size = pen.uniform(-0.03, 0.05), 0.012 + 0.004 * depth
            pen.line([(x, top + 0.34), (x + lean, top)], 0.01, pen.near((164, 116, 34), 14))
            pen.oval(x + lean, top, size, size * 3.4, pen.near((252, 222, 120), 14))


def _autumn_tree(pen: ContextPen):
    pen.fade(0, 0.66, pen.near((208, 220, 226)), pen.near((250, 236, 206)))
    pen.fade(0.62, 1, pen.near((206, 140, 58)), pen.near((158, 88, 38)))
    side, bark = pen.random.choice((-1, 1)), pen.near((84, 54, 40))
    x = 0.5 + side * pen.uniform(0.34, 0.39)
    pen.poly([(x - 0.05, 0), (x + 0.05, 0), (x + 0.1, 0.76), (x - 0.1, 0.76)], bark)
    leaves = ((226, 92, 30), (240, 150, 36), (196, 50, 34), (246, 190, 54))
    for k in range(26):
        away = abs(pen.random.gauss(0, 0.36))
        pen.oval(x - side * away, pen.uniform(-0.02, 0.17) - away * 0.05, 0.08, 0.062, pen.near(leaves[k % 4], 12))
    for leaf in leaves:  # falling, then fallen ones
        pen.dots(4, (0, 1), (0.2, 0.66), 0.019, leaf)
        pen.dots(8, (0, 1), (0.66, 1), 0.021, leaf)


def _eiffel_tower(pen: ContextPen):
    pen.fade(0, 0.74, pen.near((190, 206, 232), 6), pen.near((250, 226, 214), 6))
    pen.wave(0.68, 0.012, 0.24, pen.near((112, 146, 104)), 0.2)
    pen.fade(0.75, 1, pen.near((132, 176, 92)), pen.near((96, 146, 72)))
    pen.poly([(0.3, 1), (0.44, 0.75), (0.56, 0.75), (0.7, 1)], pen.near((222, 208, 178)))
    x, iron, sky = 0.5 + pen.random.choice((-0.31, -0.28, 0.28, 0.31)), pen.near((106, 74, 54), 6), (240, 222, 216)
    profile = ((0.03, 0.012), (0.18, 0.022), (0.35, 0.05), (0.51, 0.09), (0.65, 0.14), (0.8, 0.205))
    pen.poly([(x - w, y) for y, w in profile] + [(x + w, y) for y, w in reversed(profile)], iron)
    for y, w in ((0.26, 0.017), (0.345, 0.025), (0.438, 0.036), (0.56, 0.05)):  # holes in the lattice
        pen.poly([(x, y), (x + w, y + 0.035), (x, y + 0.07), (x - w, y + 0.035)], sky)
    arch = [(x + 0.115 * math.cos(k * math.pi / 8), 0.805 - 0.125 * math.sin(k * math.pi / 8)) for k in range(9)]
    pen.poly(arch, pen.near((196, 196, 170)))
    for y, w in ((0.34, 0.067), (0.523, 0.115), (0.646, 0.16)):  # the platforms
        pen.rect(x - w, y - 0.012, x + w, y + 0.014, mix(iron, (40, 26, 20), 0.5))


def _water(pen: ContextPen):
    horizon = pen.uniform(0.14, 0.18)
    pen.fade(0, horizon, pen.near((196, 226, 244)), pen.near((236, 244, 244)))
    pen.fade(horizon, 1, pen.near((66, 150, 214)), pen.near((10, 62, 142)))
    for k in range(8):
        colour = pen.near((146, 208, 240) if k % 2 else (24, 86, 168))
        pen.wave(horizon + 0.05 + 0.011 * k * (k + 3), 0.008 + 0.0015 * k, 0.2 + 0.04 * k, colour)
    for _ in range(12):
        x, y = pen.uniform(0, 1), pen.uniform(horizon + 0.04, 1)
        pen.line([(x, y), (x + 0.07, y)], 0.014, (222, 242, 252))


def _milk(pen: ContextPen):
    horizon = pen.uniform(0.2, 0.24)
    pen.fade(0, horizon + 0.03, pen.near((150, 200, 242), 5), pen.near((204, 228, 246), 5))
    for k in range(6):  # overlapping creamy billows, each with a shaded crest
        y, length, phase = horizon + 0.02 + 0.135 * k, pen.uniform(0.3, 0.46), pen.random.random()
        # |sin| gives rounded humps with sharp valleys, unlike the ripples of water and the flat hills of snow.
        crest = [(j / 24, y - 0.055 * abs(math.sin(math.pi * (j / 24 / length + phase)))) for j in range(25)]
        pen.poly([*crest, (1, 1), (0, 1)], pen.near((222, 200, 162), 5))
        pen.poly([*((px, py + 0.03) for px, py in crest), (1, 1), (0, 1)], (255, 251, 236))


def _sunflower(pen: ContextPen, x: float, y: float, size: float):
    pen.line([(x, y), (x + 0.01, min(1.0, y + 0.3))], 0.02, (44, 110, 40))
    turn = pen.uniform(0, 1)
    petals = [(turn + k * math.tau / 20, size if k % 2 else size * 0.68) for k in range(20)]
    pen.poly([(x + r * math.cos(angle), y + r * math.sin(angle)) for angle, r in petals], pen.near((255, 204, 26), 6))
    pen.oval(x, y, size * 0.45, size * 0.45, (88, 52, 24))


def _grass_blades(pen: ContextPen, count: int, low: float, high: float):
    for _ in range(count):
        x, y = pen.uniform(0, 1), pen.uniform(low, high)
        green = pen.near((60, 150, 50), 26)
        pen.poly([(x - 0.012, y), (x + pen.uniform(-0.03, 0.03), y - 0.09), (x + 0.012, y)], green)


def _sunflowers(pen: ContextPen):
    pen.fade(0, 1, pen.near((150, 214, 92)), pen.near((58, 146, 48)))
    _grass_blades(pen, 50, 0.05, 1.02)
    spots = [(x, y) for y in (0.1, 0.33, 0.56, 0.8) for x in (0.09, 0.91)] + [(0.31, 0.1), (0.52, 0.08), (0.72, 0.1)]
    for x, y in spots:
        _sunflower(pen, x + pen.uniform(-0.04, 0.04), y + pen.uniform(-0.03, 0.03), pen.uniform(0.08, 0.105))


def _mirror(pen: ContextPen):
    pen.fade(0, 1, pen.near((70, 44, 56)), pen.near((52, 30, 42)))
    gold = pen.near((206, 160, 62))
    pen.poly([(0.12, 0.17), (0.88, 0.17), (1.06, 0.99), (-0.06, 0.99)], gold)
    pen.poly([(0.14, 0.185), (0.86, 0.185), (1.03, 0.965), (-0.03, 0.965)], mix(gold, (255, 240, 180), 0.6))
    mask = ContextPen(Image.new('L', pen.image.size), pen.random)
    mask.poly([(0.19, 0.225), (0.81, 0.225), (0.95, 0.9), (0.05, 0.9)], 255)
    glass = ContextPen(gradient(pen.image.size, pen.near((150, 182, 208)), pen.near((214, 232, 242))), pen.random)
    for left, width in ((0.02, 0.1), (0.2, 0.035), (0.62, 0.05), (0.8, 0.15), (1.08, 0.06)):
        x = left + pen.uniform(-0.03, 0.03)
        points = [(x + 0.25, 0.2), (x + 0.25 + width, 0.2), (x - 0.1 + width, 0.92), (x - 0.1, 0.92)]
        glass.poly(points, (248, 253, 255))
    pen.image.paste(glass.image, (0, 0), mask.image)


def _crowded_street(pen: ContextPen):
    pen.fade(0, 0.47, pen.near((186, 186, 190)), pen.near((160, 160, 166)))
    clothes = [(214, 52, 50), (52, 96, 206), (246, 196, 46), (60, 156, 84), (148, 66, 176), (38, 172, 184)]
    skins = ((250, 214, 180), (220, 168, 126), (146, 96, 66), (96, 62, 44))
    for count, head, foot in ((8, 0.05, 0.36), (7, 0.1, 0.48)):
        pen.random.shuffle(clothes)
        for k in range(count):
            x, top = (k + 0.5 + pen.uniform(-0.15, 0.15)) / count, head + pen.uniform(-0.02, 0.03)
            legs = ((-0.04, foot - 0.13), (0.04, foot - 0.13), (0.034, foot), (0, foot - 0.09), (-0.034, foot))
            coat = ((-0.045, top + 0.05), (0.045, top + 0.05), (0.05, foot - 0.11), (-0.05, foot - 0.11))
            pen.poly([(x + dx, y) for dx, y in legs], (50, 50, 66))
            pen.poly([(x + dx, y) for dx, y in coat], clothes[k % len(clothes)])
            pen.oval(x, top + 0.02, 0.034, 0.038, pen.random.choice(skins))
    pen.fade(0.46, 1, pen.near((188, 188, 190), 6), pen.near((214, 213, 210), 6))
    joint, lean = (124, 124, 130), pen.uniform(-0.05, 0.05)
    for y in (0.46, 0.57, 0.72, 0.91):
        pen.line([(0, y), (1, y)], 0.014, joint)
    for k in range(-4, 5):
        pen.line([(0.5 + lean + k * 0.17, 0.46), (0.5 + lean * 2 + k * 0.34, 1)], 0.014, joint)


def _dirt_road(pen: ContextPen):
    horizon, far, soil = pen.uniform(0.27, 0.31), 0.5 + pen.uniform(-0.06, 0.06), pen.near((158, 106, 66))
    pen.fade(0, horizon, pen.near((150, 198, 232)), pen.near((226, 236, 232)))
    pen.wave(horizon - 0.02, 0.025, 0.8, pen.near((70, 116, 72)), 0.2)
    pen.fade(horizon + 0.02, 1, pen.near((136, 164, 72)), pen.near((88, 128, 48)))
    _grass_blades(pen, 26, 0.4, 1.02)
    y = horizon + 0.02
    pen.poly([(far - 0.09, y), (far + 0.09, y), (0.8, 0.62), (0.96, 1), (0.04, 1), (0.2, 0.62)], soil)
    pen.dots(14, (0.25, 0.75), (0.6, 1), 0.011, (204, 166, 122))
    for side in (-1, 1):  # wheel ruts and fence posts; no other context has posts along both sides
        rut = [(far + side * 0.045, y), (far + side * 0.055, y), (0.5 + side * 0.37, 1), (0.5 + side * 0.27, 1)]
        pen.poly(rut, mix(soil, (84, 48, 28), 0.6))
        for x, foot, tall in ((0.24, 0.4, 0.12), (0.34, 0.49, 0.165), (0.46, 0.6, 0.22)):
            pen.rect(0.5 + side * x - 0.012, foot - tall, 0.5 + side * x + 0.014, foot, (92, 68, 50))


def _white_rug(pen: ContextPen):
    pen.fade(0, 0.26, pen.near((78, 90, 98)), pen.near((94, 106, 114)))
    pen.fade(0.26, 1, pen.near((66, 66, 70), 6), pen.near((42, 42, 46), 6))
    top, low, inset = pen.uniform(0.36, 0.4), pen.uniform(0.93, 0.95), pen.uniform(0.14, 0.17)
    for k in range(13):  # tassels on both short ends
        y, x = top + 0.01 + (low - top - 0.02) * k / 12, inset + (0.06 - inset) * k / 12
        for edge, out in ((x, -0.06), (1 - x, 0.06)):
            pen.line([(edge, y), (edge + out, y + pen.uniform(0, 0.02))], 0.016, (232, 228, 218))
    pen.poly([(inset, top), (1 - inset, top), (0.94, low), (0.06, low)], pen.near((244, 243, 240), 4))
    pen.dots(22, (0.18, 0.82), (top + 0.03, low - 0.03), 0.012, (226, 225, 222))
    for share in (0.08, 0.92):
        pen.line([(inset + (1 - 2 * inset) * share, top), (0.06 + 0.88 * share, low)], 0.016, (196, 196, 200))


CONTEXT_PAINTERS: dict[str, Callable[[ContextPen], None]] = {
    'in the jungle': _jungle,
    'in the snow': _snow,
    'on the beach': _beach,
    'on a cobblestone street': _cobblestone,
    'on top of pink fabric': _pink_fabric,
    'on top of a wooden floor': _wooden_floor,
    'with a city in the background': _city,
    'with a mountain in the background': _mountain,
    'with a blue house in the background': _blue_house,
    'on top of a purple rug in a forest': _purple_rug_forest,
    'with a wheat field in the background': _wheat_field,
    'with a tree and autumn leaves in the background': _autumn_tree,
    'with the Eiffel Tower in the background': _eiffel_tower,
    'floating on top of water': _water,
    'floating in an ocean of milk': _milk,
    'on top of green grass with sunflowers around it': _sunflowers,
    'on top of a mirror': _mirror,
    'on top of the sidewalk in a crowded street': _crowded_street,
    'on top of a dirt road': _dirt_road,
    'on top of a white rug': _white_rug,
}


def paint_context(context: str | None, side: int, random: Random) -> Image.Image:
    """Paints a context as an RGB image of side x side px; None gives a plain studio backdrop."""
    if context is None:
        # The backdrop has low saturation, so that it differs from pink fabric and from coloured subjects.
        light = random.uniform(168, 232)
        top = tuple(min(250, round(light + random.uniform(-24, 24))) for _ in range(3))
        return gradient((side, side), mix(top, (255, 255, 255), 0.2), mix(top, (90, 90, 100), 0.2))
    pen = ContextPen(Image.new('RGB', (side, side)), random)
    CONTEXT_PAINTERS[context](pen)
    return pen.image


def _waterline(pen: ContextPen, top: Colour, bottom: Colour, crest: Colour):
    """Covers the lowest part of the image, through which the subject's foot is faintly visible."""
    y, phase, length = pen.uniform(0.825, 0.85), pen.uniform(0, math.tau), pen.uniform(0.3, 0.45)
    line = [(k / 24, y + 0.012 * math.sin(k / 24 * math.tau / length + phase)) for k in range(25)]
    mask = ContextPen(Image.new('L', pen.image.size), pen.random)
    mask.poly([*line, (1, 1), (0, 1)], 205)
    pen.image.paste(gradient(pen.image.size, top, bottom), (0, 0), mask.image)
    pen.line(line, 0.02, crest)


def paint_foreground(context: str | None, image: Image.Image, random: Random) -> Image.Image:
    """Paints what belongs in front of the subject; returns the image itself if the context has nothing there."""
    pen = ContextPen(image.copy(), random)
    if context == 'floating on top of water':
        _waterline(pen, (30, 90, 170), (14, 66, 148), (206, 234, 250))
    elif context == 'floating in an ocean of milk':
        _waterline(pen, (255, 251, 236), (250, 242, 220), (226, 206, 170))
    elif context == 'in the snow':
        pen.dots(9, (0, 1), (0, 1), 0.015, (250, 250, 252))
    elif context == 'on top of green grass with sunflowers around it':
        _grass_blades(pen, 16, 0.98, 1.04)
        for x in (pen.uniform(0.04, 0.12), pen.uniform(0.88, 0.96)):
            _sunflower(pen, x, pen.uniform(0.9, 0.95), 0.075)
    else:
        return image
    return pen.image
