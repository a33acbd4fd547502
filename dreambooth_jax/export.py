"""Writes what a run has trained as a pipeline folder, which PyTorch's diffusers opens too.

  python -m dreambooth_jax.export --workdir=runs/dog --output=exported

takes the newest checkpoint of each stage (the averaged weights where there are any) and the rest from the model that
the run began with, writes both stages, reads them back and compares. A run without checkpoints gives its model/.
"""

import json
from pathlib import Path

from absl import flags

from dreambooth_jax import program
from dreambooth_jax.config import DreamBoothConfig, SettingsError, resolve

FORMATS = ('diffusers',)

_WORKDIR = flags.DEFINE_string('workdir', None, "The run's folder.")
_FORMAT = flags.DEFINE_string('format', FORMATS[0], f'One of {FORMATS}.')
_OUTPUT = flags.DEFINE_string('output', None, 'New pipeline folder; one that is there is replaced.')
_STEP = flags.DEFINE_integer(
    'step', None, 'Checkpoint to take; a stage that has none of that step gives its newest.', lower_bound=0
)
_DTYPE = flags.DEFINE_enum('dtype', 'float32', ['float32', 'float16', 'bfloat16'], 'Of the stored weights.')


def read_checkpoint(folder: Path, step: int | None):
    """The trained weights of one stage.

    Args:
      folder: <workdir>/<stage>/checkpoints; need not exist.
      step: which one; None: the newest. If the stage has other steps only, the newest.
    Returns: (step, {component: {dotted path: f32 array}}), averaged where the run averages; None without checkpoints.
    Raises: CheckpointError if it cannot be read.
    """
    import jax
    import numpy as np
    import orbax.checkpoint as ocp

    from dreambooth_jax.training.checkpoint import CheckpointError

    if not folder.is_dir():
        return None
    try:
        options = ocp.CheckpointManagerOptions(read_only=True)
        with ocp.CheckpointManager(
            folder.absolute(), options=options, item_handlers=ocp.PyTreeCheckpointHandler()
        ) as manager:
            steps = manager.all_steps()
            if not steps:
                return None
            step = step if step in steps else max(steps)
            tree = manager.item_metadata(step).tree
            part = 'ema' if tree.get('ema') else 'params'
            shapes = {part: jax.tree.map(lambda array: jax.ShapeDtypeStruct(array.shape, array.dtype), tree[part])}
            to_host = jax.tree.map(lambda _: ocp.RestoreArgs(restore_type=np.ndarray), shapes)
            wanted = ocp.args.PyTreeRestore(item=shapes, restore_args=to_host, partial_restore=True)
            return step, manager.restore(step, args=wanted)[part]
    except Exception as error:  # Orbax raises many kinds, from OSError to its own
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise CheckpointError(f'checkpoint {step or ""} in {folder} could not be read: {reason}') from error


def trained(workdir: Path, step: int | None):
    """The run's cascade on the host, and a line on where each stage's weights come from.

    Raises: SettingsError if it is no run's folder; CheckpointError if there is nothing to export, no stage has `step`,
      or a checkpoint does not fit the model; WeightsError if that model cannot be read.
    """
    from dreambooth_jax.generation.cascade import STAGES, Cascade
    from dreambooth_jax.training.checkpoint import CheckpointError

    path = workdir / 'config.json'
    if not path.is_file():
        raise SettingsError(f"{workdir} is no run's folder: {path} is missing; give the --workdir of train")
    try:
        config = resolve(DreamBoothConfig, json.loads(path.read_text('utf-8')))
    except ValueError as error:
        raise SettingsError(f'{path} is no readable JSON ({error})') from None
    found = {stage: read_checkpoint(workdir / stage / 'checkpoints', step) for stage in STAGES}
    found = {stage: checkpoint for stage, checkpoint in found.items() if checkpoint}
    if step is not None and step not in [at for at, _ in found.values()]:
        has = '; '.join(f'the newest of {stage} is {at}' for stage, (at, _) in found.items()) or 'it has none'
        raise CheckpointError(f'{workdir} has no checkpoint {step}: {has}; leave --step out to take the newest')
    if not found:
        if not (workdir / 'model' / 'model_index.json').is_file():
            raise CheckpointError(f'{workdir} holds neither checkpoints nor a model/; start train with it first')
        return Cascade.load(workdir / 'model'), [f'both stages: {workdir / "model"}']
    cascade = Cascade.load(config.model, super_resolution_model=config.super_resolution_model)
    given, lines = {}, []
    for stage in STAGES:
        pipeline = getattr(cascade, stage)
        if pipeline is None or stage not in found:
            lines += [f'{stage}: as in {config.model}'] if pipeline else []
            continue
        at, components = found[stage]
        for component, params in components.items():
            ours = {name: value.shape for name, value in getattr(pipeline, component).params.items()}
            if {name: value.shape for name, value in params.items()} != ours:
                raise CheckpointError(
                    f'checkpoint {at} in {workdir / stage} does not fit the {component} of the model {config.model!r}; '
                    f'put that model back as it was when the run began'
                )
            given[component if stage == 'base' else f'super_resolution_{component}'] = params
        lines.append(f'{stage}: checkpoint {at}')
    return cascade.with_params(**given), lines


def check_written(cascade, output: Path, dtype: str) -> int:
    """Reads `output` back and compares it with `cascade`.

    Returns: the number of tensors.
    Raises: WeightsError if one is not what the weights are in `dtype`.
    """
    import jax.numpy as jnp
    import numpy as np

    from dreambooth_jax.generation.cascade import STAGES, Cascade
    from dreambooth_jax.weights.errors import WeightsError
    from dreambooth_jax.weights.pipeline import COMPONENTS

    count, back = 0, Cascade.load(output)
    for stage in STAGES:
        for component in COMPONENTS:
            network, read = (getattr(getattr(one, stage), component, None) for one in (cascade, back))
            for name, value in network.params.items() if network else ():
                stored = np.asarray(value).astype(jnp.dtype(dtype)).astype(np.float32)
                if read is None or not np.array_equal(stored, read.params[name]):
                    raise WeightsError(f'{output} does not read back as written: {stage} {component} {name} differs.')
                count += 1
    return count


def main(argv) -> None:
    del argv
    if _FORMAT.value not in FORMATS:
        raise SettingsError(f'--format={_FORMAT.value} cannot be written; the format must be one of {FORMATS}')
    from dreambooth_jax.weights import folders

    output = Path(_OUTPUT.value)
    cascade, lines = trained(Path(_WORKDIR.value), _STEP.value)
    folders.write_pipeline(cascade.base, output, super_resolution=cascade.super_resolution, dtype=_DTYPE.value)
    count = check_written(cascade, output, _DTYPE.value)
    print('\n'.join([*lines, f'{output} holds {count} tensors, read back and equal']))


if __name__ == '__main__':
    program.run(main, required=['workdir', 'output'])
