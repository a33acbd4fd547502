"""Peak memory of one Stable Diffusion 1.5 training step at 512 px, as the compiler counts it; nothing is run.

  python experiments/speed/memory.py                       # for the devices at hand
  python experiments/speed/memory.py --topology=v5e:2x2    # for one chip of a TPU that is not there (needs libtpu)
  python experiments/speed/memory.py --tiny                # does the script work?

One instance and one class image a step, as `train` builds it; the state is donated, so that new weights and moments
take the place of the old ones. Rows in --workdir are not compiled again. README.md has the numbers.
"""

import contextlib
import itertools
import os
import re
import time
from pathlib import Path
from unittest import mock

from absl import flags

from dreambooth_jax import program
from dreambooth_jax.config import BaseConfig, ConfigError, DreamBoothConfig, LoraConfig, OptimizerConfig, ParallelConfig
from dreambooth_jax.evaluation import experiment

HERE = Path(__file__).parent
GB = 1e9
SETTINGS = {
    'f32 moments': {},
    'bf16 moments': {'optimizer': OptimizerConfig(state_dtype='bfloat16')},
    'int8 moments': {'optimizer': OptimizerConfig(state_dtype='int8')},
    'LoRA rank 16': {'lora': LoraConfig(rank=16)},
}
AIMS = {
    ('f32 moments', True): 12,
    ('bf16 moments', True): 12,
    ('int8 moments', True): 12,
    ('LoRA rank 16', False): 5,
    ('LoRA rank 16', True): 5,
}  # GB, with the text encoder or not
# XLA's CPU backend undoes rematerialisation by merging what is computed twice, unless this pass is left out.
CPU_OPTIONS = {'xla_disable_hlo_passes': 'cse_barrier_expander'}
# What TPU's compiler says of a program that does not fit.
TOO_LARGE = re.compile(r'Used ([\d.]+)([GM]) of ([\d.]+)G hbm')

_SETTINGS = flags.DEFINE_multi_enum('settings', list(SETTINGS), list(SETTINGS), 'What trains, and how. Several times.')
_TEXT = flags.DEFINE_multi_enum('text_encoder', ['no', 'yes'], ['no', 'yes'], 'Whether it trains along.')
_DTYPE = flags.DEFINE_multi_enum('dtype', ['bfloat16', 'float32'], ['bfloat16', 'float32'], 'Of the compute.')
_REMAT = flags.DEFINE_multi_enum('remat', ['no', 'yes'], ['yes', 'no'], 'Whether activations are computed again.')
_STEPS = flags.DEFINE_integer(
    'steps_per_dispatch', None, "Of one device call; default: train's, 1 on CPU and else 10.", lower_bound=1
)
_TOPOLOGY = flags.DEFINE_string('topology', None, 'TPU to compile for ahead of time, such as v5e:2x2 or v6e:2x2.')
_TINY = flags.DEFINE_bool('tiny', False, 'Networks of a few thousand weights, to try the script out.')
_WORKDIR = program.DEFINE_path('workdir', 'runs/experiments/memory', 'Keeps measured rows.')
_OUTPUT = program.DEFINE_path('output', None, 'Gets memory.json; default: the folder of this file; with --tiny none.')


@contextlib.contextmanager
def target():
    """(device, name of the compiler's target) that is compiled for; what is traced inside is meant for it."""
    import jax

    if _TOPOLOGY.value is None:
        yield jax.local_devices()[0], f'{jax.default_backend()} ({jax.devices()[0].device_kind})'
        return
    os.environ.setdefault('TPU_SKIP_MDS_QUERY', '1')  # no TPU here: do not look for one's address
    from jax.experimental import topologies

    try:
        found = topologies.get_topology_desc(_TOPOLOGY.value, platform='tpu')
    except Exception as error:
        reason = str(error).splitlines()[0]
        raise ConfigError(f'--topology={_TOPOLOGY.value} cannot be compiled for ({reason}); install libtpu') from None
    # The package chooses its attention by the backend that it finds.
    with mock.patch.object(jax, 'default_backend', lambda: 'tpu'):
        yield found.devices[0], f'{_TOPOLOGY.value} ({found.devices[0].device_kind}), ahead of time'


def measure(device, settings: str, text: bool, dtype: str, remat: bool) -> dict:
    """Bytes of one row's compiled step: the compiler's counts, and what of them is known without it."""
    import jax
    import stable_diffusion
    from jax.sharding import SingleDeviceSharding

    from dreambooth_jax.training.placement import make_placement

    config = DreamBoothConfig(
        model='stable-diffusion-v1-5',
        base=BaseConfig(train_text_encoder=text),
        parallel=ParallelConfig(remat=remat, dtype=dtype, steps_per_dispatch=_STEPS.value),
        **SETTINGS[settings],
    )
    run = stable_diffusion.make_run(config, _TINY.value)
    state, frozen, steps = run.state_shapes, run.frozen_at(run.frozen, 0), run.budget.steps_per_dispatch
    shapes = state, frozen, jax.eval_shape(lambda: jax.random.key(run.seed)), run.batch
    placed = jax.tree.map(
        lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=SingleDeviceSharding(device)), shapes
    )
    step = jax.jit(run.make_step(None, steps), donate_argnums=0)
    lowered = make_placement('pmap', devices=[device]).call(step.lower, *placed)
    started = time.perf_counter()
    found = {
        'trained_parameters': sum(x.size for x in jax.tree.leaves(state.params)),
        'trained_weights': stable_diffusion.size_of(state.params),
        'frozen_weights': stable_diffusion.size_of(frozen['weights']),
        'optimizer_state': stable_diffusion.size_of(state.opt_state),
        'images_and_prompts': stable_diffusion.size_of({**frozen, 'weights': {}}),
        'steps_per_dispatch': steps,
    }
    try:
        compiled = lowered.compile(CPU_OPTIONS if jax.default_backend() == 'cpu' else None)
    except jax.errors.JaxRuntimeError as error:
        used = TOO_LARGE.search(str(error))
        if not used:
            raise
        return found | {
            'peak': int(float(used[1]) * {'G': 2**30, 'M': 2**20}[used[2]]),
            'refused_above': int(float(used[3]) * 2**30),
        }
    counts = compiled.memory_analysis()
    names = ('argument', 'output', 'temp', 'alias')
    found |= {name: getattr(counts, f'{name}_size_in_bytes') for name in names}
    found['peak'] = found['argument'] + found['output'] + found['temp'] - found['alias']
    return found | {'compile_seconds': round(time.perf_counter() - started, 1)}


def row_of(row: dict) -> list[str]:
    """A row of the table; GB are 10^9 bytes."""
    sizes = [row['trained_weights'] + row['frozen_weights'], row['optimizer_state'], row.get('temp')]
    peak = f'{row["peak"] / GB:.2f}' + (' (refused)' if 'refused_above' in row else '')
    aim = AIMS.get((row['settings'], row['text_encoder'] == 'yes'))
    met = '-' if aim is None else f'{"yes" if row["peak"] <= aim * GB else "**no**"} (<= {aim})'
    trained = 'UNet + text encoder' if row['text_encoder'] == 'yes' else 'UNet'
    return [
        row['settings'],
        trained,
        row['dtype'],
        row['remat'],
        *('-' if size is None else f'{size / GB:.2f}' for size in sizes),
        peak,
        met,
    ]


HEADINGS = ['settings', 'trained', 'compute', 'remat', 'weights', 'moments', 'temporary', 'peak GB', 'aim met']


def main(argv) -> None:
    del argv
    import jax

    with target() as (device, name):
        rows = []
        for choice in itertools.product(_DTYPE.value, _REMAT.value, _TEXT.value, _SETTINGS.value):
            dtype, remat, text, settings = choice
            named = {'settings': settings, 'text_encoder': text, 'dtype': dtype, 'remat': remat}
            marks = {'target': name, 'jax': jax.__version__, 'tiny': _TINY.value, 'steps': _STEPS.value, **named}
            part = re.sub(r'\W+', '_', '-'.join([name, 'tiny' if _TINY.value else '', str(_STEPS.value), *choice]))
            print(f'compiling {", ".join(f"{key} {value}" for key, value in named.items())}', flush=True)
            found, _ = experiment.kept(
                Path(_WORKDIR.value),
                part,
                marks,
                lambda settings=settings, text=text, dtype=dtype, remat=remat: (
                    measure(device, settings, text == 'yes', dtype, remat == 'yes'),
                    {},
                ),
            )
            rows.append({**named, **found})
            print('  '.join(row_of(rows[-1])), flush=True)
    print(experiment.table(HEADINGS, [row_of(row) for row in rows]))
    if _OUTPUT.value or not _TINY.value:
        path = Path(_OUTPUT.value or HERE) / 'memory.json'
        experiment.write_json(path, {'target': name, 'jax': jax.__version__, 'rows': rows})


if __name__ == '__main__':
    program.run(main)
