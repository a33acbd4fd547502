"""The generations of models that are read from, and written to, single files of the original layout."""

from dreambooth_jax.families.family import FAMILIES
from dreambooth_jax.weights.original_facts import layouts_of

# The order in which they are tried: the upscaler has the text encoder of SD 2.x, so it must come first.
ORIGINALS = layouts_of(FAMILIES)
