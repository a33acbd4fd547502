"""The devices that a plan is for: those at hand unless others are named, which is one sentence where it cannot be."""

import re

import jax
import pytest
from jax.experimental import topologies

from dreambooth_jax.config import ConfigError
from dreambooth_jax.finetune import cards, target
from dreambooth_jax.system import cuda


@pytest.mark.parametrize(('compiled', 'compiler'), [(False, None), (True, 'XLA for cpu')])
def test_without_a_topology_it_is_the_devices_at_hand(compiled, compiler):
    with target.planned_for(compiled=compiled) as where:
        assert (where.devices, where.present, where.compiler) == (None, True, compiler)
        assert where.count == jax.device_count() and where.first == jax.local_devices()[0]
        assert where.name == f'{jax.device_count()} x cpu'


class Chip:
    """A device of a topology."""

    device_kind = 'TPU v5 lite'


@pytest.mark.parametrize('fails', [False, True])
def test_what_is_read_inside_is_meant_for_the_tpu_and_afterwards_for_what_is_here(monkeypatch, fails):
    chips, asked = [Chip(), Chip()], []

    class Description:
        devices = chips

    def describe(name, **options):
        asked.append((name, options))
        return Description

    monkeypatch.setattr(topologies, 'get_topology_desc', describe)
    monkeypatch.setattr(
        cuda, 'capability', lambda: (7, 5)
    )  # a card that is here, with which the plan has nothing to do
    try:
        with target.planned_for('v5e:1x2') as where:
            assert jax.default_backend() == 'tpu' and cuda.capability() is None
            assert (where.count, where.first, where.present) == (2, chips[0], False)
            assert where.name == '2 x TPU v5 lite (v5e:1x2, not here)'
            assert where.compiler == 'XLA for v5e:1x2, ahead of time' and where.speed == 2 * 197e12
            if fails:
                raise KeyError
    except KeyError:
        assert fails
    assert jax.default_backend() == 'cpu' and asked == [('v5e:1x2', {'platform': 'tpu'})]
    assert cuda.capability() == (7, 5)


@pytest.mark.parametrize(
    'topology,alone', [('v6e:1x1', True), ('v4:1x1x1', True), ('v6e:2x2', False), ('v5e:1x16', False)]
)
def test_one_chip_is_a_host_of_its_own(monkeypatch, topology, alone):
    asked = []

    def fail(name, *, platform, **options):
        asked.append(options)
        raise RuntimeError('INVALID_ARGUMENT')

    monkeypatch.setattr(topologies, 'get_topology_desc', fail)
    with pytest.raises(ConfigError):
        with target.planned_for(topology):
            pass
    assert asked == [{'chips_per_host_bounds': (1, 1, 1)} if alone else {}]


@pytest.mark.parametrize(('topology', 'count'), [('h100', 1), ('h100:8', 8), ('t4', 1)])
def test_cards_are_planned_for_with_the_kernels_that_they_have(monkeypatch, topology, count):
    chips, asked = [Chip()] * count, []

    class Description:
        devices = chips

    monkeypatch.setattr(topologies, 'get_topology_desc', lambda **given: asked.append(given) or Description)
    monkeypatch.setenv('JAX_SKIP_CUDA_CONSTRAINTS_CHECK', '1')
    card = cards.CARDS[topology.partition(':')[0]]
    with target.planned_for(topology) as where:
        assert jax.default_backend() == 'gpu'
        assert cuda.capability() == {'h100': (8, 9), 't4': (7, 5)}[topology.partition(':')[0]]
        assert (where.count, where.memory, where.present) == (count, card.usable, False)
        assert where.compiler == f'XLA for {topology}, ahead of time'
        assert where.speed == count * card.speed
        assert where.compiler_options == {'xla_gpu_enable_triton_gemm': False}
    assert jax.default_backend() == 'cpu' and cuda.capability() is None
    assert asked == [
        {'platform': 'cuda', 'target_config': cards.target_config(card), 'topology': f'1x1x{count}'},
    ]


@pytest.mark.parametrize(
    ('topology', 'sentence'),
    [
        ('h100:0', '--topology=h100:0 must be the name of a card, or with their number such as h100:8'),
        ('h100:2x4', '--topology=h100:2x4 must be the name of a card, or with their number such as h100:8'),
        (
            'h100',
            "--topology=h100 needs JAX's plugin for CUDA, which compiles for NVIDIA cards and is not installed; "
            "install it: pip install 'jax[cuda12]'",
        ),
    ],
)
def test_cards_that_cannot_be_planned_for_are_one_sentence(monkeypatch, topology, sentence):
    def fail(**given):
        raise NotImplementedError('topology not implemented for cuda')

    monkeypatch.setattr(topologies, 'get_topology_desc', fail)
    monkeypatch.setenv('JAX_SKIP_CUDA_CONSTRAINTS_CHECK', '1')
    with pytest.raises(ConfigError, match=f'^{re.escape(sentence)}$'), target.planned_for(topology):
        pass
    assert jax.default_backend() == 'cpu'


@pytest.mark.parametrize(
    'error,sentence',
    [
        (
            'JAX TPU support not installed; cannot',
            'needs the TPU compiler, .*; install it: pip install libtpu',
        ),
        ('INVALID_ARGUMENT: Your TPU topology', 'is no TPU that the installed libtpu knows .INVALID.*such as v5e:2x4,'),
        ('ABORTED: Internal error when accessing', 'the compiler of libtpu does not start .ABORTED: .*; try again'),
    ],
)
def test_a_topology_that_cannot_be_planned_for_is_one_sentence(monkeypatch, error, sentence):
    def fail(*args, **kwargs):
        raise RuntimeError(f'{error}\nand more')

    monkeypatch.setattr(topologies, 'get_topology_desc', fail)
    with pytest.raises(ConfigError, match=f'^--topology=v5e:2x4:? {sentence}') as raised:
        with target.planned_for('v5e:2x4'):
            pass
    assert '\n' not in str(raised.value) and jax.default_backend() == 'cpu'
