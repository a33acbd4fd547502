"""LoRA on the transformers of rectified flows: steps of training are those of PEFT and torch."""

import copy

import jax
import jax.numpy as jnp
import numpy as np
import optax
import peft
import pytest
import torch

from dreambooth_jax.config import LoraConfig, OptimizerConfig
from dreambooth_jax.finetune.trainable import make_trainable
from dreambooth_jax.losses.denoising import DenoisingLoss, Objective
from dreambooth_jax.models import lora
from dreambooth_jax.training import optimizer, step
from dreambooth_jax.training.state import init_state
from tests.support import flow_models
from tests.support.flow_model import PROMPT
from tests.support.tiny_flow import ALPHA, RANK
from tests.support.torch_reference import largest_relative_difference

MODELS = {'klein': flow_models.KLEIN, 'z_image': flow_models.Z_IMAGE}
PROMPTS = [PROMPT, 'a photo of a dog']
LEARNING_RATE, EPSILON, CLIP = 0.01, 1e-3, 0.25


def with_peft(model):
    """A copy of diffusers' transformer with PEFT's adapters of the usual layers, whose values are those of ours."""
    transformer = copy.deepcopy(model.tiny.torch_pipeline().transformer)
    targets = '|'.join(model.cascade.base.family.lora_targets)
    transformer.requires_grad_(False)
    transformer.add_adapter(peft.LoraConfig(r=RANK, lora_alpha=ALPHA, target_modules=targets))
    matrices = matrices_of(transformer)
    assert matrices.keys() == model.lora.keys()
    with torch.no_grad():
        for name, parameter in matrices.items():
            parameter.copy_(torch.from_numpy(np.array(model.lora[name]).T))
    return transformer


def matrices_of(transformer):
    """PEFT's trainable parameters under our names; they are transposed."""
    return {
        name.replace('lora_A.default.weight', lora.A).replace('lora_B.default.weight', lora.B): parameter
        for name, parameter in transformer.named_parameters()
        if parameter.requires_grad
    }


def recording():
    """A part of an optimizer that changes nothing and keeps the last gradients as its state."""
    return optax.GradientTransformation(
        lambda params: jax.tree.map(jnp.zeros_like, params), lambda gradients, state, params=None: (gradients,) * 2
    )


def step_of(model, tx):
    """(our step, its frozen data, its batch) for two images, with adapters of the usual layers."""
    side = model.tiny.SIZE
    images = np.random.default_rng(0).integers(0, 256, (2, side, side, 3), np.uint8)
    settings = LoraConfig(rank=RANK, alpha=ALPHA)
    options = {'dtype': jnp.float32, 'remat': False, 'seed': 0}
    trainable = make_trainable(model.cascade.base, ('transformer',), settings, **options)
    assert trainable.params['transformer'].keys() == model.lora.keys()
    denoising = DenoisingLoss.of(model.cascade.base, trainable.apply['transformer'], objective=Objective())

    def loss(params, frozen, batch, keys):
        return denoising.loss(trainable.assemble(params, frozen['weights']), frozen, batch, keys)

    frozen, batch = model.examples(images, PROMPTS)
    return jax.jit(step.make_train_step(loss, tx)), {**frozen, 'weights': trainable.frozen}, batch, images


@pytest.mark.slow
@pytest.mark.parametrize('name', ['klein', 'z_image'])
def test_adamw_steps_on_adapters_equal_those_of_peft_and_torch(name):
    """Gradients, their norm and both matrices of every layer, in two steps: the second needs the moments of the first.

    Gradients are sums of thousands of float32 products in another order: they differ by up to 5e-5 of the largest of
    their matrix. AdamW with its usual epsilon divides the sizes away: its first step is the sign of a gradient, so that
    one which is nothing but rounding moves a number by a whole learning rate. With an epsilon near their own size, a
    step tells how large gradients are, and differs by up to 2.5e-4 learning rates. The limits are about ten times that.
    """
    model = MODELS[name]
    options = {'betas': (0.9, 0.99), 'weight_decay': 0.1}
    ours = OptimizerConfig(epsilon=EPSILON, grad_clip_norm=CLIP, **options)
    tx = optax.chain(recording(), optimizer.make_optimizer(LEARNING_RATE, ours))
    take_step, frozen, batch, images = step_of(model, tx)
    key, state = jax.random.key(3), init_state({'transformer': dict(model.lora)}, tx, ema=False)
    transformer = with_peft(model)
    matrices = matrices_of(transformer)
    adamw = torch.optim.AdamW(matrices.values(), lr=LEARNING_RATE, eps=EPSILON, **options)
    for number in range(2):
        before = state.params['transformer'], {path: matrix.detach().clone() for path, matrix in matrices.items()}
        state, metrics = take_step(state, frozen, key, batch)
        keys = step.example_keys(key, number, jnp.asarray(batch['slot']))
        expected = model.torch_losses(transformer, images, PROMPTS, keys).mean()
        adamw.zero_grad()
        expected.backward()
        gradients = {path: matrix.grad.numpy().T.copy() for path, matrix in matrices.items()}
        norm = torch.nn.utils.clip_grad_norm_(matrices.values(), CLIP)
        adamw.step()
        assert norm > CLIP
        assert float(metrics['loss'][0]) == pytest.approx(expected.item(), rel=1e-5)
        assert float(metrics['gradient_norm'][0]) == pytest.approx(norm.item(), rel=2e-5)
        for path, matrix in matrices.items():
            found = state.opt_state[0]['transformer'][path]
            assert largest_relative_difference(found, gradients[path]) < 5e-4, path
            moved = np.asarray(state.params['transformer'][path]) - before[0][path]
            wanted = (matrix.detach() - before[1][path]).numpy().T
            assert np.abs(wanted).max() > 0.1 * LEARNING_RATE
            assert np.abs(moved - wanted).max() < 2e-3 * LEARNING_RATE, path
