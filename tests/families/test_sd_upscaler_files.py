"""Published facts of the x4 upscaler."""

from dreambooth_jax.families.sd_upscaler_files import UPSCALER


def test_it_predicts_v_and_takes_the_low_resolution_image():
    assert UPSCALER.default_prediction_type == 'v_prediction' and UPSCALER.in_channels == 7
    assert UPSCALER.further_schedulers['low_res_scheduler']['prediction_type'] == 'epsilon'
    assert UPSCALER.architecture('v_prediction') == 'stable-diffusion-x4-upscaler' and not UPSCALER.kohya_versions


def test_a_unet_with_the_sizes_of_the_image_is_none():
    unet = {'num_class_embeds': 1000}
    assert UPSCALER.fits({'unet': unet, 'text_encoder': {}})
    assert not UPSCALER.fits({'unet': {**unet, 'addition_embed_type': 'text_time'}, 'text_encoder': {}})
