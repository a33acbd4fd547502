"""The plan of a DreamBooth run before it starts: steps, memory and time (train --dry_run)."""

import math
import time
from collections.abc import Mapping

import jax
import jax.numpy as jnp

from dreambooth_jax.config import DreamBoothConfig, to_dict
from dreambooth_jax.diffusion import samplers
from dreambooth_jax.finetune import textual_inversion
from dreambooth_jax.finetune.stage import trained_components
from dreambooth_jax.finetune.trainable import make_trainable
from dreambooth_jax.generation import class_images
from dreambooth_jax.generation.cascade import BASE, STAGES, SUPER_RESOLUTION, Cascade, compute_dtype
from dreambooth_jax.models.functional import parameter_count
from dreambooth_jax.training import optimizer
from dreambooth_jax.weights.pipeline import COMPONENTS

# A training step reaches about this share of the device's speed in large matrix products. (Measured on two CPU cores:
# 95 of 256 GFLOP/s; on accelerators published trainers reach 16-45 %.)
EFFICIENCY = 0.35
BACKWARD = 3  # a training example costs about three forward passes


def forward_flops(cascade: Cascade, stage: str) -> float:
    """Returns the FLOPs of one forward pass of a stage's UNet on one image, counted by XLA.

    XLA counts only one part of attention that is computed in parts (models/attention.py). The result is therefore 12 %
    too low for Stable Diffusion 1.x at 512 px.
    """
    pipeline = getattr(cascade, stage)
    net = pipeline.unet
    pixels = cascade.base_size if stage == BASE else cascade.super_resolution_size
    side = pixels // pipeline.latent_scale
    shapes = (
        jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype), dict(net.params)),
        jax.ShapeDtypeStruct((1, side, side, pipeline.unet_value('in_channels')), jnp.float32),
        jax.ShapeDtypeStruct((1,), jnp.int32),
    )
    text = cascade.text_shapes(stage)
    labels = {'class_labels': shapes[2]} if pipeline.family.is_super_resolution else {}
    return jax.jit(net.apply).lower(*shapes, **text, **labels).cost_analysis()['flops']


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


def describe(config: DreamBoothConfig, cascade: Cascade) -> str:
    """Returns the settings and the plan as text. It computes nothing but a speed test, and writes nothing."""
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
    # The stages that train are built as in training, so that the numbers of parameters and bytes are exact.
    for name, pipeline in stages.items():
        settings = getattr(config, name)
        if not settings.steps:
            lines.append(f'  {name}: not trained')
            continue
        examples = config.examples_per_step(name)
        trainable = make_trainable(
            pipeline,
            trained_components(config, name, cascade),
            config.lora,
            new_rows=textual_inversion.new_rows(cascade) if name == BASE else None,
            dtype=compute_dtype(config.parallel.dtype),
            remat=config.parallel.remat,
            seed=config.seed,
        )
        count = sum(parameter_count(part) for part in trainable.params.values())
        _, tx = optimizer.from_settings(config.optimizer, settings.learning_rate, settings.steps)
        # Memory in bytes: weights, gradients and perhaps their average in float32, optimizer state, frozen weights.
        copies = 2 + (config.optimizer.ema_decay is not None)  # weights, gradients, average
        memory = copies * 4 * count + optimizer.state_bytes(tx, trainable.params)
        memory += sum(value.nbytes for part in trainable.frozen.values() for value in part.values())
        # Time in forward passes, with those of the distillation teacher.
        passes = examples * BACKWARD
        if config.is_distilled(name):
            passes += examples // 2  # the teacher's forward passes of the class examples
            if 'unet' not in trainable.frozen:
                itemsize = jnp.dtype(compute_dtype(config.parallel.dtype)).itemsize
                memory += parameter_count(pipeline.unet.params) * itemsize
        parts = (
            f' in {settings.gradient_accumulation_steps} micro-batches'
            if settings.gradient_accumulation_steps > 1
            else ''
        )
        work = settings.steps * passes * costs[name] / speed
        seconds += work
        lines.append(
            f'  {name}: {settings.steps} steps of {examples} examples{parts}, {count / 1e6:.1f}M parameters trained, '
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
        for component in COMPONENTS:
            if network := getattr(pipeline, component, None):
                found += 4 * parameter_count(network.params) * (1 + (component in adapted))
    return found


def _class_images(config: DreamBoothConfig, costs: Mapping[str, float], second: bool) -> tuple[str, float]:
    """Returns the plan's line about class images, and the FLOPs of generating them.

    Args:
      costs: stage -> FLOPs of one forward pass on one image.
      second: whether the second stage generates class images too.
    """
    prior = config.prior
    if own := class_images.own_photos(config):
        return f'  class images: {len(own)} photos of your own in {prior.dir}, all used, none generated', 0.0
    count = prior.num_images * len({subject.class_prompt for subject in config.subjects()})
    generating = {BASE: (prior.steps, prior.guidance_scale)}
    if second:
        other = config.super_resolution
        generating[SUPER_RESOLUTION] = (
            other.sample_steps or prior.steps,
            other.sample_guidance_scale or prior.guidance_scale,
        )
    passes = {
        stage: count * samplers.network_calls(prior.sampler, steps) * (2 if scale != 1 else 1)
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


def _duration(seconds: float) -> str:
    return f'{math.ceil(seconds)} s' if seconds < 120 else f'{seconds / 60:.0f} min'
