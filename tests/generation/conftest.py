import jax
import pytest
import torch


@pytest.fixture(scope='package', autouse=True)
def quick():
    """For tiny pictures: XLA without optimisations, torch in one thread (its pools wait for each other on few cores)."""
    before = jax.config.read('jax_disable_most_optimizations'), torch.get_num_threads()
    jax.config.update('jax_disable_most_optimizations', True)
    torch.set_num_threads(1)
    yield
    jax.config.update('jax_disable_most_optimizations', before[0])
    torch.set_num_threads(before[1])
