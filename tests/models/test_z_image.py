"""Z-Image's transformer against diffusers' on random weights and texts of different lengths, and its errors."""

import functools
import inspect
from types import SimpleNamespace

import diffusers
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from flax import nnx

from dreambooth_jax.models import functional, z_image
from dreambooth_jax.models.z_image import ZImageTransformer2DModel
from dreambooth_jax.weights import mapping
from tests.support.torch_reference import (
    assert_near,
    assert_same_gradients,
    gradients,
    largest_relative_difference,
    quick_jit,
    randomise,
    to_ours,
)

CONFIG = {
    '_class_name': 'ZImageTransformer2DModel',
    'axes_dims': [4, 6, 6],
    'axes_lens': [128, 8, 8],
    'cap_feat_dim': 12,
    'dim': 32,
    'in_channels': 4,
    'n_heads': 2,
    'n_kv_heads': 2,
    'n_layers': 2,
    'n_refiner_layers': 1,
}
HEIGHT, WIDTH, LENGTH = 6, 4, 40
COUNTS = (40, 7, 32)  # 40 and 7 are padded to 64 and 32


def build(config=CONFIG, **options):
    return functional.abstract(lambda: ZImageTransformer2DModel(config, rngs=functional.Keys(0), **options))


@functools.cache
def both():
    """The same network and inputs on both sides, run forward and backward once."""
    options = {key: value for key, value in CONFIG.items() if not key.startswith('_')}
    theirs = randomise(diffusers.ZImageTransformer2DModel(**options), seed=1, std=0.1)
    rng = np.random.default_rng(2)
    sample = rng.normal(size=(3, HEIGHT, WIDTH, 4)).astype(np.float32)
    text = rng.normal(size=(3, LENGTH, 12)).astype(np.float32)
    time = np.array([0.9, 0.123, 0.5], np.float32)
    mask = (np.arange(LENGTH)[None, :] < np.array(COUNTS)[:, None]).astype(np.int32)

    images = [torch.from_numpy(one.transpose(2, 0, 1)[:, None].copy()).requires_grad_() for one in sample]
    texts = [torch.from_numpy(one[:count]).requires_grad_() for one, count in zip(text, COUNTS, strict=True)]
    outputs = theirs(list(images), torch.from_numpy(time), list(texts)).sample
    cotangent = rng.normal(size=sample.shape).astype(np.float32)
    output = torch.stack([one[:, 0].permute(1, 2, 0) for one in outputs])
    (output * torch.from_numpy(cotangent)).sum().backward()

    apply, abstract = build(remat=True)
    params = to_ours(theirs)
    assert {name: value.shape for name, value in params.items()} == {k: v.shape for k, v in abstract.items()}

    def product(params, sample, text):
        ours = apply(params, sample, time, text, mask)
        return jnp.sum(ours * cotangent), ours

    run = quick_jit(jax.value_and_grad(product, argnums=(0, 1, 2), has_aux=True))
    (_, ours), (of_params, of_sample, of_text) = run(params, sample, text)
    text_gradient = np.zeros_like(text)
    for row, one in zip(text_gradient, texts, strict=True):
        row[: len(one)] = one.grad
    return SimpleNamespace(
        params=params,
        inputs=(sample, time, text, mask),
        output=(ours, output.detach().numpy()),
        params_gradient=(of_params, gradients(theirs)),
        input_gradients=[
            (of_sample, np.stack([one.grad[:, 0].permute(1, 2, 0).numpy() for one in images])),
            (of_text, text_gradient),
        ],
    )


def test_the_prediction_matches_diffusers():
    ours, theirs = both().output
    assert ours.dtype == jnp.float32
    assert np.abs(theirs).max() > 0.5
    assert_near(ours, theirs, 2e-4)


def test_gradients_match_diffusers_and_padding_has_none():
    run = both()
    assert all(largest_relative_difference(*pair) < 1e-3 for pair in run.input_gradients)
    assert not np.any(np.asarray(run.input_gradients[1][0])[run.inputs[3] == 0])
    assert_same_gradients(*run.params_gradient)


def test_names_and_shapes_in_files_are_those_of_diffusers():
    options = {key: value for key, value in CONFIG.items() if not key.startswith('_')}
    theirs = diffusers.ZImageTransformer2DModel(**options).state_dict()
    ours = mapping.torch_names(nnx.eval_shape(lambda: ZImageTransformer2DModel(CONFIG, rngs=functional.Keys(0))))
    assert {name: found.shape for name, found in ours.items()} == {k: tuple(v.shape) for k, v in theirs.items()}


def test_half_precision_stays_near_with_float32_output():
    run = both()
    ours = quick_jit(build(dtype=jnp.bfloat16)[0])(run.params, *run.inputs)
    assert ours.dtype == jnp.float32
    assert 1e-4 < largest_relative_difference(ours, run.output[1]) < 0.1


def test_a_new_network_predicts_zero():
    apply, params = functional.init(lambda rngs: ZImageTransformer2DModel(CONFIG, rngs=rngs), seed=0)
    assert not np.any(quick_jit(apply)(params, *both().inputs))


def test_patches_have_channels_last_and_join_again():
    latents = np.arange(2 * 4 * 6 * 3).reshape(2, 4, 6, 3)
    tokens = z_image.patches(latents)
    assert tokens.shape == (2, 6, 12)
    np.testing.assert_array_equal(tokens[1, 4], latents[1, 2:4, 2:4].reshape(-1))
    np.testing.assert_array_equal(z_image.from_patches(tokens, 4, 6), latents)


def test_defaults_are_those_of_diffusers():
    signature = inspect.signature(diffusers.ZImageTransformer2DModel.__init__)
    theirs = {name: p.default for name, p in signature.parameters.items() if name != 'self'}
    lists = {name: tuple(value) for name, value in theirs.items() if isinstance(value, list)}
    assert theirs | lists == z_image.DEFAULTS


@pytest.mark.parametrize(
    'change, sentence',
    [
        ({'qk_norm': False}, 'qk_norm is False but must be True: no other value is implemented'),
        ({'siglip_feat_dim': 8}, 'siglip_feat_dim is 8 but must be None: no other value is implemented'),
        ({'all_patch_size': [2, 4]}, 'all_patch_size is [2, 4] but must be [2]: no other value is implemented'),
        ({'all_f_patch_size': 1}, 'all_f_patch_size is 1 but must be [1]: no other value is implemented'),
        ({'n_kv_heads': 1}, 'n_kv_heads is 1 but must be n_heads, which is 2'),
        ({'n_heads': 3, 'n_kv_heads': 3}, 'n_heads is 3 but must be a divisor of dim, which is 32'),
        ({'axes_lens': [128, 8]}, 'axes_lens is [128, 8] but must be a list of 3 positive integers'),
        (
            {'axes_dims': [4, 6, 8]},
            'axes_dims is [4, 6, 8] but must be even integers with the sum dim / n_heads, which is 16',
        ),
    ],
)
def test_unsupported_value_is_named_in_one_sentence(change, sentence):
    with pytest.raises(ValueError) as error:
        ZImageTransformer2DModel({**CONFIG, **change}, rngs=functional.Keys(0))
    assert str(error.value) == f'z_image config: {sentence}'


def test_unknown_key_is_named_in_one_sentence():
    with pytest.raises(
        ValueError, match="^z_image config: unknown key 'dropout'; it must be one of .'all_f_patch_size'"
    ):
        ZImageTransformer2DModel({**CONFIG, 'dropout': 0.1}, rngs=functional.Keys(0))


@pytest.mark.parametrize(
    'sample, text, sentence',
    [
        (
            (1, 6, 5, 4),
            (1, 40, 12),
            'sample has shape (1, 6, 5, 4) but must be [B, h, w, 4] with h and w multiples of 2',
        ),
        ((1, 6, 4, 4), (1, 40, 16), 'encoder_hidden_states have shape (1, 40, 16) but must be [B, L, 12]'),
        (
            (1, 6, 4, 4),
            (1, 97, 12),
            'a text of 97 and an image of 3 x 2 tokens exceed axes_lens, which is (128, 8, 8)',
        ),
        (
            (1, 6, 18, 4),
            (1, 40, 12),
            'a text of 40 and an image of 3 x 9 tokens exceed axes_lens, which is (128, 8, 8)',
        ),
    ],
)
def test_inputs_that_do_not_fit_are_named_in_one_sentence(sample, text, sentence):
    apply, abstract = build()
    shapes = (jax.ShapeDtypeStruct(shape, jnp.float32) for shape in (sample, (), text, text[:2]))
    with pytest.raises(ValueError) as error:
        jax.eval_shape(apply, abstract, *shapes)
    assert str(error.value) == f'z_image: {sentence}'
