"""New words of a base stage (textual inversion): rows of the text encoders' token tables, and the files that hold them.

A word gets tokens of its own, with ids behind the tokenizer's vocabulary. Their rows have the index of the id: behind
the token table or, if the table is longer than the vocabulary (T5 v1.1), in its unused part.

CLIP's published configurations have eos_token_id 2, which means that a text ends at its highest id. But the id of a new
token is higher than that of the end token, so Stable Diffusion XL's pooled state would be taken at the new word and
would miss everything after it. (This happens when diffusers' load_textual_inversion adds a token to such a model.) Here
the configuration gets the tokenizer's true end id, which is then used in training, in sampling and in exported models.
Source: Gal et al. 2022; diffusers 0.42.1 loaders/textual_inversion.py.
"""

import dataclasses
import logging
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np

from dreambooth_jax.config import ConfigError
from dreambooth_jax.generation.cascade import Cascade
from dreambooth_jax.models import clip, functional
from dreambooth_jax.text.tokenize import Tokenizer, TokenizerError, vector_names
from dreambooth_jax.weights.kinds import kind_of
from dreambooth_jax.weights.pipeline import Network, apply_of
from dreambooth_jax.weights.textual_inversion import read_textual_inversion

NEW_ROWS = 'new_rows'
_LAYERS = {
    't5': 'shared',
    'clip_text_model': 'text_model.embeddings.token_embedding',
}  # model type -> layer of the token table


class NewRows(NamedTuple):
    """The table rows of a text encoder's token table that are learned.

    Attributes:
      layer: path of the layer that holds the table.
      first: index of the first learned row.
      count: number of learned rows.
    """

    layer: str
    first: int
    count: int

    @property
    def name(self) -> str:
        """Name of the parameter f32[count, width] in which the rows train, beside the table or its frozen copy."""
        return f'{self.layer}.{NEW_ROWS}'

    def take(self, params: Mapping[str, Any]) -> Any:
        """Returns the learned rows of the table in a text encoder's parameters."""
        return params[f'{self.layer}.embedding'][self.first : self.first + self.count]

    def put(self, params: Mapping[str, Any]) -> dict[str, Any]:
        """Puts the separately trained rows into the table; returns the parameters of the plain text encoder. Pure."""
        params = dict(params)
        rows, table = params.pop(self.name), params[f'{self.layer}.embedding']
        on_host = isinstance(table, np.ndarray) and isinstance(rows, np.ndarray)
        params[f'{self.layer}.embedding'] = (np if on_host else jnp).concatenate(
            [table[: self.first], rows.astype(table.dtype), table[self.first + self.count :]]
        )
        return params


def table_layer(component: str, network: Network) -> str:
    """Returns the path of the layer that holds a text encoder's token table."""
    return _LAYERS[kind_of(component, network.config).model_type]


def with_rows(cascade: Cascade, tokens: Sequence[str], rows: Mapping[str, np.ndarray], *, dtype: Any) -> Cascade:
    """Adds tokens to the base stage of a cascade, in addition to those that were added before.

    Args:
      rows: text encoder -> f32[number of tokens, width of its table].
      dtype: the dtype that the text encoders compute in.

    Raises:
      TokenizerError: if a tokenizer has one of the tokens already.
    """
    base, networks = cascade.base, {}
    for component, network in base.text_encoders.items():
        tokenizer = Tokenizer.load(base.tokenizers[component], added=base.added_tokens)
        first = tokenizer.add_tokens(tokens)[0]
        networks[component] = _enlarged(component, network, first, rows[component], tokenizer, dtype)
    return cascade.with_tokens(networks, (*base.added_tokens, *tokens))


def with_embedding(cascade: Cascade, path: str | os.PathLike, prompts: Sequence[str] = ()) -> Cascade:
    """Adds the word of a textual inversion file to a cascade. Several files can be added one after the other.

    Args:
      path: a file that weights/textual_inversion.py reads. The word is the one that the file states, else its name.
      prompts: all prompts and negative prompts that will be used. If none holds the word, a warning is logged.

    Raises:
      WeightsError: if the file is something else, or of another model's text encoders.
      ConfigError: if the model knows the word already, it is not one word, or the numbers of rows differ.
    """
    widths = {
        component: network.params[f'{table_layer(component, network)}.embedding'].shape[1]
        for component, network in cascade.base.text_encoders.items()
    }
    token, rows = read_textual_inversion(path, widths)
    rename = 'give the file another name' if token == Path(path).stem else 'leave it out'
    # Tokenizers put a prompt into lower case before they look for added tokens.
    word = token.lower()
    if len(word.split()) != 1 or word != word.strip():
        raise ConfigError(f'{path} holds the word {token!r}, which is not one word; {rename}')
    count = len(rows['text_encoder'])
    if any(len(value) != count for value in rows.values()):
        found = {component: len(value) for component, value in rows.items()}
        raise ConfigError(f'{path} holds {found} rows, but all text encoders must have the same number; {rename}')
    try:
        cascade = with_rows(cascade, vector_names(word, count), rows, dtype=functional.compute_dtype())
    except TokenizerError:
        name = cascade.base.name
        raise ConfigError(f'{path} holds the word {token!r}, which {name} knows already; {rename}') from None
    if prompts and not any(word in prompt.lower() for prompt in prompts):
        logging.warning('no prompt holds %s, the word of %s: it generates nothing else', word, path)
    return cascade


def _enlarged(
    component: str, network: Network, first: int, rows: np.ndarray, tokenizer: Tokenizer, dtype: Any
) -> Network:
    new = NewRows(table_layer(component, network), first, len(rows))
    params = {name: np.asarray(value) for name, value in new.put({**network.params, new.name: rows}).items()}
    config = {**network.config, 'vocab_size': len(params[f'{new.layer}.embedding'])}
    if config.get('eos_token_id') == clip.END_IS_HIGHEST_ID and tokenizer.kind == 'clip':
        config['eos_token_id'] = tokenizer.end_id
    apply = apply_of(component, config, dtype, network.frozen_dtype)
    return dataclasses.replace(network, config=config, apply=apply, params=params)
