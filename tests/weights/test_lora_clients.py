"""Files of every layer of the published models, and the names that other programs ask for (lora_clients.py)."""

import functools
import json
import re

import numpy as np
import pytest

from dreambooth_jax.weights import files, lora_names, modelspec
from dreambooth_jax.weights.lora_files import Adapter, are_names_of_lora, write_lora
from tests.support import lora_clients
from tests.support.layouts import LAYOUTS

PEFT_ENDS = ('.lora_A.weight', '.lora_B.weight')


@functools.cache
def adapter(family, dora=False):
    """Adapters of every layer, of width one: here names count."""
    layers = {'unet': lora_clients.unet(family), **lora_clients.clips(family)}
    params = {}
    for component, paths in layers.items():
        of_component = params[component] = {}
        for path in paths:
            conv = re.search(r'conv', path) is not None
            of_component[f'{path}.lora_a'] = np.ones((1, 1, 1, 1) if conv else (1, 1), np.float32)
            of_component[f'{path}.lora_b'] = np.ones((1, 1), np.float32)
            if dora:
                of_component[f'{path}.lora_magnitude'] = np.ones(1, np.float32)
    return Adapter(params, 1, 1.0)


@functools.cache
def keys(folder, family, format, dora=False):
    path = write_lora(folder / f'{family}.{format}.safetensors', adapter(family, dora), format, layout=LAYOUTS[family])
    return path, tuple(files.read_header(path).shapes)


@pytest.fixture(scope='module')
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp('clients')


def names(found, ends):
    """The layers that a file's keys are of; every key has one of the ends."""
    assert all(key.endswith(ends) for key in found)
    return {re.sub('|'.join(f'{re.escape(end)}$' for end in ends), '', key) for key in found}


@pytest.mark.parametrize('family', lora_clients.FAMILIES)
def test_lora_kohya_is_taken_whole_by_those_that_it_is_said_to_be_for(family, folder):
    _, found = keys(folder, family, 'lora_kohya')
    assert are_names_of_lora(found)
    layers = names(found, lora_clients.KOHYA_ENDS)
    assert len(found) == 3 * len(layers) and len(layers) == sum(lora_clients.LAYERS[family])
    assert layers <= lora_clients.comfyui(family)
    assert lora_clients.forge_takes(family, layers)
    known = lora_clients.a1111_modules(family)
    assert {lora_clients.a1111(family, name) for name in layers} == known
    assert layers <= lora_clients.onetrainer(family)


@pytest.mark.parametrize('family', lora_clients.FAMILIES)
def test_the_layers_that_kohya_drops_are_those_that_we_warn_of(family, folder):
    layers = names(keys(folder, family, 'lora_kohya')[1], lora_clients.KOHYA_ENDS)
    told = [path for path in lora_clients.unet(family) if lora_names.UNKNOWN_TO_KOHYA.fullmatch(path)]
    assert len(told) == (6 if family == 'sdxl' else 4)
    dropped = {lora_names.kohya_name('unet', path, original=family == 'sdxl') for path in told}
    assert layers - lora_clients.kohya(family) == dropped
    assert lora_clients.kohya(family) <= layers


@pytest.mark.parametrize('dora', [False, True])
@pytest.mark.parametrize('family', lora_clients.FAMILIES)
def test_lora_peft_is_for_diffusers_peft_and_onetrainer(family, dora, folder):
    """What diffusers makes of it: test_lora_files.py. ComfyUI and Forge, which we do not name, lose the attention."""
    path, found = keys(folder, family, 'lora_peft', dora)
    ends = PEFT_ENDS + (('.lora_magnitude_vector.weight',) if dora else ())
    layers = names(found, ends)
    assert set(ends) <= set(lora_clients.ONETRAINER_ENDS) and layers <= lora_clients.onetrainer(family)
    lost = {name for name in layers if name.startswith('unet.')} - lora_clients.comfyui(family)
    projections = {f'unet.{path}' for path in lora_clients.unet(family) if re.search(r'\.to_(q|k|v|out\.0)$', path)}
    assert lost == projections and not lora_clients.forge_takes(family, layers)
    # PEFT itself adapts what the file's settings name, and calls its parameters by the same paths.
    settings = json.loads(files.read_metadata(path)['lora_adapter_metadata'])
    for component in adapter(family).params:
        paths = {name.removeprefix(f'{component}.') for name in layers if name.startswith(f'{component}.')}
        targets = settings[f'{component}.target_modules']
        assert {path.removeprefix('text_model.') for path in paths} == set(targets)
        assert settings[f'{component}.use_dora'] == dora and settings[f'{component}.r'] == 1


@pytest.mark.parametrize(
    ('family', 'prediction', 'version', 'forge'),
    [
        ('sd1', 'epsilon', 'sd_v1', 'sd1'),
        ('sd2', 'epsilon', 'sd_v2', 'unknown'),
        ('sd2', 'v_prediction', 'sd_v2_v', 'unknown'),
        ('sdxl', 'epsilon', 'sdxl_base_v1-0', 'sdxl'),
        ('sdxl', 'v_prediction', 'sdxl_base_v1-0', 'sdxl'),
    ],
)
def test_a_lora_is_shown_beside_the_models_that_it_fits(family, prediction, version, forge, folder):
    metadata = modelspec.kohya_version(LAYOUTS[family], prediction)
    assert metadata['ss_base_model_version'] == version
    architecture = modelspec.adapter_of(LAYOUTS[family].architecture(prediction), modelspec.LORA)
    metadata |= modelspec.build(architecture=architecture, title='dog')
    path = write_lora(
        folder / 'x.safetensors', adapter(family), 'lora_kohya', layout=LAYOUTS[family], metadata=metadata
    )
    said = files.read_metadata(path)
    assert lora_clients.a1111_version(said) == family
    assert lora_clients.forge_version(said) == forge
    # Without these keys every file with a header is one of Stable Diffusion 1.
    assert lora_clients.a1111_version({'modelspec.architecture': architecture}) == 'sd1'


@pytest.mark.parametrize('family', ['upscaler'])
def test_models_that_kohya_does_not_train_have_no_version_of_its(family):
    assert modelspec.kohya_version(LAYOUTS[family]) == {}
