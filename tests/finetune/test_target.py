"""The devices that a plan is for: those at hand unless a TPU is named, which is one sentence where it cannot be one."""

import jax
import pytest
from jax.experimental import topologies

from dreambooth_jax.config import ConfigError
from dreambooth_jax.finetune import target


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
    try:
        with target.planned_for('v5e:1x2') as where:
            assert jax.default_backend() == 'tpu'
            assert (where.count, where.first, where.present) == (2, chips[0], False)
            assert where.name == '2 x TPU v5 lite (v5e:1x2, not here)'
            assert where.compiler == 'XLA for v5e:1x2, ahead of time'
            if fails:
                raise KeyError
    except KeyError:
        assert fails
    assert jax.default_backend() == 'cpu' and asked == [('v5e:1x2', {'platform': 'tpu'})]


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
