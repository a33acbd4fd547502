"""FLUX.1, dev and schnell: a transformer on packed latents, rectified flow, prompts read with a T5 and a CLIP.

dev was distilled from a model with classifier-free guidance: its transformer is told the guidance as a number
(guidance_embeds) and runs once a step. guidance_scale is this number, as in diffusers' pipeline: 3.5 is usual, 1 is no
guidance, and there is no negative prompt. In training it is told 1, as in diffusers' example of its script and in
kohya's trainer, so that samples with 3.5 still lead further than the photos.

schnell was distilled to 4 steps and is told no guidance. It can be sampled, but not be trained.

Source: diffusers 0.42.1 pipelines/flux/pipeline_flux.py and examples/dreambooth/train_dreambooth_lora_flux.py; Black
Forest Labs 2024.
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
from dreambooth_jax.families.prompts import FluxPrompts
from dreambooth_jax.models import flux
from dreambooth_jax.models.vae_flux2 import PATCH, pack, unpack
from dreambooth_jax.weights.errors import WeightsError
from dreambooth_jax.weights.lora_original import KOHYA_ENDS, OriginalLayers, Rule
from dreambooth_jax.weights.original_transformer import OriginalTransformer
from dreambooth_jax.weights.pipeline import Pipeline

# Latents in each direction of the images that the models are made for: 1024 pixels, 8 to a latent.
_SIDE = 128
TRAINING_GUIDANCE = 1.0
# Tokens of a prompt for the T5, of dev and of schnell. No file says it: the pipeline's default, which the makers' code
# has for dev, and the most that diffusers' page of schnell allows.
_LONGEST_PROMPT, _LONGEST_PROMPT_OF_SCHNELL = 512, 256
_EMBEDDER = 'time_text_embed.guidance_embedder.linear_1.bias'  # its kernel may be quantised

# The layers that diffusers' train_dreambooth_lora_flux.py adapts: attention and feed-forward layers of both streams,
# and the projections of the blocks that have one stream.
LORA_TARGETS = (
    r'transformer_blocks\.\d+\.attn\.(to_q|to_k|to_v|to_out\.0|add_q_proj|add_k_proj|add_v_proj|to_add_out)',
    r'transformer_blocks\.\d+\.(ff|ff_context)\.net\.(0\.proj|2)',
    r'single_transformer_blocks\.\d+\.attn\.(to_q|to_k|to_v)',
)

# The names of the makers' code, which also the LoRA files of other trainers have. norm_out.linear has no name: that
# code has its shift before its scale. diffusers reads those of the blocks alone: it converts the others to names that
# its loader then leaves out.
_QKV = ('q', 'k', 'v')
_RULES = (
    Rule(r'transformer_blocks\.(\d+)\.attn\.to_([qkv])', 'double_blocks.{0}.img_attn.qkv', _QKV),
    Rule(r'transformer_blocks\.(\d+)\.attn\.to_out\.0', 'double_blocks.{0}.img_attn.proj'),
    Rule(r'transformer_blocks\.(\d+)\.attn\.add_([qkv])_proj', 'double_blocks.{0}.txt_attn.qkv', _QKV),
    Rule(r'transformer_blocks\.(\d+)\.attn\.to_add_out', 'double_blocks.{0}.txt_attn.proj'),
    Rule(r'transformer_blocks\.(\d+)\.ff\.net\.0\.proj', 'double_blocks.{0}.img_mlp.0'),
    Rule(r'transformer_blocks\.(\d+)\.ff\.net\.2', 'double_blocks.{0}.img_mlp.2'),
    Rule(r'transformer_blocks\.(\d+)\.ff_context\.net\.0\.proj', 'double_blocks.{0}.txt_mlp.0'),
    Rule(r'transformer_blocks\.(\d+)\.ff_context\.net\.2', 'double_blocks.{0}.txt_mlp.2'),
    Rule(r'transformer_blocks\.(\d+)\.norm1\.linear', 'double_blocks.{0}.img_mod.lin'),
    Rule(r'transformer_blocks\.(\d+)\.norm1_context\.linear', 'double_blocks.{0}.txt_mod.lin'),
    Rule(
        r'single_transformer_blocks\.(\d+)\.(attn\.to_[qkv]|proj_mlp)',
        'single_blocks.{0}.linear1',
        ('attn.to_q', 'attn.to_k', 'attn.to_v', 'proj_mlp'),
        (1, 1, 1, flux.EXPANSION),
    ),
    Rule(r'single_transformer_blocks\.(\d+)\.proj_out', 'single_blocks.{0}.linear2'),
    Rule(r'single_transformer_blocks\.(\d+)\.norm\.linear', 'single_blocks.{0}.modulation.lin'),
    Rule('x_embedder', 'img_in'),
    Rule('context_embedder', 'txt_in'),
    *(
        Rule(rf'time_text_embed\.{theirs}\.linear_{number}', f'{original}.{layer}')
        for theirs, original in (
            ('timestep_embedder', 'time_in'),
            ('guidance_embedder', 'guidance_in'),
            ('text_embedder', 'vector_in'),
        )
        for number, layer in ((1, 'in_layer'), (2, 'out_layer'))
    ),
    Rule('proj_out', 'final_layer.linear'),
)
# What adapters do not have, as FLUX.2 has it too: the norms of queries and keys, and the last norm.
ORIGINAL_NORMS = tuple(
    Rule(rf'{block}\.(\d+)\.attn\.norm_{ours}{letter}', f'{original}.norm.{what}_norm')
    for block, ours, original in (
        ('transformer_blocks', '', 'double_blocks.{0}.img_attn'),
        ('transformer_blocks', 'added_', 'double_blocks.{0}.txt_attn'),
        ('single_transformer_blocks', '', 'single_blocks.{0}'),
    )
    for letter, what in (('q', 'query'), ('k', 'key'))
)
ORIGINAL_LAST_NORM = (Rule(r'norm_out\.linear', 'final_layer.adaLN_modulation.1'),)


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class FluxFamily(FlowFamily):
    """FLUX.1; see family.Family for what the methods return."""

    def check(self, configs: Configs, source: str) -> None:
        super().check(configs, source)
        if 'text_encoder' in configs:
            unet_checks.check_class('text_encoder', configs['text_encoder'], 'CLIPTextModel', self.title, source)

    def check_transformer(self, full: Configs, source: str) -> None:
        fits = (
            Fit('vae', 'in_channels', PATCH**2, 'latent_channels', 'packed latents'),
            Fit('text_encoder', 'pooled_projection_dim', 1, 'hidden_size', 'states'),
            Fit('text_encoder_2', 'joint_attention_dim', 1, 'd_model', 'states'),
        )
        check_fits(full, fits, source)
        transformer = full['transformer']
        if transformer['out_channels'] != transformer['in_channels']:
            raise WeightsError(
                f'the transformer of {source} has in_channels {transformer["in_channels"]} and out_channels '
                f'{transformer["out_channels"]}, as models that edit images have, which are not supported; give FLUX.1 '
                f'dev or schnell.'
            )

    def embeds_guidance(self, pipeline: Pipeline) -> bool:
        return pipeline.denoiser is not None and flux.resolve(pipeline.denoiser.config)['guidance_embeds']

    def is_distilled(self, pipeline: Pipeline) -> bool:
        """Whether the transformer, if it was read, is told no guidance, as that of schnell."""
        return pipeline.denoiser is not None and not self.embeds_guidance(pipeline)

    def longest_prompt(self, pipeline: Pipeline) -> int:
        """Returns how many tokens of a prompt the T5 reads."""
        return _LONGEST_PROMPT_OF_SCHNELL if self.is_distilled(pipeline) else _LONGEST_PROMPT

    def usual_sampling(self, pipeline: Pipeline) -> Mapping[str, Any]:
        return self.sampling | ({'steps': 4, 'guidance_scale': 1.0} if self.is_distilled(pipeline) else {})

    def space(self, pipeline: Pipeline) -> ImageSpace:
        packed = flux.resolve(pipeline.denoiser.config if pipeline.denoiser else {})['in_channels']
        return latents_of(pipeline, LatentSpace, channels=packed // PATCH**2, side=_SIDE)

    def predict(
        self, apply: Callable, params: Mapping[str, Any], x_t: jax.Array, t: jax.Array, conditioning: Mapping[str, Any]
    ) -> jax.Array:
        # The network is told s itself and predicts the velocity; it takes no mask of the text.
        told = {'guidance': conditioning.get('guidance', TRAINING_GUIDANCE)} if _EMBEDDER in params else {}
        states, pooled = conditioning['encoder_hidden_states'], conditioning['pooled']
        return unpack(apply(params, pack(x_t), t, states, pooled, **told))


def _read_schedule(config: Mapping[str, Any]) -> RectifiedFlow:
    return rectified_flow.from_config(config, patch=PATCH)


FAMILY = FluxFamily(
    class_name='FluxPipeline',
    title='FLUX.1',
    networks=('transformer', 'vae', 'text_encoder', 'text_encoder_2'),
    tokenizers={'text_encoder': 'tokenizer', 'text_encoder_2': 'tokenizer_2'},
    transformer='FluxTransformer2DModel',
    vae='AutoencoderKL',
    reads_with={'text_encoder': 'CLIP', 'text_encoder_2': 'T5'},
    never_trained=('text_encoder_2',),  # as in diffusers' scripts
    prompts=FluxPrompts,
    absent=('image_encoder', 'feature_extractor'),
    # Other ways to generate with the same networks; a ControlNet stored beside them is not read.
    also_saved_as=(
        'FluxImg2ImgPipeline',
        'FluxInpaintPipeline',
        'FluxControlNetPipeline',
        'FluxControlNetImg2ImgPipeline',
        'FluxControlNetInpaintPipeline',
    ),
    lora_targets=LORA_TARGETS,
    read_schedule=_read_schedule,
    architecture='flux-1-dev',
    sampling={'sampler': 'euler', 'steps': 28, 'guidance_scale': 3.5},
    lora_layers=OriginalLayers('transformer', _RULES, _RULES, comfyui_ends=KOHYA_ENDS),
    original_transformer=OriginalTransformer(
        layers=_RULES,
        norms=ORIGINAL_NORMS,
        shift_first=ORIGINAL_LAST_NORM,
        marks=('vector_in.in_layer.weight', 'single_transformer_blocks.0.norm.linear.weight'),
        implementation='https://github.com/black-forest-labs/flux',
    ),
)
