"""Guidance as IFPipeline, thresholding as DDPMScheduler._threshold_sample."""

import diffusers
import jax.numpy as jnp
import numpy as np
import pytest
import torch

from dreambooth_jax.diffusion import guidance

RANDOM = np.random.default_rng(5)
CONDITIONAL, UNCONDITIONAL = jnp.asarray(RANDOM.normal(size=(2, 3, 4, 4, 6)), jnp.float32)


def test_scale_one_is_conditional_and_zero_is_unconditional():
    np.testing.assert_allclose(
        guidance.classifier_free_guidance(CONDITIONAL, UNCONDITIONAL, 1.0), CONDITIONAL, atol=1e-6
    )
    np.testing.assert_array_equal(guidance.classifier_free_guidance(CONDITIONAL, UNCONDITIONAL, 0.0), UNCONDITIONAL)


def test_scale_may_differ_per_example():
    guided = guidance.classifier_free_guidance(CONDITIONAL, UNCONDITIONAL, jnp.array([1.0, 4.0, 7.5]))
    for example, scale in enumerate((1.0, 4.0, 7.5)):
        alone = guidance.classifier_free_guidance(
            CONDITIONAL[example : example + 1], UNCONDITIONAL[example : example + 1], scale
        )
        np.testing.assert_allclose(guided[example], alone[0], atol=1e-5)


def test_learned_variance_is_kept_from_the_conditional_answer():
    guided = guidance.classifier_free_guidance(CONDITIONAL, UNCONDITIONAL, 7.0, learned_variance=True)
    np.testing.assert_array_equal(guided[..., 3:], CONDITIONAL[..., 3:])
    mean = UNCONDITIONAL[..., :3] + 7.0 * (CONDITIONAL[..., :3] - UNCONDITIONAL[..., :3])
    np.testing.assert_allclose(guided[..., :3], mean, atol=1e-5)


def test_shapes_that_differ_are_named():
    with pytest.raises(ValueError, match=r'\(3, 4, 4, 6\) but unconditional \(2, 4, 4, 6\)'):
        guidance.classifier_free_guidance(CONDITIONAL, UNCONDITIONAL[:2], 2.0)
    with pytest.raises(ValueError, match='5 channels'):
        guidance.classifier_free_guidance(CONDITIONAL[..., :5], UNCONDITIONAL[..., :5], 2.0, learned_variance=True)


@pytest.mark.parametrize(('ratio', 'max_value'), [(0.95, 1.5), (0.995, 1.0), (0.5, 3.0), (1.0, 100.0)])
def test_dynamic_threshold_equals_diffusers_example_by_example(ratio, max_value):
    x0 = np.random.default_rng(1).normal(size=(4, 8, 8, 3)).astype(np.float32)
    x0 *= np.array([0.2, 1.0, 2.0, 9.0], np.float32).reshape(4, 1, 1, 1)
    reference = diffusers.DDPMScheduler(thresholding=True, dynamic_thresholding_ratio=ratio, sample_max_value=max_value)
    theirs = reference._threshold_sample(torch.tensor(x0))
    ours = guidance.dynamic_threshold(jnp.asarray(x0), ratio, max_value)
    np.testing.assert_allclose(ours, theirs.numpy(), atol=2e-6)
    np.testing.assert_array_equal(guidance.dynamic_threshold(jnp.asarray(x0[2:3]), ratio, max_value)[0], ours[2])
