"""One stage of a DreamBooth run: joins the pipeline's networks with images, loss and optimizer, and trains them."""

import dataclasses
import functools
import logging
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from dreambooth_jax.config import ConfigError, DreamBoothConfig
from dreambooth_jax.data import pairs
from dreambooth_jax.data.feed import Feed, Taught
from dreambooth_jax.data.table import Table
from dreambooth_jax.finetune import textual_inversion
from dreambooth_jax.finetune.trainable import Trainable, lora_targets, make_trainable, usual_targets
from dreambooth_jax.generation.cascade import BASE, STAGES, SUPER_RESOLUTION, Cascade
from dreambooth_jax.generation.checks import check_sampler
from dreambooth_jax.generation.class_images import own_photos
from dreambooth_jax.generation.options import SamplingOptions
from dreambooth_jax.generation.sample_grid import SampleGrid, SaveSamples
from dreambooth_jax.losses.denoising import DenoisingLoss, Objective
from dreambooth_jax.losses.stage import Stage
from dreambooth_jax.losses.super_resolution import SuperResolutionLoss
from dreambooth_jax.losses.teacher import Distillation
from dreambooth_jax.models import functional, lora
from dreambooth_jax.training import dtypes, optimizer, train_run
from dreambooth_jax.training.callbacks import Callback, Profile
from dreambooth_jax.training.placement import Placement
from dreambooth_jax.training.state import TrainState
from dreambooth_jax.training.train_run import Budget, TrainRun
from dreambooth_jax.weights.kinds import is_partial
from dreambooth_jax.weights.pipeline import Pipeline, abstract_network

NEW_ROWS_LEARNING_RATE = 5e-4  # default for textual inversion, as in diffusers' examples/textual_inversion


def trained_components(config: DreamBoothConfig, name: str, cascade: Cascade) -> tuple[str, ...]:
    """Returns the networks of stage `name` that train by the settings: the denoiser and, in the base stage, text
    encoders.
    """
    family = getattr(cascade, name).family
    denoiser = family.denoiser
    if name != BASE:
        return (denoiser,)
    texts = cascade.base.text_encoders if config.base.train_text_encoder else ()
    texts = [component for component in texts if component not in family.never_trained]
    return (*((denoiser,) if config.base.train_denoiser else ()), *texts)


def check_schedules(config: DreamBoothConfig, cascade: Cascade) -> None:
    """Checks, before anything is generated or trained, that the model's noise schedules allow the settings.

    Raises:
      ConfigError: if a sampler cannot sample with its number of steps, the objective does not fit a schedule, or the
        second stage does not have the noise levels of the settings.
    """
    # Every combination of stage, steps and sampler that the run will use, for class images and for samples.
    settings, second = config.super_resolution, cascade.super_resolution
    samplings = [(BASE, config.samples.steps, config.samples.sampler)]
    if generating := () if own_photos(config) else config.class_image_stages():
        samplings.append((BASE, config.prior.steps, config.prior.sampler))
        if second is not None and SUPER_RESOLUTION in generating:
            samplings.append((SUPER_RESOLUTION, settings.sample_steps or config.prior.steps, config.prior.sampler))
    if second is not None:
        samplings.append((SUPER_RESOLUTION, settings.sample_steps or config.samples.steps, config.samples.sampler))
    for name, steps, sampler in samplings:
        check_sampler(getattr(cascade, name), steps, sampler)
    for name in STAGES:
        pipeline = getattr(cascade, name)
        if pipeline is not None and getattr(config, name).steps:
            check_can_train(config, pipeline)
            Objective.from_settings(config.objective).check(pipeline.family.process(pipeline), pipeline.name)
    if second is None or not settings.steps:
        return
    highest = second.family.highest_noise_level(second)
    for name, level in (('noise_level', settings.noise_level[1]), ('sample_noise_level', settings.sample_noise_level)):
        if level > highest:
            raise ConfigError(
                f'config.super_resolution.{name} is {getattr(settings, name)} but {second.name} knows the levels 0 to '
                f'{highest}; lower it'
            )


def check_can_train(config: DreamBoothConfig, pipeline: Pipeline) -> None:
    """Checks that a model, and of its text encoders those that the settings name, are such that training makes sense.

    Raises:
      ConfigError: if the model is distilled and the settings do not allow that, or they do although it is not, or if a
        text encoder that should train is read only in part.
    """
    distilled, allowed = pipeline.family.is_distilled(pipeline), config.base.train_distilled
    if distilled and not allowed:
        raise ConfigError(
            f'{pipeline.name} is distilled: it generates in few steps without guidance, and training on images would '
            f'undo that; train the base model that it was made from, or set config.base.train_distilled to True'
        )
    if allowed and not distilled and not pipeline.family.is_super_resolution:
        raise ConfigError(f'config.base.train_distilled is True but {pipeline.name} is not distilled; leave it False')
    if distilled:
        logging.warning('%s is distilled: the longer it trains, the more its images blur in few steps.', pipeline.name)
    for component, network in pipeline.text_encoders.items():
        for setting, value in (
            ('base.train_text_encoder', config.base.train_text_encoder),
            ('textual_inversion.token', config.textual_inversion.token),
        ):
            if value and is_partial(component, network.config):
                raise ConfigError(
                    f'config.{setting} is {value!r} but the {component} of {pipeline.name}, a language model, is read '
                    f'only as far as prompts need it, and cannot train; leave it {type(value)()!r}'
                )


def check_lora_targets(config: DreamBoothConfig, cascade: Cascade) -> None:
    """Checks, before anything is generated or trained, that every LoRA target has a layer in a network that trains.

    It logs a warning for every network that should train but has no such layer and therefore stays as it is.

    Raises:
      ConfigError: if a target has no layer, or nothing would train in a stage.
    """
    if config.lora.rank is None:
        return
    dtype, trained, usual = dtypes.compute_dtype(config.parallel), {}, []
    for name in STAGES:
        pipeline = getattr(cascade, name)
        if pipeline is None or not getattr(config, name).steps:
            continue
        models = {
            f'{component} of the {name} stage': abstract_network(
                component, pipeline.components[component].config, dtype
            )
            for component in trained_components(config, name, cascade)
        }
        of_stage = usual_targets(pipeline, trained_components(config, name, cascade))
        usual += [target for target in of_stage if target not in usual]
        for network, targets in lora_targets(config.lora, models, of_stage).items():
            if not targets:
                logging.warning(
                    'the %s is not trained: config.lora.targets %s has no layer of it', network, config.lora.targets
                )
        trained |= models
    if trained:
        try:
            lora.check_targets(trained, config.lora.targets or usual)
        except ValueError as error:
            raise ConfigError(f'config.lora: {error}') from None


def make_stage(
    config: DreamBoothConfig, name: str, cascade: Cascade, trainable: Trainable, teacher: Distillation | None = None
) -> Stage:
    """Makes the object that computes the loss of stage `name`.

    Args:
      trainable: the stage's networks in the form in which they train.
      teacher: the frozen model's prediction for class examples, for distillation; None: no distillation.
    """
    pipeline = getattr(cascade, name)
    shared = {
        'objective': Objective.from_settings(config.objective, random_flip=config.data.random_flip),
        'teacher': teacher,
    }
    if trainable.trains_text:
        prompt_encoder = cascade.prompt_encoder(name)
        encoders = {component: trainable.apply[component] for component in prompt_encoder.encoders}
        shared['encode'] = dataclasses.replace(prompt_encoder, encoders=encoders)
    apply = trainable.apply[trainable.denoiser]
    if name == BASE:
        return DenoisingLoss.of(pipeline, apply, **shared)
    return SuperResolutionLoss.of(
        pipeline,
        apply,
        **shared,
        factor=cascade.factor,
        noise_level=config.super_resolution.noise_level,
        crop=config.super_resolution.crop if pipeline.space.crops_in_step else None,
    )


def stage_data(
    config: DreamBoothConfig, name: str, cascade: Cascade, original: Cascade, table: Table, trainable: Trainable
) -> dict[str, Any]:
    """Returns the arrays that the loss of stage `name` reads besides weights: images or latents, and prompts.

    The arrays are on the host. Prompts are tokens if a text encoder trains, else they are encoded here once.
    """
    pipeline, size = getattr(cascade, name), table.images.shape[1:3]
    data = table.prompt_arrays | pipeline.space.prepare(
        table.images, table.masks, flip=config.data.random_flip, pairs=pipeline.family.is_super_resolution
    )
    if config.has_teacher(name):  # the teacher reads prompts with the text encoders before any training
        data['teacher_text'] = original.encode(table.prompts, name, size)
    if trainable.trains_text:
        return {**data, 'tokens': cascade.prompt_encoder(name).tokens(table.prompts, size)}
    return {**data, 'text': cascade.encode(table.prompts, name, size)}


def lr_multipliers(
    config: DreamBoothConfig, name: str, trainable: Trainable, *, learns_variance: bool
) -> dict[str, dict[str, Any]]:
    """Returns the multipliers of parameters that have another learning rate than stage `name` (scale_updates).

    Args:
      learns_variance: whether the denoiser's last layer predicts a variance, which the settings may freeze.

    Returns:
      Component -> parameter -> its learning rate divided by the stage's, or an array of such factors.
    """
    multipliers = {component: {} for component in trainable.params}
    denoiser = trainable.denoiser
    whole = config.lora.rank is None and denoiser in multipliers
    if learns_variance and not config.objective.train_variance and whole:
        multipliers[denoiser] = optimizer.variance_head_masks(trainable.params[denoiser])
    if name == BASE and config.base.text_encoder_learning_rate is not None:
        ratio = config.base.text_encoder_learning_rate / config.base.learning_rate
        multipliers |= {part: dict.fromkeys(trainable.params[part], ratio) for part in multipliers if part != denoiser}
    for component, rows in trainable.new_rows.items():
        usual = config.base.learning_rate if config.optimizer.kind == 'prodigy' else NEW_ROWS_LEARNING_RATE
        learning_rate = config.textual_inversion.learning_rate or usual
        multipliers[component][rows.name] = learning_rate / config.base.learning_rate
    return {component: part for component, part in multipliers.items() if part}


def stage_trainable(
    config: DreamBoothConfig, name: str, cascade: Cascade, *, dtype: Any = None, remat: bool | None = None
) -> Trainable:
    """Divides the networks of stage `name` into parameters that train and parameters that are frozen.

    Args:
      dtype, remat: as in make_trainable; None: as the settings say.
    """
    parallel = config.parallel
    return make_trainable(
        getattr(cascade, name),
        trained_components(config, name, cascade),
        config.lora,
        new_rows=textual_inversion.new_rows(cascade) if name == BASE else None,
        dtype=dtypes.compute_dtype(parallel) if dtype is None else dtype,
        remat=parallel.remat if remat is None else remat,
        seed=config.seed,
    )


def taught_examples(config: DreamBoothConfig, name: str) -> Taught:
    """Returns which class examples of stage `name` are held to the frozen model's prediction."""
    if config.is_distilled(name):
        return 'all'
    return 'half' if config.has_teacher(name) else 'none'


def make_feed(config: DreamBoothConfig, name: str, num_instance: Sequence[int], num_class: int) -> Feed:
    """Returns what decides which images each step of stage `name` sees.

    Args:
      num_instance: the number of instance images of each image size.
      num_class: the number of class images.
    """
    steps = getattr(config, name).steps
    return Feed(config.seed, steps, num_instance, num_class, taught=taught_examples(config, name))


def make_run(
    config: DreamBoothConfig,
    name: str,
    cascade: Cascade,
    original: Cascade,
    trainable: Trainable,
    feed: Feed,
    placement: Placement,
) -> TrainRun:
    """Returns the training of stage `name`, without its images and prompts and without callbacks.

    It computes nothing. To train, `frozen` needs the images in addition: 'data' is a list with what `stage_data` and
    `feed.arrays` give for each image size.

    Args:
      cascade: the model, in which earlier stages are trained already.
      original: the model before the run.
      trainable: the stage's networks (stage_trainable).
      feed: which images each step sees (make_feed).
      placement: how arrays are placed on devices.
    """
    settings, parts = getattr(config, name), getattr(config, name).gradient_accumulation_steps
    batch = feed.batch(settings.batch_size, settings.batch_size, config.prior.weight, placement.devices, parts)
    frozen = {'weights': trainable.frozen}
    teacher = None
    if config.has_teacher(name):  # the teacher is the denoiser before training
        whole = config.parallel.mode == 'pmap' or placement.devices == 1  # else one batch is sharded over devices
        network = getattr(original, name).denoiser
        teacher = Distillation(
            functools.partial(getattr(original, name).family.predict, network.apply),
            pairs.most_class_examples(batch, placement.devices, parts) if whole else None,
        )
        # Its weights are copied only if the denoiser trains as a whole, or has started from others (init_from).
        if trainable.denoiser not in trainable.frozen or config.init_from is not None:
            frozen['teacher'] = functional.cast_kernels(network.params, dtypes.compute_dtype(config.parallel))
    stage = make_stage(config, name, cascade, trainable, teacher)

    def loss(params, frozen, batch, keys):
        return stage.loss(trainable.assemble(params, frozen['weights']), frozen, batch, keys)

    def frozen_at(placed, step):
        found = {**placed['data'][feed.bucket(step)], 'weights': placed['weights']}
        if teacher is not None:  # adapters leave the frozen network where it is
            found['teacher'] = placed['teacher'] if 'teacher' in placed else placed['weights'][trainable.denoiser]
        return found

    multipliers = lr_multipliers(config, name, trainable, learns_variance=stage.process.learns_variance)
    learning_rate, tx = optimizer.from_settings(
        config.optimizer,
        settings.learning_rate,
        settings.steps,
        multipliers=multipliers,
        undecayed=[rows.name for rows in trainable.new_rows.values()],
    )
    return TrainRun(
        name=name,
        loss=loss,
        params=trainable.params,
        frozen=frozen,
        frozen_at=frozen_at,
        batch=batch,
        pick=feed.pick,
        tx=tx,
        learning_rate=learning_rate,
        ema_decay=config.ema_decay(name),
        placement=placement,
        budget=Budget(
            steps=settings.steps,
            per_dispatch=feed.steps_per_dispatch(config.parallel.steps_per_dispatch),
            gradient_accumulation_steps=parts,
        ),
        seed=config.seed,
        checkpoint=config.checkpoint,
    )


def usual_callbacks(
    config: DreamBoothConfig,
    workdir: Path,
    name: str,
    grid: SampleGrid,
    profiled: int | None = None,
    scored: Callable[[Callable[[TrainState], Cascade]], Callback] | None = None,
    sampled_on: Cascade | None = None,
) -> Callable[[Callable[[TrainState], Cascade], Cascade | None], list[Callback]]:
    """Returns what is done during the training of stage `name`, as `finetune` takes it: samples, a profile, scores.

    Args:
      grid: generates the samples.
      profiled: how many steps are traced; None: none.
      scored: (training state -> the model with its weights) -> the callback that scores; None: nothing is scored.
      sampled_on: the model that generates the samples with the adapters (samples_model.py); None: the one that trains.
    """

    if sampled_on is not None and config.samples.every:
        sampled_on.encode_ahead(grid.prompts, grid.options)
        sampled_on.release()

    def during(cascade_of, before):
        samples = {'folder': workdir / 'samples' / name, 'title': name, 'every': config.samples.every}
        if sampled_on is not None:
            cascade_of_samples = functools.partial(cascade_of, on=sampled_on)
            found = [SaveSamples(grid=grid, cascade_of=cascade_of_samples, **samples)]
        else:
            found = [SaveSamples(grid=grid, cascade_of=cascade_of, before=before, **samples)]
        if profiled is not None:
            found.append(Profile(workdir / 'profile' / name, profiled, getattr(config, name).steps))
        return found if scored is None else [*found, scored(cascade_of)]

    return during


def _same_weights(one: Cascade, other: Cascade) -> bool:
    """Whether two models have the same arrays as weights, as they do before anything has trained."""
    stages = ((getattr(one, name), getattr(other, name)) for name in STAGES)
    pairs_of = [(ours.components, theirs.components) for ours, theirs in stages if ours and theirs]
    return all(ours[name].params is theirs[name].params for ours, theirs in pairs_of for name in ours)


def finetune(
    config: DreamBoothConfig,
    workdir: Path,
    name: str,
    cascade: Cascade,
    original: Cascade,
    tables: Sequence[Table],
    callbacks: Callable[[Callable[[TrainState], Cascade], Cascade | None], Sequence[Callback]],
    placement: Placement,
) -> tuple[Cascade, bool]:
    """Fine-tunes one stage, starting from its newest checkpoint if there is one.

    Args:
      workdir: the run's folder.
      name: 'base' or 'super_resolution'.
      cascade: the model, in which earlier stages are trained already.
      original: the model before the run.
      tables: the stage's images, one table per image size.
      callbacks: (training state, on -> the model with its weights; the model before the run) -> what else is done
        during the training. With adapters alone, `on` may be another model that gets them. The model before the run
        shares its weights with the training; None: it cannot.
      placement: how arrays are placed on devices.

    Returns:
      The cascade with the trained stage, and whether the stage is finished.
    """
    trainable = stage_trainable(config, name, cascade)
    feed = make_feed(config, name, [table.num_instance for table in tables], tables[0].num_class)
    run = make_run(config, name, cascade, original, trainable, feed, placement)
    data = [{**stage_data(config, name, cascade, original, table, trainable), **feed.arrays} for table in tables]

    # Samples need no text encoder beside the training if none of it changes.
    if config.samples.every and not trainable.trains_text:
        options = SamplingOptions.of_samples(config.samples, config.super_resolution)
        for model in (cascade, original):
            model.encode_ahead(config.sample_prompts(), options)
    # Prompts and images are encoded; until samples are generated the devices are free for the training.
    cascade.release()
    original.release()

    # What is frozen is placed once, and generates samples too.
    frozen = placement.place(trainable.frozen)
    denoiser = trainable.denoiser

    def params_of(state):
        params = placement.to_global(state).best_params
        return {component: params[component] for component in trainable.params}

    def with_adapters(model, kernels, adapters):
        return model.with_params(**{name: {denoiser: trainable.beside(kernels, adapters)}})

    def cascade_of(state, on=None):
        params, model = params_of(state), on or cascade
        start = {component: network.params for component, network in getattr(model, name).components.items()}
        adapters = params.pop(denoiser) if trainable.adapts_denoiser else None
        # Those of text encoders are merged on the host, since prompts are read in float32.
        adapted = {part: given for part, given in params.items() if any(map(lora.is_adapter, given))}
        model = model.with_params(**{name: trainable.plain({**params, **placement.gather(adapted)}, start)})
        if adapters is None:
            return model
        return with_adapters(model, start[denoiser] if on else frozen[denoiser], adapters)

    # Adapters start without effect: with them the model before training needs no other weights and no other program.
    before = None
    if trainable.adapts_denoiser and _same_weights(cascade, original):
        before = with_adapters(cascade, frozen[denoiser], placement.place(trainable.params[denoiser]))
    during = callbacks(cascade_of, before)
    run = dataclasses.replace(run, frozen={**run.frozen, 'weights': frozen, 'data': data}, callbacks=during)
    state, finished = train_run.fit(run, workdir)
    return cascade.with_params(**{name: trainable.plain(placement.gather(params_of(state)))}), finished
