"""The seam: both kinds of process have all of it, and the same loop generates images with either."""

import inspect

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dreambooth_jax.diffusion import samplers
from dreambooth_jax.diffusion.discrete_vp import DiscreteVP
from dreambooth_jax.diffusion.process import NoiseProcess
from dreambooth_jax.diffusion.rectified_flow import RectifiedFlow


@pytest.mark.parametrize('process', [DiscreteVP, RectifiedFlow])
def test_a_process_has_every_method_with_the_same_arguments(process):
    methods = {name: each for name, each in vars(NoiseProcess).items() if inspect.isfunction(each) and name[0] != '_'}
    assert {'sample_times', 'network_time', 'add_noise', 'target', 'to_x0', 'step_table'} < set(methods)
    for name, method in methods.items():
        assert inspect.signature(getattr(process, name)) == inspect.signature(method), name
    fields = {*NoiseProcess.__annotations__, 'learns_variance'}
    assert all(name in process.__dataclass_fields__ or hasattr(process, name) for name in fields)


def test_a_flow_generates_with_the_same_loop():
    keys = jax.random.split(jax.random.key(0), 2)
    x = samplers.initial_noise(keys, (4, 4, 3))
    told = []

    def denoise(x_t, t):
        jax.debug.callback(lambda t: told.append(float(t[0])), t, ordered=True)
        return jnp.cos(x_t) * t.reshape(-1, 1, 1, 1)

    found = samplers.sample(denoise, x, keys, schedule=RectifiedFlow(), sampler='euler', num_steps=4)
    jax.effects_barrier()
    assert told == [1.0, 0.75, 0.5, 0.25]
    expected = x
    for t in (1.0, 0.75, 0.5, 0.25):
        expected = expected - 0.25 * t * jnp.cos(expected)
    np.testing.assert_allclose(found, expected, atol=1e-6)
