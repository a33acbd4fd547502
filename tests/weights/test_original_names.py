"""Original names of layers: those of the published files, one for each layer, in tables that can be read both ways."""

import re

import pytest
import torch

from dreambooth_jax.weights import original_names as names
from tests.support import published_stable_diffusion as published
from tests.support import tiny_stable_diffusion as tiny
from tests.support.layouts import LAYOUTS

FAMILIES = tuple(published.CONFIGS)


def tables(family, configs):
    """{component: {our tensor without .weight or .bias: original name}} of all that is only renamed."""
    layout = LAYOUTS[family]
    found = {'unet': names.unet_modules(configs['unet']), 'vae': names.vae_modules(configs['vae'])}
    for component, prefix in layout.text_prefixes.items():
        is_open = names.is_open_clip(prefix)
        found[component] = (names.open_clip_modules if is_open else names.clip_modules)(configs[component])
    return found


@pytest.mark.parametrize('family', FAMILIES)
def test_names_are_those_of_the_published_files(family):
    """Without what OpenCLIP joins and what belongs to no layer: tests/weights/test_original_configs.py has all."""
    prefixes, tested = names.prefixes(LAYOUTS[family]), 0
    found = tables(family, published.CONFIGS[family])
    for line in published.NAMES[family].strip().splitlines():
        original, ours = (part.strip() for part in line.split(' = '))
        component, _, path = ours.split(' ')[0].partition('.')
        path, _, leaf = path.rpartition('.')
        if path in found[component]:
            assert f'{prefixes[component]}{found[component][path]}.{leaf}' == original
            tested += 1
        else:
            assert re.search(r'in_proj_|positional_embedding|text_projection', original)
    assert tested >= 6


@pytest.mark.parametrize('configs', [published.CONFIGS, tiny.CONFIGS], ids=['published', 'tiny'])
@pytest.mark.parametrize('family', FAMILIES)
def test_no_two_layers_share_a_name(family, configs):
    for table in tables(family, configs[family]).values():
        assert len(set(table.values())) == len(table)


@pytest.mark.parametrize('family', FAMILIES)
def test_every_layer_of_the_networks_has_a_name(family):
    found = tables(family, tiny.CONFIGS[family])
    fused = {}
    for component, prefix in LAYOUTS[family].text_prefixes.items():
        if names.is_open_clip(prefix):
            parts = [
                part for joined in names.open_clip_fused(tiny.CONFIGS[family][component]).values() for part in joined
            ]
            fused[component] = {*parts, *names.OPEN_CLIP_BARE}
    for component, config in tiny.CONFIGS[family].items():
        with torch.device('meta'):
            tensors = set(tiny.published_names(component, tiny.build(component, config)))
        left = {name for name in tensors if name.rpartition('.')[0] not in found[component]}
        assert left == fused.get(component, set()) & tensors, component


@pytest.mark.parametrize(
    ('name', 'canonical'),
    [
        (
            'cond_stage_model.transformer.encoder.layers.0.mlp.fc1.weight',
            'cond_stage_model.transformer.text_model.encoder.layers.0.mlp.fc1.weight',
        ),
        (
            'conditioner.embedders.0.transformer.final_layer_norm.bias',
            'conditioner.embedders.0.transformer.text_model.final_layer_norm.bias',
        ),
        *2 * [('cond_stage_model.transformer.text_model.embeddings.token_embedding.weight',) * 2],
        ('cond_stage_model.model.transformer.resblocks.0.ln_1.weight',) * 2,
        ('model.diffusion_model.out.2.weight',) * 2,
    ],
)
def test_names_without_their_outer_part_are_the_usual_ones(name, canonical):
    assert names.canonical(name) == canonical
    assert names.canonical(canonical) == canonical


@pytest.mark.parametrize(
    ('name', 'ignored'),
    [
        ('alphas_cumprod', True),
        ('low_scale_model.sqrt_one_minus_alphas_cumprod', True),
        ('model_ema.decay', True),
        ('first_stage_model.loss.discriminator.main.0.weight', True),
        ('cond_stage_model.model.logit_scale', True),
        ('cond_stage_model.model.text_projection', True),
        ('cond_stage_model.model.transformer.resblocks.23.ln_1.weight', True),
        ('cond_stage_model.model.transformer.resblocks.22.ln_1.weight', False),
        ('v_pred', True),
        ('conditioner.embedders.0.transformer.text_projection.weight', True),
        ('conditioner.embedders.1.model.text_projection', False),  # it is a part of SDXL
        ('model.diffusion_model.out.2.weight', False),
        ('first_stage_model.encoder.conv_in.weight', False),
    ],
)
def test_only_what_no_network_needs_is_left_out(name, ignored):
    assert bool(names.IGNORED.fullmatch(name)) is ignored


def test_open_clip_joins_query_key_and_value_in_this_order():
    fused = names.open_clip_fused({'num_hidden_layers': 2})
    assert len(fused) == 4
    layer = 'text_model.encoder.layers.1.self_attn'
    assert fused['transformer.resblocks.1.attn.in_proj_bias'] == [f'{layer}.{part}_proj.bias' for part in 'qkv']
