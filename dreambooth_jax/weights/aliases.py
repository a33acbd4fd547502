"""Which tensors of a checkpoint have another name than the rule of mapping.py gives them, and which are not used.

An alias maps a name that older or newer files use to the name of the parameter. An ignored tensor belongs to a part of
the model that our networks do not have. Patterns are regular expressions that must match the whole name.
"""

from dreambooth_jax.weights.mapping import Alias

# transformers' T5 ties the encoder's token table to `shared`; a file holds it under one of the two names or under both.
T5_ALIASES: tuple[Alias, ...] = ((r'encoder\.embed_tokens\.weight', 'shared.weight'),)
# These are in a checkpoint of the whole T5; a text-to-image model uses only the encoder.
T5_IGNORED = (r'decoder\..*', r'lm_head\.weight')

# transformers 5 writes CLIPTextModel without the prefix `text_model.`. CLIPTextModelWithProjection and all earlier
# versions write the prefix.
CLIP_ALIASES: tuple[Alias, ...] = ((r'((?:embeddings|encoder|final_layer_norm)\..*)', r'text_model.\1'),)
# Older files hold position_ids, which are the numbers 0..76. A checkpoint of the whole CLIP also holds the image
# encoder, and the text projection, which a text encoder without a projection does not use.
CLIP_IGNORED = (
    r'.*position_ids',
    r'vision_model\..*',
    r'visual_projection\.weight',
    r'text_projection\.weight',
    r'logit_scale',
)

# Names of the attention layers in the autoencoders of Stable Diffusion 1.x and 2.x.
VAE_ALIASES: tuple[Alias, ...] = tuple(
    (rf'(.*\.attentions\.\d+)\.{old}\.(weight|bias)', rf'\1.{new}.\2')
    for old, new in (('query', 'to_q'), ('key', 'to_k'), ('value', 'to_v'), ('proj_attn', 'to_out.0'))
)
