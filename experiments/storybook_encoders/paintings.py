"""The paintings that Storybook's encoders are trained on: pools of them with captions, none of the thirty subjects.

Half of the paintings are scenes as pretraining paints them (`world.sample_scene`). The other half are such scenes with
marks put together at random: a second half in another colour, a badge, a fine texture. So the encoders know that things
may be marked, as DINO and CLIP know collars and labels, but they have never seen the thirty subjects: a marked thing
never has both the class and the pair of colours of one of them.

Paintings are 96 px wide: training crops them and brings them to the size of a network, 64 px.
"""

import dataclasses
from pathlib import Path

import numpy as np
from tqdm import tqdm

from dreambooth_jax.storybook import captions, draw, draw_subject, subjects, vocabulary, world

SIDE = 96  # px
POOL = 2000  # paintings in a file
CAPTIONS = 4  # of each painting
RARE_TOKEN_RATE = 0.08  # as identifiers stand in prompts, meaningless words stand in some captions
TRAIN, TEST = 0, 1  # the second number of every seed
SUBJECT_PAIRS = {(s.class_noun, s.look['colour'], s.look['second_colour']) for s in subjects.SUBJECTS.values()}


def marked_scene(rng: np.random.Generator) -> world.Scene:
    """Returns a scene with marks that are put together at random, and that is none of the subjects."""
    while True:
        scene = world.sample_scene(rng)
        split = bool(rng.random() < 0.8)
        mark = str(rng.choice(draw_subject.MARKS)) if rng.random() < 0.85 else None
        mark_colour = str(rng.choice([name for name in world.COLOURS if name != scene.colour]))
        fine_mark = str(rng.choice(draw_subject.FINE_MARKS)) if rng.random() < 0.7 else None
        if (scene.class_noun, scene.colour, scene.second_colour) not in SUBJECT_PAIRS:
            marks = dict(split=split, mark=mark, mark_colour=mark_colour, fine_mark=fine_mark)
            return dataclasses.replace(scene, pattern=None if split or mark else scene.pattern, **marks)


def paint_pool(seed: tuple[int, ...], number: int, count: int = POOL) -> dict[str, np.ndarray]:
    """Paints `count` scenes, every second one marked.

    Returns:
      images uint8[count, SIDE, SIDE, 3] and captions str[count, CAPTIONS].
    """
    images, texts = np.empty((count, SIDE, SIDE, 3), np.uint8), []
    for row in tqdm(range(count), f'pool {number}', mininterval=10):
        rng = np.random.default_rng((*seed, number, row))
        scene = marked_scene(rng) if row % 2 else world.sample_scene(rng)
        images[row] = draw.paint(scene, SIDE)
        rare = dict(rare_tokens=vocabulary.RARE_TOKENS, rare_token_rate=RARE_TOKEN_RATE)
        texts.append([captions.caption(scene, rng, **rare) for _ in range(CAPTIONS)])
    return {'images': images, 'captions': np.array(texts)}


def pools(folder: Path, seed: int, count: int) -> dict[str, np.ndarray]:
    """Returns `count` paintings for training, and keeps every finished pool in the folder for the next start."""
    folder.mkdir(parents=True, exist_ok=True)
    parts = []
    for number in range(-(-count // POOL)):
        path = folder / f'pool_{seed}_{number}.npz'  # delete it when scenes change
        if not path.is_file():
            temporary = path.with_name(f'.{path.name}')
            np.savez(temporary, **paint_pool((seed, TRAIN), number))
            temporary.rename(path)
        with np.load(path) as arrays:
            parts.append(dict(arrays))
    return {key: np.concatenate([part[key] for part in parts])[:count] for key in parts[0]}
