"""Writes encoders of images and texts in the files of transformers, with the names that published ones have.

    config.json, model.safetensors     of a ViT (DINO's layout) or of a whole CLIP

encoder_folders.py reads them again, and transformers' ViTModel and CLIPModel open them. A CLIP's tokenizer is written
by whoever made it.
"""

import json
import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from flax import nnx

from dreambooth_jax.models import functional
from dreambooth_jax.models.clip import CLIPTextModel
from dreambooth_jax.models.vit import VisionTransformer
from dreambooth_jax.weights import encoder_folders, files, mapping
from dreambooth_jax.weights.encoder_folders import IMAGE, TEXT

# models/vit.py has DINOv2's names; these are aliases.VISION_ALIASES the other way round, for each kind of folder.
_LAYER = r'encoder\.layer\.(\d+)'
_NAMES = {
    'vit': (
        (rf'{_LAYER}\.norm1\.(.*)', r'encoder.layer.\1.layernorm_before.\2'),
        (rf'{_LAYER}\.norm2\.(.*)', r'encoder.layer.\1.layernorm_after.\2'),
        (rf'{_LAYER}\.mlp\.fc1\.(.*)', r'encoder.layer.\1.intermediate.dense.\2'),
        (rf'{_LAYER}\.mlp\.fc2\.(.*)', r'encoder.layer.\1.output.dense.\2'),
    ),
    'clip': (
        (r'embeddings\.cls_token', 'vision_model.embeddings.class_embedding'),
        (r'embeddings\.patch_embeddings\.projection\.weight', 'vision_model.embeddings.patch_embedding.weight'),
        (r'embeddings\.position_embeddings', 'vision_model.embeddings.position_embedding.weight'),
        (r'pre_layrnorm\.(.*)', r'vision_model.pre_layrnorm.\1'),
        (r'layernorm\.(.*)', r'vision_model.post_layernorm.\1'),
        (rf'{_LAYER}\.norm([12])\.(.*)', r'vision_model.encoder.layers.\1.layer_norm\2.\3'),
        (rf'{_LAYER}\.mlp\.(.*)', r'vision_model.encoder.layers.\1.mlp.\2'),
        (rf'{_LAYER}\.attention\.attention\.query\.(.*)', r'vision_model.encoder.layers.\1.self_attn.q_proj.\2'),
        (rf'{_LAYER}\.attention\.attention\.key\.(.*)', r'vision_model.encoder.layers.\1.self_attn.k_proj.\2'),
        (rf'{_LAYER}\.attention\.attention\.value\.(.*)', r'vision_model.encoder.layers.\1.self_attn.v_proj.\2'),
        (rf'{_LAYER}\.attention\.output\.dense\.(.*)', r'vision_model.encoder.layers.\1.self_attn.out_proj.\2'),
    ),
}


def write_encoder(
    folder: str | os.PathLike,
    config: Mapping[str, Any],
    params: Mapping[str, functional.Params],
    *,
    logit_scale: float | None = None,
    dtype: str = 'float16',
) -> None:
    """Writes config.json and model.safetensors of a ViT or a whole CLIP; files that stand there are replaced.

    Args:
      folder: where to write them; it is made.
      config: the contents of config.json, with model_type 'vit' or 'clip'.
      params: {IMAGE: parameters of its VisionTransformer}, and for CLIP also {TEXT: parameters of its CLIPTextModel
        with projection}.
      logit_scale: of a CLIP, the logarithm of the factor on cosines that it was trained with. Scores do not need it,
        but transformers expects it.
      dtype: how the weights are stored, one of files.STORAGE_DTYPES.

    Raises:
      WeightsError: if the parameters do not fit the configuration, or the disk does not take the files.
    """
    folder = Path(folder)
    configs = encoder_folders.own_configs(config)
    image, text = (
        None if part not in configs else nnx.eval_shape(lambda part=part: _make(part, configs[part]))
        for part in (IMAGE, TEXT)
    )
    exported = mapping.export(image, params[IMAGE])
    tensors = {_published(name, config['model_type']): value for name, value in exported.items()}
    if text is not None:
        tensors |= mapping.export(text, params[TEXT])
        tensors['logit_scale'] = np.float32(logit_scale)
    folder.mkdir(parents=True, exist_ok=True)
    files.write_tensors(folder / f'model{files.SUFFIX}', tensors, dtype=dtype)
    (folder / 'config.json').write_text(json.dumps(config, indent=2) + '\n', 'utf-8')


def _make(part: str, config: Mapping[str, Any]) -> nnx.Module:
    rngs = functional.Keys(0)
    return VisionTransformer(config, rngs=rngs) if part == IMAGE else CLIPTextModel(config, rngs=rngs, projection=True)


def _published(name: str, kind: str) -> str:
    for pattern, published in _NAMES[kind]:
        if match := re.fullmatch(pattern, name):
            return match.expand(published)
    return name
