"""FLUX.2 Klein, 4B and 9B: a transformer on packed latents, rectified flow, prompts read with three states of a Qwen3.

The base models train with guidance left to sampling. The distilled ones, whose model_index.json says is_distilled, can
be sampled in a few steps without guidance, but not be trained.

Source: diffusers 0.42.1 pipelines/flux2/pipeline_flux2_klein.py; Black Forest Labs 2025.
"""

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

import jax

from dreambooth_jax.diffusion import rectified_flow
from dreambooth_jax.diffusion.rectified_flow import RectifiedFlow
from dreambooth_jax.families import distilled
from dreambooth_jax.families.flow import Configs, Fit, FlowFamily, check_fits
from dreambooth_jax.families.flux import ORIGINAL_LAST_NORM, ORIGINAL_NORMS
from dreambooth_jax.families.flux2_space import Flux2Latents
from dreambooth_jax.families.image_space import ImageSpace
from dreambooth_jax.families.prompts import QwenPrompts
from dreambooth_jax.models import flux2, vae_flux2
from dreambooth_jax.models.qwen3 import STATES_READ
from dreambooth_jax.weights.errors import WeightsError
from dreambooth_jax.weights.lora_original import OriginalLayers, Rule
from dreambooth_jax.weights.original_transformer import OriginalTransformer
from dreambooth_jax.weights.pipeline import Pipeline

# Tokens in each direction of the images that the models are made for: 1024 pixels, 16 to a token.
_SIDE = 64
# Beyond this many tokens the shift no longer depends on the number of steps.
_MANY_TOKENS = 4300

# The layers that diffusers' train_dreambooth_lora_flux2.py adapts: the projections of the image's stream, and the two
# fused ones of the blocks that have one stream.
LORA_TARGETS = (
    r'transformer_blocks\.\d+\.attn\.(to_q|to_k|to_v|to_out\.0)',
    r'single_transformer_blocks\.\d+\.attn\.(to_qkv_mlp_proj|to_out)',
)

# The names of the makers' code, which also the LoRA files of other trainers have.
_QKV = ('q', 'k', 'v')
_ORIGINAL_LAYERS = (
    Rule(r'transformer_blocks\.(\d+)\.attn\.to_([qkv])', 'double_blocks.{0}.img_attn.qkv', _QKV),
    Rule(r'transformer_blocks\.(\d+)\.attn\.to_out\.0', 'double_blocks.{0}.img_attn.proj'),
    Rule(r'transformer_blocks\.(\d+)\.attn\.add_([qkv])_proj', 'double_blocks.{0}.txt_attn.qkv', _QKV),
    Rule(r'transformer_blocks\.(\d+)\.attn\.to_add_out', 'double_blocks.{0}.txt_attn.proj'),
    Rule(r'transformer_blocks\.(\d+)\.ff\.linear_in', 'double_blocks.{0}.img_mlp.0'),
    Rule(r'transformer_blocks\.(\d+)\.ff\.linear_out', 'double_blocks.{0}.img_mlp.2'),
    Rule(r'transformer_blocks\.(\d+)\.ff_context\.linear_in', 'double_blocks.{0}.txt_mlp.0'),
    Rule(r'transformer_blocks\.(\d+)\.ff_context\.linear_out', 'double_blocks.{0}.txt_mlp.2'),
    Rule(r'single_transformer_blocks\.(\d+)\.attn\.to_qkv_mlp_proj', 'single_blocks.{0}.linear1'),
    Rule(r'single_transformer_blocks\.(\d+)\.attn\.to_out', 'single_blocks.{0}.linear2'),
    Rule('x_embedder', 'img_in'),
    Rule('context_embedder', 'txt_in'),
    Rule(r'time_guidance_embed\.timestep_embedder\.linear_1', 'time_in.in_layer'),
    Rule(r'time_guidance_embed\.timestep_embedder\.linear_2', 'time_in.out_layer'),
    Rule('proj_out', 'final_layer.linear'),
)
# diffusers reads these from ComfyUI's names alone. Its conversion of kohya's files leaves them out with a warning.
# norm_out.linear has no name at all: the original code has its shift before its scale, and diffusers renames it only.
_UNKNOWN_TO_KOHYA = (
    Rule(r'(single_stream_modulation|double_stream_modulation_img|double_stream_modulation_txt)\.linear', '{0}.lin'),
)


def empirical_mu(tokens: int, steps: int) -> float:
    """Returns mu of the dynamic shift, fitted by the makers to the number of tokens and the number of steps.

    It is linear in both up to 4300 tokens. There it jumps, as in diffusers: beyond, the line for 200 steps is used.
    """
    at_200 = 0.00016927 * tokens + 0.45666666
    if tokens > _MANY_TOKENS:
        return at_200
    at_10 = 8.73809524e-05 * tokens + 1.89833333
    return at_200 + (at_200 - at_10) / 190 * (steps - 200)


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class Flux2KleinFamily(FlowFamily):
    """FLUX.2 Klein; see family.Family for what the methods return."""

    def check_transformer(self, full: Configs, source: str) -> None:
        transformer = full['transformer']
        if transformer['guidance_embeds']:
            raise WeightsError(
                f'the transformer of {source} has guidance_embeds True, as FLUX.2-dev has, which is not supported; '
                f'give a model of {self.title}.'
            )
        fits = (
            Fit('vae', 'in_channels', vae_flux2.PATCH**2, 'latent_channels', 'packed latents'),
            Fit('text_encoder', 'joint_attention_dim', 3, 'hidden_size', 'states'),
        )
        check_fits(full, fits, source)
        if transformer['out_channels'] not in (None, transformer['in_channels']):
            raise WeightsError(
                f'the transformer of {source} has out_channels {transformer["out_channels"]}, but its in_channels are '
                f'{transformer["in_channels"]}; they must be equal.'
            )

    def is_distilled(self, pipeline: Pipeline) -> bool:
        """Whether model_index.json says it, or the name of a transformer's own file, which has 'base' or not."""
        if pipeline.denoiser_file is None:
            return bool(pipeline.option('is_distilled')) or super().is_distilled(pipeline)
        name = distilled.name_of(pipeline)
        return 'klein' in name and 'base' not in name or super().is_distilled(pipeline)

    def usual_sampling(self, pipeline: Pipeline) -> Mapping[str, Any]:
        return self.sampling | ({'steps': 4, 'guidance_scale': 1.0} if self.is_distilled(pipeline) else {})

    def space(self, pipeline: Pipeline) -> ImageSpace:
        network = pipeline.components.get('vae')
        if network is None:  # it was not read: enough for what asks about channels only
            channels = flux2.resolve(pipeline.denoiser.config if pipeline.denoiser else {})['in_channels']
            return Flux2Latents(channels=channels, side=_SIDE, scale=1)
        full = vae_flux2.resolve(network.config)
        return Flux2Latents(
            vae=network,
            channels=vae_flux2.PATCH**2 * full['latent_channels'],
            side=_SIDE,
            scale=vae_flux2.size_divisor(network.config),
        )

    def predict(
        self, apply: Callable, params: Mapping[str, Any], x_t: jax.Array, t: jax.Array, conditioning: Mapping[str, Any]
    ) -> jax.Array:
        # The network is told s itself and predicts the velocity; it takes no mask of the text.
        return apply(params, x_t, t, conditioning['encoder_hidden_states'])


def _read_schedule(config: Mapping[str, Any]) -> RectifiedFlow:
    return rectified_flow.from_config(config, mu=empirical_mu)


FAMILY = Flux2KleinFamily(
    class_name='Flux2KleinPipeline',
    title='FLUX.2 Klein',
    transformer='Flux2Transformer2DModel',
    vae='AutoencoderKLFlux2',
    prompts=QwenPrompts,
    lora_targets=LORA_TARGETS,
    reading={'text_encoder': {STATES_READ: 'quarters'}},
    options={'is_distilled': False},
    read_schedule=_read_schedule,
    architecture='flux-2-klein',
    sampling={'sampler': 'euler', 'steps': 50, 'guidance_scale': 4.0},
    lora_layers=OriginalLayers('transformer', _ORIGINAL_LAYERS, _ORIGINAL_LAYERS + _UNKNOWN_TO_KOHYA),
    original_transformer=OriginalTransformer(
        layers=_ORIGINAL_LAYERS + _UNKNOWN_TO_KOHYA,
        norms=ORIGINAL_NORMS,
        shift_first=ORIGINAL_LAST_NORM,
        marks=('double_stream_modulation_img.lin.weight', 'double_stream_modulation_img.linear.weight'),
        implementation='https://github.com/black-forest-labs/flux2',
    ),
)
