"""A stage that trains in milliseconds: two layers predict the noise of every pixel. Compiled steps are shared."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax

from dreambooth_jax.config import OptimizerConfig
from dreambooth_jax.data import pairs
from dreambooth_jax.training import optimizer, step
from dreambooth_jax.training.placement import Fsdp, Pmap
from dreambooth_jax.training.state import init_state

INSTANCES, CLASSES, SIDE = 4, 7, 8
CHANNELS = 3
LEARNING_RATE, DECAY, EMA = 1e-2, 0.1, 0.9

PLACEMENTS = {
    'one': lambda: Pmap(jax.devices()[:1]),
    'pmap': lambda: Pmap(jax.devices()[:4]),
    'fsdp': lambda: Fsdp(128, jax.devices()[:4]),
}

# Settings of optimizers other than 'sgd', 'adamw' and 'adamw_held'.
OTHERS = {
    'bfloat16': {'state_dtype': 'bfloat16'},
    'int8': {'state_dtype': 'int8'},
    'adafactor': {'kind': 'adafactor'},
    'lion': {'kind': 'lion'},
    'prodigy': {'kind': 'prodigy', 'warmup_steps': 2},
}
WIDTH = {'int8': 1024}  # by optimizer; only the last layer is then large enough for its state to be compressed


def params(seed=0, width=16):
    """Parameters of a network that also learns the variance, with the names of a UNet."""
    rng = np.random.default_rng(seed)
    shapes = {
        'conv_in.kernel': (CHANNELS, width),
        'conv_in.bias': (width,),
        'conv_out.kernel': (width, 2 * CHANNELS),
        'conv_out.bias': (2 * CHANNELS,),
    }
    return {'unet': {name: 0.1 * rng.normal(size=shape).astype(np.float32) for name, shape in shapes.items()}}


def frozen(seed=0):
    rng = np.random.default_rng(seed)
    return {'images': rng.integers(0, 256, (INSTANCES + CLASSES, SIDE, SIDE, CHANNELS), np.uint8)}


def batch(instance_examples=3, class_examples=3, prior_weight=0.7):
    return pairs.make_batch(instance_examples, class_examples, INSTANCES, CLASSES, prior_weight)


def pick(key, at, batch, frozen):
    return {**batch, 'image': pairs.image_index(key, at, batch, CLASSES)}


def network(params, x):
    hidden = jnp.tanh(x @ params['conv_in.kernel'] + params['conv_in.bias'])
    return hidden @ params['conv_out.kernel'] + params['conv_out.bias']


def loss(params, frozen, batch, keys):
    """Returns what a stage's loss returns: f32[B] and two parts. Both halves of the output have a gradient."""
    images = frozen['images'][batch['image']].astype(jnp.float32) / 127.5 - 1.0
    noise = jax.vmap(lambda key: jax.random.normal(key, images.shape[1:]))(keys)
    output = network(params['unet'], images + noise)
    parts = {
        'denoising': jnp.mean(jnp.square(output[..., :CHANNELS] - noise), axis=(1, 2, 3)),
        'variance': jnp.mean(jnp.square(output[..., CHANNELS:] - 0.5), axis=(1, 2, 3)),
    }
    return parts['denoising'] + parts['variance'], parts


@jax.jit
def example_losses(params, frozen, batch, key, at):
    """Computes the loss of every example that the training step should see at step `at`."""
    examples = pick(jax.random.fold_in(key, step.EXAMPLES_STREAM), at, batch, frozen)
    return loss(params, frozen, examples, step.example_keys(key, at, batch['slot']))[0]


@functools.cache
def transformation(kind):
    if kind == 'sgd':
        return optax.sgd(0.05)
    learning_rate = optimizer.learning_rate_schedule('cosine', LEARNING_RATE, steps=20, warmup_steps=2)
    if kind in OTHERS:
        return optimizer.make_optimizer(learning_rate, OptimizerConfig(weight_decay=DECAY, **OTHERS[kind]))
    multipliers = {'unet': optimizer.variance_head_masks(params()['unet'])} if kind == 'adamw_held' else None
    return optimizer.make_optimizer(learning_rate, OptimizerConfig(weight_decay=DECAY), multipliers=multipliers)


@functools.cache
def placed(placement):
    return PLACEMENTS[placement]()


@functools.cache
def step_for(placement='one', kind='adamw', count=1, **options):
    """The compiled training step, cached because compiling it takes longest."""
    make = functools.partial(
        step.make_train_step, loss, transformation(kind), ema_decay=EMA, pick=pick, num_steps=count, **options
    )
    return placed(placement).compile(lambda axis: make(axis_name=axis))


class Run:
    """A training state and everything that its step needs, placed on devices."""

    def __init__(self, placement='one', kind='adamw', examples=None, seed=0, **options):
        self.placement, self.kind, self.place_name = placed(placement), kind, placement
        self.options, start = options, params(width=WIDTH.get(kind, 16))
        tx = transformation(kind)
        self.state = self.placement.place_state(lambda params: init_state(params, tx, ema=True), start)
        self.frozen = self.placement.place_state(lambda data: data, frozen())
        examples = batch() if examples is None else examples
        self.batch = self.placement.place_batch(
            pairs.pad_examples(examples, self.placement.devices * options.get('gradient_accumulation_steps', 1))
        )
        self.key = self.placement.place_state(lambda: jax.random.key(seed))

    def steps(self, steps, count=1):
        """Trains for `steps` in dispatches of `count`; returns the metrics of every step, {name: f32[steps]}."""
        numbers = []
        for _ in range(steps // count):
            function = step_for(self.place_name, self.kind, count, **self.options)
            self.state, metrics = function(self.state, self.frozen, self.key, self.batch)
            numbers.append(self.placement.fetch(metrics))
        return {name: np.concatenate([n[name] for n in numbers]) for name in numbers[0]}


def assert_same(ours, theirs, atol=0.0, rtol=0.0):
    """Checks that two pytrees are equal, bit for bit or within a tolerance."""
    assert jax.tree.structure(ours) == jax.tree.structure(theirs)
    for (path, a), b in zip(jax.tree_util.tree_leaves_with_path(ours), jax.tree.leaves(theirs), strict=True):
        np.testing.assert_allclose(np.asarray(a), np.asarray(b), rtol=rtol, atol=atol, err_msg=str(path))


def arrays(state):
    """Copies the state to the host, so that donating its buffers cannot change the copy."""
    return jax.tree.map(np.array, state)
