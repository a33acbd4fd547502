"""What the TPU compiler says of large attention in parts and by the splash kernel (models/splash.py); nothing is run.

  python experiments/speed/splash.py --topology=v5e:2x2     # for one chip of a TPU that is not there (needs libtpu)
  ... --largest=512                                         # with other blocks than the package's

Of each layer: temporaries in memory, what `cost_analysis` says, and the cycles of the compiled program. `cost_analysis`
counts the body of a loop once and of a kernel only arguments and results, so it says little of either. Cycles are the
compiler's own estimates of its operations, those of loop bodies as often as there are parts; of a kernel, which it does
not estimate, the instructions that it scheduled (one a cycle), as often as its loop turns and as if every branch were
taken. Waiting for memory is in the estimates, but not in the kernel's: it loads a megabyte a turn at most, in some 4
microseconds.
"""

import contextlib
import os
import re
import tempfile
from pathlib import Path
from unittest import mock

import memory
from absl import flags
from cycles import kernel_cycles, program_cycles

from dreambooth_jax import program
from dreambooth_jax.evaluation import experiment

# (B, tokens, heads, width), whether the last tokens are hidden, and whether there is a gradient
LAYERS = {
    'FLUX.2 Klein, 1024 px': ((2, 4096 + 512, 24, 128), False, True),
    'Z-Image, 1024 px': ((2, 4096 + 512, 30, 128), True, True),
    'Stable Diffusion 1.5, 512 px': ((2, 4096, 8, 40), False, True),
    'SDXL, 1024 px': ((2, 4096, 10, 64), False, True),
    'decoder, 512 px': ((1, 4096, 1, 512), False, False),
    'decoder, 1024 px': ((1, 16384, 1, 512), False, False),
}
CLOCKS = {'TPU v5 lite': 1.5e9}  # 197 TFLOP/s of four units of 128 x 128 multipliers
HEADINGS = ['layer', 'pass', 'attention', 'temporary GB', 'bytes, GB', 'GFLOP', 'optimal ms', 'M cycles', 'ms']

_LARGEST = flags.DEFINE_integer('largest', None, "Most tokens in a block; default: the package's.")
_ONLY = flags.DEFINE_string('only', '', 'Regular expression of the layers that are compiled.')


@contextlib.contextmanager
def attention_by(how: str):
    """Takes attention in parts inside, or the kernel with the blocks that were asked for."""
    from dreambooth_jax.models import attention, splash

    largest = _LARGEST.value or splash.LARGEST
    with contextlib.ExitStack() as stack:
        if how == 'parts':
            stack.enter_context(mock.patch.object(attention, 'kernel', lambda *_: None))
        stack.enter_context(mock.patch.object(splash, 'LARGEST', largest))
        stack.enter_context(mock.patch.object(splash, 'SMALLEST', min(largest, splash.SMALLEST)))
        yield


def measure(device, dumped: Path, how: str, layer: str, with_gradient: bool) -> list[str]:
    """The last cells of a row: what the compiler says of one program."""
    import jax
    import jax.numpy as jnp
    import numpy as np
    from jax.sharding import Mesh, NamedSharding, PartitionSpec

    from dreambooth_jax.models import attention

    shape, is_padded, _ = LAYERS[layer]
    mesh = Mesh(np.array([device]), ('data',))
    here = NamedSharding(mesh, PartitionSpec())
    part = jax.ShapeDtypeStruct(shape, jnp.bfloat16, sharding=here)
    lengths = jax.ShapeDtypeStruct(shape[:1], jnp.int32, sharding=here) if is_padded else None

    def attend(lengths, *parts):
        return attention.attend(*parts, scale=shape[-1] ** -0.5, lengths=lengths)

    def run(lengths, *parts):
        with jax.sharding.use_abstract_mesh(mesh.abstract_mesh):
            if not with_gradient:
                return attend(lengths, *parts)
            output, back = jax.vjp(lambda *parts: attend(lengths, *parts), *parts)
            return output, back(jnp.cos(output))

    for file in dumped.iterdir():
        file.unlink()
    with attention_by(how):
        compiled = jax.jit(run).lower(lengths, part, part, part).compile()
    # The compiler writes a file for every operation; kernels are those of splash attention.
    kernels = [file.read_text() for file in dumped.glob('*splash*-final_bundles.txt')]
    text, parts = compiled.as_text(), attention._parts(shape[1], shape[1])
    if len(kernels) != text.count('custom_call_target="tpu_custom_call"'):
        raise ValueError(f'the compiler wrote of {len(kernels)} kernels')
    cycles = program_cycles(text, parts) + sum(kernel_cycles(bundles) for bundles in kernels)
    costs = compiled.cost_analysis()
    optimal = costs.get('optimal_seconds', -1)
    return [
        f'{compiled.memory_analysis().temp_size_in_bytes / memory.GB:.2f}',
        f'{costs["bytes accessed"] / memory.GB:.2f}',
        f'{costs["flops"] / 1e9:.0f}',
        f'{1e3 * optimal:.2f}' if optimal > 0 else '-',  # it is negative where it does not know a part
        f'{cycles / 1e6:.1f}',
        f'{1e3 * cycles / CLOCKS[kind]:.1f}' if (kind := device.device_kind) in CLOCKS else '-',
    ]


def main(argv) -> None:
    del argv
    import jax

    rows = []
    with tempfile.TemporaryDirectory() as folder:
        dump = f'--xla_jf_dump_to={folder} --xla_jf_dump_llo_text=true --xla_jf_dump_llo_pass_label_regex=final_bundles'
        os.environ['LIBTPU_INIT_ARGS'] = f'{os.environ.get("LIBTPU_INIT_ARGS", "")} {dump}'
        with memory.target() as (device, name):
            for layer, (shape, _, trains) in LAYERS.items():
                if not re.search(_ONLY.value, layer):
                    continue
                for with_gradient in (False, True)[: 1 + trains]:
                    for how in ('parts', 'splash'):
                        told = 'forward and backward' if with_gradient else 'forward'
                        found = measure(device, Path(folder), how, layer, with_gradient)
                        rows.append([f'{layer}: {" x ".join(map(str, shape))}', told, how, *found])
                        print('  '.join(rows[-1]), flush=True)
    print(f'{name}, JAX {jax.__version__}')
    print(experiment.table(HEADINGS, rows))


if __name__ == '__main__':
    program.run(main, required=['topology'])
