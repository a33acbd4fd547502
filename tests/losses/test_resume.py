"""3 + 3 steps equal 6, bit for bit, for each stage with a real network: weights, average, optimizer and numbers."""

import functools

import jax
import numpy as np
import pytest

from dreambooth_jax.config import OptimizerConfig
from dreambooth_jax.data import pairs
from dreambooth_jax.losses.denoising import Objective
from dreambooth_jax.models import functional
from dreambooth_jax.models.t5 import T5EncoderModel
from dreambooth_jax.models.unet import UNet2DConditionModel
from dreambooth_jax.training import optimizer, step
from dreambooth_jax.training.checkpoint import Checkpoints
from dreambooth_jax.training.placement import Pmap
from dreambooth_jax.training.state import init_state
from tests.support import small_stages as small
from tests.support import toy

SIDE = 8
UNET = {
    'act_fn': 'gelu',
    'addition_embed_type': 'text',
    'addition_embed_type_num_heads': 2,
    'attention_head_dim': 8,
    'block_out_channels': [8],
    'cross_attention_dim': 32,
    'cross_attention_norm': 'group_norm',
    'down_block_types': ['SimpleCrossAttnDownBlock2D'],
    'encoder_hid_dim': small.WIDTH,
    'in_channels': 3,
    'layers_per_block': 1,
    'mid_block_type': 'UNetMidBlock2DSimpleCrossAttn',
    'norm_num_groups': 4,
    'out_channels': 6,
    'resnet_time_scale_shift': 'scale_shift',
    'up_block_types': ['SimpleCrossAttnUpBlock2D'],
}
SUPER_RESOLUTION_UNET = {**UNET, 'in_channels': 6, 'class_embed_type': 'timestep', 'time_embedding_act_fn': 'gelu'}
TEXT_ENCODER = {
    'd_ff': 8,
    'd_kv': 4,
    'd_model': small.WIDTH,
    'feed_forward_proj': 'gated-gelu',
    'num_heads': 2,
    'num_layers': 1,
    'vocab_size': 7,
}
OBJECTIVE = Objective(min_snr_gamma=5.0, offset_noise=0.05, prompt_dropout=0.2, random_flip=True)


def network(kind, config, seed):
    return functional.init(lambda rngs: kind(config, rngs=rngs), seed)


def base():
    """The base stage with its text encoder."""
    unet, unet_params = network(UNet2DConditionModel, UNET, 0)
    encoder, encoder_params = network(T5EncoderModel, TEXT_ENCODER, 1)
    schedule = small.schedule('v_prediction', 'learned_range')

    def encode(params, tokens):
        return {'encoder_hidden_states': encoder(params['text_encoder'], tokens['ids'])}

    stage = small.pixel_loss(denoiser=unet, encode=encode, schedule=schedule, objective=OBJECTIVE)
    return stage, {'unet': unet_params, 'text_encoder': encoder_params}


def super_resolution():
    unet, unet_params = network(UNet2DConditionModel, SUPER_RESOLUTION_UNET, 2)
    stage = small.enlarging_loss(
        denoiser=unet,
        schedule=small.schedule('epsilon', 'learned_range'),
        noising_schedule=small.schedule(),
        factor=2,
        noise_level=(0, 50),
        crop=SIDE,
        objective=OBJECTIVE,
    )
    return stage, {'unet': unet_params}


class Run:
    """A stage's state and step on one device."""

    def __init__(self, made):
        stage, params = made()
        self.placement = Pmap(jax.devices()[:1])
        learning_rate = optimizer.learning_rate_schedule('cosine', 1e-3, steps=6, warmup_steps=2)
        tx = optimizer.make_optimizer(learning_rate, OptimizerConfig())
        self.new = functools.partial(
            self.placement.place_state, lambda params: init_state(params, tx, ema=True), params
        )
        self.batch = self.placement.place_batch(pairs.make_batch(2, 2, 2, 4, 1.0))
        self.data = self.placement.place_state(lambda data: data, small.frozen(2 * SIDE))
        self.key = self.placement.place_state(lambda: jax.random.key(3))
        make = functools.partial(step.make_train_step, stage.loss, tx, ema_decay=0.9, pick=self.pick)
        self.step = self.placement.compile(lambda axis: make(axis_name=axis))

    @staticmethod
    def pick(key, at, batch, frozen):
        return {**batch, 'image': pairs.image_index(key, at, batch, 4)}

    def steps(self, state, count):
        numbers = []
        for _ in range(count):
            state, metrics = self.step(state, self.data, self.key, self.batch)
            numbers.append(self.placement.fetch(metrics))
        return state, numbers


@pytest.mark.slow
@pytest.mark.parametrize('made', [base, pytest.param(super_resolution, marks=pytest.mark.slow)])
def test_three_and_three_steps_equal_six_bit_for_bit(made, tmp_path):
    run = Run(made)
    start = toy.arrays(run.new().params)
    whole, numbers = run.steps(run.new(), 6)
    first, _ = run.steps(run.new(), 3)
    checkpoints = Checkpoints(tmp_path)
    checkpoints.save(3, run.placement.to_global(first))
    checkpoints.close()
    second = Checkpoints(tmp_path).restore(run.new())
    second, later = run.steps(second, 3)
    toy.assert_same(toy.arrays(second), toy.arrays(whole))
    toy.assert_same(later, numbers[3:])
    assert later[0].keys() >= {'instance_denoising', 'prior_variance'}
    for component, tensors in start.items():  # it was training, of everything that it names
        still = [name for name, value in tensors.items() if np.array_equal(value, whole.params[component][name])]
        assert still == []
