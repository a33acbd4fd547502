"""Describes scenes in words, as varied as people's captions.

The word order is that of the DreamBooth prompts, "a [colour] [identifier] [class noun] [accessory] [context]", so
pretraining on captions learns what the paper's prompts ask for. A caption says less than the image shows: it may omit
the colour, the pattern, the kind and sometimes even the context, like captions of real images. So a bare "a dog" means
any dog anywhere.
"""

from collections.abc import Sequence

import numpy as np

from dreambooth_jax.storybook.world import Scene

OPENINGS = ('a photo of', 'an image of', 'an image of', 'a drawing of')


def caption(
    scene: Scene, rng: np.random.Generator, *, rare_tokens: Sequence[str] = (), rare_token_rate: float = 0.0
) -> str:
    """Describes a scene in one lower-case phrase, which varies from call to call.

    Args:
      scene: the scene. Marks and split halves are never mentioned, as they belong to subjects, which have identifiers.
      rng: the only source of randomness.
      rare_tokens: meaningless words, one of which is sometimes put before the class noun. So the model learns before
        fine-tuning that a rare token means nothing, as from a large text corpus, while otherwise it would be unknown.
      rare_token_rate: probability of a rare token, in [0, 1].
    """
    said = lambda chance: rng.random() < chance  # noqa: E731
    words = []
    if scene.material:
        words.append(scene.material)
    # A plain colour is mentioned more often than not, since the paper's property prompts ("a red [V] dog") need it.
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
