"""Pipeline folders with one bent value, and whether such a model can be used, found out without computing anything."""

import json
import os
import shutil
from pathlib import Path

import jax
import numpy as np

from dreambooth_jax.config import ConfigError
from dreambooth_jax.diffusion import samplers, schedules
from dreambooth_jax.families.prompts import take
from dreambooth_jax.generation.cascade import BASE, STAGES, Cascade
from dreambooth_jax.text.tokenize import TokenizerError
from dreambooth_jax.weights.errors import WeightsError

ABSENT = 'absent'
VALUES = (None, 'x', -1, 0, 1, 1.5, [], [8, 12], {}, True, ABSENT)
_TRACED: set[str] = set()


def copied(source: Path, target: Path) -> Path:
    """Copies a folder, linking the weights, so that the other files can be bent."""

    def copy(file, destination):
        (os.link if file.endswith('.safetensors') else shutil.copyfile)(file, destination)

    return Path(shutil.copytree(source, target, copy_function=copy))


def json_files(folder: Path) -> list[str]:
    """Names of the configurations that can be bent, including those of tokenizers."""
    names = (str(path.relative_to(folder)) for path in sorted(folder.rglob('*.json')))
    return [name for name in names if not name.endswith(('tokenizer.json', 'added_tokens.json', 'vocab.json'))]


def bend(file: Path, key: str, value) -> None:
    """Sets a key of a JSON file, or removes it."""
    content = json.loads(file.read_text())
    if value == ABSENT:
        content.pop(key, None)
    else:
        content[key] = value
    file.unlink()
    file.write_text(json.dumps(content))


def cases(folder: Path):
    """Yields (file, key, value) for everything that can be bent in a folder."""
    for name in json_files(folder):
        for key in json.loads((folder / name).read_text()):
            for value in VALUES:
                yield name, key, value


def outcome(folder: Path, **options) -> str | None:
    """Tries whether the model can generate, as far as shapes show it.

    Returns: None if it can; otherwise the sentence of the error.
    Raises: any other exception, which is not meant for users.
    """
    try:
        cascade = Cascade.load(folder, **options)
        for stage in STAGES:
            if getattr(cascade, stage) is not None:
                _trace(cascade, stage)
    except (WeightsError, ConfigError, TokenizerError) as error:
        return str(error)
    return None


def _trace(cascade: Cascade, stage: str) -> None:
    pipeline = getattr(cascade, stage)
    schedule = schedules.from_config(pipeline.scheduler)
    for sampler in ('ddpm', 'ddim', 'dpmsolver++'):
        assert np.isfinite(np.asarray(jax.tree.leaves(samplers.step_table(schedule, sampler, 3))[0])).all()
    # A token beyond the table would give NaN without an error, which shapes do not show.
    conditioning = cascade.prompt_encoder(stage)
    reader = cascade._reader(stage)
    encoders = {component: shapes(network.params) for component, network in reader.text_encoders.items()}
    tokens = conditioning.tokens(['', 'a dog'])
    for component, network in reader.text_encoders.items():
        rows = next(
            v.shape[0]
            for k, v in network.params.items()
            if k.endswith(('shared.embedding', 'token_embedding.embedding'))
        )
        assert tokens[component]['ids'].max() < rows
    size = cascade.base_size if stage == BASE else cascade.super_resolution_size
    low = {}
    if stage != BASE:
        assert pipeline.family.highest_noise_level(pipeline) >= 0 and cascade.factor >= 1
        low_size = cascade.base_size
        low = {
            'low': jax.ShapeDtypeStruct((2, low_size, low_size, 3), 'float32'),
            'level': jax.ShapeDtypeStruct((2,), 'int32'),
        }
    tokens = shapes(take(tokens, np.array([1, 1])))
    # Most bends leave one of two stages as it was, and some change nothing: what has been traced is not again.
    networks = [{name: network.config for name, network in one.components.items()} for one in (pipeline, reader)]
    settings = (pipeline.class_name, pipeline.scheduler, pipeline.image_noising_scheduler, pipeline.options)
    traced = repr((stage, size, low, tokens, networks, settings))
    if traced in _TRACED:
        return
    text = jax.eval_shape(conditioning, encoders, tokens)
    # Sampling, decoding and encoding are traced with abstract arrays, which finds every mismatch of shapes.
    keys = jax.eval_shape(lambda: jax.random.split(jax.random.key(0), 2))
    sample = cascade.sampler(stage, 2, 4.0, 'ddim')
    scale = jax.ShapeDtypeStruct((2,), 'float32')
    sampled = jax.eval_shape(sample, shapes(pipeline.denoiser.params), text, text, scale, keys, **low)
    vae = pipeline.components.get('vae')
    if vae is not None:
        sampled = jax.eval_shape(lambda p, x: vae.apply(p, x, method='decode'), shapes(vae.params), sampled)
        jax.eval_shape(lambda p, x: vae.apply(p, x, method='encode'), shapes(vae.params), sampled)
    assert sampled.shape == (2, size, size, 3)
    _TRACED.add(traced)


def shapes(tree):
    return jax.tree.map(lambda array: jax.ShapeDtypeStruct(np.shape(array), array.dtype), dict(tree))
