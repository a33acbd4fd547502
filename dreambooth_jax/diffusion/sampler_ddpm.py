"""ddpm and ddim: one step of the posterior with fresh noise, and its deterministic relative.

  ddpm   DDPMScheduler: Ho et al. 2020, equations 6, 7 and 15; learned variance of Nichol & Dhariwal 2021.
  ddim   DDIMScheduler with use_clipped_model_output: Song et al. 2021, equations 12 and 16. With eta 0 it adds no
         noise, with eta 1 as much as ddpm.

Tables are made in float32 and in diffusers' order of operations where differences cancel (schedules.py says why).
"""

from typing import Any

import numpy as np

from dreambooth_jax.diffusion.posterior import posterior_of
from dreambooth_jax.diffusion.spacing import spread_times
from dreambooth_jax.diffusion.step_table import LEADING, THRESHOLDING, Sampler, Sampling, StepTable, make_table

# Lowest variance whose logarithm is taken: scheduling_ddpm.py.
_MIN_VARIANCE = np.float32(1e-20)
_CLIPS = {**THRESHOLDING, 'clip_sample': True, 'clip_sample_range': 1.0, **LEADING}


def _ddpm(process: Any, sampling: Sampling, num_steps: int, eta: float) -> StepTable:
    del eta
    times = spread_times(process, sampling, num_steps, 'ddpm').astype(np.int64)
    now = process.alphas_cumprod[times]
    before = np.append(now[1:], np.float32(1))
    posterior = posterior_of(now, before)
    small = np.maximum(posterior.variance, _MIN_VARIANCE)
    # The '_log' types are the same variances; diffusers computes them by way of logarithms.
    variance = posterior.beta if sampling.variance_type.startswith('fixed_large') else small
    noisy = (times > 0).astype(np.float32)
    return make_table(
        t=times,
        alpha=now**0.5,
        sigma=(1 - now) ** 0.5,
        x=posterior.x_t_coefficient,
        x0=posterior.x0_coefficient,
        std=variance**0.5 * noisy,
        log_variance_low=np.log(small),
        log_variance_high=np.log(posterior.beta),
        is_noisy=noisy,
    )


def _ddim(process: Any, sampling: Sampling, num_steps: int, eta: float) -> StepTable:
    times = spread_times(process, sampling, num_steps, 'ddim').astype(np.int64)
    now = process.alphas_cumprod[times]
    # The previous time is a fixed stride away, as in diffusers, not the next time of the list. The two differ unless
    # the spacing is 'leading'.
    previous = times - process.num_train_timesteps // num_steps
    final = np.float32(1) if sampling.set_alpha_to_one else process.alphas_cumprod[0]
    before = np.where(previous >= 0, process.alphas_cumprod[np.maximum(previous, 0)], final)
    variance = (1 - before) / (1 - now) * (1 - now / before)
    std = np.float32(eta) * variance**0.5
    return make_table(
        t=times,
        alpha=now**0.5,
        sigma=(1 - now) ** 0.5,
        x0=before**0.5,
        noise_prediction=np.maximum(1 - before - std**2, 0) ** 0.5,  # At eta 1 rounding may give less than 0.
        std=std,
        is_noisy=(std > 0).astype(np.float32),
    )


DDPM = Sampler(
    diffusers_class='DDPMScheduler',
    defaults={**_CLIPS, 'variance_type': 'fixed_small'},
    columns=_ddpm,
    starts_at_zero_signal=False,
)
DDIM = Sampler(
    diffusers_class='DDIMScheduler',
    defaults={**_CLIPS, 'set_alpha_to_one': True},
    columns=_ddim,
    takes_eta=True,
    starts_at_zero_signal=False,
)
