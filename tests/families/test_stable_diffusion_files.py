"""Published facts of Stable Diffusion 1.x and 2.x."""

from dreambooth_jax.families.stable_diffusion_files import SD1, SD2


def test_ids_depend_on_the_prediction_type_in_the_second_generation_only():
    assert SD1.architecture('epsilon') == SD1.architecture('v_prediction') == 'stable-diffusion-v1'
    assert SD2.architecture('epsilon') == 'stable-diffusion-v2-512'
    assert SD2.architecture('v_prediction') == 'stable-diffusion-v2-768-v'


def test_a_file_of_the_second_generation_must_say_what_it_predicts():
    assert SD1.ask_prediction_type is None and SD2.ask_prediction_type
    assert SD2.published_prediction_types['768-v-ema'] == 'v_prediction'
    assert SD2.published_prediction_types['v2-1_512-ema-pruned'] == 'epsilon'


def test_padding_and_resolutions():
    assert (SD1.pad_tokens, SD2.pad_tokens) == ({'tokenizer': '<|endoftext|>'}, {'tokenizer': '!'})
    assert SD2.resolutions == {'epsilon': 512, 'v_prediction': 768}
