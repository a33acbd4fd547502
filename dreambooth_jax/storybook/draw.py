"""Paints a scene as pixels: the context, the subject, what stands before the subject, and then the style.

Images are painted on a larger canvas and box-averaged: on 128 px for images of 32 px and on 256 px for 128 px. The
painters use the same random numbers for every size of canvas, so one scene is one image: except for a few levels at
edges, paint(scene, 32) is the 4 x 4 box-average of paint(scene, 128).
"""

import random

import numpy as np
from PIL import Image

from dreambooth_jax.storybook.draw_context import paint_context, paint_foreground
from dreambooth_jax.storybook.draw_style import apply_style
from dreambooth_jax.storybook.draw_subject import paint_subject
from dreambooth_jax.storybook.world import Scene


def paint(scene: Scene, size: int = 128) -> np.ndarray:
    """Paints the image of a scene.

    Args:
      scene: what to paint.
      size: side of the image in px.

    Returns:
      uint8[size, size, 3].
    """
    zoom = _zoom(size)
    context, subject, foreground, style = _layers(scene)
    image = paint_context(scene.context, size * zoom, context)
    image = paint_subject(scene, image, subject)
    image = paint_foreground(scene.context, image, foreground)
    image = image.reduce(zoom)
    if scene.style:
        image = apply_style(scene.style, image, style)
    return np.asarray(image)


def paint_mask(scene: Scene, size: int = 128) -> np.ndarray:
    """Paints which part of `paint(scene, size)` is the subject: its shadow is not, nor what stands before it.

    Args:
      scene: what would be painted; its style is not used.
      size: side of the image in px.

    Returns:
      uint8[size, size], 255 where a pixel is all subject.
    """
    side = size * _zoom(size)

    def covered(paint_layer, number: int) -> np.ndarray:
        # What is the same on black and on white covers what is behind it; a shadow covers only a part.
        black, white = (
            np.asarray(paint_layer(Image.new('RGB', (side, side), colour), _layers(scene)[number]), np.int16)
            for colour in ('black', 'white')
        )
        return (white - black).max(axis=-1) < 128

    is_subject = covered(lambda image, random: paint_subject(scene, image, random), 1)
    is_before = covered(lambda image, random: paint_foreground(scene.context, image, random), 2)
    shown = Image.fromarray(np.where(is_subject & ~is_before, 255, 0).astype(np.uint8))
    return np.asarray(shown.reduce(_zoom(size)))


def _zoom(size: int) -> int:
    return 2 if size >= 96 else 4


def _layers(scene: Scene) -> tuple[random.Random, ...]:
    # Each layer has its own random numbers, so that a change in one layer's painter does not change the others.
    source = random.Random(scene.seed)
    return tuple(random.Random(source.getrandbits(32)) for _ in range(4))
