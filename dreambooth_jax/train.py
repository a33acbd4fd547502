"""All of DreamBooth: class pictures, base stage, super-resolution stage, samples, checkpoints, export.

  python -m dreambooth_jax.train --config=configs/dog.py --workdir=runs/dog

Run again with the same --workdir, it resumes. Any setting can be changed on the command line:
--config.base.steps=400 --config.data.instance_dir=my_photos. The trained pipeline ends in <workdir>/model, a folder
that PyTorch's diffusers opens too.
"""

from pathlib import Path

from absl import flags
from ml_collections import config_flags

from dreambooth_jax import program
from dreambooth_jax.config import DreamBoothConfig, SettingsError, resolve

_CONFIG = config_flags.DEFINE_config_file('config', None, 'Settings file, such as configs/dog.py.')
_WORKDIR = flags.DEFINE_string('workdir', None, 'Folder of the run: class pictures, checkpoints, samples, model.')
_DRY_RUN = flags.DEFINE_bool('dry_run', False, 'Print the settings and the plan (steps, memory, time); write nothing.')
_DISTRIBUTED = flags.DEFINE_bool('distributed', False, 'Join the other hosts of this TPU slice or cluster first.')


def train_stage(config, workdir, name, cascade, tables, grid, place):
    """Fine-tunes one stage from its newest checkpoint on; returns the cascade with it and whether it is finished."""
    import jax
    import jax.numpy as jnp

    from dreambooth_jax.data.feed import Feed
    from dreambooth_jax.diffusion import schedules
    from dreambooth_jax.stages.pixel import Objective, PixelStage
    from dreambooth_jax.stages.super_resolution import SuperResolutionStage
    from dreambooth_jax.text.tokenize import Tokenizer
    from dreambooth_jax.training import fit, optimizer

    is_base = name == 'base'
    settings = config.base if is_base else config.super_resolution
    pipeline = cascade.base if is_base else cascade.super_resolution
    size = pipeline.unet.config['sample_size']
    train_text = is_base and config.base.train_text_encoder
    objective = Objective.from_settings(config.objective, random_flip=config.data.random_flip)
    schedule = schedules.from_config(pipeline.scheduler)
    shared = {'unet': pipeline.unet.apply, 'schedule': schedule, 'objective': objective}
    if is_base:
        stage = PixelStage(**shared, text_encoder=pipeline.text_encoder.apply if train_text else None)
    else:
        stage = SuperResolutionStage(
            **shared, noising_schedule=schedules.from_config(pipeline.image_noising_scheduler),
            factor=size // cascade.base.unet.config['sample_size'], noise_level=settings.noise_level)  # fmt: skip
    params = {'unet': pipeline.unet.params}
    if train_text:
        params['text_encoder'] = pipeline.text_encoder.params
    feed = Feed(config.seed, settings.steps, [table.num_instance for table in tables], tables[0].num_class)

    def placed(table):
        data = {**table.arrays, **feed.arrays}
        if train_text:
            data |= dict(zip(('tokens', 'mask'), Tokenizer.load(pipeline.tokenizer_folder)(table.prompts), strict=True))
        else:
            data['embeddings'] = cascade.encode(table.prompts)
        return place.place_state(lambda data: data, jax.tree.map(jnp.asarray, data))

    data = [placed(table) for table in tables]
    batch = feed.batch(settings.batch_size, settings.batch_size, config.prior.weight, place.devices)

    def tuned(state):
        best = {component: state.best_params[component] for component in params}
        if is_base:
            return cascade.with_params(unet=best['unet'], text_encoder=best.get('text_encoder'))
        return cascade.with_params(super_resolution_unet=best['unet'])

    def draw(step, state):
        if jax.process_count() == 1:
            grid.save(tuned(state), workdir / 'samples' / name / f'{step:06d}.png', f'{name}, step {step}')

    factors = {}
    if schedule.learns_variance and not config.objective.train_variance:
        factors['unet'] = optimizer.variance_head_masks(params['unet'])
    if train_text and settings.text_encoder_learning_rate is not None:
        factors['text_encoder'] = settings.text_encoder_learning_rate / settings.learning_rate
    rate, tx = optimizer.from_settings(config.optimizer, settings.learning_rate, settings.steps, factors=factors)
    state, finished = fit.fit(
        stage.loss, params, tx=tx, rate=rate, place=place, batch=batch, pick=feed.pick,
        frozen=lambda step: data[feed.bucket(step)], workdir=workdir, name=name, seed=config.seed, steps=settings.steps,
        steps_per_dispatch=feed.steps_per_dispatch(config.parallel.steps_per_dispatch),
        ema_decay=config.optimizer.ema_decay, save_every=config.checkpoint.every, keep=config.checkpoint.keep,
        draw=draw, draw_every=config.samples.every)  # fmt: skip
    return tuned(state), finished


def train(config: DreamBoothConfig, workdir: Path) -> None:
    """Runs all stages of `config` in `workdir`; what is there already is kept."""
    import jax

    from dreambooth_jax.data.table import make_table
    from dreambooth_jax.generation import plan, prior_images
    from dreambooth_jax.generation.cascade import Cascade
    from dreambooth_jax.generation.sample_grid import SampleGrid
    from dreambooth_jax.stages import instance_pictures
    from dreambooth_jax.training import placement, run
    from dreambooth_jax.weights import folders

    cascade = original = Cascade.load(
        config.model, super_resolution_model=config.super_resolution_model, dtype=config.parallel.dtype)  # fmt: skip
    if _DRY_RUN.value:
        return print(plan.describe(config, cascade))
    sizes = {'base': cascade.base.unet.config['sample_size']}
    if config.data.resolution not in (None, sizes['base']):
        raise SettingsError(
            f'config.data.resolution is {config.data.resolution} but the base stage of {config.model} draws at '
            f'{sizes["base"]}; leave it None')  # fmt: skip
    if cascade.super_resolution is not None:
        sizes['super_resolution'] = cascade.super_resolution.unet.config['sample_size']
    divisors = {'base': 2 ** (len(cascade.base.unet.config['block_out_channels']) - 1)}  # of what its UNet takes
    pictures = {name: instance_pictures.read(config, size, divisors.get(name)) for name, size in sizes.items()}
    print(instance_pictures.describe(pictures['base']))
    run.begin(config, workdir)
    class_pictures = prior_images.read(prior_images.prior_images_of(config, original, workdir), sizes)
    samples = config.samples
    grid = SampleGrid(
        original, [image for group in pictures[list(sizes)[-1]] for image in group.images], config.sample_prompts(),
        num_images=samples.num_images, steps=samples.steps, guidance_scale=samples.guidance_scale,
        sampler=samples.sampler, seed=samples.seed, **config.super_resolution.drawing())  # fmt: skip
    place = placement.make_placement(config.parallel.mode, fsdp_min_bytes=config.parallel.fsdp_min_bytes)
    for name in sizes:
        if getattr(config, name).steps == 0:
            continue
        tables = [make_table(group, class_pictures.get(name)) for group in pictures[name]]
        cascade, finished = train_stage(config, workdir, name, cascade, tables, grid, place)
        if not finished:
            print(f'stopped in the {name} stage, saved; start the same command again to go on')
            return
    if config.export and jax.process_index() == 0:
        folders.write_pipeline(cascade.base, workdir / 'model', super_resolution=cascade.super_resolution)
        print(f'trained model: {workdir / "model"}; samples: {workdir / "samples"}')


def main(argv) -> None:
    del argv
    config = resolve(DreamBoothConfig, _CONFIG.value)
    if _DISTRIBUTED.value:
        import jax

        jax.distributed.initialize()
    train(config, Path(_WORKDIR.value))


if __name__ == '__main__':
    program.run(main, required=['config', 'workdir'])
