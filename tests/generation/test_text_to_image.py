"""The sampler of one stage: what its denoiser sees with and without guidance, batches, keys, and pixels of 8 bits."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dreambooth_jax.config import ConfigError
from dreambooth_jax.diffusion import schedules
from dreambooth_jax.generation import text_to_image

SCHEDULE = schedules.make_schedule('squaredcos_cap_v2', prediction_type='sample')
TEXT, NEGATIVE = ({'states': jnp.full((2, 1), value)} for value in (0.5, -0.25))


def predict(params, x_t, t, conditioning):
    """Answers with the prompt's number, and keeps what it was given."""
    params['seen'].append((x_t.shape, t.shape, {name: value.shape for name, value in conditioning.items()}))
    return jnp.zeros_like(x_t) + conditioning['states'].reshape(-1, 1, 1, 1)


def run(scale, guided=False, **options):
    seen, keys = [], text_to_image.image_keys(3, [0, 1])
    low = options.pop('low', ())
    sampler = text_to_image.make_sampler(
        lambda params, *rest: predict({'seen': seen}, *rest),
        SCHEDULE,
        shape=(4, 4, 3),
        steps=2,
        guided=guided,
        sampler='ddim',
        **options,
    )
    return np.asarray(sampler({}, TEXT, NEGATIVE, jnp.full(2, scale), keys, *low)), seen


def test_guidance_runs_the_denoiser_on_both_prompts_and_extrapolates():
    images, seen = run(1.5, guided=True)
    np.testing.assert_allclose(images, np.full((2, 4, 4, 3), -0.25 + 1.5 * 0.75), atol=1e-5)
    assert seen == [((4, 4, 4, 3), (4,), {'states': (4, 1)})]


def test_embedded_guidance_is_told_to_one_pass():
    images, seen = run(3.5, embeds_guidance=True)
    np.testing.assert_allclose(images, np.full((2, 4, 4, 3), 0.5), atol=1e-5)
    assert seen == [((2, 4, 4, 3), (2,), {'states': (2, 1), 'guidance': (2,)})]


def test_without_guidance_the_negative_prompt_is_not_seen():
    images, seen = run(1.0)
    np.testing.assert_allclose(images, np.full((2, 4, 4, 3), 0.5), atol=1e-5)
    assert seen == [((2, 4, 4, 3), (2,), {'states': (2, 1)})]


@pytest.mark.parametrize(('guided', 'examples'), [(False, 2), (True, 4)])
def test_a_second_stage_sees_the_low_image_at_its_own_size_and_its_level(guided, examples):
    low, level = jnp.zeros((2, 2, 2, 3)), jnp.array([0, 40])
    _, seen = run(2.0, guided, noising_process=schedules.make_schedule('squaredcos_cap_v2'), low=(low, level))
    assert seen[0][2] == {'states': (examples, 1), 'low_image': (examples, 4, 4, 3), 'noise_level': (examples,)}


def test_an_image_has_a_key_of_its_own():
    keys = text_to_image.image_keys(3, np.array([5, 0, 5]))
    data = np.asarray(jax.random.key_data(keys))
    assert np.array_equal(data[0], data[2]) and not np.array_equal(data[0], data[1])
    assert not np.array_equal(data[0], jax.random.key_data(text_to_image.image_keys(4, [5]))[0])


@pytest.mark.parametrize(
    ('arguments', 'sizes', 'kept'),
    [
        ((5, 2), [2, 2, 2], [2, 2, 1]),
        ((5, 2, 4), [4, 4], [4, 1]),
        ((3, 8), [3], [3]),
        ((3, 8, 4), [4], [3]),
        ((4, 3, 2), [4], [4]),
        ((0, 8), [], []),
    ],
)
def test_batches_have_one_size_and_only_the_last_repeats_an_example(arguments, sizes, kept):
    batches = list(text_to_image.padded_batches(*arguments))
    assert [len(rows) for rows, _ in batches] == sizes and [count for _, count in batches] == kept
    assert [row for rows, count in batches for row in rows[:count]] == list(range(arguments[0]))
    assert all((rows[count:] == arguments[0] - 1).all() for rows, count in batches)


def test_pixels_are_rounded_and_clipped():
    images = np.array([-2.0, -1.0, 0.0, 1.0, 3.0, 2 * 100.4 / 255 - 1, 2 * 100.6 / 255 - 1], np.float32)
    found = text_to_image.to_uint8(images)
    assert found.dtype == np.uint8 and found.tolist() == [0, 0, 128, 255, 255, 100, 101]


def test_an_image_that_is_no_number_does_not_become_black():
    with pytest.raises(ConfigError, match='^an image came out as NaN; the weights that generate it hold NaN or make '):
        text_to_image.to_uint8(np.array([0.0, np.nan], np.float32))
