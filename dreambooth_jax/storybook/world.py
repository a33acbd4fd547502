"""Storybook's world as plain data: what an image can contain, and how a random scene is sampled.

A `Scene` is an image before it is painted (draw.py) or described in words (captions.py). Class nouns, contexts,
accessories and properties are those of the DreamBooth paper's dataset and prompt lists (Ruiz et al. 2023), so that the
paper's whole protocol can be run on this world. Marks (`mark`, `fine_mark`, `split`) never occur in `sample_scene`.
They belong only to the thirty subjects (subjects.py), and only DreamBooth can teach them.

Positions and sizes are fractions of the image's side, x to the right and y down; colours are names.
"""

import dataclasses

import numpy as np

CLASSES = (
    'backpack',
    'stuffed animal',
    'bowl',
    'can',
    'candle',
    'cat',
    'clock',
    'sneaker',
    'dog',
    'toy',
    'boot',
    'glasses',
    'cartoon',
    'teapot',
    'vase',
)
LIVE_CLASSES = ('cat', 'dog')
# Classes that can wear something. The paper's accessory prompts are only for live subjects; here other figures with a
# head wear them too.
WEARING_CLASSES = ('cat', 'dog', 'stuffed animal', 'toy', 'cartoon')
TOY_KINDS = ('duck', 'robot', 'monster', 'car', 'poop')  # what a 'toy' may look like
ANIMAL_KINDS = ('bear', 'sloth', 'wolf')  # what a 'stuffed animal' may look like

COLOURS = {
    'red': (208, 48, 44),
    'orange': (236, 138, 38),
    'yellow': (240, 208, 62),
    'green': (66, 158, 72),
    'blue': (58, 104, 208),
    'purple': (138, 70, 178),
    'pink': (240, 150, 190),
    'brown': (138, 94, 60),
    'white': (240, 240, 236),
    'black': (44, 44, 50),
    'gray': (140, 140, 146),
}
PATTERNS = ('spotted', 'striped', 'checkered')

# The first ten are for all subjects, the second ten only for objects (paper, supplement: prompt lists).
CONTEXTS = (
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
ACCESSORIES = (
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
MATERIALS = ('shiny', 'wet', 'cube shaped')
STYLES = ('Vincent van Gogh', 'Michelangelo', 'Rembrandt', 'Johannes Vermeer', 'Andy Warhol', 'Katsushika Hokusai')
VIEWS = ('top', 'bottom', 'side', 'back')


@dataclasses.dataclass(frozen=True, kw_only=True)
class Scene:
    """An image as data. None means plain: no pattern or accessory, a studio backdrop, no style, seen from the front."""

    class_noun: str
    kind: str | None = None  # one of TOY_KINDS or ANIMAL_KINDS, for the two classes that have kinds
    colour: str = 'brown'
    second_colour: str = 'white'  # colour of the pattern, of the split half, or of small parts
    pattern: str | None = None
    material: str | None = None
    accessory: str | None = None
    context: str | None = None
    style: str | None = None
    view: str | None = None
    x: float = 0.5  # centre of the subject, with y
    y: float = 0.58
    scale: float = 0.66  # height of the subject's unit box
    flip: bool = False
    split: bool = False  # only for subjects: the half away from the head has the second colour
    mark: str | None = None  # only for subjects: a large badge, visible at 32 px (draw_subject.MARKS)
    mark_colour: str = 'red'
    fine_mark: str | None = None  # only for subjects: a fine texture, invisible at 32 px (draw_subject.FINE_MARKS)
    seed: int = 0  # for everything that no field determines: leaves, windows, colour jitter


def sample_scene(rng: np.random.Generator, *, class_noun: str | None = None) -> Scene:
    """Samples a random scene for pretraining or for the classifier; it never has a subject's marks.

    Args:
      rng: the only source of randomness, so a seed determines the scene.
      class_noun: the class; None samples it. Cats and dogs are then three times as likely as each other class, because
        nine of the thirty subjects are cats and dogs, and only they wear all the accessories.
    """
    if class_noun is None:
        weights = np.array([3.0 if name in LIVE_CLASSES else 1.0 for name in CLASSES])
        class_noun = str(rng.choice(CLASSES, p=weights / weights.sum()))
    # The order of the random numbers below must not change: a seed would give another scene.
    kinds = {'toy': TOY_KINDS, 'stuffed animal': ANIMAL_KINDS}.get(class_noun)
    colour, second_colour = (str(c) for c in rng.choice(list(COLOURS), size=2, replace=False))

    def maybe(chance, choices):
        return str(rng.choice(choices)) if rng.random() < chance else None

    wears = class_noun in WEARING_CLASSES and rng.random() < (0.4 if class_noun in LIVE_CLASSES else 0.15)
    # Beside its context a scene has at most one of these, as in the prompts. A view hides faces and worn things.
    extra = rng.choice(('none', 'material', 'style', 'view'), p=(0.72, 0.13, 0.09, 0.06))
    return Scene(
        class_noun=class_noun,
        kind=str(rng.choice(kinds)) if kinds else None,
        colour=colour,
        second_colour=second_colour,
        pattern=maybe(0.25, PATTERNS),
        material=str(rng.choice(MATERIALS)) if extra == 'material' else None,
        accessory=str(rng.choice(ACCESSORIES)) if wears and extra != 'view' else None,
        context=maybe(0.8, CONTEXTS),
        style=str(rng.choice(STYLES)) if extra == 'style' else None,
        view=str(rng.choice(VIEWS)) if extra == 'view' else None,
        x=float(rng.uniform(0.42, 0.58)),
        y=float(rng.uniform(0.54, 0.63)),
        scale=float(rng.uniform(0.58, 0.76)),
        flip=bool(rng.random() < 0.5),
        seed=int(rng.integers(2**31)),
    )
