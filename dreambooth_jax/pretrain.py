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

_CONFIG = program.DEFINE_config('config', 'Settings file, such as configs/storybook_base.py.')
_WORKDIR = program.DEFINE_path('workdir', None, 'Folder of the run: checkpoints, metrics, samples and model.')


def pretrain(config: PretrainConfig, workdir: Path) -> None:
    """Trains the stage that `config` describes and writes the averaged weights to <workdir>/model."""
    import jax
    import numpy as np

    from dreambooth_jax.data import pairs
    from dreambooth_jax.finetune.fresh import start_pipeline
    from dreambooth_jax.generation.cascade import Cascade
    from dreambooth_jax.generation.sample_grid import SampleGrid
    from dreambooth_jax.stages.pixel import Objective, PixelStage
    from dreambooth_jax.stages.super_resolution import SuperResolutionStage
    from dreambooth_jax.stages.text_conditioning import TextConditioning, take
    from dreambooth_jax.storybook import pools, vocabulary
    from dreambooth_jax.training import fit, optimizer, run
    from dreambooth_jax.training.placement import make_placement
    from dreambooth_jax.weights import folders, noise_schedules

    # The networks, and the loss of the stage.
    run.begin(config, workdir)
    pipeline = start_pipeline(config, workdir)
    if config.zero_terminal_snr:
        pipeline = noise_schedules.with_zero_terminal_snr(pipeline)
    is_base = config.stage == 'base'
    conditioning = TextConditioning.of(pipeline, size=pipeline.size)
    params = {'unet': pipeline.unet.params}
    shared = {'unet': pipeline.unet.apply, 'schedule': noise_schedules.read(pipeline)}
    shared['objective'] = Objective.from_settings(config)
    shared['objective'].check(shared['schedule'], pipeline.name)
    if is_base:
        stage = PixelStage(**shared, encode=conditioning)
        params['text_encoder'] = pipeline.text_encoder.params
    else:
        stage = SuperResolutionStage(
            **shared,
            noising_schedule=noise_schedules.read_noising(pipeline),
            factor=config.factor,
            noise_level=config.noise_level,
            crop=config.crop,
        )

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
    placement = make_placement(config.parallel.mode, fsdp_min_bytes=config.parallel.fsdp_min_bytes)
    encode = functools.partial(jax.jit(conditioning), {'text_encoder': pipeline.text_encoder.params})

    @functools.lru_cache(maxsize=1)
    def pool_data(number):
        pool = painters.pool(number)
        tokens = conditioning.tokens(['', *pool.captions])
        data = {'images': pool.images, 'prompt_of': np.arange(1, config.pool_size + 1, dtype=np.int32)}
        if is_base:
            data['tokens'] = tokens
        else:
            slices = [slice(i, i + 256) for i in range(0, config.pool_size + 1, 256)]
            parts = [jax.tree.map(np.asarray, encode(take(tokens, examples))) for examples in slices]
            data['text'] = jax.tree.map(lambda *parts: np.concatenate(parts), *parts)
        return placement.place_state(lambda data: data, data)

    def pick(key, step, batch, frozen):
        return {**batch, 'image': pairs.image_index(key, step, batch, config.pool_size, shuffle=False)}

    # Samples show the averaged weights, and only the base stage has samples: a second stage alone cannot generate.
    def trained(params):
        parts = {name: dataclasses.replace(getattr(pipeline, name), params=value) for name, value in params.items()}
        return dataclasses.replace(pipeline, **({'text_encoder': None} | parts))

    samples = config.samples
    grid = SampleGrid(None, [], samples.prompts, **samples.sampling_options())
    programs = {}

    def sample(step, state):
        if is_base and samples.prompts and jax.process_count() == 1:
            path = workdir / 'samples' / config.stage / f'{step:06d}.png'
            grid.save_if_possible(
                Cascade(trained(state.best_params), programs=programs), path, f'{config.stage}, step {step}'
            )

    # A multiplier of 0 freezes the outputs that predict the variance.
    multipliers = {} if config.train_variance else {'unet': optimizer.variance_head_masks(params['unet'])}
    learning_rate, tx = optimizer.from_settings(config, config.learning_rate, config.steps, multipliers=multipliers)
    batch = pairs.pad_examples(pairs.make_batch(config.batch_size, 0, config.pool_size, 0, 0.0), placement.devices)
    state, finished = fit.fit(
        stage.loss,
        params,
        tx=tx,
        learning_rate=learning_rate,
        placement=placement,
        batch=batch,
        pick=pick,
        frozen=lambda step: pool_data(step // steps_per_pool),
        workdir=workdir,
        name=config.stage,
        seed=config.seed,
        steps=config.steps,
        ema_decay=config.ema_decay,
        steps_per_dispatch=config.parallel.steps_per_dispatch,
        save_every=config.checkpoint.every,
        keep=config.checkpoint.keep,
        sample=sample,
        sample_every=samples.every,
        description=f'pretrain {config.stage}',
    )
    painters.close()
    folders.write_pipeline(trained(jax.tree.map(np.asarray, state.best_params)), workdir / 'model', dtype='float16')
    print(f'{"finished" if finished else "stopped"} at step {int(state.step)}; model: {workdir / "model"}')


def main(_) -> None:
    from dreambooth_jax.training import run

    config, workdir = resolve(PretrainConfig, _CONFIG.value), Path(_WORKDIR.value)
    with run.alone(workdir):
        pretrain(config, workdir)


if __name__ == '__main__':
    program.run(main, required=['config', 'workdir'])
