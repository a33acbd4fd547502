"""Forward and backward time of a 3x3 convolution: JAX's own against models/convolution.py, per shape.

python experiments/speed/convolution.py
"""

import time

import jax
import jax.numpy as jnp
from absl import app

from dreambooth_jax.models.convolution import convolve

SHAPES = ((32, 32, 32), (32, 32, 64), (32, 16, 64), (32, 8, 128), (8, 64, 32), (8, 128, 16))  # rows, side, channels
PADDING = ((1, 1), (1, 1))
OPTIONS = {'dimension_numbers': ('NHWC', 'HWIO', 'NHWC')}


def seconds(function, *arguments, repeats=5):
    """Best time of a compiled call."""
    compiled = jax.jit(function)
    jax.block_until_ready(compiled(*arguments))
    best = float('inf')
    for _ in range(repeats):
        started = time.perf_counter()
        jax.block_until_ready(compiled(*arguments))
        best = min(best, time.perf_counter() - started)
    return best


def main(_) -> None:
    print(f'{jax.default_backend()}, JAX {jax.__version__}; milliseconds of forward and backward together')
    print('rows  side  channels    plain   ours')
    for rows, side, channels in SHAPES:
        key = jax.random.key(0)
        x = jax.random.normal(key, (rows, side, side, channels))
        kernel = jax.random.normal(key, (3, 3, channels, channels))
        times = []
        for function in (jax.lax.conv_general_dilated, convolve):

            def loss(x, kernel, f=function):
                return jnp.sum(f(x, kernel, (1, 1), PADDING, **OPTIONS) ** 2)

            times.append(seconds(jax.grad(loss, argnums=(0, 1)), x, kernel) * 1e3)
        print(f'{rows:4d}  {side:4d}  {channels:8d}  {times[0]:7.1f} {times[1]:6.1f}')


if __name__ == '__main__':
    app.run(main)
