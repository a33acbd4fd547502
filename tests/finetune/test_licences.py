"""The licences of base models: the published ones by name, others by what their files say."""

import numpy as np
import pytest

from dreambooth_jax.config import DreamBoothConfig, presets, to_config_dict
from dreambooth_jax.finetune.licences import APACHE, Licence, licence_of
from dreambooth_jax.weights import files, hub

KNOWN = {
    'storybook': 'apache-2.0',
    'storybook-flow': 'apache-2.0',
    'stable-diffusion-v1-5/stable-diffusion-v1-5': 'creativeml-openrail-m',
    'CompVis/stable-diffusion-v1-4': 'creativeml-openrail-m',
    'stabilityai/stable-diffusion-2-1': 'openrail++',
    'stabilityai/stable-diffusion-2-1-base': 'openrail++',
    'stabilityai/stable-diffusion-xl-base-1.0': 'openrail++',
    'stabilityai/stable-diffusion-x4-upscaler': 'openrail++',
    'stabilityai/stable-diffusion-3.5-medium': 'other',
    'DeepFloyd/IF-I-M-v1.0': 'deepfloyd-if-license',
    'DeepFloyd/IF-II-L-v1.0': 'deepfloyd-if-license',
    'black-forest-labs/FLUX.1-dev': 'other',
    'black-forest-labs/FLUX.1-schnell': 'apache-2.0',
    'black-forest-labs/FLUX.2-klein-base-4B': 'apache-2.0',
    'black-forest-labs/FLUX.2-klein-base-9B': 'other',
    'Tongyi-MAI/Z-Image': 'apache-2.0',
}


@pytest.mark.parametrize('model', KNOWN)
def test_published_models_are_known_by_name(model):
    assert licence_of(model).id == KNOWN[model]


def test_every_recipe_of_ours_has_a_known_licence():
    models = []
    for change in presets.PRESETS.values():
        config = to_config_dict(DreamBoothConfig())
        change(config)
        models += [config.model, config.super_resolution_model]
    named = [model for model in models if model and hub.may_be_on_hub(model)]
    assert len(named) >= 8 and [model for model in named if licence_of(model) is None] == []


@pytest.mark.parametrize(
    'model', ['someone/finetuned', 'someone/stable-diffusion-v1-5', 'stabilityai/sdxl-turbo', 'stabilityai/stable-d']
)
def test_others_are_unknown_and_not_guessed_from_a_likeness(model):
    assert licence_of(model) is None


def test_folders_and_files_say_their_own(tmp_path):
    folder, run, file = tmp_path / 'folder', tmp_path / 'run', tmp_path / 'x.safetensors'
    for path in (folder, run / 'model'):
        path.mkdir(parents=True)
    assert licence_of(str(folder)) is None
    (folder / 'README.md').write_text('no head\nlicense: mit\n')
    assert licence_of(str(folder)) is None
    (folder / 'README.md').write_text('---\nlicense: unknown\n---\nlicense: mit\n')
    assert licence_of(str(folder)) is None
    (folder / 'README.md').write_text('---\ntags: [x]\nlicense: "mit"\n---\n')
    assert licence_of(str(folder)) == Licence('mit', 'mit')
    (run / 'model' / 'README.md').write_text('---\nlicense: other\nlicense_name: my-licence\n---\n')
    assert licence_of(str(run)) == Licence('other', 'my-licence')
    for metadata, licence in (({}, None), ({'modelspec.license': 'MIT'}, Licence('other', 'MIT'))):
        files.write_tensors(file, {'a': np.zeros(1, np.float32)}, metadata=metadata)
        assert licence_of(str(file)) == licence
    file.write_bytes(b'damaged')
    assert licence_of(str(file)) is None and licence_of('storybook') == APACHE
