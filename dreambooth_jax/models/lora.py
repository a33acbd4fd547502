"""LoRA and DoRA: small trainable matrices beside the frozen kernels of any network.

An adapted layer computes y = x W + bias + alpha / rank * (x A) B. It stays on the path of the activations: a kernel
that is summed first would need the gradient of the whole kernel. It is a Linear or Conv with more parameters, so the
base parameters keep their names and the layer types by which weights/ translates them:

    <path>.kernel, <path>.bias       as before
    <path>.lora_a                    f32[in, rank], or f32[h, w, in, rank] of a convolution
    <path>.lora_b                    f32[rank, out], a 1x1 convolution for both
    <path>.lora_magnitude            f32[out], DoRA's length of each output's kernel

For both kinds of layer the update of the kernel is alpha / rank * A @ B. The kernel of an output that is zero has no
direction to give a length to: its magnitude does nothing until an update has given it one.
Source: Hu et al. 2021 (LoRA); Liu et al. 2024 (DoRA, with the norm taken as a constant in the backward pass, section
4.3); peft 0.21 tuners/lora/layer.py and dora.py.
"""

import difflib
import math
import re
from collections.abc import Mapping, Sequence

import jax
import jax.numpy as jnp
from flax import nnx

from dreambooth_jax.models.functional import Keys, Params

# The attention projections of the UNets (IF's added keys and values too), of CLIP and of T5.
ATTENTION_PROJECTIONS = (
    r'(.*\.)?(to_q|to_k|to_v|to_out\.0|add_k_proj|add_v_proj|self_attn\.(q|k|v|out)_proj|SelfAttention\.[qkvo])',
)
NAMES = ('lora_a', 'lora_b', 'lora_magnitude')
A, B, MAGNITUDE = NAMES


class _Adapted:
    """What an adapted Linear and an adapted Conv have in common: the plain layer's attributes and a fresh adapter."""

    def __init__(self, layer: nnx.Linear | nnx.Conv, rank: int, alpha: float, dora: bool, key: jax.Array):
        # Not the constructor of the plain layer, which would sample a second kernel.
        for name, value in vars(layer).items():
            if not name.startswith('_'):
                setattr(self, name, value)
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
    """A Linear with an adapter: f[..., in] -> f[..., out]."""

    def down(self, x, a):
        """f[..., in], f[in, rank] -> f[..., rank]."""
        return x @ a


class LoRAConv(_Adapted, nnx.Conv):
    """A Conv with an adapter: f[B, H, W, in] -> f[B, H', W', out]."""

    def down(self, x, a):
        """f[B, H, W, in], f[h, w, in, rank] -> f[B, H', W', rank], with the stride and the padding of the kernel."""
        strides = (self.strides,) * 2 if isinstance(self.strides, int) else tuple(self.strides)
        return self.conv_general_dilated(
            x, a, strides, self.padding, dimension_numbers=('NHWC', 'HWIO', 'NHWC'), precision=self.precision
        )


_ADAPTED = {nnx.Linear: LoRALinear, nnx.Conv: LoRAConv}


def adapt(
    model: nnx.Module,
    *,
    rank: int,
    alpha: float,
    targets: Sequence[str] = ATTENTION_PROJECTIONS,
    dora: bool = False,
    rngs: nnx.Rngs | Keys,
) -> nnx.Module:
    """Gives adapters to layers of a network, in place.

    Args:
      model: any network; inside nnx.eval_shape an abstract one, `nnx.eval_shape(lambda m: adapt(m, ...), model)`.
      rank: inner width of the adapters, the same for all.
      alpha: the adapters' output is multiplied by alpha / rank.
      targets: regular expressions of whole dotted paths of Linear and Conv layers.
      dora: also learn the length of every output's kernel.
      rngs: source of the start of A; B starts at zero.
    Returns: the same model, which still computes what it did.
    Raises: ValueError, one sentence: for a rank or alpha that is not positive, a target that is no regular expression
      or matches no layer, a layer that is adapted already, and a convolution that is not a plain one.
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
        adapted = _ADAPTED[type(layer)](layer, rank, alpha, dora, rngs.params())
        if isinstance(owner, nnx.List):
            owner[last] = adapted
        else:
            setattr(owner, last, adapted)
    return model


def matching(model: nnx.Module, targets: Sequence[str] = ATTENTION_PROJECTIONS) -> tuple[str, ...]:
    """Those of the targets that match a layer of a network.

    Args:
      targets: as of `adapt`.
    Raises: ValueError, one sentence, for one that is no regular expression.
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
    """Whether every target matches a layer of one of several networks, of which others may have none.

    Args:
      networks: {what to call it: network}. targets: as of `adapt`.
    Raises: ValueError, one sentence, for a target that matches in none of them or is no regular expression.
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
    """The start of the adapters of a network whose parameters come from elsewhere, such as a checkpoint.

    Args:
      shapes: parameters of the adapted network, abstract or not, as functional.split gives them.
      base: the network's own parameters; DoRA's magnitudes are those of its kernels.
      rngs: source of the start of A.
    Returns: the adapters' parameters alone; `base | init_adapter(...)` is complete.
    """

    def start(path, name, shape):
        if name == A:
            return _start_of_a(rngs.params(), shape)
        return jnp.zeros(shape, jnp.float32) if name == B else _norm(jnp.asarray(base[f'{path}.kernel']))

    return {name: start(*_owner(name), value.shape) for name, value in shapes.items() if is_adapter(name)}


def is_adapter(name: str) -> bool:
    """Whether a parameter belongs to an adapter."""
    return _owner(name)[1] in NAMES


def separate(params: Params) -> tuple[Params, Params]:
    """(the adapters' parameters, the network's own)."""
    adapter = {name: value for name, value in params.items() if is_adapter(name)}
    return adapter, {name: value for name, value in params.items() if name not in adapter}


def merge(params: Params, *, rank: int, alpha: float, scale: float = 1.0) -> Params:
    """The parameters of the plain network that computes the same as the adapted one.

    Args:
      params: base and adapters together. A magnitude may also be f32[..., in, 1], the lengths of the inputs' kernels,
        as DoRA of other programs has it.
      rank, alpha: as given to `adapt`.
      scale: how much of the difference that the adapters make is added, DoRA's magnitudes included: 0 gives the base
        parameters, 0.5 what lies half-way. ComfyUI's strength is this; peft scales A @ B alone.
    Returns: the base parameters, kernels with their update, computed in f32.
    """
    adapter, merged = separate(params)
    for path in (_owner(name)[0] for name in adapter if _owner(name)[1] == A):
        kernel = merged[f'{path}.kernel']
        a, b = (jnp.asarray(adapter[f'{path}.{part}'], jnp.float32) for part in (A, B))
        update = alpha / rank * jnp.matmul(a, b, precision='highest')
        if f'{path}.{MAGNITUDE}' in adapter:
            new = kernel + update
            new = new * _factor(jnp.asarray(adapter[f'{path}.{MAGNITUDE}']), new)
            new = new if scale == 1 else kernel + scale * (new - kernel)
        else:
            new = kernel + scale * update
        merged[f'{path}.kernel'] = new.astype(kernel.dtype)
    return merged


def _owner(name: str) -> tuple[str, str]:
    """'a.b.lora_a' -> ('a.b', 'lora_a')."""
    path, _, leaf = name.rpartition('.')
    return path, leaf


def _start_of_a(key, shape):
    """Uniform within 1 / sqrt(inputs of an output), which is torch's kaiming_uniform_ with a = sqrt(5), as in peft."""
    bound = math.prod(shape[:-1]) ** -0.5
    return jax.random.uniform(key, shape, jnp.float32, -bound, bound)


def _norm(kernel):
    """f32[out], the length of every output's part of a kernel f[..., out]."""
    return jnp.sqrt(jnp.sum(jnp.square(kernel.astype(jnp.float32)), axis=tuple(range(kernel.ndim - 1))))


def _factor(magnitude, kernel):
    """What a kernel is multiplied by to have these lengths; 1 where it is zero, so that B still has a gradient there.

    Args:
      magnitude: f32[out], or f32[..., in, 1] of the inputs.
    """
    norm = _norm(kernel) if magnitude.ndim == 1 else _norm(jnp.swapaxes(kernel, -1, -2))[:, None]
    return jnp.where(norm > 0, magnitude / jnp.where(norm > 0, norm, 1), 1)


def _layers(model: nnx.Module) -> dict[str, tuple]:
    """Dotted path -> path of every layer that may have an adapter."""
    return {
        '.'.join(map(str, path)): path
        for path, module in nnx.iter_modules(model)
        if path and isinstance(module, (nnx.Linear, nnx.Conv))
    }


def _near(target: str, names) -> list[str]:
    """Three paths whose ends resemble the pattern's words."""
    words = re.sub(r'[^\w.]', '', target.replace(r'\d', '0').replace('.*', '')).strip('.')
    ends = {'.'.join(name.split('.')[-len(words.split('.')) :]): name for name in reversed(names)}
    return [ends[end] for end in difflib.get_close_matches(words, ends, 3, 0)]


def _check(name, layer):
    if isinstance(layer, _Adapted):
        raise ValueError(f'{name} has a LoRA adapter already; merge it, or adapt the plain network.')
    if isinstance(layer, nnx.Conv):
        dilations = {layer.input_dilation, layer.kernel_dilation}
        plain = len(layer.kernel_size) == 2 and layer.feature_group_count == 1 and layer.mask is None
        padded = not isinstance(layer.padding, (str, int)) or layer.padding in ('SAME', 'VALID')
        if not (plain and padded and dilations <= {1, (1, 1)}):
            raise ValueError(
                f'{name} is a grouped, dilated or unusually padded convolution, which takes no LoRA adapter; choose '
                f'targets that leave it out.'
            )
