"""The seam of the model families: each has all of it, and a UNet is called as diffusers' pipelines call it."""

import inspect
import types

import jax.numpy as jnp
import numpy as np
import pytest

from dreambooth_jax.families.family import FAMILIES, Family, of_class
from dreambooth_jax.families.unet import UNetFamily
from dreambooth_jax.models import lora
from dreambooth_jax.weights.pipeline import abstract_network
from tests.support import smallest_pipelines, tiny_pipelines
from tests.support.tiny_latent_pipelines import SCHEDULER

SEAM = [name for name in vars(Family) if not name.startswith('_')]


@pytest.mark.parametrize('family', FAMILIES, ids=lambda family: family.class_name)
def test_every_family_has_the_whole_seam(family):
    assert SEAM and of_class(family.class_name) is family
    for name in (*SEAM, *Family.__annotations__):
        assert hasattr(family, name), name
    for name in SEAM:
        wanted, found = (inspect.signature(getattr(one, name)).parameters for one in (Family, family))
        assert [*wanted][1:] == [*found], name
    assert family.denoiser in family.networks and set(family.tokenizers) <= set(family.networks)
    assert family.is_super_resolution == bool(family.noising)
    assert family.originals or family.architecture  # its files can be told apart


def test_a_class_belongs_to_one_family():
    names = [name for family in FAMILIES for name in {family.class_name, *family.also_saved_as}]
    assert len(names) == len(set(names))
    with pytest.raises(KeyError):
        of_class('FluxKontextPipeline')


@pytest.mark.parametrize(
    'family',
    [family for family in FAMILIES if isinstance(family, UNetFamily)],
    ids=lambda family: family.class_name,
)
def test_a_denoiser_sees_the_low_image_beside_its_own_and_is_told_the_level(family):
    def apply(params, x, t, **told):
        return params, x, t, told

    x, low, t = jnp.zeros((2, 4, 4, 3)), jnp.ones((2, 4, 4, 3)), jnp.array([1.0, 2.0])
    text = {'encoder_hidden_states': jnp.zeros((2, 5, 8))}
    assert family.predict(apply, 'params', x, t, text)[3].keys() == text.keys()
    conditioning = {**text, 'low_image': low, 'noise_level': jnp.array([3, 4])}
    params, seen, time, told = family.predict(apply, 'params', x, t, conditioning)
    assert params == 'params' and time is t and told.keys() == {*text, 'class_labels'}
    np.testing.assert_array_equal(seen, np.concatenate([x, low], axis=-1))
    assert conditioning.keys() == {*text, 'low_image', 'noise_level'}  # it is left as it was


@pytest.mark.parametrize('kind', ['pixels', 'latents'])
def test_the_usual_lora_targets_are_layers_of_the_denoiser(kind):
    base = {'pixels': tiny_pipelines.base, 'latents': lambda: smallest('StableDiffusionPipeline')}[kind]()
    network = abstract_network(base.family.denoiser, base.denoiser.config)
    assert lora.matching(network, base.family.lora_targets)


def smallest(class_name):
    network = tiny_pipelines.random_network('unet', smallest_pipelines.LATENT_UNET, 0)
    return types.SimpleNamespace(family=of_class(class_name), denoiser=network, scheduler=SCHEDULER)
