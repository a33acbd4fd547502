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

# models/vit.py has DINOv2's names. DINO's files have others for what lies around the attention; CLIP's for everything.
VISION_ALIASES: tuple[Alias, ...] = (
    (r'(encoder\.layer\.\d+)\.layernorm_before\.(weight|bias)', r'\1.norm1.\2'),
    (r'(encoder\.layer\.\d+)\.layernorm_after\.(weight|bias)', r'\1.norm2.\2'),
    (r'(encoder\.layer\.\d+)\.intermediate\.dense\.(weight|bias)', r'\1.mlp.fc1.\2'),
    (r'(encoder\.layer\.\d+)\.output\.dense\.(weight|bias)', r'\1.mlp.fc2.\2'),
    (r'vision_model\.embeddings\.class_embedding', 'embeddings.cls_token'),
    (r'vision_model\.embeddings\.patch_embedding\.weight', 'embeddings.patch_embeddings.projection.weight'),
    (r'vision_model\.embeddings\.position_embedding\.weight', 'embeddings.position_embeddings'),
    (r'vision_model\.pre_layrnorm\.(weight|bias)', r'pre_layrnorm.\1'),
    (r'vision_model\.post_layernorm\.(weight|bias)', r'layernorm.\1'),
    (r'vision_model\.encoder\.layers\.(\d+)\.layer_norm([12])\.(weight|bias)', r'encoder.layer.\1.norm\2.\3'),
    (r'vision_model\.encoder\.layers\.(\d+)\.(mlp\.fc[12])\.(weight|bias)', r'encoder.layer.\1.\2.\3'),
    *(
        (
            rf'vision_model\.encoder\.layers\.(\d+)\.self_attn\.{clips}\.(weight|bias)',
            rf'encoder.layer.\1.attention.{ours}.\2',
        )
        for clips, ours in (
            ('q_proj', 'attention.query'),
            ('k_proj', 'attention.key'),
            ('v_proj', 'attention.value'),
            ('out_proj', 'output.dense'),
        )
    ),
)
# The pooler is added by transformers and was never trained; masks are for pretraining. A checkpoint of the whole CLIP
# also holds the text encoder.
VISION_IGNORED = (
    r'pooler\.dense\.(weight|bias)',
    r'embeddings\.mask_token',
    r'.*position_ids',
    r'text_model\..*',
    r'text_projection\.weight',
    r'logit_scale',
)

# models/lpips.py has the names of the `lpips` package, which stores its weights of channels twice. AlexNet's features
# may also have torchvision's names.
LPIPS_ALIASES: tuple[Alias, ...] = (
    (r'lins\.(\d)\.model\.1\.weight', r'lin\1.model.1.weight'),
    *(
        (rf'features\.{index}\.(weight|bias)', rf'net.slice{place}.{index}.\1')
        for place, index in enumerate((0, 3, 6, 8, 10), 1)
    ),
)
# The scaling of the input is constant; AlexNet's classifier is not used.
LPIPS_IGNORED = (r'scaling_layer\.(shift|scale)', r'classifier\.[146]\.(weight|bias)')

# models/qwen3.py has the names of transformers' Qwen3Model, while published files are of Qwen3ForCausalLM. It has no
# head, and only those layers that are read.
QWEN3_ALIASES: tuple[Alias, ...] = ((r'model\.(.*)', r'\1'),)
QWEN3_IGNORED = (r'lm_head\.weight', r'(model\.)?layers\.\d+\..*', r'(model\.)?norm\.weight')

# How many batches the batch norm of FLUX.2's autoencoder has seen; only its mean and variance are used.
FLUX2_VAE_IGNORED = (r'bn\.num_batches_tracked',)
