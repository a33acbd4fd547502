"""What all families refuse that follow a rectified flow with a transformer; their configurations alone, no weights."""

import json
from pathlib import Path

import pytest

from dreambooth_jax.families import flux, flux2_klein, stable_diffusion_3, z_image
from dreambooth_jax.families.reading import read_pipeline
from dreambooth_jax.weights.errors import WeightsError
from dreambooth_jax.weights.pipeline import Pipeline
from tests.support import tiny_flux, tiny_klein, tiny_sd3, tiny_z_image

MODELS = {
    stable_diffusion_3.FAMILY: tiny_sd3,
    flux.FAMILY: tiny_flux,
    flux2_klein.FAMILY: tiny_klein,
    z_image.FAMILY: tiny_z_image,
}
FAMILIES = pytest.mark.parametrize('family', MODELS, ids=lambda family: family.title)


def configs(family, **changed):
    """The configurations of the tiny model, some with other entries."""
    folder = MODELS[family].folder()
    read = {name: json.loads((folder / name / 'config.json').read_text()) for name in family.networks}
    return {name: config | changed.get(name, {}) for name, config in read.items()}


def sentence(function, *args):
    with pytest.raises(WeightsError) as error:
        function(*args)
    return str(error.value)


@FAMILIES
def test_the_parts_of_the_model_fit_and_each_of_them_alone_does(family):
    whole = configs(family)
    family.check(whole, 'x')
    for name, config in whole.items():
        family.check({name: config}, 'x')


@FAMILIES
def test_a_network_of_another_class_is_refused(family):
    for component in ('transformer', 'vae'):
        other = next(one for one in MODELS if getattr(one, component) != getattr(family, component))
        found, wanted = getattr(other, component), getattr(family, component)
        assert sentence(family.check, {component: configs(other)[component]}, 'x') == (
            f'the {component} of x is of the class {found}, but {family.title} needs {wanted}; give the parts of one '
            f'model.'
        )
    for component, wanted in family.reads_with.items():
        found, model_type = ('T5', 't5') if wanted == 'CLIP' else ('CLIP', 'clip_text_model')
        config = {'model_type': model_type, 'feed_forward_proj': 'gated-gelu'}
        assert sentence(family.check, configs(family) | {component: config}, 'x') == (
            f'the {component} of x is a {found}, but {family.title} reads prompts with a {wanted}; give the parts of '
            f'one model.'
        )


@FAMILIES
def test_a_vae_of_something_else_than_images_is_refused(family):
    assert sentence(family.check, configs(family, vae={'out_channels': 4}), 'x') == (
        'the VAE of x has out_channels 4, but images have 3; give the plain model.'
    )


@FAMILIES
def test_a_schedule_of_another_kind_is_refused_and_it_enlarges_nothing(family):
    pipeline = Pipeline(family=family, scheduler={'_class_name': 'DDPMScheduler'}, folder=Path('x'))
    assert sentence(family.process, pipeline).startswith(
        "the scheduler of x is not supported: _class_name is 'DDPMScheduler'; allowed: FlowMatchEulerDiscreteScheduler"
    )
    assert sentence(family.noising_process, pipeline) == 'x enlarges no images and has no process for that.'
    assert sentence(family.highest_noise_level, pipeline) == 'x enlarges no images and has no noise levels.'
    assert not family.can_share_text(pipeline, pipeline)
    assert sentence(family.check_shared_text, pipeline, pipeline) == (
        'x does not share text states with x; give its own text encoder.'
    )


@FAMILIES
def test_the_channels_follow_from_whichever_network_was_read(family):
    bare = Pipeline(family=family, scheduler={}, folder=Path('x'))
    assert (
        bare.space.channels
        == {'Stable Diffusion 3': 16, 'FLUX.1': 16, 'FLUX.2 Klein': 128, 'Z-Image': 16}[family.title]
    )
    tiny = read_pipeline(MODELS[family].folder(), components=('transformer',))
    assert tiny.space.channels == read_pipeline(MODELS[family].folder(), components=('vae',)).space.channels != 128
