"""The samplers by name. Adding one is a function that makes the columns of its steps, and its entry here.

Its name then also belongs into the settings (config/training.py: Sampler), where the floors below cannot be imported.
"""

from collections.abc import Mapping

from dreambooth_jax.diffusion.sampler_ddpm import DDIM, DDPM
from dreambooth_jax.diffusion.sampler_dpmsolver import DPM_SOLVER
from dreambooth_jax.diffusion.sampler_euler import EULER, EULER_ANCESTRAL, HEUN
from dreambooth_jax.diffusion.sampler_unipc import UNIPC
from dreambooth_jax.diffusion.step_table import Sampler

SAMPLERS: Mapping[str, Sampler] = {
    'ddpm': DDPM,
    'ddim': DDIM,
    'dpmsolver++': DPM_SOLVER,
    'euler': EULER,
    'euler_ancestral': EULER_ANCESTRAL,
    'heun': HEUN,
    'unipc': UNIPC,
}
