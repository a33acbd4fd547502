"""The seam: the discrete process has all of it, and another kind of process needs nothing more to generate images."""

import inspect

import jax
import jax.numpy as jnp
import numpy as np

from dreambooth_jax.diffusion import samplers
from dreambooth_jax.diffusion.discrete_vp import DiscreteVP
from dreambooth_jax.diffusion.process import NoiseProcess
from dreambooth_jax.diffusion.step_table import Sampling, make_table


def test_the_discrete_process_has_every_method_with_the_same_arguments():
    methods = {name: each for name, each in vars(NoiseProcess).items() if inspect.isfunction(each) and name[0] != '_'}
    assert {'sample_times', 'network_time', 'add_noise', 'target', 'to_x0', 'step_table'} < set(methods)
    for name, method in methods.items():
        assert inspect.signature(getattr(DiscreteVP, name)) == inspect.signature(method), name
    fields = {*NoiseProcess.__annotations__, 'learns_variance'}
    assert all(name in DiscreteVP.__dataclass_fields__ or hasattr(DiscreteVP, name) for name in fields)


class Flow:
    """x_t = (1 - t) * x0 + t * noise with times in (0, 1); the network predicts noise - x0 and is told 1000 * t."""

    learns_variance = False

    def network_time(self, t):
        return 1000 * t

    def to_x0(self, prediction, x_t, alpha, sigma):
        return x_t - sigma * prediction

    def sampling(self, sampler):
        return Sampling('linspace', 0)

    def step_table(self, sampler, num_steps, eta=0.0):
        t = np.linspace(1, 0, num_steps + 1)
        now, after = t[:-1], t[1:]
        return make_table(t=now, alpha=1 - now, sigma=now, x=after / now, x0=1 - after / now)


def test_a_flow_generates_with_the_same_loop():
    keys = jax.random.split(jax.random.key(0), 2)
    x = samplers.initial_noise(keys, (4, 4, 3))
    told = []

    def denoise(x_t, t):
        jax.debug.callback(lambda t: told.append(float(t[0])), t, ordered=True)
        return jnp.cos(x_t) * t.reshape(-1, 1, 1, 1) / 1000

    found = samplers.sample(denoise, x, keys, schedule=Flow(), sampler='euler', num_steps=4)
    jax.effects_barrier()
    assert told == [1000.0, 750.0, 500.0, 250.0]
    expected = x
    for t in (1.0, 0.75, 0.5, 0.25):
        expected = expected - 0.25 * t * jnp.cos(expected)
    np.testing.assert_allclose(found, expected, atol=1e-6)
