"""What a DreamBooth run will do before it does it: steps, memory, time."""

import math
import time
from collections.abc import Mapping

import jax
import jax.numpy as jnp

from dreambooth_jax.config import DreamBoothConfig, to_dict
from dreambooth_jax.generation.cascade import BASE, STAGES, Cascade, compute_dtype
from dreambooth_jax.models.functional import parameter_count
from dreambooth_jax.training import optimizer
from dreambooth_jax.tuning import textual_inversion
from dreambooth_jax.tuning.stage import trained_components
from dreambooth_jax.tuning.trainable import make_trainable

# A training step reaches about this share of the device's speed in large matrix products (CPU: 95 of 256 GFLOP/s
# measured on two cores; PROTOCOL: 16-45% on accelerators).
EFFICIENCY = 0.35
BACKWARD = 3  # a training row costs about three forward passes


def forward_flops(cascade: Cascade, stage: str) -> float:
    """FLOPs of one forward pass of a stage's UNet on one picture, counted by XLA.

    Of attention in parts (models/attention.py) one part is counted: 12 % too little for Stable Diffusion 1.x at 512 px.
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
    text = jax.tree.map(lambda x: jax.ShapeDtypeStruct((1, *x.shape[1:]), x.dtype), cascade.encode([''], stage))
    labels = {'class_labels': shapes[2]} if pipeline.family.enlarges else {}
    return jax.jit(net.apply).lower(*shapes, **text, **labels).cost_analysis()['flops']


def device_speed(side: int = 2048) -> float:
    """FLOP/s of all devices together in one large matrix product, measured in under a second."""
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
    """The settings and the plan as text; reads the model, writes nothing."""
    lines = ['settings:', *(f'  {name} = {value!r}' for name, value in flat_settings(to_dict(config)).items())]
    speed = EFFICIENCY * device_speed()
    stages = {name: getattr(cascade, name) for name in STAGES if getattr(cascade, name) is not None}
    costs = {name: forward_flops(cascade, name) for name in stages}
    lines += ['', f'plan for {jax.device_count()} x {jax.devices()[0].device_kind}:']
    seconds = 0.0
    if config.prior.weight > 0 and config.prior.kind == 'pictures':
        prior = config.prior
        count = prior.num_images * len({concept.class_prompt for concept in config.concepts()})
        passes = count * prior.steps * (2 if prior.guidance_scale != 1 else 1)
        seconds += passes * costs['base'] / speed
        lines.append(f'  class pictures: {count}, {passes} network passes, {_duration(passes * costs["base"] / speed)}')
    for name, pipeline in stages.items():
        settings = getattr(config, name)
        if not settings.steps:
            lines.append(f'  {name}: not trained')
            continue
        rows = config.rows_per_step(name)
        trainable = make_trainable(
            pipeline, trained_components(config, name, cascade), config.lora,
            new_rows=textual_inversion.new_rows(cascade) if name == BASE else None,
            dtype=compute_dtype(config.parallel.dtype), remat=config.parallel.remat, seed=config.seed)  # fmt: skip
        count = sum(parameter_count(part) for part in trainable.params.values())
        _, tx = optimizer.from_settings(config.optimizer, settings.learning_rate, settings.steps)
        copies = 2 + (config.optimizer.ema_decay is not None)  # weights, gradients, average
        memory = copies * 4 * count + optimizer.state_bytes(tx, trainable.params)
        memory += sum(value.nbytes for part in trainable.frozen.values() for value in part.values())
        passes = rows * BACKWARD
        if config.has_teacher(name):
            passes += rows // 2
            if 'unet' not in trainable.frozen:
                itemsize = jnp.dtype(compute_dtype(config.parallel.dtype)).itemsize
                memory += parameter_count(pipeline.unet.params) * itemsize
        parts = f' in {settings.accumulation} micro-batches' if settings.accumulation > 1 else ''
        work = settings.steps * passes * costs[name] / speed
        seconds += work
        lines.append(
            f'  {name}: {settings.steps} steps of {rows} rows{parts}, {count / 1e6:.1f}M parameters trained, '
            f'{memory / 2**20:.0f} MiB for weights, gradients, moments (activations come on top), '
            f'{_duration(work)}'
        )
    lines.append(f'  in all about {_duration(seconds)}, without compilation and samples')
    return '\n'.join(lines)


def flat_settings(settings: Mapping, prefix: str = 'config.') -> dict:
    """Nested settings by dotted name."""
    found = {}
    for name, value in settings.items():
        if isinstance(value, Mapping) and value:
            found |= flat_settings(value, f'{prefix}{name}.')
        else:
            found[prefix + name] = value
    return found


def _duration(seconds: float) -> str:
    return f'{math.ceil(seconds)} s' if seconds < 120 else f'{seconds / 60:.0f} min'
