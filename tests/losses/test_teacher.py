"""Class examples that are held to the frozen model: its answer is their target, in every stage, and nothing else is."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from dreambooth_jax.data.feed import Feed
from dreambooth_jax.data.pairs import most_class_examples
from dreambooth_jax.losses.denoising import EMPTY_PROMPT, Objective
from dreambooth_jax.training.placement import Fsdp, Pmap
from dreambooth_jax.training.state import init_state
from dreambooth_jax.training.step import make_train_step
from tests.support import small_stages as small
from tests.support.torch_reference import quick_jit

ENLARGING = dict(noising_schedule=small.schedule(), noise_level=(0, 50))
# Stage, its settings, and the channels that its network reads and writes.
KINDS = {
    'pixel': (small.pixel_loss, {}, 3, 3),
    'super_resolution': (small.enlarging_loss, dict(ENLARGING, factor=2, crop=4), 6, 3),
    'latent': (small.latent_loss, dict(scaling_factor=0.5), 4, 4),
    'latent_super_resolution': (small.latent_enlarging_loss, dict(ENLARGING, scaling_factor=0.5), 7, 4),
}
# The class prompts that each image is shown under in turn; they differ from the instance prompts.
CLASS_PROMPTS = np.array([[3, 2], [3, 2], [3, 2], [2, 3], [2, 3], [2, 3]], np.int32)
EXAMPLES = 6
CLASS = np.arange(EXAMPLES) >= 2  # two instance examples, then class examples


def data(**changes):
    """What all stages together read."""
    rng = np.random.default_rng(1)
    made = small.frozen()
    return {
        **made,
        'moments': rng.normal(size=(small.IMAGES, 8, 8, 8)).astype(np.float32),
        'low': rng.uniform(-1, 1, (small.IMAGES, 8, 8, 3)).astype(np.float32),
        'class_prompt_of': CLASS_PROMPTS,
        'teacher_text': made['text'],
        **changes,
    }


def batch():
    own = {'is_instance': (~CLASS).astype(np.float32), 'taught': CLASS, 'turn': np.arange(EXAMPLES) + 4}
    return {**small.batch(EXAMPLES), **own}


def kernels(kind, learned=False, seed=0):
    *_, inputs, outputs = KINDS[kind]
    return small.kernel(inputs, outputs * (1 + learned), seed)


def example_losses(
    kind,
    params,
    frozen,
    *,
    examples=None,
    denoiser=small.denoiser,
    class_examples=4,
    teacher=True,
    encode=None,
    **settings,
):
    """f32[ROWS], their parts, and the gradient of the class examples' sum."""
    stage_of, options, *_ = KINDS[kind]
    stage = stage_of(
        **options,
        denoiser=denoiser,
        encode=encode,
        teacher=small.teacher(denoiser, class_examples) if teacher else None,
        **{'schedule': small.schedule(), **settings},
    )

    def total(params, frozen, examples, keys):
        loss, parts = stage.loss(params, frozen, examples, keys)
        return jnp.sum(CLASS * loss), (loss, parts)

    compute = quick_jit(jax.grad(total, has_aux=True))
    made = compute(params, jax.tree.map(jnp.asarray, frozen), examples or batch(), small.keys(EXAMPLES))
    gradient, (loss, parts) = jax.tree.map(np.asarray, made)
    return loss, parts, gradient


def moved(params, by=0.01):
    rng = np.random.default_rng(9)
    return jax.tree.map(lambda x: x + by * rng.normal(size=x.shape).astype(np.float32), params)


@pytest.mark.parametrize(
    ('kind', 'class_examples'),
    [
        ('pixel', 4),
        *(pytest.param(kind, 4, marks=pytest.mark.slow) for kind in list(KINDS)[1:]),
        ('super_resolution', None),
        ('pixel', 5),
    ],
)
def test_before_training_class_examples_have_no_loss_and_the_others_theirs(kind, class_examples):
    params = kernels(kind)
    frozen = data(teacher=params['unet'])
    settings = dict(objective=Objective(random_flip=False, prompt_dropout=0.3, min_snr_gamma=5.0))
    loss, _, gradient = example_losses(kind, params, frozen, class_examples=class_examples, **settings)
    assert loss[CLASS].max() < 1e-12 and np.abs(gradient['unet']['kernel']).max() < 1e-5
    plain, _, pull = example_losses(kind, params, frozen, teacher=False, **settings)
    np.testing.assert_allclose(loss[~CLASS], plain[~CLASS], rtol=1e-6)
    assert plain[CLASS].min() > 1e-3 and np.abs(pull['unet']['kernel']).max() > 1e-2


@pytest.mark.parametrize('kind', KINDS)
def test_after_training_class_examples_pull_back(kind):
    start = kernels(kind)
    params = moved(start)
    loss, parts, gradient = example_losses(kind, params, data(teacher=start['unet']))
    assert loss[CLASS].min() > 1e-6
    # The network is linear in its kernel, so the loss is a square of the way back.
    away = params['unet']['kernel'] - start['unet']['kernel']
    assert np.sum(away * gradient['unet']['kernel']) == pytest.approx(2 * loss[CLASS].sum(), rel=1e-4)
    np.testing.assert_array_equal(loss, parts['denoising'])


def test_the_loss_of_a_class_example_is_the_weighted_distance_of_the_two_answers():
    start, examples, gamma = kernels('pixel'), batch(), 5.0
    params, schedule = moved(start), small.schedule('v_prediction')
    seen = []

    def spy(params, x, t, encoder_hidden_states):
        answer = small.denoiser(params, x, t, encoder_hidden_states)
        look = lambda *arrays: seen.append([np.asarray(array) for array in arrays])  # noqa: E731
        jax.debug.callback(look, x, t, encoder_hidden_states, answer)
        return answer

    loss, _, _ = example_losses(
        'pixel',
        params,
        data(teacher=start['unet']),
        denoiser=spy,
        schedule=schedule,
        objective=Objective(min_snr_gamma=gamma),
    )
    jax.effects_barrier()
    (x, t, text, theirs), (all_x, all_t, all_text, ours) = sorted(seen, key=lambda arrays: len(arrays[0]))
    # It is asked about the class examples alone, in the same words: those of the class.
    assert len(x) == CLASS.sum() < len(all_x)
    for teachers, students in ((x, all_x), (t, all_t), (text, all_text)):
        np.testing.assert_array_equal(teachers, students[CLASS])
    words = data()['text']['encoder_hidden_states']
    in_turn = CLASS_PROMPTS[examples['image'], examples['turn'] % 2]
    np.testing.assert_array_equal(all_text[CLASS], words[in_turn[CLASS]])
    np.testing.assert_array_equal(all_text[~CLASS], words[data()['prompt_of'][examples['image'][~CLASS]]])
    snr = np.asarray(schedule.snr(jnp.asarray(t)))
    distance = np.square(ours[CLASS] - theirs).mean(axis=(1, 2, 3))
    np.testing.assert_allclose(loss[CLASS], distance * np.minimum(snr, gamma) / (snr + 1), rtol=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize('weight', [0.5, 0.0])
def test_the_variance_of_a_class_example_is_held_to_that_of_the_frozen_model(weight):
    start = kernels('pixel', learned=True)
    frozen = data(teacher=start['unet'])
    settings = dict(schedule=small.schedule(variance_type='learned_range'), objective=Objective(variance_weight=weight))
    loss, parts, _ = example_losses('pixel', start, frozen, **settings)
    assert loss[CLASS].max() < 1e-12
    params = {'unet': {'kernel': start['unet']['kernel'] + np.float32([0, 0, 0, 0.1, 0.1, 0.1])}}
    loss, parts, gradient = example_losses('pixel', params, frozen, **settings)
    assert parts['denoising'][CLASS].max() < 1e-12 and np.abs(gradient['unet']['kernel'][..., :3]).max() < 1e-5
    if weight == 0:  # a variance that does not train is not held either
        assert parts.keys() == {'denoising'} and loss[CLASS].max() < 1e-12
        return
    assert parts['variance'][CLASS].min() > 1e-4 and gradient['unet']['kernel'][..., 3:].max() > 1e-4
    np.testing.assert_allclose(loss, parts['denoising'] + weight * parts['variance'], rtol=1e-6)
    _, plain, _ = example_losses('pixel', params, frozen, teacher=False, **settings)
    np.testing.assert_allclose(parts['variance'][~CLASS], plain['variance'][~CLASS], rtol=1e-6)


def test_masks_weigh_instance_examples_alone():
    start = kernels('pixel', learned=True)
    params = moved(start)
    masks = np.full((small.IMAGES, 8, 8, 1), 255, np.uint8)
    masks[:, :4] = 0
    settings = dict(schedule=small.schedule(variance_type='learned_range'))
    frozen = data(teacher=start['unet'])
    whole, _, _ = example_losses('pixel', params, frozen, **settings)
    masked, _, _ = example_losses('pixel', params, {**frozen, 'masks': masks}, **settings)
    np.testing.assert_allclose(masked[CLASS], whole[CLASS], rtol=1e-5)
    assert (np.abs(masked[~CLASS] - whole[~CLASS]) > 1e-3).all()


def encode(params, tokens):
    return {'encoder_hidden_states': jnp.tanh(params['text_encoder']['table'][tokens['ids']])}


def test_a_trained_text_encoder_is_held_to_the_frozen_one():
    table = np.random.default_rng(5).normal(size=(7, small.WIDTH)).astype(np.float32)
    params = {**kernels('pixel'), 'text_encoder': {'table': table}}
    frozen = data(teacher=params['unet'])
    frozen['teacher_text'] = jax.tree.map(np.asarray, encode(params, frozen['tokens']))
    del frozen['text']
    loss, _, _ = example_losses('pixel', params, frozen, encode=encode)
    assert loss[CLASS].max() < 1e-12
    params['text_encoder'] = moved(params['text_encoder'], 0.1)
    loss, _, gradient = example_losses('pixel', params, frozen, encode=encode)
    assert loss[CLASS].min() > 1e-8
    away = params['text_encoder']['table'] - table
    assert np.sum(away * gradient['text_encoder']['table']) > 0


def test_class_examples_that_are_not_taught_learn_from_their_images():
    taught = CLASS & (np.arange(EXAMPLES) % 2 == 0)
    start = kernels('pixel')
    frozen, some = data(teacher=start['unet']), {**batch(), 'taught': taught}
    # Without a teacher, but with the class prompts' places, which `taught` chooses.
    plain, _, _ = example_losses('pixel', start, frozen, teacher=False, examples=some)
    loss, _, _ = example_losses('pixel', start, frozen, examples=some)
    assert loss[taught].max() < 1e-12 < plain[taught].min()
    np.testing.assert_allclose(loss[~taught], plain[~taught], rtol=1e-6)


def test_a_dropped_class_prompt_is_held_to_the_frozen_models_answer_to_none():
    start = kernels('pixel')
    frozen = data(teacher=start['unet'])
    empty = frozen['text']['encoder_hidden_states'].copy()
    empty[EMPTY_PROMPT] += 1.0
    settings = dict(objective=Objective(prompt_dropout=1.0))
    loss, _, _ = example_losses('pixel', start, frozen, **settings)
    assert loss[CLASS].max() < 1e-12
    loss, _, _ = example_losses('pixel', start, {**frozen, 'text': {'encoder_hidden_states': empty}}, **settings)
    np.testing.assert_allclose(loss[CLASS], 1.0, rtol=1e-4)


def steps(placement, gradient_accumulation_steps, count=3):
    """Weights after some steps of SGD on three instance and three class examples, and the numbers of each."""
    feed = Feed(0, count, (small.IMAGES,), 0, taught='all')
    examples = feed.batch(3, 3, 0.7, placement.devices, gradient_accumulation_steps)
    start = kernels('pixel')
    class_examples = (
        most_class_examples(examples, placement.devices, gradient_accumulation_steps)
        if isinstance(placement, Pmap)
        else None
    )
    teacher = small.teacher(small.denoiser, class_examples)
    stage = small.pixel_loss(denoiser=small.denoiser, schedule=small.schedule(), teacher=teacher)
    tx = optax.sgd(0.5)
    make = functools.partial(
        make_train_step,
        stage.loss,
        tx,
        pick=feed.pick,
        gradient_accumulation_steps=gradient_accumulation_steps,
        unroll=True,
    )
    step = placement.compile(lambda axis: make(axis_name=axis))
    state = placement.place_state(lambda params: init_state(params, tx, ema=False), start)
    frozen = placement.place_state(lambda data: data, {**data(teacher=start['unet']), **feed.arrays})
    key, examples = placement.place_state(lambda: jax.random.key(3)), placement.place_batch(examples)
    numbers = []
    for _ in range(count):
        state, metrics = step(state, frozen, key, examples)
        numbers.append(placement.fetch(metrics))
    return np.asarray(state.params['unet']['kernel']), numbers


@functools.cache
def on_one_device():
    return steps(Pmap(jax.devices()[:1]), 1)


@pytest.mark.slow
@pytest.mark.parametrize(
    ('placement', 'gradient_accumulation_steps'),
    [
        (lambda: Pmap(jax.devices()[:1]), 3),
        (lambda: Pmap(jax.devices()[:4]), 1),
        (lambda: Pmap(jax.devices()[:3]), 2),
        (lambda: Fsdp(128, jax.devices()[:4]), 1),
    ],
    ids=['micro-batches', 'pmap', 'pmap and micro-batches', 'fsdp'],
)
def test_any_split_of_the_examples_takes_the_same_steps(placement, gradient_accumulation_steps):
    kernel, numbers = steps(placement(), gradient_accumulation_steps)
    expected, theirs = on_one_device()
    np.testing.assert_allclose(kernel, expected, rtol=1e-4, atol=1e-6)
    for ours, other in zip(numbers, theirs, strict=True):
        np.testing.assert_allclose(ours['instance_loss'], other['instance_loss'], rtol=1e-4)
        np.testing.assert_allclose(ours['prior_loss'], other['prior_loss'], rtol=1e-3, atol=1e-12)
    assert theirs[0]['prior_loss'][0] < 1e-12 and theirs[1]['prior_loss'][0] > 1e-6
