"""Memory of one attention layer with its gradient, at once and in parts (models/attention.py), by the compiler's count.

  python experiments/speed/attention.py                       # for the devices at hand
  python experiments/speed/attention.py --topology=v5e:2x2    # for one chip of a TPU that is not there (needs libtpu)

The layer is the largest of Stable Diffusion 1.5 at 512 px, for two images: 4096 queries and keys, 8 heads of 40,
bf16.
"""

import time
from unittest import mock

import memory

from dreambooth_jax import program
from dreambooth_jax.evaluation import experiment

SHAPE = (2, 4096, 8, 40)


def main(argv) -> None:
    del argv
    import jax
    import jax.numpy as jnp
    from jax.sharding import SingleDeviceSharding

    from dreambooth_jax.models import attention
    from dreambooth_jax.system import cuda

    def with_gradient(*parts):
        output, back = jax.vjp(lambda *parts: attention.attend(*parts, scale=SHAPE[-1] ** -0.5), *parts)
        return output, back(jnp.cos(output))

    rows = []
    with memory.target() as (device, name):
        part = jax.ShapeDtypeStruct(SHAPE, jnp.bfloat16, sharding=SingleDeviceSharding(device))
        for how, large in (('at once', 2**40), ('in parts', attention.LARGE)):
            no_flash = mock.patch.object(cuda, 'capability', lambda: None)
            with no_flash, mock.patch.object(attention, 'LARGE', large):
                # A function of its own, or JAX would take what it has traced before.
                lowered = jax.jit(lambda *parts: with_gradient(*parts)).lower(part, part, part)
            started = time.perf_counter()
            temporary = lowered.compile().memory_analysis().temp_size_in_bytes
            rows.append([how, f'{temporary / memory.GB:.2f}', f'{time.perf_counter() - started:.0f}'])
    print(f'{name}, JAX {jax.__version__}')
    print(experiment.table(['attention', 'temporary GB', 'compile s'], rows))


if __name__ == '__main__':
    program.run(main)
