"""Tensors that checkpoints hold under other names, or that our networks have no use for: ties and history.

The rule of mapping.py names everything else. Patterns are regular expressions of whole names.
"""

from dreambooth_jax.weights.mapping import Alias

# transformers' T5 ties the encoder's token table to `shared` and files hold one of the names, or both.
T5_ALIASES: tuple[Alias, ...] = ((r'encoder\.embed_tokens\.weight', 'shared.weight'),)
# A checkpoint of the whole T5, of which a text-to-image model reads the encoder.
T5_IGNORED = (r'decoder\..*', r'lm_head\.weight')

# transformers 5 writes CLIPTextModel without this prefix, and CLIPTextModelWithProjection, as all before it, with it.
CLIP_ALIASES: tuple[Alias, ...] = ((r'((?:embeddings|encoder|final_layer_norm)\..*)', r'text_model.\1'),)
# Older files hold the numbers 0..76; a checkpoint of the whole CLIP holds the images' side too, and the projection,
# which a text encoder without it has no use for.
CLIP_IGNORED = (
    r'.*position_ids',
    r'vision_model\..*',
    r'visual_projection\.weight',
    r'text_projection\.weight',
    r'logit_scale',
)

# Attention's names in the autoencoders of Stable Diffusion 1.x and 2.x.
VAE_ALIASES: tuple[Alias, ...] = tuple(
    (rf'(.*\.attentions\.\d+)\.{old}\.(weight|bias)', rf'\1.{new}.\2')
    for old, new in (('query', 'to_q'), ('key', 'to_k'), ('value', 'to_v'), ('proj_attn', 'to_out.0'))
)
