"""The layouts of single files by the short names that tests are parametrised with."""

from dreambooth_jax.families.sd_upscaler_files import UPSCALER
from dreambooth_jax.families.sdxl_files import SDXL
from dreambooth_jax.families.stable_diffusion_files import SD1, SD2

LAYOUTS = {'sd1': SD1, 'sd2': SD2, 'sdxl': SDXL, 'upscaler': UPSCALER}
