"""The transformer of Stable Diffusion's UNet: as diffusers' at its edges, and no change of its input at first."""

import diffusers
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from diffusers.models.attention import BasicTransformerBlock as TorchBlock

from dreambooth_jax.models import functional, transformer
from dreambooth_jax.models.transformer import BasicTransformerBlock, Transformer2DModel
from tests.support.torch_reference import nchw, nhwc, quick_jit, randomise, to_ours


def test_transformer_matches_diffusers_where_its_own_epsilon_counts():
    theirs = diffusers.Transformer2DModel(2, 4, in_channels=8, norm_num_groups=2, cross_attention_dim=6)
    randomise(theirs, seed=1, std=0.3)
    rng = np.random.default_rng(2)
    sample = 1e-3 * rng.normal(size=(2, 4, 4, 8)).astype(np.float32)  # variance 1e-6
    text = rng.normal(size=(2, 5, 6)).astype(np.float32)
    output = nhwc(theirs(nchw(sample), torch.from_numpy(text), return_dict=False)[0])
    shape = {'layers': 1, 'groups': 2, 'linear_projection': False, 'only_cross_attention': False}
    made = {'dtype': jnp.float32, 'rngs': functional.Keys(0)}
    apply, _ = functional.abstract(lambda: Transformer2DModel(8, 2, 6, **shape, **made))
    np.testing.assert_allclose(quick_jit(apply)(to_ours(theirs), sample, text), output, rtol=0, atol=1e-4)


@pytest.mark.parametrize('linear_projection', [False, True])
def test_fresh_transformer_adds_zero_by_its_last_projection_alone(linear_projection):
    shape = {'layers': 1, 'groups': 2, 'linear_projection': linear_projection, 'only_cross_attention': False}
    _, params = functional.init(lambda rngs: Transformer2DModel(4, 2, 6, dtype=jnp.float32, rngs=rngs, **shape), seed=0)
    zeros = {key for key, value in params.items() if key.endswith('kernel') and not np.any(value)}
    assert zeros == {'proj_out.kernel'}


@pytest.mark.parametrize('only_cross_attention', [False, True])
def test_a_block_equals_that_of_diffusers(only_cross_attention):
    theirs = TorchBlock(
        8, 2, 4, cross_attention_dim=6, activation_fn='geglu', only_cross_attention=only_cross_attention
    )
    randomise(theirs, seed=1, std=0.3)
    rng = np.random.default_rng(2)
    x, text = (rng.normal(size=shape).astype(np.float32) for shape in ((2, 7, 8), (2, 5, 6)))
    with torch.no_grad():
        output = theirs(torch.from_numpy(x), encoder_hidden_states=torch.from_numpy(text)).numpy()
    apply, shapes = functional.abstract(
        lambda: BasicTransformerBlock(
            8, 2, 6, only_cross_attention=only_cross_attention, dtype=jnp.float32, rngs=functional.Keys(0)
        )
    )
    params = to_ours(theirs)
    assert {name: value.shape for name, value in params.items()} == {k: v.shape for k, v in shapes.items()}
    np.testing.assert_allclose(quick_jit(apply)(params, x, text), output, rtol=0, atol=1e-4)


def test_half_of_a_gated_layer_is_the_gate():
    apply, shapes = functional.abstract(lambda: transformer.GEGLU(2, 3, dtype=jnp.float32, rngs=functional.Keys(0)))
    assert shapes['proj.kernel'].shape == (2, 6)
    kernel = jnp.concatenate([jnp.ones((2, 3)), -jnp.ones((2, 3))], axis=1)
    x = np.array([[1.0, 2.0]], np.float32)
    with jax.disable_jit():
        found = apply({'proj.kernel': kernel, 'proj.bias': jnp.zeros(6)}, x)
    expected = 3 * torch.nn.functional.gelu(torch.tensor(-3.0)).item()
    np.testing.assert_allclose(found, np.full((1, 3), expected), rtol=1e-5)
