"""Exactly one layout is recognised for each published kind of single file, by names and by configurations."""

import pytest

from dreambooth_jax.families.originals import ORIGINALS
from dreambooth_jax.families.sd_upscaler_files import UPSCALER
from dreambooth_jax.families.sdxl_files import SDXL
from dreambooth_jax.families.stable_diffusion_files import SD1, SD2
from dreambooth_jax.weights import original_configs
from tests.support import published_stable_diffusion as published
from tests.support.layouts import LAYOUTS


@pytest.mark.parametrize('family', published.CONFIGS)
def test_one_layout_fits_the_published_configurations_and_is_found(family):
    configs = published.CONFIGS[family]
    assert original_configs.layout_of(configs, ORIGINALS) is LAYOUTS[family]
    # The upscaler's text encoder is that of SD 2.x, so SD 2.x fits it too; the order decides.
    others = [layout for layout in ORIGINALS if layout.fits(configs) and layout is not LAYOUTS[family]]
    assert all(ORIGINALS.index(LAYOUTS[family]) < ORIGINALS.index(other) for other in others)


@pytest.mark.parametrize('layout', ORIGINALS, ids=lambda layout: layout.title)
def test_one_layout_is_found_by_the_prefixes_of_text_encoders(layout):
    names = {f'{prefix}x': (1, 1) for prefix in layout.text_prefixes.values()}
    names |= {'model.diffusion_model.label_emb.weight': (1000, 8)} if layout is UPSCALER else {}
    assert next(one for one in ORIGINALS if one.matches(names)) is layout


def test_the_upscaler_comes_before_the_model_whose_text_encoder_it_has():
    assert UPSCALER.text_prefixes == SD2.text_prefixes
    assert ORIGINALS.index(UPSCALER) < ORIGINALS.index(SD2)
    assert SD1.text_prefixes != SD2.text_prefixes != SDXL.text_prefixes
