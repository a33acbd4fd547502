"""Shapes of Storybook's subjects by themselves, without a backdrop."""

import functools

import numpy as np

from dreambooth_jax.storybook import draw_shapes, world
from dreambooth_jax.storybook.draw_pen import Look, Pen

KINDS = {'toy': world.TOY_KINDS, 'stuffed animal': world.ANIMAL_KINDS}
LOOK = Look((200, 90, 60), (60, 90, 200))


def every_shape():
    """(class noun, kind) of everything that has a shape of its own."""
    return [(noun, kind) for noun in world.CLASSES for kind in KINDS.get(noun, (None,))]


@functools.cache
def drawn(noun, kind=None, details=True):
    """(form, body mask bool[n, n], painted bool[n, n]); the n pixels are the subject's box [-0.84, 0.84]."""
    pen = Pen(256, 0.5, 0.5, 0.5, False)
    form = draw_shapes.form_of(world.Scene(class_noun=noun, kind=kind), pen, LOOK)
    pen.on_body = True
    form.parts()
    pen.on_body = True
    form.body()
    pen.on_body = False
    if details:
        form.details()
    return form, np.asarray(pen.mask) > 0, np.asarray(pen.layer)[..., 3] > 0
