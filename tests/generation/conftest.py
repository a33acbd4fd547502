import jax
import pytest


@pytest.fixture(scope='package', autouse=True)
def quick_compilation():
    """Without the backend's optimisations: samplers are compiled in half the time, and draw a few tiny pictures."""
    before = jax.config.read('jax_disable_most_optimizations')
    jax.config.update('jax_disable_most_optimizations', True)
    yield
    jax.config.update('jax_disable_most_optimizations', before)
