"""All of DreamBooth: class pictures, base stage, super-resolution stage, samples, checkpoints, export.

  python -m dreambooth_jax.train --config=configs/dog.py --workdir=runs/dog

Run again with the same --workdir, it resumes. Any setting can be changed on the command line:
--config.base.steps=400 --config.data.instance_dir=my_photos. The trained pipeline ends in <workdir>/model, a folder
that PyTorch's diffusers opens too.
"""

from pathlib import Path

from absl import flags

from dreambooth_jax import program
from dreambooth_jax.config import DreamBoothConfig, resolve

_CONFIG = program.DEFINE_config('config', 'Settings file, such as configs/dog.py.')
_WORKDIR = program.DEFINE_path('workdir', None, 'Folder of the run: class pictures, checkpoints, samples, model.')
_DRY_RUN = flags.DEFINE_bool('dry_run', False, 'Print the settings and the plan (steps, memory, time); write nothing.')
_DISTRIBUTED = flags.DEFINE_bool('distributed', False, 'Join the other hosts of this TPU slice or cluster first.')


def train(config: DreamBoothConfig, workdir: Path) -> None:
    """Runs all stages of `config` in `workdir`; what is there already is kept."""
    from dreambooth_jax.generation.cascade import Cascade, compute_dtype
    from dreambooth_jax.stages import instance_pictures
    from dreambooth_jax.training import run
    from dreambooth_jax.tuning import pictures, plan, textual_inversion
    from dreambooth_jax.tuning.stage import check_noise_levels

    original = Cascade.of(config)
    check_noise_levels(config, original)
    cascade = textual_inversion.with_word(
        original, config.textual_inversion, dtype=compute_dtype(config.parallel.dtype), seed=config.seed)  # fmt: skip
    if _DRY_RUN.value:
        return print(plan.describe(config, cascade))
    instance = pictures.read_instance(config, cascade)
    print(instance_pictures.describe(instance['base']))
    with run.alone(workdir):
        run.begin(config, workdir)
        tune_stages(config, workdir, original, cascade, instance)


def tune_stages(config: DreamBoothConfig, workdir: Path, original, cascade, instance) -> None:
    """Draws class pictures, tunes one stage after the other and exports: all that writes into the run's folder."""
    import jax

    from dreambooth_jax.generation import prior_images
    from dreambooth_jax.generation.sample_grid import SampleGrid
    from dreambooth_jax.training import placement
    from dreambooth_jax.tuning import pictures, textual_inversion
    from dreambooth_jax.tuning.stage import tune
    from dreambooth_jax.weights import folders
    from dreambooth_jax.weights.textual_inversion import FILE as LEARNED_EMBEDS

    images = prior_images.prior_images_of(config, original, workdir)
    samples = config.samples
    grid = SampleGrid(
        original, pictures.references(instance, cascade), config.sample_prompts(), num_images=samples.num_images,
        steps=samples.steps, guidance_scale=samples.guidance_scale, sampler=samples.sampler, seed=samples.seed,
        **config.super_resolution.drawing())  # fmt: skip
    place = placement.make_placement(config.parallel.mode, fsdp_min_bytes=config.parallel.fsdp_min_bytes)
    for name in instance:
        if getattr(config, name).steps == 0:
            continue
        tables = pictures.stage_tables(config, cascade, name, instance[name], images)
        cascade, finished = tune(config, workdir, name, cascade, original, tables, grid, place)
        if not finished:
            print(f'stopped in the {name} stage, saved; start the same command again to go on')
            return
    if jax.process_index() == 0:
        textual_inversion.write_learned(cascade, workdir / LEARNED_EMBEDS)
    if config.export and jax.process_index() == 0:
        folders.write_pipeline(cascade.base, workdir / 'model', super_resolution=cascade.super_resolution)
        print(f'trained model: {workdir / "model"}; samples: {workdir / "samples"}')


def main(argv) -> None:
    del argv
    config = resolve(DreamBoothConfig, _CONFIG.value)
    if _DISTRIBUTED.value:
        import jax

        jax.config.update('jax_enable_preemption_service', False)  # it would take SIGTERM for itself
        jax.distributed.initialize()
    train(config, Path(_WORKDIR.value))


if __name__ == '__main__':
    program.run(main, required=['config', 'workdir'])
