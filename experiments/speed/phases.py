"""What each device holds in every phase of a run of a published model, by shapes alone; nothing is run.

  python experiments/speed/phases.py --config=configs/dog.py:sdxl                   # weights, moments and data
  ... --topology=v5e:2x4 --devices=1                         # and temporaries, for chips that are not here
  ... --topology=rtx4090                                     # or for a card (needs JAX's plugin for CUDA)
  ... --topology=v5e:2x4 --only='step' --depth=1 --depth=2   # extrapolated from networks with fewer layers
  ... --topology=v6e:1x1                                     # one chip
  ... --tiny                                                 # does the script work?

It is a run on four photos, with the networks of published.py. Every setting can be changed, as in `train`. The rows are
those of `train --dry_run`, whose code counts them. Counts of compiled programs are kept in --workdir, by the program's
text, the kind of device and --buffers_only, so that a program is compiled once.

With --buffers_only the TPU compiler is stopped once it has assigned buffers, a small part of its work (compiled.py).

With --depth, the denoisers have at most so many equal layers behind each other. Programs are compiled at every depth
given; the temporaries of the whole network lie on the line through the two largest, and with a third depth the line's
error there is told.
"""

import dataclasses
import importlib.metadata
import os
import re
from pathlib import Path

from absl import flags

from dreambooth_jax import program
from dreambooth_jax.config import ConfigError, DreamBoothConfig, resolve
from dreambooth_jax.evaluation import experiment
from dreambooth_jax.finetune import cards

GB = 1e9
_CONFIG = program.DEFINE_config('config', 'Settings file and preset, such as configs/dog.py:sdxl.')
_TOPOLOGY = flags.DEFINE_string('topology', None, 'TPU or cards to compile for ahead of time; None: nothing is.')
_DEVICES = flags.DEFINE_integer(
    'devices', None, 'How many of its devices, or of those at hand; default: all of a TPU, or one.', lower_bound=1
)
_ONLY = flags.DEFINE_string('only', '', 'Regular expression of the programs that are compiled, such as "step base".')
_DEPTH = flags.DEFINE_multi_integer('depth', [], 'Most equal layers behind each other. Several times.', lower_bound=1)
_BUFFERS = flags.DEFINE_bool('buffers_only', False, 'Stop the compiler once it has assigned buffers; with --topology.')
_TINY = flags.DEFINE_bool('tiny', False, 'Networks of a few thousand weights, to try the script out.')
_WORKDIR = program.DEFINE_path('workdir', 'runs/experiments/phases', "Keeps the compiler's counts.")

HEADINGS = ('phase', 'program', 'weights', 'optimizer', 'data', 'temporaries', 'together', 'temporaries counted')


def stages_of(config: DreamBoothConfig) -> dict:
    """The published stages that the settings name."""
    import published

    names = {'base': config.model, 'super_resolution': config.super_resolution_model}
    names = {stage: name for stage, name in names.items() if name not in (None, 'none')}
    for setting, name in names.items():
        if name not in published.PUBLISHED:
            raise ConfigError(
                f'{name}, the {setting} stage, is no model of published.py; it must be one of '
                f'{tuple(published.PUBLISHED)}'
            )
    found = {stage: published.PUBLISHED[name] for stage, name in names.items()}
    return {stage: made.tiny() for stage, made in found.items()} if _TINY.value else found


def plan(config: DreamBoothConfig, made: dict, where, count=None) -> tuple[list, int]:
    """What devices hold in every program (memory_plan.uses), and the weights on the host during export, in bytes.

    Args:
      made: stage -> published.Published.
      count: as in memory_plan.uses.
    """
    import published

    from dreambooth_jax.finetune import memory_plan, planned_stage
    from dreambooth_jax.models.functional import compute_dtype
    from dreambooth_jax.training.placement import make_placement

    dtype = compute_dtype(config.parallel.dtype)

    def cascade_of(cast):
        options = {'cast': cast, 'frozen_dtype': config.lora.frozen_dtype}
        pipelines = [published.pipeline(stage, dtype, **options) for stage in made.values()]
        return published.ShapesCascade(*pipelines, size=config.data.resolution)

    cascade = cascade_of(None)
    # Adapters keep frozen kernels in the compute dtype, and to cast a stand-in would give it memory.
    trained = cascade if config.lora.rank is None else cascade_of(dtype)
    sides = {'base': cascade.base_size}
    if 'super_resolution' in made:
        sides['super_resolution'] = config.super_resolution.crop or cascade.super_resolution_size
    parallel = config.parallel
    placement = make_placement(parallel.mode, fsdp_min_bytes=parallel.fsdp_min_bytes, devices=where.devices)
    planned = {
        name: planned_stage.plan_stage(config, name, trained, published.images(4, side), placement)
        for name, side in sides.items()
        if getattr(config, name).steps
    }
    uses = memory_plan.uses(config, cascade, planned, placement, where, count)
    return uses, memory_plan.host_bytes(cascade, planned)


def row_of(use, told: str) -> list[str]:
    """A row of the table; GB are 10^9 bytes."""
    sizes = (use.weights, use.state, use.data, use.temporaries, use.total)
    cells = ['-' if size is None else f'{size / GB:.2f}' for size in sizes]
    if use.limit is not None:
        told = f'**refused**, {told}; a device has {use.limit / GB:.2f}'
    return [use.phase, use.program, *cells, told if use.complete else 'gradients alone' if use.temporaries else 'no']


def compiler_of(topology: str | None) -> str:
    """What compiles for a topology, and its version."""
    if topology is None:
        return ''
    name = topology.partition(':')[0]
    if name not in cards.CARDS:
        return f'libtpu {importlib.metadata.version("libtpu")}'
    if _BUFFERS.value:
        raise ConfigError(f'--buffers_only stops the compiler of a TPU; {name} is a card, so leave it out')
    found = importlib.metadata.distributions()
    plugins = [f'{one.name} {one.version}' for one in found if re.fullmatch(r'jax-cuda\d+-pjrt', one.name)]
    return ' '.join(sorted(set(plugins)))


def main(argv) -> None:
    del argv
    import compiled
    import jax

    from dreambooth_jax.finetune import plan as plans
    from dreambooth_jax.finetune import target

    if _BUFFERS.value and _TOPOLOGY.value and compiled.DUMP not in os.environ:
        compiled.one_at_a_time()
    compiler = compiler_of(_TOPOLOGY.value)
    settings = _CONFIG.value.to_dict()
    if _TOPOLOGY.value is None:
        settings['parallel']['dtype'] = 'bfloat16'  # as on an accelerator, whatever is here
    settings['data']['instance_dir'] = 'photos'  # it is not looked into
    config = resolve(DreamBoothConfig, settings)
    made = stages_of(config)
    if _DEPTH.value and not (_TOPOLOGY.value and len(set(_DEPTH.value)) > 1):
        raise ConfigError('--depth is for extrapolating what is compiled: give --topology and at least two depths')
    with target.planned_for(_TOPOLOGY.value) as where:
        devices = where.devices or jax.devices()[: _DEVICES.value or 1]
        devices = devices[: _DEVICES.value]
        where = dataclasses.replace(where, devices=devices, name=f'{len(devices)} of {where.name}')
        how = {'device_kind': devices[0].device_kind, 'buffers_only': _BUFFERS.value, 'options': where.compiler_options}
        counted = compiled.Counted(Path(_WORKDIR.value), _ONLY.value, compiler, **how)
        if _DEPTH.value:
            at = {}
            for depth in sorted(set(_DEPTH.value)):
                print(f'depth {depth}', flush=True)
                at[depth], _ = plan(
                    config, {name: stage.shallow(depth) for name, stage in made.items()}, where, counted
                )
            uses, host = plan(config, made, dataclasses.replace(where, compiler=None))
            rows = compiled.extrapolated(uses, at, {name: stage.depth for name, stage in made.items()})
        else:
            uses, host = plan(config, made, where, counted)
            rows = [(use, counted.told_of(use)) for use in uses]
        print(f'for {where.name}, JAX {jax.__version__} {compiler}:')
        print('\n'.join(plans.memory_lines([use for use, _ in rows], where, host)))
        print(experiment.table(HEADINGS, [row_of(*row) for row in rows]))


if __name__ == '__main__':
    program.run(main, required=['config'])
