"""Images of a cascade, with sampling options given one by one."""

from dreambooth_jax.generation.cascade import Cascade, Images
from dreambooth_jax.generation.options import SamplingOptions


def generate(cascade: Cascade, prompts, *, num_images: int = 1, progress: bool = False, **options) -> Images:
    return cascade.generate(prompts, SamplingOptions(**options), num_images=num_images, progress=progress)
