"""Small encoders of every kind as transformers builds and writes them, with random weights."""

import functools
from pathlib import Path

import numpy as np
import torch
import transformers

from tests.support import tiny_clip
from tests.support.torch_reference import randomise

SMALL = {'hidden_size': 32, 'num_attention_heads': 4, 'num_hidden_layers': 2}
CLIP_VISION = {**SMALL, 'intermediate_size': 48, 'image_size': 32, 'patch_size': 8, 'projection_dim': 24}
CLIP_TEXT = {
    **SMALL,
    'eos_token_id': tiny_clip.END,
    'intermediate_size': 48,
    'max_position_embeddings': tiny_clip.LENGTH,
    'projection_dim': 24,
    'vocab_size': tiny_clip.VOCABULARY_SIZE,
}
CONFIGS = {
    'dino': {**SMALL, 'intermediate_size': 48, 'image_size': 32, 'patch_size': 8},
    'dino_without_bias': {**SMALL, 'intermediate_size': 48, 'image_size': 32, 'patch_size': 8, 'qkv_bias': False},
    'dino_v2': {**SMALL, 'image_size': 112, 'patch_size': 28},
    'dino_v2_giant': {**SMALL, 'image_size': 112, 'patch_size': 28, 'use_swiglu_ffn': True},
    'dino_v2_registers': {**SMALL, 'image_size': 112, 'patch_size': 28, 'num_register_tokens': 3},
    'clip_vision': CLIP_VISION,
    'clip_vision_gelu': {**CLIP_VISION, 'hidden_act': 'gelu'},
    'clip_text': CLIP_TEXT,
    'clip': {'vision_config': CLIP_VISION, 'text_config': CLIP_TEXT, 'projection_dim': 24},
}
CLASSES = {
    'dino': (transformers.ViTConfig, transformers.ViTModel),
    'dino_v2': (transformers.Dinov2Config, transformers.Dinov2Model),
    'dino_v2_registers': (transformers.Dinov2WithRegistersConfig, transformers.Dinov2WithRegistersModel),
    'clip_vision': (transformers.CLIPVisionConfig, transformers.CLIPVisionModelWithProjection),
    'clip_text': (transformers.CLIPTextConfig, transformers.CLIPTextModelWithProjection),
    'clip': (transformers.CLIPConfig, transformers.CLIPModel),
}
CLASSES |= {
    'dino_without_bias': CLASSES['dino'],
    'dino_v2_giant': CLASSES['dino_v2'],
    'clip_vision_gelu': CLASSES['clip_vision'],
}
OF_IMAGES = tuple(name for name in CONFIGS if name != 'clip_text')


@functools.cache
def reference(name: str, seed: int = 1):
    config, model = CLASSES[name]
    return randomise(model(config(**CONFIGS[name])), seed=seed, std=0.2)


def write(name: str, folder: Path, seed: int = 1) -> Path:
    """Writes the folder that transformers writes, with a tokenizer where texts are read."""
    reference(name, seed).save_pretrained(folder)
    if name in ('clip', 'clip_text'):
        tiny_clip.tokenizer().save_pretrained(folder)
    return folder


def settings(folder: Path) -> str:
    """Writes both encoders of an evaluation into a folder; returns lines that ask for a few scores.

    They belong into the function of a settings file that returns `config`.
    """
    options = {name: str(write(name, folder / name)) for name in ('dino', 'clip')}
    options |= {'every': 2, 'num_prompts': 2, 'num_images': 1, 'class_images': 2, 'max_drift': 99.0}
    return ''.join(f'    config.evaluation.{name} = {value!r}\n' for name, value in options.items())


def pooled(name: str, pixels: np.ndarray, **options) -> tuple[np.ndarray, np.ndarray]:
    """(last hidden state, what the protocol pools) of f32[B, H, W, 3]."""
    theirs, images = reference(name), torch.from_numpy(np.array(pixels)).permute(0, 3, 1, 2)
    with torch.no_grad():
        if name == 'clip':
            output = theirs.get_image_features(images, **options)
            return output.last_hidden_state.numpy(), output.pooler_output.numpy()
        output = theirs(images, **options)
    states = output.last_hidden_state.numpy()
    return states, output.image_embeds.numpy() if name.startswith('clip') else states[:, 0]
