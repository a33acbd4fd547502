"""Paints a scene as pixels: backdrop, subject, what stands before it, then the style.

Decides the supersampling: canvases of 128 px for images of 32 px and of 256 px for 128 px, box-averaged. The painters
draw the same random numbers at any canvas size, so one scene is one image: paint(scene, 32) is, up to a few levels at
edges, the 4 x 4 box-average of paint(scene, 128).
"""

import random

import numpy as np

from dreambooth_jax.storybook.draw_context import paint_context, paint_foreground
from dreambooth_jax.storybook.draw_style import apply_style
from dreambooth_jax.storybook.draw_subject import paint_subject
from dreambooth_jax.storybook.world import Scene


def paint(scene: Scene, size: int = 128) -> np.ndarray:
    """The image of a scene.

    Args:
      scene: what to paint.
      size: the image's side in px.

    Returns:
      uint8[size, size, 3].
    """
    zoom = 2 if size >= 96 else 4
    source = random.Random(scene.seed)
    # One stream per layer, so that a change in how one is painted leaves the others as they were.
    context, subject, foreground, style = (random.Random(source.getrandbits(32)) for _ in range(4))
    image = paint_context(scene.context, size * zoom, context)
    image = paint_subject(scene, image, subject)
    image = paint_foreground(scene.context, image, foreground)
    image = image.reduce(zoom)
    if scene.style:
        image = apply_style(scene.style, image, style)
    return np.asarray(image)
