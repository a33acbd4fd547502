"""The plan of a DreamBooth run before it starts: steps, memory, time and price (train --dry_run)."""

import dataclasses
import functools
import itertools
import json
import math
import time
from collections.abc import Iterable, Mapping, Sequence

import jax
import jax.numpy as jnp
import numpy as np

from dreambooth_jax.config import DreamBoothConfig, to_dict
from dreambooth_jax.config.price import Price
from dreambooth_jax.data.table import Examples
from dreambooth_jax.diffusion import samplers
from dreambooth_jax.finetune import examples, memory_plan, photo_settings
from dreambooth_jax.finetune.planned_stage import class_image_prompts, plan_stage
from dreambooth_jax.finetune.target import Target, planned_for
from dreambooth_jax.generation import class_images, text_to_image
from dreambooth_jax.generation.cascade import BASE, STAGES, SUPER_RESOLUTION, Cascade
from dreambooth_jax.generation.options import SamplingOptions
from dreambooth_jax.losses.denoising import Objective
from dreambooth_jax.models.flops import flops
from dreambooth_jax.models.functional import compute_dtype, parameter_count
from dreambooth_jax.training.placement import device_bytes, make_placement
from dreambooth_jax.training.train_run import TrainRun
from dreambooth_jax.weights.pipeline import Pipeline

# A training step reaches about this share of the device's speed in large matrix products, as measured or by its data
# sheet. (Measured on two CPU cores: 95 of 256 GFLOP/s; on accelerators published trainers reach 16-45 %.)
EFFICIENCY = 0.35
# A training example costs about as much as two forward passes, the second for the gradients of what the layers take,
# and a third one for those of their weights, as far as these train: adapters have next to none.
TRAINED, FROZEN = 3, 2


@dataclasses.dataclass(frozen=True, kw_only=True)
class Plan:
    """What a run will need.

    Attributes:
      text: all of it, photos and settings before.
      devices: what it is planned for, such as '4 x cpu'.
      seconds: how long it takes, without compilation and samples; None: not estimated, because the devices are not
        here and their speed is not known.
      time: that in words; None likewise.
      cost: what these seconds cost, in the currency of the price; None: not estimated, or an hour has no price.
      price: that in words, with currency and what an hour costs; None likewise.
      peak_bytes: the most that a device holds; None: nothing uses the devices.
      memory: that in words, which say whether it is 'at least' so much, and when; None likewise.
      about_steps: how often the steps of the base stage show each photo, and how many are proposed, in a sentence;
        None: the base stage is not trained, or not on photos of the user's own.
      proposed_steps: the proposal, if it differs from what is set; else None.
    """

    text: str
    devices: str
    seconds: float | None
    time: str | None
    cost: float | None
    price: str | None
    peak_bytes: int | None
    memory: str | None
    about_steps: str | None
    proposed_steps: int | None

    def printed(self, *, as_json: bool) -> str:
        """Returns the plan for people, or all its attributes for programs, as one line of JSON."""
        return json.dumps(dataclasses.asdict(self)) if as_json else self.text


def forward_flops(cascade: Cascade, stage: str) -> float:
    """Returns the FLOPs of one forward pass of a stage's denoiser on one image."""
    pipeline = getattr(cascade, stage)
    denoiser, space = pipeline.denoiser, pipeline.space
    side = (cascade.base_size if stage == BASE else cascade.super_resolution_size) // space.scale
    params = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype), dict(denoiser.params))
    image = lambda channels: jax.ShapeDtypeStruct((1, side, side, channels), jnp.float32)  # noqa: E731
    time = jax.ShapeDtypeStruct((1,), jnp.int32)
    conditioning = cascade.conditioning_shapes(stage)
    if pipeline.family.is_super_resolution:
        conditioning |= {'low_image': image(3), 'noise_level': time}
    predict = functools.partial(pipeline.family.predict, denoiser.apply)
    return flops(predict, params, image(space.channels), time, conditioning)


def device_speed(side: int = 2048) -> float:
    """Measures in less than a second the FLOP/s of all devices together in products of side x side matrices."""
    square = jnp.ones((side, side), compute_dtype())
    product = jax.jit(lambda x: x @ x)
    product(square).block_until_ready()
    started = time.perf_counter()
    for _ in range(3):
        result = product(square)
    result.block_until_ready()
    return jax.device_count() * 3 * 2 * side**3 / (time.perf_counter() - started)


def describe(
    config: DreamBoothConfig,
    cascade: Cascade,
    instance: Mapping[str, Sequence[Examples]],
    where: Target | None = None,
    evaluated: memory_plan.Evaluated | None = None,
    sampled_on: Cascade | None = None,
    price: Price | None = None,
) -> Plan:
    """Returns the plan. It computes nothing but a speed test, and writes nothing.

    Args:
      instance: stage -> the subjects' images (examples.read_instance).
      where: the devices to plan for, and whether their compiler is asked (planned_for); None: those at hand, unasked.
      evaluated: what scores the base stage while it trains; None: nothing does.
      sampled_on: the model that generates the samples with the adapters; None: the one that trains.
      price: of an hour of all devices; None: nothing is said of what the run costs.
    """
    if where is None:
        with planned_for() as where:
            return describe(config, cascade, instance, where, evaluated, sampled_on, price)
    lines = [examples.describe(config, instance), '', 'settings:']
    lines += [f'  {name} = {value!r}' for name, value in flat_settings(to_dict(config)).items()]
    lines += ['', f'plan for {where.name}:']
    found = device_speed() if where.present else where.speed
    speed = found and EFFICIENCY * found
    present = [name for name in STAGES if getattr(cascade, name) is not None]
    costs = {name: forward_flops(cascade, name) for name in present}
    placement = make_placement(
        config.parallel.mode, fsdp_min_bytes=config.parallel.fsdp_min_bytes, devices=where.devices
    )
    planned = {
        name: plan_stage(config, name, cascade, instance[name], placement)
        for name in present
        if getattr(config, name).steps
    }
    uses = memory_plan.uses(config, cascade, planned, placement, where, evaluated=evaluated, sampled_on=sampled_on)
    total, about_steps, proposed = 0.0, None, None
    if generating := class_images.stages_of(config, cascade):
        line, work = _class_images(config, cascade, costs, SUPER_RESOLUTION in generating)
        total += work
        lines.append(line + _time(work, speed))
    for name in present:
        if name not in planned:
            lines.append(f'  {name}: not trained')
            continue
        line, work = _training(config, name, getattr(cascade, name), planned[name].run, costs[name], uses)
        total += work
        lines.append(line + _time(work, speed))
        lines += times_drawn(config, name, cascade, instance[name])
        photos = sum(len(subject.images) for subject in instance[name]) // config.data.crops
        # Recipes of built-in subjects were chosen with as many images as these have.
        is_own = all(subject.instance_dir or subject.tfds for subject in config.subjects())
        if name == BASE and is_own:
            about_steps = photo_settings.about_steps(config, photos)
            steps = photo_settings.proposed_steps(config, photos)
            if steps != config.base.steps:
                proposed = steps
                lines.append(f'    {about_steps}')
    if BASE in planned and evaluated is not None:
        line, work = _evaluation(config, cascade, costs[BASE])
        total += work
        lines.append(line + _time(work, speed))
    lines += [line for name, stage in planned.items() if (line := idle(config, name, stage.run))]
    lines += idle_images(config, cascade, placement.devices)
    host = memory_plan.host_bytes(cascade, planned, sampled_on) if config.export else None
    lines += memory_lines(uses, where, host)
    seconds = duration = cost = words = None
    if speed is None:
        what = 'time and price' if price else 'time'
        lines.append(f'  {what}: not estimated, because these devices are not here and their speed is not known')
    else:
        seconds = total / speed
        duration = f'about {_duration(seconds)}, without compilation and samples'
        if not where.present:
            duration += f", at {100 * EFFICIENCY:.0f} % of the data sheet's speed"
        if price is not None:
            cost, words = price.amount_of(seconds), price.of(seconds)
        lines.append(f'  in all {", ".join(filter(None, (duration, words)))}')
    peak = most(uses)
    return Plan(
        text='\n'.join(lines),
        devices=where.name,
        seconds=seconds,
        time=duration,
        cost=cost,
        price=words,
        peak_bytes=peak and peak.total,
        memory=peak and in_words(peak, where),
        about_steps=about_steps,
        proposed_steps=proposed,
    )


def _training(
    config: DreamBoothConfig,
    name: str,
    pipeline: Pipeline,
    run: TrainRun,
    cost: float,
    uses: Sequence[memory_plan.Use],
) -> tuple[str, float]:
    """Returns the plan's line about a stage that trains, and its FLOPs.

    Args:
      cost: FLOPs of one forward pass on one image.
      uses: what the devices hold (memory_plan.uses).
    """
    (step,) = (use for use in uses if use.phase == f'training {name}')
    gradients = device_bytes(run.placement.placed_shapes(run.state_shapes.params))
    # Time in forward passes of what is computed, which is more than the examples where the batch is padded, with those
    # of the distillation teacher.
    trained = parameter_count(run.params.get(pipeline.family.denoiser, {})) / parameter_count(pipeline.denoiser.params)
    passes = (FROZEN + (TRAINED - FROZEN) * min(trained, 1)) * len(run.batch['slot'])
    if config.has_teacher(name):
        passes += int((run.batch['is_instance'] == 0).sum())
    accumulated = run.budget.gradient_accumulation_steps
    parts = f' in {accumulated} micro-batches' if accumulated > 1 else ''
    line = (
        f'  {name}: {run.budget.steps} steps of {run.examples_per_step} examples{parts}, '
        f'{sum(map(parameter_count, run.params.values())) / 1e6:.1f}M parameters trained, '
        f'{(step.weights + step.state + gradients) / 2**20:.0f} MiB for weights, gradients, moments on every device'
    )
    return line, run.budget.steps * passes * cost


def times_drawn(
    config: DreamBoothConfig, name: str, cascade: Cascade, instance: Sequence[Examples], draws: int = 20_000
) -> list[str]:
    """Returns the lines about the noise process of a stage that trains: what it is, and how often it draws each time.

    Args:
      instance: the subjects' images, whose sizes a dynamic shift depends on.
      draws: how many times are drawn for the histogram of each size, as the run draws them but from other keys.
    """
    pipeline, distribution = getattr(cascade, name), Objective.from_settings(config.objective).times
    side = cascade.base_size if name == BASE else cascade.super_resolution_size
    scale, whole = pipeline.space.scale, pipeline.family.process(pipeline)
    sizes = sorted({images.images.shape[1:3] for images in instance}) if distribution.dynamic_shift else [(side, side)]
    processes = [whole.of_shape((height // scale, width // scale)) for height, width in sizes]
    keys = jax.random.split(jax.random.key(0), draws)
    times = np.concatenate([process.sample_times(keys, distribution) for process in processes])
    given = ''
    if config.objective.time_shift is not None:
        given = f', config.objective.time_shift {config.objective.time_shift:.4g} in its place'
    elif distribution.dynamic_shift:
        shifts = _range(f'{process.training_shift():.4g}' for process in processes)
        tokens = _range(process.tokens for process in processes)
        given = f', config.objective.dynamic_time_shift {shifts} for {tokens} tokens in its place'
    counts, _ = np.histogram(times / whole.last_time, bins=10, range=(0, 1))
    shares = ' '.join(f'{100 * count / len(times):.0f}' for count in counts)
    at_size = whole.of_shape((side // scale, side // scale))
    return [
        f'    noise: {at_size.described(config.samples.steps)}{given}',
        f'    times trained on, % in each tenth from clean to noise: {shares}',
    ]


def _range(values: Iterable) -> str:
    ordered = sorted(set(values))
    return f'{ordered[0]} to {ordered[-1]}' if len(ordered) > 1 else str(ordered[0])


def idle(config: DreamBoothConfig, name: str, run: TrainRun) -> str | None:
    """Returns the line about examples that only pad the batch of a stage; None if there are none."""
    if not run.idle_examples:
        return None
    computed, examples, devices = len(run.batch['weight']), run.examples_per_step, run.placement.devices
    batch_size, parts = getattr(config, name).batch_size, run.budget.gradient_accumulation_steps
    of_class = examples // batch_size - 1
    kinds = f'{batch_size} of the subject' + (f' and {batch_size} of the class' if of_class else '')
    fits = next(size for size in itertools.count(batch_size) if size * (1 + of_class) % (devices * parts) == 0)
    shared = f'{devices} devices' + (f' x {parts} micro-batches' if parts > 1 else '')
    return (
        f'  {name}: {run.idle_examples} of the {computed} examples that a step computes have no weight and teach '
        f'nothing, because {examples} ({kinds}) do not fill {shared}; config.{name}.batch_size={fits} uses all'
    )


def idle_images(config: DreamBoothConfig, cascade: Cascade, devices: int) -> list[str]:
    """Returns the lines about generated images that only fill up batches, because the devices share each batch."""
    groups = {}
    if class_images.stages_of(config, cascade) and not class_images.own_photos(config):
        groups['class images'] = len(class_image_prompts(config)), config.prior.batch_size
    if any(getattr(config, name).steps for name in STAGES if getattr(cascade, name) is not None):
        count = len(config.sample_prompts()) * config.samples.num_images
        groups['a grid of samples'] = count, config.samples.batch_size or cascade.usual_batch_size
    lines = []
    for kind, (count, at_once) in groups.items():
        batches = [len(batch) for batch, _ in text_to_image.padded_batches(count, at_once, devices)]
        if (computed := sum(batches)) > count:
            lines.append(
                f'  {kind}: {computed - count} of {computed} images are computed only to fill {len(batches)} x '
                f'{batches[0]} at once on {devices} devices, and not kept'
            )
    return lines


def memory_lines(uses: Sequence[memory_plan.Use], where: Target, host: int | None) -> list[str]:
    """Returns the part of the plan about memory: a table of phases, the peak, and who counted.

    Args:
      uses: the result of memory_plan.uses.
      where: the devices that they are for.
      host: bytes of weights on the host while it exports; None: nothing is exported.
    """
    headings = ('phase', 'weights', 'optimizer', 'data', 'temporaries', 'together', 'most while this runs')
    phases = memory_plan.largest(uses)
    rows = [
        (
            phase,
            *map(_size, (use.weights, use.state, use.data)),
            '-' if use.temporaries is None else _size(use.temporaries),
            _size(use.total),
            use.program,
        )
        for phase, use in phases.items()
    ]
    if host is not None:
        rows.append(('export', *['0 MiB'] * 3, '-', '0 MiB', f'{_size(host)} of weights on the host'))
    widths = [max(map(len, column)) for column in zip(headings, *rows, strict=True)]
    lines = ['  memory of each device, phase by phase:']
    for row in (headings, *rows):
        numbers = (cell.rjust(width) for cell, width in zip(row[1:-1], widths[1:-1], strict=True))
        lines.append('  '.join((f'    {row[0]:{widths[0]}}', *numbers, row[-1])).rstrip())
    peak = most(uses)
    if peak is None:
        return lines
    lines.append(f'  peak: {in_words(peak, where)}')
    if where.memory is not None:
        lines.append(
            f'  programs may take {_size(where.memory)} of each (XLA_PYTHON_CLIENT_MEM_FRACTION, 0.75 if it is not set)'
        )
    refused = [use for use in uses if use.limit is not None]
    lines += [
        f'  {use.phase} ({use.program}) does not fit: the compiler counts {_size(use.total)}, a device has '
        f'{_size(use.limit)}'
        for use in refused
    ]
    if where.compiler:
        lines.append(f'  temporaries are counted by {where.compiler}')
    else:
        lines.append('  temporaries: of training the gradients alone, of the rest none; --compile counts them')
    return lines


def most(uses: Sequence[memory_plan.Use]) -> memory_plan.Use | None:
    """Returns the program during which a device holds most; None if there is none."""
    return max(memory_plan.largest(uses).values(), key=lambda use: use.total, default=None)


def in_words(use: memory_plan.Use, where: Target) -> str:
    """Returns how much a device holds during a program, and when that is."""
    at_least = '' if where.compiler else 'at least '
    return f'{at_least}{_size(use.total)} on every device, {use.phase} ({use.program})'


def _class_images(
    config: DreamBoothConfig, cascade: Cascade, costs: Mapping[str, float], second: bool
) -> tuple[str, float]:
    """Returns the plan's line about class images, and the FLOPs of generating them.

    Args:
      costs: stage -> FLOPs of one forward pass on one image.
      second: whether the second stage generates class images too.
    """
    if own := class_images.own_photos(config):
        return f'  class images: {len(own)} photos of your own in {config.prior.dir}, all used, none generated', 0.0
    count = len(class_image_prompts(config))
    options = SamplingOptions.of_class_images(config, super_resolution=second)
    generating = {BASE: (options.steps, options.guidance_scale)}
    if second:
        generating[SUPER_RESOLUTION] = options.second_steps, options.second_guidance_scale
    passes = {
        stage: count * samplers.network_calls(options.sampler, steps) * _prompts_read(cascade, stage, scale)
        for stage, (steps, scale) in generating.items()
    }
    work = sum(passes[stage] * costs[stage] for stage in passes)
    return f'  class images: {count}, {sum(passes.values())} network passes', work


def _prompts_read(cascade: Cascade, stage: str, guidance_scale: float) -> int:
    """Returns for how many prompts a stage runs its denoiser in each step of an image, the negative one included."""
    pipeline = getattr(cascade, stage)
    return 1 if guidance_scale == 1 or pipeline.family.embeds_guidance(pipeline) else 2


def _evaluation(config: DreamBoothConfig, cascade: Cascade, cost: float) -> tuple[str, float]:
    """Returns the plan's line about scores of the base stage, and the FLOPs of generating what is scored.

    Args:
      cost: FLOPs of one forward pass of the base stage on one image.
    """
    settings, samples = config.evaluation, config.samples
    images = len(config.subjects()) * (settings.num_prompts * settings.num_images + settings.class_images)
    times = math.ceil(config.base.steps / settings.every)
    per_image = samplers.network_calls(samples.sampler, settings.steps or samples.steps)
    passes = (times + 1) * images * per_image * _prompts_read(cascade, BASE, samples.guidance_scale)
    most = 'at most ' if settings.patience else ''
    line = f'  evaluation: {most}{times} x {images} images, and as many of the model before, {passes} network passes'
    return line, passes * cost


def flat_settings(settings: Mapping, prefix: str = 'config.') -> dict:
    """Turns nested settings into a flat dict: dotted name -> value."""
    found = {}
    for name, value in settings.items():
        if isinstance(value, Mapping) and value:
            found |= flat_settings(value, f'{prefix}{name}.')
        else:
            found[prefix + name] = value
    return found


def _size(count: int) -> str:
    return f'{count / 2**20:.1f} MiB' if count < 2**30 else f'{count / 2**30:.2f} GiB'


def _time(work: float, speed: float | None) -> str:
    return f', {_duration(work / speed)}' if work and speed else ''


def _duration(seconds: float) -> str:
    return f'{math.ceil(seconds)} s' if seconds < 120 else f'{seconds / 60:.0f} min'
