"""Trains Storybook's two encoders: what is computed in a step, and a loop that can be stopped and started again."""

import functools
import pickle
import time
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
import views
from flax import nnx
from tqdm import tqdm

from dreambooth_jax.evaluation import preprocessing
from dreambooth_jax.models import functional
from dreambooth_jax.models.clip import CLIPTextModel
from dreambooth_jax.models.vit import VisionTransformer

BATCH = 128
LEARNING_RATE, WEIGHT_DECAY, WARMUP = 1.5e-3, 0.05, 100
LAST_SHARE = 0.3  # of the steps, in which the rate falls to zero; before, it is the same whatever the number of steps
KEEP_EVERY = 50  # steps
PROJECTED = 128  # numbers in a projection of DINO's head
QUEUE = 4096  # keys of earlier paintings that a painting is told from
TEMPERATURE = 0.1
MOMENTUM = 0.99
EVENNESS, EVEN_FROM = 0.2, 400  # weight of the term that makes features even, and its first step
GLOBAL, LOCAL = (0.7, 1.0), (0.45, 0.75)  # sides of crops as shares of the painting's
PASTED = 0.9  # how often the middle of a painting is seen on another one, so that it is known by its middle
LARGEST_LOGIT_SCALE = float(np.log(100))  # as in CLIP


class Training(NamedTuple):
    """A training in progress.

    Attributes:
      step: number of steps that were made.
      params: what is trained.
      rest: what goes with it: DINO's teacher and keys.
      opt_state: of the optimizer.
      seconds: {'wall': ..., 'cpu': ...} so far.
    """

    step: int
    params: Any
    rest: Any
    opt_state: Any
    seconds: dict[str, float]


def fast_network(make) -> tuple[Any, functional.Params]:
    """Returns (apply, params) of make(rngs), whose dense layers are quick on CPUs in the backward pass too."""
    model = make(functional.Keys(0))
    for _, layer in nnx.iter_modules(model):
        if isinstance(layer, nnx.Linear):
            layer.dot_general = _flat_product
    return functional.split(model)


def _flat_product(x, kernel, dimensions, **options):
    """The product of f[..., n] and f[n, m] as one of two matrices: XLA's CPU backend takes half as long for that."""
    del dimensions  # of a dense layer: the last axis with the first
    flat = jax.lax.dot_general(x.reshape(-1, x.shape[-1]), kernel, (((1,), (0,)), ((), ())), **options)
    return flat.reshape(*x.shape[:-1], kernel.shape[-1])


def image_network(config, seed: int):
    """Returns (apply, params) of an image encoder; its class token and positions start as small random numbers."""
    apply, params = fast_network(lambda rngs: VisionTransformer(config, rngs=rngs))
    rng = np.random.default_rng((seed, 1))
    for name in ('embeddings.cls_token', 'embeddings.position_embeddings'):
        params[name] = jnp.asarray(0.02 * rng.standard_normal(params[name].shape), jnp.float32)
    return apply, params


def text_network(config):
    return fast_network(lambda rngs: CLIPTextModel(config, rngs=rngs, projection=True))


# DINO


def start_dino(config, seed: int):
    """Returns (loss, after, params, rest): a student with its heads, the teacher and the keys of earlier paintings.

    The student is shown a view of a whole painting and two small crops, the teacher another view of the whole. The
    student's outputs must be nearest to what the teacher, a moving average of it, says of the same painting, among all
    paintings of this batch and of the last ones. DINO compares soft labels of a learned codebook instead, which for
    stability needs centring and far longer training; views, crops, head and teacher are as there. In the last part
    another term asks for features of which no direction is longer than the others, so that their cosines say more.
    """
    apply, vit = image_network(config, seed)
    head, head_params = functional.split(_Head(config['hidden_size'], rngs=functional.Keys(seed + 1)))
    predictor, predictor_params = functional.split(_Head(PROJECTED, rngs=functional.Keys(seed + 2)))
    teacher = {'vit': vit, 'head': head_params}
    keys = jax.random.normal(jax.random.key(seed + 3), (QUEUE, PROJECTED))
    rest = {'teacher': jax.tree.map(jnp.copy, teacher), 'queue': _unit(keys)}
    side, patch = config['image_size'], config['patch_size']
    whole, teachers = (views.View(side, GLOBAL, pasted=PASTED, other=other) for other in (1, 2))
    small_side = side // 2 // patch * patch
    small = [views.View(small_side, LOCAL, low=0.2, pasted=PASTED, other=other) for other in (3, 4)]

    def features(params, x):
        x = (x - np.float32(preprocessing.IMAGENET_MEAN)) / np.float32(preprocessing.IMAGENET_STD)
        return apply(params['vit'], x)[1]

    def loss(params, rest, key, images, evenness):
        keys = jax.random.split(key, 5)
        seen = features(rest['teacher'], views.take(images, keys[0], teachers))
        taught = jax.lax.stop_gradient(_unit(head(rest['teacher']['head'], seen)))
        crops = jnp.concatenate([views.take(images, k, view) for k, view in zip(keys[2:4], small, strict=True)])
        seen = jnp.concatenate([features(params, views.take(images, keys[1], whole)), features(params, crops)])
        said = _unit(predictor(params['predictor'], head(params['head'], seen)))
        logits = said @ jnp.concatenate([taught, rest['queue']]).T / TEMPERATURE
        labels = jnp.tile(jnp.arange(len(images)), len(said) // len(images))
        errors = optax.softmax_cross_entropy_with_integer_labels(logits, labels).reshape(-1, len(images)).mean(axis=1)
        numbers = {
            'right': jnp.mean(jnp.argmax(logits[: len(images)], axis=-1) == labels[: len(images)]),
            'spread': jnp.mean(jnp.std(taught, axis=0)) * PROJECTED**0.5,
            'uneven': _unevenness(seen),
        }
        return errors[0] + errors[1:].mean() + evenness * numbers['uneven'], (numbers, taught)

    def after(params, rest, taught):
        student = {'vit': params['vit'], 'head': params['head']}
        moved = jax.tree.map(lambda old, new: MOMENTUM * old + (1 - MOMENTUM) * new, rest['teacher'], student)
        return {'teacher': moved, 'queue': jnp.concatenate([taught, rest['queue']])[:QUEUE]}

    params = {'vit': vit, 'head': head_params, 'predictor': predictor_params}
    return loss, after, params, rest


def _unevenness(features):
    """How far f32[N, D] are from having all directions equally: the squared distance of their second moments to 1, / D.

    Cosines of features with few long directions are ruled by those, and are high for any two images if one of them is
    the mean.
    """
    moments = features.T @ features / len(features)
    moments = moments / jnp.mean(jnp.diagonal(moments))
    return jnp.sum((moments - jnp.eye(len(moments))) ** 2) / len(moments)


def evenness(step: int) -> np.float32:
    """Returns the weight of _unevenness in a step; it comes late, when there is something to be told apart."""
    return np.float32(EVENNESS * np.clip((step - EVEN_FROM) / 50, 0, 1))


class _Head(nnx.Module):
    """Two dense layers, f32[B, width] -> f32[B, PROJECTED]."""

    def __init__(self, width: int, *, rngs):
        self.first = nnx.Linear(width, 4 * PROJECTED, rngs=rngs)
        self.norm = nnx.LayerNorm(4 * PROJECTED, rngs=rngs)
        self.last = nnx.Linear(4 * PROJECTED, PROJECTED, rngs=rngs)

    def __call__(self, x):
        return self.last(jax.nn.relu(self.norm(self.first(x))))


# CLIP


def start_clip(image_config, text_config, seed: int):
    """Returns (loss, after, params, rest) of a CLIP; Radford et al. 2021.

    A caption that two paintings of a batch share counts for neither as a wrong one.
    """
    see, vision = image_network(image_config, seed + 10)
    read, text = text_network(text_config)
    view = views.View(image_config['image_size'], (0.8, 1.0))

    def loss(params, rest, key, images, ids):
        x = views.take(images, key, view)
        x = (x - np.float32(preprocessing.CLIP_MEAN)) / np.float32(preprocessing.CLIP_STD)
        seen, told = _unit(see(params['vit'], x)[1]), _unit(read(params['text'], ids)[1])
        cosines = seen @ told.T
        logits = cosines * jnp.exp(jnp.minimum(params['logit_scale'], LARGEST_LOGIT_SCALE))
        same = (ids[:, None] == ids[None]).all(axis=-1) & ~jnp.eye(len(ids), dtype=bool)
        logits = jnp.where(same, -1e9, logits)
        labels = jnp.arange(len(ids))
        error = optax.softmax_cross_entropy_with_integer_labels
        numbers = {
            'right': jnp.mean(jnp.argmax(logits, axis=-1) == labels),
            'scale': jnp.exp(params['logit_scale']),
        }
        return (error(logits, labels).mean() + error(logits.T, labels).mean()) / 2, (numbers, None)

    params = {'vit': vision, 'text': text, 'logit_scale': jnp.asarray(np.log(1 / 0.07), jnp.float32)}
    return loss, lambda params, rest, _: rest, params, {}


def _unit(x):
    return x / jnp.maximum(jnp.linalg.norm(x, axis=-1, keepdims=True), 1e-6)


# The loop


def train(start, batch, steps: int, path: Path, seed: int, whenever_kept) -> Training:
    """Trains to step `steps`, from the file `path` if a training was kept there, and keeps it there.

    Args:
      start: (loss, after, params, rest) as start_dino returns them.
      batch: step -> the arrays of a batch.
      steps: number of steps.
      path: the kept training.
      seed: of views.
      whenever_kept: called with the training each time it has been kept.
    """
    loss, after, params, rest = start
    rate = optax.join_schedules(
        [
            optax.linear_schedule(0.0, LEARNING_RATE, WARMUP),
            optax.constant_schedule(LEARNING_RATE),
            optax.linear_schedule(LEARNING_RATE, 0.0, round(steps * LAST_SHARE)),
        ],
        [WARMUP, steps - round(steps * LAST_SHARE)],
    )
    decayed = lambda params: jax.tree.map(lambda value: value.ndim > 1, params)  # noqa: E731
    tx = optax.chain(
        optax.clip_by_global_norm(1.0), optax.adamw(rate, b2=0.98, weight_decay=WEIGHT_DECAY, mask=decayed)
    )

    @functools.partial(jax.jit, donate_argnums=(0, 1, 2))
    def step(params, rest, opt_state, key, *arrays):
        (value, (numbers, extra)), gradient = jax.value_and_grad(loss, has_aux=True)(params, rest, key, *arrays)
        updates, opt_state = tx.update(gradient, opt_state, params)
        params = optax.apply_updates(params, updates)
        return params, after(params, rest, extra), opt_state, {'loss': value, **numbers}

    kept = read(path) if path.is_file() else Training(0, params, rest, tx.init(params), {'wall': 0.0, 'cpu': 0.0})
    key, state = jax.random.key(seed + 17), kept[1:4]
    started, means = (time.perf_counter(), time.process_time()), {}
    bar = tqdm(range(kept.step, steps), path.stem, initial=kept.step, total=steps, mininterval=5)
    for i in bar:
        *state, numbers = step(*state, jax.random.fold_in(key, i), *batch(i))
        for name, value in numbers.items():
            means[name] = 0.95 * means.get(name, float(value)) + 0.05 * float(value)
        bar.set_postfix({name: f'{value:.3f}' for name, value in means.items()}, refresh=False)
        if (i + 1) % KEEP_EVERY == 0 or i + 1 == steps:
            spent = {
                'wall': kept.seconds['wall'] + time.perf_counter() - started[0],
                'cpu': kept.seconds['cpu'] + time.process_time() - started[1],
            }
            found = Training(i + 1, *jax.device_get(tuple(state)), spent)
            temporary = path.with_name(f'.{path.name}')
            temporary.write_bytes(pickle.dumps(tuple(found)))
            temporary.replace(path)
            whenever_kept(found)
    return read(path)


def read(path: Path) -> Training:
    """Reads a training that `train` kept."""
    return Training(*pickle.loads(path.read_bytes()))
