"""Masks in the loss: white is no mask, black has no gradient, and a mask goes where its image goes."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dreambooth_jax.losses.denoising import Objective
from tests.support import small_stages as small

SIDE, CROP, FACTOR = 16, 8, 2
KINDS = {
    'pixel': (small.pixel_loss, {}),
    'super_resolution': (
        small.enlarging_loss,
        dict(noising_schedule=small.schedule(), factor=FACTOR, noise_level=(0, 50)),
    ),
}


def white(data):
    return np.full((*data['images'].shape[:3], 1), 255, np.uint8)


def loss_and_gradient(kind, data, answer, **options):
    """The stage's losses f32[B] and their gradient by what a network that always answers `answer` says."""
    stage_of, settings = KINDS[kind]
    stage = stage_of(denoiser=lambda params, *inputs, **labels: params['answer'], **settings, **options)

    def total(answer):
        loss, parts = stage.loss(
            {'unet': {'answer': answer}},
            jax.tree.map(jnp.asarray, data),
            small.batch(len(answer)),
            small.keys(len(answer)),
        )
        return loss.sum(), (loss, parts)

    gradient, (loss, parts) = jax.jit(jax.grad(total, has_aux=True))(answer)
    return np.asarray(loss), np.asarray(gradient), parts


def learned(prediction_type='epsilon'):
    return small.schedule(prediction_type, 'learned_range')


@pytest.mark.parametrize('kind', KINDS)
def test_a_white_mask_is_no_mask(kind):
    data = small.frozen(SIDE)
    answer = np.random.default_rng(1).normal(size=(6, SIDE, SIDE, 6)).astype(np.float32)
    settings = dict(schedule=learned(), objective=Objective(random_flip=True, min_snr_gamma=5.0))
    plain = loss_and_gradient(kind, data, answer, **settings)
    masked = loss_and_gradient(kind, {**data, 'masks': white(data)}, answer, **settings)
    np.testing.assert_allclose(masked[0], plain[0], rtol=1e-6)
    np.testing.assert_allclose(masked[1], plain[1], rtol=1e-5, atol=1e-9)


@pytest.mark.parametrize('kind', KINDS)
def test_black_pixels_have_no_gradient_from_either_half_of_the_answer(kind):
    data = small.frozen(SIDE)
    masks = white(data)
    masks[:, 4:11, :9] = 0
    answer = np.random.default_rng(1).normal(size=(6, SIDE, SIDE, 6)).astype(np.float32)
    _, gradient, parts = loss_and_gradient(kind, {**data, 'masks': masks}, answer, schedule=learned())
    black = np.broadcast_to(masks == 0, gradient.shape)
    assert (gradient[black] == 0).all() and (gradient[~black] != 0).all()
    # Nor do they show in the numbers.
    answer[black] = 7.0
    _, _, other = loss_and_gradient(kind, {**data, 'masks': masks}, answer, schedule=learned())
    assert parts.keys() == {'denoising', 'variance'}
    for name in parts:
        np.testing.assert_allclose(other[name], parts[name], rtol=1e-5)


def test_the_scale_of_an_example_does_not_depend_on_how_much_its_mask_keeps():
    """What is wrong by the same everywhere is as wrong in a part; grey all over is as white."""
    data = small.frozen(SIDE)
    data['images'] = np.full_like(data['images'], 255)
    masks = white(data)
    masks[1, 3:], masks[2, :, 5:], masks[3] = 0, 51, 1
    answer = np.full((6, SIDE, SIDE, 3), 0.25, np.float32)
    loss, *_ = loss_and_gradient('pixel', {**data, 'masks': masks}, answer, schedule=small.schedule('sample'))
    np.testing.assert_allclose(loss, 0.75**2, rtol=1e-6)


def test_grey_weighs_as_its_value():
    data = small.frozen(SIDE)
    masks = white(data)
    masks[:, 8:] = 51
    answer = np.random.default_rng(1).normal(size=(6, SIDE, SIDE, 3)).astype(np.float32)
    loss, *_ = loss_and_gradient('pixel', {**data, 'masks': masks}, answer, schedule=small.schedule('sample'))
    error = np.square(answer - (data['images'] / 127.5 - 1)).mean(axis=(2, 3))
    np.testing.assert_allclose(loss, (error[:, :8].mean(1) + 0.2 * error[:, 8:].mean(1)) / 1.2, rtol=1e-5)


@pytest.mark.parametrize(
    ('kind', 'crop'), [('pixel', {}), ('super_resolution', {}), ('super_resolution', {'crop': CROP})]
)
def test_masks_are_mirrored_and_cropped_with_their_images(kind, crop):
    """Images that are white where their masks are: an answer of 0 is then too low wherever it counts."""
    examples = 60
    rng = np.random.default_rng(0)
    masks = (255 * rng.integers(0, 2, (small.IMAGES, SIDE, SIDE, 1))).astype(np.uint8)
    data = {**small.frozen(SIDE), 'images': masks.repeat(3, axis=-1), 'masks': masks}
    side = crop.get('crop', SIDE)
    _, gradient, _ = loss_and_gradient(
        kind,
        data,
        np.zeros((examples, side, side, 3), np.float32),
        schedule=small.schedule('sample'),
        objective=Objective(random_flip=True),
        **crop,
    )
    assert (gradient <= 0).all()
    seen = {example.tobytes() for example in gradient < 0}
    # Both ways round of every image, and with crops many more.
    assert len(seen) == 2 * small.IMAGES if not crop else len(seen) > 3 * small.IMAGES
