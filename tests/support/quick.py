"""A fixture for folders of tests on tiny images, where compiling takes longer than running."""

import jax
import pytest
import torch


@pytest.fixture(scope='package', autouse=True)
def quick():
    """Compiles without most optimisations, and uses one thread in torch, because its threads wait for each other."""
    before = jax.config.read('jax_disable_most_optimizations'), torch.get_num_threads()
    jax.config.update('jax_disable_most_optimizations', True)
    torch.set_num_threads(1)
    yield
    jax.config.update('jax_disable_most_optimizations', before[0])
    torch.set_num_threads(before[1])
