"""What tiny random pipelines of rectified flows share: text encoders, autoencoder, random values, configurations.

Everything is random, gates, modulation and statistics too, so that nothing is without effect.
"""

import dataclasses
import json
import shutil
from pathlib import Path

import diffusers
import jax
import numpy as np
import torch
from flax import nnx
from transformers import CLIPTextConfig, Qwen3Config, T5Config, T5Tokenizer

from dreambooth_jax.config import DreamBoothConfig
from dreambooth_jax.models import functional, lora
from dreambooth_jax.storybook import vocabulary
from dreambooth_jax.weights import lora_files
from dreambooth_jax.weights.pipeline import Pipeline, abstract_network
from tests.support import tiny_clip

RANK, ALPHA = 2, 4.0  # of adapters


def randomise(module: torch.nn.Module, seed: int) -> torch.nn.Module:
    """Gives matrices the scale of their input, and everything else values near what it starts with."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, value in module.named_parameters():
            noise = torch.randn(value.shape, generator=generator)
            if value.ndim >= 2:
                whole = 'embed_tokens' in name or 'shared' in name or name.endswith('pad_token')
                value.copy_(noise if whole else noise / value[0].numel() ** 0.5)
            else:
                value.copy_(0.1 * noise + ('norm' in name and name.endswith('weight')))
        for name, value in module.named_buffers():
            if name.endswith('running_mean'):
                value.copy_(0.3 * torch.randn(value.shape, generator=generator))
            elif name.endswith('running_var'):
                value.copy_(0.5 + torch.rand(value.shape, generator=generator))
    return module.eval()


def qwen_config() -> Qwen3Config:
    """The configuration of a Qwen3 of 4 layers that are 16 wide."""
    return Qwen3Config(
        hidden_size=16,
        intermediate_size=32,
        num_hidden_layers=4,
        num_attention_heads=2,
        num_key_value_heads=1,
        head_dim=8,
        vocab_size=320,
        max_position_embeddings=512,
        rope_theta=1000000,
        tie_word_embeddings=True,
        bos_token_id=None,
        eos_token_id=None,
        pad_token_id=None,
    )


def changed(source: Path, folder: Path, component: str | None, **entries) -> Path:
    """Copies a pipeline folder with other entries in one of its configurations; None: in model_index.json."""
    shutil.copytree(source, folder)
    path = folder / 'model_index.json' if component is None else next((folder / component).glob('*config.json'))
    path.write_text(json.dumps(json.loads(path.read_text()) | entries))
    return folder


def settings(**base) -> DreamBoothConfig:
    """Settings that a rectified flow can follow, with these of the base stage."""
    default = DreamBoothConfig()
    return dataclasses.replace(
        default,
        base=dataclasses.replace(default.base, steps=2, **base),
        prior=dataclasses.replace(default.prior, sampler='euler'),
        samples=dataclasses.replace(default.samples, sampler='euler'),
    )


def usual_lora(pipeline: Pipeline) -> dict:
    """Returns adapters of the layers that get them unless settings name others; their B are random."""
    network = pipeline.denoiser
    model = abstract_network(pipeline.family.denoiser, network.config)
    options = {'rank': RANK, 'alpha': ALPHA, 'targets': pipeline.family.lora_targets}
    adapted = nnx.eval_shape(lambda model: lora.adapt(model, rngs=functional.Keys(0), **options), model)
    _, shapes = functional.split(adapted)
    params = lora.init_adapter(shapes, network.params, rngs=functional.Keys(1))
    keys = jax.random.split(jax.random.key(2), len(params))
    return params | {
        name: 0.3 * jax.random.normal(key, value.shape)
        for key, (name, value) in zip(keys, params.items(), strict=True)
        if name.endswith(lora.B)
    }


def read_back(folder: Path, pipeline: Pipeline, params: dict, format: str) -> None:
    """Writes adapters as a file that diffusers finds in `folder`, and checks that they are read back the same."""
    family, path = pipeline.family, folder / lora_files.PEFT_FILE
    adapter = lora_files.Adapter({family.denoiser: params}, RANK, ALPHA)
    lora_files.write_lora(path, adapter, format, originals=family.lora_layers)
    networks = {family.denoiser: pipeline.denoiser.params}
    back = lora_files.read_lora(path, networks, originals=family.lora_layers)
    assert back.params[family.denoiser].keys() == params.keys() and back.rank == RANK
    for name, value in back.params[family.denoiser].items():
        # A file may hold alpha / rank as a part of B.
        scale = back.alpha / ALPHA if name.endswith(lora.B) else 1
        np.testing.assert_allclose(scale * value, params[name], rtol=1e-6)


def autoencoder(scaling_factor: float, shift_factor: float) -> diffusers.AutoencoderKL:
    """An autoencoder of 4 channels that halves images once, without quantisation layers, as flow models have it."""
    return diffusers.AutoencoderKL(
        block_out_channels=(8, 16),
        down_block_types=('DownEncoderBlock2D',) * 2,
        up_block_types=('UpDecoderBlock2D',) * 2,
        layers_per_block=1,
        latent_channels=4,
        norm_num_groups=4,
        sample_size=32,
        scaling_factor=scaling_factor,
        shift_factor=shift_factor,
        use_quant_conv=False,
        use_post_quant_conv=False,
    )


def clip_config(activation: str) -> CLIPTextConfig:
    """The configuration of a CLIP of 3 layers that are 16 wide, for the tokenizer of tiny_clip.py."""
    return CLIPTextConfig(
        hidden_size=16,
        intermediate_size=32,
        num_hidden_layers=3,
        num_attention_heads=2,
        projection_dim=16,
        vocab_size=tiny_clip.VOCABULARY_SIZE,
        max_position_embeddings=tiny_clip.LENGTH,
        hidden_act=activation,
        eos_token_id=2,  # as in published files: the end of a text is its highest id
    )


def t5_config(width: int) -> T5Config:
    """The configuration of a T5 of 2 layers that knows Storybook's tokens."""
    return T5Config(
        d_model=width,
        d_kv=8,
        d_ff=2 * width,
        num_layers=2,
        num_heads=2,
        vocab_size=len(vocabulary.pieces()),
        feed_forward_proj='gated-gelu',
        relative_attention_num_buckets=8,
        relative_attention_max_distance=20,
        is_encoder_decoder=False,
        use_cache=False,
        tie_word_embeddings=False,
    )


def t5_tokenizer() -> T5Tokenizer:
    """Storybook's tokenizer with the length that published files say."""
    return T5Tokenizer(vocab=vocabulary.pieces(), extra_ids=0, model_max_length=512)
