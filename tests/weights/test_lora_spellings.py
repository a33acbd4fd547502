"""LoRA files as other programs spell them: read as diffusers fuses them, or as their formula says; or named."""

import copy
import functools
import json
import logging
import re

import diffusers
import numpy as np
import pytest
import torch

from dreambooth_jax.models import lora
from dreambooth_jax.weights import files, lora_files, lora_names, original_names
from dreambooth_jax.weights.errors import WeightsError
from dreambooth_jax.weights.lora_files import read_lora
from tests.support import tiny_lora_hosts
from tests.support.reports import nothing_reported
from tests.support.torch_reference import randomise, to_ours

NOT_ADAPTED = 'No LoRA keys associated to'  # what diffusers says of a network that the file leaves alone
ATTENTION = 'down_blocks.0.attentions.0.transformer_blocks.0.attn1'  # of Stable Diffusion 1
UNET_LAYERS = r'.*\.(to_q|to_k|to_v|to_out\.0)'
ALPHA = 3.0


@functools.cache
def networks(family):
    """{component: torch module}; Stable Diffusion 2's are 1's with linear projections, as its published ones are."""
    if family == 'sd2':
        unet = diffusers.UNet2DConditionModel(**tiny_lora_hosts.UNET, use_linear_projection=True)
        return {**tiny_lora_hosts.networks(), 'unet': randomise(unet, 0, std=0.2)}
    return tiny_lora_hosts.networks(family == 'sdxl')


@functools.cache
def base(family):
    found = {}
    for component, module in networks(family).items():
        params = to_ours(module)
        if any(name.startswith('encoder.layers') for name in params):
            params = {f'text_model.{name}': value for name, value in params.items()}
        found[component] = {name: np.asarray(value) for name, value in params.items()}
    return found


def matrices(kernel, rank, rng):
    """(down, up) in torch's order for a kernel of ours."""
    *window, inputs, outputs = kernel.shape
    ones = [1 for _ in window]
    down, up = rng.normal(0, 0.3, (rank, inputs, *window)), rng.normal(0, 0.3, (outputs, rank, *ones))
    return down.astype(np.float32), up.astype(np.float32)


def kernels(family, pattern, components=('unet', 'text_encoder', 'text_encoder_2')):
    """[(component, path, kernel)] of the layers whose path matches."""
    return [
        (component, name.removesuffix('.kernel'), value)
        for component, params in base(family).items()
        if component in components
        for name, value in params.items()
        if name.endswith('.kernel') and re.fullmatch(pattern, name.removesuffix('.kernel'))
    ]


def written(path, tensors, metadata=None):
    tensors = {name: np.asarray(value, np.float32) for name, value in tensors.items()}
    files.write_tensors(path, tensors, metadata=metadata)
    return path


def merged(path, family, scale=1.0):
    adapter = read_lora(path, base(family))
    options = {'rank': adapter.rank, 'alpha': adapter.alpha, 'scale': scale}
    return {
        component: lora.merge({**base(family)[component], **params}, **options)
        for component, params in adapter.params.items()
    }


def fused_by_diffusers(path, family):
    loaded = {name: copy.deepcopy(module) for name, module in networks(family).items()}
    pipeline = tiny_lora_hosts.pipeline(loaded)
    with nothing_reported(NOT_ADAPTED):
        pipeline.load_lora_weights(path)
    pipeline.fuse_lora(components=list(loaded))
    pipeline.unload_lora_weights()
    found = {}
    for component, module in loaded.items():
        params = to_ours(module)
        prefix = 'text_model.' if any(name.startswith('encoder.layers') for name in params) else ''
        found[component] = {f'{prefix}{name}': value for name, value in params.items()}
    return found


def update(down, up):
    """up @ down as a kernel of ours."""
    if down.ndim == 2:
        return (up @ down).T
    return np.einsum('or,rihw->hwio', up[:, :, 0, 0], down)


# --- what diffusers reads, as it fuses it ---------------------------------------------------------------------------


def old_unet(path):
    attention, projection = path.rsplit('.to_', 1)
    return f'unet.{attention}.processor.to_{projection.removesuffix(".0")}_lora'


def old_text(component, path):
    return f'{component}.' + re.sub(r'(\w+)_proj$', r'to_\1_lora', path)


def old(component, path):
    return old_unet(path) if component == 'unet' else old_text(component, path)


@pytest.mark.parametrize('with_text', [False, True])
@pytest.mark.parametrize('family', ['sd1', 'sd2', 'sdxl'])
def test_files_of_the_attention_processors_time_are_fused_as_diffusers_fuses_them(family, with_text, tmp_path):
    """unet.….attn1.processor.to_q_lora.down.weight, of diffusers 0.12 to 0.18; FAULTS' row 17."""
    rng, tensors = np.random.default_rng(0), {}
    components = tuple(networks(family)) if with_text else ('unet',)
    for component, path, kernel in kernels(family, rf'{UNET_LAYERS}|.*self_attn\..*', components):
        tensors[f'{old(component, path)}.down.weight'], tensors[f'{old(component, path)}.up.weight'] = matrices(
            kernel, 2, rng
        )
    file = written(tmp_path / lora_files.PEFT_FILE, tensors)
    ours, theirs = merged(file, family), fused_by_diffusers(file, family)
    assert set(ours) == set(components)
    for component, params in ours.items():
        for name, value in params.items():
            np.testing.assert_allclose(value, theirs[component][name], atol=1e-5, err_msg=name)
    name = next(name for name in ours['unet'] if name.endswith('to_out.0.kernel'))
    assert np.abs(ours['unet'][name] - base(family)['unet'][name]).max() > 0.1
    # The first files had no `unet.`; what they are is what they are with it.
    bare = {key.removeprefix('unet.'): value for key, value in tensors.items()}
    again = merged(written(tmp_path / 'bare.safetensors', bare), family)
    assert all(
        np.array_equal(again[part][name], value) for part, params in ours.items() for name, value in params.items()
    )


def test_the_projection_of_the_second_text_encoder_is_read_as_diffusers_reads_it(tmp_path):
    rng, tensors = np.random.default_rng(0), {}
    layers = kernels('sdxl', r'text_projection|.*(fc1|out_proj)', ('text_encoder_2',))
    assert any(path == 'text_projection' for _, path, _ in layers)
    for _, path, kernel in layers:
        name = f'lora_te2_{path}'.replace('.', '_')
        tensors[f'{name}.lora_down.weight'], tensors[f'{name}.lora_up.weight'] = matrices(kernel, 2, rng)
        tensors[f'{name}.alpha'] = ALPHA
    file = written(tmp_path / 'x.safetensors', tensors)
    ours, theirs = merged(file, 'sdxl')['text_encoder_2'], fused_by_diffusers(file, 'sdxl')['text_encoder_2']
    for name, value in ours.items():
        np.testing.assert_allclose(value, theirs[name], atol=1e-5, err_msg=name)
    name = 'text_projection.kernel'
    assert np.abs(ours[name] - base('sdxl')['text_encoder_2'][name]).max() > 0.1


# --- what diffusers does not read, by its formula ---------------------------------------------------------------------


@pytest.mark.parametrize('ends', [('lora_down', 'lora_up'), ('lora_A', 'lora_B')])
@pytest.mark.parametrize('family', ['sd1', 'sd2', 'sdxl'])
def test_comfyuis_own_files_are_read(family, ends, tmp_path):
    """diffusion_model.<original name>, as its save node and its generic format have it, every layer of the UNet."""
    modules = tiny_original_names(family)
    rng, tensors, wanted = np.random.default_rng(0), {}, {}
    for _, path, kernel in kernels(family, '.*', ('unet',)):
        down, up = matrices(kernel, 2, rng)
        name = f'diffusion_model.{modules[path]}'
        tensors |= {f'{name}.{ends[0]}.weight': down, f'{name}.{ends[1]}.weight': up, f'{name}.alpha': ALPHA}
        wanted[f'{path}.kernel'] = kernel + ALPHA / 2 * update(down, up)
    text = 'clip_h' if family == 'sd2' else 'clip_l'
    for component, prefix in (('text_encoder', text), ('text_encoder_2', 'clip_g')):
        for _, path, kernel in kernels(family, r'.*(_proj|fc\d)', (component,)):
            down, up = matrices(kernel, 2, rng)
            name = f'text_encoders.{prefix}.transformer.{path}'
            tensors |= {f'{name}.{ends[0]}.weight': down, f'{name}.{ends[1]}.weight': up}
            wanted[f'{component} {path}.kernel'] = kernel + update(down, up)
    # Its save node writes all differences of biases and norms too; where there are none, they are left out.
    tensors['diffusion_model.out.0.diff'] = tensors['diffusion_model.out.2.diff_b'] = np.zeros(4)
    ours = merged(written(tmp_path / 'x.safetensors', tensors), family)
    for name, value in wanted.items():
        component, _, name = name.rpartition(' ')
        np.testing.assert_allclose(ours[component or 'unet'][name], value, rtol=1e-4, atol=1e-5, err_msg=name)


def tiny_original_names(family):
    return original_names.unet_modules(dict(networks(family)['unet'].config))


@pytest.mark.parametrize(
    'key',
    [
        'base_model.model.{path}.lora_{end}.weight',
        'base_model.model.{path}.lora_{end}.default.weight',
        'unet.base_model.model.{path}.lora_{end}.weight',
        'unet.{path}.lora_{end}.default_0.weight',
    ],
)
@pytest.mark.parametrize('config', [None, {'r': 2, 'lora_alpha': 6, 'alpha_pattern': {}, 'use_rslora': False}])
def test_files_that_peft_itself_writes_are_read_with_the_settings_beside_them(key, config, tmp_path, caplog):
    path, name = f'{ATTENTION}.to_q', f'{ATTENTION}.to_q.kernel'
    kernel = base('sd1')['unet'][name]
    down, up = matrices(kernel, 2, np.random.default_rng(0))
    tensors = {key.format(path=path, end=end): value for end, value in (('A', down), ('B', up))}
    file = written(tmp_path / 'adapter_model.safetensors', tensors)
    if config:
        (tmp_path / 'adapter_config.json').write_text(json.dumps(config))
    with caplog.at_level(logging.WARNING):
        ours = merged(file, 'sd1')['unet'][name]
    peft = 'base_model' in key
    np.testing.assert_allclose(ours, kernel + (3 if config and peft else 1) * update(down, up), atol=1e-5)
    said = [record.getMessage() for record in caplog.records]
    assert said == (
        [f'{file} does not say its alpha, and no adapter_config.json lies beside it: alpha is taken to be the rank']
        if peft and not config
        else []
    )


def test_settings_that_cannot_be_read_are_one_sentence(tmp_path):
    down, up = matrices(base('sd1')['unet'][f'{ATTENTION}.to_q.kernel'], 2, np.random.default_rng(0))
    name = f'base_model.model.{ATTENTION}.to_q'
    file = written(tmp_path / 'x.safetensors', {f'{name}.lora_A.weight': down, f'{name}.lora_B.weight': up})
    for text in ('{', '[]', '3'):
        (tmp_path / 'adapter_config.json').write_text(text)
        with pytest.raises(WeightsError, match='has an unreadable adapter_config.json .*; export it again.$'):
            read_lora(file, base('sd1'))


def test_adapters_without_width_are_refused(tmp_path):
    empty = {
        f'unet.{ATTENTION}.to_q.lora_A.weight': np.ones((0, 16)),
        f'unet.{ATTENTION}.to_q.lora_B.weight': np.ones((16, 0)),
    }
    with pytest.raises(WeightsError) as caught:
        read_lora(written(tmp_path / 'x.safetensors', empty), base('sd1'))
    assert caught.value.problems == tuple(f'empty: {part} of unet.{ATTENTION}.to_q' for part in ('lora_a', 'lora_b'))


def test_peft_files_of_either_of_two_text_encoders_are_not_guessed(tmp_path):
    path = 'base_model.model.text_model.encoder.layers.0.self_attn.q_proj'
    kernel = base('sdxl')['text_encoder']['text_model.encoder.layers.0.self_attn.q_proj.kernel']
    down, up = matrices(kernel, 2, np.random.default_rng(0))
    file = written(tmp_path / 'x.safetensors', {f'{path}.lora_A.weight': down, f'{path}.lora_B.weight': up})
    with pytest.raises(WeightsError, match=rf'is no LoRA of this model.*\n  unused: {re.escape(path)}.lora_A.weight'):
        read_lora(file, base('sdxl'))
    assert merged(file, 'sd1').keys() == {'text_encoder'}


def test_a_convolution_with_a_core_tensor_is_the_one_that_lycoris_computes(tmp_path):
    name = 'down_blocks.0.resnets.0.conv1'
    kernel = base('sd1')['unet'][f'{name}.kernel']
    rng = np.random.default_rng(0)
    shapes = (3, kernel.shape[2], 1, 1), (3, 3, 3, 3), (kernel.shape[3], 3, 1, 1)
    down, middle, up = (rng.normal(0, 0.3, shape).astype(np.float32) for shape in shapes)
    key = f'lora_unet_{name}'.replace('.', '_')
    tensors = {f'{key}.lora_{part}.weight': value for part, value in (('down', down), ('mid', middle), ('up', up))}
    file = written(tmp_path / 'x.safetensors', {**tensors, f'{key}.alpha': ALPHA})
    # The three convolutions in a row, on an image of one pixel at a time: what the layer adds.
    image = torch.from_numpy(rng.normal(size=(1, kernel.shape[2], 5, 5)).astype(np.float32))
    conv = torch.nn.functional.conv2d
    steps = conv(conv(conv(image, torch.from_numpy(down)), torch.from_numpy(middle)), torch.from_numpy(up))
    added = np.asarray(merged(file, 'sd1')['unet'][f'{name}.kernel'] - kernel)
    ours = conv(image, torch.from_numpy(added.transpose(3, 2, 0, 1).copy()))
    np.testing.assert_allclose(ours, steps * ALPHA / 3, atol=1e-4)


def decomposed(kernel, added, scale, by_output):
    """DoRA's weight, torch's order: all of W + BA, its outputs' (or inputs') kernels given the lengths in `scale`."""
    axes = tuple(range(1, kernel.ndim)) if by_output else (0, *range(2, kernel.ndim))
    whole = kernel + added
    return whole * scale / np.sqrt(np.square(whole).sum(axes, keepdims=True))


@pytest.mark.parametrize('strength', [1.0, 0.5, 0.0])
@pytest.mark.parametrize('by_output', [True, False])
@pytest.mark.parametrize('spelling', ['kohya', 'comfyui'])
def test_dora_of_lycoris_is_read_with_the_lengths_that_its_shape_says(spelling, by_output, strength, tmp_path):
    rng, tensors, wanted = np.random.default_rng(0), {}, {}
    modules = tiny_original_names('sd1')
    for _, path, kernel in kernels('sd1', r'down_blocks\.0\.(resnets\.0\.conv1|attentions\.0.*attn1\.to_q)', ('unet',)):
        down, up = matrices(kernel, 2, rng)
        name = f'lora_unet_{path}'.replace('.', '_') if spelling == 'kohya' else f'diffusion_model.{modules[path]}'
        weight = kernel.transpose(3, 2, 0, 1) if kernel.ndim == 4 else kernel.T
        added = update(down, up)
        added = ALPHA / 2 * (added.transpose(3, 2, 0, 1) if kernel.ndim == 4 else added.T)
        shape = [1] * kernel.ndim
        shape[0 if by_output else 1] = -1
        scale = rng.uniform(0.5, 2, weight.shape[0 if by_output else 1]).astype(np.float32).reshape(shape)
        tensors |= {
            f'{name}.lora_down.weight': down,
            f'{name}.lora_up.weight': up,
            f'{name}.alpha': ALPHA,
            f'{name}.dora_scale': scale,
        }
        new = weight + strength * (decomposed(weight, added, scale, by_output) - weight)
        wanted[f'{path}.kernel'] = new.transpose(2, 3, 1, 0) if kernel.ndim == 4 else new.T
    assert len(wanted) == 2
    ours = merged(written(tmp_path / 'x.safetensors', tensors), 'sd1', strength)['unet']
    for name, value in wanted.items():
        np.testing.assert_allclose(ours[name], value, atol=1e-5)
        assert strength or np.array_equal(ours[name], base('sd1')['unet'][name])


@pytest.mark.parametrize('shape', [(16,), (1, 1), (16, 16), (1, 16, 1, 2)])
def test_dora_whose_shape_does_not_tell_its_axis_is_refused(shape, tmp_path):
    name = f'lora_unet_{ATTENTION}.to_q'.replace('.', '_')
    kernel = base('sd1')['unet'][f'{ATTENTION}.to_q.kernel']
    assert kernel.shape == (16, 16)
    down, up = matrices(kernel, 2, np.random.default_rng(0))
    tensors = {f'{name}.lora_down.weight': down, f'{name}.lora_up.weight': up, f'{name}.dora_scale': np.ones(shape)}
    with pytest.raises(WeightsError) as caught:
        read_lora(written(tmp_path / 'x.safetensors', tensors), base('sd1'))
    assert caught.value.problems == (
        f'wrong shape: dora_scale is {list(shape)} but must be [16, 1] or [1, 16] of unet.{ATTENTION}.to_q',
    )


def test_a_part_in_two_spellings_is_refused(tmp_path):
    kernel = base('sd1')['unet'][f'{ATTENTION}.to_q.kernel']
    down, up = matrices(kernel, 2, np.random.default_rng(0))
    tensors = {f'unet.{ATTENTION}.to_q.lora_{part}.weight': value for part, value in (('A', down), ('B', up))}
    tensors[f'unet.{ATTENTION}.processor.to_q_lora.down.weight'] = down
    with pytest.raises(WeightsError) as caught:
        read_lora(written(tmp_path / 'x.safetensors', tensors), base('sd1'))
    assert [problem.split(' as ')[0] for problem in caught.value.problems] == ['twice: lora_a']


# --- what is no LoRA of this model: lora_kinds.py ------------------------------------------------------------------


def test_what_the_file_is_instead_is_one_sentence_that_begins_with_its_name(tmp_path):
    path = written(tmp_path / 'x.safetensors', {f'{ATTENTION}.hada_w1_a': np.ones((2, 2))})
    with pytest.raises(WeightsError) as caught:
        read_lora(path, base('sd1'))
    assert str(caught.value).startswith(f'{path} is a LoHa, which is not read here') and not caught.value.problems


@pytest.mark.parametrize('spelling', ['peft', 'old', 'kohya'])
def test_a_lora_of_another_family_is_said_to_be_one(spelling, tmp_path):
    """Stable Diffusion XL's on 1.x: at these sizes text is 32 and 16 wide; the published ones have names."""
    path = 'down_blocks.1.attentions.0.transformer_blocks.0.attn2.to_k'
    down, up = matrices(base('sdxl')['unet'][f'{path}.kernel'], 2, np.random.default_rng(0))
    name = {
        'peft': f'unet.{path}',
        'old': f'{old_unet(path)}',
        'kohya': lora_names.kohya_name('unet', path, original=True),
    }
    ends = {'peft': ('.lora_A', '.lora_B'), 'old': ('.down', '.up'), 'kohya': ('.lora_down', '.lora_up')}[spelling]
    tensors = {f'{name[spelling]}{end}.weight': value for end, value in zip(ends, (down, up), strict=True)}
    file = written(tmp_path / 'x.safetensors', tensors)
    with pytest.raises(WeightsError) as caught:
        read_lora(file, base('sd1'))
    assert str(caught.value) == (
        f'{file} is a LoRA of a model that reads text of width 32, but this model is a model that reads text of width '
        f'16; use one that was trained on a model of the same kind.'
    )
