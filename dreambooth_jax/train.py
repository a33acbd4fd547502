"""Runs all of DreamBooth: class images, base stage, super-resolution stage, samples, checkpoints, export.

  python -m dreambooth_jax.train --config=configs/dog.py --workdir=runs/dog

Started again with the same --workdir, the program resumes. Any setting can be changed on the command line:
--config.base.steps=400 --config.data.instance_dir=my_photos. At the end the trained pipeline is written to
<workdir>/model, which PyTorch's diffusers opens too. Files in <workdir>/control ask it to pause, sample, save or stop.
"""

from pathlib import Path

from absl import flags

from dreambooth_jax import program
from dreambooth_jax.config import ConfigError, DreamBoothConfig, resolve
from dreambooth_jax.system import cpu_devices
from dreambooth_jax.training import hosts

_CONFIG = program.DEFINE_config('config', 'Settings file, such as configs/dog.py.')
_WORKDIR = program.DEFINE_path('workdir', None, 'Folder of the run: class images, checkpoints, samples, model.')
_DRY_RUN = flags.DEFINE_bool('dry_run', False, 'Print photos, settings and plan (steps, memory, time); write nothing.')
_PRICE = program.DEFINE_price('price_per_hour', 'With --dry_run: what an hour of all devices costs, such as 1.20 USD.')
_AS_JSON = flags.DEFINE_bool('as_json', False, 'With --dry_run: print the plan for programs, as one line of JSON.')
_PROFILE = flags.DEFINE_integer(
    'profile', None, 'Trace so many steps of each stage, after as many others, into WORKDIR/profile.', lower_bound=1
)
_EXTEND = flags.DEFINE_integer(
    'extend', None, 'So many more steps for a finished base stage; a trained second stage is kept.', lower_bound=1
)
_COMPILE = flags.DEFINE_bool(
    'compile',
    False,
    "With --dry_run: compile the run's programs without running them, so that the plan also counts activations and "
    'other temporaries as the compiler does. Seconds for small models, minutes to an hour for large ones.',
)
_TOPOLOGY = flags.DEFINE_string(
    'topology',
    None,
    'With --dry_run: plan for all chips of this TPU, which need not be here, such as v5e:2x4, or v6e:1x1 for one chip. '
    'Implies --compile, with the TPU compiler of libtpu (pip install libtpu).',
)
_DISTRIBUTED = flags.DEFINE_bool('distributed', False, 'Join the other hosts of this TPU slice or cluster first.')
_COORDINATOR = flags.DEFINE_string('coordinator_address', None, 'host:port of process 0, if no cluster tells it.')
_NUM_PROCESSES = flags.DEFINE_integer('num_processes', None, 'How many processes take part.', lower_bound=1)
_PROCESS_ID = flags.DEFINE_integer('process_id', None, 'The number of this one, from 0.', lower_bound=0)


def train(config: DreamBoothConfig, workdir: Path, planned_for=None) -> None:
    """Runs all stages of `config` in `workdir`, or continues the run there.

    Args:
      planned_for: the devices of a plan (finetune.target.Target), which is only printed then; None: the run is run.
    """
    from dreambooth_jax.finetune import instance_images, photo_settings, plan, ready, standing
    from dreambooth_jax.training import run

    # All checks come before anything is generated, trained or written, so that a wrong setting costs no time.
    begun = ready.read(config, workdir, _EXTEND.value)
    if planned_for is not None:
        scored = evaluation_of(begun, begun.original, workdir, begun.placement(planned_for.devices))
        read = begun.config, begun.cascade, begun.instance
        told = plan.describe(*read, planned_for, scored, begun.sampled_on, _PRICE.value)
        return print(told.printed(as_json=_AS_JSON.value))
    about_photos = photo_settings.told(begun.config, workdir, begun.cascade)
    told = standing.told(begun.config, workdir, begun.cascade, begun.chosen)
    print(*filter(None, (instance_images.describe(begun.instance['base']), about_photos, told)), sep='\n')
    with run.alone(workdir), hosts.together():
        run.begin(begun.config, workdir, begun.inputs)
        hosts.on_first(lambda: begun.extension.write(workdir), 'write what the run is extended by')
        finetune_stages(begun, workdir)


def evaluation_of(begun, original, workdir: Path, placement):
    """Returns what scores the base stage (evaluation.score_checkpoints); None if nothing does, or its choice stands."""
    from dreambooth_jax.evaluation.score_checkpoints import Evaluation

    found = begun.config, workdir, original, begun.photos(), placement, begun.extension.since
    return None if begun.chosen else Evaluation.of(*found)


def finetune_stages(begun, workdir: Path) -> None:
    """Generates class images, fine-tunes one stage after the other and exports, all in the run's folder.

    Args:
      begun: the run's settings, model and images (finetune.ready.Ready).
    """
    import jax

    from dreambooth_jax.finetune import examples, textual_inversion, trained
    from dreambooth_jax.finetune.stage import finetune, usual_callbacks
    from dreambooth_jax.generation import class_images
    from dreambooth_jax.generation.options import SamplingOptions
    from dreambooth_jax.generation.origin import Origin
    from dreambooth_jax.generation.sample_grid import SampleGrid
    from dreambooth_jax.training import best_checkpoint, memory, run

    config, instance = begun.config, begun.instance
    # Everything, from class images to samples and scores, is generated on the devices that train, or on more of a CPU.
    placement, generating = begun.placement(cpu_devices.training()), begun.placement()
    original, cascade = begun.original.on(generating), begun.cascade.on(generating)
    evaluation = evaluation_of(begun, original, workdir, generating)
    if not evaluation and not begun.chosen and config.base.steps:
        hosts.on_first(lambda: best_checkpoint.forget(workdir), 'write best.json')
    images = class_images.class_images_of(config, original, workdir, begun.class_photos)
    examples.check_class_images(config, cascade, images)
    sampled_on = begun.sampled_on and begun.sampled_on.on(generating)
    shown, options = sampled_on or original, SamplingOptions.of_samples(config.samples, config.super_resolution)
    origin, prompts = Origin.of(shown, options, config.samples.metadata), config.sample_prompts()
    subject, count = examples.references(instance, cascade), config.samples.num_images
    grid = SampleGrid(shown, subject, prompts, options, num_images=count, origin=origin, sign=begun.sign)

    for name in [stage for stage in instance if getattr(config, stage).steps]:
        tables = examples.stage_tables(config, cascade, name, instance[name], images)
        has_begun = name in run.trained_stages(workdir)
        less = memory.remedies(config, name, begun=has_begun, devices=placement.devices)
        with memory.explained(f'the {name} stage trains', less):
            chooser = evaluation.during if evaluation else begun.chosen and (lambda cascade_of: begun.chosen)
            scored = chooser if name == 'base' else None
            during = usual_callbacks(config, workdir, name, grid, _PROFILE.value, scored, sampled_on)
            cascade, finished = finetune(config, workdir, name, cascade, original, tables, during, placement)
        if not finished:
            return print(f'stopped in the {name} stage, saved; start the same command again to go on')
        if scored and evaluation:
            print(evaluation.verdict())
    if jax.process_index() == 0:
        textual_inversion.write_learned(cascade, workdir)
    if config.export and jax.process_index() == 0:
        trained.write_model(config, cascade, workdir / 'model')
        print(f'trained model: {workdir / "model"}; samples: {workdir / "samples"}')


def main(argv) -> None:
    del argv
    config = resolve(DreamBoothConfig, _CONFIG.value)
    cpu_devices.use(config.parallel.cpu_devices)
    for flag in (_TOPOLOGY, _COMPILE, _PRICE, _AS_JSON):
        if flag.value and not _DRY_RUN.value:
            raise ConfigError(f'--{flag.name} is for a plan, which is not run; give --dry_run too, or leave it out')
    hosts.join(_DISTRIBUTED.value, hosts.Address(_COORDINATOR.value, _NUM_PROCESSES.value, _PROCESS_ID.value))
    if not _DRY_RUN.value:
        return train(config, Path(_WORKDIR.value))
    from dreambooth_jax.finetune import target

    with target.planned_for(_TOPOLOGY.value, compiled=_COMPILE.value) as devices:
        train(config, Path(_WORKDIR.value), devices)


if __name__ == '__main__':
    program.run(main, required=['config', 'workdir'])
