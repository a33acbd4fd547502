"""For folders of tests on tiny images: compiled fast rather than running fast."""

import jax
import pytest
import torch


@pytest.fixture(scope='package', autouse=True)
def quick():
    """For tiny images: XLA without optimisations, and torch in one thread, as its threads wait for each other."""
    before = jax.config.read('jax_disable_most_optimizations'), torch.get_num_threads()
    jax.config.update('jax_disable_most_optimizations', True)
    torch.set_num_threads(1)
    yield
    jax.config.update('jax_disable_most_optimizations', before[0])
    torch.set_num_threads(before[1])
