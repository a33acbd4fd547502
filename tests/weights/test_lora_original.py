"""LoRA files with the names of a transformer's original code: joint layers are taken apart and put together."""

import numpy as np
import pytest

from dreambooth_jax.weights import files, lora_files
from dreambooth_jax.weights.errors import WeightsError
from dreambooth_jax.weights.lora_files import Adapter
from dreambooth_jax.weights.lora_original import OriginalLayers, Part, Rule

RULES = (
    Rule(r'blocks\.(\d+)\.attn\.to_([qkv])', 'double.{0}.qkv', ('q', 'k', 'v')),
    Rule(r'blocks\.(\d+)\.ff', 'double.{0}.mlp.0'),
    Rule('embedder', 'img_in'),
)
LAYERS = OriginalLayers(component='transformer', kohya=RULES, comfyui=RULES[:2])
WIDTH, RANK, ALPHA = 4, 2, 3.0
PATHS = ('blocks.1.attn.to_q', 'blocks.1.attn.to_k', 'blocks.1.attn.to_v', 'blocks.1.ff', 'embedder', 'other')
NETWORKS = {'transformer': {f'{path}.kernel': np.zeros((WIDTH, WIDTH), np.float32) for path in PATHS}}
FORMATS = (lora_files.KOHYA, lora_files.COMFYUI)


def adapter(*paths, seed=0):
    rng = np.random.default_rng(seed)
    params = {}
    for path in paths:
        params |= {
            f'{path}.lora_a': rng.normal(size=(WIDTH, RANK)).astype(np.float32),
            f'{path}.lora_b': rng.normal(size=(RANK, WIDTH)).astype(np.float32),
        }
    return Adapter({'transformer': params}, RANK, ALPHA)


def write(path, given, format):
    return lora_files.write_lora(path / 'x.safetensors', given, format, originals=LAYERS)


def read(path):
    return lora_files.read_lora(path, NETWORKS, originals=LAYERS)


def products(given):
    """{path: alpha / rank * A @ B} of an adapter."""
    params = given.params['transformer']
    paths = {name.rpartition('.')[0] for name in params}
    return {p: given.alpha / given.rank * params[f'{p}.lora_a'] @ params[f'{p}.lora_b'] for p in paths}


def assert_same(given, found):
    given, found = products(given), products(found)
    assert given.keys() == found.keys()
    for path, value in given.items():
        np.testing.assert_allclose(found[path], value, rtol=1e-5, atol=1e-6, err_msg=path)


def test_a_rule_says_which_part_a_layer_is():
    assert RULES[0].part('blocks.12.attn.to_v') == Part('double.12.qkv', 2, (1, 1, 1))
    assert RULES[0].part('blocks.12.attn.to_out') is None
    assert RULES[2].part('embedder') == Part('img_in')


@pytest.mark.parametrize('format', FORMATS)
@pytest.mark.parametrize('paths', [PATHS[:4], ('blocks.1.attn.to_q', 'blocks.1.attn.to_v'), PATHS[3:4]])
def test_what_is_written_is_read_back_with_its_rank(tmp_path, format, paths):
    given = adapter(*paths)
    found = read(write(tmp_path, given, format))
    assert found.rank == RANK
    assert_same(given, found)


@pytest.mark.parametrize('format', FORMATS)
def test_the_joint_layer_computes_what_its_three_parts_compute(tmp_path, format):
    given = adapter(*PATHS[:3])
    tensors = files.read_tensors(write(tmp_path, given, format))
    if format == lora_files.KOHYA:
        names = ('lora_unet_double_1_qkv.lora_down.weight', 'lora_unet_double_1_qkv.lora_up.weight')
        scale = tensors.pop('lora_unet_double_1_qkv.alpha') / len(tensors[names[0]])
    else:
        names, scale = ('diffusion_model.double.1.qkv.lora_A.weight', 'diffusion_model.double.1.qkv.lora_B.weight'), 1
    assert tensors.keys() == set(names)
    a, b = (tensors[name] for name in names)
    np.testing.assert_allclose(
        scale * b @ a, np.concatenate([products(given)[path].T for path in PATHS[:3]]), rtol=1e-5, atol=1e-6
    )


@pytest.mark.parametrize('alpha', [None, 1.0])
def test_an_adapter_that_was_trained_on_the_joint_layer_is_read(tmp_path, alpha):
    rng = np.random.default_rng(1)
    a, b = (rng.normal(size=shape).astype(np.float32) for shape in ((3, WIDTH), (3 * WIDTH, 3)))
    name = 'diffusion_model.double.1.qkv'
    tensors = {f'{name}.lora_down.weight': a, f'{name}.lora_up.weight': b}
    tensors |= {} if alpha is None else {f'{name}.alpha': np.float32(alpha)}
    files.write_tensors(tmp_path / 'x.safetensors', tensors)
    found = products(read(tmp_path / 'x.safetensors'))
    expected = (1 if alpha is None else alpha / 3) * (b @ a)
    assert found.keys() == set(PATHS[:3])
    for path, rows in zip(PATHS[:3], np.split(expected, 3), strict=True):
        np.testing.assert_allclose(found[path].T, rows, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize('format', FORMATS)
@pytest.mark.parametrize('paths', [('a.q', 'a.mlp'), ('a.mlp',)])
def test_the_parts_of_a_joint_layer_may_have_other_numbers_of_outputs(tmp_path, format, paths):
    rules = (Rule(r'(\w)\.(q|mlp)', '{0}.linear', ('q', 'mlp'), (1, 4)),)
    layers = OriginalLayers('transformer', rules, rules, comfyui_ends=('.lora_down.weight', '.lora_up.weight'))
    outputs, rng = {'a.q': WIDTH, 'a.mlp': 4 * WIDTH}, np.random.default_rng(2)
    params = {}
    for path in paths:
        params[f'{path}.lora_a'] = rng.normal(size=(WIDTH, RANK)).astype(np.float32)
        params[f'{path}.lora_b'] = rng.normal(size=(RANK, outputs[path])).astype(np.float32)
    given = Adapter({'transformer': params}, RANK, ALPHA)
    path = lora_files.write_lora(tmp_path / 'x.safetensors', given, format, originals=layers)
    (joint,) = (value for name, value in files.read_tensors(path).items() if name.endswith('.lora_up.weight'))
    assert joint.shape == (5 * WIDTH, 2 * RANK)
    networks = {'transformer': {f'{p}.kernel': np.zeros((WIDTH, out), np.float32) for p, out in outputs.items()}}
    assert_same(given, lora_files.read_lora(path, networks, originals=layers))


def test_a_layer_without_a_name_is_an_error_that_lists_it(tmp_path):
    with pytest.raises(WeightsError) as error:
        write(tmp_path, adapter('blocks.1.ff', 'embedder', 'other'), lora_files.COMFYUI)
    sentence = (
        f'{tmp_path / "x.safetensors"} cannot hold these LoRA layers, since not all readers of lora_comfyui find them; '
        f'export lora_peft, or train other targets:'
    )
    assert str(error.value).splitlines()[0] == sentence
    for path in ('embedder', 'other'):
        assert f'transformer.{path} has no name in the lora_comfyui format.' in str(error.value)
    with pytest.raises(WeightsError, match=r'transformer\.other has no name in the lora_kohya format'):
        write(tmp_path, adapter('embedder', 'other'), lora_files.KOHYA)


def test_another_network_has_no_names(tmp_path):
    params = adapter('blocks.1.ff').params['transformer']
    with pytest.raises(WeightsError, match=r'text_encoder\.blocks\.1\.ff has no name in the lora_kohya format'):
        write(tmp_path, Adapter({'text_encoder': params}, RANK, ALPHA), lora_files.KOHYA)


def test_a_unet_has_no_file_of_this_format(tmp_path):
    with pytest.raises(WeightsError) as error:
        lora_files.write_lora(tmp_path / 'x.safetensors', adapter('other'), lora_files.COMFYUI)
    assert str(error.value) == 'lora_comfyui is for transformers; ComfyUI reads the adapters of a UNet as lora_kohya.'


@pytest.mark.parametrize(
    'changed', [{'lora_up.weight': np.ones((7, 3), np.float32)}, {'lora_down.weight': np.ones((2, WIDTH), np.float32)}]
)
def test_a_joint_layer_of_wrong_shapes_is_refused(tmp_path, changed):
    name = 'lora_unet_double_1_qkv'
    tensors = {'lora_down.weight': np.ones((3, WIDTH), np.float32), 'lora_up.weight': np.ones((12, 3), np.float32)}
    files.write_tensors(
        tmp_path / 'x.safetensors', {f'{name}.{end}': value for end, value in {**tensors, **changed}.items()}
    )
    with pytest.raises(WeightsError, match='wrong shape: lora_b'):
        read(tmp_path / 'x.safetensors')
