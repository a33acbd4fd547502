"""The PyTorch side of the parity tests: seeded random weights, and their conversion to our names and axes.

The conversion uses only the types of torch's modules, and neither our networks nor weights/mapping.py, so a mistake
there cannot go unnoticed.
"""

import jax
import jax.numpy as jnp
import numpy as np
import torch
from torch import nn


def randomise(module: nn.Module, seed: int, std: float = 0.05) -> nn.Module:
    """Overwrites all parameters, also those that start at zero: norms are near one and everything else near zero."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for owner in module.modules():
            for name, parameter in owner.named_parameters(recurse=False):
                noise = torch.randn(parameter.shape, generator=generator) * std
                parameter.copy_(noise + 1 if name == 'weight' and parameter.ndim == 1 else noise)
    return module.eval()


def to_ours(module: nn.Module, read=lambda parameter: parameter, ignored=()) -> dict[str, jnp.ndarray]:
    """{our name: array with our axes} for every parameter, or for `read(parameter)`, such as its gradient."""
    found = {}
    for path, owner in module.named_modules():
        for name, parameter in owner.named_parameters(recurse=False):
            full = f'{path}.{name}' if path else name
            if full in ignored:
                continue
            value = read(parameter).detach().numpy()
            if name == 'weight' and isinstance(owner, nn.Linear):
                full, value = f'{path}.kernel', value.T
            elif name == 'weight' and isinstance(owner, nn.Conv2d):
                full, value = f'{path}.kernel', value.transpose(2, 3, 1, 0)
            elif name == 'weight' and isinstance(owner, nn.Embedding):
                full = f'{path}.embedding'
            elif name == 'weight':
                full = f'{path}.scale'
            found[full] = jnp.asarray(value)
    return found


def gradients(module: nn.Module, ignored=()) -> dict[str, jnp.ndarray]:
    """{our name: gradient with our axes}; it is zero where torch has none."""
    return to_ours(module, lambda p: torch.zeros_like(p) if p.grad is None else p.grad, ignored)


def nchw(x) -> torch.Tensor:
    """Converts f[B, H, W, C] to torch's f[B, C, H, W]."""
    return torch.from_numpy(np.array(x)).permute(0, 3, 1, 2).contiguous()


def nhwc(x: torch.Tensor) -> np.ndarray:
    """Converts torch's f[B, C, H, W] to f[B, H, W, C]."""
    return x.detach().permute(0, 2, 3, 1).numpy()


def quick_jit(function):
    """jax.jit without the backend's optimisations, which halves the time to compile code that runs once."""
    return jax.jit(function, compiler_options={'xla_backend_optimization_level': 0})


def largest_relative_difference(ours, theirs) -> float:
    """Returns max |ours - theirs| / max |theirs|."""
    ours, theirs = np.asarray(ours), np.asarray(theirs)
    return float(np.abs(ours - theirs).max() / (np.abs(theirs).max() + 1e-12))


def assert_near(ours, theirs, tolerance: float) -> None:
    """Checks that two arrays have one shape and differ by less than a share of the largest value of the reference.

    Float32 rounds relative to the sums that it adds up, so that small values among large ones are no more exact than
    these. The tolerances of the tests are about ten times what is measured: 1e-5 after some ten layers.
    """
    assert np.shape(ours) == np.shape(theirs)
    found = largest_relative_difference(ours, theirs)
    assert found < tolerance, f'{found:.1e} of the largest value'


def assert_same_gradients(ours, theirs, tolerance=1e-3):
    """Checks that both sides' {name: gradient} agree, each by largest_relative_difference.

    Gradients that differ by less than a rounding error of the largest one are not compared. One such gradient is that
    of a bias which is the same for all keys of an attention: it does not change the softmax.
    """
    floor = 1e-6 * max(float(np.abs(value).max()) for value in theirs.values())
    differ = {
        name: largest_relative_difference(ours[name], value)
        for name, value in theirs.items()
        if np.abs(ours[name] - value).max() > floor
    }
    assert {name: value for name, value in differ.items() if value >= tolerance} == {}
