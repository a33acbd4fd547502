"""One step body on one device, under pmap and under fsdp: SGD, so that Adam cannot hide a wrong scale."""

import jax
import numpy as np
import pytest

from dreambooth_jax.data import pairs
from dreambooth_jax.models import splash
from dreambooth_jax.training.checkpoint import Checkpoints
from dreambooth_jax.training.placement import AXIS, Fsdp, Pmap, make_placement
from tests.support import toy

MANY = ('pmap', 'fsdp')


@pytest.mark.parametrize('placement', MANY)
def test_four_devices_take_the_same_steps_as_one_also_with_padding(placement):
    examples = toy.batch(
        instance_examples=3, class_examples=3, prior_weight=0.7
    )  # 6 examples alone, 8 with padding on 4 devices
    one, many = toy.Run('one', 'sgd', examples), toy.Run(placement, 'sgd', examples)
    assert len(one.batch['slot']) == 6
    assert np.prod(many.batch['slot'].shape) == 8
    ours, theirs = many.steps(3), one.steps(3)
    toy.assert_same(ours, theirs, rtol=1e-5)
    toy.assert_same(many.state.params, one.state.params, atol=1e-6)
    toy.assert_same(many.state.ema, one.state.ema, atol=1e-6)
    assert int(many.state.step) == 3


@pytest.mark.parametrize('placement', MANY)
def test_four_devices_take_several_steps_in_one_dispatch(placement):
    one, many = toy.Run('one', 'sgd'), toy.Run(placement, 'sgd')
    toy.assert_same(many.steps(4, count=4), one.steps(4), rtol=1e-5)
    toy.assert_same(many.state.params, one.state.params, atol=1e-6)


@pytest.mark.parametrize('placement', toy.PLACEMENTS)
def test_state_has_no_device_axis_and_stays_where_it_was_placed(placement):
    run = toy.Run(placement)
    assert run.state.params['unet']['conv_in.kernel'].shape == (3, 16)
    before = [(leaf.shape, leaf.sharding) for leaf in jax.tree.leaves(run.state)]
    run.steps(1)
    for leaf, (shape, sharding) in zip(jax.tree.leaves(run.state), before, strict=True):
        assert leaf.shape == shape and leaf.sharding.is_equivalent_to(sharding, leaf.ndim)
    devices = {device for leaf in jax.tree.leaves(run.state) for device in leaf.sharding.device_set}
    assert len(devices) == run.placement.devices == (1 if placement == 'one' else 4)


def test_fsdp_shards_large_arrays_with_their_moments_and_copies_small_ones():
    state = toy.Run('fsdp').state
    moments = state.opt_state[1][0]
    for tree in (state.params, state.ema, moments.mu, moments.nu):
        kernel, bias = tree['unet']['conv_out.kernel'], tree['unet']['conv_out.bias']
        assert {shard.data.shape for shard in kernel.addressable_shards} == {(4, 6)}  # 16 x 6 along its longest axis
        assert bias.sharding.is_fully_replicated


def test_fsdp_copies_an_array_that_no_axis_can_share():
    layout = Fsdp(0, jax.devices()[:4]).shardings({'odd': np.zeros((3, 5)), 'even': np.zeros((3, 8))})
    assert layout['odd'].is_fully_replicated
    assert layout['even'].spec == jax.sharding.PartitionSpec(None, AXIS)


@pytest.mark.parametrize('placement', toy.PLACEMENTS)
def test_donation_leaves_the_arrays_alone_that_the_state_was_made_of(placement):
    start = jax.tree.map(jax.numpy.asarray, toy.params())
    made = toy.placed(placement).place_state(lambda params: (params, jax.tree.map(jax.numpy.copy, params)), start)
    jax.tree.map(lambda array: array.delete(), made[0])
    toy.assert_same(start, toy.params())
    toy.assert_same(made[1], toy.params())


@pytest.mark.parametrize('placement', MANY)
def test_batch_that_devices_cannot_share_evenly_is_refused(placement):
    with pytest.raises(ValueError, match='6 examples, which 4 devices cannot share evenly; pad'):
        toy.placed(placement).place_batch(toy.batch())


@pytest.mark.parametrize('placement', toy.PLACEMENTS)
def test_batch_is_placed_once_and_its_examples_keep_their_order(placement):
    examples = pairs.pad_examples(toy.batch(), 8)
    placed = toy.placed(placement).place_batch(examples)
    for name, value in placed.items():
        assert isinstance(value, jax.Array) and len(value.sharding.device_set) == toy.placed(placement).devices
        np.testing.assert_array_equal(np.asarray(value).reshape(-1), examples[name])


@pytest.mark.parametrize('before, after', [('pmap', 'fsdp'), ('fsdp', 'one'), ('one', 'pmap')])
def test_state_saved_under_one_placement_goes_on_under_another(before, after, tmp_path):
    run = toy.Run(before)
    run.steps(2)
    checkpoints = Checkpoints(tmp_path)
    checkpoints.save(2, run.placement.to_global(run.state), wait=True)
    other = toy.Run(after)
    other.state = checkpoints.restore(other.state)
    checkpoints.close()
    toy.assert_same(toy.arrays(other.state), toy.arrays(run.state))
    for leaf in jax.tree.leaves(other.state):
        assert len(leaf.sharding.device_set) == other.placement.devices
    toy.assert_same(other.steps(1), run.steps(1), rtol=1e-5)
    toy.assert_same(toy.arrays(other.state.params), toy.arrays(run.state.params), atol=1e-6)


def test_placements_are_made_by_name_over_all_devices():
    assert isinstance(make_placement('pmap'), Pmap)
    fsdp = make_placement('fsdp', fsdp_min_bytes=7)
    assert isinstance(fsdp, Fsdp) and fsdp.min_bytes == 7
    assert fsdp.devices == jax.device_count() == 4
    with pytest.raises(ValueError, match="'ddp' but must be one of"):
        make_placement('ddp')


@pytest.mark.parametrize('made', [Pmap, lambda: Fsdp(min_bytes=0)], ids=MANY)
def test_devices_keep_their_order_where_a_mesh_would_be_ordered_by_links(made, monkeypatch):
    """As on TPUs; images are generated with the same weights by devices in the order of jax.devices()."""
    devices = jax.devices()

    def by_links(*_, **__):
        return jax.sharding.Mesh(np.array(devices)[[0, 1, 3, 2]], (AXIS,))

    monkeypatch.setattr(jax, 'make_mesh', by_links)
    state = made().place_state(lambda: {'kernel': jax.numpy.arange(8.0)})
    mesh = state['kernel'].sharding.mesh
    assert list(mesh.devices.flat) == devices
    beside = jax.device_put(
        np.ones(8, np.float32),
        jax.sharding.NamedSharding(jax.sharding.Mesh(np.array(devices), ('data',)), jax.sharding.PartitionSpec()),
    )
    assert float(jax.jit(lambda x, y: (x * y).sum())(state['kernel'], beside)) == 28.0


@pytest.mark.parametrize('placement', toy.PLACEMENTS)
def test_weights_are_placed_as_the_state_is_and_only_once(placement):
    placement = toy.placed(placement)
    params = {'kernel': np.arange(1024, dtype=np.float32).reshape(8, 128), 'bias': np.ones(3, np.float32)}
    placed = placement.place(params)
    state = placement.place_state(lambda params: params, params)
    for name, value in placed.items():
        np.testing.assert_array_equal(value, params[name])
        assert value.sharding.is_equivalent_to(state[name].sharding, value.ndim)
    again = placement.place(placed)
    assert all(again[name] is placed[name] for name in params)


@pytest.mark.parametrize('placement', toy.PLACEMENTS)
def test_what_is_placed_whole_is_on_every_device(placement):
    placement, params = toy.placed(placement), {'kernel': np.arange(1024, dtype=np.float32).reshape(8, 128)}
    kernel = placement.place(params, whole=True)['kernel']
    assert [shard.data.shape for shard in kernel.addressable_shards] == [(8, 128)] * placement.devices
    assert placement.placed_shapes(params, whole=True)['kernel'].sharding == kernel.sharding


@pytest.mark.parametrize('placement', toy.PLACEMENTS)
def test_examples_are_split_over_the_devices_and_gathered_whole(placement):
    placement = toy.placed(placement)
    keys = jax.random.split(jax.random.key(3), 8)
    split = placement.split({'keys': keys, 'level': np.arange(8)})
    assert all(len(value.sharding.device_set) == placement.devices for value in jax.tree.leaves(split))
    assert split['level'].addressable_shards[0].data.shape == (8 // placement.devices,)
    np.testing.assert_array_equal(jax.random.key_data(split['keys']), jax.random.key_data(keys))
    gathered = placement.gather({'level': split['level'], 'host': np.ones(2)})
    assert all(isinstance(value, np.ndarray) for value in gathered.values())
    np.testing.assert_array_equal(gathered['level'], np.arange(8))


@pytest.mark.parametrize(('placement', 'shards'), [('one', 1), ('pmap', 1), ('fsdp', 4)])
def test_on_tpu_a_step_knows_by_how_many_devices_its_batch_is_shared(monkeypatch, placement, shards):
    """Attention by a kernel needs it (models/splash.py). The step stays the same."""
    expected = toy.Run(placement, 'sgd').steps(1)
    seen, original = set(), toy.loss

    def loss(*args):
        seen.add(splash.shards())
        return original(*args)

    monkeypatch.setattr(toy, 'loss', loss)
    monkeypatch.setattr(toy, 'step_for', toy.step_for.__wrapped__)  # one of its own
    monkeypatch.setattr(jax, 'default_backend', lambda: 'tpu')
    toy.assert_same(toy.Run(placement, 'sgd').steps(1), expected)
    assert seen == {shards}


@pytest.mark.parametrize('placement', toy.PLACEMENTS)
def test_elsewhere_programs_are_traced_without_a_mesh(placement):
    assert toy.placed(placement).call(splash.shards) is None
