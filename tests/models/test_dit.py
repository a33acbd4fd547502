"""Parts of diffusion transformers against torch's, where the test of a whole network could not tell a mistake."""

import jax.numpy as jnp
import numpy as np
import torch
from diffusers.models.normalization import AdaLayerNormContinuous

from dreambooth_jax.models import dit, functional
from tests.support.torch_reference import randomise, to_ours

X = np.random.default_rng(0).normal(2, 3, size=(2, 4, 6)).astype(np.float32)
TIME = np.random.default_rng(1).normal(size=(2, 6)).astype(np.float32)


def test_the_norm_without_parameters_is_torchs():
    expected = torch.nn.functional.layer_norm(torch.from_numpy(X), (6,), eps=0.1)
    np.testing.assert_allclose(dit.normalise(X, 0.1), expected.numpy(), rtol=0, atol=1e-6)
    half = dit.normalise(jnp.asarray(X, jnp.bfloat16), 0.1)
    assert half.dtype == jnp.bfloat16
    np.testing.assert_allclose(half.astype(np.float32), expected.numpy(), rtol=0, atol=0.05)


def test_the_last_norm_takes_scale_before_shift():
    theirs = randomise(AdaLayerNormContinuous(6, 6, elementwise_affine=False, eps=1e-6, bias=False), seed=0, std=1.0)
    apply, _ = functional.split(dit.ModulatedNorm(6, 1e-6, dtype=jnp.float32, rngs=functional.Keys(0)))
    expected = theirs(torch.from_numpy(X), torch.from_numpy(TIME)).detach().numpy()
    np.testing.assert_allclose(apply(to_ours(theirs), X, TIME), expected, rtol=0, atol=1e-5)


def test_modulation_starts_as_the_identity():
    parts = dit.Modulation(6, 3, dtype=jnp.float32, rngs=functional.Keys(0))(TIME)
    assert [part.shape for part in parts] == 3 * [(2, 1, 6)] and not any(np.any(part) for part in parts)
    np.testing.assert_array_equal(dit.modulated(X, *parts[:2], 1e-6), dit.normalise(X, 1e-6))


def test_the_gate_is_the_first_half():
    gate, up = np.float32([-1, 0, 2]), np.float32([3, 5, 7])
    expected = torch.nn.functional.silu(torch.from_numpy(gate)).numpy() * up
    np.testing.assert_allclose(dit.silu_gated(np.concatenate([gate, up])), expected, rtol=1e-6)


def test_only_float16_is_kept_within_its_range():
    assert dit.within_range(jnp.float16([np.inf, -np.inf, 1])).tolist() == [65504, -65504, 1]
    assert dit.within_range(jnp.float32([1e6])).tolist() == [1e6]
