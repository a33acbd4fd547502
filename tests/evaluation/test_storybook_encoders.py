"""Storybook's own encoders: they are part of the package, small, open in transformers, and know subjects and captions.

The thirty subjects were never seen in training; other paintings here have seeds of their own.
"""

import dataclasses

import numpy as np
import pytest
import torch
import transformers

from dreambooth_jax.evaluation import preprocessing
from dreambooth_jax.evaluation.encoders import load_encoder
from dreambooth_jax.storybook import draw, storybook_folder, subjects, world
from dreambooth_jax.weights.encoder_folders import IMAGE, STORYBOOK_ENCODERS, TEXT, read_encoder

LARGEST = 12_000_000  # bytes, both together


@pytest.fixture(scope='module')
def encoders():
    return {kind: load_encoder(name, batch_size=32) for kind, name in STORYBOOK_ENCODERS.items()}


def photos_of(names, count):
    """(images, whose they are), 128 px."""
    pairs = [(scene, name) for name in names for scene in subjects.reference_scenes(name)[:count]]
    return np.stack([draw.paint(scene) for scene, _ in pairs]), np.array([name for _, name in pairs])


def painted_in(contexts, **fields):
    rng = np.random.default_rng(20261128)
    scene = dataclasses.replace(
        world.sample_scene(rng, class_noun='dog'), accessory=None, material=None, style=None, view=None
    )
    return np.stack([draw.paint(dataclasses.replace(scene, context=c, **fields)) for c in contexts])


def test_they_are_read_by_name_and_are_small(encoders):
    assert {name: encoder.name for name, encoder in encoders.items()} == STORYBOOK_ENCODERS
    assert encoders['dino'].tokenizer is None and encoders['clip'].tokenizer is not None
    files = [path for kind in STORYBOOK_ENCODERS for path in (storybook_folder() / kind).iterdir()]
    assert 1_000_000 < sum(path.stat().st_size for path in files) <= LARGEST


def nearest_is_the_same(features, names):
    cosines = features @ features.T
    np.fill_diagonal(cosines, -2)
    return np.mean(names[cosines.argmax(axis=1)] == names)


@pytest.mark.parametrize('factor', [1, 4])
def test_dino_tells_subjects_that_it_never_saw(encoders, factor):
    """Of 120 photos of thirty, at 128 px and at 32 px; by chance one in forty would be right, now it is 0.6."""
    images, names = photos_of(subjects.SUBJECTS, 4)
    side = 128 // factor
    small = images.reshape(len(images), side, factor, side, factor, 3).mean(axis=(2, 4)).round().astype(np.uint8)
    assert nearest_is_the_same(encoders['dino'].embed_images(small), names) >= 0.5


def test_clip_finds_the_context_that_a_prompt_names(encoders):
    """Of ten; by chance one would be right."""
    contexts = world.CONTEXTS[:10]
    images, texts = painted_in(contexts), encoders['clip'].embed_texts([f'a dog {context}' for context in contexts])
    cosines = encoders['clip'].embed_images(images) @ texts.T
    assert np.mean(cosines.argmax(axis=1) == np.arange(10)) >= 0.8
    assert np.mean(cosines.argmax(axis=0) == np.arange(10)) >= 0.8


def test_a_rare_word_hardly_changes_a_prompt_for_clip(encoders):
    prompts = ['a dog in the snow', 'a sks dog in the snow', 'a dog in the jungle']
    plain, rare, other = encoders['clip'].embed_texts(prompts)
    assert plain @ rare > 0.9 > plain @ other


def test_transformers_computes_the_same(encoders):
    images, _ = photos_of(('backpack', 'cat'), 2)
    folders = {kind: storybook_folder() / kind for kind in STORYBOOK_ENCODERS}
    dino = transformers.ViTModel.from_pretrained(folders['dino'], add_pooling_layer=False).float().eval()
    clip = transformers.CLIPModel.from_pretrained(folders['clip']).float().eval()
    tokenizer = transformers.AutoTokenizer.from_pretrained(folders['clip'])
    tokens = tokenizer(['a red dog on the beach', 'a vase'], padding=True, return_tensors='pt')
    with torch.no_grad():
        theirs = {
            'dino': dino(prepared(preprocessing.dino, images)).last_hidden_state[:, 0],
            'clip': clip.get_image_features(prepared(preprocessing.clip, images)).pooler_output,
            'text': clip.get_text_features(**tokens).pooler_output,
        }
    ours = {
        'dino': encoders['dino'].embed_images(images),
        'clip': encoders['clip'].embed_images(images),
        'text': encoders['clip'].embed_texts(['a red dog on the beach', 'a vase']),
    }
    for name, expected in theirs.items():
        expected = torch.nn.functional.normalize(expected, dim=-1).numpy()
        np.testing.assert_allclose(ours[name], expected, atol=1e-4, err_msg=name)


def prepared(prepare, images):
    pixels = np.stack([prepare(image, size=64) for image in images])
    return torch.from_numpy(pixels).permute(0, 3, 1, 2)


def test_their_sizes_are_those_of_the_card():
    card = (storybook_folder() / 'README.md').read_text('utf-8')
    for kind, parts in (('dino', (IMAGE,)), ('clip', (IMAGE, TEXT))):
        networks = read_encoder(STORYBOOK_ENCODERS[kind]).networks
        assert tuple(networks) == parts
        count = sum(value.size for network in networks.values() for value in network.params.values())
        line = next(line for line in card.splitlines() if line.startswith(f'| `{kind}/`'))
        assert f'{count / 1e6:.2f} M' in line
