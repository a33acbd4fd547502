"""The plan of a DreamBooth run before it starts: steps, memory and time (train --dry_run)."""

import functools
import math
import time
from collections.abc import Mapping, Sequence

import jax
import jax.numpy as jnp

from dreambooth_jax.config import DreamBoothConfig, to_dict
from dreambooth_jax.data.table import Examples
from dreambooth_jax.diffusion import samplers
from dreambooth_jax.finetune.stage import make_feed, make_run, stage_trainable, trained_components
from dreambooth_jax.generation import class_images
from dreambooth_jax.generation.cascade import BASE, STAGES, SUPER_RESOLUTION, Cascade
from dreambooth_jax.generation.options import SamplingOptions
from dreambooth_jax.models.functional import parameter_count
from dreambooth_jax.training.placement import make_placement

# A training step reaches about this share of the device's speed in large matrix products. (Measured on two CPU cores:
# 95 of 256 GFLOP/s; on accelerators published trainers reach 16-45 %.)
EFFICIENCY = 0.35
BACKWARD = 3  # a training example costs about three forward passes


def forward_flops(cascade: Cascade, stage: str) -> float:
    """Returns the FLOPs of one forward pass of a stage's denoiser on one image, counted by XLA.

    XLA counts only one part of attention that is computed in parts (models/attention.py). The result is therefore 12 %
    too low for Stable Diffusion 1.x at 512 px.
    """
    pipeline = getattr(cascade, stage)
    denoiser, space = pipeline.denoiser, pipeline.space
    side = (cascade.base_size if stage == BASE else cascade.super_resolution_size) // space.scale
    params = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype), dict(denoiser.params))
    image = lambda channels: jax.ShapeDtypeStruct((1, side, side, channels), jnp.float32)  # noqa: E731
    time = jax.ShapeDtypeStruct((1,), jnp.int32)
    conditioning = cascade.conditioning_shapes(stage)
    if pipeline.family.is_super_resolution:
        conditioning |= {'low_image': image(3), 'noise_level': time}
    predict = jax.jit(functools.partial(pipeline.family.predict, denoiser.apply))
    return predict.lower(params, image(space.channels), time, conditioning).cost_analysis()['flops']


def device_speed(side: int = 2048) -> float:
    """Measures in less than a second the FLOP/s of all devices together in products of side x side matrices."""
    dtype = jnp.float32 if jax.default_backend() == 'cpu' else jnp.bfloat16
    square = jnp.ones((side, side), dtype)
    product = jax.jit(lambda x: x @ x)
    product(square).block_until_ready()
    started = time.perf_counter()
    for _ in range(3):
        result = product(square)
    result.block_until_ready()
    return jax.device_count() * 3 * 2 * side**3 / (time.perf_counter() - started)


def describe(config: DreamBoothConfig, cascade: Cascade, instance: Mapping[str, Sequence[Examples]]) -> str:
    """Returns the settings and the plan as text. It computes nothing but a speed test, and writes nothing.

    Args:
      instance: stage -> the subjects' images (examples.read_instance).
    """
    lines = ['settings:', *(f'  {name} = {value!r}' for name, value in flat_settings(to_dict(config)).items())]
    speed = EFFICIENCY * device_speed()
    stages = {name: getattr(cascade, name) for name in STAGES if getattr(cascade, name) is not None}
    costs = {name: forward_flops(cascade, name) for name in stages}
    lines += ['', f'plan for {jax.device_count()} x {jax.devices()[0].device_kind}:']
    seconds = 0.0
    if generating := class_images.stages_of(config, cascade):
        line, work = _class_images(config, costs, SUPER_RESOLUTION in generating)
        seconds += work / speed
        lines.append(line + (f', {_duration(work / speed)}' if work else ''))
    placement = make_placement(config.parallel.mode, fsdp_min_bytes=config.parallel.fsdp_min_bytes)
    for name in stages:
        settings = getattr(config, name)
        if not settings.steps:
            lines.append(f'  {name}: not trained')
            continue
        # The same object that training carries out, so that the numbers of parameters and bytes are exact.
        num_class = count_class_images(config) if name in generating else 0
        feed = make_feed(config, name, [len(examples.images) for examples in instance[name]], num_class)
        run = make_run(config, name, cascade, cascade, stage_trainable(config, name, cascade), feed, placement)
        state = run.state_shapes
        # Gradients are as large as the weights that train.
        memory = sum(_bytes(tree) for tree in (state.params, state.params, state.ema, state.opt_state, run.frozen))
        # Time in forward passes of what is computed, which is more than the examples where the batch is padded, with
        # those of the distillation teacher.
        passes = BACKWARD * len(run.batch['slot'])
        if config.is_distilled(name):
            passes += int((run.batch['is_instance'] == 0).sum())
        accumulated = run.budget.gradient_accumulation_steps
        parts = f' in {accumulated} micro-batches' if accumulated > 1 else ''
        work = run.budget.steps * passes * costs[name] / speed
        seconds += work
        lines.append(
            f'  {name}: {run.budget.steps} steps of {run.examples_per_step} examples{parts}, '
            f'{sum(map(parameter_count, run.params.values())) / 1e6:.1f}M parameters trained, '
            f'{memory / 2**20:.0f} MiB for weights, gradients, moments (activations come on top), '
            f'{_duration(work)}'
        )
    besides = generation_bytes(config, cascade) / 2**20
    lines.append(f'  sampling: {besides:.0f} MiB on every device besides, for the model as it was before training')
    lines.append(f'  in all about {_duration(seconds)}, without compilation and samples')
    return '\n'.join(lines)


def generation_bytes(config: DreamBoothConfig, cascade: Cascade) -> int:
    """Returns the bytes of weights that sampling keeps on every device in addition to those that train, in float32.

    They are the whole original model, which encodes prompts and generates class images and its part of every sample
    grid, and one more copy of each network with adapters, into which the adapters are merged. A network that trains as
    a whole needs no copy.
    """
    found = 0
    for stage in STAGES:
        pipeline = getattr(cascade, stage)
        has_adapters = config.lora.rank is not None and getattr(config, stage).steps > 0
        adapted = trained_components(config, stage, cascade) if has_adapters else ()
        for component, network in pipeline.components.items() if pipeline is not None else ():
            found += 4 * parameter_count(network.params) * (1 + (component in adapted))
    return found


def count_class_images(config: DreamBoothConfig) -> int:
    """Returns how many class images a stage that trains on class images has."""
    prompts = {subject.class_prompt for subject in config.subjects()}
    return len(class_images.own_photos(config)) or config.prior.num_images * len(prompts)


def _class_images(config: DreamBoothConfig, costs: Mapping[str, float], second: bool) -> tuple[str, float]:
    """Returns the plan's line about class images, and the FLOPs of generating them.

    Args:
      costs: stage -> FLOPs of one forward pass on one image.
      second: whether the second stage generates class images too.
    """
    if own := class_images.own_photos(config):
        return f'  class images: {len(own)} photos of your own in {config.prior.dir}, all used, none generated', 0.0
    count = count_class_images(config)
    options = SamplingOptions.of_class_images(config, super_resolution=second)
    generating = {BASE: (options.steps, options.guidance_scale)}
    if second:
        generating[SUPER_RESOLUTION] = options.second_steps, options.second_guidance_scale
    passes = {
        stage: count * samplers.network_calls(options.sampler, steps) * (2 if scale != 1 else 1)
        for stage, (steps, scale) in generating.items()
    }
    work = sum(passes[stage] * costs[stage] for stage in passes)
    return f'  class images: {count}, {sum(passes.values())} network passes', work


def flat_settings(settings: Mapping, prefix: str = 'config.') -> dict:
    """Turns nested settings into a flat dict: dotted name -> value."""
    found = {}
    for name, value in settings.items():
        if isinstance(value, Mapping) and value:
            found |= flat_settings(value, f'{prefix}{name}.')
        else:
            found[prefix + name] = value
    return found


def _bytes(tree) -> int:
    return sum(x.size * x.dtype.itemsize for x in jax.tree.leaves(tree))


def _duration(seconds: float) -> str:
    return f'{math.ceil(seconds)} s' if seconds < 120 else f'{seconds / 60:.0f} min'
