"""LoRA and DoRA: small trainable matrices beside the frozen kernels of a network.

An adapted layer computes y = x W + bias + alpha / rank * (x A) B. The adapter is applied to the activations, because
adding its product to the kernel first would require the gradient of the whole kernel. An adapted layer is a Linear or
Conv with additional parameters, so the base parameters keep their names, and weights/ can still convert them by the
type of their layer:

    <path>.kernel, <path>.bias       as in the plain layer
    <path>.lora_a                    f32[in, rank], or f32[h, w, in, rank] for a convolution
    <path>.lora_b                    f32[rank, out]; for a convolution it acts as a 1x1 convolution
    <path>.lora_magnitude            f32[out], DoRA's norm of the kernel of each output

For both types of layer, the update of the kernel is alpha / rank * A @ B. If the kernel of an output is zero, it has no
direction that could be scaled, so its magnitude has no effect until an update makes the kernel nonzero.

A quantised kernel (quantised.py) may have an adapter too. DoRA's norms are then those of the kernel as it is computed
with, so that a new adapter changes nothing. What has been learned is merged into the kernel of the files instead, which
is a little nearer to what was meant.

Source: Hu et al. 2021 (LoRA); Liu et al. 2024 (DoRA, where the norm is a constant in the backward pass, section 4.3);
peft 0.21 tuners/lora/layer.py and dora.py.
"""

import difflib
import functools
import math
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from dreambooth_jax.models import functional, quantised
from dreambooth_jax.models.functional import Keys, Params

# Attention projections of the UNets (also IF's added keys and values), of CLIP and of T5.
ATTENTION_PROJECTIONS = (
    r'(.*\.)?(to_q|to_k|to_v|to_out\.0|add_k_proj|add_v_proj|self_attn\.(q|k|v|out)_proj|SelfAttention\.[qkvo])',
)
# Those of them that are of text encoders.
TEXT_PROJECTIONS = (r'(.*\.)?(self_attn\.(q|k|v|out)_proj|SelfAttention\.[qkvo])',)
NAMES = ('lora_a', 'lora_b', 'lora_magnitude')
A, B, MAGNITUDE = NAMES


class _Adapted:
    """Common part of LoRALinear and LoRAConv: it takes the attributes of the plain layer and adds a new adapter."""

    def __init__(self, layer: nnx.Linear | nnx.Conv, rank: int, alpha: float, dora: bool, key: jax.Array):
        functional.take_attributes(self, layer)
        self.lora_scale = alpha / rank
        kernel = self.kernel[...]
        self.lora_a = nnx.Param(_start_of_a(key, (*kernel.shape[:-1], rank)))
        self.lora_b = nnx.Param(jnp.zeros((rank, kernel.shape[-1]), jnp.float32))
        self.lora_magnitude = nnx.Param(_norm(kernel)) if dora else nnx.data(None)

    def __call__(self, x):
        result = super().__call__(x)
        x, a, b = self.promote_dtype((x, self.lora_a[...], self.lora_b[...]), dtype=self.dtype)
        update = self.lora_scale * (self.down(x, a) @ b)
        if self.lora_magnitude is None:
            return result + update
        bias = 0 if self.bias is None else self.bias[...].astype(result.dtype)
        kernel, a, b = (jax.lax.stop_gradient(p[...]) for p in (self.kernel, self.lora_a, self.lora_b))
        factor = _factor(self.lora_magnitude[...], kernel + self.lora_scale * (a @ b))
        return factor.astype(result.dtype) * (result - bias + update) + bias


class LoRALinear(_Adapted, nnx.Linear):
    """A Linear layer with an adapter: f[..., in] -> f[..., out]."""

    def down(self, x, a):
        """Multiplies by A: f[..., in], f[in, rank] -> f[..., rank]."""
        return x @ a


class LoRAConv(_Adapted, nnx.Conv):
    """A Conv layer with an adapter: f[B, H, W, in] -> f[B, H', W', out]."""

    def down(self, x, a):
        """Convolves with A, with the kernel's stride and padding: f[B, H, W, in] -> f[B, H', W', rank]."""
        strides = (self.strides,) * 2 if isinstance(self.strides, int) else tuple(self.strides)
        return self.conv_general_dilated(
            x, a, strides, self.padding, dimension_numbers=('NHWC', 'HWIO', 'NHWC'), precision=self.precision
        )


class QuantisedLoRALinear(LoRALinear, quantised.QuantisedLinear):
    """The same with a quantised kernel."""


class QuantisedLoRAConv(LoRAConv, quantised.QuantisedConv):
    """The same with a quantised kernel."""


_ADAPTED = {
    nnx.Linear: LoRALinear,
    nnx.Conv: LoRAConv,
    quantised.QuantisedLinear: QuantisedLoRALinear,
    quantised.QuantisedConv: QuantisedLoRAConv,
}


def adapt(
    model: nnx.Module,
    *,
    rank: int,
    alpha: float,
    targets: Sequence[str] = ATTENTION_PROJECTIONS,
    dora: bool = False,
    rngs: nnx.Rngs | Keys,
) -> nnx.Module:
    """Adds adapters to layers of a network, in place.

    Args:
      model: any network. An abstract network is adapted by `nnx.eval_shape(lambda m: adapt(m, ...), model)`.
      rank: inner width of all adapters.
      alpha: the output of the adapters is multiplied by alpha / rank.
      targets: regular expressions that match the whole dotted path of Linear and Conv layers.
      dora: whether to also learn the norm of the kernel of each output.
      rngs: source of the initial A; B starts at zero.

    Returns:
      The same model, whose output is still the same.

    Raises:
      ValueError: one sentence, if rank or alpha is not positive, if a target is not a regular expression or matches no
        layer, if a layer already has an adapter, or if a convolution has groups, dilation or unusual padding.
    """
    if not (isinstance(rank, int) and rank > 0):
        raise ValueError(f"LoRA's rank is {rank!r} but must be a positive integer.")
    if not (isinstance(alpha, (int, float)) and 0 < alpha < math.inf):
        raise ValueError(f"LoRA's alpha is {alpha!r} but must be a positive number.")
    modules, paths = dict(nnx.iter_modules(model)), _layers(model)
    check_targets({type(model).__name__: model}, targets)
    for name in (name for name in paths if any(re.fullmatch(target, name) for target in targets)):
        *owner, last = paths[name]
        layer, owner = modules[paths[name]], modules[tuple(owner)]
        _check(name, layer)
        functional.put_layer(owner, last, _ADAPTED[type(layer)](layer, rank, alpha, dora, rngs.params()))
    return model


def matching(model: nnx.Module, targets: Sequence[str] = ATTENTION_PROJECTIONS) -> tuple[str, ...]:
    """Returns those of the targets that match a layer of a network.

    Args:
      model: the network.
      targets: as in `adapt`.

    Raises:
      ValueError: one sentence, if a target is not a regular expression.
    """
    if isinstance(targets, str) or not targets:
        raise ValueError(f"LoRA's targets is {targets!r} but must be a list of regular expressions of layer paths.")
    paths, found = tuple(_layers(model)), []
    for target in targets:
        try:
            found += [target] if any(re.fullmatch(target, path) for path in paths) else []
        except re.error as error:
            raise ValueError(f"LoRA's target {target!r} is no regular expression: {error}.") from None
    return tuple(found)


def check_targets(networks: Mapping[str, nnx.Module], targets: Sequence[str] = ATTENTION_PROJECTIONS) -> None:
    """Checks that every target matches a layer of at least one of several networks.

    Args:
      networks: {name for an error: network}.
      targets: as in `adapt`.

    Raises:
      ValueError: one sentence, if a target matches no layer of any network or is not a regular expression.
    """
    found = {target for model in networks.values() for target in matching(model, targets)}
    for target in targets:
        if target not in found:
            paths = [path for model in networks.values() for path in _layers(model)]
            raise ValueError(
                f"LoRA's target {target!r} matches no linear or convolution layer of {' or '.join(networks)}; it must "
                f'match a whole path, such as {", ".join(_near(target, paths))}.'
            )


def init_adapter(shapes: Mapping[str, jax.ShapeDtypeStruct], base: Params, *, rngs: nnx.Rngs | Keys) -> Params:
    """Initialises the adapters of a network whose other parameters come from elsewhere, such as a checkpoint.

    Args:
      shapes: parameters of the adapted network, abstract or not, as functional.split returns them.
      base: the network's own parameters. DoRA's magnitudes start as the norms of its kernels, quantised as they are.
      rngs: source of the initial A.

    Returns:
      The parameters of the adapters only; `base | init_adapter(...)` is complete.
    """

    def start(path, name, shape):
        if name == A:
            return _start_of_a(rngs.params(), shape)
        return jnp.zeros(shape, jnp.float32) if name == B else _norm(quantised.kernel_of(base, f'{path}.kernel'))

    return {name: start(*_owner(name), value.shape) for name, value in shapes.items() if is_adapter(name)}


def is_adapter(name: str) -> bool:
    """Whether the parameter of this name belongs to an adapter."""
    return _owner(name)[1] in NAMES


def adapted_kernels(params: Params) -> list[str]:
    """Returns the names of the kernels that have adapters among these parameters."""
    return [f'{path}.kernel' for path, part in map(_owner, params) if part == A]


def separate(params: Params) -> tuple[Params, Params]:
    """Returns (parameters of the adapters, the network's own parameters)."""
    adapter = {name: value for name, value in params.items() if is_adapter(name)}
    return adapter, {name: value for name, value in params.items() if name not in adapter}


def adaptable(model: nnx.Module) -> Callable[..., Any]:
    """Separates the function of a network that takes its parameters with or without adapters; see functional.split.

    So a model generates while its adapters train, without another copy of its kernels; and a quantised kernel has no
    room for a small change. The adapters that are given have one rank and alpha = rank, as `at_scale_one` makes them.

    Args:
      model: the network without adapters, abstract or not.
    """

    @functools.cache
    def apply_with(layers: frozenset[str], rank: int, dora: bool):
        if not layers:
            return functional.split(model)[0]
        options = {'rank': rank, 'alpha': rank, 'targets': ('|'.join(map(re.escape, sorted(layers))),), 'dora': dora}
        return functional.split(nnx.eval_shape(lambda model: adapt(model, rngs=Keys(0), **options), model))[0]

    def apply(params: Mapping[str, jax.Array], *args, **kwargs):
        parts = {_owner(name): value.shape for name, value in params.items() if is_adapter(name)}
        layers = frozenset(path for path, part in parts if part == A)
        rank = next((shape[-1] for (_, part), shape in parts.items() if part == A), 0)
        return apply_with(layers, rank, any(part == MAGNITUDE for _, part in parts))(params, *args, **kwargs)

    return apply


def at_scale_one(params: Params, *, rank: int, alpha: float) -> Params:
    """Returns parameters with adapters that compute the same with alpha = rank; `rank` and `alpha` as for `adapt`."""
    return {name: value * (alpha / rank) if _owner(name)[1] == B else value for name, value in params.items()}


def merge(params: Params, *, rank: int, alpha: float, scale: float = 1.0) -> Params:
    """Returns the parameters of a plain network that computes the same as the adapted one.

    Args:
      params: base parameters and adapters together. A magnitude may also be f32[..., in, 1], the norms of the kernels
        of the inputs, as other programs store DoRA.
      rank: as given to `adapt`.
      alpha: as given to `adapt`.
      scale: factor on the change that the adapters make to the kernels, including DoRA's magnitudes: 0 gives the base
        parameters and 0.5 the middle between them and the adapted ones. ComfyUI's strength means the same, while peft
        scales only A @ B.

    Returns:
      The base parameters with updated kernels in f32; those of base parameters on the host are on the host
      again, so that all of them together need no memory on a device.
    """
    adapter, merged = separate(params)
    for name in adapted_kernels(adapter):
        path, kernel = _owner(name)[0], merged[name].astype(jnp.float32)
        a, b = (jnp.asarray(adapter[f'{path}.{part}'], jnp.float32) for part in (A, B))
        update = alpha / rank * jnp.matmul(a, b, precision='highest')
        if f'{path}.{MAGNITUDE}' in adapter:
            new = kernel + update
            new = new * _factor(jnp.asarray(adapter[f'{path}.{MAGNITUDE}']), new)
            new = new if scale == 1 else kernel + scale * (new - kernel)
        else:
            new = kernel + scale * update
        merged[name] = np.asarray(new) if isinstance(kernel, np.ndarray) else new
    return merged


def _owner(name: str) -> tuple[str, str]:
    """Splits a parameter's name: 'a.b.lora_a' -> ('a.b', 'lora_a')."""
    path, _, leaf = name.rpartition('.')
    return path, leaf


def _start_of_a(key, shape):
    """Samples A uniformly within +-1 / sqrt(inputs of an output), as peft does: kaiming_uniform_ with a = sqrt(5)."""
    bound = math.prod(shape[:-1]) ** -0.5
    return jax.random.uniform(key, shape, jnp.float32, -bound, bound)


def _norm(kernel):
    """Norms f32[out] of each output's part of a kernel f[..., out]."""
    return jnp.sqrt(jnp.sum(jnp.square(kernel.astype(jnp.float32)), axis=tuple(range(kernel.ndim - 1))))


def _factor(magnitude, kernel):
    """Factor that gives a kernel these norms. It is 1 where the kernel is zero, so that B still has a gradient there.

    Args:
      magnitude: f32[out], or f32[..., in, 1] for norms of inputs.
      kernel: f[..., in, out].
    """
    norm = _norm(kernel) if magnitude.ndim == 1 else _norm(jnp.swapaxes(kernel, -1, -2))[:, None]
    return jnp.where(norm > 0, magnitude / jnp.where(norm > 0, norm, 1), 1)


def _layers(model: nnx.Module) -> dict[str, tuple]:
    """Returns {dotted path: path} for every layer that can have an adapter."""
    return {
        '.'.join(map(str, path)): path
        for path, module in nnx.iter_modules(model)
        if path and isinstance(module, (nnx.Linear, nnx.Conv))
    }


def _near(target: str, names) -> list[str]:
    """Returns three paths whose ends resemble the words of the pattern."""
    words = re.sub(r'[^\w.]', '', target.replace(r'\d', '0').replace('.*', '')).strip('.')
    ends = {'.'.join(name.split('.')[-len(words.split('.')) :]): name for name in reversed(names)}
    return [ends[end] for end in difflib.get_close_matches(words, ends, 3, 0)]


def _check(name, layer):
    if isinstance(layer, _Adapted):
        raise ValueError(f'{name} has a LoRA adapter already; merge it, or adapt the plain network.')
    if isinstance(layer, nnx.Conv) and not quantised.is_plain_convolution(layer):
        raise ValueError(
            f'{name} is a grouped, dilated or unusually padded convolution, which takes no LoRA adapter; choose '
            f'targets that leave it out.'
        )
