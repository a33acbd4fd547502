"""The dtype in which the networks of a training compute, as its settings say."""

from typing import Any

from dreambooth_jax.config import ConfigError
from dreambooth_jax.config.training import ParallelConfig
from dreambooth_jax.models import functional
from dreambooth_jax.system import cuda


def compute_dtype(parallel: ParallelConfig) -> Any:
    """Returns the dtype that the settings give, as functional.compute_dtype does.

    Raises:
      ConfigError: if it is bfloat16 and the card has none.
    """
    if parallel.dtype == 'bfloat16' and not cuda.has_bfloat16():
        version = '.'.join(map(str, cuda.capability()))
        raise ConfigError(
            f"config.parallel.dtype is 'bfloat16', in which cards of compute capability {version} cannot multiply; set "
            "it to 'auto' or 'float32'"
        )
    return functional.compute_dtype(parallel.dtype)
