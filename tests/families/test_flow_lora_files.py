"""LoRA files that diffusers saved of a pipeline of a rectified flow: with them our networks compute what its own do."""

import copy
import functools

import numpy as np
import peft
import pytest
import torch
from diffusers.training_utils import _collate_lora_metadata

from dreambooth_jax.generation.adapters import with_lora
from dreambooth_jax.weights import lora_files
from tests.support import flow_models
from tests.support.flow_model import PROMPT
from tests.support.torch_reference import largest_relative_difference, nchw, nhwc, quick_jit

MODELS = {
    'klein': flow_models.KLEIN,
    'z_image': flow_models.Z_IMAGE,
    'flux': flow_models.FLUX,
    'sd3': flow_models.SD3,
}
PROMPTS = [PROMPT, 'a photo of a dog']
TIMES = np.array([0.3, 0.8], np.float32)
USUAL = {'r': 3, 'lora_alpha': 6, 'target_modules': ['to_q', 'to_k', 'to_v', 'to_out.0']}
# What PEFT is told of the transformer.
SETTINGS = {
    'alpha_is_not_rank': USUAL,
    'alpha_is_rank': {**USUAL, 'lora_alpha': 3},
    'all_layers': {**USUAL, 'target_modules': 'all-linear'},
    'several_ranks': {**USUAL, 'rank_pattern': {'to_v': 5}, 'alpha_pattern': {'to_k': 1}},
    'rslora': {**USUAL, 'use_rslora': True},
    'dora': {**USUAL, 'use_dora': True},
}
TEXT_SETTINGS = {'r': 2, 'lora_alpha': 1, 'target_modules': ['q_proj', 'k_proj', 'v_proj', 'out_proj']}
# Of the largest value of a prediction. Up to 9e-5 is measured: here adapters are merged into the kernels, there they
# are beside them. Without the adapters, a prediction differs by more than a tenth.
LIMIT = 5e-4


def adapted(network, settings, dtype=torch.float32):
    """A copy of a network of torch with adapters whose values are random and of this dtype."""
    config = peft.LoraConfig(init_lora_weights=False, **settings)
    # Their own add_adapter does this, but that of transformers asks for a newer PEFT.
    network = peft.inject_adapter_in_model(config, copy.deepcopy(network))
    network.peft_config = {'default': config}
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for name, value in network.named_parameters():
            if 'lora_' in name:
                noise = torch.randn(value.shape, generator=generator)
                value.copy_((value * (1 + 0.2 * noise) if 'magnitude' in name else 0.3 * noise).to(dtype))
    return network


def save(folder, pipe, networks, *, dtype=torch.float32, metadata=True):
    """Saves the adapters of networks as diffusers' training scripts do; the older ones save no metadata."""
    layers = {}
    for name, network in networks.items():
        tensors = peft.get_peft_model_state_dict(network)
        layers[f'{name}_lora_layers'] = {key: value.to(dtype).contiguous() for key, value in tensors.items()}
    type(pipe).save_lora_weights(folder, **layers, **(_collate_lora_metadata(networks) if metadata else {}))


@functools.cache
def prediction(name):
    base = MODELS[name].cascade.base
    return quick_jit(functools.partial(base.family.predict, base.denoiser.apply))


@functools.cache
def noisy(name):
    return np.random.default_rng(0).normal(size=(len(PROMPTS), *MODELS[name].shape)).astype(np.float32)


def predicted_by_torch(name, pipe):
    with torch.no_grad():
        velocity = MODELS[name].torch_velocity(
            pipe, pipe.transformer, nchw(noisy(name)), torch.from_numpy(TIMES), PROMPTS
        )
    return nhwc(velocity)


def check(name, folder, pipe):
    """With the file in the folder, ours predicts what this pipeline with active adapters does, and not without."""
    model = MODELS[name]
    cascade = with_lora(model.cascade, folder / lora_files.PEFT_FILE)
    conditioning = cascade.encode(PROMPTS)
    if not model.empty:
        conditioning = {**conditioning, 'guidance': np.ones(len(PROMPTS), np.float32)}
    found = prediction(name)(cascade.base.denoiser.params, noisy(name), TIMES, conditioning)
    expected = predicted_by_torch(name, pipe)
    assert largest_relative_difference(predicted_by_torch(name, model.tiny.torch_pipeline()), expected) > 0.1
    assert largest_relative_difference(found, expected) < LIMIT


def pipeline_with(pipe, networks):
    """The same pipeline with other networks."""
    return type(pipe).from_pipe(pipe, **networks)


# All but one are slow, because each model is compiled.
EACH = [
    pytest.param(name, case, marks=() if (name, case) == ('klein', 'alpha_is_not_rank') else pytest.mark.slow)
    for name in MODELS
    for case in SETTINGS
]


@pytest.mark.parametrize(('name', 'case'), EACH)
def test_adapters_of_the_transformer_are_read_with_what_the_file_says_of_them(name, case, tmp_path):
    pipe = MODELS[name].tiny.torch_pipeline()
    networks = {'transformer': adapted(pipe.transformer, SETTINGS[case])}
    save(tmp_path, pipe, networks)
    check(name, tmp_path, pipeline_with(pipe, networks))


@pytest.mark.slow
@pytest.mark.parametrize('name', MODELS)
def test_a_file_that_does_not_say_its_alpha_is_read_as_diffusers_reads_it(name, tmp_path):
    pipe = MODELS[name].tiny.torch_pipeline()
    save(tmp_path, pipe, {'transformer': adapted(pipe.transformer, USUAL)}, metadata=False)
    loaded = pipeline_with(pipe, {'transformer': copy.deepcopy(pipe.transformer)})
    loaded.load_lora_weights(tmp_path)
    check(name, tmp_path, loaded)


@pytest.mark.slow
@pytest.mark.parametrize('dtype', [torch.float16, torch.bfloat16])
def test_adapters_in_half_precision_are_read(dtype, tmp_path):
    pipe = MODELS['klein'].tiny.torch_pipeline()
    networks = {'transformer': adapted(pipe.transformer, USUAL, dtype)}
    save(tmp_path, pipe, networks, dtype=dtype)
    check('klein', tmp_path, pipeline_with(pipe, networks))


@pytest.mark.slow
@pytest.mark.parametrize(('name', 'texts'), [('flux', ['text_encoder']), ('sd3', ['text_encoder', 'text_encoder_2'])])
@pytest.mark.parametrize('metadata', [True, False])
def test_adapters_of_text_encoders_are_read_beside_those_of_the_transformer(name, texts, metadata, tmp_path):
    pipe = MODELS[name].tiny.torch_pipeline()
    # Without metadata alpha is the rank.
    settings, of_texts = ({**one, **({} if metadata else {'lora_alpha': one['r']})} for one in (USUAL, TEXT_SETTINGS))
    networks = {'transformer': adapted(pipe.transformer, settings)}
    networks |= {component: adapted(getattr(pipe, component), of_texts) for component in texts}
    save(tmp_path, pipe, networks, metadata=metadata)
    check(name, tmp_path, pipeline_with(pipe, networks))
    without = pipeline_with(pipe, {'transformer': networks['transformer']})
    moved = largest_relative_difference(
        predicted_by_torch(name, without), predicted_by_torch(name, pipeline_with(pipe, networks))
    )
    assert moved > 0.1
