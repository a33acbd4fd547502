"""Trains a stage of Storybook, from scratch or starting from existing weights.

  python -m dreambooth_jax.pretrain --config=configs/storybook_base.py --workdir=runs/storybook_base

Host processes paint images and captions (storybook/pools.py) while the device trains. Started again with the same
--workdir, the program resumes from the newest checkpoint. At the end it writes the averaged weights to <workdir>/model,
a folder in diffusers' layout.
"""

import dataclasses
import functools
from pathlib import Path

from dreambooth_jax import program
from dreambooth_jax.config import PretrainConfig, resolve
from dreambooth_jax.system import cpu_devices

_CONFIG = program.DEFINE_config('config', 'Settings file, such as configs/storybook_base.py.')
_WORKDIR = program.DEFINE_path('workdir', None, 'Folder of the run: checkpoints, metrics, samples and model.')


def pretrain(config: PretrainConfig, workdir: Path) -> None:
    """Trains the stage that `config` describes and writes the averaged weights to <workdir>/model."""
    from dreambooth_jax.data import pairs
    from dreambooth_jax.families.processes import with_zero_terminal_snr
    from dreambooth_jax.finetune import model_card
    from dreambooth_jax.finetune.fresh import start_pipeline
    from dreambooth_jax.finetune.pretraining import pretraining_of, with_scaled_latents
    from dreambooth_jax.generation import signed_files
    from dreambooth_jax.generation.cascade import Cascade
    from dreambooth_jax.generation.options import SamplingOptions
    from dreambooth_jax.generation.origin import Model, Origin
    from dreambooth_jax.generation.sample_grid import SampleGrid, SaveSamples
    from dreambooth_jax.storybook import pools, vocabulary
    from dreambooth_jax.training import memory, optimizer, run, train_run
    from dreambooth_jax.training.placement import make_placement
    from dreambooth_jax.training.train_run import Budget, TrainRun
    from dreambooth_jax.weights import folders

    # The networks, and what trains. The certificate comes first, so that a wrong one costs no time.
    sign = signed_files.signer_of(config.samples)
    run.begin(config, workdir)
    pipeline = start_pipeline(config, workdir)
    if config.zero_terminal_snr:
        pipeline = with_zero_terminal_snr(pipeline)
    stage = pretraining_of(config, pipeline)

    # The data: a pool is used `passes` times, in order since its scenes are random already, and then the next pool.
    steps_per_pool = max(1, config.passes * config.pool_size // config.batch_size)
    painters = pools.Painters(
        config.seed,
        pipeline.size,
        config.pool_size,
        processes=config.painters,
        rare_tokens=vocabulary.RARE_TOKENS,
        rare_token_rate=config.rare_token_rate,
    )
    place = functools.partial(make_placement, config.parallel.mode, fsdp_min_bytes=config.parallel.fsdp_min_bytes)
    placement, generating = place(devices=cpu_devices.training()), place()

    @functools.lru_cache(maxsize=1)
    def pool_data(number):
        return placement.place_state(lambda data: data, stage.data(painters.pool(number)))

    def pick(key, step, batch, frozen):
        return {**batch, 'image': pairs.image_index(key, step, batch, config.pool_size, shuffle=False)}

    # The text encoder of a second stage belongs to its base.
    left_out = dict.fromkeys(pipeline.text_encoders) if config.stage == 'super_resolution' else {}

    def trained(params):
        parts = {name: dataclasses.replace(pipeline.components[name], params=value) for name, value in params.items()}
        return pipeline.with_components(**(left_out | parts))

    # Samples show the averaged weights. A second stage or an autoencoder alone cannot generate.
    samples = config.samples
    options = SamplingOptions.of_samples(samples)
    origin = Origin(options=options, metadata=samples.metadata, base=Model(f'pretraining of {config.stage}', None))
    grid = SampleGrid(None, [], samples.prompts, options, num_images=samples.num_images, origin=origin, sign=sign)
    programs = {}
    sampling = SaveSamples(
        grid=grid,
        cascade_of=lambda state: Cascade(
            trained(placement.to_global(state).best_params), placement=generating, programs=programs
        ),
        folder=workdir / 'samples' / config.stage,
        title=config.stage,
        every=samples.every,
    )

    learning_rate, tx = optimizer.from_settings(config, config.learning_rate, config.steps, multipliers=stage.held)
    batch = pairs.pad_examples(pairs.make_batch(config.batch_size, 0, config.pool_size, 0, 0.0), placement.devices)
    less = [f'--config.batch_size={config.batch_size // 2}'] if config.batch_size > 1 else []
    with memory.explained('the model trains', less):
        state, finished = train_run.fit(
            TrainRun(
                name=config.stage,
                loss=stage.loss,
                params=stage.params,
                frozen_at=lambda placed, step: pool_data(step // steps_per_pool),
                batch=batch,
                pick=pick,
                tx=tx,
                learning_rate=learning_rate,
                ema_decay=config.ema_decay,
                placement=placement,
                budget=Budget(steps=config.steps, per_dispatch=config.parallel.steps_per_dispatch),
                seed=config.seed,
                checkpoint=config.checkpoint,
                callbacks=[sampling] if stage.samples and samples.prompts else [],
                description=f'pretrain {config.stage}',
            ),
            workdir,
        )
    averaged = trained(placement.gather(placement.to_global(state).best_params))
    if config.stage == 'autoencoder':
        averaged = with_scaled_latents(averaged, painters.pool(0).images)
    painters.close()
    folders.write_pipeline(averaged, workdir / 'model', dtype='float16', card=model_card.of_pretraining(config))
    print(f'{"finished" if finished else "stopped"} at step {int(state.step)}; model: {workdir / "model"}')


def main(_) -> None:
    from dreambooth_jax.training import run

    config, workdir = resolve(PretrainConfig, _CONFIG.value), Path(_WORKDIR.value)
    cpu_devices.use(config.parallel.cpu_devices)
    with run.alone(workdir):
        pretrain(config, workdir)


if __name__ == '__main__':
    program.run(main, required=['config', 'workdir'])
