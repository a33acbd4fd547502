"""Trains a Storybook stage from scratch, or further.

  python -m dreambooth_jax.pretrain --config=configs/storybook_base.py --workdir=runs/storybook_base

Host processes paint pictures and captions (storybook/pools.py) while the device trains. Run again with the same
--workdir, it resumes from the newest checkpoint. The averaged weights end in <workdir>/model, a diffusers folder.
"""

import functools
import json
import time
from pathlib import Path

from absl import app, flags
from ml_collections import config_flags

from dreambooth_jax.config import PretrainConfig, SettingsError, resolve, to_dict

_CONFIG = config_flags.DEFINE_config_file('config', None, 'Settings file, such as configs/storybook_base.py.')
_WORKDIR = flags.DEFINE_string('workdir', None, 'Folder of the run: checkpoints, metrics, samples and model.')


def start_pipeline(config: PretrainConfig, workdir: Path, dtype):
    """The pipeline that training starts from: config.init's, or fresh networks as the settings describe them."""
    from dreambooth_jax.models import functional, t5, unet
    from dreambooth_jax.storybook import vocabulary
    from dreambooth_jax.weights import folders

    if config.init is not None:
        return folders.read_pipeline(config.init, dtype=dtype)

    def fresh(kind, architecture, stream):
        apply, params = functional.init(lambda rngs: kind(architecture, dtype=dtype, rngs=rngs), 2 * config.seed + stream)
        return folders.Network(architecture, apply, params)

    network = fresh(unet.UNet2DConditionModel, config.unet, 0)
    if config.stage == 'base':
        vocabulary.write_tokenizer(workdir / 'tokenizer')
        encoder = fresh(t5.T5EncoderModel, config.text_encoder, 1)
        return folders.Pipeline(folders.BASE_CLASS, network, encoder, workdir / 'tokenizer', config.scheduler)
    base = folders.read_pipeline(config.base, dtype=dtype, components=('text_encoder',))
    return folders.Pipeline(
        folders.SUPER_RESOLUTION_CLASS, network, base.text_encoder, base.tokenizer_folder, config.scheduler,
        image_noising_scheduler=config.image_noising_scheduler)  # fmt: skip


def pretrain(config: PretrainConfig, workdir: Path) -> None:
    """Trains the stage that `config` describes and writes <workdir>/model."""
    import dataclasses

    import jax
    import jax.numpy as jnp
    import numpy as np

    from dreambooth_jax.data import pairs
    from dreambooth_jax.diffusion import schedules
    from dreambooth_jax.generation import text_to_image
    from dreambooth_jax.stages.pixel import Objective, PixelStage
    from dreambooth_jax.stages.super_resolution import SuperResolutionStage
    from dreambooth_jax.storybook import pools, vocabulary
    from dreambooth_jax.text.tokenize import Tokenizer
    from dreambooth_jax.training import checkpoint, loop, optimizer, placement, step
    from dreambooth_jax.training.state import init_state
    from dreambooth_jax.watching import grids, metrics
    from dreambooth_jax.weights import folders

    workdir.mkdir(parents=True, exist_ok=True)
    (workdir / 'config.json').write_text(json.dumps(to_dict(config), indent=2))
    cpu = jax.default_backend() == 'cpu'
    dtype = {'auto': jnp.float32 if cpu else jnp.bfloat16}.get(config.parallel.dtype) or jnp.dtype(config.parallel.dtype)
    pipeline = start_pipeline(config, workdir, dtype)
    tokenizer = Tokenizer.load(pipeline.tokenizer_folder)
    encode = jax.jit(pipeline.text_encoder.apply)
    is_base = config.stage == 'base'
    weights = Objective(
        min_snr_gamma=config.min_snr_gamma,
        offset_noise=config.offset_noise,
        variance_weight=config.variance_weight if config.train_variance else 0.0,
        prompt_dropout=config.prompt_dropout,
    )
    schedule = schedules.from_config(pipeline.scheduler)
    size = pipeline.unet.config['sample_size']
    if is_base:
        stage = PixelStage(
            unet=pipeline.unet.apply, schedule=schedule, text_encoder=pipeline.text_encoder.apply, objective=weights)  # fmt: skip
        params = {'unet': pipeline.unet.params, 'text_encoder': pipeline.text_encoder.params}
    else:
        stage = SuperResolutionStage(
            unet=pipeline.unet.apply, schedule=schedule, factor=4, noise_level=config.noise_level, crop=config.crop,
            noising_schedule=schedules.from_config(pipeline.image_noising_scheduler), objective=weights)  # fmt: skip
        params = {'unet': pipeline.unet.params}

    rate = optimizer.learning_rate_schedule(
        config.schedule, config.learning_rate, steps=config.steps, warmup_steps=config.warmup_steps)  # fmt: skip
    tx = optimizer.make_optimizer(
        rate, betas=config.betas, epsilon=config.epsilon, weight_decay=config.weight_decay,
        grad_clip_norm=config.grad_clip_norm)  # fmt: skip
    place = placement.make_placement(config.parallel.mode, fsdp_min_bytes=config.parallel.fsdp_min_bytes)
    state = place.place_state(lambda params: init_state(params, tx, ema=config.ema_decay is not None), params)
    checkpoints = checkpoint.Checkpoints(workdir / config.stage / 'checkpoints', keep=config.checkpoint.keep)
    if checkpoints.latest is not None:
        state = checkpoints.restore(state)
    writer = metrics.Metrics(workdir, config.stage, resume_step=int(state.step))

    # The pool: `passes` times through it in order (its pictures are drawn at random already), then the next one.
    rows = pairs.make_batch(config.batch_size, 0, config.pool_size, 0, 0.0)
    batch = place.place_batch(pairs.pad_rows(rows, place.devices))
    steps_per_pool = config.passes * config.pool_size // config.batch_size
    painters = pools.Painters(
        config.seed, size, config.pool_size, processes=config.painters,
        rare_tokens=vocabulary.RARE_TOKENS, rare_token_rate=config.rare_token_rate)  # fmt: skip

    def pick(key, at, batch, frozen):
        return {**batch, 'picture': pairs.picture_index(key, at, batch, config.pool_size, shuffle=False)}

    @functools.lru_cache(maxsize=1)
    def pool_data(number):
        pool = painters.pool(number)
        tokens, mask = tokenizer(['', *pool.captions])
        data = {'pictures': pool.pictures, 'prompt_of': np.arange(1, config.pool_size + 1, dtype=np.int32)}
        if is_base:
            data |= {'tokens': tokens, 'mask': mask}
        else:
            slices = range(0, len(tokens), 256)
            data['embeddings'] = np.concatenate(
                [encode(pipeline.text_encoder.params, tokens[i : i + 256], mask[i : i + 256]) for i in slices])  # fmt: skip
        return place.place_state(lambda data: data, data)

    def draw(at, state):
        if not config.samples.prompts or jax.process_count() > 1:
            return
        options = config.samples
        trained = state.best_params
        text = encode(trained.get('text_encoder', pipeline.text_encoder.params), *tokenizer(['', *options.prompts]))
        many = len(options.prompts) * options.num_images
        keys = text_to_image.picture_keys(options.seed, np.arange(many) % options.num_images)
        pictures = text_to_image.draw(
            sampler, trained['unet'], jnp.repeat(text[1:], options.num_images, axis=0), text[0], keys, batch_size=8)  # fmt: skip
        rows = pictures.reshape(len(options.prompts), options.num_images, *pictures.shape[1:])
        sheet = grids.contact_sheet(rows, options.prompts, title=f'{config.stage}, step {at}')
        (workdir / 'samples' / config.stage).mkdir(parents=True, exist_ok=True)
        sheet.save(workdir / 'samples' / config.stage / f'{at:06d}.png')

    sampler = text_to_image.make_sampler(
        pipeline.unet.apply, schedule, size=size, steps=config.samples.steps, method=config.samples.sampler,
        guidance_scale=config.samples.guidance_scale)  # fmt: skip
    make = functools.partial(step.make_train_step, stage.loss, tx, ema_decay=config.ema_decay, pick=pick)
    step_for = functools.lru_cache(
        lambda count: place.compile(lambda axis: make(axis_name=axis, num_steps=count)))  # fmt: skip
    hooks = loop.Hooks(
        save=lambda at, state: checkpoints.save(at, place.to_global(state)),
        draw=draw if is_base else lambda at, state: None,
        frozen=lambda at: pool_data(at // steps_per_pool),
        write=writer.write, save_every=config.checkpoint.every, draw_every=config.samples.every)  # fmt: skip
    key = place.place_state(lambda: jax.random.key(config.seed))
    with loop.Stop().listening() as stop:
        state, finished = loop.run(
            state, step_for, batch, key, hooks, steps=config.steps, rate=rate, fetch=place.fetch, stop=stop,
            steps_per_dispatch=config.parallel.steps_per_dispatch or (1 if cpu else 10),
            rows_per_step=config.batch_size, description=f'pretrain {config.stage}')  # fmt: skip
    checkpoints.close()
    painters.close()
    writer.close()
    best = jax.tree.map(np.asarray, state.best_params)
    trained = dataclasses.replace(
        pipeline,
        unet=dataclasses.replace(pipeline.unet, params=best['unet']),
        text_encoder=dataclasses.replace(pipeline.text_encoder, params=best['text_encoder']) if is_base else None)  # fmt: skip
    folders.write_pipeline(trained, workdir / 'model', dtype='float16')
    print(f'{"finished" if finished else "stopped"} at step {int(state.step)}; model in {workdir / "model"}')


def main(argv) -> None:
    if len(argv) > 1:
        raise app.UsageError(f'unknown arguments: {argv[1:]}')
    started = time.time()
    pretrain(resolve(PretrainConfig, _CONFIG.value), Path(_WORKDIR.value))
    print(f'{time.time() - started:.0f} s')


if __name__ == '__main__':
    flags.mark_flags_as_required(['config', 'workdir'])
    try:
        app.run(main)
    except SettingsError as error:
        raise SystemExit(str(error)) from None
