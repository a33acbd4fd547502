"""LoRA files: what PyTorch's diffusers makes of them, and what is read back."""

import copy
import json
import re

import jax.numpy as jnp
import numpy as np
import pytest
import torch
from flax import nnx

from dreambooth_jax.families.sdxl_files import SDXL
from dreambooth_jax.models import functional, lora
from dreambooth_jax.weights import files, lora_files
from dreambooth_jax.weights.folders import abstract_network
from dreambooth_jax.weights.lora_files import Adapter, read_lora, write_lora
from tests.support import tiny_lora_hosts
from tests.support import tiny_networks as tiny
from tests.support.reports import nothing_reported
from tests.support.torch_reference import largest_relative_difference, nchw, nhwc, quick_jit, to_ours

RANK, ALPHA = 4, 6.0
NAMED_BY_KOHYA = '(?!text_projection).*'  # all layers of Stable Diffusion and SDXL but one
NOT_ADAPTED = 'No LoRA keys associated to'  # what is said of a network that the file leaves alone
UNET_PROJECTIONS = r'.*\.(to_q|to_k|to_v|to_out\.0)'


def base_params(networks):
    """{component: our parameters}, CLIP's under its published names, which transformers 5 has shortened."""
    found = {}
    for component, module in networks.items():
        params = to_ours(module)
        if any(name.startswith('encoder.layers') for name in params):
            params = {f'text_model.{name}': value for name, value in params.items()}
        found[component] = params
    return found


def random_adapter(base, targets='.*', dora=False, rank=RANK, alpha=ALPHA):
    """Random adapters of every Linear and Conv of these base parameters whose path matches."""
    rng = np.random.default_rng(0)
    params = {}
    for component, values in base.items():
        found = params[component] = {}
        for name, kernel in values.items():
            path = name.removesuffix('.kernel')
            if path == name or not re.fullmatch(targets, path):
                continue
            found[f'{path}.lora_a'] = rng.normal(0, 0.3, (*kernel.shape[:-1], rank)).astype(np.float32)
            found[f'{path}.lora_b'] = rng.normal(0, 0.3, (rank, kernel.shape[-1])).astype(np.float32)
            if dora:
                norm = np.sqrt(np.square(kernel).sum(axis=tuple(range(kernel.ndim - 1))))
                found[f'{path}.lora_magnitude'] = norm * rng.uniform(0.7, 1.4, norm.shape).astype(np.float32)
    return Adapter(params, rank, alpha)


def with_merged(module, component, base, adapter):
    """A copy of the torch module with merged kernels."""
    merged = lora.merge({**base[component], **adapter.params[component]}, rank=adapter.rank, alpha=adapter.alpha)
    state = module.state_dict()
    for name, value in merged.items():
        if name.endswith('.kernel'):
            value, weight = np.array(value), name.replace('.kernel', '.weight')
            weight = weight if weight in state else weight.removeprefix('text_model.')
            state[weight] = torch.from_numpy(value.T if value.ndim == 2 else value.transpose(3, 2, 0, 1)).clone()
    changed = copy.deepcopy(module)
    changed.load_state_dict(state)
    return changed


def adapted_layers(module):
    """Paths of the layers that peft put an adapter on, less CLIP's prefix."""
    names = [name for name, _ in module.named_modules() if name.endswith('lora_A')]
    return {name.removesuffix('.lora_A').removeprefix('text_model.') for name in names}


def layers_of(params):
    return {name.rpartition('.')[0].removeprefix('text_model.') for name in params}


def run_torch(component, module, sdxl):
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        if component != 'unet':
            return module(torch.tensor([[1, 5, 7, 2]])).last_hidden_state
        x = torch.randn(1, 4, 8, 8, generator=generator)
        text = torch.randn(1, 3, 32 if sdxl else 16, generator=generator)
        added = {'text_embeds': torch.randn(1, 16, generator=generator), 'time_ids': torch.ones(1, 6)}
        return module(x, 7, text, added_cond_kwargs=added if sdxl else None).sample


def equal(ours, theirs):
    return ours.keys() == theirs.keys() and all(np.array_equal(ours[name], theirs[name]) for name in ours)


@pytest.mark.parametrize(
    'format, dora, sdxl',
    [
        ('lora_peft', False, False),
        pytest.param('lora_peft', True, False, marks=pytest.mark.slow),
        pytest.param('lora_peft', False, True, marks=pytest.mark.slow),
        ('lora_kohya', False, False),
        pytest.param('lora_kohya', False, True, marks=pytest.mark.slow),
    ],
)
def test_diffusers_loads_every_layer_of_stable_diffusion(format, dora, sdxl, tmp_path):
    networks = tiny_lora_hosts.networks(sdxl)
    base = base_params(networks)
    adapter = random_adapter(base, '.*' if format == 'lora_peft' else NAMED_BY_KOHYA, dora)
    write_lora(tmp_path / lora_files.PEFT_FILE, adapter, format, layout=SDXL if sdxl else None)
    loaded = {name: copy.deepcopy(module) for name, module in networks.items()}
    pipeline = tiny_lora_hosts.pipeline(loaded)
    with nothing_reported(NOT_ADAPTED):
        pipeline.load_lora_weights(tmp_path)
    for component, module in loaded.items():
        assert adapted_layers(module) == layers_of(adapter.params[component])
        ours = run_torch(component, with_merged(networks[component], component, base, adapter), sdxl)
        assert largest_relative_difference(run_torch(component, module, sdxl), ours) < 1e-4
        plain = run_torch(component, networks[component], sdxl)
        assert largest_relative_difference(plain, ours) > 0.1


@pytest.mark.slow
@pytest.mark.parametrize('format, dora', [('lora_peft', False), ('lora_peft', True), ('lora_kohya', False)])
def test_our_adapted_networks_compute_what_diffusers_does_with_their_file(format, dora, tmp_path, tokenizer_folder):
    pipeline = tiny.torch_pipeline(tokenizer_folder)
    networks = {'unet': copy.deepcopy(pipeline.unet), 'text_encoder': copy.deepcopy(pipeline.text_encoder)}
    ignored = ('encoder.embed_tokens.weight',)
    base = {name: to_ours(module, ignored=ignored) for name, module in networks.items()}
    if format == 'lora_kohya':
        # IF's added keys and values, and T5, have no name there.
        targets, base = rf'{UNET_PROJECTIONS}|.*resnets\.\d+\.conv1', {'unet': base['unet']}
    else:
        targets = rf'{lora.ATTENTION_PROJECTIONS[0]}|conv_in|.*resnets\.\d+\.conv1'
    adapter = random_adapter(base, targets, dora)
    write_lora(tmp_path / lora_files.PEFT_FILE, adapter, format)
    pipeline.register_modules(**networks)
    with nothing_reported(NOT_ADAPTED):
        pipeline.load_lora_weights(tmp_path)
    rng = np.random.default_rng(1)
    for component, params in base.items():
        assert adapted_layers(networks[component]) == layers_of(adapter.params[component])
        config = tiny.UNET if component == 'unet' else tiny.TEXT_ENCODER
        paths = [re.escape(path) for path in layers_of(adapter.params[component])]
        model = nnx.eval_shape(
            lambda model, paths=paths: lora.adapt(
                model, rank=RANK, alpha=ALPHA, targets=paths, dora=dora, rngs=functional.Keys(0)
            ),
            abstract_network(component, config),
        )
        apply = quick_jit(functional.split(model)[0])
        with torch.no_grad():
            if component == 'unet':
                x, text = (rng.normal(size=shape).astype(np.float32) for shape in [(1, 8, 8, 3), (1, 3, 24)])
                theirs = nhwc(networks['unet'](nchw(x), 7, torch.from_numpy(text)).sample)
                ours = apply(params | adapter.params[component], x, np.array([7]), text)
            else:
                theirs = networks['text_encoder'](torch.tensor([[5, 9, 1]])).last_hidden_state
                ours = apply(params | adapter.params[component], np.array([[5, 9, 1]]))
        assert largest_relative_difference(ours, theirs) < 1e-4


@pytest.mark.parametrize('sdxl', [False, True])
@pytest.mark.parametrize('format, dora', [('lora_peft', False), ('lora_peft', True), ('lora_kohya', False)])
def test_what_is_written_is_read_back(format, dora, sdxl, tmp_path):
    base = base_params(tiny_lora_hosts.networks(sdxl))
    alpha = 2.0  # a power of two from the rank, so that B is scaled without rounding
    adapter = random_adapter(base, '.*' if format == 'lora_peft' else NAMED_BY_KOHYA, dora, alpha=alpha)
    path = write_lora(tmp_path / 'x.safetensors', adapter, format, layout=SDXL if sdxl else None)
    again = read_lora(path, base)
    assert again.rank == RANK
    assert again.alpha == (RANK if format == 'lora_peft' else alpha)
    assert again.params.keys() == adapter.params.keys()
    for component, params in again.params.items():
        wanted = adapter.params[component]
        if format == 'lora_peft':
            wanted = {name: value * (alpha / RANK) ** name.endswith('lora_b') for name, value in wanted.items()}
        assert equal(params, wanted)


def test_what_diffusers_saves_is_read(tmp_path):
    import peft
    from diffusers import StableDiffusionPipeline
    from diffusers.utils import convert_state_dict_to_diffusers

    networks = {name: copy.deepcopy(module) for name, module in tiny_lora_hosts.networks().items()}
    base = base_params(networks)
    targets = {'unet': ['to_q', 'to_out.0', 'conv1'], 'text_encoder': ['q_proj', 'out_proj']}
    layers, configs = {}, {}
    for component, module in networks.items():
        # Another rank and alpha in one place, another scale in the other.
        options = {'use_rslora': True}
        if component == 'unet':
            options = {'rank_pattern': {'conv1': 3}, 'alpha_pattern': {'conv1': 12}}
        options |= {'target_modules': targets[component], 'init_lora_weights': False}
        configs[component] = peft.LoraConfig(r=2, lora_alpha=3, **options)
        peft.inject_adapter_in_model(configs[component], module)
        module.peft_config = {'default': configs[component]}
        state = peft.get_peft_model_state_dict(module, adapter_name='default')
        layers[component] = convert_state_dict_to_diffusers(state)
    metadata = {f'{component}_lora_adapter_metadata': config.to_dict() for component, config in configs.items()}
    metadata = {key: {k: sorted(v) if isinstance(v, set) else v for k, v in c.items()} for key, c in metadata.items()}
    StableDiffusionPipeline.save_lora_weights(
        tmp_path, layers['unet'], text_encoder_lora_layers=layers['text_encoder'], **metadata
    )
    adapter = read_lora(tmp_path / lora_files.PEFT_FILE, base)
    assert (adapter.rank, adapter.alpha) == (3, 3.0)
    for component, module in networks.items():
        assert adapted_layers(module) == layers_of(adapter.params[component])
        plain = tiny_lora_hosts.networks()[component]
        ours = run_torch(component, with_merged(plain, component, base, adapter), sdxl=False)
        assert largest_relative_difference(ours, run_torch(component, module, sdxl=False)) < 1e-4


def test_layers_of_different_rank_and_alpha_become_one_adapter(tmp_path):
    shapes = {'conv_in.kernel': (3, 3, 4, 5), 'mid_block.attentions.0.to_q.kernel': (6, 7)}
    base = {'unet': {name: np.zeros(shape, np.float32) for name, shape in shapes.items()}}
    rng = np.random.default_rng(0)
    tensors = {
        'lora_unet_conv_in.lora_down.weight': rng.normal(size=(2, 4, 3, 3)),
        'lora_unet_conv_in.lora_up.weight': rng.normal(size=(5, 2, 1, 1)),
        'lora_unet_conv_in.alpha': np.array(1.0),
        # A dense layer as a 1x1 convolution, without an alpha.
        'lora_unet_mid_block_attentions_0_to_q.lora_down.weight': rng.normal(size=(3, 6, 1, 1)),
        'lora_unet_mid_block_attentions_0_to_q.lora_up.weight': rng.normal(size=(7, 3, 1, 1)),
    }
    tensors = {name: value.astype(np.float32) for name, value in tensors.items()}
    files.write_tensors(tmp_path / 'x.safetensors', tensors)
    adapter = read_lora(tmp_path / 'x.safetensors', base)
    assert (adapter.rank, adapter.alpha) == (3, 3.0)
    merged = lora.merge({**base['unet'], **adapter.params['unet']}, rank=3, alpha=3.0)
    down, up = (tensors[f'lora_unet_conv_in.lora_{part}.weight'] for part in ('down', 'up'))
    wanted = np.einsum('or,rihw->hwio', up[:, :, 0, 0], down) / 2
    np.testing.assert_allclose(merged['conv_in.kernel'], wanted, rtol=1e-5, atol=1e-6)
    down, up = (tensors[f'lora_unet_mid_block_attentions_0_to_q.lora_{part}.weight'] for part in ('down', 'up'))
    wanted = np.einsum('or,ri->io', up[:, :, 0, 0], down[:, :, 0, 0])
    np.testing.assert_allclose(merged['mid_block.attentions.0.to_q.kernel'], wanted, rtol=1e-5, atol=1e-6)


def test_headers_say_what_readers_ask_for(tmp_path):
    base = base_params(tiny_lora_hosts.networks())
    adapter = random_adapter(base, r'conv_in|.*\.q_proj')
    path = write_lora(tmp_path / 'x.safetensors', adapter, 'lora_kohya', metadata={'ss_base_model_version': 'sd_v1'})
    header = files.read_metadata(path)
    assert header == {
        'format': 'pt',
        'ss_base_model_version': 'sd_v1',
        'ss_network_module': 'networks.lora',
        'ss_network_dim': '4',
        'ss_network_alpha': '6.0',
        'ss_network_args': '{"conv_dim": "4", "conv_alpha": "6.0"}',
    }
    header = files.read_metadata(write_lora(path, adapter, 'lora_peft'))
    config = json.loads(header['lora_adapter_metadata'])
    assert (config['unet.r'], config['unet.lora_alpha'], config['unet.target_modules']) == (4, 4, ['conv_in'])


def test_half_precision_is_stored_on_request(tmp_path):
    base = base_params(tiny_lora_hosts.networks())
    adapter = random_adapter(base, r'conv_in')
    whole = write_lora(tmp_path / 'a.safetensors', adapter, 'lora_peft').stat().st_size
    path = write_lora(tmp_path / 'b.safetensors', adapter, 'lora_peft', dtype='float16')
    tensors_bytes = 4 * sum(value.size for params in adapter.params.values() for value in params.values())
    assert abs(whole - path.stat().st_size - tensors_bytes / 2) < 100
    again = read_lora(path, base).params['unet']['conv_in.lora_a']
    assert again.dtype == np.float32
    np.testing.assert_allclose(again, adapter.params['unet']['conv_in.lora_a'], atol=1e-3)


def small(dora=False):
    shapes = {'conv_in.kernel': (3, 3, 4, 5), 'mid_block.attentions.0.add_k_proj.kernel': (6, 7)}
    base = {'unet': {name: jnp.zeros(shape) for name, shape in shapes.items()}}
    return base, random_adapter(base, '.*', dora)


def test_what_cannot_be_written_is_refused_in_a_sentence(tmp_path):
    base, adapter = small()
    path = tmp_path / 'x.safetensors'
    with pytest.raises(files.WeightsError) as caught:
        write_lora(path, adapter, 'lora_kohya')
    assert caught.value.problems == ('unet.mid_block.attentions.0.add_k_proj has no name in the lora_kohya format.',)
    assert str(caught.value).startswith(
        f'{path} cannot hold these LoRA layers, since not all readers of lora_kohya find them; export lora_peft, '
        f'or train other targets:\n'
    )
    with pytest.raises(files.WeightsError, match=re.escape(f"{path} cannot hold DoRA's magnitudes: ")):
        write_lora(path, small(dora=True)[1], 'lora_kohya')
    with pytest.raises(files.WeightsError, match="format is 'lora'; LoRA files are written as one of "):
        write_lora(path, adapter, 'lora')
    with pytest.raises(files.WeightsError, match='would hold no LoRA layer; give the parameters of an adapter'):
        write_lora(path, Adapter({'unet': {}}, 1, 1.0), 'lora_peft')
    assert not path.exists()


@pytest.mark.parametrize(
    'change, problems',
    [
        ({'vae.conv_in.lora_A.weight': (2, 3)}, ['unused: vae.conv_in.lora_A.weight [2, 3]']),
        ({'unet.conv_in.lora_C.weight': (2, 3)}, ['unused: unet.conv_in.lora_C.weight [2, 3]']),
        ({'unet.conv_out.lora_A.weight': (2, 3)}, ['unused: unet.conv_out.lora_A.weight [2, 3]']),
        ({'unet.conv_in.lora_B.weight': None}, ['missing: lora_b of unet.conv_in']),
        (
            {'unet.conv_in.lora_A.weight': (4, 5, 3, 3)},
            ['wrong shape: lora_a is [4, 5, 3, 3] but must be [4, 4, 3, 3] of unet.conv_in'],
        ),
        (
            {'unet.conv_in.lora_B.weight': (5, 3, 1, 1)},
            ['wrong shape: lora_b is [5, 3, 1, 1] but must be [5, 4, 1, 1] of unet.conv_in'],
        ),
    ],
)
def test_every_tensor_that_does_not_fit_is_named(change, problems, tmp_path):
    base, adapter = small()
    path = write_lora(tmp_path / 'x.safetensors', adapter, 'lora_peft')
    tensors = files.read_tensors(path)
    for name, shape in change.items():
        tensors.pop(name, None)
        if shape:
            tensors[name] = np.zeros(shape, np.float32)
    files.write_tensors(path, tensors)
    with pytest.raises(files.WeightsError) as caught:
        read_lora(path, base)
    assert list(caught.value.problems) == problems
    sentence = f'{path} is no LoRA of this model; use one that was trained on a model of the same kind:'
    assert str(caught.value).splitlines()[0] == sentence


def test_a_file_of_something_else_is_refused(tmp_path):
    base, _ = small()
    path = tmp_path / 'x.safetensors'
    files.write_tensors(path, {'lora_unet_conv_in.dora_scale': np.ones((5, 1, 1, 1), np.float32)})
    with pytest.raises(files.WeightsError, match='is no LoRA of this model.*\n  missing: lora_a of unet.conv_in'):
        read_lora(path, base)
    files.write_tensors(path, {})
    with pytest.raises(files.WeightsError, match='is no LoRA of this model.*\n  it holds no tensors'):
        read_lora(path, base)
    files.write_tensors(
        path,
        {'unet.conv_in.lora_A.weight': np.zeros((1, 4, 3, 3)), 'unet.conv_in.lora_B.weight': np.zeros((5, 1, 1, 1))},
        metadata={'lora_adapter_metadata': '{'},
    )
    with pytest.raises(files.WeightsError, match='has an unreadable lora_adapter_metadata'):
        read_lora(path, base)
