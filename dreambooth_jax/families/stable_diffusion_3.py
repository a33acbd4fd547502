"""Stable Diffusion 3 and 3.5: a transformer on the latents of a VAE with 16 channels, rectified flow, three encoders.

Prompts are read with two CLIPs and a T5, without which the model works too (prompts.SD3Prompts). The guidance by
skipped layers, which the makers suggest for 3.5 medium and diffusers has if it is asked for, does not exist here.

Source: diffusers 0.42.1 pipelines/stable_diffusion_3/pipeline_stable_diffusion_3.py and
examples/dreambooth/train_dreambooth_lora_sd3.py; Esser et al. 2024 (Stable Diffusion 3).
"""

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

import jax

from dreambooth_jax.diffusion import rectified_flow
from dreambooth_jax.diffusion.rectified_flow import RectifiedFlow
from dreambooth_jax.families import unet_checks
from dreambooth_jax.families.flow import Configs, Fit, FlowFamily, check_fits, latents_of
from dreambooth_jax.families.image_space import ImageSpace, LatentSpace
from dreambooth_jax.families.prompts import SD3Prompts
from dreambooth_jax.models import sd3
from dreambooth_jax.weights import modelspec
from dreambooth_jax.weights.errors import WeightsError
from dreambooth_jax.weights.lora_original import OriginalLayers, Rule
from dreambooth_jax.weights.original_transformer import OriginalTransformer
from dreambooth_jax.weights.pipeline import Pipeline

_CLIPS = ('text_encoder', 'text_encoder_2')
_TIMES = 1000.0  # the network is told the share of noise times this

# The layers that diffusers' train_dreambooth_lora_sd3.py adapts: the projections of the joint attentions.
LORA_TARGETS = (
    r'transformer_blocks\.\d+\.attn\.(to_q|to_k|to_v|to_out\.0|add_q_proj|add_k_proj|add_v_proj|to_add_out)',
)

# The names of the makers' code, by which kohya's trainer and ComfyUI know the layers. diffusers reads no LoRA file with
# them. norm_out.linear and the last norm1_context.linear have none: that code has the shift before the scale.
_QKV = ('q', 'k', 'v')
_BLOCK = r'transformer_blocks\.(\d+)\.'
_RULES = (
    Rule(_BLOCK + r'(attn2?)\.to_([qkv])', 'joint_blocks.{0}.x_block.{1}.qkv', _QKV),
    Rule(_BLOCK + r'(attn2?)\.to_out\.0', 'joint_blocks.{0}.x_block.{1}.proj'),
    Rule(_BLOCK + r'attn\.add_([qkv])_proj', 'joint_blocks.{0}.context_block.attn.qkv', _QKV),
    Rule(_BLOCK + r'attn\.to_add_out', 'joint_blocks.{0}.context_block.attn.proj'),
    Rule(_BLOCK + r'ff\.net\.0\.proj', 'joint_blocks.{0}.x_block.mlp.fc1'),
    Rule(_BLOCK + r'ff\.net\.2', 'joint_blocks.{0}.x_block.mlp.fc2'),
    Rule(_BLOCK + r'ff_context\.net\.0\.proj', 'joint_blocks.{0}.context_block.mlp.fc1'),
    Rule(_BLOCK + r'ff_context\.net\.2', 'joint_blocks.{0}.context_block.mlp.fc2'),
    Rule(_BLOCK + r'norm1\.linear', 'joint_blocks.{0}.x_block.adaLN_modulation.1'),
    Rule('context_embedder', 'context_embedder'),
    Rule(r'time_text_embed\.timestep_embedder\.linear_1', 't_embedder.mlp.0'),
    Rule(r'time_text_embed\.timestep_embedder\.linear_2', 't_embedder.mlp.2'),
    Rule(r'time_text_embed\.text_embedder\.linear_1', 'y_embedder.mlp.0'),
    Rule(r'time_text_embed\.text_embedder\.linear_2', 'y_embedder.mlp.2'),
    Rule('proj_out', 'final_layer.linear'),
)
# The same for what adapters do not have, and for the two norms without a name.
_ORIGINAL = OriginalTransformer(
    layers=(
        *_RULES,
        Rule(_BLOCK + r'(attn2?)\.norm_([qk])', 'joint_blocks.{0}.x_block.{1}.ln_{2}'),
        Rule(_BLOCK + r'attn\.norm_added_([qk])', 'joint_blocks.{0}.context_block.attn.ln_{1}'),
        Rule(r'pos_embed\.proj', 'x_embedder.proj'),
    ),
    shift_first=(
        Rule(_BLOCK + r'norm1_context\.linear', 'joint_blocks.{0}.context_block.adaLN_modulation.1'),
        Rule(r'norm_out\.linear', 'final_layer.adaLN_modulation.1'),
    ),
    tensors=(Rule(r'pos_embed\.pos_embed', 'pos_embed'),),
    marks=('joint_blocks.0.x_block.attn.qkv.weight', 'pos_embed.pos_embed'),
    implementation=modelspec.ORIGINAL_IMPLEMENTATION,
)


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class StableDiffusion3Family(FlowFamily):
    """Stable Diffusion 3 and 3.5; see family.Family for what the methods return."""

    def check(self, configs: Configs, source: str) -> None:
        super().check(configs, source)
        for component in _CLIPS:
            if component in configs:
                unet_checks.check_class(
                    component, configs[component], 'CLIPTextModelWithProjection', self.title, source
                )

    def check_transformer(self, full: Configs, source: str) -> None:
        fits = (
            Fit('vae', 'in_channels', 1, 'latent_channels', 'latents'),
            Fit('text_encoder_3', 'joint_attention_dim', 1, 'd_model', 'states'),
        )
        check_fits(full, fits, source)
        transformer = full['transformer']
        if transformer['out_channels'] != transformer['in_channels']:
            raise WeightsError(
                f'the transformer of {source} has in_channels {transformer["in_channels"]} and out_channels '
                f'{transformer["out_channels"]}, which must be equal; give the plain model.'
            )
        if not all(component in full for component in _CLIPS):
            return
        pooled, states = (sum(full[name][key] for name in _CLIPS) for key in ('projection_dim', 'hidden_size'))
        if transformer['pooled_projection_dim'] != pooled:
            raise WeightsError(
                f'the transformer of {source} has pooled_projection_dim {transformer["pooled_projection_dim"]}, but '
                f'the pooled states of its two CLIPs have {pooled} channels; give the parts of one model.'
            )
        if transformer['joint_attention_dim'] < states:
            raise WeightsError(
                f'the transformer of {source} has joint_attention_dim {transformer["joint_attention_dim"]}, but the '
                f'states of its two CLIPs have {states} channels; give the parts of one model.'
            )

    def usual_sampling(self, pipeline: Pipeline) -> Mapping[str, Any]:
        return self.sampling | ({'steps': 4, 'guidance_scale': 1.0} if self.is_distilled(pipeline) else {})

    def space(self, pipeline: Pipeline) -> ImageSpace:
        full = sd3.resolve(pipeline.denoiser.config if pipeline.denoiser else {})
        return latents_of(pipeline, LatentSpace, channels=full['in_channels'], side=full['sample_size'])

    def text_width(self, pipeline: Pipeline) -> int:
        """Returns the width of the text states that the transformer takes, if it was read."""
        return sd3.resolve(pipeline.denoiser.config if pipeline.denoiser else {})['joint_attention_dim']

    def predict(
        self, apply: Callable, params: Mapping[str, Any], x_t: jax.Array, t: jax.Array, conditioning: Mapping[str, Any]
    ) -> jax.Array:
        # The network predicts the velocity; it takes no mask of the text.
        return apply(params, x_t, _TIMES * t, conditioning['encoder_hidden_states'], conditioning['pooled'])


def _read_schedule(config: Mapping[str, Any]) -> RectifiedFlow:
    # The pipeline hands the scheduler a number of steps, which it spaces between its own, shifted ends.
    return rectified_flow.from_config(config, spacing='scheduler', patch=sd3.PATCH)


FAMILY = StableDiffusion3Family(
    class_name='StableDiffusion3Pipeline',
    title='Stable Diffusion 3',
    networks=('transformer', 'vae', 'text_encoder', 'text_encoder_2', 'text_encoder_3'),
    tokenizers={'text_encoder': 'tokenizer', 'text_encoder_2': 'tokenizer_2', 'text_encoder_3': 'tokenizer_3'},
    optional=('text_encoder_3',),
    never_trained=('text_encoder_3',),  # as in diffusers' scripts
    transformer='SD3Transformer2DModel',
    vae='AutoencoderKL',
    reads_with={'text_encoder': 'CLIP', 'text_encoder_2': 'CLIP', 'text_encoder_3': 'T5'},
    prompts=SD3Prompts,
    absent=('image_encoder', 'feature_extractor'),
    # Other ways to generate with the same networks; a ControlNet stored beside them is not read.
    also_saved_as=(
        'StableDiffusion3Img2ImgPipeline',
        'StableDiffusion3InpaintPipeline',
        'StableDiffusion3PAGPipeline',
        'StableDiffusion3PAGImg2ImgPipeline',
        'StableDiffusion3ControlNetPipeline',
        'StableDiffusion3ControlNetInpaintingPipeline',
    ),
    lora_targets=LORA_TARGETS,
    read_schedule=_read_schedule,
    architecture='stable-diffusion-3',
    sampling={'sampler': 'euler', 'steps': 28, 'guidance_scale': 7.0},
    lora_layers=OriginalLayers('transformer', _RULES, _RULES),
    original_transformer=_ORIGINAL,
)
