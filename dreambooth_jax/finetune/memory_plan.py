"""The memory of a DreamBooth run before it starts: what one device holds in each phase, in bytes.

Weights, optimizer state and data are counted exactly: from the shapes that the run places, in the layouts that its
placement gives them. What a program needs besides (activations, gradients, results) only the compiler knows. It is
counted on demand, by compiling the programs that the run itself compiles, for the devices at hand or for a TPU that is
not there. Nothing is placed on a device, and nothing is run.

Not counted are the compiled programs themselves, the moments in which arrays are placed or adapters merged, and what
fragmentation wastes.
"""

import copy
import dataclasses
import functools
import math
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, Protocol

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import SingleDeviceSharding
from tqdm import tqdm

from dreambooth_jax.config import DreamBoothConfig
from dreambooth_jax.families.image_space import encode_program, images_at_once
from dreambooth_jax.finetune.planned_stage import PlannedStage, class_image_prompts, repeated
from dreambooth_jax.finetune.target import Target
from dreambooth_jax.generation import class_images, text_to_image
from dreambooth_jax.generation.cascade import BASE, PROMPTS_AT_ONCE, STAGES, SUPER_RESOLUTION, Cascade
from dreambooth_jax.generation.options import SamplingOptions
from dreambooth_jax.models import functional, lora, quantised
from dreambooth_jax.training.placement import Placement, device_bytes
from dreambooth_jax.training.train_run import TrainRun
from dreambooth_jax.weights.pipeline import Network, abstract_network, in_float32

# What the TPU compiler says of a program that does not fit: "Used 17.50G of 15.75G hbm", or, where it finds that before
# it assigns buffers, "the total memory required for HLO temporaries (17.50G) exceeds available HBM (15.75G)". In either
# case arguments are counted too.
_TOO_LARGE = re.compile(r'([\d.]+)([KMG])(?: of |\) exceeds available HBM \()([\d.]+)([KMG])(?: hbm|\))')
_UNITS = {'K': 2**10, 'M': 2**20, 'G': 2**30}
_CLASS_IMAGES = 'class images'


@dataclasses.dataclass(frozen=True, kw_only=True)
class Use:
    """What one device holds while one program of a phase runs, in bytes.

    Attributes:
      phase: 'class images', 'encoding for base', 'training base', 'samples of base' and so on.
      program: what runs.
      weights: of all networks on the device, trained or not.
      state: the optimizer's state and averaged weights.
      data: images or latents, prompts, and the description of the batch.
      temporaries: what the program needs in addition, for gradients, activations, inputs and results; None: not
        counted.
      complete: whether `temporaries` is the compiler's count; otherwise it is None, or the gradients alone.
      limit: the memory of the device, if the program does not fit; otherwise None.
    """

    phase: str
    program: str = ''
    weights: int = 0
    state: int = 0
    data: int = 0
    temporaries: int | None = None
    complete: bool = False
    limit: int | None = None

    @property
    def total(self) -> int:
        """All of it."""
        return self.weights + self.state + self.data + (self.temporaries or 0)


class Evaluated(Protocol):
    """What scores the base stage while it trains (evaluation/score_checkpoints.py).

    Attributes:
      options: how it samples.
      most_images: the largest number of images that are generated in one go.
    """

    options: SamplingOptions
    most_images: int

    def programs(self) -> Mapping[str, tuple[Any, Any, Any]]:
        """Returns what encodes images and prompts, in the order in which it comes onto the devices.

        Returns:
          name -> (compiled function, its parameters, its input), the latter two as shapes with layouts.
        """


def uses(
    config: DreamBoothConfig,
    cascade: Cascade,
    stages: Mapping[str, PlannedStage],
    placement: Placement,
    where: Target,
    count: Callable[[str, Callable[[], jax.stages.Lowered]], Any] | None = None,
    evaluated: Evaluated | None = None,
    sampled_on: Cascade | None = None,
) -> list[Use]:
    """Returns what a device holds in each program of a new run, in the order of the phases.

    Where devices hold different amounts, it is the first device's, which holds the most.

    Args:
      cascade: the model before training. With textual inversion it has the new word already; the run's own original has
        some rows less.
      stages: the stages that train, in their order.
      placement: how the run will use the devices of `where`.
      where: the result of `planned_for`, whose context is still open.
      count: (name, function that gives a program) -> what `compiled_counts` returns, or None to leave that program out;
        None: compiled_counts of every program.
      evaluated: what scores the base stage; None: nothing does.
      sampled_on: the model that generates the samples with the adapters; None: the one that trains.

    Returns:
      At least one entry for each phase that uses a device. Export uses none.
    """
    found = []
    with tqdm(desc='compiling', unit='program', disable=where.compiler is None, dynamic_ncols=True) as bar:
        planner = _Planner(config, cascade, placement, where, bar, count)
        if class_images.stages_of(config, cascade) and not class_images.own_photos(config):
            found += planner.class_images()
        for index, (name, stage) in enumerate(stages.items()):
            found += planner.encoding(name, stage)
            found += [planner.training(name, stage)]
            # The grid of the model before training is generated once, with the first samples.
            sampling = planner if sampled_on is None else planner.on(sampled_on)
            found += sampling.samples(name, stage, with_original=index == 0)
            if name == BASE and evaluated is not None:
                found += planner.evaluation(stage, evaluated)
            planner.finished[name] = stage
    fits = where.memory or math.inf
    return [use if use.total <= fits else dataclasses.replace(use, limit=where.memory) for use in found]


def largest(found: Sequence[Use]) -> dict[str, Use]:
    """Returns phase -> that of its programs during which most is held; the phases keep their order."""
    most = {}
    for use in found:
        if use.phase not in most or use.total > most[use.phase].total:
            most[use.phase] = use
    return most


def host_bytes(cascade: Cascade, stages: Mapping[str, PlannedStage], sampled_on: Cascade | None = None) -> int:
    """Returns the bytes of weights that the host holds while it exports: of the model before and after training.

    A network that trains with quantised kernels is there with these kernels too, and so is a model that is only there
    to generate the samples.
    """
    found = 0 if sampled_on is None else _bytes(*sampled_on.base.components.values())
    for name in STAGES:
        pipeline = getattr(cascade, name)
        for component, network in pipeline.components.items() if pipeline is not None else ():
            trained = name in stages and component in stages[name].run.params
            whole = _bytes(network)
            shapes = functional.split(abstract_network(component, network.config))[1]
            in_f32 = 4 * functional.parameter_count(shapes)
            if network.frozen_dtype is not None:
                whole += in_f32
            found += whole
            if trained:
                adapted = lora.adapted_kernels(stages[name].run.params[component])
                found += 4 * sum(shapes[kernel].size for kernel in adapted) if adapted else in_f32
    return found


def _bytes(*networks: Network) -> int:
    return sum(value.size * value.dtype.itemsize for network in networks for value in network.params.values())


class _Planner:
    """Counts phase by phase. Every phase begins without weights on the devices, except those that train."""

    def __init__(
        self,
        config: DreamBoothConfig,
        cascade: Cascade,
        placement: Placement,
        where: Target,
        bar: tqdm,
        count: Callable | None = None,
    ):
        self.config, self.cascade, self.placement, self.where, self.bar = config, cascade, placement, where, bar
        self._count_of = count or (lambda name, lower: compiled_counts(lower(), where.compiler_options))
        self._counted = {}
        self._shares = True  # whether a denoiser with adapters generates with the kernels that the training has
        self.finished = {}  # the stages that are trained by then

    def on(self, cascade: Cascade) -> '_Planner':
        """Returns the planner of the same run in which another model generates."""
        other = copy.copy(self)
        other.cascade, other._counted, other._shares = cascade, {}, False
        return other

    def class_images(self) -> Iterator[Use]:
        """The programs that generate class images."""
        second = SUPER_RESOLUTION in class_images.stages_of(self.config, self.cascade)
        options = SamplingOptions.of_class_images(self.config, super_resolution=second)
        count = len(class_image_prompts(self.config))
        return self._generation(Use(phase=_CLASS_IMAGES), options, count, self._before)

    def encoding(self, name: str, stage: PlannedStage) -> Iterator[Use]:
        """The programs that encode the images and the prompts of a stage; none if there is nothing to encode."""
        pipeline = getattr(self.cascade, name)
        use = Use(phase=f'encoding for {name}')
        if (component := pipeline.space.decoder) is not None:
            # Images are encoded in float32 and on one device.
            network, sharding = (
                in_float32(component, pipeline.components[component]),
                SingleDeviceSharding(self.where.first),
            )
            place = lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=sharding)  # noqa: E731
            params = jax.tree.map(place, dict(network.params))
            images = place(jax.ShapeDtypeStruct((images_at_once(stage.size), *stage.size, 3), np.uint8))
            counted = self._count('images', encode_program(network.apply), params, images)
            yield dataclasses.replace(use, program='images', weights=device_bytes(params), **counted)
        # A teacher's prompts are read by the model before training, and those of samples before the training begins.
        if not stage.trainable.trains_text or self.config.has_teacher(name):
            yield self._prompts(use, name, self._before)
            second = self.cascade.super_resolution
            if name == BASE and second is not None and second.text_encoders:
                yield self._prompts(use, SUPER_RESOLUTION, self._before)

    def training(self, name: str, stage: PlannedStage) -> Use:
        """The step of a stage."""
        run, held = stage.run, self._training_held(stage.run)
        counted = self._compiled(
            ('step', name), lambda: stage.on_largest.lower(run.budget.steps_per_dispatch), sum(held.values())
        )
        gradients = device_bytes(self.placement.placed_shapes(run.state_shapes.params))
        return Use(phase=f'training {name}', program='step', **held, **(counted or {'temporaries': gradients}))

    def samples(self, name: str, stage: PlannedStage, *, with_original: bool) -> Iterator[Use]:
        """The programs that generate samples while stage `name` trains, first ours and then the original model's."""
        options = SamplingOptions.of_samples(self.config.samples, self.config.super_resolution)
        count = len(self.config.sample_prompts()) * self.config.samples.num_images
        use, trained = Use(phase=f'samples of {name}', **self._training_held(stage.run)), stage.trainable
        part_of = functools.partial(self._trained, name, stage)
        yield from self._generation(use, options, count, part_of, reads=trained.trains_text)
        if with_original:
            use = dataclasses.replace(use, program='base model, ')
            shares = self._shares and trained.adapts_denoiser and self.config.init_from is None
            part_of = functools.partial(self._with_adapters, stage) if shares else self._before
            yield from self._generation(use, options, count, part_of, reads=trained.trains_text)

    def evaluation(self, stage: PlannedStage, evaluated: Evaluated) -> Iterator[Use]:
        """The programs that score the base stage: both models generate, and are released; then encoders gather."""
        held = self._training_held(stage.run)
        use, options = Use(phase=f'evaluation of {BASE}', **held), evaluated.options
        yield from self._generation(
            use, options, evaluated.most_images, lambda *part: self._trained(BASE, stage, *part)
        )
        original = dataclasses.replace(use, program='base model, ')
        yield from self._generation(original, options, evaluated.most_images, self._before)
        weights = held['weights']
        for name, (function, params, inputs) in evaluated.programs().items():
            weights += device_bytes(params)
            counted = self._count(name, function, params, inputs)
            yield dataclasses.replace(use, program=name, weights=weights, **counted)

    def _training_held(self, run: TrainRun) -> dict[str, int]:
        state, placed = run.state_shapes, self.placement.placed_shapes
        frozen = {kind: tree for kind, tree in run.frozen.items() if kind != 'data'}
        batch = self.placement.split_shapes(run.batch)
        return {
            'weights': device_bytes(placed((state.params, frozen))),
            'state': device_bytes(placed((state.step, state.ema, state.opt_state))),
            'data': device_bytes(placed(run.frozen.get('data', []))) + device_bytes(batch),
        }

    def _generation(
        self,
        use: Use,
        options: SamplingOptions,
        count: int,
        lies: Callable[[str, str], tuple[Any, int]],
        *,
        reads: bool = True,
    ) -> Iterator[Use]:
        """The programs of Cascade.stream, each with the weights that are on the devices by then.

        Args:
          use: what the devices hold besides; its `program` begins the names of the programs.
          count: the number of images.
          lies: (stage, component) -> the network's parameters as shapes with layouts, and how many bytes of them are
            placed in addition.
          reads: whether prompts are encoded; else they were before.
        """
        cascade, second = self.cascade, self.cascade.super_resolution if options.super_resolution else None
        stages, held = {BASE: (options.steps, options.guidance_scale)}, {}  # held: denoisers and decoders stay
        if second is not None:
            stages[SUPER_RESOLUTION] = options.second_steps, options.second_guidance_scale

        def during(program, counted):
            weights = use.weights + sum(held.values())
            return dataclasses.replace(use, program=use.program + program, weights=weights, **counted)

        def place(stage, component):
            params, held[stage, component] = lies(stage, component)
            return params

        for stage in stages:
            if reads and (stage == BASE or second.text_encoders):
                yield self._prompts(use, stage, lies)
        at_once = options.batch_size or cascade.usual_batch_size
        size = len(next(text_to_image.padded_batches(count, at_once, self.placement.devices))[0])
        split = self.placement.split_shapes
        keys = split(jax.eval_shape(lambda: jax.random.split(jax.random.key(0), size)))
        low = {}
        for stage, (steps, guidance_scale) in stages.items():
            space, family = getattr(cascade, stage).space, getattr(cascade, stage).family
            sampler = cascade.sampler(stage, steps, guidance_scale, options.sampler)
            words = split(repeated(cascade.conditioning_shapes(stage), size))
            params = place(stage, family.denoiser)
            scale = split(jax.ShapeDtypeStruct((size,), jnp.float32))
            counted = self._count(f'{stage} sampler', sampler, params, words, words, scale, keys, **low)
            yield during(f'{stage} sampler', counted)
            pixels = cascade.base_size if stage == BASE else cascade.super_resolution_size
            if space.decoder is not None:
                side = pixels // space.scale
                latents = split(jax.ShapeDtypeStruct((size, side, side, space.channels), jnp.float32))
                params = place(stage, space.decoder)
                decode = jax.jit(functools.partial(space.decode, devices=self.placement.devices))
                yield during(f'{stage} decoder', self._count(f'{stage} decoder', decode, params, latents))
            low = {
                'low': split(jax.ShapeDtypeStruct((size, pixels, pixels, 3), jnp.float32)),
                'level': split(jax.ShapeDtypeStruct((size,), jnp.int32)),
            }

    def _before(self, stage: str, component: str) -> tuple[Any, int]:
        """A network of the model before training, placed for generation."""
        whole = component == getattr(self.cascade, stage).space.decoder  # as Cascade places it
        shapes = self.placement.placed_shapes(weight_shapes(self.cascade, stage, component), whole=whole)
        return shapes, device_bytes(shapes)

    def _trained(self, name: str, planned: PlannedStage, stage: str, component: str) -> tuple[Any, int]:
        """A network of the model that trains. What trains as a whole is used where the training has it."""
        shapes, added = self._before(stage, component)
        at = planned if stage == name else self.finished.get(stage)
        trained = at.run.params.get(component, {}) if at else {}
        adapter = lora.separate(trained)[0]
        if stage == name and component == planned.trainable.denoiser and adapter and self._shares:
            return self._with_adapters(planned, stage, component)
        # Those of another stage or of a text encoder are merged on the host, or stay beside quantised kernels.
        if adapter:
            beside = self.placement.placed_shapes(adapter if quantised.kernel_names(shapes) else {})
            return {**shapes, **beside}, added + device_bytes(beside)
        if not trained or stage != name:
            return shapes, added
        merged = set()
        if component in planned.trainable.new_rows:
            # Rows are put into a new table. Where they are not sharded, every device has it whole.
            merged.add(table := f'{planned.trainable.new_rows[component].layer}.embedding')
            everywhere = self.placement.placed_shapes(jax.ShapeDtypeStruct((), jnp.float32)).sharding
            shapes[table] = jax.ShapeDtypeStruct(shapes[table].shape, jnp.float32, sharding=everywhere)
        there = {key: value for key, value in trained.items() if key in shapes and key not in merged}
        added = device_bytes({key: value for key, value in shapes.items() if key not in there})
        return {**shapes, **self.placement.placed_shapes(there)}, added

    def _with_adapters(self, planned: PlannedStage, stage: str, component: str) -> tuple[Any, int]:
        """The denoiser with the kernels and adapters that the training has; another network as before training."""
        if component != planned.trainable.denoiser or planned.run.name != stage:
            return self._before(stage, component)
        kernels = planned.run.frozen['weights'][component]
        return self.placement.placed_shapes({**kernels, **planned.run.params[component]}), 0

    def _texts(self, stage: str, lies: Callable) -> dict[tuple[str, str], tuple[Any, int]]:
        """(Stage, component) -> `lies` of the text encoders that `stage` reads prompts with."""
        second = self.cascade.super_resolution
        reader = stage if stage == BASE or second.text_encoders else BASE
        encoders = self.cascade.prompt_encoder(stage).encoders
        return {(reader, component): lies(reader, component) for component in encoders}

    def _prompts(self, use: Use, stage: str, lies: Callable) -> Use:
        """The program that encodes prompts; its text encoders are released after it."""
        encoder, texts = self.cascade.prompt_encoder(stage), self._texts(stage, lies)
        params = {component: shapes for (_, component), (shapes, _) in texts.items()}
        weights = use.weights + sum(added for _, added in texts.values())
        tokens = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype), encoder.tokens([''] * PROMPTS_AT_ONCE))
        counted = self._count(f'{stage} prompts', jax.jit(encoder), params, tokens)
        return dataclasses.replace(use, program=f'{use.program}prompts', weights=weights, **counted)

    def _count(self, name: str, program: Any, params: Any, *inputs: Any, **named: Any) -> dict[str, Any]:
        """What the compiler counts for a compiled function: the fields of Use that it knows, none without compiler."""
        leaves = jax.tree.leaves((params, inputs, named))
        key = name, *((x.shape, str(x.dtype), x.sharding) for x in leaves)
        given = sum(x.size * x.dtype.itemsize if x.sharding is None else device_bytes(x) for x in leaves)
        held = device_bytes(params)
        lower = functools.partial(self.placement.call, program.lower, params, *inputs, **named)
        return self._compiled(key, lower, held, given - held)

    def _compiled(self, key: tuple, lower: Callable, held: int, inputs: int = 0) -> dict[str, Any]:
        """The same for a program of its own.

        Args:
          key: tells programs apart that are compiled once.
          lower: gives the program.
          held: bytes of its arguments that are counted already.
          inputs: bytes of the others.
        """
        if self.where.compiler is None:
            return {}
        if key not in self._counted:
            name = ' '.join(part for part in key if isinstance(part, str))
            self.bar.set_postfix_str(name)
            self._counted[key] = self._count_of(name, lower)
            self.bar.update()
        if self._counted[key] is None:
            return {}
        counts, refused = self._counted[key]
        if refused is not None:
            used, limit = refused
            return {'temporaries': max(used - held, 0), 'complete': True, 'limit': limit}
        # Arguments may take more than their elements do, because a TPU lays arrays out in tiles. They may take less,
        # because a program drops those that it does not use, which lie there all the same.
        arguments = max(counts.argument_size_in_bytes - held, inputs)
        results = counts.output_size_in_bytes - counts.alias_size_in_bytes
        return {'temporaries': arguments + results + counts.temp_size_in_bytes, 'complete': True}


def compiled_counts(
    lowered: jax.stages.Lowered, options: Mapping[str, Any] | None = None
) -> tuple[Any, tuple[int, int] | None]:
    """Compiles a program; returns the compiler's counts, or what it wanted and had, in bytes, if it does not fit."""
    try:
        return lowered.compile(options and dict(options)).memory_analysis(), None
    except jax.errors.JaxRuntimeError as error:
        found = _TOO_LARGE.search(str(error))
        if found is None:
            raise
        used, used_unit, had, had_unit = found.groups()
        return None, (int(float(used) * _UNITS[used_unit]), int(float(had) * _UNITS[had_unit]))


def weight_shapes(cascade: Cascade, stage: str, component: str) -> dict[str, jax.ShapeDtypeStruct]:
    """Returns shapes and dtypes in which a cascade places a network's weights to generate images."""
    pipeline = getattr(cascade, stage)
    network = pipeline.components[component]
    stored = {name: jax.ShapeDtypeStruct(value.shape, value.dtype) for name, value in network.params.items()}
    read_once = component in pipeline.family.tokenizers  # prompts are encoded in float32
    return stored if read_once else functional.kernel_shapes(stored, network.dtype)
