"""What of a stage's networks trains: where LoRA's targets must match, and where they need not."""

import logging
import re

import jax.numpy as jnp
import numpy as np
import pytest

from dreambooth_jax.config import ConfigError, DreamBoothConfig, resolve
from dreambooth_jax.finetune.stage import check_lora_targets, trained_components
from dreambooth_jax.finetune.trainable import make_trainable
from dreambooth_jax.generation.cascade import Cascade
from dreambooth_jax.models import lora
from dreambooth_jax.weights.pipeline import Network
from tests.support import made_pipelines, smallest_pipelines, tiny_pipelines, tiny_stable_diffusion

UNET, T5 = r'.*attentions.*\.to_q', r'.*SelfAttention\.q'


def config_of(targets, base=None, second=None):
    return resolve(
        DreamBoothConfig,
        {
            'model': 'tiny',
            'data': {'instance_dir': 'photos', 'instance_prompt': 'a sks dog', 'class_prompt': 'a dog'},
            'prior': {'weight': 0.0},
            'lora': {'rank': 2, 'targets': targets},
            'base': {'train_text_encoder': True, **(base or {})},
            'super_resolution': {'steps': 0, **(second or {})},
        },
    )


def cascade_of(second=False):
    return Cascade(tiny_pipelines.base(), tiny_pipelines.super_resolution() if second else None)


def two_text_encoders():
    """What counts here of a Stable Diffusion XL; nothing is generated."""
    configs = {**tiny_stable_diffusion.CONFIGS['sdxl'], 'unet': smallest_pipelines.LATENT_UNET}
    clip = {'text_encoder': 'CLIPTextModel', 'text_encoder_2': 'CLIPTextModelWithProjection'}
    networks = {
        component: tiny_pipelines.random_network(
            component, {**configs[component], 'model_type': 'clip_text_model', 'architectures': [name]}, seed=0
        )
        for component, name in clip.items()
    }
    tokenizer = tiny_pipelines.tokenizer_folder()
    return Cascade(
        made_pipelines.pipeline(
            'StableDiffusionXLPipeline',
            scheduler={},
            vae=Network(configs['vae'], None, {}),
            unet=tiny_pipelines.random_network('unet', configs['unet'], seed=0),
            tokenizer=tokenizer,
            **networks,
        )
    )


def trainable_of(config, cascade, name='base'):
    return make_trainable(
        getattr(cascade, name),
        trained_components(config, name, cascade),
        config.lora,
        dtype=jnp.float32,
        remat=False,
        seed=0,
    )


def adapted(trainable):
    return {
        component: {name.rpartition('.')[0] for name in params if lora.is_adapter(name)}
        for component, params in trainable.params.items()
    }


def test_a_target_of_each_network_is_enough():
    """REVIEW A11: these two were refused, each for the network that the other is of."""
    config, cascade = config_of((UNET, T5)), cascade_of()
    check_lora_targets(config, cascade)
    found = adapted(trainable_of(config, cascade))
    assert found.keys() == {'unet', 'text_encoder'}
    assert all(re.fullmatch(UNET, path) for path in found['unet'])
    assert all(re.fullmatch(T5, path) for path in found['text_encoder'])


@pytest.mark.parametrize(
    ('targets', 'trains', 'stays'), [((UNET,), 'unet', 'text_encoder'), ((T5,), 'text_encoder', 'unet')]
)
def test_a_network_without_a_target_is_not_trained_and_the_user_is_told(targets, trains, stays, caplog):
    config, cascade = config_of(targets), cascade_of()
    with caplog.at_level(logging.WARNING):
        check_lora_targets(config, cascade)
    assert [record.getMessage() for record in caplog.records] == [
        f'the {stays} of the base stage is not trained: config.lora.targets {targets} has no layer of it'
    ]
    trainable = trainable_of(config, cascade)
    assert trainable.params.keys() == {trains} and trainable.trains_text == (trains == 'text_encoder')
    assert stays == 'text_encoder' or 'unet' in trainable.frozen
    assert stays == 'unet' or 'text_encoder' not in trainable.frozen  # prompts are read once, before training
    plain = trainable.plain(trainable.params)
    assert plain.keys() == {trains}
    network = cascade.base.components[trains].params
    assert all(np.array_equal(plain[trains][name], value) for name, value in network.items())


def test_one_of_two_text_encoders_may_have_no_target():
    cascade = two_text_encoders()
    config = config_of((r'.*attn2\.to_q', 'text_projection'))  # of the second one alone
    check_lora_targets(config, cascade)
    trainable = trainable_of(config, cascade)
    assert trainable.params.keys() == {'unet', 'text_encoder_2'}
    assert trainable.apply.keys() == {'unet', 'text_encoder', 'text_encoder_2'} == trainable.frozen.keys()
    full = trainable.assemble(trainable.params, trainable.frozen)
    assert full.keys() == trainable.apply.keys()
    assert full['text_encoder'].keys() == cascade.base.components['text_encoder'].params.keys()


def test_a_target_may_be_of_another_stage():
    config, cascade = config_of((T5, 'conv_in'), {'train_denoiser': False}, {'steps': 1}), cascade_of(second=True)
    check_lora_targets(config, cascade)
    assert adapted(trainable_of(config, cascade)).keys() == {'text_encoder'}
    assert adapted(trainable_of(config, cascade, 'super_resolution')) == {'unet': {'conv_in'}}


@pytest.mark.parametrize(
    ('config', 'sentence'),
    [
        (
            config_of((UNET, T5), {'train_text_encoder': False}),
            r"config.lora: LoRA's target '.*SelfAttention\\.q' matches no linear or convolution layer of "
            r'unet of the base '
            'stage; it must match a whole path, such as ',
        ),
        (
            config_of((UNET, 'to_p')),
            "config.lora: LoRA's target 'to_p' matches no linear or convolution layer of unet of the base stage or "
            'text_encoder of the base stage; it must match a whole path, such as ',
        ),
        (
            config_of((T5,), None, {'steps': 1}),
            r"config.lora: LoRA's target '.*SelfAttention\\.q' matches no linear or convolution layer of unet of the "
            'super_resolution stage; it must match a whole path, such as ',
        ),
        (config_of(('(',)), "config.lora: LoRA's target '(' is no regular expression: "),
    ],
)
def test_a_target_that_matches_nowhere_is_named_before_the_run_begins(config, sentence):
    with pytest.raises(ConfigError) as caught:
        check_lora_targets(config, cascade_of(second=True))
    assert str(caught.value).startswith(sentence) and '\n' not in str(caught.value)
