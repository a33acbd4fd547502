"""What the setting samples.model refuses; a whole run with it is in programs/test_flow_runs.py."""

import dataclasses
import shutil

import huggingface_hub
import pytest

from dreambooth_jax.config import ConfigError, DreamBoothConfig, resolve
from dreambooth_jax.finetune import samples_model
from dreambooth_jax.generation.cascade import Cascade
from dreambooth_jax.weights import hub
from tests.support import tiny_flux, tiny_klein, tiny_z_image

LORA = {'model': 'somewhere', 'data': {'instance_dir': 'photos', 'instance_prompt': 'a sks dog'}, 'lora': {'rank': 2}}


def settings(model, **more):
    return resolve(DreamBoothConfig, {**LORA, 'prior': {'weight': 0.0}, 'samples': {'model': str(model)}, **more})


@pytest.fixture(scope='module')
def cascade():
    return Cascade.load(tiny_flux.folder(), size=tiny_flux.SIZE)


def test_without_the_setting_the_model_that_trains_generates():
    config = dataclasses.replace(settings('x'), samples=DreamBoothConfig().samples)
    assert samples_model.read(config, None) is None


def test_a_model_of_the_hub_is_read_at_its_revision(cascade, tmp_path, monkeypatch):
    repository = tmp_path / 'hub' / 'models--owner--turbo'
    for name, commit in (('v1', 'a' * 40), ('main', 'b' * 40)):
        shutil.copytree(tiny_flux.folder(), repository / 'snapshots' / commit)
        (repository / 'refs').mkdir(exist_ok=True)
        (repository / 'refs' / name).write_text(commit)
    monkeypatch.setattr(huggingface_hub.constants, 'HF_HUB_CACHE', str(tmp_path / 'hub'))
    monkeypatch.setattr(huggingface_hub.constants, 'HF_HUB_OFFLINE', True)
    for revision, commit in (('v1', 'a' * 40), (None, 'b' * 40)):
        config = settings('owner/turbo', samples={'model': 'owner/turbo', 'model_revision': revision})
        assert hub.commit_of(samples_model.read(config, cascade).base.folder) == commit


def test_a_revision_of_no_model_is_refused():
    with pytest.raises(ConfigError) as refused:
        settings('x', samples={'model_revision': 'v1'})
    assert str(refused.value) == (
        "config.samples.model_revision is 'v1' but config.samples.model names no model of the hub; set that too, or "
        'the revision to None'
    )


def test_a_whole_network_fits_no_other_model():
    with pytest.raises(ConfigError) as refused:
        settings('turbo', lora={'rank': None})
    assert str(refused.value) == (
        "config.samples.model is 'turbo' but config.lora.rank is None, and a network that trains as a whole fits no "
        'other model; set config.lora.rank, or config.samples.model to None'
    )


def test_a_model_of_another_family_is_refused(cascade):
    with pytest.raises(ConfigError) as refused:
        samples_model.read(settings(tiny_z_image.folder()), cascade)
    assert str(refused.value) == (
        f'config.samples.model is {str(tiny_z_image.folder())!r}, a Z-Image model, but {cascade.base.name}, which '
        f'trains, is a FLUX.1 model; give one that was made from it'
    )


def test_layers_without_adapters_may_be_missing_and_others_must_be_there(cascade, caplog):
    """A model that is told guidance, as FLUX.1 dev, and one that is not, as schnell."""

    def without(start):
        params = cascade.base.denoiser.params
        left = {name: value for name, value in params.items() if not name.startswith(start)}
        network = dataclasses.replace(cascade.base.denoiser, params=left)
        return dataclasses.replace(cascade, base=cascade.base.with_components(transformer=network))

    targets = cascade.base.family.lora_targets
    samples_model._check_fits('it is x', cascade, without('time_text_embed.guidance_embedder'), targets)
    sentence = f'it is x, which has another transformer than {cascade.base.name}; give one that was made from it'
    for start, among in (('transformer_blocks.0.attn', targets), ('time_text_embed.guidance_embedder', ('.*',))):
        with pytest.raises(ConfigError) as refused:
            samples_model._check_fits('it is x', cascade, without(start), among)
        assert str(refused.value) == sentence


def test_a_new_word_is_known_to_no_other_model(cascade):
    config = settings(tiny_klein.folder(), textual_inversion={'token': 'sks'})
    with pytest.raises(ConfigError) as refused:
        samples_model.read(config, cascade)
    assert str(refused.value) == (
        f'config.samples.model is {str(tiny_klein.folder())!r} but another model does not know the word that is '
        f'learned; set it to None'
    )
