"""How long a stage's training step takes to trace, to compile and to run, under options of the compiler.

  python experiments/speed/compilation.py --config=configs/dog.py
  python experiments/speed/compilation.py --config=configs/dog.py --stage=super_resolution --options=none

The step is the one that `train` compiles, on random numbers instead of images; compiled programs that are kept
are not used. `--options` takes XLA's options of one program as name=value,name=value. README.md has the numbers.
"""

import time
from pathlib import Path

from absl import flags

from dreambooth_jax import program
from dreambooth_jax.config import DreamBoothConfig, resolve

NONE = 'none'
OPTIONS = (
    NONE,
    'xla_backend_optimization_level=0',
    'xla_backend_optimization_level=1',
    'xla_llvm_disable_expensive_passes=True',
    'xla_cpu_parallel_codegen_split_count=2',
)
_CONFIG = program.DEFINE_config('config', 'Settings file of a run.')
_STAGE = flags.DEFINE_enum('stage', 'base', ['base', 'super_resolution'], 'Whose step.')
_OPTIONS = flags.DEFINE_multi_string('options', OPTIONS, 'Options of the compiler; none: as they are. Several times.')
_REPEATS = flags.DEFINE_integer('repeats', 8, 'Steps that are timed, after one that is not.', lower_bound=1)


def options_of(text: str) -> dict:
    """'a=1,b=True' -> {'a': 1, 'b': True}; 'none' -> {}."""
    if text == NONE:
        return {}
    pairs = (part.partition('=') for part in text.split(','))
    return {name: {'True': True, 'False': False}.get(value, value) for name, _, value in pairs}


def lowered_step(config: DreamBoothConfig, stage: str):
    """The step of the stage before it is compiled."""
    from dreambooth_jax.finetune import examples, pinned, planned_stage
    from dreambooth_jax.training.placement import make_placement

    config, cascade = pinned.read_pinned(config, Path('none'))
    instance = examples.read_instance(config, cascade, {})
    placement = make_placement(config.parallel.mode, fsdp_min_bytes=config.parallel.fsdp_min_bytes)
    planned = planned_stage.plan_stage(config, stage, cascade, instance[stage], placement)
    return planned.run.lower(planned.run.budget.steps_per_dispatch)


def arguments_for(compiled):
    """Arrays that the step takes: small random numbers, indices of zero."""
    import jax
    import jax.numpy as jnp
    import numpy as np

    rng = np.random.default_rng(0)

    def value(shape):
        if jnp.issubdtype(shape.dtype, jax.dtypes.prng_key):
            return jax.random.key(0)
        if jnp.issubdtype(shape.dtype, jnp.floating):
            return jnp.asarray(0.02 * rng.standard_normal(shape.shape), shape.dtype)
        return jnp.zeros(shape.shape, shape.dtype)

    return jax.device_put(jax.tree.map(value, compiled.args_info[0]), compiled.input_shardings[0])


def main(argv) -> None:
    del argv
    import jax
    import numpy as np

    jax.config.update('jax_enable_compilation_cache', False)
    config = resolve(DreamBoothConfig, _CONFIG.value)
    begun = time.perf_counter()
    lowered = lowered_step(config, _STAGE.value)
    print(f'{jax.device_count()} x {jax.devices()[0].device_kind}, JAX {jax.__version__}')
    print(f'traced, with all that is read: {time.perf_counter() - begun:.1f} s')
    print('| options | compiling, s | CPU time of it, s | one step, ms: least, median |')
    print('| --- | ---: | ---: | ---: |')
    for text in _OPTIONS.value:
        begun, used = time.perf_counter(), time.process_time()
        compiled = lowered.compile(options_of(text) or None)
        took, used = time.perf_counter() - begun, time.process_time() - used
        state, *others = arguments_for(compiled)
        times = []
        for _ in range(1 + _REPEATS.value):
            begun = time.perf_counter()
            state, _metrics = jax.block_until_ready(compiled(state, *others))
            times.append(time.perf_counter() - begun)
        least, median = 1000 * min(times[1:]), 1000 * np.median(times[1:])
        print(f'| {text} | {took:.1f} | {used:.1f} | {least:.0f}, {median:.0f} |', flush=True)


if __name__ == '__main__':
    program.run(main, required=['config'])
