"""What a denoiser works on: the pixels of images, or the latents of a VAE.

A space says what a stage keeps of its images on the device, how a step gets an example from that, and how what was
generated becomes an image. The losses and the generator ask it and nothing else about pixels and latents.

Pixels are kept as they are; crops and mirrored images are made in the step. The VAE never trains, so for latents every
image is encoded once, to the moments of its posterior, and each step samples a fresh latent from them. Crops are then
images of their own (data.crops). So are mirrored images, because the VAE's encoding of a mirrored image is not the
mirrored encoding of the image; they follow the unmirrored ones (`with_mirrored`).

Sources: Rombach et al. 2022, section 3.1; diffusers StableDiffusionPipeline, StableDiffusionUpscalePipeline,
FluxPipeline (shift).
"""

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any, ClassVar, Protocol

import jax
import jax.numpy as jnp
import numpy as np
from tqdm import tqdm

from dreambooth_jax.data import low_resolution
from dreambooth_jax.data.table import shrink_masks
from dreambooth_jax.diffusion import noise
from dreambooth_jax.models import vae
from dreambooth_jax.weights.pipeline import Network, in_float32

Arrays = Mapping[str, Any]
# A VAE works on so many pixels of a device at once, one image of 512 x 512, or on one larger image. For a TPU v5e the
# compiler counts 3.3 GB of temporaries for four of 512 at once, but 1.4 GB for one of 1024, which has as many pixels.
PIXELS_AT_ONCE = 2**18
_MOST_AT_ONCE = 4  # smaller images that are encoded at once; more would not be faster
_TILE = 1024  # side in pixels of the tiles in which images with more pixels than that are decoded


class ImageSpace(Protocol):
    """What a denoiser works on.

    Attributes:
      channels: channels of what is denoised.
      side: side of the denoiser's input for the square images that the model is made for; None if it does not say.
      halvings: how often the denoiser halves its input.
      scale: side of an image divided by the side of the denoiser's input.
      decoder: the component that decodes; None if nothing is decoded.
      bounded: whether values lie in [-1, 1], so that a sampler may clip them.
      crops_in_step: whether a step can crop its examples; otherwise crops are made before training.
    """

    channels: int
    side: int | None
    halvings: int
    scale: int
    decoder: str | None
    bounded: bool
    crops_in_step: bool

    def prepare(self, images: np.ndarray, masks: np.ndarray | None, *, flip: bool, pairs: bool) -> dict[str, Any]:
        """Returns what a stage keeps of its images, on the host.

        Args:
          images: uint8[N, H, W, 3].
          masks: uint8[N, H, W, 1], how much each pixel counts (255: in full); None: all count in full.
          flip: whether steps will mirror half of the examples.
          pairs: whether steps will also need the low-resolution images.
        """

    def prepared_shapes(
        self, images: jax.ShapeDtypeStruct, masks: jax.ShapeDtypeStruct | None, *, flip: bool, pairs: bool
    ) -> dict[str, jax.ShapeDtypeStruct]:
        """Returns the shapes and dtypes of what `prepare` returns, given those of its arguments."""

    def sample(
        self, frozen: Arrays, batch: Arrays, flip_keys: jax.Array, keys: jax.Array, *, flip: bool
    ) -> tuple[jax.Array, jax.Array | None, jax.Array]:
        """Returns a step's examples.

        Args:
          frozen: holds what `prepare` returned, and prompt_of [N].
          batch: holds `image` i32[B], the index of each example's image.
          flip_keys: example keys [B] that decide who is mirrored.
          keys: example keys [B] for whatever else is random.
          flip: whether half of the examples, chosen at random, are mirrored.

        Returns:
          f32[B, h, w, C]; how much each pixel or latent counts, f32[B, h, w, 1] in [0, 1], or None if all count in
          full; and the index i32[B] for `low_images`.
        """

    def low_images(self, frozen: Arrays, index: jax.Array, x: jax.Array, factor: int) -> tuple[jax.Array, tuple]:
        """Returns the examples' low-resolution images f32[B, h, w, 3] in [-1, 1], and the size (height, width) at which
        the denoiser takes them.

        Args:
          frozen: as for `sample`.
          index: the result of `sample`.
          x: the result of `sample`, perhaps cropped.
          factor: side of an image divided by the side of its low-resolution image.
        """

    def decode(self, params: Mapping[str, Any] | None, x: jax.Array, devices: int = 1) -> jax.Array:
        """Returns the images f32[B, H, W, 3] that belong to what was generated. Pure.

        Args:
          params: those of `decoder`.
          x: f32[B, h, w, C].
          devices: over how many of them `x` is split along its first axis.
        """


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class PixelSpace:
    """The pixels of images in [-1, 1]; see ImageSpace. `prepare` keeps images and masks as they are."""

    channels: int = 3
    side: int | None = None
    halvings: int = 0
    scale: ClassVar[int] = 1
    decoder: ClassVar[None] = None
    bounded: ClassVar[bool] = True
    crops_in_step: ClassVar[bool] = True

    def prepare(self, images, masks, *, flip=False, pairs=False):
        return {'images': images} | ({} if masks is None else {'masks': masks})

    def prepared_shapes(self, images, masks, *, flip=False, pairs=False):
        return self.prepare(images, masks, flip=flip, pairs=pairs)

    def sample(self, frozen, batch, flip_keys, keys, *, flip=False):
        index = batch['image']
        # Images and masks get the same keys, so that they are mirrored together.
        images = _gather(frozen['images'], index, flip_keys, flip) / 127.5 - 1.0
        masks = _gather(frozen['masks'], index, flip_keys, flip) / 255.0 if 'masks' in frozen else None
        return images, masks, index

    def low_images(self, frozen, index, x, factor):
        return low_resolution.downsample(x, factor), x.shape[1:3]

    def decode(self, params, x, devices=1):
        return x


def _gather(examples: jax.Array, index: jax.Array, keys: jax.Array, flip: bool) -> jax.Array:
    examples = examples[index].astype(jnp.float32)
    if not flip:
        return examples
    mirrored = jax.vmap(jax.random.bernoulli)(keys)
    return jnp.where(mirrored[:, None, None, None], examples[:, :, ::-1], examples)


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class LatentSpace:
    """The latents of a VAE; see ImageSpace.

    `prepare` keeps moments f32[N or 2 N, h, w, 2C] and, if images have masks, masks uint8[N or 2 N, h, w, 1]; for
    super-resolution also low f32[N or 2 N, h, w, 3], the low-resolution images, which have the size of the latents.

    Attributes:
      vae: the VAE; None if nothing is encoded or decoded.
      scaling_factor: latents are multiplied by it before the denoiser sees them.
      shift_factor: it is subtracted from latents before they are multiplied by scaling_factor.
    """

    scaling_factor: float
    shift_factor: float = 0.0
    vae: Network | None = None
    channels: int = 4
    side: int | None = None
    halvings: int = 0
    scale: int = 8
    decoder: ClassVar[str] = 'vae'
    bounded: ClassVar[bool] = False
    crops_in_step: ClassVar[bool] = False

    def prepare(self, images, masks, *, flip=False, pairs=False):
        mirrored = with_mirrored if flip else lambda images: images
        encoder = in_float32('vae', self.vae)  # in float32, since the latents are the targets of the whole run
        data = {'moments': encode_images(encoder.apply, encoder.params, mirrored(images))}
        if masks is not None:
            data['masks'] = mirrored(shrink_masks(masks, self.scale))
        if pairs:
            pixels = jnp.asarray(images, jnp.float32) / 127.5 - 1.0
            data['low'] = mirrored(np.asarray(low_resolution.downsample(pixels, self.scale)))
        return data

    def prepared_shapes(self, images, masks, *, flip=False, pairs=False):
        count, height, width, _ = images.shape
        small = lambda channels, dtype: jax.ShapeDtypeStruct(  # noqa: E731
            ((1 + flip) * count, height // self.scale, width // self.scale, channels), dtype
        )
        data = {'moments': small(2 * self.channels, jnp.float32)}
        if masks is not None:
            data['masks'] = small(1, np.uint8)
        if pairs:
            data['low'] = small(3, jnp.float32)
        return data

    def sample(self, frozen, batch, flip_keys, keys, *, flip=False):
        index = batch['image']
        if flip:
            index = index + len(frozen['prompt_of']) * jax.vmap(jax.random.bernoulli)(flip_keys)
        masks = frozen['masks'][index].astype(jnp.float32) / 255.0 if 'masks' in frozen else None
        return self.latents(frozen, index, keys), masks, index

    def latents(self, frozen, index, keys):
        """Returns the latents f32[B, h, w, C] of the images `index` of what `prepare` returned; keys: [B]."""
        return sample_latents(frozen['moments'][index], keys, self.scaling_factor, self.shift_factor)

    def low_images(self, frozen, index, x, factor):
        low = frozen['low'][index]
        return low, low.shape[1:3]

    def decode(self, params, x, devices=1):
        latents = x / self.scaling_factor + self.shift_factor
        return decode_images(self.vae.apply, params, latents, scale=self.scale, devices=devices)


def decode_images(
    apply: Callable, params: Mapping[str, Any], latents: jax.Array, *, scale: int, devices: int
) -> jax.Array:
    """Decodes latents in as many parts as memory asks for; returns images f32[B, H, W, 3] in [-1, 1]. Pure.

    Args:
      apply, params: of an AutoencoderKL.
      latents: f32[B, h, w, C], as the autoencoder takes them.
      scale: side of an image divided by the side of its latents.
      devices: over how many of them `latents` is split along its first axis.
    """

    def decode(latents):
        return apply(params, latents, method='decode')

    def tiled(latents):
        return vae.decode_in_tiles(decode, latents, scale=scale, tile=_TILE // scale)

    pixels = scale**2 * latents.shape[1] * latents.shape[2]
    at_once = max(1, PIXELS_AT_ONCE // pixels)
    images = _in_parts(tiled if pixels > _TILE**2 else decode, latents, at_once, devices)
    # Decoded images are clipped to the range of the images that a second stage was trained on.
    return jnp.clip(images, -1.0, 1.0)


def _in_parts(function: Callable[[jax.Array], jax.Array], x: jax.Array, at_once: int, devices: int) -> jax.Array:
    """Applies `function` to at most `at_once` examples of each device at a time, and to all if they are no more.

    Args:
      x: [B, ...], split over `devices` along the first axis; each has an equal, consecutive part.
    """
    each = len(x) // devices
    if each <= at_once:
        return function(x)
    at_once = max(count for count in range(1, at_once + 1) if each % count == 0)
    # The axis of the devices stays an axis of its own, so that every part has examples of all devices.
    parts = jnp.moveaxis(x.reshape(devices, each // at_once, at_once, *x.shape[1:]), 1, 0)
    parts = jax.lax.map(function, parts.reshape(each // at_once, devices * at_once, *x.shape[1:]))
    parts = parts.reshape(each // at_once, devices, at_once, *parts.shape[2:])
    return jnp.moveaxis(parts, 0, 1).reshape(len(x), *parts.shape[3:])


def images_at_once(size: tuple[int, int]) -> int:
    """Returns how many images of a size (height, width) in pixels are encoded at once."""
    return max(1, min(_MOST_AT_ONCE, PIXELS_AT_ONCE // (size[0] * size[1])))


def encode_program(apply: Callable) -> Callable[[Mapping[str, Any], jax.Array], jax.Array]:
    """Returns the compiled function of an AutoencoderKL: (params, uint8[B, H, W, 3]) -> moments f32[B, h, w, 2C]."""

    @jax.jit
    def encode(params, pixels):
        return apply(params, pixels.astype(jnp.float32) / 127.5 - 1.0, method='encode')

    return encode


def encode_images(
    apply: Callable, params: Mapping[str, Any], images: np.ndarray, *, batch_size: int | None = None
) -> np.ndarray:
    """Returns the moments of all images, f32[N, h, w, 2 * channels] on the host.

    Args:
      apply, params: of an AutoencoderKL.
      images: uint8[N, H, W, 3].
      batch_size: how many images are encoded at once; None: images_at_once.
    """
    batch_size = batch_size or images_at_once(images.shape[1:3])
    encode = encode_program(apply)
    params = jax.device_put(params)
    encoded = []
    with tqdm(total=len(images), unit='image', desc='encoding', dynamic_ncols=True, disable=len(images) <= 8) as bar:
        for first in range(0, len(images), batch_size):
            # The last batch repeats the last image, so that one shape is compiled.
            indices = np.minimum(np.arange(first, first + batch_size), len(images) - 1)
            encoded.append(np.asarray(encode(params, images[indices])))
            bar.update(min(batch_size, len(images) - first))
    return np.concatenate(encoded)[: len(images)]


def with_mirrored(examples: np.ndarray) -> np.ndarray:
    """Appends the mirrored examples: [N, H, W, C] -> [2 N, H, W, C]."""
    return np.concatenate([examples, examples[:, :, ::-1]])


def sample_latents(moments: jax.Array, keys: jax.Array, scaling_factor: float, shift_factor: float = 0.0) -> jax.Array:
    """Samples a latent from every example's posterior, f32[B, h, w, C], shifted and scaled as the denoiser sees it.

    Args:
      moments: f32[B, h, w, 2C], mean and log-variance.
      keys: example keys [B].
      scaling_factor, shift_factor: as in LatentSpace.
    """
    *shape, channels = moments.shape[1:]
    drawn = noise.sample_noise(keys, (*shape, channels // 2))
    return vae.sample_latents(moments, drawn, scaling_factor, shift_factor)
