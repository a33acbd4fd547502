"""The prompts of DreamBooth: instance and class prompts, and the 25 + 25 prompts of the paper's evaluation.

Live subjects (cats and dogs) have ten contexts, ten accessories and five properties. Objects have twenty contexts and
five properties.

Source: google/dreambooth, dataset/prompts_and_classes.txt (Ruiz et al. 2023).
"""

from collections.abc import Sequence
from typing import NamedTuple

LIVE_CLASSES = ('cat', 'dog')

CONTEXT, ACCESSORY, PROPERTY = KINDS = ('context', 'accessory', 'property')

# The first ten are for all subjects, the others only for objects.
_CONTEXTS = (
    'in the jungle',
    'in the snow',
    'on the beach',
    'on a cobblestone street',
    'on top of pink fabric',
    'on top of a wooden floor',
    'with a city in the background',
    'with a mountain in the background',
    'with a blue house in the background',
    'on top of a purple rug in a forest',
    'with a wheat field in the background',
    'with a tree and autumn leaves in the background',
    'with the Eiffel Tower in the background',
    'floating on top of water',
    'floating in an ocean of milk',
    'on top of green grass with sunflowers around it',
    'on top of a mirror',
    'on top of the sidewalk in a crowded street',
    'on top of a dirt road',
    'on top of a white rug',
)
_ACCESSORIES = (
    'wearing a red hat',
    'wearing a santa hat',
    'wearing a rainbow scarf',
    'wearing a black top hat and a monocle',
    'in a chef outfit',
    'in a firefighter outfit',
    'in a police outfit',
    'wearing pink glasses',
    'wearing a yellow shirt',
    'in a purple wizard outfit',
)
_PROPERTIES = ('red', 'purple', 'shiny', 'wet', 'cube shaped')


class Prompt(NamedTuple):
    """A prompt of the evaluation. `template` contains {identifier} and {class_noun}; `kind` is one of KINDS."""

    kind: str
    template: str

    def text(self, class_noun: str, identifier: str = '') -> str:
        """Returns the prompt as text. Without an identifier it is the text that CLIP-T compares images with."""
        return _joined(self.template.format(identifier=identifier, class_noun=class_noun))


def _joined(text: str) -> str:
    return ' '.join(text.split())


def _after(kind, phrases):
    return tuple(Prompt(kind, 'a {identifier} {class_noun} ' + phrase) for phrase in phrases)


_PROPERTY_PROMPTS = tuple(Prompt(PROPERTY, f'a {adjective} {{identifier}} {{class_noun}}') for adjective in _PROPERTIES)

OBJECT_PROMPTS: tuple[Prompt, ...] = (*_after(CONTEXT, _CONTEXTS), *_PROPERTY_PROMPTS)
LIVE_PROMPTS: tuple[Prompt, ...] = (
    *_after(CONTEXT, _CONTEXTS[:10]),
    *_after(ACCESSORY, _ACCESSORIES),
    *_PROPERTY_PROMPTS,
)


def evaluation_prompts(class_noun: str) -> tuple[Prompt, ...]:
    """Returns the paper's 25 prompts in its order: LIVE_PROMPTS for the classes cat and dog, else OBJECT_PROMPTS."""
    return LIVE_PROMPTS if class_noun in LIVE_CLASSES else OBJECT_PROMPTS


def prompts_for(class_noun: str, identifier: str = '') -> tuple[str, ...]:
    """Returns the same 25 prompts as texts, without an identifier if it is empty."""
    return tuple(prompt.text(class_noun, identifier) for prompt in evaluation_prompts(class_noun))


def class_prompt(class_noun: str) -> str:
    """Returns the prompt for any member of the class, such as 'a dog'."""
    return _joined(f'a {class_noun}')


def in_turn(class_prompt: str, phrases: Sequence[str], *, plain: bool) -> tuple[str, ...]:
    """Returns the class prompts that the subject's images are shown under in turn, after which they begin again.

    Args:
      class_prompt: such as 'a dog'.
      phrases: such as 'in the snow'; each follows the class prompt.
      plain: whether the class prompt alone has every other turn.
    """
    varied = [f'{class_prompt} {phrase.strip()}' for phrase in phrases]
    return tuple(text for each in varied for text in ((class_prompt, each) if plain else (each,))) or (class_prompt,)


def instance_prompt(class_noun: str, identifier: str) -> str:
    """Returns the prompt for the subject, such as 'a sks dog'."""
    return _joined(f'a {identifier} {class_noun}')


def identifier_and_class(instance_prompt: str, class_prompt: str) -> tuple[str, str]:
    """Finds the identifier in an instance prompt by comparing it with the class prompt.

    Args:
      instance_prompt: such as 'a sks dog'.
      class_prompt: the same words without the identifier, such as 'a dog'.

    Returns:
      (identifier, class noun), such as ('sks', 'dog'); the class noun is all that follows the identifier.

    Raises:
      ValueError: if the class prompt is not the instance prompt without some consecutive words.
    """
    instance, general = instance_prompt.split(), class_prompt.split()
    extra = len(instance) - len(general)
    # The search begins at the end, because the identifier stands directly before the class noun.
    for start in range(len(general) - 1, -1, -1) if extra > 0 else ():
        if instance[:start] + instance[start + extra :] == general:
            return ' '.join(instance[start : start + extra]), ' '.join(general[start:])
    raise ValueError(
        f'instance prompt {instance_prompt!r} must be class prompt {class_prompt!r} with an identifier before the '
        f"class noun, as 'a sks dog' is to 'a dog'."
    )


def without_identifier(prompt: str, identifier: str) -> str:
    """Returns the prompt without any occurrence of the identifier's words."""
    words, target = prompt.split(), identifier.split()
    kept, i = [], 0
    while i < len(words):
        if target and words[i : i + len(target)] == target:
            i += len(target)
        else:
            kept.append(words[i])
            i += 1
    return ' '.join(kept)
