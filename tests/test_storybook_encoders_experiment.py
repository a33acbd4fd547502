"""What experiments/storybook_encoders trains on and how: no subject, views as meant, a training that goes on."""

import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

EXPERIMENT = Path(__file__).parents[1] / 'experiments' / 'storybook_encoders'
MODULES = ('paintings', 'views', 'training', 'measuring')


@pytest.fixture(scope='module', autouse=True)
def experiment():
    """Its modules by their short names, as when run.py is started; gone again afterwards."""
    sys.path.insert(0, str(EXPERIMENT))
    yield {name: __import__(name) for name in MODULES}
    sys.path.remove(str(EXPERIMENT))
    for name in MODULES:
        del sys.modules[name]


def take(views, images, key, view):
    return jax.jit(views.take, static_argnums=2)(images, key, view)


def test_marked_scenes_are_marked_and_never_a_subject(experiment):
    rng = np.random.default_rng(0)
    scenes = [experiment['paintings'].marked_scene(rng) for _ in range(500)]
    pairs = experiment['paintings'].SUBJECT_PAIRS
    assert len(pairs) == 30 and not any((s.class_noun, s.colour, s.second_colour) in pairs for s in scenes)
    assert sum(s.split for s in scenes) > 350 and sum(s.mark is not None for s in scenes) > 380


def test_the_middle_of_a_pasted_view_is_its_own_and_the_corners_are_of_another(experiment):
    views = experiment['views']
    levels = np.arange(40, 232, 24, dtype=np.uint8)  # eight flat paintings
    images = np.broadcast_to(levels[:, None, None, None], (8, 96, 96, 3))
    view = views.View(32, (1.0, 1.0), low=0.0, pasted=1.0, other=3)
    found = np.asarray(take(views, jnp.asarray(images), jax.random.key(0), view)) * 255
    for row in (0, 4):  # these are not disturbed
        np.testing.assert_allclose(found[row, 16, 16], levels[row], atol=1)
        np.testing.assert_allclose(found[row, 0, 0], levels[(row + 3) % 8], atol=1)


@pytest.mark.slow
def test_a_crop_shows_a_part_that_fits_its_share(experiment):
    """A ramp from left to right: the levels of a view span the share of the ramp that was cut out."""
    ramp = np.linspace(20, 230, 96).astype(np.uint8)
    images = np.broadcast_to(ramp[None, None, :, None], (64, 96, 96, 3))
    for shares, low in (((0.5, 0.5), 0.0), ((0.5, 0.5), 1.0), ((1.0, 1.0), 0.0)):
        view = experiment['views'].View(32, shares, low=low)
        found = np.asarray(take(experiment['views'], jnp.asarray(images), jax.random.key(1), view))[::4] * 255
        spans = np.abs(found[:, 16, -1, 0] - found[:, 16, 0, 0]) / 210
        assert (spans > shares[0] * 0.92 * 0.94).all() and (spans < shares[0] * 1.02).all()
        mirrored = found[:, 16, 0, 0] > found[:, 16, -1, 0]
        assert 0 < mirrored.sum() < len(mirrored)


def test_even_features_are_those_with_equal_directions(experiment):
    unevenness = experiment['training']._unevenness
    even = np.eye(6, dtype=np.float32)
    assert float(unevenness(even)) < 1e-6
    assert float(unevenness(even + 1)) > 1  # they share their mean
    assert experiment['training'].evenness(400) == 0 < experiment['training'].evenness(450)


def test_a_training_that_was_stopped_goes_on_to_the_same_result(experiment, tmp_path, monkeypatch):
    training = experiment['training']
    monkeypatch.setattr(training, 'KEEP_EVERY', 2)

    def start():
        def loss(params, rest, key, batch):
            noise = jax.random.normal(key, batch.shape)
            return jnp.mean((params['w'] - batch - 0.1 * noise) ** 2), ({}, batch.sum())

        return (
            loss,
            lambda params, rest, extra: {'sum': rest['sum'] + extra},
            {'w': jnp.ones(3)},
            {'sum': jnp.zeros(())},
        )

    def run(name, stop):
        def kept(found):
            if found.step == stop:
                raise KeyboardInterrupt

        return training.train(start(), lambda i: (jnp.full(3, float(i)),), 6, tmp_path / name, 0, kept)

    whole = run('whole.pickle', None)
    with pytest.raises(KeyboardInterrupt):
        run('parts.pickle', 4)
    assert training.read(tmp_path / 'parts.pickle').step == 4
    parts = run('parts.pickle', None)
    np.testing.assert_allclose(parts.params['w'], whole.params['w'], rtol=1e-6)
    assert float(parts.rest['sum']) == float(whole.rest['sum']) == 3 * 15


def test_retrieval_counts_images_of_the_same_subject(experiment):
    """Two of a, two of b, one of nobody; one image of b lies beside those of a."""
    turned = lambda degrees: [np.cos(np.radians(degrees)), np.sin(np.radians(degrees))]  # noqa: E731
    embedded = np.array([turned(d) for d in (0, 10, 21, 60, 95)])
    names, contexts = ['a', 'a', 'b', 'b', ''], ['x', 'x', 'y', 'x', 'x']
    found = experiment['measuring'].retrieval(embedded, names, contexts)
    assert found['top-1'] == 0.5 and found['chance'] == 0.25
    # Elsewhere: both of a find only the one of b; each of b has the other context and finds a, or b.
    assert found['top-1 elsewhere'] == 0.25
    np.testing.assert_allclose(found['mAP'], np.mean([1, 1, 1 / 3, 1 / 2]), atol=1e-4)


def test_equal_values_share_their_rank(experiment):
    np.testing.assert_array_equal(experiment['measuring'].ranks(np.array([3.0, 1.0, 3.0, 2.0])), [3.5, 1, 3.5, 2])


def test_every_prompt_of_the_evaluation_is_painted(experiment):
    """Its own scene each, which shows what the prompt says."""
    scenes = experiment['measuring'].prompt_scenes('dog')
    assert [s.context for s in scenes[:2]] == ['in the jungle', 'in the snow']
    assert len([s for s in scenes if s.accessory]) == 10 and len([s for s in scenes if s.material]) == 3
