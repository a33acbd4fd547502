"""The whole model, from prompts to images: text encoders, base stage and, if there is one, super-resolution stage.

An image depends only on the weights, the prompt, the seed and its image number, not on the other images of its batch or
on the batch size. Image j of every prompt starts from the same noise, so that a contact sheet compares prompts. The
second stage gets the base stage's images before they are rounded to 8 bits, as IFSuperResolutionPipeline does when it
is given a tensor.

Every device of the placement generates a part of each batch. In training it is the training's own placement: the
weights that train are used where they are, sharded or not, on one host or several, and all hosts generate together and
get all images. The other weights are placed when they are first needed. Text encoders, which may be the largest
networks, go as soon as the prompts are encoded, the others at `release`.
"""

import dataclasses
import functools
import os
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np
from tqdm import tqdm

from dreambooth_jax.config import NO_MODEL, ConfigError, DreamBoothConfig
from dreambooth_jax.families.processes import with_zero_terminal_snr
from dreambooth_jax.families.prompts import Conditioning, PromptEncoder, take
from dreambooth_jax.families.reading import read_pipeline, read_second_stage
from dreambooth_jax.generation import checks, text_to_image
from dreambooth_jax.generation.options import SamplingOptions
from dreambooth_jax.models import functional
from dreambooth_jax.text.tokenize import Tokenizer
from dreambooth_jax.training.placement import Placement, make_placement
from dreambooth_jax.weights.errors import WeightsError
from dreambooth_jax.weights.pipeline import Network, Pipeline, in_float32

BASE, SUPER_RESOLUTION = STAGES = ('base', 'super_resolution')
# The second stage's keys are those of the base stage folded with this number. It must differ from 0, 1 and 2, the
# streams into which make_sampler splits a key.
_SUPER_RESOLUTION_STREAM = 3
_IMAGES_AT_ONCE = 8
PROMPTS_AT_ONCE = 8  # the text encoder is compiled for this batch size alone


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
      clip_skip: number of last CLIP layers that the base stage skips; see PromptEncoder.
      placement: the devices that generate; None: all devices of this host, each with a copy of the weights.
      programs: cache of compiled functions, which with_params hands on.

    Raises:
      WeightsError: if a part is missing, is meant for the other stage or does not fit it, or if a scheduler has another
        kind of noise (Family.process).
      ConfigError: if the model cannot sample at `size`.
    """

    base: Pipeline
    super_resolution: Pipeline | None = None
    size: int | None = None
    clip_skip: int = 0
    placement: Placement | None = None
    programs: dict[Any, Any] = dataclasses.field(default_factory=dict, repr=False)
    _on_device: dict[Any, Any] = dataclasses.field(default_factory=dict, repr=False)
    _encoded: dict[Any, Conditioning] = dataclasses.field(default_factory=dict, repr=False)

    def __post_init__(self):
        base, second = self.base, self.super_resolution
        checks.check_stage(base, False, base.family.networks)
        checks.check_size(base, self.size)
        if second is None:
            return
        needed = [name for name in second.family.networks if name not in second.family.tokenizers]
        checks.check_stage(second, True, needed if second.family.shares_text else second.family.networks)
        if not second.text_encoders:
            second.family.check_shared_text(second, base)

    @classmethod
    def load(
        cls,
        name: str | os.PathLike,
        *,
        super_resolution_model: str | os.PathLike | None = None,
        dtype: Any = 'auto',
        frozen_dtype: str | None = None,
        size: int | None = None,
        clip_skip: int = 0,
        revisions: tuple[str | None, str | None] = (None, None),
        **of_base: Any,
    ) -> 'Cascade':
        """Reads a model.

        Args:
          name: 'storybook', a pipeline folder, a single file, a run's folder or a hub id, as in read_pipeline.
          super_resolution_model: the same for the second stage. None: the one inside the model's folder, if there is
            one. 'none': no second stage.
          dtype: the dtype that networks compute in; 'auto': as functional.compute_dtype.
          frozen_dtype: as in read_pipeline; so for **of_base, further options of the base stage alone.
          size: see the class; so for clip_skip.
          revisions: branch, tag or commit of the base and the second stage if they are hub ids.

        Raises:
          WeightsError: if a model cannot be read, or as the class says.
        """
        options = {'dtype': functional.compute_dtype(dtype), 'frozen_dtype': frozen_dtype}
        base = read_pipeline(name, revision=revisions[0], **options, **of_base)
        second = base.super_resolution_folder if super_resolution_model is None else super_resolution_model
        if second is None or str(second) == NO_MODEL:
            return cls(base, size=size, clip_skip=clip_skip)
        second = read_second_stage(second, base, revision=revisions[1], **options)
        return cls(base, second, size=size, clip_skip=clip_skip)

    @classmethod
    def of(cls, config: DreamBoothConfig, frozen_dtype: str | None = None) -> 'Cascade':
        """Reads the model that a run begins with; raises what `load` raises.

        Stages that train have objective.zero_terminal_snr. `frozen_dtype` is for training, not for export and scores.
        """
        cascade = cls.load(
            config.model,
            super_resolution_model=config.super_resolution_model,
            dtype=config.parallel.dtype,
            frozen_dtype=frozen_dtype,
            size=config.data.resolution,
            clip_skip=config.base.clip_skip,
            prediction_type=config.model_prediction_type,
            tokenizer_dir=config.model_tokenizer_dir,
            transformer_file=config.model_transformer_file,
            revisions=(config.model_revision, config.super_resolution_model_revision),
        )
        if not config.objective.zero_terminal_snr:
            return cascade
        trained = {name: getattr(cascade, name) for name in STAGES if getattr(config, name).steps}
        changed = {name: with_zero_terminal_snr(part) for name, part in trained.items() if part}
        return dataclasses.replace(cascade, **changed)

    def on(self, placement: Placement) -> 'Cascade':
        """Returns the same model generating on the devices of a placement; nothing of it is on any device yet."""
        return dataclasses.replace(self, placement=placement, _on_device={})

    def release(self) -> None:
        """Frees the devices of all weights that this object has placed there."""
        self._on_device.clear()

    @functools.cached_property
    def _devices(self) -> Placement:
        return self.placement or make_placement('pmap', devices=jax.local_devices())

    @property
    def base_size(self) -> int:
        """Side of the base stage's images, in pixels; WeightsError if neither `size` nor the model states it."""
        return self.size or self.base.size

    @property
    def super_resolution_size(self) -> int:
        """Side of the second stage's images, in pixels."""
        return self.super_resolution.family.enlarged_size(self.super_resolution, self.base_size)

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
        return 1 if any(stage is not None and stage.space.decoder for stage in stages) else _IMAGES_AT_ONCE

    @property
    def tokenizer(self) -> Tokenizer:
        """The base stage's tokenizer, that of its first text encoder if there are several."""
        return next(iter(self._tokenizers(BASE).values()))

    def with_params(
        self,
        *,
        base: Mapping[str, Mapping[str, Any]] | None = None,
        super_resolution: Mapping[str, Mapping[str, Any]] | None = None,
    ) -> 'Cascade':
        """Returns the same networks with other parameters; nothing is compiled again.

        Args:
          base: component -> parameters, for the networks of the base stage that get others.
          super_resolution: the same for the second stage.
        """
        stages = {stage: getattr(self, stage) for stage in STAGES}
        given = set()
        for stage, components in ((BASE, base or {}), (SUPER_RESOLUTION, super_resolution or {})):
            for component, params in components.items():
                network = dataclasses.replace(stages[stage].components[component], params=params)
                stages[stage] = stages[stage].with_components(**{component: network})
                given.add((stage, component))
        on_device = {part: params for part, params in self._on_device.items() if part not in given}
        # Prompts need not be encoded again where no text encoder changes.
        reads_as_before = not any(component in stages[stage].family.tokenizers for stage, component in given)
        encoded = self._encoded if reads_as_before else {}
        return dataclasses.replace(self, **stages, _on_device=on_device, _encoded=encoded)

    def with_tokens(self, text_encoders: Mapping[str, Network], added_tokens: tuple[str, ...]) -> 'Cascade':
        """Returns the cascade with other words added to its base stage; the samplers are not compiled again.

        Args:
          text_encoders: component -> network whose token table has a row for every added token.
          added_tokens: all added tokens, as in Pipeline.
        """
        base = dataclasses.replace(self.base.with_components(**text_encoders), added_tokens=added_tokens)
        on_device = {part: params for part, params in self._on_device.items() if part[1] not in text_encoders}
        return dataclasses.replace(self, base=base, _on_device=on_device, _encoded={})

    def prompt_encoder(self, stage: str = BASE) -> PromptEncoder:
        """Returns how `stage` reads prompts, computed in float32."""
        pipeline = self._reader(stage)

        def make():
            size = self.base_size if stage == BASE else self.super_resolution_size
            skip = self.clip_skip if pipeline is self.base else 0
            encoders = {part: in_float32(part, network) for part, network in pipeline.text_encoders.items()}
            reader = pipeline.with_components(**encoders)
            return pipeline.family.prompt_encoder(reader, size=size, clip_skip=skip, tokenizers=self._tokenizers(stage))

        return self._program(('prompt encoder', stage, pipeline.added_tokens), make)

    def conditioning_shapes(self, stage: str = BASE) -> Conditioning:
        """Returns shapes and dtypes of `encode` for one prompt, without computing or placing weights on a device."""
        encoder, pipeline = self.prompt_encoder(stage), self._reader(stage)
        params = {component: pipeline.components[component].params for component in encoder.encoders}
        shapes = lambda tree: jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype), tree)  # noqa: E731
        return jax.eval_shape(encoder, shapes(params), shapes(encoder.tokens([''])))

    def encode(self, prompts: Sequence[str], stage: str = BASE, size: tuple[int, int] | None = None) -> Conditioning:
        """Encodes N prompts for the denoiser of `stage` (families/prompts.py).

        It always computes in float32: the result is computed once and used at every step.

        Args:
          size: (height, width) of the images in pixels; None: the stage's own.

        Returns:
          The conditioning of N prompts, on the host.
        """
        key = (stage, tuple(prompts), size)
        if key in self._encoded:
            return self._encoded[key]
        prompt_encoder = self.prompt_encoder(stage)
        pipeline = self._reader(stage)
        encoder = self._program(('text_encoder', stage, pipeline.added_tokens), lambda: jax.jit(prompt_encoder))
        reader = BASE if pipeline is self.base else stage
        params = {component: self._placed(reader, component) for component in prompt_encoder.encoders}
        tokens = prompt_encoder.tokens(prompts, size)
        encoded = []
        for first in range(0, len(prompts), PROMPTS_AT_ONCE):
            indices = np.minimum(np.arange(first, first + PROMPTS_AT_ONCE), len(prompts) - 1)
            encoded.append(self._devices.gather(encoder(params, take(tokens, indices))))
        self._encoded[key] = jax.tree.map(lambda *parts: np.concatenate(parts)[: len(prompts)], *encoded)
        return self._encoded[key]

    def encode_ahead(self, prompts: Sequence[str], options: SamplingOptions) -> tuple[Conditioning, Conditioning]:
        """Encodes the negative prompt and `prompts` for the base stage and for the second one, and keeps both."""
        text = self.encode([checks.negative_prompt(self.base, options.negative_prompt), *prompts])
        if not (options.super_resolution and self.super_resolution and self.super_resolution.text_encoders):
            return text, text
        return text, self.encode([options.negative_prompt, *prompts], SUPER_RESOLUTION)

    def _reader(self, stage: str) -> Pipeline:
        # Returns the pipeline whose text encoders `stage` uses.
        return self.base if stage == BASE or not self.super_resolution.text_encoders else self.super_resolution

    def generate(
        self, prompts: Sequence[str], options: SamplingOptions, *, num_images: int = 1, progress: bool = True
    ) -> Images:
        """Generates images of N prompts.

        Args:
          num_images: images per prompt; image j of every prompt has the key image_keys(options.seed, j).
          progress: show a progress bar if there is more than one batch.

        Returns:
          N * num_images images: those of the first prompt, then those of the second, and so on.

        Raises:
          ConfigError: without prompts or images, or as `stream`.
        """
        if not len(prompts) or num_images < 1:
            raise ConfigError(f'{len(prompts)} prompts with {num_images} images each; both must be at least 1')
        requests = [(prompt, number) for prompt in range(len(prompts)) for number in range(num_images)]
        generated = []
        hidden = not progress or len(requests) <= (options.batch_size or self.usual_batch_size)
        with tqdm(total=len(requests), unit='image', disable=hidden, dynamic_ncols=True) as bar:
            for examples, images in self.stream(prompts, requests, options):
                generated.append(images)
                bar.update(len(examples))
        high = [images.super_resolution for images in generated]
        second = None if high[0] is None else np.concatenate(high)
        return Images(np.concatenate([p.base for p in generated]), second)

    def stream(
        self, prompts: Sequence[str], requests: Sequence[tuple[int, int]], options: SamplingOptions
    ) -> Iterator[tuple[range, Images]]:
        """Generates requested images batch by batch.

        Args:
          requests: (index into `prompts`, image number) of each image; its key is image_keys(options.seed, number).

        Yields:
          The range of positions in `requests`, and their images.

        Raises:
          ConfigError: if the model does not allow the number of steps, the sampler or the noise level.
        """
        # Check both stages and encode all prompts first, so that nothing is generated before an error.
        second = self.super_resolution if options.super_resolution else None
        sample_base = self.sampler(BASE, options.steps, options.guidance_scale, options.sampler)
        if second is not None:
            sample_second = self._enlarger(options)
        text, second_text = self.encode_ahead(prompts, options)
        # Every batch has the same size (the last one is padded), so that one compiled sampler serves them all.
        prompt_of, numbers = np.asarray(requests, np.int64).reshape(-1, 2).T
        split, batch_size, first = self._devices.split, options.batch_size or self.usual_batch_size, 0
        for examples, used in text_to_image.padded_batches(len(requests), batch_size, self._devices.devices):
            keys = split(text_to_image.image_keys(options.seed, numbers[examples]))
            told = split(text_to_image.guidance_of(text, prompt_of[examples], options.guidance_scale))
            low = self._decoded(BASE, self._devices.call(sample_base, self._params(BASE), *told, keys))
            high = None
            if second is not None:
                shown = prompt_of[examples], numbers[examples]
                high = self._enlarged(sample_second, low, second_text, *shown, options)[:used]
            yield range(first, first + used), Images(self._on_host(low)[:used], high)
            first += used

    def enlarge(
        self, low: np.ndarray, prompts: Sequence[str], options: SamplingOptions, *, progress: bool = True
    ) -> np.ndarray:
        """Runs the second stage alone on given images.

        Args:
          low: images f32[N, h, w, 3] in [-1, 1] of the base stage's size.
          prompts: N prompts, one for each image.
          options: how the second stage samples.

        Returns:
          uint8[N, H, W, 3]. Image i has the noise that the second stage gives to image number i of `generate`.

        Raises:
          ConfigError: if the model does not allow the noise level, the sampler or the number of steps.
        """
        sample = self._enlarger(options)
        text = self.encode([options.negative_prompt, *prompts], SUPER_RESOLUTION)
        made, size = [], options.batch_size or self.usual_batch_size
        with tqdm(total=len(low), unit='image', desc='enlarging', disable=not progress, dynamic_ncols=True) as bar:
            for numbers, used in text_to_image.padded_batches(len(low), size, self._devices.devices):
                images = self._enlarged(sample, self._devices.split(low[numbers]), text, numbers, numbers, options)
                made.append(images[:used])
                bar.update(used)
        return np.concatenate(made)

    def _enlarger(self, options: SamplingOptions):
        checks.check_noise_level(self.super_resolution, options.noise_level)
        return self.sampler(SUPER_RESOLUTION, options.second_steps, options.second_guidance_scale, options.sampler)

    def _enlarged(self, sample, low, text: Conditioning, prompt_of, numbers, options: SamplingOptions) -> np.ndarray:
        """Returns uint8[B, H, W, 3], the second stage's images of a batch; `low` lies on the devices already."""
        split = self._devices.split
        keys = text_to_image.image_keys(options.seed, numbers)
        keys = split(jax.vmap(lambda key: jax.random.fold_in(key, _SUPER_RESOLUTION_STREAM))(keys))
        level = split(np.full(len(numbers), options.noise_level, np.int32))
        told = split(text_to_image.guidance_of(text, prompt_of, options.second_guidance_scale))
        high = self._devices.call(sample, self._params(SUPER_RESOLUTION), *told, keys, low=low, level=level)
        return self._on_host(self._decoded(SUPER_RESOLUTION, high))

    def sampler(self, stage: str, steps: int, guidance_scale: float, sampler: str):
        """Returns the compiled sampler of a stage (text_to_image.make_sampler); raises as checks.check_sampler."""
        pipeline = getattr(self, stage)
        checks.check_sampler(pipeline, steps, sampler, guidance_scale)
        guided = guidance_scale != 1 and not pipeline.family.embeds_guidance(pipeline)

        def make():
            size = self.base_size if stage == BASE else self.super_resolution_size
            return text_to_image.pipeline_sampler(
                pipeline, size, steps=steps, guided=guided, sampler=sampler, enlarges=stage == SUPER_RESOLUTION
            )

        return self._program(('sampler', stage, steps, guided, sampler), make)

    def _decoded(self, stage: str, generated: jax.Array) -> jax.Array:
        """Decodes what the denoiser of `stage` generated: latents by the VAE; pixels are returned as they are."""
        space = getattr(self, stage).space
        if space.decoder is None:
            return generated
        decode = functools.partial(space.decode, devices=self._devices.devices)
        compiled = self._program(('decode', stage, self._devices.devices), lambda: jax.jit(decode))
        return self._devices.call(compiled, self._params(stage, space.decoder), generated)

    def _on_host(self, images: jax.Array) -> np.ndarray:
        return text_to_image.to_uint8(self._devices.gather(images))

    def _tokenizers(self, stage: str) -> dict[str, Tokenizer]:
        pipeline = getattr(self, stage) if getattr(self, stage).tokenizers else self.base
        added = pipeline.added_tokens
        return self._program(
            ('tokenizers', stage, added),
            lambda: {text: Tokenizer.load(folder, added=added) for text, folder in pipeline.tokenizers.items()},
        )

    def _program(self, key, make):
        if key not in self.programs:
            self.programs[key] = make()
        return self.programs[key]

    def _params(self, stage: str, component: str | None = None):
        # The parameters of a component on the devices; None: of the denoiser.
        part = (stage, component or getattr(self, stage).family.denoiser)
        if part not in self._on_device:
            self._on_device[part] = self._placed(*part)
        return self._on_device[part]

    def _placed(self, stage: str, component: str):
        pipeline = getattr(self, stage)
        params, dtype = pipeline.components[component].params, pipeline.components[component].dtype
        if component not in pipeline.family.tokenizers:  # prompts are encoded in float32
            host = {name: value for name, value in params.items() if not isinstance(value, jax.Array)}
            params = {**params, **functional.cast_kernels(host, dtype)}
        # A decoder is small beside what it computes, and sharded weights would spread that over devices in odd ways.
        return self._devices.place(params, whole=component == pipeline.space.decoder)
