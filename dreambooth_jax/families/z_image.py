"""Z-Image: a transformer on the latents of a VAE with 16 channels, rectified flow, prompts read with a Qwen3.

In diffusers' pipeline of this model, guidance_scale counts from 0, which is none. Here it counts from 1, as for all
other models: 4.0 there is 5.0 here. Its cfg_normalization and cfg_truncation, which are off unless asked for, do not
exist here.

Z-Image-Turbo, which is distilled to 8 steps without guidance (guidance_scale 1 here), has the same files but for the
shift of its schedule, 3 in place of 6. That shift is taken for the sign of a distilled model.

Source: diffusers 0.42.1 pipelines/z_image/pipeline_z_image.py and examples/dreambooth/train_dreambooth_lora_z_image.py;
Cai et al. 2025 (Z-Image).
"""

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

import jax

from dreambooth_jax.diffusion import rectified_flow
from dreambooth_jax.diffusion.rectified_flow import RectifiedFlow
from dreambooth_jax.families.flow import Configs, Fit, FlowFamily, check_fits, latents_of
from dreambooth_jax.families.image_space import ImageSpace
from dreambooth_jax.families.mode_latents import ModeLatents
from dreambooth_jax.families.prompts import MaskedQwenPrompts
from dreambooth_jax.models import vae, z_image
from dreambooth_jax.models.qwen3 import STATES_READ
from dreambooth_jax.text.tokenize import QWEN_MAX_LENGTH
from dreambooth_jax.weights.errors import WeightsError
from dreambooth_jax.weights.lora_original import OriginalLayers, Rule
from dreambooth_jax.weights.original_transformer import OriginalTransformer
from dreambooth_jax.weights.pipeline import Pipeline

# Side in pixels of the images that the model is made for, unless its VAE says so (`sample_size`).
_SIZE = 1024
_SCALE = 8  # side of an image divided by that of its latents, if the VAE was not read
_SHIFT_OF_TURBO = 3.0  # of its scheduler_config.json; that of the base model has 6
_LONGEST_TEXT = z_image.padded_length(QWEN_MAX_LENGTH) + 2  # positions that a text and the image behind it need

# The projections and feed-forward layers of every block, as in kohya's musubi-tuner, and here those of the refiners of
# image and text as well. The attention alone, as in diffusers' train_dreambooth_lora_z_image.py, is too little to learn
# Storybook's subjects (experiments/subjects).
LORA_TARGETS = (
    r'(layers|noise_refiner|context_refiner)\.\d+\.(attention\.(to_q|to_k|to_v|to_out\.0)|feed_forward\.w[123])',
)

# kohya's trainer knows the layers as the makers' code does. ComfyUI reads diffusers' names of them, and diffusers reads
# the joint layer of the makers' code in kohya's files alone.
_BLOCK = r'(layers|noise_refiner|context_refiner)\.(\d+)\.'
_ORIGINAL_LAYERS = OriginalLayers(
    component='transformer',
    kohya=(
        Rule(_BLOCK + r'attention\.to_([qkv])', '{0}.{1}.attention.qkv', ('q', 'k', 'v')),
        Rule(_BLOCK + r'attention\.to_out\.0', '{0}.{1}.attention.out'),
        Rule(_BLOCK + r'feed_forward\.(w[123])', '{0}.{1}.feed_forward.{2}'),
    ),
    comfyui=(Rule(_BLOCK + r'(attention\.to_[qkv]|attention\.to_out\.0|feed_forward\.w[123])', '{0}.{1}.{2}'),),
)
# In files of the transformer, as ComfyUI's makers publish them, most other layers are called as in diffusers.
_ORIGINAL = OriginalTransformer(
    layers=(
        *_ORIGINAL_LAYERS.kohya,
        Rule(_BLOCK + r'attention\.norm_([qk])', '{0}.{1}.attention.{2}_norm'),
        Rule(_BLOCK + r'(adaLN_modulation\.0|attention_norm[12]|ffn_norm[12])', '{0}.{1}.{2}'),
        Rule(r'(cap_embedder\.\d|t_embedder\.mlp\.\d)', '{0}'),
        Rule(r'all_x_embedder\.2-1', 'x_embedder'),
        Rule(r'all_final_layer\.2-1\.(linear|adaLN_modulation\.1)', 'final_layer.{0}'),
    ),
    tensors=(Rule(r'(x_pad_token|cap_pad_token)', '{0}'),),
    marks=('cap_pad_token',),
    ignored=(r'norm_final\.weight',),  # diffusers' converter leaves it out too
    implementation='https://github.com/Tongyi-MAI/Z-Image',
)


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class ZImageFamily(FlowFamily):
    """Z-Image; see family.Family for what the methods return."""

    def check_transformer(self, full: Configs, source: str) -> None:
        fits = (
            Fit('vae', 'in_channels', 1, 'latent_channels', 'latents'),
            Fit('text_encoder', 'cap_feat_dim', 1, 'hidden_size', 'states'),
        )
        check_fits(full, fits, source)
        lengths = full['transformer']['axes_lens']
        if lengths[0] < _LONGEST_TEXT:
            raise WeightsError(
                f'the transformer of {source} has axes_lens {list(lengths)}, but prompts of {QWEN_MAX_LENGTH} tokens '
                f'need {_LONGEST_TEXT} positions on the first axis; give the plain model.'
            )

    def is_distilled(self, pipeline: Pipeline) -> bool:
        """Whether the schedule has the shift of Z-Image-Turbo, or the transformer comes from a file of that name."""
        by_schedule = pipeline.scheduler.get('shift') == _SHIFT_OF_TURBO and not pipeline.denoiser_file
        return by_schedule or super().is_distilled(pipeline)

    def usual_sampling(self, pipeline: Pipeline) -> Mapping[str, Any]:
        return self.sampling | ({'steps': 8, 'guidance_scale': 1.0} if self.is_distilled(pipeline) else {})

    def space(self, pipeline: Pipeline) -> ImageSpace:
        channels = z_image.resolve(pipeline.denoiser.config if pipeline.denoiser else {})['in_channels']
        config = pipeline.components['vae'].config if 'vae' in pipeline.components else {}
        side = (config.get('sample_size') or _SIZE) // (vae.size_divisor(config) if config else _SCALE)
        return latents_of(pipeline, ModeLatents, channels=channels, side=side)

    def predict(
        self, apply: Callable, params: Mapping[str, Any], x_t: jax.Array, t: jax.Array, conditioning: Mapping[str, Any]
    ) -> jax.Array:
        # The network is told the share of the image, 1 - s, and predicts x0 - noise, the negative velocity.
        states, mask = (conditioning[key] for key in ('encoder_hidden_states', 'encoder_attention_mask'))
        return -apply(params, x_t, 1.0 - t, states, mask)


def _read_schedule(config: Mapping[str, Any]) -> RectifiedFlow:
    return rectified_flow.from_config(config, patch=z_image.PATCH)


FAMILY = ZImageFamily(
    class_name='ZImagePipeline',
    title='Z-Image',
    transformer='ZImageTransformer2DModel',
    vae='AutoencoderKL',
    prompts=MaskedQwenPrompts,
    # Other ways to generate with the same networks; a ControlNet stored beside them is not read.
    also_saved_as=(
        'ZImageImg2ImgPipeline',
        'ZImageInpaintPipeline',
        'ZImageControlNetPipeline',
        'ZImageControlNetInpaintPipeline',
    ),
    lora_targets=LORA_TARGETS,
    reading={'text_encoder': {STATES_READ: 'last_but_one'}},
    read_schedule=_read_schedule,
    architecture='Z-Image',
    sampling={'sampler': 'euler', 'steps': 50, 'guidance_scale': 6.0},
    lora_layers=_ORIGINAL_LAYERS,
    original_transformer=_ORIGINAL,
)
