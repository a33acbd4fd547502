"""The thirty subjects of Storybook: their unique looks, their reference images, and held-out images of them.

Names and class nouns are those of the DreamBooth paper's dataset. Every subject has a second half in an unusual colour,
a badge and a fine texture; none of these occurs in `world.sample_scene`. No two subjects of a class have the same pair
of colours or the same badge.

All scenes are pure functions of the subject's name. Reference scenes have even seeds and held-out scenes have odd ones,
so no held-out image repeats a reference image.
"""

import dataclasses
import random

from dreambooth_jax.storybook import world
from dreambooth_jax.storybook.world import Scene

# The contexts of a user's own photos; None is a plain backdrop.
REFERENCE_CONTEXTS = (
    None,
    'on top of a wooden floor',
    'on a cobblestone street',
    'on top of a white rug',
    'on top of a dirt road',
    'on top of green grass with sunflowers around it',
)


@dataclasses.dataclass(frozen=True)
class Subject:
    """A subject: its name in the dataset, its class noun, and the fields of `Scene` that are the same in all images."""

    name: str
    class_noun: str
    look: dict


# Name: class noun, colour, second colour, mark, mark colour, fine mark, kind. The fine texture is on the half that is
# the front of the shape; that half is never white, black or yellow, where the texture would have little contrast.
_LOOKS = {
    'backpack': ('backpack', 'red', 'blue', 'star', 'yellow', 'hatch'),
    'backpack_dog': ('backpack', 'brown', 'purple', 'heart', 'white', 'checker'),
    'bear_plushie': ('stuffed animal', 'brown', 'green', 'heart', 'red', 'rings', 'bear'),
    'berry_bowl': ('bowl', 'blue', 'orange', 'diamond', 'white', 'zigzag'),
    'can': ('can', 'blue', 'red', 'disc', 'yellow', 'dots'),
    'candle': ('candle', 'purple', 'green', 'cross', 'white', 'grid'),
    'cat': ('cat', 'orange', 'purple', 'star', 'yellow', 'checker'),
    'cat2': ('cat', 'gray', 'green', 'disc', 'red', 'hatch'),
    'clock': ('clock', 'green', 'purple', 'diamond', 'orange', 'dots'),
    'colorful_sneaker': ('sneaker', 'purple', 'green', 'star', 'yellow', 'rings'),
    'dog': ('dog', 'brown', 'blue', 'star', 'yellow', 'hatch'),
    'dog2': ('dog', 'orange', 'white', 'disc', 'purple', 'checker'),
    'dog3': ('dog', 'gray', 'red', 'cross', 'white', 'rings'),
    'dog5': ('dog', 'purple', 'yellow', 'diamond', 'black', 'zigzag'),
    'dog6': ('dog', 'green', 'pink', 'heart', 'red', 'dots'),
    'dog7': ('dog', 'pink', 'black', 'band', 'yellow', 'grid'),
    'dog8': ('dog', 'blue', 'orange', 'disc', 'black', 'hatch'),
    'duck_toy': ('toy', 'orange', 'blue', 'heart', 'white', 'grid', 'duck'),
    'fancy_boot': ('boot', 'pink', 'green', 'diamond', 'blue', 'zigzag'),
    'grey_sloth_plushie': ('stuffed animal', 'gray', 'purple', 'star', 'yellow', 'dots', 'sloth'),
    'monster_toy': ('toy', 'green', 'red', 'cross', 'yellow', 'checker', 'monster'),
    'pink_sunglasses': ('glasses', 'pink', 'purple', 'heart', 'red', 'hatch'),
    'poop_emoji': ('toy', 'brown', 'pink', 'star', 'blue', 'rings', 'poop'),
    'rc_car': ('toy', 'blue', 'yellow', 'disc', 'red', 'zigzag', 'car'),
    'red_cartoon': ('cartoon', 'red', 'blue', 'disc', 'white', 'grid'),
    'robot_toy': ('toy', 'gray', 'orange', 'diamond', 'blue', 'hatch', 'robot'),
    'shiny_sneaker': ('sneaker', 'blue', 'red', 'disc', 'white', 'checker'),
    'teapot': ('teapot', 'purple', 'orange', 'cross', 'yellow', 'rings'),
    'vase': ('vase', 'green', 'pink', 'diamond', 'yellow', 'zigzag'),
    'wolf_plushie': ('stuffed animal', 'blue', 'orange', 'cross', 'black', 'grid', 'wolf'),
}


def _subject(name, class_noun, colour, second_colour, mark, mark_colour, fine_mark, kind=None):
    look = dict(
        colour=colour,
        second_colour=second_colour,
        pattern=None,
        kind=kind,
        split=True,
        mark=mark,
        mark_colour=mark_colour,
        fine_mark=fine_mark,
    )
    return Subject(name, class_noun, look)


SUBJECTS = {name: _subject(name, *look) for name, look in _LOOKS.items()}


def reference_scenes(name: str) -> tuple[Scene, ...]:
    """Returns the scenes of the four to six photos that the owner of a subject would have."""
    subject, rng = SUBJECTS[name], random.Random(f'reference {name}')
    count = rng.randint(4, 6)
    contexts = rng.sample(REFERENCE_CONTEXTS, count)
    return tuple(
        Scene(
            class_noun=subject.class_noun,
            context=context,
            x=rng.uniform(0.42, 0.58),
            y=rng.uniform(0.54, 0.64),
            scale=rng.uniform(0.62, 0.76),
            flip=i % 2 == 1,
            seed=2 * rng.randrange(2**30),
            **subject.look,
        )
        for i, context in enumerate(contexts)
    )


def captions(name: str, prompt: str, count: int | None = None) -> list[str]:
    """Returns what the owner of a subject writes beside its photos: `prompt`, such as 'a sks dog', and the place.

    They are those of the first `count` photos; None: of all.

    One of them is the prompt alone, that of the photo on a plain backdrop or else of the first: a prompt that is never
    trained is not learned either.
    """
    scenes = reference_scenes(name)[:count]
    bare = next((i for i, scene in enumerate(scenes) if scene.context is None), 0)
    return [prompt if i == bare else f'{prompt} {scene.context}' for i, scene in enumerate(scenes)]


def held_out_scenes(name: str, count: int) -> list[Scene]:
    """Returns scenes of a subject that are not among its reference scenes.

    Args:
      name: the subject's name.
      count: number of scenes. A longer list begins with the shorter one.

    Returns:
      Scenes that go through all contexts in turn. If the subject can wear things, two in five have an accessory.
    """
    subject, rng = SUBJECTS[name], random.Random(f'held out {name}')
    contexts = list(world.CONTEXTS)
    rng.shuffle(contexts)
    scenes = []
    for i in range(count):
        # These are sampled for every subject, so that the layout of its scenes does not depend on the class.
        wears, accessory = rng.random() < 0.4, rng.choice(world.ACCESSORIES)
        scenes.append(
            Scene(
                class_noun=subject.class_noun,
                context=contexts[i % len(contexts)],
                accessory=accessory if wears and subject.class_noun in world.WEARING_CLASSES else None,
                x=rng.uniform(0.42, 0.58),
                y=rng.uniform(0.54, 0.63),
                scale=rng.uniform(0.58, 0.76),
                flip=rng.random() < 0.5,
                seed=2 * rng.randrange(2**30) + 1,
                **subject.look,
            )
        )
    return scenes
