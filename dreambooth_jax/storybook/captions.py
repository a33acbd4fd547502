"""Scenes in words, with the variety that people use.

The word order is that of the DreamBooth prompts, "a [colour] [identifier] [class noun] [accessory] [context]", so what
pretraining learns from captions is what the paper's prompts ask for. A caption says less than the image shows:
colours, patterns, kinds and now and then even the context go unsaid, as they do under real images, so that a bare
"a dog" means any dog anywhere.
"""

from collections.abc import Sequence

import numpy as np

from dreambooth_jax.storybook.world import Scene

OPENINGS = ('a photo of', 'an image of', 'an image of', 'a drawing of')


def caption(
    scene: Scene, rng: np.random.Generator, *, rare_tokens: Sequence[str] = (), rare_token_rate: float = 0.0
) -> str:
    """Describes a scene in one lower-case phrase; the same scene reads differently from draw to draw.

    Args:
      scene: what to describe. Marks and splits are never said: they belong to subjects, which identifiers name.
      rng: the only source of variety.
      rare_tokens: meaningless words of which one is put before the class noun now and then, so that before
        fine-tuning a rare token is known to mean nothing, as in a large text corpus, rather than being unseen.
      rare_token_rate: how often, in [0, 1].
    """
    said = lambda chance: rng.random() < chance  # noqa: E731
    words = []
    if scene.material:
        words.append(scene.material)
    # A plain colour is said more often than not: the paper's property prompts ("a red [V] dog") must be understood.
    if said(0.6):
        words.append(scene.colour)
    if scene.pattern and said(0.7):
        words.append(scene.pattern)
    if len(rare_tokens) and said(rare_token_rate):
        words.append(str(rng.choice(rare_tokens)))
    if scene.kind and said(0.5):
        words.append(scene.kind)
    words.append(scene.class_noun)
    noun_phrase = ' '.join(words)
    article = 'an' if noun_phrase[0] in 'aeio' else 'a'
    phrase = f'{article} {noun_phrase}'
    if scene.accessory:
        phrase += f' {scene.accessory}'
    if scene.view:
        phrase += f' seen from the {scene.view}'
    if scene.context and said(0.95):
        phrase += f' {scene.context}'
    if scene.style:
        return f'a painting of {phrase} in the style of {scene.style}'.lower()
    if said(0.25):
        phrase = f'{rng.choice(OPENINGS)} {phrase}'
    return phrase.lower()
