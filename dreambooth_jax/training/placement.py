"""Where the state, the frozen data and the batch are stored.

Mode `pmap` replicates the state; mode `fsdp` shards its large arrays. Images are generated on the same mesh, with the
weights where the training has them (generation/cascade.py).

One step body serves both (training/step.py); the only difference is the optional `lax.pmean`. The state has no device
axis: pmap runs with in_axes None, which from JAX 0.10 on is jit(shard_map). So a checkpoint that was written in one
mode can be read in the other, and on any number of devices.
"""

import functools
import math
from collections.abc import Callable, Sequence
from typing import Any, Protocol

import jax
import numpy as np
from jax.experimental import multihost_utils
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

AXIS = 'data'
MODES = ('pmap', 'fsdp')


class Placement(Protocol):
    """The interface of both placements; a program never asks which one it has."""

    devices: int

    def place(self, tree: Any, *, whole: bool = False) -> Any:
        """Returns arrays in the layout that they keep; those that are on devices already are returned as they are.

        Every array is sent to where it belongs, without a whole copy of the tree on any device.

        Args:
          whole: whether every device gets all of every array.
        """

    def split(self, tree: Any) -> Any:
        """Splits arrays of equal length B, a multiple of `devices`, along their first axis; every host gives them all.

        PRNG keys may be among them.
        """

    def gather(self, tree: Any) -> Any:
        """Returns arrays in any layout as numpy arrays, whole on every host. All hosts must call it together."""

    def place_state(self, init: Callable[..., Any], *arguments: Any) -> Any:
        """Runs `init(*arguments)` so that its result has its final layout from the start.

        It places the state and the frozen data.
        """

    def place_batch(self, batch: dict[str, np.ndarray]) -> dict[str, jax.Array]:
        """Splits the global batch over the devices: arrays of equal length B, a multiple of `devices`."""

    def call(self, function: Callable, *args: Any, **kwargs: Any) -> Any:
        """Calls a compiled function on what `place` and `split` return, or its `lower` on their shapes.

        On TPU, its program is traced in the mesh over which batches are split, which its attention must know
        (models/splash.py).
        """

    def compile(self, make_step: Callable[[str | None], Callable]) -> Callable:
        """Compiles `make_step(axis_name)`: (state, frozen, key, batch) -> (state, metrics). The state is donated."""

    def lower(
        self, make_step: Callable[[str | None], Callable], state: Any, frozen: Any, key: Any, batch: dict[str, Any]
    ) -> jax.stages.Lowered:
        """Returns the program of `compile` for arrays of these shapes, ready to be compiled; nothing is placed.

        The devices need not be there: those of a jax.experimental.topologies description do too.

        Args:
          make_step: as for `compile`.
          state, frozen, key, batch: whole arrays or their shapes, without layouts.
        """

    def placed_shapes(self, tree: Any, *, whole: bool = False) -> Any:
        """Returns shapes, dtypes and layouts of what `place` returns for arrays or shapes."""

    def split_shapes(self, tree: Any) -> Any:
        """Returns shapes, dtypes and layouts of what `split` returns for arrays or shapes."""

    def to_global(self, state: Any) -> Any:
        """Returns the state as arrays that Orbax may save from every host."""

    def fetch(self, metrics: Any) -> Any:
        """Returns the metrics as numpy arrays on every host. It waits for the step that computes them."""


class _OnMesh:
    """What both placements do alike, on their mesh."""

    devices: int
    _mesh: Mesh
    _replicated: NamedSharding

    def place(self, tree, *, whole=False):
        def one(x):
            if isinstance(x, jax.Array) and x.sharding.device_set == set(self._mesh.devices.flat):
                return x
            layout = self._replicated if whole else self.shardings(jax.ShapeDtypeStruct(np.shape(x), x.dtype))
            if layout.is_fully_addressable:
                return jax.device_put(x, layout)
            x = np.asarray(x)
            return jax.make_array_from_callback(x.shape, layout, lambda index: x[index])

        return jax.tree.map(one, tree)

    def split(self, tree):
        sharding = NamedSharding(self._mesh, PartitionSpec(AXIS))

        def one(x):
            if isinstance(x, jax.Array) and jax.dtypes.issubdtype(x.dtype, jax.dtypes.prng_key):
                return jax.random.wrap_key_data(one(jax.random.key_data(x)))
            x = np.asarray(x)
            return jax.make_array_from_callback(x.shape, sharding, lambda index: x[index])

        return jax.tree.map(one, tree)

    def gather(self, tree):
        def one(x):
            whole = not isinstance(x, jax.Array) or x.is_fully_addressable or x.is_fully_replicated
            return np.asarray(x) if whole else multihost_utils.process_allgather(x, tiled=True)

        return jax.tree.map(one, tree)

    def call(self, function, *args, **kwargs):
        # Elsewhere nothing asks for the mesh, and programs stay as they are without it.
        if jax.default_backend() != 'tpu':
            return function(*args, **kwargs)
        with jax.sharding.use_abstract_mesh(self._mesh.abstract_mesh):
            return function(*args, **kwargs)

    def placed_shapes(self, tree, *, whole=False):
        if whole:
            return jax.tree.map(lambda x: _shape(x, self._replicated), tree)
        return jax.tree.map(_shape, tree, self.shardings(tree))

    def split_shapes(self, tree):
        sharding = NamedSharding(self._mesh, PartitionSpec(AXIS))
        return jax.tree.map(lambda x: _shape(x, sharding), tree)


def device_bytes(tree: Any) -> int:
    """Returns the bytes that one device holds of arrays with a layout: of its shard of each.

    Args:
      tree: a pytree of jax.Array, or of shapes as `Placement.placed_shapes` returns them.
    """
    return sum(math.prod(x.sharding.shard_shape(x.shape)) * x.dtype.itemsize for x in jax.tree.leaves(tree))


def _shape(x: Any, sharding: NamedSharding) -> jax.ShapeDtypeStruct:
    return jax.ShapeDtypeStruct(np.shape(x), x.dtype, sharding=sharding)


def _local_examples(batch: dict[str, np.ndarray], devices: int) -> dict[str, np.ndarray]:
    """Returns this host's part of the global batch: hosts hold equal, consecutive ranges of examples.

    Raises:
      ValueError: if `devices` does not divide the number of examples.
    """
    size = len(next(iter(batch.values())))
    if size % devices:
        raise ValueError(f'the batch has {size} examples, which {devices} devices cannot share evenly; pad it first')
    per_host = size // jax.process_count()
    start = jax.process_index() * per_host
    return {name: value[start : start + per_host] for name, value in batch.items()}


class Pmap(_OnMesh):
    """The state and the frozen data are replicated and the batch is split; one `pmean` averages the gradients.

    Args:
      devices: None means all devices.
    """

    def __init__(self, devices: Sequence[jax.Device] | None = None):
        self._devices = tuple(devices or jax.devices())
        self.devices = len(self._devices)
        # The same mesh that pmap makes. make_mesh may permute the devices, and then the state would move at every call.
        self._mesh = Mesh(np.array(self._devices), (AXIS,))
        self._replicated = NamedSharding(self._mesh, PartitionSpec())

    def shardings(self, tree: Any) -> Any:
        """Returns the layout of every array in a pytree of arrays or shapes."""
        return jax.tree.map(lambda x: self._replicated, tree)

    def place_state(self, init, *arguments):
        return jax.jit(init, out_shardings=self._replicated)(*arguments)

    def place_batch(self, batch):
        examples = _local_examples(batch, self.devices)
        if self.devices == 1:
            return jax.device_put(examples, self._replicated)
        local = self._mesh.local_mesh
        stacked = {name: value.reshape(local.size, -1, *value.shape[1:]) for name, value in examples.items()}
        return jax.device_put(stacked, NamedSharding(local, PartitionSpec(AXIS)))

    def compile(self, make_step):
        return functools.partial(self.call, self._jitted(make_step))

    def _jitted(self, make_step):
        if self.devices == 1:
            # jit gives the same program; inside pmap's shard_map, XLA on CPU runs convolutions six times slower.
            return jax.jit(make_step(None), donate_argnums=0)
        in_axes = (None, None, None, 0)
        return jax.pmap(make_step(AXIS), AXIS, in_axes=in_axes, out_axes=None, donate_argnums=0, devices=self._devices)

    def lower(self, make_step, state, frozen, key, batch):
        placed = self.placed_shapes((state, frozen, key))
        if self.devices > 1:
            rows = lambda x: (self.devices, len(x) // self.devices, *x.shape[1:])  # noqa: E731
            batch = self.split_shapes({name: jax.ShapeDtypeStruct(rows(x), x.dtype) for name, x in batch.items()})
        else:
            batch = self.placed_shapes(batch)
        return self.call(self._jitted(make_step).lower, *placed, batch)

    def to_global(self, state):
        if jax.process_count() == 1:
            return state
        return multihost_utils.host_local_array_to_global_array(state, self._mesh, PartitionSpec())

    def fetch(self, metrics):
        return jax.tree.map(np.asarray, metrics)


class Fsdp(_OnMesh):
    """Each large array is sharded over all devices along its longest divisible axis.

    The compiler inserts the collectives.

    Args:
      min_bytes: arrays below this size stay replicated, because gathering them would cost more than it saves.
      devices: None means all devices.
    """

    def __init__(self, min_bytes: int = 4 * 2**20, devices: Sequence[jax.Device] | None = None):
        devices = tuple(devices or jax.devices())
        self.devices = len(devices)
        self.min_bytes = min_bytes
        # Not jax.make_mesh, which may order the devices by their links: one computation cannot take arrays of two
        # orders.
        self._mesh = Mesh(np.array(devices), (AXIS,), axis_types=(AxisType.Auto,))
        self._replicated = NamedSharding(self._mesh, PartitionSpec())

    def shardings(self, tree: Any) -> Any:
        """Returns the layout of every array in a pytree of arrays or shapes."""

        def one(x):
            if x.size * x.dtype.itemsize < self.min_bytes:
                return self._replicated
            for axis in np.argsort(x.shape)[::-1]:
                if x.shape[axis] % self.devices == 0:
                    spec = [AXIS if i == axis else None for i in range(len(x.shape))]
                    return NamedSharding(self._mesh, PartitionSpec(*spec))
            return self._replicated

        return jax.tree.map(one, tree)

    def place_state(self, init, *arguments):
        layout = self.shardings(jax.eval_shape(init, *arguments))
        return jax.jit(init, out_shardings=layout)(*arguments)

    def place_batch(self, batch):
        sharding = NamedSharding(self._mesh, PartitionSpec(AXIS))
        examples = _local_examples(batch, self.devices)
        return {name: jax.make_array_from_process_local_data(sharding, value) for name, value in examples.items()}

    def compile(self, make_step):
        step = make_step(None)
        compiled = None

        def run(state, frozen, key, batch):
            nonlocal compiled
            if compiled is None:
                compiled = self._jitted(step, state)
            return self.call(compiled, state, frozen, key, batch)

        return run

    def _jitted(self, step, state):
        layout = jax.tree.map(lambda x: x.sharding, state)
        # Without a fixed layout the compiler may return the state in another layout, and then compile again.
        return jax.jit(step, donate_argnums=0, out_shardings=(layout, self._replicated))

    def lower(self, make_step, state, frozen, key, batch):
        state, frozen, key = self.placed_shapes((state, frozen, key))
        step = self._jitted(make_step(None), state)
        return self.call(step.lower, state, frozen, key, self.split_shapes(batch))

    def to_global(self, state):
        return state

    def fetch(self, metrics):
        return jax.tree.map(np.asarray, metrics)


def make_placement(
    mode: str, *, fsdp_min_bytes: int = 4 * 2**20, devices: Sequence[jax.Device] | None = None
) -> Placement:
    """Returns the placement named `mode`, over the given devices or, with None, over all of them.

    Raises:
      ValueError: for an unknown name.
    """
    if mode == 'pmap':
        return Pmap(devices)
    if mode == 'fsdp':
        return Fsdp(fsdp_min_bytes, devices)
    raise ValueError(f'parallel.mode is {mode!r} but must be one of {MODES}')
