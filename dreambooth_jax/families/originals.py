"""The generations of models that are read from, and written to, single files of the original layout."""

from dreambooth_jax.families.sd_upscaler_files import UPSCALER
from dreambooth_jax.families.sdxl_files import SDXL
from dreambooth_jax.families.stable_diffusion_files import SD1, SD2

# The order in which they are tried: the upscaler has the text encoder of SD 2.x, so it must come first.
ORIGINALS = (UPSCALER, SDXL, SD2, SD1)
