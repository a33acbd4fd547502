"""The tiny models of rectified flows, each with what diffusers' scripts compute of it: latents and velocities."""

import diffusers
import torch

from tests.support import tiny_flux, tiny_klein, tiny_sd3, tiny_z_image
from tests.support.flow_model import FlowModel

KLEIN_SIDE = tiny_klein.SIZE // 4  # of the packed latents of the tiny autoencoder
FLUX_SIDE = tiny_flux.SIZE // 2  # of the latents, here and below
SD3_SIDE = tiny_sd3.SIZE // 2
Z_IMAGE_SIDE = tiny_z_image.SIZE // 2
KLEIN_OPTIONS = {'text_encoder_out_layers': tiny_klein.LAYERS}


def _of_mode(pipe, posterior, drawn):
    return (posterior.mode() - pipe.vae.config.shift_factor) * pipe.vae.config.scaling_factor


def _of_sample(pipe, posterior, drawn):
    sample = posterior.mean + posterior.std * drawn
    return (sample - pipe.vae.config.shift_factor) * pipe.vae.config.scaling_factor


def _klein_unpack(tokens):
    return tokens.reshape(len(tokens), KLEIN_SIDE, KLEIN_SIDE, 16).permute(0, 3, 1, 2)


def _klein_latents(pipe, posterior, drawn):
    packed = pipe._patchify_latents(posterior.mode())
    mean, variance = (value.view(1, -1, 1, 1) for value in (pipe.vae.bn.running_mean, pipe.vae.bn.running_var))
    return (packed - mean) / torch.sqrt(variance + pipe.vae.config.batch_norm_eps)


def _klein_velocity(pipe, transformer, noisy, s, prompts):
    states, text_ids = pipe.encode_prompt(list(prompts), **KLEIN_OPTIONS)
    predicted = transformer(
        hidden_states=pipe._pack_latents(noisy),
        timestep=s,
        encoder_hidden_states=states,
        txt_ids=text_ids,
        img_ids=pipe._prepare_latent_ids(noisy),
        guidance=None,
        return_dict=False,
    )[0]
    return _klein_unpack(predicted)


def flux_pack(latents: torch.Tensor) -> torch.Tensor:
    """Returns f[B, C, h, w] as the tokens f[B, h w / 4, 4 C] of FLUX.1."""
    return diffusers.FluxPipeline._pack_latents(latents, *latents.shape)


def flux_unpack(tokens: torch.Tensor) -> torch.Tensor:
    """Returns the tokens of a tiny image of FLUX.1 as f[B, C, h, w] again."""
    return diffusers.FluxPipeline._unpack_latents(tokens, tiny_flux.SIZE, tiny_flux.SIZE, 2)


def _flux_velocity(pipe, transformer, noisy, s, prompts):
    states, pooled, text_ids = pipe.encode_prompt(list(prompts))
    predicted = transformer(
        hidden_states=flux_pack(noisy),
        timestep=s,
        guidance=torch.ones(len(prompts)),
        pooled_projections=pooled,
        encoder_hidden_states=states,
        txt_ids=text_ids,
        img_ids=pipe._prepare_latent_image_ids(1, FLUX_SIDE // 2, FLUX_SIDE // 2, 'cpu', torch.float32),
    ).sample
    return flux_unpack(predicted)


def sd3_encoded(pipe: diffusers.StableDiffusion3Pipeline, prompts) -> tuple[torch.Tensor, torch.Tensor]:
    """Returns diffusers' (states, pooled states) of prompts, at the pipeline's length."""
    with torch.no_grad():
        states, _, pooled, _ = pipe.encode_prompt(
            list(prompts), None, None, do_classifier_free_guidance=False, max_sequence_length=256
        )
    return states, pooled


def _sd3_velocity(pipe, transformer, noisy, s, prompts):
    states, pooled = sd3_encoded(pipe, prompts)
    return transformer(
        hidden_states=noisy, timestep=1000 * s, encoder_hidden_states=states, pooled_projections=pooled
    ).sample


def _z_image_velocity(pipe, transformer, noisy, s, prompts):
    states, _ = pipe.encode_prompt(list(prompts), do_classifier_free_guidance=False)
    answers = transformer(list(noisy.unsqueeze(2)), (1000 - 1000 * s) / 1000, states, return_dict=False)[0]
    return -torch.stack(answers).squeeze(2)


KLEIN = FlowModel(
    tiny_klein,
    (KLEIN_SIDE, KLEIN_SIDE, 16),
    4.0,
    KLEIN_OPTIONS,
    unpack=_klein_unpack,
    torch_latents=_klein_latents,
    torch_velocity=_klein_velocity,
)
FLUX = FlowModel(
    tiny_flux,
    (FLUX_SIDE, FLUX_SIDE, 4),
    3.5,
    pack=flux_pack,
    unpack=flux_unpack,
    empty=False,
    torch_latents=_of_sample,
    torch_velocity=_flux_velocity,
)
SD3 = FlowModel(tiny_sd3, (SD3_SIDE, SD3_SIDE, 4), 5.0, torch_latents=_of_sample, torch_velocity=_sd3_velocity)
# There guidance counts what is added to the prediction with the prompt.
Z_IMAGE = FlowModel(
    tiny_z_image,
    (Z_IMAGE_SIDE, Z_IMAGE_SIDE, 4),
    5.0,
    {'guidance_scale': 4.0},
    torch_latents=_of_mode,
    torch_velocity=_z_image_velocity,
)
