"""Converts PyTorch checkpoints to the parameters of our networks and back, by one rule for all networks.

Our networks give their submodules the names of the checkpoints. So the type of the layer that
owns a parameter determines everything else: the last part of the name in torch, and the order of the axes in torch.
There is no table for each model, nothing is guessed from shapes, and export uses the same rule.

Every parameter must be filled exactly once, and every tensor must be used or listed as ignored; otherwise one error
lists all problems.
"""

import re
import weakref
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np
from flax import nnx

from dreambooth_jax.models import functional
from dreambooth_jax.weights.errors import WeightsError

__all__ = ['Alias', 'Parameter', 'WeightsError', 'export', 'load', 'torch_names']

Alias = tuple[str, str]  # (regular expression of a whole torch name, the name it stands for, which may use \1, \2, ...)

# Layer type -> {our last name: (torch's last name, torch axis for each of our axes)}. None means the same axes. A last
# name that is not listed (bias, or a bare nnx.Param) is the same in torch.
_NORM = {'scale': ('weight', None)}
RULES: dict[type[nnx.Module], dict[str, tuple[str, tuple[int, ...] | None]]] = {
    nnx.Linear: {'kernel': ('weight', (1, 0))},
    nnx.Conv: {'kernel': ('weight', (2, 3, 1, 0))},  # torch: out, in, height, width
    nnx.LayerNorm: _NORM,
    nnx.GroupNorm: _NORM,
    nnx.RMSNorm: _NORM,
    nnx.Embed: {'embedding': ('weight', None)},
}


class Parameter(NamedTuple):
    """The parameter of ours that a torch tensor fills."""

    path: str  # dotted path of our parameter, a key of Params
    axes: tuple[int, ...] | None  # our value is torch's value.transpose(axes); None means that it is unchanged
    shape: tuple[int, ...]  # shape of the torch tensor


def _rules(layer: nnx.Module) -> dict:
    return next((rules for kind, rules in RULES.items() if isinstance(layer, kind)), {})


# Going through a large network takes a second, and its names are needed to read, write and compare it.
_KNOWN: 'weakref.WeakKeyDictionary[nnx.Module, dict[str, Parameter]]' = weakref.WeakKeyDictionary()


def torch_names(model: nnx.Module) -> dict[str, Parameter]:
    """Returns {torch name: Parameter} for every parameter of a network.

    The result is kept with the network, so neither may be changed.

    Args:
      model: the network, with values or abstract (nnx.eval_shape); only types, names and shapes are read.

    Raises:
      ValueError: if two parameters have the same torch name, which is a mistake in the network's code.
    """
    if model not in _KNOWN:
        _KNOWN[model] = _torch_names(model)
    return _KNOWN[model]


def _torch_names(model: nnx.Module) -> dict[str, Parameter]:
    layers = dict(nnx.iter_modules(model))
    names = {}
    for path, variable in nnx.to_flat_state(nnx.state(model, nnx.Param)):
        *owner, leaf = path
        last, axes = _rules(layers[tuple(owner)]).get(leaf, (leaf, None))
        name, ours = '.'.join(map(str, (*owner, last))), '.'.join(map(str, path))
        if name in names:
            raise ValueError(f'{ours} and {names[name].path} would both be {name!r} in torch')
        shape = tuple(variable.get_value().shape)
        names[name] = Parameter(ours, axes, shape if axes is None else tuple(shape[i] for i in np.argsort(axes)))
    return names


def load(
    abstract_model: nnx.Module,
    tensors: Mapping[str, np.ndarray],
    *,
    aliases: Sequence[Alias] = (),
    ignored: Sequence[str] = (),
    source: str = 'the checkpoint',
    stored: Callable[[str, np.ndarray], Any] = functional.held,
) -> dict[str, Any]:
    """Converts the tensors of a checkpoint to the parameters of a network, one after the other.

    Args:
      abstract_model: the network, with values or abstract; its values are not read.
      tensors: {torch name: array}, as files.view_tensors or files.read_tensors returns them.
      aliases: other names of tensors (aliases.py). If a checkpoint holds a tensor under two names, both must be equal.
      ignored: regular expressions of whole names of tensors that the network does not use.
      source: name of the checkpoint for an error.
      stored: (dotted path, array in its axes and in the file's dtype) -> what is kept of it, an array or a tuple of
        arrays.

    Returns:
      {dotted path: array} with exactly the keys of functional.split(model)[1], each as `stored` keeps it. These are on
      the host; jit or a placement moves them to devices.

    Raises:
      WeightsError: one sentence and a line for each tensor that is missing, unused, duplicated, or of the wrong shape
        or type.
    """
    # Each tensor is assigned to one parameter. Problems are collected, so that one error lists all of them.
    wanted = torch_names(abstract_model)
    params, filled_by, problems = {}, {}, []
    for given, value in tensors.items():
        name = _resolved(given, wanted, aliases)
        if name not in wanted:
            if not any(re.fullmatch(pattern, given) for pattern in ignored):
                problems.append(f'unused: {given} {list(np.shape(value))}')
            continue
        path, axes, shape = wanted[name]
        if tuple(np.shape(value)) != shape:
            problems.append(f'wrong shape: {given} is {list(np.shape(value))} but must be {list(shape)}')
            filled_by.setdefault(name, given)
            continue
        value = np.asarray(value)
        if not jax.dtypes.issubdtype(value.dtype, np.floating):
            problems.append(f'wrong type: {given} is {value.dtype} but must be a floating-point tensor')
            filled_by.setdefault(name, given)
            continue
        value = stored(path, value if axes is None else value.transpose(axes))
        # Tied tensors may be stored under two names; this is harmless if their values are equal.
        if name in filled_by:
            if not (path in params and all(jax.tree.leaves(jax.tree.map(np.array_equal, params[path], value)))):
                problems.append(f'duplicate: {given} and {filled_by[name]} both fill {path} and differ')
            continue
        params[path], filled_by[name] = value, given
    # A parameter that no tensor fills would keep a meaningless value.
    problems += [f'missing: {name} {list(wanted[name].shape)}' for name in wanted if name not in filled_by]
    if problems:
        counts = {
            kind: sum(p.startswith(kind) for p in problems)
            for kind in ('missing', 'unused', 'wrong shape', 'wrong type', 'duplicate')
        }
        counted = ', '.join(f'{count} {kind}' for kind, count in counts.items() if count)
        sentence = (
            f'{source} does not fit this {type(abstract_model).__name__} ({counted}); use the weights that belong to '
            f'its configuration, or correct the configuration:'
        )
        raise WeightsError(sentence, problems)
    return {parameter.path: params[parameter.path] for parameter in wanted.values()}


def _resolved(name: str, wanted: Mapping[str, Parameter], aliases: Sequence[Alias]) -> str:
    if name in wanted:
        return name
    for pattern, stands_for in aliases:
        match = re.fullmatch(pattern, name)
        if match:
            return match.expand(stands_for)
    return name


def export(model: nnx.Module, params: Mapping[str, jax.Array | np.ndarray]) -> dict[str, np.ndarray]:
    """Converts the parameters of a network to the names and axes of a PyTorch checkpoint.

    Args:
      model: the network, with values or abstract; its values are not read.
      params: {dotted path: array}, all parameters of the network.

    Returns:
      {torch name: array} in the dtypes of `params`, on the host and possibly views.

    Raises:
      WeightsError: it lists every parameter that is missing, unknown or of the wrong shape.
    """
    names = torch_names(model)
    paths = {parameter.path for parameter in names.values()}
    problems = [f'unused: {path}' for path in params if path not in paths]
    tensors = {}
    for name, (path, axes, shape) in names.items():
        if path not in params:
            problems.append(f'missing: {path}')
            continue
        value = np.asarray(params[path])
        ours = shape if axes is None else tuple(shape[i] for i in axes)
        if value.shape != ours:
            problems.append(f'wrong shape: {path} is {list(value.shape)} but must be {list(ours)}')
            continue
        tensors[name] = value if axes is None else value.transpose(np.argsort(axes))
    if problems:
        raise WeightsError(f'these parameters are not those of this {type(model).__name__}:', problems)
    return tensors
