"""Weights of PyTorch checkpoints <-> parameters of our networks, by one rule.

Our networks name their children as the checkpoints do (DESIGN.md, decision 2), so the type of the layer that owns a
parameter says everything: what torch calls its last name, and how torch orders its axes. There is no table per model,
nothing is guessed from shapes, and the way back (export) is the same rule.

Every parameter is filled exactly once and every tensor is used or named as ignored; anything else is one error.
"""

import re
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import jax
import numpy as np
from flax import nnx

from dreambooth_jax.weights.errors import WeightsError

__all__ = ['Alias', 'Parameter', 'WeightsError', 'export', 'load', 'torch_names']

Alias = tuple[str, str]  # (regular expression of a whole torch name, the name it stands for; may hold \1, \2, ...)

# Layer type -> {our last name: (torch's last name, the torch axis that each of our axes is)}; None keeps the order, and
# a name that is not here (bias, a bare nnx.Param) is the same on both sides.
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
    """Where a torch tensor goes."""

    path: str  # dotted path of ours, a key of Params
    axes: tuple[int, ...] | None  # ours = torch.transpose(axes); None: unchanged
    shape: tuple[int, ...]  # of the torch tensor


def _rules(layer: nnx.Module) -> dict:
    return next((rules for kind, rules in RULES.items() if isinstance(layer, kind)), {})


def torch_names(model: nnx.Module) -> dict[str, Parameter]:
    """{torch name: Parameter} of every parameter of a network.

    Args:
      model: concrete or abstract (nnx.eval_shape); only types, names and shapes are read.
    Raises: ValueError if two parameters have the same torch name, which is a mistake in the network.
    """
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
) -> dict[str, np.ndarray]:
    """A network's parameters out of a checkpoint's tensors.

    Args:
      abstract_model: the network, abstract or not; its own values are not read.
      tensors: {torch name: array}, as files.read_tensors gives them.
      aliases: other names of a tensor (aliases.py). If a checkpoint holds a tensor under two names, both must agree.
      ignored: regular expressions of whole names that the network has no use for.
      source: what to call the checkpoint in an error.
    Returns: {dotted path: f32 array}, on the host and possibly views; jit or a placement moves them to devices. It has
      exactly the keys of functional.split(model)[1].
    Raises: WeightsError, one sentence and a line for each tensor that is missing, unused, of the wrong shape or type,
      or there twice.
    """
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
        value = np.asarray(value, np.float32)
        value = value if axes is None else value.transpose(axes)
        if name in filled_by:
            if not (path in params and np.array_equal(params[path], value)):
                problems.append(f'duplicate: {given} and {filled_by[name]} both fill {path} and differ')
            continue
        params[path], filled_by[name] = value, given
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
    """The parameters as a PyTorch checkpoint names and orders them.

    Args:
      model: the network, abstract or not; its own values are not read.
      params: {dotted path: array}, all of the network's.
    Returns: {torch name: array} in the dtype of `params`, on the host, possibly views.
    Raises: WeightsError that lists every parameter that is missing, unknown or of the wrong shape.
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
