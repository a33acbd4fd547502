"""Rotary embedding is that of diffusers and transformers; products depend on the difference of positions only."""

import diffusers.models.embeddings as diffusers_embeddings
import jax.numpy as jnp
import numpy as np
import torch
from diffusers.models.transformers.transformer_flux2 import Flux2PosEmbed
from transformers.models.qwen3.modeling_qwen3 import apply_rotary_pos_emb

from dreambooth_jax.models import rotary

POSITIONS = np.array([[0, 0, 0, 0], [0, 3, 5, 0], [10, 0, 7, 511], [0, 63, 63, 2]])
WIDTHS = (4, 6, 8, 2)


def test_angles_of_several_axes_and_rotation_of_neighbours_match_diffusers():
    x = np.random.default_rng(0).normal(size=(2, 4, 3, sum(WIDTHS))).astype(np.float32)
    rotation = Flux2PosEmbed(2000, WIDTHS)(torch.from_numpy(POSITIONS))
    expected = diffusers_embeddings.apply_rotary_emb(torch.from_numpy(x), rotation, sequence_dim=1)
    ours = rotary.rotate_neighbours(x, *rotary.of_heads(rotary.axes_angles(POSITIONS, WIDTHS, 2000)))
    np.testing.assert_allclose(ours, expected.numpy(), rtol=0, atol=1e-6)
    assert rotary.rotate_neighbours(jnp.asarray(x, jnp.bfloat16), 1.0, 0.0).dtype == jnp.bfloat16


def test_rotation_of_halves_matches_transformers():
    x = np.random.default_rng(0).normal(size=(2, 5, 3, 8)).astype(np.float32)
    angle = rotary.angles(np.arange(5), 8, 1e6)
    whole = torch.from_numpy(np.concatenate([angle, angle], axis=-1)).float()[None]
    expected, _ = apply_rotary_pos_emb(*2 * [torch.from_numpy(x)], whole.cos(), whole.sin(), unsqueeze_dim=2)
    np.testing.assert_allclose(rotary.rotate_halves(x, *rotary.of_heads(angle)), expected.numpy(), rtol=0, atol=1e-6)


def test_products_depend_on_the_difference_of_positions_only():
    query, key = np.random.default_rng(1).normal(size=(2, 1, 1, 1, 16))
    for rotate in (rotary.rotate_neighbours, rotary.rotate_halves):

        def product(p, q, rotate=rotate):
            turned = (rotate(x, *rotary.of_heads(rotary.angles([at], 16, 100.0))) for x, at in ((query, p), (key, q)))
            return float(jnp.sum(jnp.prod(jnp.stack(list(turned)), axis=0)))

        np.testing.assert_allclose(product(3, 8), product(13, 18), rtol=1e-5)
        assert abs(product(3, 8) - product(3, 9)) > 1e-3


def test_tokens_of_an_image_are_counted_row_by_row():
    assert rotary.grid(2, 3).tolist() == [[0, 0], [0, 1], [0, 2], [1, 0], [1, 1], [1, 2]]
