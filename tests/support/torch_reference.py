"""The PyTorch side of the parity tests: seeded random weights, and their translation to our names and axes.

The translation is written from torch's module types and knows nothing of our networks or of weights/mapping.py, so that
a mistake there cannot hide here.
"""

import jax
import jax.numpy as jnp
import numpy as np
import torch
from torch import nn


def randomise(module: nn.Module, seed: int, std: float = 0.05) -> nn.Module:
    """Overwrites every parameter, those that start at zero too: norms near one, everything else near zero."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for owner in module.modules():
            for name, parameter in owner.named_parameters(recurse=False):
                noise = torch.randn(parameter.shape, generator=generator) * std
                parameter.copy_(noise + 1 if name == 'weight' and parameter.ndim == 1 else noise)
    return module.eval()


def to_ours(module: nn.Module, read=lambda parameter: parameter, ignored=()) -> dict[str, jnp.ndarray]:
    """{our name: array with our axes} of every parameter (or of `read(parameter)`, e.g. its gradient)."""
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
    """{our name: gradient with our axes}; zero where torch has none."""
    return to_ours(module, lambda p: torch.zeros_like(p) if p.grad is None else p.grad, ignored)


def nchw(x) -> torch.Tensor:
    """f[B, H, W, C] -> torch f[B, C, H, W]."""
    return torch.from_numpy(np.array(x)).permute(0, 3, 1, 2).contiguous()


def nhwc(x: torch.Tensor) -> np.ndarray:
    """torch f[B, C, H, W] -> f[B, H, W, C]."""
    return x.detach().permute(0, 2, 3, 1).numpy()


def quick_jit(function):
    """jax.jit without the backend's optimisations: half the compile time, for code that runs once."""
    return jax.jit(function, compiler_options={'xla_backend_optimization_level': 0})


def largest_relative_difference(ours, theirs) -> float:
    """max |ours - theirs| / max |theirs|."""
    ours, theirs = np.asarray(ours), np.asarray(theirs)
    return float(np.abs(ours - theirs).max() / (np.abs(theirs).max() + 1e-12))


def assert_same_gradients(ours, theirs, tolerance=1e-3):
    """{name: array} of both sides agree, each by largest_relative_difference.

    What a bias that all keys share adds moves no softmax: its gradient is rounding on both sides, and so is left out.
    """
    floor = 1e-6 * max(float(np.abs(value).max()) for value in theirs.values())
    differ = {
        name: largest_relative_difference(ours[name], value)
        for name, value in theirs.items()
        if np.abs(ours[name] - value).max() > floor
    }
    assert {name: value for name, value in differ.items() if value >= tolerance} == {}
