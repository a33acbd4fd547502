"""Textual inversion: a new word for the base stage, of which only the rows in the text encoders' token tables train.

The word gets tokens of its own behind the tokenizer's vocabulary; the rows stand where their ids point: behind the
token table, or, where the table is longer than the vocabulary (T5 v1.1), in its unused part. The original cascade keeps
its tokenizers and draws class pictures and comparisons.

CLIP's published configurations have eos_token_id 2, which means that a text ends at its highest id. A new token's id is
higher than that of the end, so Stable Diffusion XL's pooled state would be taken at the new word and not hear what
follows it; so it is when diffusers' load_textual_inversion adds a token to such a model. Here the configuration gets
the tokenizer's true end, which transformers and we then look for, in training, in drawing and in what is exported.
Source: Gal et al. 2022; diffusers 0.42.1 examples/textual_inversion/textual_inversion.py, loaders/textual_inversion.py.
"""

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np

from dreambooth_jax.config import SettingsError, TextualInversionConfig
from dreambooth_jax.generation.cascade import Cascade
from dreambooth_jax.models import clip, functional
from dreambooth_jax.text.tokenize import Tokenizer, TokenizerError, vector_names
from dreambooth_jax.weights.errors import WeightsError
from dreambooth_jax.weights.pipeline import Network, abstract_network, kind_of
from dreambooth_jax.weights.textual_inversion import read_textual_inversion, write_textual_inversion

LAYERS = {'t5': 'shared', 'clip_text_model': 'text_model.embeddings.token_embedding'}  # that hold the token tables
NEW_ROWS = 'new_rows'


class NewRows(NamedTuple):
    """The rows of a text encoder's token table that are learned.

    Attributes:
      layer: that holds the table. first, count: the rows.
    """

    layer: str
    first: int
    count: int

    @property
    def name(self) -> str:
        """Under which they train, beside the table or its frozen copy: f32[count, width]."""
        return f'{self.layer}.{NEW_ROWS}'

    def take(self, params: Mapping[str, Any]) -> Any:
        """The rows of a text encoder's parameters."""
        return params[f'{self.layer}.embedding'][self.first : self.first + self.count]

    def put(self, params: Mapping[str, Any]) -> dict[str, Any]:
        """Parameters and the rows beside them -> the parameters of the plain text encoder; pure."""
        params = dict(params)
        rows, table = params.pop(self.name), params[f'{self.layer}.embedding']
        params[f'{self.layer}.embedding'] = jnp.concatenate(
            [table[: self.first], rows.astype(table.dtype), table[self.first + self.count :]]
        )
        return params


def with_word(cascade: Cascade, settings: TextualInversionConfig, *, dtype: Any, seed: int) -> Cascade:
    """The cascade whose base stage knows the word of `settings`, its rows at their start; itself without a word.

    Args:
      dtype: of the compute. seed: of rows without initializer.
    Raises: SettingsError if a tokenizer has the token, or reads the initializer as more tokens than there are rows.
    """
    if settings.token is None:
        return cascade
    tokens = vector_names(settings.token, settings.num_vectors)
    networks = {}
    for place, (component, network) in enumerate(cascade.base.text_encoders.items()):
        tokenizer = Tokenizer.load(cascade.base.tokenizer_folders[component])
        start = _start(tokenizer, component, network, settings, np.random.default_rng((seed, place)))
        try:
            first = tokenizer.add_tokens(tokens)[0]
        except TokenizerError as error:
            raise SettingsError(f'config.textual_inversion.token of {cascade.base.name}: {error}') from None
        networks[component] = _enlarged(component, network, first, start, tokenizer, dtype)
    return cascade.with_tokens(networks, tokens)


def new_rows(cascade: Cascade) -> dict[str, NewRows]:
    """Text encoder -> the rows of the base stage's new word; empty without one."""
    added = cascade.base.added_tokens
    if not added:
        return {}
    found = {}
    for component, tokenizer in cascade.conditioning().tokenizers.items():
        network = getattr(cascade.base, component)
        found[component] = NewRows(_layer(component, network), tokenizer.ids_of(added)[0], len(added))
    return found


def write_learned(cascade: Cascade, path: Path, dtype: str = 'float32') -> int:
    """Writes what was learned to a file, reads it back and compares; nothing without a new word.

    Args:
      dtype: of the stored rows, one of files.STORAGE_DTYPES.
    Returns: the number of tensors. Raises: WeightsError if they do not read back, or the disk does not take them.
    """
    rows = {part: np.asarray(new.take(getattr(cascade.base, part).params)) for part, new in new_rows(cascade).items()}
    if not rows:
        return 0
    token = cascade.base.added_tokens[0]
    write_textual_inversion(path, token, rows, dtype=dtype)
    read = read_textual_inversion(path, {part: value.shape[1] for part, value in rows.items()})
    same = (np.array_equal(read[1][part], value.astype(jnp.dtype(dtype))) for part, value in rows.items())
    if read[0] != token or not all(same):
        raise WeightsError(f'{path} does not read back as written: the rows of {token} differ.')
    return len(rows)


def without_word(cascade: Cascade) -> Cascade:
    """The cascade whose CLIP text encoders know no more words than at first; what else was learned stays.

    It is for formats without a place for longer token tables; the rows go into a file of their own (write_learned).
    """
    networks = {}
    for component, rows in new_rows(cascade).items():
        network = getattr(cascade.base, component)
        name = f'{rows.layer}.embedding'
        table = np.delete(np.asarray(network.params[name]), np.s_[rows.first : rows.first + rows.count], axis=0)
        config = {**network.config, 'vocab_size': len(table)}
        networks[component] = dataclasses.replace(network, config=config, params={**network.params, name: table})
    return cascade.with_tokens(networks, ()) if networks else cascade


def _layer(component: str, network: Network) -> str:
    return LAYERS[kind_of(component, network.config).model_type]


def _start(
    tokenizer: Tokenizer, component: str, network: Network, settings: TextualInversionConfig, rng: np.random.Generator
) -> np.ndarray:
    table = np.asarray(network.params[f'{_layer(component, network)}.embedding'])[: tokenizer.vocabulary_size]
    count = settings.num_vectors
    if settings.initializer is None:
        return rng.normal(table.mean(0), table.std(0), (count, table.shape[1])).astype(np.float32)
    ids = tokenizer.token_ids([settings.initializer])[0]
    if not 0 < len(ids) <= count:
        raise SettingsError(
            f'config.textual_inversion.initializer {settings.initializer!r} is {len(ids)} tokens to the tokenizer of '
            f'the {component}, but must be 1 to {count} (config.textual_inversion.num_vectors); choose another word'
        )
    return table[np.resize(ids, count)]


def _enlarged(
    component: str, network: Network, first: int, rows: np.ndarray, tokenizer: Tokenizer, dtype: Any
) -> Network:
    new = NewRows(_layer(component, network), first, len(rows))
    params = {name: np.asarray(value) for name, value in new.put({**network.params, new.name: rows}).items()}
    config = {**network.config, 'vocab_size': len(params[f'{new.layer}.embedding'])}
    if config.get('eos_token_id') == clip.END_IS_HIGHEST_ID and tokenizer.kind == 'clip':
        config['eos_token_id'] = tokenizer.end_id
    apply, _ = functional.split(abstract_network(component, config, dtype))
    return dataclasses.replace(network, config=config, apply=apply, params=params)
