"""Small layers equal torch's and diffusers' where the two frameworks differ: paddings, epsilons, gelu, float32."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from diffusers.models.embeddings import TimestepEmbedding as TorchTimestepEmbedding
from diffusers.models.embeddings import get_timestep_embedding

from dreambooth_jax.models import functional, layers
from tests.support.torch_reference import nchw, nhwc, randomise, to_ours

RNG = np.random.default_rng(0)
TORCH_ACTIVATIONS = {
    'gelu': torch.nn.functional.gelu,
    'mish': torch.nn.functional.mish,
    'quick_gelu': lambda x: x * torch.sigmoid(1.702 * x),
    'relu': torch.nn.functional.relu,
    'silu': torch.nn.functional.silu,
    'swish': torch.nn.functional.silu,
}


@pytest.mark.parametrize('name', layers.ACTIVATIONS)
def test_activations_are_those_of_torch(name):
    x = np.linspace(-6, 6, 101, dtype=np.float32)
    theirs = TORCH_ACTIVATIONS[name](torch.from_numpy(x)).numpy()
    np.testing.assert_allclose(layers.ACTIVATIONS[name](x), theirs, atol=2e-6)
    assert layers.ACTIVATIONS[name](jnp.asarray(x, jnp.bfloat16)).dtype == jnp.bfloat16


def ours(module, constructor, *inputs):
    """What our layer makes of the inputs with the torch module's parameters."""
    apply, shapes = functional.abstract(lambda: constructor(dtype=jnp.float32, rngs=functional.Keys(0)))
    params = to_ours(torch.nn.Sequential(module))
    params = {name.removeprefix('0.'): value for name, value in params.items()}
    assert {name: value.shape for name, value in params.items()} == {k: v.shape for k, v in shapes.items()}
    return apply(params, *inputs)


@pytest.mark.parametrize('scale', [1.0, 1e-3])
@pytest.mark.parametrize('shape', [(2, 5, 7, 8), (2, 9, 8)])
def test_a_group_norm_is_that_of_torch_also_where_its_epsilon_counts(shape, scale):
    theirs = randomise(torch.nn.GroupNorm(4, 8, eps=1e-6), seed=1)
    x = (3 * scale + scale * RNG.normal(size=shape)).astype(np.float32)
    expected = theirs(torch.from_numpy(np.moveaxis(x, -1, 1).copy())).detach().movedim(1, -1).numpy()
    found = ours(theirs, lambda **made: layers.GroupNorm(8, 4, 1e-6, **made), x)
    np.testing.assert_allclose(found, expected, atol=2e-5 if scale == 1 else 2e-3)


def test_the_statistics_of_a_group_norm_are_float32_in_half_precision():
    norm = layers.GroupNorm(2, 1, 1e-5, dtype=jnp.bfloat16, rngs=functional.Keys(0))
    x = 300 + RNG.normal(size=(1, 16, 2)).astype(np.float32)  # bfloat16 has steps of 2 here
    found = norm(x)
    assert found.dtype == jnp.bfloat16
    np.testing.assert_allclose(np.asarray(found, np.float32), (x - x.mean()) / x.std(), atol=0.02)


def test_a_layer_norm_has_torchs_epsilon():
    theirs = randomise(torch.nn.LayerNorm(6), seed=1)
    x = (1e-3 * RNG.normal(size=(3, 6))).astype(np.float32)
    found = ours(theirs, lambda **made: layers.layer_norm(6, **made), x)
    np.testing.assert_allclose(found, theirs(torch.from_numpy(x)).detach().numpy(), atol=1e-4)


@pytest.mark.parametrize(('kernel', 'stride'), [(1, 1), (3, 1), (3, 2), (5, 1)])
def test_a_convolution_is_padded_on_both_sides_as_in_torch(kernel, stride):
    theirs = randomise(torch.nn.Conv2d(3, 4, kernel, stride, padding=kernel // 2), seed=1, std=0.3)
    x = RNG.normal(size=(2, 6, 8, 3)).astype(np.float32)
    found = ours(theirs, lambda **made: layers.convolution(3, 4, kernel, stride=stride, **made), x)
    np.testing.assert_allclose(found, nhwc(theirs(nchw(x))), atol=1e-5)
    assert found.shape == (2, 6 // stride, 8 // stride, 4)


def test_the_last_convolution_of_a_branch_starts_at_zero():
    for zero in (False, True):
        layer = layers.convolution(2, 3, zero=zero, dtype=jnp.float32, rngs=functional.Keys(0))
        assert bool(np.any(layer.kernel[...])) is not zero


def test_resampling_is_the_mean_of_squares_and_squares_of_a_pixel():
    x = RNG.normal(size=(2, 4, 6, 3)).astype(np.float32)
    pooled = torch.nn.functional.avg_pool2d(nchw(x), 2)
    np.testing.assert_allclose(layers.average_pool(x), nhwc(pooled), atol=1e-6)
    doubled = torch.nn.functional.interpolate(nchw(x), scale_factor=2, mode='nearest')
    np.testing.assert_array_equal(layers.nearest_upsample(x), nhwc(doubled))


@pytest.mark.parametrize('width', [16, 7])
@pytest.mark.parametrize('freq_shift', [0, 1])
@pytest.mark.parametrize('flip_sin_to_cos', [False, True])
def test_sinusoids_are_those_of_diffusers(width, freq_shift, flip_sin_to_cos):
    times = np.array([0, 1, 37, 999])
    options = {'flip_sin_to_cos': flip_sin_to_cos}
    theirs = get_timestep_embedding(torch.from_numpy(times), width, downscale_freq_shift=freq_shift, **options)
    found = layers.sinusoidal_embedding(times, width, freq_shift=freq_shift, **options)
    assert found.dtype == jnp.float32
    np.testing.assert_allclose(found, theirs.numpy(), atol=1e-4)


def test_time_features_are_those_of_diffusers():
    theirs = randomise(TorchTimestepEmbedding(6, 8, act_fn='gelu'), seed=1, std=0.3)
    x = RNG.normal(size=(3, 6)).astype(np.float32)
    found = ours(theirs, lambda **made: layers.TimestepEmbedding(6, 8, 'gelu', **made), x)
    with jax.default_matmul_precision('float32'):
        np.testing.assert_allclose(found, theirs(torch.from_numpy(x)).detach().numpy(), atol=1e-5)
