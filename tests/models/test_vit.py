"""The vision transformer against transformers' three on random weights, its positions, its sizes, and its errors."""

import functools

import jax.numpy as jnp
import numpy as np
import pytest
import torch
import transformers
from flax import nnx

from dreambooth_jax.models import functional, vit
from dreambooth_jax.models.vit import VisionTransformer
from dreambooth_jax.weights import aliases, files, mapping
from tests.support import tiny_encoders
from tests.support.torch_reference import largest_relative_difference, quick_jit

NAMES = tuple(name for name in tiny_encoders.OF_IMAGES if name != 'clip')


def config_of(name):
    return tiny_encoders.reference(name).config.to_dict()


@functools.cache
def loaded(name, folder):
    """(apply, parameters), read from the file that transformers writes."""
    tensors = files.read_tensors(tiny_encoders.write(name, folder) / 'model.safetensors')
    model = nnx.eval_shape(lambda: VisionTransformer(config_of(name), rngs=functional.Keys(0)))
    params = mapping.load(model, tensors, aliases=aliases.VISION_ALIASES, ignored=aliases.VISION_IGNORED)
    return functional.split(model)[0], params


@pytest.fixture(params=NAMES)
def name(request):
    return request.param


@pytest.fixture(scope='module')
def root(tmp_path_factory):
    return tmp_path_factory.mktemp('encoders')


def images(height, width, count=2):
    return np.random.default_rng(height + width).normal(size=(count, height, width, 3)).astype(np.float32)


def assert_same(name, folder, pixels):
    takes_any_size = {} if name.startswith('dino_v2') else {'interpolate_pos_encoding': True}
    apply, params = loaded(name, folder / name)
    expected = tiny_encoders.pooled(name, pixels, **takes_any_size)
    for ours, theirs in zip(quick_jit(apply)(params, pixels), expected, strict=True):
        assert ours.dtype == jnp.float32
        assert np.abs(theirs).max() > 0.1
        np.testing.assert_allclose(ours, theirs, rtol=0, atol=1e-4)


def test_states_and_pooled_state_match_transformers(name, root):
    side = tiny_encoders.CONFIGS[name]['image_size']
    assert_same(name, root, images(side, side))


@pytest.mark.parametrize(
    ('name', 'patches'),
    [(name, (3, 5)) for name in NAMES] + [(name, size) for name in ('dino', 'dino_v2') for size in ((7, 7), (2, 9))],
)
def test_positions_are_interpolated_for_other_sizes_as_in_transformers(name, root, patches):
    """Larger, smaller and not square; what is beyond whole patches is not seen."""
    patch = tiny_encoders.CONFIGS[name]['patch_size']
    assert_same(name, root, images(patches[0] * patch + 1, patches[1] * patch + patch - 1))


@pytest.mark.parametrize('antialias', [False, True])
@pytest.mark.parametrize('old, new', [(37, 16), (16, 37), (4, 4), (5, 2), (1, 3), (3, 1)])
def test_cubic_weights_are_those_of_torch(old, new, antialias):
    # Every channel is one value of a column. (With columns of width 1, torch antialiases wrongly.)
    one_each = torch.eye(old).reshape(1, old, old, 1).repeat(1, 1, 1, 4)
    resized = torch.nn.functional.interpolate(
        one_each, size=(new, 4), mode='bicubic', align_corners=False, antialias=antialias
    )
    weights = vit.cubic_weights(old, new, antialias=antialias)
    np.testing.assert_allclose(weights, resized[0, :, :, 0].T.numpy(), atol=1e-5)


def test_a_file_of_dino_v2_has_our_names(root):
    """One of the three naming schemes is ours; then only the mask of pretraining is left."""
    for name in ('dino_v2', 'dino_v2_giant', 'dino_v2_registers'):
        model = nnx.eval_shape(lambda: VisionTransformer(config_of(name), rngs=functional.Keys(0)))  # noqa: B023
        stored = files.read_header(tiny_encoders.write(name, root / name) / 'model.safetensors').shapes
        assert stored.pop('embeddings.mask_token') == (1, 32)
        assert {key: parameter.shape for key, parameter in mapping.torch_names(model).items()} == stored


# As the published files of facebook/dino-vits16 and openai/clip-vit-base-patch32 name the tensors of one layer.
PUBLISHED = {
    'dino': """
        embeddings.cls_token embeddings.position_embeddings embeddings.patch_embeddings.projection.weight
        embeddings.patch_embeddings.projection.bias encoder.layer.1.attention.attention.query.weight
        encoder.layer.1.attention.attention.query.bias encoder.layer.1.attention.attention.key.weight
        encoder.layer.1.attention.attention.key.bias encoder.layer.1.attention.attention.value.weight
        encoder.layer.1.attention.attention.value.bias encoder.layer.1.attention.output.dense.weight
        encoder.layer.1.attention.output.dense.bias encoder.layer.1.intermediate.dense.weight
        encoder.layer.1.intermediate.dense.bias encoder.layer.1.output.dense.weight encoder.layer.1.output.dense.bias
        encoder.layer.1.layernorm_before.weight encoder.layer.1.layernorm_before.bias
        encoder.layer.1.layernorm_after.weight encoder.layer.1.layernorm_after.bias layernorm.weight layernorm.bias
        pooler.dense.weight pooler.dense.bias""",
    'clip_vision': """
        vision_model.embeddings.class_embedding vision_model.embeddings.patch_embedding.weight
        vision_model.embeddings.position_embedding.weight vision_model.pre_layrnorm.weight
        vision_model.pre_layrnorm.bias vision_model.encoder.layers.1.self_attn.k_proj.weight
        vision_model.encoder.layers.1.self_attn.k_proj.bias vision_model.encoder.layers.1.self_attn.v_proj.weight
        vision_model.encoder.layers.1.self_attn.v_proj.bias vision_model.encoder.layers.1.self_attn.q_proj.weight
        vision_model.encoder.layers.1.self_attn.q_proj.bias vision_model.encoder.layers.1.self_attn.out_proj.weight
        vision_model.encoder.layers.1.self_attn.out_proj.bias vision_model.encoder.layers.1.layer_norm1.weight
        vision_model.encoder.layers.1.layer_norm1.bias vision_model.encoder.layers.1.mlp.fc1.weight
        vision_model.encoder.layers.1.mlp.fc1.bias vision_model.encoder.layers.1.mlp.fc2.weight
        vision_model.encoder.layers.1.mlp.fc2.bias vision_model.encoder.layers.1.layer_norm2.weight
        vision_model.encoder.layers.1.layer_norm2.bias vision_model.post_layernorm.weight
        vision_model.post_layernorm.bias visual_projection.weight""",
}


@pytest.mark.parametrize('name', PUBLISHED)
def test_the_files_that_are_read_have_the_published_names(name, root):
    """So that the other tests are about what people have, whatever this version of transformers calls its layers."""
    stored = files.read_header(tiny_encoders.write(name, root / name) / 'model.safetensors').shapes
    assert {key for key in stored if '.0.' not in key} == set(PUBLISHED[name].split())


def test_a_tensor_that_belongs_nowhere_and_one_that_is_missing_are_named(root):
    tensors = files.read_tensors(tiny_encoders.write('dino', root / 'dino') / 'model.safetensors')
    tensors['encoder.layer.0.layer_scale1.lambda1'] = np.zeros(32, np.float32)
    del tensors['encoder.layer.1.intermediate.dense.bias']
    model = nnx.eval_shape(lambda: VisionTransformer(config_of('dino'), rngs=functional.Keys(0)))
    with pytest.raises(mapping.WeightsError) as error:
        mapping.load(model, tensors, aliases=aliases.VISION_ALIASES, ignored=aliases.VISION_IGNORED)
    assert error.value.problems == (
        'unused: encoder.layer.0.layer_scale1.lambda1 [32]',
        'missing: encoder.layer.1.mlp.fc1.bias [48]',
    )


def test_bfloat16_stays_near_float32_with_float32_output(root):
    apply, params = loaded('dino_v2', root / 'dino_v2')
    model = VisionTransformer
    narrow, abstract = functional.abstract(
        lambda: model(config_of('dino_v2'), dtype=jnp.bfloat16, rngs=functional.Keys(0))
    )
    assert {value.dtype for value in abstract.values()} == {jnp.dtype('float32')}
    pixels = images(112, 112)
    for ours, wide in zip(quick_jit(narrow)(params, pixels), quick_jit(apply)(params, pixels), strict=True):
        assert ours.dtype == jnp.float32
        assert 1e-5 < largest_relative_difference(ours, wide) < 0.05


DINO_V2 = {'model_type': 'dinov2', 'image_size': 518, 'patch_size': 14, 'mlp_ratio': 4, 'layer_norm_eps': 1e-6}
CLIP = {'model_type': 'clip_vision_model', 'hidden_act': 'quick_gelu', 'image_size': 224}


def sizes(width, heads, layers):
    return {'hidden_size': width, 'num_attention_heads': heads, 'num_hidden_layers': layers}


# Of the published config.json files; the counts are those of the weights without what is ignored (pooler, mask token).
COUNTS = {
    'facebook/dino-vits16': ({'model_type': 'vit', **sizes(384, 6, 12), 'intermediate_size': 1536}, 21_665_664),
    'facebook/dinov2-small': ({**DINO_V2, **sizes(384, 6, 12)}, 22_056_576 - 384),
    'facebook/dinov2-base': ({**DINO_V2, **sizes(768, 12, 12)}, 86_580_480 - 768),
    'facebook/dinov2-large': ({**DINO_V2, **sizes(1024, 16, 24)}, 304_368_640 - 1024),
    'facebook/dinov2-giant': ({**DINO_V2, **sizes(1536, 24, 40), 'use_swiglu_ffn': True}, 1_136_480_768 - 1536),
    'facebook/dinov2-with-registers-small': (
        {**DINO_V2, **sizes(384, 6, 12), 'model_type': 'dinov2_with_registers', 'num_register_tokens': 4},
        22_056_576 - 384 + 4 * 384,
    ),
    'openai/clip-vit-base-patch32': (
        {**CLIP, **sizes(768, 12, 12), 'intermediate_size': 3072, 'patch_size': 32, 'projection_dim': 512},
        87_456_000 + 768 * 512,
    ),
    'openai/clip-vit-large-patch14': (
        {**CLIP, **sizes(1024, 16, 24), 'intermediate_size': 4096, 'patch_size': 14, 'projection_dim': 768},
        303_179_776 + 1024 * 768,
    ),
}


@pytest.mark.parametrize('name', COUNTS)
def test_the_published_sizes_have_the_published_number_of_parameters(name):
    config, count = COUNTS[name]
    _, params = functional.abstract(lambda: VisionTransformer(config, rngs=functional.Keys(0)))
    assert functional.parameter_count(params) == count


@pytest.mark.parametrize('kind', vit.DEFAULTS)
def test_defaults_are_those_of_transformers(kind):
    theirs = transformers.AutoConfig.for_model(kind).to_dict()
    assert {key: theirs[key] for key in vit.DEFAULTS[kind]} == vit.DEFAULTS[kind]


@pytest.mark.parametrize(
    'change, sentence',
    [
        ({'hidden_act': 'relu'}, "hidden_act is 'relu' but must be one of ('gelu', 'quick_gelu')"),
        ({'model_type': 'clip'}, f"model_type is 'clip' but must be one of {tuple(vit.DEFAULTS)}"),
        ({'num_channels': 1}, 'num_channels is 1 but must be 3: no other value is implemented'),
        ({'image_size': [32, 32]}, 'image_size is [32, 32] but must be a positive integer'),
        ({'image_size': 7}, 'image_size is 7 but must be at least patch_size, which is 8'),
        ({'qkv_bias': None}, 'qkv_bias is None but must be one of (False, True)'),
        ({'num_attention_heads': 5}, 'num_attention_heads is 5 but must be a divisor of hidden_size, which is 32'),
    ],
)
def test_unsupported_value_is_named_in_one_sentence(change, sentence):
    with pytest.raises(ValueError) as error:
        VisionTransformer({'model_type': 'vit', **tiny_encoders.CONFIGS['dino'], **change}, rngs=functional.Keys(0))
    assert str(error.value) == f'vit config: {sentence}'


@pytest.mark.parametrize('shape', [(32, 32, 3), (1, 32, 32, 4), (1, 7, 32, 3)])
def test_images_that_do_not_fit_are_named_in_one_sentence(root, shape):
    apply, params = loaded('dino', root / 'dino')
    with pytest.raises(ValueError) as error:
        apply(params, np.zeros(shape, np.float32))
    allowed = '[B, H, W, 3] with H and W of at least 8'
    assert str(error.value) == f'vit: images have shape {shape} but must be {allowed}'
