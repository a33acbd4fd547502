"""Images and prompts as embeddings, and LPIPS: what the scores of subject and prompt fidelity are computed from.

    load_encoder('facebook/dino-vits16')           DINO, PRES     class token after the last norm, 384 numbers
    load_encoder('facebook/dinov2-small')          DINOv2         class token after the last norm
    load_encoder('openai/clip-vit-base-patch32')   CLIP-I, CLIP-T projections of image and prompt, 512 numbers
    load_encoder('storybook-dino')                 DINO           Storybook's own, part of the package, 192 numbers
    load_encoder('storybook-clip')                 CLIP-T         the same, 128 numbers
    load_lpips('lpips.safetensors')                DIV            a distance of two images

(Folders as transformers writes them do as well: weights/encoder_folders.py.) Embeddings have length 1, so that a cosine
is a dot product. Every image is prepared as its network requires (preprocessing.py). Everything is computed in true
f32, also on accelerators whose matrix products are less exact by default: that would change the third digit of a score.

A network is compiled once, for batches of one size; the last batch is filled up. The devices of a placement each encode
a part of a batch; by default these are all devices of this host.
"""

import dataclasses
import functools
import hashlib
import itertools
import json
import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from dreambooth_jax.evaluation import preprocessing
from dreambooth_jax.text.tokenize import Tokenizer
from dreambooth_jax.training.placement import Placement, make_placement
from dreambooth_jax.weights import encoder_folders
from dreambooth_jax.weights.encoder_folders import IMAGE, TEXT
from dreambooth_jax.weights.errors import WeightsError
from dreambooth_jax.weights.pipeline import Network, hash_networks

BATCH_SIZE = 16

# How images are prepared for each model_type; every plain ViT is taken for a DINO.
_PREPARE: dict[str, Callable[..., np.ndarray]] = {
    'vit': preprocessing.dino,
    'dinov2': preprocessing.dino_v2,
    'dinov2_with_registers': preprocessing.dino_v2,
    'clip_vision_model': preprocessing.clip,
}


@dataclasses.dataclass(frozen=True, eq=False)
class _OnDevices:
    """A network on the devices of a placement, called with batches of one size.

    Attributes:
      function: compiled, (params, *inputs) -> an array; all have `rows` examples on their first axis.
      params: on the host.
      placement: the devices; each computes a part of the rows.
      rows: a multiple of the number of devices.
    """

    function: Callable[..., jax.Array]
    params: Any
    placement: Placement
    rows: int
    _placed: dict[str, Any] = dataclasses.field(default_factory=dict)

    @classmethod
    def of(cls, function, params, placement: Placement | None, batch_size: int) -> '_OnDevices':
        placement = placement or make_placement('pmap', devices=jax.local_devices())

        def exact(params, *inputs):
            with jax.default_matmul_precision('float32'):
                return function(params, *inputs)

        rows = -(-batch_size // placement.devices) * placement.devices
        return cls(jax.jit(exact), params, placement, rows)

    def map(self, *inputs: Iterable[np.ndarray]) -> list[np.ndarray]:
        """Returns the result for every example; the inputs are equally long and read batch by batch."""
        examples, results = zip(*inputs, strict=True), []
        if not self._placed:
            self._placed['params'] = self.placement.place(self.params)
        while batch := list(itertools.islice(examples, self.rows)):
            full = batch + batch[-1:] * (self.rows - len(batch))
            columns = tuple(np.stack(column) for column in zip(*full, strict=True))
            found = self.placement.gather(self.function(self._placed['params'], *self.placement.split(columns)))
            results += list(found[: len(batch)])
        return results

    def shapes(self, example: np.ndarray) -> tuple[Callable[..., jax.Array], Any, jax.ShapeDtypeStruct]:
        """Returns the function, and its parameters and a batch of such examples as shapes with their layout."""
        batch = jax.ShapeDtypeStruct((self.rows, *example.shape), example.dtype)
        return self.function, self.placement.placed_shapes(self.params), self.placement.split_shapes(batch)

    def release(self) -> None:
        self._placed.clear()


@dataclasses.dataclass(frozen=True, eq=False)
class Encoder:
    """An encoder of images, of prompts or of both; `load_encoder` reads one.

    Attributes:
      name: what it was loaded by.
      fingerprint: sha256 of its weights and configuration. Embeddings with equal fingerprints may be compared.
      width: D, how many numbers an embedding has.
      tokenizer: reads prompts; None if it encodes no texts.
    """

    name: str
    fingerprint: str
    width: int
    tokenizer: Tokenizer | None
    _prepare: Callable[[np.ndarray], np.ndarray] | None
    _networks: dict[str, _OnDevices]

    def embed_images(self, images: Sequence[np.ndarray]) -> np.ndarray:
        """Embeds images.

        Args:
          images: N images, uint8[H, W, 3] RGB, of any sizes; one array uint8[N, H, W, 3] too.

        Returns:
          f32[N, D]; every row has length 1.

        Raises:
          ValueError: if an image has another shape or dtype, or if this encoder is one of texts alone.
        """
        return self._embed(IMAGE, map(self._prepare, images) if self._prepare else ())

    def embed_texts(self, texts: Sequence[str]) -> np.ndarray:
        """Embeds prompts. What exceeds 77 tokens is cut off, with a warning.

        Args:
          texts: N prompts.

        Returns:
          f32[N, D]; every row has length 1 and may be compared with images' rows of the same encoder.

        Raises:
          ValueError: if this encoder is one of images alone.
        """
        return self._embed(TEXT, self.tokenizer(texts)[0] if self.tokenizer else ())

    def encodes(self, part: str) -> bool:
        """Returns whether it encodes 'image' or 'text'."""
        return part in self._networks

    def release(self) -> None:
        """Frees the devices of the weights, which are placed there again by the next call that needs them."""
        for network in self._networks.values():
            network.release()

    def programs(self) -> dict[str, tuple[Callable[..., jax.Array], Any, jax.ShapeDtypeStruct]]:
        """Returns what it runs: 'image' or 'text' -> a compiled function, and its parameters and input as shapes.

        The shapes have the layout on its devices. Nothing is computed or placed.
        """
        examples = {}
        if self._prepare is not None:
            examples[IMAGE] = self._prepare(np.zeros((8, 8, 3), np.uint8))
        if self.tokenizer is not None:
            examples[TEXT] = self.tokenizer([''])[0][0]
        return {part: network.shapes(examples[part]) for part, network in self._networks.items()}

    def _embed(self, part: str, inputs: Iterable[np.ndarray]) -> np.ndarray:
        if part not in self._networks:
            raise ValueError(f'{self.name} encodes no {part}s; load an encoder that does, such as a whole CLIP')
        rows = self._networks[part].map(inputs)
        return np.stack(rows) if rows else np.zeros((0, self.width), np.float32)


def load_encoder(
    source: str | os.PathLike,
    *,
    revision: str | None = None,
    placement: Placement | None = None,
    batch_size: int = BATCH_SIZE,
) -> Encoder:
    """Loads DINO, DINOv2, CLIP or one of CLIP's two towers.

    Args:
      source: a hub id, a folder with config.json and model.safetensors, or the name of one of Storybook's own; see
        encoder_folders.read_encoder.
      revision: branch, tag or commit of a hub model.
      placement: the devices that encode, such as those of a training; then all its hosts must embed the same together.
        None: all devices of this host, each with a copy of the weights.
      batch_size: images or prompts at once, on all devices together; rounded up to a multiple of their number.

    Raises:
      WeightsError: one sentence, if there is no such encoder, if its files do not fit each other, or if they are
        pickled.
      TokenizerError: if its tokenizer cannot be read.
    """
    read = encoder_folders.read_encoder(source, revision=revision)
    tokenizer = None if read.tokenizer is None else _checked(Tokenizer.load(read.tokenizer), read)
    config = next(iter(read.networks.values())).config
    return Encoder(
        name=str(source),
        fingerprint=_fingerprint(read.networks),
        width=config.get('projection_dim', config['hidden_size']),
        tokenizer=tokenizer,
        _prepare=_preparation(read.networks[IMAGE].config) if IMAGE in read.networks else None,
        _networks={
            name: _OnDevices.of(_embedding(network), network.params, placement, batch_size)
            for name, network in read.networks.items()
        },
    )


@dataclasses.dataclass(frozen=True, eq=False)
class PerceptualDistance:
    """LPIPS; `load_lpips` reads one.

    Attributes:
      fingerprint: sha256 of its weights.
      size: side in pixels of the squares that images are brought to. Distances depend on it.
    """

    fingerprint: str
    size: int
    _network: _OnDevices

    def distances(self, first: Sequence[np.ndarray], second: Sequence[np.ndarray]) -> np.ndarray:
        """Compares pairs of images.

        Args:
          first: N images, uint8[H, W, 3] RGB, of any sizes.
          second: the N images that they are compared with.

        Returns:
          f32[N]; 0 for equal images, and the more the less alike they look to people.

        Raises:
          ValueError: if an image has another shape or dtype, or if there are not equally many.
        """
        if len(first) != len(second):
            raise ValueError(f'{len(first)} images cannot be compared with {len(second)}; give one for each')
        pairs = ((preprocessing.lpips(image, self.size) for image in images) for images in (first, second))
        return np.asarray(self._network.map(*pairs), np.float32)


@dataclasses.dataclass(frozen=True, eq=False)
class FeatureDistance:
    """How far apart an encoder finds images, for Diversity where there is no LPIPS: 1 minus the cosine of features.

    Attributes:
      encoder: encodes images.
    """

    encoder: Encoder

    def distances(self, first: Sequence[np.ndarray], second: Sequence[np.ndarray]) -> np.ndarray:
        """Compares pairs of images as PerceptualDistance does; f32[N], 0 for equal images and 2 at most."""
        pairs = (self.encoder.embed_images(images) for images in (first, second))
        return 1 - np.sum(np.multiply(*pairs), axis=1)


def load_lpips(
    path: str | os.PathLike,
    *,
    size: int = preprocessing.LPIPS_SIZE,
    placement: Placement | None = None,
    batch_size: int = BATCH_SIZE,
) -> PerceptualDistance:
    """Loads LPIPS on AlexNet from a .safetensors file; encoder_folders.read_lpips says how it is made.

    Args:
      path: the file.
      size: side in pixels of the squares that images are brought to.
      placement: as in load_encoder.
      batch_size: pairs at once; as in load_encoder.

    Raises:
      WeightsError: one sentence, which may be followed by one line for each tensor that does not fit.
    """
    network = encoder_folders.read_lpips(path)
    on_devices = _OnDevices.of(network.apply, network.params, placement, batch_size)
    return PerceptualDistance(_fingerprint({'lpips': network}), size, on_devices)


def _preparation(config: Mapping[str, Any]) -> Callable[[np.ndarray], np.ndarray]:
    function = _PREPARE[config['model_type']]
    # DINOv2's image_size is 518 px, on which its training ended, but it is evaluated on the default of 224.
    return function if function is preprocessing.dino_v2 else functools.partial(function, size=config['image_size'])


def _embedding(network: Network) -> Callable[..., jax.Array]:
    def embed(params, inputs):
        _, pooled = network.apply(params, inputs)
        # As torch's normalize: a row of zeros stays one.
        return pooled / jnp.maximum(jnp.linalg.norm(pooled, axis=-1, keepdims=True), 1e-12)

    return embed


def _fingerprint(networks: dict[str, Network]) -> str:
    # The same weights with another activation, such as gelu for quick_gelu, are another encoder.
    configs = {name: network.config for name, network in networks.items()}
    return hashlib.sha256(json.dumps([configs, hash_networks(networks)], sort_keys=True).encode()).hexdigest()


def _checked(tokenizer: Tokenizer, read: encoder_folders.EncoderFolder) -> Tokenizer:
    """Returns the tokenizer; one of another model would give ids that the encoder reads without an error, as nonsense.

    Raises:
      WeightsError: one sentence.
    """
    config = read.networks[TEXT].config
    longest, known = config['max_position_embeddings'], config['vocab_size']
    if tokenizer.kind != 'clip' or tokenizer.max_length > longest or tokenizer.vocabulary_size > known:
        raise WeightsError(
            f'the tokenizer of {read.folder} makes {tokenizer.kind.upper()} prompts of {tokenizer.max_length} tokens, '
            f'out of {tokenizer.vocabulary_size}, but its encoder reads CLIP prompts of {longest}, out of {known}; '
            f'give the tokenizer of this model.'
        )
    return tokenizer
