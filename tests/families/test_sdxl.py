"""Stable Diffusion XL: two text encoders, of which the refiner lacks the first, and the pipelines saved beside it."""

import diffusers
import pytest

from dreambooth_jax.families.prompts import XLPrompts
from dreambooth_jax.families.sdxl import FAMILY
from dreambooth_jax.weights.errors import WeightsError


def test_the_refiner_is_refused_by_its_missing_text_encoder():
    FAMILY.check_parts(['unet', 'vae', 'text_encoder', 'text_encoder_2'], 'x')
    FAMILY.check_parts(['unet'], 'x')
    with pytest.raises(WeightsError) as error:
        FAMILY.check_parts(['unet', 'vae', 'text_encoder_2'], 'x')
    assert str(error.value) == (
        'x names no text_encoder, as that of the SDXL refiner, which only finishes images; give the SDXL base model.'
    )


def test_prompts_are_read_with_both_and_the_size_is_told():
    assert list(FAMILY.tokenizers.items()) == [('text_encoder', 'tokenizer'), ('text_encoder_2', 'tokenizer_2')]
    assert FAMILY.prompts is XLPrompts and FAMILY.takes_sizes
    assert FAMILY.options == {'force_zeros_for_empty_prompt': True}  # diffusers' default


def test_other_tasks_are_classes_of_diffusers():
    missing = {name for name in FAMILY.also_saved_as if not hasattr(diffusers, name)}
    assert missing == {'StableDiffusionXLControlNetPAGInpaintPipeline'}  # which is not made yet
