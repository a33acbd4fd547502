"""The whole model, from prompts to images: text encoders, base stage and, if there is one, super-resolution stage.

An image depends only on the weights, the prompt, the seed and its image number, not on the other images of its batch or
on the batch size. Image j of every prompt starts from the same noise, so that a contact sheet compares prompts. The
second stage gets the base stage's images before they are rounded to 8 bits, as IFSuperResolutionPipeline does when it
is given a tensor. If there are several local devices, each generates a part of the batch with a copy of the weights.
"""

import dataclasses
import functools
import os
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from absl import logging
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec
from tqdm import tqdm

from dreambooth_jax.config import NO_MODEL, ConfigError, DreamBoothConfig
from dreambooth_jax.generation import checks, text_to_image
from dreambooth_jax.models import vae
from dreambooth_jax.stages.text_conditioning import Text, TextConditioning, take
from dreambooth_jax.text.tokenize import Tokenizer
from dreambooth_jax.weights import folders, guard, noise_schedules
from dreambooth_jax.weights.errors import WeightsError
from dreambooth_jax.weights.pipeline import Network, Pipeline, in_float32

BASE, SUPER_RESOLUTION = STAGES = ('base', 'super_resolution')
# The second stage's keys are those of the base stage folded with this number. It must differ from 0, 1 and 2, the
# streams into which make_sampler splits a key.
_SUPER_RESOLUTION_STREAM = 3
_IMAGES_AT_ONCE = 8
_PROMPTS_AT_ONCE = 8  # the text encoder is compiled for this batch size alone


class Images(NamedTuple):
    """The images of both stages: uint8[N, h, w, 3], and uint8[N, H, W, 3] or None if there is no second stage."""

    base: np.ndarray
    super_resolution: np.ndarray | None

    @property
    def final(self) -> np.ndarray:
        """The images of the last stage."""
        return self.base if self.super_resolution is None else self.super_resolution


@dataclasses.dataclass(frozen=True, eq=False)
class Cascade:
    """A base stage with text encoders and tokenizers and, optionally, a super-resolution stage.

    Attributes:
      base: the complete pipeline of the base stage.
      super_resolution: the pipeline of the second stage, or None. If it has no text encoder, the base stage's is used.
        `load` reads none for a pixel-space second stage that can use the text states of a pixel-space base stage.
      size: side of the base stage's images in pixels; None: the model's own. Only latent models, and models that do not
        state their size, can generate at another size.
      clip_skip: number of last CLIP layers that the base stage skips; see TextConditioning.
      programs: cache of compiled functions, which with_params hands on.

    Raises:
      WeightsError: if a part is missing, is meant for the other stage or does not fit it, or if a scheduler has another
        kind of noise (weights/noise_schedules.py).
      ConfigError: if the model cannot sample at `size`.
    """

    base: Pipeline
    super_resolution: Pipeline | None = None
    size: int | None = None
    clip_skip: int = 0
    programs: dict[Any, Any] = dataclasses.field(default_factory=dict, repr=False)
    _on_device: dict[Any, Any] = dataclasses.field(default_factory=dict, repr=False)

    def __post_init__(self):
        base, second = self.base, self.super_resolution
        checks.check_stage(base, False, base.family.networks + base.family.tokenizers)
        checks.check_size(base, self.size)
        if second is None:
            return
        parts = second.family.networks + second.family.tokenizers if second.is_latent else ('unet',)
        checks.check_stage(second, True, parts)
        if second.text_encoder is None:
            guard.check_second_stage(second, base)

    @classmethod
    def load(
        cls,
        name: str | os.PathLike,
        *,
        super_resolution_model: str | os.PathLike | None = None,
        dtype: Any = 'auto',
        size: int | None = None,
        clip_skip: int = 0,
        prediction_type: str | None = None,
        tokenizer_dir: str | os.PathLike | None = None,
        revisions: tuple[str | None, str | None] = (None, None),
    ) -> 'Cascade':
        """Reads a model.

        Args:
          name: 'storybook', a pipeline folder, a single file, a run's folder or a hub id, as in read_pipeline.
          super_resolution_model: the same for the second stage. None: the one inside the model's folder, if there is
            one. 'none': no second stage.
          dtype: the dtype that networks compute in; 'auto': bfloat16, but float32 on CPU.
          size: see the class; so for clip_skip.
          prediction_type: what the base stage predicts; see read_pipeline, as for tokenizer_dir.
          revisions: branch, tag or commit of the base and the second stage if they are hub ids.

        Raises:
          WeightsError: if a model cannot be read, or as the class says.
        """
        dtype = compute_dtype(dtype)
        options = {'prediction_type': prediction_type, 'tokenizer_dir': tokenizer_dir, 'revision': revisions[0]}
        base = folders.read_pipeline(name, dtype=dtype, **options)
        second = base.super_resolution_folder if super_resolution_model is None else super_resolution_model
        if second is None or str(second) == NO_MODEL:
            return cls(base, size=size, clip_skip=clip_skip)
        second = folders.read_second_stage(second, base, dtype=dtype, revision=revisions[1])
        return cls(base, second, size=size, clip_skip=clip_skip)

    @classmethod
    def of(cls, config: DreamBoothConfig) -> 'Cascade':
        """Reads the model that a run begins with; raises what `load` raises.

        With objective.zero_terminal_snr, the stages that train have the changed noise schedule.
        """
        cascade = cls.load(
            config.model,
            super_resolution_model=config.super_resolution_model,
            dtype=config.parallel.dtype,
            size=config.data.resolution,
            clip_skip=config.base.clip_skip,
            prediction_type=config.model_prediction_type,
            tokenizer_dir=config.model_tokenizer_dir,
            revisions=(config.model_revision, config.super_resolution_model_revision),
        )
        if not config.objective.zero_terminal_snr:
            return cascade
        trained = {name: getattr(cascade, name) for name in STAGES if getattr(config, name).steps}
        changed = {name: noise_schedules.with_zero_terminal_snr(part) for name, part in trained.items() if part}
        return dataclasses.replace(cascade, **changed)

    @property
    def base_size(self) -> int:
        """Side of the base stage's images, in pixels; WeightsError if neither `size` nor the model states it."""
        return self.size or self.base.size

    @property
    def super_resolution_size(self) -> int:
        """Side of the second stage's images, in pixels."""
        second = self.super_resolution
        return self.base_size * second.latent_scale if second.is_latent else second.size

    @property
    def factor(self) -> int:
        """Side of the second stage's images divided by the base stage's; WeightsError if it is not a whole number."""
        if self.super_resolution_size % self.base_size:
            raise WeightsError(
                f'{self.super_resolution.name} generates {self.super_resolution_size} px, no multiple of the '
                f'{self.base_size} px of {self.base.name}; give the second stage that belongs to this model.'
            )
        return self.super_resolution_size // self.base_size

    @property
    def usual_batch_size(self) -> int:
        """Images generated at once if nobody asks for another number, on all devices together.

        It is 1 with latent models, because a decoder needs much memory per image; `stream` makes that one per device.
        """
        stages = (self.base, self.super_resolution)
        return 1 if any(stage is not None and stage.is_latent for stage in stages) else _IMAGES_AT_ONCE

    @property
    def tokenizer(self) -> Tokenizer:
        """The base stage's tokenizer."""
        return self._tokenizer(BASE)

    def with_params(
        self,
        *,
        unet: Mapping[str, Any] | None = None,
        text_encoder: Mapping[str, Any] | None = None,
        text_encoder_2: Mapping[str, Any] | None = None,
        super_resolution_unet: Mapping[str, Any] | None = None,
    ) -> 'Cascade':
        """Returns the same networks with other parameters. None keeps a network's own; nothing is compiled again."""
        given = {
            (BASE, 'unet'): unet,
            (BASE, 'text_encoder'): text_encoder,
            (BASE, 'text_encoder_2'): text_encoder_2,
            (SUPER_RESOLUTION, 'unet'): super_resolution_unet,
        }
        given = {part: params for part, params in given.items() if params is not None}
        stages = {stage: getattr(self, stage) for stage in STAGES}
        for (stage, component), params in given.items():
            network = dataclasses.replace(getattr(stages[stage], component), params=params)
            stages[stage] = dataclasses.replace(stages[stage], **{component: network})
        on_device = {part: params for part, params in self._on_device.items() if part not in given}
        return dataclasses.replace(self, **stages, _on_device=on_device)

    def with_tokens(self, text_encoders: Mapping[str, Network], added_tokens: tuple[str, ...]) -> 'Cascade':
        """Returns the cascade with other words added to its base stage; the samplers are not compiled again.

        Args:
          text_encoders: component -> network whose token table has a row for every added token.
          added_tokens: all added tokens, as in Pipeline.
        """
        base = dataclasses.replace(self.base, added_tokens=added_tokens, **text_encoders)
        on_device = {part: params for part, params in self._on_device.items() if part[1] not in text_encoders}
        return dataclasses.replace(self, base=base, _on_device=on_device)

    def conditioning(self, stage: str = BASE) -> TextConditioning:
        """Returns the text conditioning of `stage`, computed in float32."""
        pipeline = self._reader(stage)

        def make():
            size = self.base_size if stage == BASE else self.super_resolution_size
            tokenizers = {'text_encoder': self._tokenizer(stage)}
            if pipeline.tokenizer_2_folder is not None:
                tokenizers['text_encoder_2'] = Tokenizer.load(pipeline.tokenizer_2_folder, added=pipeline.added_tokens)
            skip = self.clip_skip if pipeline is self.base else 0
            encoders = {part: in_float32(part, network) for part, network in pipeline.text_encoders.items()}
            reader = dataclasses.replace(pipeline, **encoders)
            return TextConditioning.of(reader, size=size, clip_skip=skip, tokenizers=tokenizers)

        return self._program(('conditioning', stage, pipeline.added_tokens), make)

    def text_shapes(self, stage: str = BASE) -> Text:
        """Returns shapes and dtypes of `encode` for one prompt, without computing or placing weights on a device."""
        conditioning, pipeline = self.conditioning(stage), self._reader(stage)
        params = {component: getattr(pipeline, component).params for component in conditioning.encoders}
        shapes = lambda tree: jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype), tree)  # noqa: E731
        return jax.eval_shape(conditioning, shapes(params), shapes(conditioning.tokens([''])))

    def encode(self, prompts: Sequence[str], stage: str = BASE, size: tuple[int, int] | None = None) -> Text:
        """Encodes N prompts for the UNet of `stage` (stages/text_conditioning.py).

        It always computes in float32: the result is computed once and used at every step.

        Args:
          size: (height, width) of the images in pixels; None: the stage's own.

        Returns:
          The text conditioning of N prompts, on the host.
        """
        conditioning = self.conditioning(stage)
        pipeline = self._reader(stage)
        encoder = self._program(('text_encoder', stage, pipeline.added_tokens), lambda: jax.jit(conditioning))
        reader = BASE if pipeline is self.base else stage
        params = {component: self._params(reader, component) for component in conditioning.encoders}
        tokens = conditioning.tokens(prompts, size)
        encoded = []
        for first in range(0, len(prompts), _PROMPTS_AT_ONCE):
            indices = np.minimum(np.arange(first, first + _PROMPTS_AT_ONCE), len(prompts) - 1)
            encoded.append(jax.tree.map(np.asarray, encoder(params, take(tokens, indices))))
        return jax.tree.map(lambda *parts: np.concatenate(parts)[: len(prompts)], *encoded)

    def _reader(self, stage: str) -> Pipeline:
        # Returns the pipeline whose text encoders `stage` uses.
        return self.base if stage == BASE or self.super_resolution.text_encoder is None else self.super_resolution

    def generate(self, prompts: Sequence[str], *, num_images: int = 1, progress: bool = True, **options) -> Images:
        """Generates images of N prompts.

        Args:
          num_images: images per prompt; image j of every prompt has the key image_keys(seed, j).
          progress: show a progress bar if there is more than one batch.
          options: keyword arguments of `stream`.

        Returns:
          N * num_images images: those of the first prompt, then those of the second, and so on.

        Raises:
          ConfigError: without prompts or images, or as `stream`.
        """
        if not len(prompts) or num_images < 1:
            raise ConfigError(f'{len(prompts)} prompts with {num_images} images each; both must be at least 1')
        requests = [(prompt, number) for prompt in range(len(prompts)) for number in range(num_images)]
        generated = []
        hidden = not progress or len(requests) <= (options.get('batch_size') or self.usual_batch_size)
        with tqdm(total=len(requests), unit='image', disable=hidden, dynamic_ncols=True) as bar:
            for examples, images in self.stream(prompts, requests, **options):
                generated.append(images)
                bar.update(len(examples))
        second = (
            None if generated[0].super_resolution is None else np.concatenate([p.super_resolution for p in generated])
        )
        return Images(np.concatenate([p.base for p in generated]), second)

    def stream(
        self,
        prompts: Sequence[str],
        requests: Sequence[tuple[int, int]],
        *,
        steps: int,
        guidance_scale: float,
        sampler: str,
        seed: int = 0,
        negative_prompt: str = '',
        super_resolution: bool = True,
        super_resolution_steps: int | None = None,
        super_resolution_guidance_scale: float | None = None,
        noise_level: int = 0,
        batch_size: int | None = None,
    ) -> Iterator[tuple[range, Images]]:
        """Generates requested images batch by batch.

        Args:
          requests: (index into `prompts`, image number) of each image; its key is image_keys(seed, number).
          steps: denoising steps of both stages, unless super_resolution_steps is given.
          guidance_scale: guidance of both stages, unless super_resolution_guidance_scale is given; 1 means no guidance.
          super_resolution: False leaves the second stage out.
          noise_level: timestep of image_noising_scheduler, the noise augmentation of the low-resolution image; 0: none.
          batch_size: images at once, on all local devices together; rounded up to a multiple of their number. None:
            `usual_batch_size`.

        Yields:
          The range of positions in `requests`, and their images.

        Raises:
          ConfigError: if the model does not allow the number of steps, the sampler or the noise level.
        """
        # Check both stages and encode all prompts first, so that nothing is generated before an error.
        second = self.super_resolution if super_resolution else None
        sample_base = self.sampler(BASE, steps, guidance_scale, sampler)
        text = self.encode([negative_prompt, *prompts])
        if second is not None:
            sample_second = self.sampler(
                SUPER_RESOLUTION,
                super_resolution_steps or steps,
                super_resolution_guidance_scale or guidance_scale,
                sampler,
            )
            highest = noise_schedules.highest_noise_level(second)
            if not 0 <= noise_level <= highest:
                raise ConfigError(f'noise_level is {noise_level}; it must be 0 to {highest}')
            second_text = text
            if second.text_encoder is not None:
                second_text = self.encode([negative_prompt, *prompts], SUPER_RESOLUTION)
        # Every batch has the same size (the last one is padded), so that one compiled sampler serves them all.
        prompt_of, numbers = np.asarray(requests, np.int64).reshape(-1, 2).T
        devices = len(jax.local_devices())
        first = 0
        for examples, used in text_to_image.padded_batches(len(requests), batch_size or self.usual_batch_size, devices):
            keys = text_to_image.image_keys(seed, numbers[examples])
            keys, *words = _on_devices((keys, *_words(text, prompt_of[examples])), split=True)
            low = self._decoded(BASE, sample_base(self._params(BASE, 'unet'), *words, keys))
            high = None
            if second is not None:
                keys = jax.vmap(lambda key: jax.random.fold_in(key, _SUPER_RESOLUTION_STREAM))(keys)
                level = np.full(len(examples), noise_level, np.int32)
                *words, level = _on_devices((*_words(second_text, prompt_of[examples]), level), split=True)
                high = sample_second(self._params(SUPER_RESOLUTION, 'unet'), *words, keys, low=low, level=level)
                high = text_to_image.to_uint8(self._decoded(SUPER_RESOLUTION, high))[:used]
            yield range(first, first + used), Images(text_to_image.to_uint8(low)[:used], high)
            first += used

    def sampler(self, stage: str, steps: int, guidance_scale: float, sampler: str):
        """Returns the compiled sampler of a stage (text_to_image.make_sampler); raises as checks.check_sampler."""

        def make():
            pipeline = getattr(self, stage)
            checks.check_sampler(pipeline, steps, sampler)
            schedule = noise_schedules.read(pipeline)
            if pipeline.is_latent and schedule.sampling(sampler).clip_sample:
                logging.warning(
                    'the scheduler of %s lets sampler %s clip latents to +-%g, as diffusers then does, which dulls '
                    'images; write "clip_sample": false into its scheduler_config.json',
                    pipeline.name,
                    sampler,
                    schedule.sampling(sampler).clip_sample_range,
                )
            noising = noise_schedules.read_noising(pipeline) if stage == SUPER_RESOLUTION else None
            # The side of what the UNet generates: latents have the side of the upscaler's low-resolution image.
            pixels = self.base_size if stage == BASE else self.super_resolution_size
            side = pixels // pipeline.latent_scale
            return text_to_image.make_sampler(
                pipeline.unet.apply,
                schedule,
                shape=(side, side, noise_schedules.sampled_channels(pipeline)),
                steps=steps,
                sampler=sampler,
                guidance_scale=guidance_scale,
                noising_schedule=noising,
            )

        return self._program(('sampler', stage, steps, float(guidance_scale), sampler), make)

    def _decoded(self, stage: str, generated: jax.Array) -> jax.Array:
        """Decodes what the UNet of `stage` generated: latents by the VAE; pixels are returned as they are.

        Decoded images are clipped to [-1, 1], the range of the images that the second stage was trained on.
        """
        network = getattr(self, stage).vae
        if network is None:
            return generated
        scale = vae.scaling_factor(network.config)

        def decode(params, latents):
            return jnp.clip(network.apply(params, latents / scale, method='decode'), -1.0, 1.0)

        compiled = self._program(('decode', stage), lambda: jax.jit(decode))
        return compiled(self._params(stage, 'vae'), generated)

    def _tokenizer(self, stage: str) -> Tokenizer:
        pipeline = getattr(self, stage) if getattr(self, stage).tokenizer_folder else self.base
        added = pipeline.added_tokens
        return self._program(
            ('tokenizer', stage, added), lambda: Tokenizer.load(pipeline.tokenizer_folder, added=added)
        )

    def _program(self, key, make):
        if key not in self.programs:
            self.programs[key] = make()
        return self.programs[key]

    def _params(self, stage: str, component: str):
        part = (stage, component)
        if part not in self._on_device:
            self._on_device[part] = _on_devices(getattr(getattr(self, stage), component).params)
        return self._on_device[part]


def compute_dtype(dtype: Any = 'auto'):
    """Returns the dtype that networks compute in; 'auto': bfloat16, but float32 on CPU, which has no fast bfloat16."""
    if isinstance(dtype, str) and dtype == 'auto':
        return jnp.float32 if jax.default_backend() == 'cpu' else jnp.bfloat16
    return jnp.dtype(dtype)


def _words(text: Text, prompt_of: np.ndarray) -> tuple[Text, Text]:
    # Text and negative text of some examples. The first prompt in `text` is the negative prompt.
    return take(text, 1 + prompt_of), take(text, np.zeros_like(prompt_of))


@functools.cache
def _mesh() -> Mesh:
    return Mesh(np.array(jax.local_devices()), ('data',), axis_types=(AxisType.Auto,))


def _on_devices(tree, split: bool = False):
    """Copies arrays to all local devices or, if `split`, distributes them along their first axis."""
    leaves = jax.tree.leaves(tree)
    if isinstance(leaves[0], jax.Array) and len(leaves[0].sharding.device_set) > 1:
        return tree  # parameters of a training run, which are on all devices already
    return jax.device_put(tree, NamedSharding(_mesh(), PartitionSpec('data') if split else PartitionSpec()))
