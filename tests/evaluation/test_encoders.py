"""Embeddings of images and prompts, and LPIPS, from files to numbers, equal those of transformers and the paper."""

import functools

import jax
import numpy as np
import pytest
import torch

from dreambooth_jax.evaluation import preprocessing
from dreambooth_jax.evaluation.encoders import FeatureDistance, load_encoder, load_lpips
from dreambooth_jax.training.placement import make_placement
from dreambooth_jax.weights import files
from dreambooth_jax.weights.errors import WeightsError
from tests.support import lpips_reference, tiny_clip, tiny_encoders

PREPARE = {
    'dino': functools.partial(preprocessing.dino, size=32),
    'dino_v2': preprocessing.dino_v2,
    'dino_v2_giant': preprocessing.dino_v2,
    'dino_v2_registers': preprocessing.dino_v2,
    'clip_vision': functools.partial(preprocessing.clip, size=32),
    'clip': functools.partial(preprocessing.clip, size=32),
}
PROMPTS = ['a sks dog', 'a dog in a cafe', '', 'a dog ' * 20, 'skis', 'dot']


@functools.cache
def images():
    """Six of different sizes, smooth enough to stay different when they are resized."""
    rng = np.random.default_rng(0)
    small = [rng.integers(0, 256, (5, 5, 3)).astype(np.uint8) for _ in range(6)]
    sizes = [(40, 60), (60, 40), (33, 33), (10, 12), (300, 90), (64, 64)]
    large = [np.kron(image, np.ones((60, 60, 1), np.uint8)) for image in small]
    return [image[:: 300 // h, :: 300 // w][:h, :w] for image, (h, w) in zip(large, sizes, strict=True)]


@pytest.fixture(scope='module')
def root(tmp_path_factory):
    return tmp_path_factory.mktemp('encoders')


@pytest.fixture(scope='module')
def loaded(root):
    """name -> the encoder, compiled once for all tests; four rows, one for each device."""
    return functools.cache(lambda name: load_encoder(tiny_encoders.write(name, root / name), batch_size=4))


def unit(rows):
    return torch.nn.functional.normalize(torch.from_numpy(np.array(rows)), dim=-1).numpy()


def test_a_distance_of_features_is_none_between_equal_images_and_one_minus_the_cosine_between_others(loaded):
    encoder = loaded('dino')
    features = encoder.embed_images(images())
    found = FeatureDistance(encoder).distances(images(), [*images()[1:], images()[-1]])
    wanted = [1 - first @ second for first, second in zip(features, [*features[1:], features[-1]], strict=True)]
    np.testing.assert_allclose(found, wanted, atol=1e-6)
    assert abs(found[-1]) < 1e-6 < found[0]


@pytest.mark.parametrize('name', PREPARE)
def test_images_are_embedded_as_by_transformers(loaded, name):
    """What the protocol pools: the class token after the last norm; for CLIP its projection."""
    encoder = loaded(name)
    pixels = np.stack([PREPARE[name](image) for image in images()])
    expected = unit(tiny_encoders.pooled(name, pixels)[1])
    found = encoder.embed_images(images())
    assert found.dtype == np.float32 and found.shape == (6, encoder.width) == expected.shape
    np.testing.assert_allclose(found, expected, rtol=0, atol=1e-4)
    np.testing.assert_allclose(np.linalg.norm(found, axis=-1), 1, atol=1e-6)
    cosines = found @ found.T
    assert cosines[~np.eye(6, dtype=bool)].max() < 0.999  # they are told apart


@pytest.mark.parametrize('name', ['clip', 'clip_text'])
def test_prompts_are_embedded_as_by_transformers(loaded, name):
    theirs, tokenizer = tiny_encoders.reference(name), tiny_clip.tokenizer()
    tokens = tokenizer(PROMPTS, padding=True, truncation=True, max_length=tiny_clip.LENGTH, return_tensors='pt')
    with torch.no_grad():
        found = theirs.get_text_features(**tokens).pooler_output if name == 'clip' else theirs(**tokens).text_embeds
    expected = unit(found.numpy())
    found = loaded(name).embed_texts(PROMPTS)
    assert found.dtype == np.float32 and found.shape == (6, 24)
    np.testing.assert_allclose(found, expected, rtol=0, atol=1e-4)


def test_similarities_of_images_and_prompts_are_clips(loaded):
    """The cosines times exp(logit_scale) are what the whole model of transformers returns."""
    theirs = tiny_encoders.reference('clip')
    tokens = tiny_clip.tokenizer()(
        PROMPTS, padding=True, truncation=True, max_length=tiny_clip.LENGTH, return_tensors='pt'
    )
    pixels = np.stack([PREPARE['clip'](image) for image in images()])
    with torch.no_grad():
        output = theirs(pixel_values=torch.from_numpy(pixels).permute(0, 3, 1, 2), **tokens)
        expected = (output.logits_per_image / theirs.logit_scale.exp()).numpy()
    encoder = loaded('clip')
    cosines = encoder.embed_images(images()) @ encoder.embed_texts(PROMPTS).T
    np.testing.assert_allclose(cosines, expected, rtol=0, atol=1e-4)


def test_an_embedding_does_not_depend_on_its_neighbours_or_on_the_devices(loaded, root):
    together = loaded('dino').embed_images(images())
    np.testing.assert_allclose(loaded('dino').embed_images(images()[4:5]), together[4:5], atol=1e-6)
    stacked = np.stack([images()[2]] * 5)
    np.testing.assert_allclose(loaded('dino').embed_images(stacked), together[[2] * 5], atol=1e-6)
    for mode, devices in (('pmap', jax.devices()[:1]), ('fsdp', jax.devices()[2:])):
        placement = make_placement(mode, fsdp_min_bytes=1000, devices=devices)
        other = load_encoder(root / 'dino', placement=placement, batch_size=5)
        np.testing.assert_allclose(other.embed_images(images()), together, atol=1e-6)


def test_no_images_and_no_prompts_give_no_rows(loaded):
    assert loaded('clip').embed_images([]).shape == loaded('clip').embed_texts([]).shape == (0, 24)
    assert loaded('dino').embed_images(np.zeros((0, 8, 8, 3), np.uint8)).shape == (0, 32)


def test_what_an_encoder_does_not_encode_is_refused(loaded):
    with pytest.raises(ValueError, match='dino encodes no texts; load an encoder that does, such as a whole CLIP'):
        loaded('dino').embed_texts(['a dog'])
    with pytest.raises(ValueError, match='clip_text encodes no images; load'):
        loaded('clip_text').embed_images(images())
    with pytest.raises(ValueError, match=r'an image is float32\[8, 8, 3\] but must be uint8\[H, W, 3\]'):
        loaded('dino').embed_images([images()[0], np.zeros((8, 8, 3), np.float32)])


def test_products_are_not_rounded_on_accelerators(loaded):
    """By default TPUs multiply in bfloat16 and GPUs in TF32."""
    network = loaded('dino')._networks['image']
    program = network.function.lower(network.params, np.zeros((4, 32, 32, 3), np.float32)).as_text()
    products = [line for line in program.splitlines() if 'dot_general' in line or 'stablehlo.convolution' in line]
    assert len(products) >= 2 * 6 + 1
    assert all('HIGHEST' in line and 'DEFAULT' not in line for line in products)


def test_the_network_is_compiled_once(loaded):
    encoder = loaded('dino')
    encoder.embed_images(images())
    encoder.embed_images(images()[:1])
    assert encoder._networks['image'].function._cache_size() == 1


def test_fingerprints_tell_encoders_apart_by_weights_and_configuration(loaded, tmp_path):
    first = loaded('dino').fingerprint
    assert load_encoder(tiny_encoders.write('dino', tmp_path / 'again')).fingerprint == first
    others = {
        load_encoder(tiny_encoders.write('dino', tmp_path / 'other', seed=2)).fingerprint,
        loaded('clip_vision').fingerprint,
        loaded('clip').fingerprint,
    }
    config = tmp_path / 'again' / 'config.json'
    config.write_text(config.read_text().replace('"gelu"', '"quick_gelu"'))
    others.add(load_encoder(tmp_path / 'again').fingerprint)
    assert len(others) == 4 and first not in others


def test_a_tokenizer_of_another_model_is_refused(tmp_path):
    folder = tiny_encoders.write('clip_text', tmp_path / 'clip_text')
    tokenizer = tiny_clip.tokenizer()
    tokenizer.add_tokens(['<dog>'])
    tokenizer.save_pretrained(folder)
    tiny_clip.tokenizer.cache_clear()  # it was changed
    with pytest.raises(WeightsError, match='makes CLIP prompts of 20 tokens, out of 51, but its .* of 20, out of 50;'):
        load_encoder(folder)


@pytest.fixture(scope='module')
def lpips(root):
    path = root / 'lpips.safetensors'
    tensors = {name: np.asarray(value, np.float32) for name, value in lpips_reference.torchvision_names().items()}
    files.write_tensors(path, tensors)
    return load_lpips(path, size=64, batch_size=4)


def test_distances_of_images_match_the_definition(lpips):
    first, second = images(), images()[::-1]
    pixels = (np.stack([preprocessing.lpips(image, 64) for image in images]) for images in (first, second))
    expected = lpips_reference.distance(*(torch.from_numpy(x).permute(0, 3, 1, 2) for x in pixels))
    assert expected.min() > 0.01
    np.testing.assert_allclose(lpips.distances(first, second), expected, rtol=0, atol=1e-4)
    np.testing.assert_array_equal(lpips.distances(first, first), 0)
    assert lpips.distances([], []).shape == (0,)


def test_lpips_compares_one_to_one(lpips):
    with pytest.raises(ValueError, match='^6 images cannot be compared with 2; give one for each$'):
        lpips.distances(images(), images()[:2])
    assert lpips.size == 64 and len(lpips.fingerprint) == 64
