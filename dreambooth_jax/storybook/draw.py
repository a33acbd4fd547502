"""Paints a scene as pixels: the context, the subject, what stands before the subject, and then the style.

Images are painted on a larger canvas and box-averaged: on 128 px for images of 32 px and on 256 px for 128 px. The
painters use the same random numbers for every size of canvas, so one scene is one image: except for a few levels at
edges, paint(scene, 32) is the 4 x 4 box-average of paint(scene, 128).
"""

import random

import numpy as np

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
    zoom = 2 if size >= 96 else 4
    source = random.Random(scene.seed)
    # Each layer has its own random numbers, so that a change in one layer's painter does not change the others.
    context, subject, foreground, style = (random.Random(source.getrandbits(32)) for _ in range(4))
    image = paint_context(scene.context, size * zoom, context)
    image = paint_subject(scene, image, subject)
    image = paint_foreground(scene.context, image, foreground)
    image = image.reduce(zoom)
    if scene.style:
        image = apply_style(scene.style, image, style)
    return np.asarray(image)
