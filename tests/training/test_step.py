"""THE step: how examples are weighed, what is logged, what moves and what does not."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import torch
from diffusers.training_utils import EMAModel

from dreambooth_jax.config import OptimizerConfig
from dreambooth_jax.data import pairs
from dreambooth_jax.training import optimizer, step
from dreambooth_jax.training.state import init_state
from tests.support import toy


def groups(examples, losses):
    """(mean over instance examples, mean over class examples) without any weights."""
    losses, is_instance = np.asarray(losses, np.float64), np.asarray(examples['is_instance'])
    return losses[is_instance == 1].mean(), losses[is_instance == 0].mean()


@pytest.mark.parametrize('prior_weight', [0.7, 1.0, 3.0])
def test_loss_is_the_instance_mean_plus_lambda_times_the_class_mean(prior_weight):
    examples = toy.batch(prior_weight=prior_weight)
    run = toy.Run(examples=examples)
    instance, prior = groups(examples, toy.example_losses(toy.params(), toy.frozen(), examples, run.key, 0))
    numbers = run.steps(1)
    assert numbers['loss'][0] == pytest.approx(instance + prior_weight * prior, rel=1e-6)
    assert numbers['instance_loss'][0] == pytest.approx(instance, rel=1e-6)
    assert numbers['prior_loss'][0] == pytest.approx(prior, rel=1e-6)


def test_gradient_is_that_of_the_two_means():
    examples = toy.batch(prior_weight=0.7)
    run = toy.Run(kind='sgd', examples=examples)

    def two_means(params):
        losses = toy.example_losses(params, toy.frozen(), examples, run.key, 0)
        return losses[:3].mean() + 0.7 * losses[3:].mean()

    gradient = jax.jit(jax.grad(two_means))(toy.params())
    numbers = run.steps(1)
    expected = jax.tree.map(lambda p, g: p - 0.05 * g, toy.params(), gradient)
    toy.assert_same(run.state.params, expected, atol=1e-6)
    assert numbers['gradient_norm'][0] == pytest.approx(float(optax.tree.norm(gradient)), rel=1e-5)


def test_padding_changes_neither_the_loss_nor_what_is_logged_of_each_group():
    examples = toy.batch(instance_examples=3, class_examples=3, prior_weight=0.7)
    plain, padded = toy.Run(examples=examples), toy.Run(examples=pairs.pad_examples(examples, 8))
    assert len(padded.batch['slot']) == 8
    ours, theirs = padded.steps(2), plain.steps(2)
    assert {'instance_denoising', 'prior_denoising', 'instance_variance', 'prior_variance'} <= ours.keys()
    toy.assert_same(ours, theirs, rtol=1e-5)
    toy.assert_same(padded.state.params, plain.state.params, atol=1e-6)


def test_prior_weight_zero_equals_training_without_class_images():
    zero = toy.Run(examples=toy.batch(class_examples=3, prior_weight=0.0))
    without = toy.Run(examples=toy.batch(class_examples=0))
    toy.assert_same(zero.steps(4)['loss'], without.steps(4)['loss'], rtol=1e-5)
    toy.assert_same(zero.state.params, without.state.params, atol=1e-6)


def test_what_is_frozen_has_no_gradient_no_moments_and_does_not_move():
    def loss(params, frozen, batch, keys):
        examples = batch['weight'] * 0 + (params['unet']['a'] * frozen['text_encoder']) ** 2
        return examples, {}

    tx = optimizer.make_optimizer(0.1, OptimizerConfig(grad_clip_norm=None))
    state = init_state({'unet': {'a': jnp.float32(2.0)}}, tx, ema=False)
    frozen = {'text_encoder': jnp.float32(3.0)}
    made = jax.jit(step.make_train_step(loss, tx))
    state, metrics = made(state, frozen, jax.random.key(0), toy.batch())
    # The weights of the examples of lambda 0.7 sum up to 1.7: d/da of 1.7 * (3a)^2 and nothing of the encoder's.
    assert float(metrics['gradient_norm'][0]) == pytest.approx(1.7 * 2 * 9 * 2.0, rel=1e-6)
    assert float(frozen['text_encoder']) == 3.0
    assert state.params['unet'].keys() == {'a'} and float(state.params['unet']['a']) != 2.0
    assert not any('text_encoder' in str(path) for path, _ in jax.tree_util.tree_leaves_with_path(state))


def test_loss_that_is_averaged_over_the_batch_is_refused():
    made = step.make_train_step(lambda *_: (jnp.float32(1.0), {}), optax.sgd(0.1))
    state = init_state({'unet': {'a': jnp.float32(2.0)}}, optax.sgd(0.1), ema=False)
    with pytest.raises(ValueError, match=r'shape \(\) but must be one number per example, \(6,\)'):
        made(state, {}, jax.random.key(0), toy.batch())


@pytest.mark.parametrize('scale', [0.01, 100.0], ids=['below_the_clip', 'clipped'])
@pytest.mark.parametrize('text_learning_rate', [0.02, 0.1], ids=['one_rate', 'text_encoder_at_its_own'])
def test_adamw_step_equals_that_of_torch(scale, text_learning_rate):
    rng, learning_rate = np.random.default_rng(0), 0.02
    shapes = {'unet': {'a': (5, 3), 'b': (7,)}, 'text_encoder': {'c': (), 'd': (2, 3)}}

    def normal(times=1.0):
        return {
            part: {name: times * rng.normal(size=shape).astype(np.float32) for name, shape in tensors.items()}
            for part, tensors in shapes.items()
        }

    start, gradients = normal(), [normal(scale) for _ in range(3)]
    settings = dict(betas=(0.8, 0.95), weight_decay=0.1)

    def loss(params, frozen, batch, keys):  # its gradient is `frozen`
        product = sum(jax.tree.leaves(jax.tree.map(lambda a, b: jnp.sum(a * b), params, frozen)))
        return jnp.broadcast_to(product, batch['weight'].shape), {}

    multipliers = None if text_learning_rate == learning_rate else {'text_encoder': text_learning_rate / learning_rate}
    tx = optimizer.make_optimizer(
        learning_rate, OptimizerConfig(epsilon=1e-6, grad_clip_norm=1.0, **settings), multipliers=multipliers
    )
    made = jax.jit(step.make_train_step(loss, tx))
    state = init_state(start, tx, ema=False)

    theirs = jax.tree.map(lambda value: torch.nn.Parameter(torch.from_numpy(np.array(value))), start)
    adamw = torch.optim.AdamW(
        [
            {'params': list(theirs['unet'].values()), 'lr': learning_rate},
            {'params': list(theirs['text_encoder'].values()), 'lr': text_learning_rate},
        ],
        eps=1e-6,
        **settings,
    )
    for gradient in gradients:
        state, metrics = made(state, gradient, jax.random.key(0), toy.batch(class_examples=0))
        for parameter, value in zip(jax.tree.leaves(theirs), jax.tree.leaves(gradient), strict=True):
            parameter.grad = torch.from_numpy(np.array(value))
        norm = torch.nn.utils.clip_grad_norm_(jax.tree.leaves(theirs), 1.0)
        adamw.step()
        assert float(metrics['gradient_norm'][0]) == pytest.approx(float(norm), rel=1e-5)  # logged before clipping
    for part, tensors in theirs.items():
        moved = {name: np.asarray(state.params[part][name]) - start[part][name] for name in tensors}
        assert max(np.abs(value).max() for value in moved.values()) > (
            text_learning_rate if part == 'text_encoder' else learning_rate
        )
        for name, parameter in tensors.items():
            wanted = parameter.detach().numpy() - start[part][name]
            np.testing.assert_allclose(moved[name], wanted, rtol=1e-4, atol=1e-6)


def test_average_follows_the_weights_as_that_of_diffusers():
    run = toy.Run()
    parameters = [torch.nn.Parameter(torch.tensor(np.array(value))) for value in jax.tree.leaves(run.state.params)]
    theirs = EMAModel(parameters, decay=toy.EMA)
    for _ in range(12):
        run.steps(1)
        for parameter, value in zip(parameters, jax.tree.leaves(run.state.params), strict=True):
            parameter.data = torch.tensor(np.array(value))
        theirs.step(parameters)
    for ours, average in zip(jax.tree.leaves(run.state.ema), theirs.shadow_params, strict=True):
        np.testing.assert_allclose(ours, average.numpy(), atol=1e-6)
    assert run.state.best_params is run.state.ema


@pytest.mark.parametrize('highest', [0.5, 0.97, 0.9999])
def test_memory_of_the_average_grows_as_that_of_diffusers(highest):
    theirs = EMAModel([torch.zeros(1)], decay=highest)
    taken = np.array([0, 1, 2, 7, 8, 9, 100, 290, 1000, 100_000])
    ours = jax.vmap(lambda t: step.averaging_decay(t, highest))(jnp.asarray(taken, jnp.int32))
    np.testing.assert_allclose(ours, [theirs.get_decay(int(t) + 1) for t in taken], rtol=1e-6)


def test_held_variance_head_stays_bit_for_bit_while_the_rest_moves():
    run, start = toy.Run(kind='adamw_held'), toy.params()['unet']
    run.steps(6)
    for kept in (run.state.params['unet'], run.state.ema['unet']):
        for name in ('conv_out.kernel', 'conv_out.bias'):
            after = np.asarray(kept[name])
            np.testing.assert_array_equal(after[..., toy.CHANNELS :], start[name][..., toy.CHANNELS :])
            assert (after[..., : toy.CHANNELS] != start[name][..., : toy.CHANNELS]).all()
        for name in ('conv_in.kernel', 'conv_in.bias'):
            assert (np.asarray(kept[name]) != start[name]).all()
    # Without the masks weight decay and the loss move it.
    free = toy.Run()
    free.steps(1)
    assert (np.asarray(free.state.params['unet']['conv_out.bias']) != start['conv_out.bias']).all()


def test_variance_head_masks_of_a_network_without_one_hold_nothing():
    masks = optimizer.variance_head_masks({'conv_out.bias': np.zeros(3)})
    assert all((mask == 1).all() for mask in masks.values())


def test_several_steps_in_one_dispatch_equal_single_ones():
    single, scanned = toy.Run(), toy.Run()
    ours, theirs = scanned.steps(4, count=4), single.steps(4)
    assert ours['loss'].shape == (4,) and int(scanned.state.step) == 4
    toy.assert_same(ours, theirs, rtol=1e-5)
    toy.assert_same(scanned.state.params, single.state.params, atol=1e-6)
    toy.assert_same(scanned.state.ema, single.state.ema, atol=1e-6)


def random_numbers(at, slots, seed=0):
    keys = step.example_keys(jax.random.key(seed), jnp.int32(at), jnp.asarray(slots, jnp.int32))
    return np.asarray(jax.vmap(lambda key: jax.random.normal(key, (4,)))(keys))


def test_an_examples_random_numbers_do_not_depend_on_the_examples_beside_it():
    whole = random_numbers(3, range(8))
    # Not to the bit: newer JAX rounds the normal distribution's erf_inv by how many examples stand beside each other.
    np.testing.assert_allclose(
        np.concatenate([random_numbers(3, range(2)), random_numbers(3, range(2, 8))]), whole, atol=1e-6
    )
    np.testing.assert_allclose(random_numbers(3, [5, 1])[1], whole[1], atol=1e-6)


def test_random_numbers_differ_between_examples_steps_and_seeds():
    numbers = np.concatenate([random_numbers(at, range(4), seed) for at in range(3) for seed in range(2)])
    assert len(np.unique(numbers[:, 0])) == len(numbers)


def test_the_stream_of_images_is_not_that_of_noise():
    key = jax.random.key(0)
    streams = [jax.random.key_data(jax.random.fold_in(key, n)) for n in (step.EXAMPLES_STREAM, step.NOISE_STREAM)]
    assert (streams[0] != streams[1]).any()


def learning_rates(kind, steps=10, **options):
    schedule = optimizer.learning_rate_schedule(kind, 0.4, steps=steps, **options)
    return [float(schedule(at)) for at in range(steps + 1)]


def test_constant_rate_stays():
    assert learning_rates('constant') == pytest.approx([0.4] * 11)


def test_warm_up_is_linear_from_the_first_step_and_reaches_the_rate():
    assert learning_rates('warmup', warmup_steps=4) == pytest.approx([0.1, 0.2, 0.3] + [0.4] * 8)
    assert learning_rates('warmup', warmup_steps=1) == pytest.approx([0.4] * 11)
    assert learning_rates('cosine', warmup_steps=4)[:4] == pytest.approx([0.1, 0.2, 0.3, 0.4])


def test_cosine_rate_falls_to_zero_at_the_last_step():
    half = [0.2 * (1 + np.cos(np.pi * at / 10)) for at in range(11)]
    assert learning_rates('cosine') == pytest.approx(half, abs=1e-7)
    assert learning_rates('cosine', warmup_steps=4)[-1] == pytest.approx(0.0, abs=1e-7)


def test_unknown_rate_schedule_is_refused():
    with pytest.raises(ValueError, match='polynomial'):
        optimizer.learning_rate_schedule('polynomial', 1.0, steps=1)
