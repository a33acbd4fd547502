"""The training of a stage as a run will make it, with the shapes of its data, before class images are there."""

import dataclasses
import itertools
from collections.abc import Sequence
from typing import Any

import jax
import numpy as np

from dreambooth_jax.config import DreamBoothConfig
from dreambooth_jax.data.table import Examples, distinct_prompts
from dreambooth_jax.finetune.stage import make_feed, make_run, stage_trainable
from dreambooth_jax.finetune.trainable import Trainable
from dreambooth_jax.generation import class_images
from dreambooth_jax.generation.cascade import Cascade
from dreambooth_jax.training.placement import Placement
from dreambooth_jax.training.train_run import TrainRun


@dataclasses.dataclass(frozen=True, kw_only=True)
class PlannedStage:
    """The training of one stage. Nothing of it is on a device.

    Attributes:
      run: the same object that training carries out, but `frozen['data']` has shapes.
      trainable: the stage's networks.
      size: (height, width) in pixels of the largest images.
      on_largest: the same run with images of that size alone, whose step needs the most memory.
    """

    run: TrainRun
    trainable: Trainable
    size: tuple[int, int]
    on_largest: TrainRun


def plan_stage(
    config: DreamBoothConfig, name: str, cascade: Cascade, instance: Sequence[Examples], placement: Placement
) -> PlannedStage:
    """Makes the training of stage `name`; it computes nothing.

    Args:
      cascade: the model before training.
      instance: the subjects' images, one entry per image size.
      placement: how arrays will be placed.
    """
    trainable = stage_trainable(config, name, cascade)
    num_class = len(class_image_prompts(config)) if name in class_images.stages_of(config, cascade) else 0
    feed = make_feed(config, name, [len(examples.images) for examples in instance], num_class)
    run = make_run(config, name, cascade, cascade, trainable, feed, placement)
    data = [{**data_shapes(config, name, cascade, examples, trainable), **feed.arrays} for examples in instance]
    sizes = [examples.images.shape[1:3] for examples in instance]
    at = max(range(len(sizes)), key=lambda index: sizes[index][0] * sizes[index][1])
    return PlannedStage(
        run=dataclasses.replace(run, frozen={**run.frozen, 'data': data}),
        trainable=trainable,
        size=sizes[at],
        on_largest=dataclasses.replace(run, frozen={**run.frozen, 'data': [data[at]] * len(data)}),
    )


def data_shapes(
    config: DreamBoothConfig, name: str, cascade: Cascade, instance: Examples, trainable: Trainable
) -> dict[str, Any]:
    """Returns the shapes and dtypes of `stage.stage_data` for one image size, before class images are there.

    Args:
      instance: the subjects' images of that size.
      trainable: the stage's networks.
    """
    pipeline, taught = getattr(cascade, name), config.has_teacher(name)
    of_class = class_image_prompts(config) if name in class_images.stages_of(config, cascade) else []
    count, size = len(instance.images) + len(of_class), instance.images.shape[1:3]
    shape = lambda *lengths, dtype=np.int32: jax.ShapeDtypeStruct(lengths, dtype)  # noqa: E731
    images = pipeline.space.prepared_shapes(
        shape(count, *size, 3, dtype=np.uint8),
        None if instance.masks is None else shape(count, *size, 1, dtype=np.uint8),
        flip=config.data.random_flip,
        pairs=pipeline.family.is_super_resolution,
    )
    turns = instance.class_prompts if taught else ()
    prompts = distinct_prompts([*instance.prompts, *of_class, *itertools.chain(*turns)])
    encoded = repeated(cascade.conditioning_shapes(name), len(prompts))
    data = {**images, 'prompt_of': shape(count)}
    if taught:
        data |= {'class_prompt_of': shape(count, len(turns[0])), 'teacher_text': encoded}
    if not trainable.trains_text:
        return {**data, 'text': encoded}
    tokens = cascade.prompt_encoder(name).tokens(prompts, size)
    return {**data, 'tokens': jax.tree.map(lambda x: shape(*x.shape, dtype=x.dtype), tokens)}


def class_image_prompts(config: DreamBoothConfig) -> list[str]:
    """Returns the prompt of every class image that a stage has, if it trains on class images."""
    prompts = list(dict.fromkeys(subject.class_prompt for subject in config.subjects()))
    if own := class_images.own_photos(config):
        return [photo.caption or prompts[0] for photo in own]
    return [prompt for prompt in prompts for _ in range(config.prior.num_images)]


def repeated(shapes: Any, count: int) -> Any:
    """Returns the shapes of arrays with `count` entries, given those of arrays with one."""
    return jax.tree.map(lambda x: jax.ShapeDtypeStruct((count, *x.shape[1:]), x.dtype), shapes)
