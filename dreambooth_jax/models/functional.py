"""Networks as pure functions of a flat dictionary of parameters.

A network is written as an NNX module, and this module turns it into `(apply, params)`. So all other code (losses,
optimizer, placement, checkpoints, weights) handles plain pytrees and plain functions. The keys of the parameters are
dotted NNX paths, such as 'down_blocks.0.resnets.0.conv1.kernel', which the published checkpoint also uses.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from dreambooth_jax.system import cuda

Params = dict[str, jax.Array]
AbstractParams = dict[str, jax.ShapeDtypeStruct]


class Keys:
    """Replaces nnx.Rngs while a network is built: the n-th call of `params()` returns the seed's key folded with n.

    nnx.Rngs counts with a traced array. With it, building IF-I-XL abstractly takes 12 s; with a Python integer, 1 s.

    Args:
      seed: an integer or a key (jax.random.key).
    """

    def __init__(self, seed: int | jax.Array):
        self._key = jax.random.key(seed) if isinstance(seed, int) else seed
        self._count = 0

    def params(self) -> jax.Array:
        """Returns the next key."""
        self._count += 1
        return jax.random.fold_in(self._key, self._count)


class Constant(nnx.Param):
    """A tensor that a checkpoint holds but nothing trains, such as a table of sinusoids; otherwise as a parameter."""


def constants(model: nnx.Module) -> set[str]:
    """Returns the names of the tensors of a network that never train."""
    state = nnx.to_flat_state(nnx.split(model)[1])
    return {'.'.join(map(str, path)) for path, variable in state if isinstance(variable, Constant)}


def split(model: nnx.Module) -> tuple[Callable[..., Any], Params]:
    """Separates a network into a pure function and its parameters.

    Args:
      model: a module whose only variables are nnx.Param; an abstract module (nnx.eval_shape) gives abstract parameters.

    Returns:
      (apply, params). `apply(params, *args, **kwargs)` equals `model(*args, **kwargs)` with these parameters, or
      `model.decode(*args, **kwargs)` if the keyword method='decode' is given too. jit, grad, pmap and scan may trace
      it. Static attributes of the module are fixed in it. A network whose layers compute in float32 multiplies in true
      float32, its gradient too: by JAX's default a TPU would multiply in bfloat16, and a GPU in TF32.

    Raises:
      ValueError: if the module has other state, such as random keys or running statistics. `apply` raises
        ValueError if the names of its parameters are not those of the module.
    """
    graph, state = nnx.split(model)
    variables = {'.'.join(map(str, path)): (path, variable) for path, variable in nnx.to_flat_state(state)}
    others = [name for name, (_, variable) in variables.items() if not isinstance(variable, nnx.Param)]
    if others:
        raise ValueError(f'{type(model).__name__} holds state that is no parameter: {", ".join(others[:5])}')

    dtypes = {module.dtype for _, module in nnx.iter_modules(model) if isinstance(module, (nnx.Linear, nnx.Conv))}
    precision = 'float32' if dtypes <= {None, jnp.float32, jnp.dtype('float32')} else None

    def apply(params: Mapping[str, jax.Array], *args, method: str = '__call__', **kwargs):
        if params.keys() != variables.keys():
            missing, unknown = (
                sorted(variables.keys() - params.keys())[:5],
                sorted(params.keys() - variables.keys())[:5],
            )
            raise ValueError(f'parameters do not fit {type(model).__name__}: missing {missing}, unknown {unknown}')
        flat = [(path, variable.replace(params[name])) for name, (path, variable) in variables.items()]
        with jax.default_matmul_precision(precision or jax.config.jax_default_matmul_precision):
            return getattr(nnx.merge(graph, nnx.from_flat_state(flat)), method)(*args, **kwargs)

    return apply, {name: variable.get_value() for name, (_, variable) in variables.items()}


def abstract(constructor: Callable[[], nnx.Module]) -> tuple[Callable[..., Any], AbstractParams]:
    """Does the same as `split(constructor())` without computing or storing any parameter.

    Args:
      constructor: makes the module, e.g. `lambda: UNet2DConditionModel(config, rngs=Keys(0))`.

    Returns:
      (apply, {name: ShapeDtypeStruct}).
    """
    apply, state = split(nnx.eval_shape(constructor))
    return apply, {name: jax.ShapeDtypeStruct(value.shape, value.dtype) for name, value in state.items()}


def init(constructor: Callable[[Keys], nnx.Module], seed: int | jax.Array) -> tuple[Callable[..., Any], Params]:
    """Initialises a network, computing all parameters in one compiled program.

    Args:
      constructor: makes the module from random keys, e.g. `lambda rngs: T5EncoderModel(config, rngs=rngs)`.
      seed: an integer or a key (jax.random.key); the same seed gives the same parameters.

    Returns:
      (apply, params).
    """
    apply, _ = abstract(lambda: constructor(Keys(0)))
    key = jax.random.key(seed) if isinstance(seed, int) else seed
    # The program samples each shape separately, so compiling it takes long, and it runs only once. On CPUs, compiling
    # without optimisation makes the result ready 4 times sooner.
    options = {'xla_backend_optimization_level': 0} if jax.default_backend() == 'cpu' else None
    return apply, jax.jit(lambda key: split(constructor(Keys(key)))[1], compiler_options=options)(key)


def call(block: Callable[..., Any], *args, remat: bool):
    """Calls `block(*args)`; with `remat`, only the arguments are stored and the rest is computed again for gradients.

    Args:
      block: a module or a function. Parameters that it captures are differentiated as usual.
      *args: its arguments.
      remat: whether to compute `block` again in the backward pass.
    """
    # The function is new in each call, because jax.checkpoint caches its trace but the parameters of a module change.
    return jax.checkpoint(lambda *args: block(*args))(*args) if remat else block(*args)


def take_attributes(new: nnx.Module, old: nnx.Module, without: Sequence[str] = ()) -> None:
    """Gives a new layer the attributes of the one that it replaces; its own constructor would sample a second kernel.

    Args:
      new: the layer, empty.
      old: the layer that it replaces.
      without: the attributes that it does not get.
    """
    for name, value in vars(old).items():
        if not name.startswith('_') and name not in without:
            setattr(new, name, value)


def put_layer(owner: nnx.Module, name: str | int, layer: nnx.Module) -> None:
    """Puts a layer into the module or list that owns it, in place of the one that is there."""
    if isinstance(owner, nnx.List):
        owner[name] = layer
    else:
        setattr(owner, name, layer)


def parameter_count(params: Mapping[str, jax.Array | jax.ShapeDtypeStruct]) -> int:
    """Returns the number of scalars in all parameters."""
    return sum(math.prod(value.shape) for value in params.values())


def held(name: str, value: np.ndarray) -> np.ndarray:
    """Returns one parameter of a checkpoint as it is held on the host: f32, but kernels stored in bfloat16 stay so.

    Such models have billions of parameters, of which half the memory holds the same values: networks read kernels in
    their compute dtype, and `in_float32` makes f32 of those that train.

    Args:
      name: the parameter's dotted path.
      value: as the file stores it, of any floating-point dtype.

    Returns:
      An array of its own, which is no view of a file, so that the file may be replaced.
    """
    keeps = name.endswith('.kernel') and value.dtype == jnp.bfloat16
    if value.dtype != np.float32 and not keeps:
        return value.astype(np.float32)
    return value if value.flags.writeable else np.array(value)


def compute_dtype(dtype: Any = 'auto'):
    """Returns the dtype that networks compute in.

    'auto' is bfloat16, but float32 on CPUs, which have no fast bfloat16, and on NVIDIA cards before the A100, such as
    the T4, which have none: XLA refuses to compile attention for them.
    """
    if isinstance(dtype, str) and dtype == 'auto':
        return jnp.bfloat16 if jax.default_backend() != 'cpu' and cuda.has_bfloat16() else jnp.float32
    return jnp.dtype(dtype)


def in_float32(params: Params) -> Params:
    """Returns parameters on the host as they train: all of them f32; those that are stay the same arrays."""
    return {name: np.asarray(value, np.float32) for name, value in params.items()}


def cast_kernels(params: Params, dtype: Any) -> Params:
    """Returns parameters that are only read, on the host: kernels in the compute dtype, the others unchanged.

    A network reads kernels only in the compute dtype. In bfloat16 they need half the memory; the result is the same.
    """
    return {
        name: np.asarray(value).astype(dtype, copy=False) if name.endswith('.kernel') else value
        for name, value in params.items()
    }


def kernel_shapes(params: Mapping[str, Any], dtype: Any) -> AbstractParams:
    """Returns the shapes and dtypes of `cast_kernels(params, dtype)`; nothing is copied."""
    return {
        name: jax.ShapeDtypeStruct(value.shape, dtype if name.endswith('.kernel') else value.dtype)
        for name, value in params.items()
    }
