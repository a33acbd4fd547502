"""Published facts of SDXL."""

from dreambooth_jax.families.sdxl_files import SDXL


def test_two_text_encoders_of_which_the_second_is_projected():
    assert list(SDXL.text_prefixes) == ['text_encoder', 'text_encoder_2'] and SDXL.projected == ('text_encoder_2',)
    assert SDXL.pad_tokens == {'tokenizer': '<|endoftext|>', 'tokenizer_2': '!'}


def test_one_id_and_one_version_whatever_it_predicts():
    assert SDXL.architecture('v_prediction') == 'stable-diffusion-xl-v1-base'
    assert SDXL.kohya_versions == {'epsilon': 'sdxl_base_v1-0'} and not SDXL.kohya_is_v2
    assert SDXL.writes_markers and SDXL.kohya_original_names
