"""The classifier of Storybook: it says what an image of that world shows, and whether a subject's fine mark is in it.

It has two small networks, which were trained on painted scenes (experiments/storybook_classifier); DreamBooth never
uses them in training. The naming network sees 32 px images and tells class noun, context, subject and accessory. The
fine-mark network sees only what a 128 px image has beyond the averages of its 4 x 4 squares: fine marks
(storybook/draw_subject.py) are visible there and nowhere else. The labels are the values of the fields of
`world.Scene`; None means a plain background, no subject, no accessory or no mark.

Images are uint8 RGB for callers and f32 in [0, 1] inside. Probabilities are a softmax over the labels of a head.
"""

import dataclasses
import json
import os
from collections.abc import Callable
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from dreambooth_jax.data.low_resolution import downsample
from dreambooth_jax.models import functional, layers
from dreambooth_jax.storybook import draw_subject, storybook_folder, subjects, world
from dreambooth_jax.weights import files, mapping
from dreambooth_jax.weights.errors import WeightsError

LOW, HIGH = 32, 128  # sides of the images of the two stages, px
STEM = 'model'
HEADS = ('class_noun', 'context', 'subject', 'accessory')
NORM_GROUPS = 8
NORM_EPSILON = 1e-5
# Examples per compiled call. Every call is padded to this size, so that any number of images needs one compilation.
NAMING_ROWS, FINE_MARK_ROWS = 128, 32


@dataclasses.dataclass(frozen=True, kw_only=True)
class ClassifierConfig:
    """The shapes of both networks and the labels of their outputs, as stored in config.json."""

    naming_channels: tuple[int, ...] = (32, 32, 72, 72, 192)
    naming_layout: tuple[int, int] = (48, 128)  # channels per position, features of all positions together
    fine_mark_channels: tuple[int, ...] = (24, 40, 48)
    class_noun: tuple[str, ...] = world.CLASSES
    context: tuple[str | None, ...] = (None, *world.CONTEXTS)
    subject: tuple[str | None, ...] = (None, *subjects.SUBJECTS)
    accessory: tuple[str | None, ...] = (None, *world.ACCESSORIES)
    fine_mark: tuple[str | None, ...] = (None, *draw_subject.FINE_MARKS)


def _space_to_depth(x, factor):
    """f[B, H, W, C] -> f[B, H / factor, W / factor, factor * factor * C]."""
    batch, height, width, channels = x.shape
    x = x.reshape(batch, height // factor, factor, width // factor, factor, channels).transpose(0, 1, 3, 2, 4, 5)
    return x.reshape(batch, height // factor, width // factor, -1)


class _Trunk(nnx.Module):
    """3 x 3 convolutions with group norm and ReLU on f32[B, H, W, C]; average pooling halves the side after some."""

    def __init__(self, in_channels: int, channels: tuple[int, ...], halve_after: tuple[int, ...], *, rngs):
        pairs = zip((in_channels, *channels[:-1]), channels, strict=True)
        self.convs = nnx.List([layers.convolution(a, b, dtype=jnp.float32, rngs=rngs) for a, b in pairs])
        norms = [layers.GroupNorm(c, NORM_GROUPS, NORM_EPSILON, dtype=jnp.float32, rngs=rngs) for c in channels]
        self.norms = nnx.List(norms)
        self.halve_after = halve_after

    def __call__(self, x):
        for i, (conv, norm) in enumerate(zip(self.convs, self.norms, strict=True)):
            x = jax.nn.relu(norm(conv(x)))
            if i in self.halve_after:
                x = layers.average_pool(x)
        return x


def _over_space(x):
    """f32[B, H, W, C] -> f32[B, 2 C]: the means and the maxima over all positions."""
    return jnp.concatenate([jnp.mean(x, axis=(1, 2)), jnp.max(x, axis=(1, 2))], axis=-1)


class NamingNetwork(nnx.Module):
    """f32[B, 32, 32, 3] in [0, 1] -> {head: logits f32[B, labels of the head]}."""

    def __init__(self, config: ClassifierConfig, *, rngs):
        self.trunk = _Trunk(12, config.naming_channels, (1, 3), rngs=rngs)
        squeezed, where = config.naming_layout
        self.squeeze = layers.convolution(config.naming_channels[-1], squeezed, 1, dtype=jnp.float32, rngs=rngs)
        self.layout = nnx.Linear((LOW // 8) ** 2 * squeezed, where, rngs=rngs)
        features = 2 * config.naming_channels[-1] + where
        for head in HEADS:
            setattr(self, head, nnx.Linear(features, len(getattr(config, head)), rngs=rngs))

    def __call__(self, images):
        x = self.trunk(_space_to_depth(2 * images - 1, 2))
        # Positions tell classes apart: a mean over space alone cannot distinguish a spout from a tail.
        layout = jax.nn.relu(self.layout(jax.nn.relu(self.squeeze(x)).reshape(len(x), -1)))
        x = jnp.concatenate([_over_space(x), layout], axis=-1)
        return {head: getattr(self, head)(x) for head in HEADS}


class FineMarkNetwork(nnx.Module):
    """f32[B, 128, 128, 3] in [0, 1] -> logits f32[B, 1 + kinds of fine mark]; the first one stands for no mark."""

    def __init__(self, config: ClassifierConfig, *, rngs):
        self.trunk = _Trunk(16, config.fine_mark_channels, (0,), rngs=rngs)
        self.kind = nnx.Linear(2 * config.fine_mark_channels[-1], len(config.fine_mark), rngs=rngs)

    def __call__(self, images):
        # Fine marks change all channels by the same amount, so grey is enough. It also keeps the network from taking
        # wrong colours for a texture.
        grey = jnp.mean(images, axis=-1, keepdims=True)
        squares = _space_to_depth(grey, HIGH // LOW)
        squares = squares - jnp.mean(squares, axis=-1, keepdims=True)
        # A mark's contrast is 60 of 255 levels; the factor 4 scales it to about 1.
        return self.kind(_over_space(self.trunk(4 * squares)))


class ClassifierNetworks(nnx.Module):
    """Both networks as one set of weights."""

    def __init__(self, config: ClassifierConfig, *, rngs):
        self.naming = NamingNetwork(config, rngs=rngs)
        self.fine_mark = FineMarkNetwork(config, rngs=rngs)


@dataclasses.dataclass(frozen=True)
class Verdicts:
    """What the classifier sees in N images: the most likely label of each head, and the probability of every label.

    Attributes:
      class_noun: N class nouns.
      context: N contexts; None for a plain background.
      subject: N subjects; None for no subject.
      accessory: N accessories; None for no accessory.
      probabilities: head -> f32[N, labels], in the order of `labels`.
      labels: head -> its labels.
    """

    class_noun: list[str]
    context: list[str | None]
    subject: list[str | None]
    accessory: list[str | None]
    probabilities: dict[str, np.ndarray]
    labels: dict[str, tuple[str | None, ...]]

    def probability(self, head: str, label: str | None) -> np.ndarray:
        """Returns the probability of one label in each image, f32[N].

        Raises:
          ValueError: if the head or the label is unknown.
        """
        if head not in self.labels:
            raise ValueError(f'head is {head!r} but must be one of {HEADS}')
        if label not in self.labels[head]:
            raise ValueError(f'{head} {label!r} is no label of the classifier; it knows {self.labels[head]}')
        return self.probabilities[head][:, self.labels[head].index(label)]


@dataclasses.dataclass(frozen=True)
class Classifier:
    """Both networks with weights, compiled on first use. `Classifier.load()` reads the shipped one."""

    config: ClassifierConfig
    naming_params: functional.Params
    fine_mark_params: functional.Params
    _name: Callable
    _fine_mark: Callable

    @classmethod
    def load(cls, folder: str | os.PathLike | None = None) -> 'Classifier':
        """Reads config.json and model.safetensors.

        Args:
          folder: the folder of both files; None: that of the shipped classifier, storybook/pretrained/classifier.

        Raises:
          WeightsError: if a file is missing or damaged, or the two do not fit each other.
        """
        folder = storybook_folder() / 'classifier' if folder is None else Path(folder)
        config = _read_config(folder / 'config.json')
        path = files.find_weights(folder, STEM)
        abstract_model = nnx.eval_shape(lambda: ClassifierNetworks(config, rngs=functional.Keys(0)))
        return cls.of(config, mapping.load(abstract_model, files.read_tensors(path), source=str(path)))

    @classmethod
    def of(cls, config: ClassifierConfig, params: functional.Params) -> 'Classifier':
        """Makes a classifier with the parameters `params` of ClassifierNetworks(config)."""
        naming, _ = functional.abstract(lambda: NamingNetwork(config, rngs=functional.Keys(0)))
        fine_mark, _ = functional.abstract(lambda: FineMarkNetwork(config, rngs=functional.Keys(0)))

        def name(params, images):
            images = images.astype(jnp.float32) / 255
            logits = naming(params, downsample(images, images.shape[1] // LOW))
            return {head: jax.nn.softmax(values) for head, values in logits.items()}

        def has(params, images):
            return jax.nn.softmax(fine_mark(params, images.astype(jnp.float32) / 255))

        return cls(config, _under('naming', params), _under('fine_mark', params), jax.jit(name), jax.jit(has))

    def name(self, images: np.ndarray) -> Verdicts:
        """Names what is in images.

        Args:
          images: uint8[N, 32, 32, 3] or uint8[N, 128, 128, 3] for any N. Images of 128 px are averaged to 32 px.

        Returns:
          The verdicts on the N images.

        Raises:
          ValueError: if the images have another shape or dtype.
        """
        images = _checked(images, (LOW, HIGH))
        probabilities = _in_batches(self._name, self.naming_params, images, NAMING_ROWS)
        labels = {head: getattr(self.config, head) for head in HEADS}
        best = {head: [labels[head][i] for i in probabilities[head].argmax(-1)] for head in HEADS}
        return Verdicts(**best, probabilities=probabilities, labels=labels)

    def has_fine_mark(self, images: np.ndarray) -> np.ndarray:
        """Returns the probability that an image shows a subject's fine mark of any kind.

        Args:
          images: uint8[N, 128, 128, 3] for any N.

        Returns:
          f32[N] in [0, 1].

        Raises:
          ValueError: if the images have another shape or dtype.
        """
        return 1 - self.fine_mark_kinds(images)[:, self.config.fine_mark.index(None)]

    def fine_mark_kinds(self, images: np.ndarray) -> np.ndarray:
        """Returns the probability of each label in `config.fine_mark`, f32[N, labels]; otherwise as has_fine_mark."""
        return _in_batches(self._fine_mark, self.fine_mark_params, _checked(images, (HIGH,)), FINE_MARK_ROWS)


def save(folder: str | os.PathLike, config: ClassifierConfig, params: functional.Params) -> None:
    """Writes a classifier for `Classifier.load`, with weights in float16.

    Args:
      params: the parameters of ClassifierNetworks(config), named 'naming.<path>' and 'fine_mark.<path>'.

    Raises:
      WeightsError: if they do not fit or cannot be written.
    """
    folder = Path(folder)
    abstract_model = nnx.eval_shape(lambda: ClassifierNetworks(config, rngs=functional.Keys(0)))
    tensors = mapping.export(abstract_model, params)
    files.write_tensors(folder / f'{STEM}{files.SUFFIX}', tensors, dtype='float16')
    (folder / 'config.json').write_text(json.dumps(dataclasses.asdict(config), indent=2) + '\n', 'utf-8')


def _under(child: str, params):
    return {path.removeprefix(f'{child}.'): value for path, value in params.items() if path.startswith(f'{child}.')}


def _read_config(path: Path) -> ClassifierConfig:
    known = {field.name for field in dataclasses.fields(ClassifierConfig)}
    try:
        content = json.loads(path.read_text('utf-8'))
        if content.keys() != known:
            raise ValueError(f'its keys must be {sorted(known)}')
        return ClassifierConfig(**{key: tuple(value) for key, value in content.items()})
    except FileNotFoundError:
        raise WeightsError(
            f'{path} is missing; give a folder that experiments/storybook_classifier/run.py wrote.'
        ) from None
    except (OSError, ValueError, TypeError, AttributeError) as error:
        raise WeightsError(
            f'{path} is no configuration of a classifier ({error}); train the classifier again.'
        ) from None


def _checked(images, sides: tuple[int, ...]) -> np.ndarray:
    images = np.asarray(images)
    shape = images.shape
    if images.dtype != np.uint8 or len(shape) != 4 or shape[3] != 3 or shape[1] != shape[2] or shape[1] not in sides:
        allowed = ' or '.join(f'uint8[N, {side}, {side}, 3]' for side in sides)
        raise ValueError(
            f'images are {images.dtype}{list(shape)} but the classifier looks at {allowed}; resize them and round them '
            f'to 0..255 first.'
        )
    return images


def _in_batches(function, params, images: np.ndarray, rows: int):
    """Applies function(params, uint8[rows, ...]) to any number of images; outputs have the images as first axis."""
    outputs = []
    for start in range(0, max(len(images), 1), rows):
        part = images[start : start + rows]
        padded = np.concatenate([part, np.zeros((rows - len(part), *images.shape[1:]), np.uint8)])
        outputs.append(jax.device_get(function(params, padded)))
    return jax.tree.map(lambda *parts: np.concatenate(parts)[: len(images)], *outputs)
