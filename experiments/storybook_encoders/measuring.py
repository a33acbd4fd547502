"""What the card of Storybook's encoders says: how well they find subjects and captions, and agree with the classifier.

Nothing here was seen in training: the thirty subjects, and paintings of other seeds. Images are those of the whole
cascade, 128 px, and the same at 32 px, as the base stage makes them. Beside the encoders stand what chance would give
and what the paintings themselves do, averaged to 8 x 8 px.
"""

import dataclasses
from collections.abc import Callable, Sequence

import numpy as np
import paintings

from dreambooth_jax.data.low_resolution import downsample
from dreambooth_jax.evaluation import scores
from dreambooth_jax.evaluation.classifier import HIGH, LOW, Classifier
from dreambooth_jax.storybook import captions, draw, subjects, world
from dreambooth_jax.text import prompts

HELD_OUT, CLASS_PAINTINGS = 6, 16  # images of a subject besides its photos, and of every class
CAPTION_GROUPS, CAPTION_GROUP = 8, 100
SIDES = (HIGH, LOW)
Embed = Callable[[np.ndarray], np.ndarray]  # uint8[N, side, side, 3] -> f32[N, D] of length 1


def painted(scenes: Sequence[world.Scene]) -> dict[int, np.ndarray]:
    """Returns {side: uint8[N, side, side, 3]}."""
    large = np.stack([draw.paint(scene, HIGH) for scene in scenes])
    small = np.asarray(downsample(large.astype(np.float32), HIGH // LOW))
    return {HIGH: large, LOW: np.round(small).astype(np.uint8)}


def pixels(images: np.ndarray) -> np.ndarray:
    """The paintings themselves as embeddings: 8 x 8 averages, less the mean colour of all images."""
    small = np.asarray(downsample(images.astype(np.float32), images.shape[1] // 8)).reshape(len(images), -1)
    small = small - np.float32(128)
    return small / np.linalg.norm(small, axis=1, keepdims=True)


# Subjects


def subject_scenes() -> tuple[list[world.Scene], list[str]]:
    """Returns photos and other images of all subjects, then paintings of every class, and whose they are ('': none)."""
    scenes, names = [], []
    for name in subjects.SUBJECTS:
        own = [*subjects.reference_scenes(name), *subjects.held_out_scenes(name, HELD_OUT)]
        scenes += own
        names += [name] * len(own)
    for class_noun in world.CLASSES:
        scenes += class_scenes(class_noun)
        names += [''] * CLASS_PAINTINGS
    return scenes, names


def class_scenes(class_noun: str) -> list[world.Scene]:
    seed = (paintings.TEST, world.CLASSES.index(class_noun))
    rngs = [np.random.default_rng((*seed, row)) for row in range(CLASS_PAINTINGS)]
    return [world.sample_scene(rng, class_noun=class_noun) for rng in rngs]


def retrieval(embedded: np.ndarray, names: Sequence[str], contexts: Sequence[str | None]) -> dict[str, float]:
    """Ranks all other images for every image of a subject by their cosine.

    Args:
      embedded: f32[N, D] of length 1.
      names: whose images they are; '' is nobody's.
      contexts: where they are.

    Returns:
      'top-1': how often the nearest is one of the same subject; 'mAP': the mean average precision; 'top-1 elsewhere':
      how often the nearest image in another context is one of the same subject; 'chance': the share of such images
      among all others, which is what top-1 would be.
    """
    contexts = np.array([str(context) for context in contexts])
    names = np.array(names)
    queries = np.flatnonzero(names != '')
    cosines = embedded @ embedded.T
    first, precisions, elsewhere, chances = [], [], [], []
    for query in queries:
        others = np.delete(np.arange(len(names)), query)
        order = others[np.argsort(-cosines[query, others], kind='stable')]
        right = names[order] == names[query]
        first.append(right[0])
        elsewhere.append(right[np.argmax(contexts[order] != contexts[query])])
        precisions.append((np.cumsum(right)[right] / (np.flatnonzero(right) + 1)).mean())
        chances.append(right.mean())
    found = {'top-1': first, 'mAP': precisions, 'top-1 elsewhere': elsewhere, 'chance': chances}
    return {key: round(float(np.mean(values)), 4) for key, values in found.items()}


# The classifier


def agreement(embed: Embed, classifier: Classifier, side: int, images: dict[str, dict[int, np.ndarray]]) -> float:
    """Returns the rank correlation of two numbers of an image, averaged over subjects.

    One is the mean cosine to the subject's photos, the other the classifier's probability of that subject.
    """
    found = []
    for name, own in images.items():
        photos = len(subjects.reference_scenes(name))
        embedded = embed(own[side])
        cosines = scores.fidelity(embedded[photos:], embedded[:photos])
        probabilities = classifier.name(own[side][photos:]).probability('subject', name)
        found.append(np.corrcoef(ranks(cosines), ranks(probabilities))[0, 1])
    return round(float(np.mean(found)), 4)


def agreement_images() -> dict[str, dict[int, np.ndarray]]:
    """Returns {subject: its photos, then images that show it wholly, in part (a mark or colour missing), or not}."""
    found = {}
    for name, subject in subjects.SUBJECTS.items():
        whole = subjects.held_out_scenes(name, 16)
        part = [dataclasses.replace(scene, **{key: value}) for scene in whole[8:] for key, value in MISSING]
        found[name] = painted([*subjects.reference_scenes(name), *whole[:8], *part, *class_scenes(subject.class_noun)])
    return found


MISSING = (('mark', None), ('split', False))


def ranks(values: np.ndarray) -> np.ndarray:
    """Returns the ranks of values; equal values share their mean rank."""
    _, places, counts = np.unique(values, return_inverse=True, return_counts=True)
    return (np.cumsum(counts) - (counts - 1) / 2)[places]


# Captions


def prompt_scenes(class_noun: str) -> list[world.Scene]:
    """Returns a painting for every one of the 25 prompts of a class: what the prompt says, and nothing else."""
    scenes = []
    for number, prompt in enumerate(prompts.evaluation_prompts(class_noun)):
        rng = np.random.default_rng((paintings.TEST, 99, world.CLASSES.index(class_noun), number))
        plain = dict(pattern=None, material=None, accessory=None, context=None, style=None, view=None)
        scene = dataclasses.replace(world.sample_scene(rng, class_noun=class_noun), **plain)
        scenes.append(dataclasses.replace(scene, **asked(prompt.text(class_noun))))
    return scenes


def asked(text: str) -> dict[str, str]:
    """Returns the fields of a scene that a prompt of the evaluation asks for."""
    for field, values in (('context', world.CONTEXTS), ('accessory', world.ACCESSORIES)):
        for value in values:
            if text.endswith(value):
                return {field: value}
    for field, values in (('material', world.MATERIALS), ('colour', world.COLOURS)):
        for value in values:
            if text.startswith(f'a {value} '):
                return {field: value}
    raise ValueError(f'no scene is known for the prompt {text!r}')


def prompt_ranking(embed: Embed, embed_texts, side: int, images: dict[str, dict[int, np.ndarray]]) -> float:
    """Returns how often the prompt that a painting was made for is the nearest of the 25 of its class."""
    right = []
    for class_noun, own in images.items():
        cosines = embed(own[side]) @ embed_texts(prompts.prompts_for(class_noun)).T
        right += list(cosines.argmax(axis=1) == np.arange(len(cosines)))
    return round(float(np.mean(right)), 4)


def captioned() -> list[tuple[dict[int, np.ndarray], list[str]]]:
    """Returns groups of paintings with their captions, which differ within a group."""
    found = []
    for number in range(CAPTION_GROUPS):
        scenes, texts, row = [], [], 0
        while len(texts) < CAPTION_GROUP:
            rng = np.random.default_rng((paintings.TEST, 7, number, row))
            scene = world.sample_scene(rng)
            text = captions.caption(scene, rng)
            row += 1
            if text not in texts:
                scenes.append(scene)
                texts.append(text)
        found.append((painted(scenes), texts))
    return found


def caption_ranking(embed: Embed, embed_texts, side: int, groups) -> dict[str, float]:
    """Returns R@1 in a group: of a painting's caption among all captions, and of a caption's painting."""
    to_text, to_image = [], []
    for images, texts in groups:
        cosines = embed(images[side]) @ embed_texts(texts).T
        to_text += list(cosines.argmax(axis=1) == np.arange(len(texts)))
        to_image += list(cosines.argmax(axis=0) == np.arange(len(texts)))
    return {
        "a painting's caption": round(float(np.mean(to_text)), 4),
        "a caption's painting": round(float(np.mean(to_image)), 4),
    }


def measure(encoders: dict) -> dict:
    """Measures encoders.

    Args:
      encoders: {name: evaluation.encoders.Encoder}.

    Returns:
      {name: numbers}, where 'pixels' is another name.
    """
    classifier = Classifier.load()
    scenes, names = subject_scenes()
    images, partly = painted(scenes), agreement_images()
    prompted = {class_noun: painted(prompt_scenes(class_noun)) for class_noun in world.CLASSES}
    groups = captioned()
    results = {}
    for name, encoder in [*encoders.items(), ('pixels', None)]:
        embed = pixels if encoder is None else encoder.embed_images
        results[name] = {
            f'{side} px': {
                'subjects': retrieval(embed(images[side]), names, [scene.context for scene in scenes]),
                'agreement': agreement(embed, classifier, side, partly),
            }
            for side in SIDES
        }
        if encoder is not None and encoder.tokenizer:
            for side in SIDES:
                results[name][f'{side} px'] |= {
                    'prompt of 25': prompt_ranking(embed, encoder.embed_texts, side, prompted),
                    'R@1 of 100': caption_ranking(embed, encoder.embed_texts, side, groups),
                }
    return results
