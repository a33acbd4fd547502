"""Tensors that checkpoints hold under other names, or that our networks have no use for: ties and history.

The rule of mapping.py names everything else. Patterns are regular expressions of whole names.
"""

from dreambooth_jax.weights.mapping import Alias

# transformers' T5 ties the encoder's token table to `shared` and files hold one of the names, or both.
T5_ALIASES: tuple[Alias, ...] = ((r'encoder\.embed_tokens\.weight', 'shared.weight'),)
# A checkpoint of the whole T5, of which a text-to-image model reads the encoder.
T5_IGNORED = (r'decoder\..*', r'lm_head\.weight')
