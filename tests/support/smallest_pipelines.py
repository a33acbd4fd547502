"""The smallest pipelines of both stages, on pixels and latents, whose steps compile in seconds; made once a session."""

import functools
import tempfile
from pathlib import Path

from dreambooth_jax.weights import folders
from dreambooth_jax.weights.pipeline import Pipeline
from tests.support import made_pipelines, tiny_clip, tiny_pipelines, tiny_stable_diffusion
from tests.support import tiny_networks as tiny

_ROOT = tempfile.TemporaryDirectory(prefix='smallest_pipelines_')
# The middle block alone has attention: it is all that LoRA and the prompt need.
ONE_LEVEL = {'block_out_channels': [8], 'norm_num_groups': 4, 'layers_per_block': 1}
PIXEL_UNET = {
    **tiny.UNET,
    **ONE_LEVEL,
    'attention_head_dim': 8,
    'addition_embed_type_num_heads': 2,
    'down_block_types': ['ResnetDownsampleBlock2D'],
    'up_block_types': ['ResnetUpsampleBlock2D'],
}
PIXEL_UPSCALER = {
    **PIXEL_UNET,
    'in_channels': 6,
    'class_embed_type': 'timestep',
    'time_embedding_act_fn': 'gelu',
    'sample_size': 16,
}
LATENT_UNET = {
    **ONE_LEVEL,
    'sample_size': 8,
    'attention_head_dim': 2,
    'cross_attention_dim': 16,
    'down_block_types': ['DownBlock2D'],
    'up_block_types': ['UpBlock2D'],
}
LATENT_UPSCALER = {**LATENT_UNET, 'in_channels': 7, 'num_class_embeds': 10}
VAE = {
    **ONE_LEVEL,
    'block_out_channels': [8, 8],
    'down_block_types': ['DownEncoderBlock2D'] * 2,
    'up_block_types': ['UpDecoderBlock2D'] * 2,
    'latent_channels': 4,
    'sample_size': 16,
}
CLIP = {
    **tiny_stable_diffusion.CLIP,
    'model_type': 'clip_text_model',
    'hidden_size': 16,
    'intermediate_size': 16,
    'num_hidden_layers': 1,
}


def _pixels() -> tuple[Pipeline, Pipeline]:
    random = tiny_pipelines.random_network
    base = made_pipelines.pipeline(
        'IFPipeline',
        scheduler=tiny.SCHEDULER,
        unet=random('unet', PIXEL_UNET, 0),
        text_encoder=random('text_encoder', {**tiny.TEXT_ENCODER, 'num_layers': 1}, 1),
        tokenizer=tiny_pipelines.tokenizer_folder(),
    )
    second = made_pipelines.pipeline(
        'IFSuperResolutionPipeline',
        scheduler=tiny.SCHEDULER,
        unet=random('unet', PIXEL_UPSCALER, 2),
        image_noising_scheduler=tiny.NOISING_SCHEDULER,
    )
    return base, second


def _latents() -> tuple[Pipeline, Pipeline]:
    tokenizer = Path(_ROOT.name) / 'tokenizer'
    tiny_clip.tokenizer().save_pretrained(tokenizer)

    def pipeline(class_name, unet, seed, prediction_type, **more):
        return made_pipelines.pipeline(
            class_name,
            scheduler=tiny_stable_diffusion.scheduler(prediction_type),
            unet=tiny_pipelines.random_network('unet', unet, seed),
            vae=tiny_pipelines.random_network('vae', VAE, seed + 1),
            text_encoder=tiny_pipelines.random_network('text_encoder', CLIP, seed + 2),
            tokenizer=tokenizer,
            **more,
        )

    base = pipeline('StableDiffusionPipeline', LATENT_UNET, 10, 'epsilon')
    second = pipeline(
        'StableDiffusionUpscalePipeline',
        LATENT_UPSCALER,
        20,
        'v_prediction',
        image_noising_scheduler=tiny.NOISING_SCHEDULER,
    )
    return base, second


@functools.cache
def folder(kind: str) -> Path:
    """The folder of both stages on 'pixels' (8 and 16 px) or 'latents' (16 and 32 px); a test must not change it."""
    base, second = {'pixels': _pixels, 'latents': _latents}[kind]()
    return folders.write_pipeline(base, Path(_ROOT.name) / kind, super_resolution=second)
