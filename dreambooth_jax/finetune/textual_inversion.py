"""Textual inversion: a new word for the base stage, whose rows in the text encoders' token tables train.

generation/new_words.py defines the index of these rows and how they are read. The original cascade does not get the
word; it generates class images and the base model's side of sample grids.
Source: Gal et al. 2022; diffusers 0.42.1 examples/textual_inversion/textual_inversion.py.
"""

import dataclasses
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np

from dreambooth_jax.config import ConfigError, TextualInversionConfig
from dreambooth_jax.generation.cascade import Cascade
from dreambooth_jax.generation.new_words import NewRows, table_layer, with_rows
from dreambooth_jax.text.tokenize import Tokenizer, TokenizerError, vector_names
from dreambooth_jax.weights.errors import WeightsError
from dreambooth_jax.weights.pipeline import Network
from dreambooth_jax.weights.textual_inversion import file_name, read_textual_inversion, write_textual_inversion


def with_word(cascade: Cascade, settings: TextualInversionConfig, *, dtype: Any, seed: int) -> Cascade:
    """Adds the word of `settings` to the base stage, with the initial values of its rows.

    Args:
      dtype: the dtype that the text encoders compute in.
      seed: seed of random rows, if there is no initializer.

    Returns:
      The cascade with the word; the same cascade if the settings have no word.

    Raises:
      ConfigError: if a tokenizer has the token already, or the initializer has no tokens or more tokens than rows.
    """
    if settings.token is None:
        return cascade
    starts = {}
    for index, (component, network) in enumerate(cascade.base.text_encoders.items()):
        tokenizer = Tokenizer.load(cascade.base.tokenizers[component])
        starts[component] = _start(tokenizer, component, network, settings, np.random.default_rng((seed, index)))
    try:
        return with_rows(cascade, vector_names(settings.token, settings.num_vectors), starts, dtype=dtype)
    except TokenizerError as error:
        raise ConfigError(f'config.textual_inversion.token of {cascade.base.name}: {error}') from None


def new_rows(cascade: Cascade) -> dict[str, NewRows]:
    """Returns text encoder -> table rows of the base stage's new word; empty if there is none."""
    added = cascade.base.added_tokens
    if not added:
        return {}
    found = {}
    for component, tokenizer in cascade.prompt_encoder().tokenizers.items():
        network = cascade.base.components[component]
        found[component] = NewRows(table_layer(component, network), tokenizer.ids_of(added)[0], len(added))
    return found


def write_learned(cascade: Cascade, folder: Path, dtype: str = 'float32') -> Path | None:
    """Writes the learned rows to a file named after the word, reads it back and compares.

    Args:
      dtype: dtype of the stored rows, one of files.STORAGE_DTYPES.

    Returns:
      The path of the file; None if there is no new word.

    Raises:
      WeightsError: if the file cannot be written, or differs when it is read back.
    """
    rows = {part: np.asarray(new.take(cascade.base.components[part].params)) for part, new in new_rows(cascade).items()}
    if not rows:
        return None
    token = cascade.base.added_tokens[0]
    path = folder / file_name(token)
    write_textual_inversion(path, token, rows, dtype=dtype)
    read = read_textual_inversion(path, {part: value.shape[1] for part, value in rows.items()})
    same = (np.array_equal(read[1][part], value.astype(jnp.dtype(dtype))) for part, value in rows.items())
    if read[0] != token or not all(same):
        raise WeightsError(f'{path} does not read back as written: the rows of {token} differ.')
    return path


def without_word(cascade: Cascade) -> Cascade:
    """Removes the new word's rows from the text encoders' token tables; everything else that was learned stays.

    Formats that cannot hold longer token tables need this. The rows are written to a file of their own (write_learned).
    It is right for CLIP, whose table ends with these rows.
    """
    networks = {}
    for component, rows in new_rows(cascade).items():
        network = cascade.base.components[component]
        name = f'{rows.layer}.embedding'
        table = np.delete(np.asarray(network.params[name]), np.s_[rows.first : rows.first + rows.count], axis=0)
        config = {**network.config, 'vocab_size': len(table)}
        networks[component] = dataclasses.replace(network, config=config, params={**network.params, name: table})
    return cascade.with_tokens(networks, ()) if networks else cascade


def _start(
    tokenizer: Tokenizer, component: str, network: Network, settings: TextualInversionConfig, rng: np.random.Generator
) -> np.ndarray:
    table = np.asarray(network.params[f'{table_layer(component, network)}.embedding'])[: tokenizer.vocabulary_size]
    count = settings.num_vectors
    if settings.initializer is None:
        return rng.normal(table.mean(0), table.std(0), (count, table.shape[1])).astype(np.float32)
    ids = tokenizer.token_ids([settings.initializer])[0]
    if not 0 < len(ids) <= count:
        raise ConfigError(
            f'config.textual_inversion.initializer {settings.initializer!r} is {len(ids)} tokens to the tokenizer of '
            f'the {component}, but must be 1 to {count} (config.textual_inversion.num_vectors); choose another word'
        )
    return table[np.resize(ids, count)]
