"""Softmax attention by JAX's kernel for TPUs (splash attention), which stores no logits, forward or backward.

The compiler cannot partition such a kernel, so a program of several devices calls it inside shard_map, over the mesh
that it is traced in (training/placement.py). Where the mesh is not known, the kernel is not used.

Source: jax 0.10 experimental/pallas/ops/tpu/splash_attention; Dao et al. 2022 (FlashAttention).
"""

import functools
import math

import jax
import jax.numpy as jnp
from jax.sharding import AxisType, PartitionSpec

LANES = 128  # numbers in a row of a TPU's registers; blocks are multiples of it
SMALLEST, LARGEST = 512, 1024  # tokens in a block; larger ones need fewer cycles, if they fit (experiments/speed)
TOO_OLD = ('TPU v2', 'TPU v3')  # the compiler has no products of the kernel's kind for them
WIDE, WIDEST = 128, 512  # widths of a head up to which the largest and the smallest blocks fit into VMEM, v4 to v6e


def shards() -> int | None:
    """Returns by how many devices the batch is shared in the program that is traced.

    Inside pmap or shard_map it is 1, because arrays there are one device's own. It is None if nothing says which
    devices they are, or if they cannot run the kernel.
    """
    mesh = jax.sharding.get_abstract_mesh()
    if mesh.empty or mesh.abstract_device.device_kind in TOO_OLD:
        return None
    return math.prod(mesh.shape[axis] for axis in _shared_axes(mesh))


def splash_fits(query_shape: tuple[int, ...], dtype, has_bias: bool, devices: int | None) -> bool:
    """Whether the kernel can compute this attention. Whether it pays is for the caller to know.

    Args:
      query_shape: (B, Q, heads, D).
      dtype: dtype of the queries. Networks in float32 multiply in float32, for which the kernel was not measured.
      has_bias: whether there is a bias, which the kernel does not know.
      devices: the number that share the batch, as `shards` returns it.
    """
    batch, _, _, width = query_shape
    if devices is None or batch % devices:
        return False
    return dtype == jnp.bfloat16 and not has_bias and width % 8 == 0 and width <= WIDEST


def splash_attend(query, key, value, *, scale: float, lengths=None, interpret: bool = False):
    """Computes softmax attention for each head, with logits and softmax in f32.

    Args:
      query: f[B, Q, heads, D] for which `splash_fits`.
      key: f[B, K, heads, D] with the dtype of `query`.
      value: f[B, K, heads, D] with the dtype of `query`.
      scale: factor on the logits. Queries are multiplied by it and rounded to their dtype again.
      lengths: i32[B], how many of the first keys of each example are attended, at least one; None: all.
      interpret: runs the kernel's code on any device, for tests.

    Returns:
      f[B, Q, heads, D] with the dtype of `value`.
    """
    local = functools.partial(_attend, scale=scale, interpret=interpret)
    if shards() not in (None, 1):
        split = PartitionSpec(_shared_axes(jax.sharding.get_abstract_mesh()))
        # Not check_vma: the kernel does not say over which axes its results vary.
        local = jax.shard_map(local, in_specs=split, out_specs=split, check_vma=False)
    return local(query, key, value, lengths)


def block(length: int, width: int) -> int:
    """Returns how many tokens to compute at once: what pads `length` least, and the largest of these sizes."""
    sizes = range(SMALLEST, (LARGEST if width <= WIDE else SMALLEST) + 1, LANES)
    return min(sizes, key=lambda size: (-length % size, -size))


def _shared_axes(mesh) -> tuple[str, ...]:
    kinds = zip(mesh.axis_names, mesh.axis_types, strict=True)
    return tuple(axis for axis, kind in kinds if kind != AxisType.Manual)


def _attend(query, key, value, lengths, *, scale, interpret):
    # Experimental: a version of JAX without it must not fail on other devices.
    from jax.experimental.pallas.ops.tpu.splash_attention import splash_attention_kernel as kernels
    from jax.experimental.pallas.ops.tpu.splash_attention import splash_attention_mask as masks

    batch, queries, heads, width = query.shape
    keys = key.shape[1]
    rows, columns = block(queries, width), block(keys, width)
    if lengths is None and keys % columns:
        lengths = jnp.full(batch, keys, jnp.int32)
    # The product is rounded once; in bfloat16, the scale would be rounded too.
    query = (query.astype(jnp.float32) * scale).astype(query.dtype)
    query, key, value = _padded(query, rows), _padded(key, columns), _padded(value, columns)
    mask = masks.MultiHeadMask([masks.FullMask((query.shape[2], key.shape[2]))] * heads)
    # Two kernels for the gradients: a single one would store the gradient of the queries once for each block of keys,
    # rounded to bfloat16 before the sum.
    sizes = kernels.BlockSizes(
        block_q=rows,
        block_kv=columns,
        block_kv_compute=columns,
        block_q_dkv=rows,
        block_kv_dkv=columns,
        block_kv_dkv_compute=columns,
        block_q_dq=rows,
        block_kv_dq=columns,
    )
    kernel = kernels.make_splash_mha(mask, block_sizes=sizes, head_shards=1, q_seq_shards=1, interpret=interpret)

    def attend_one(query, key, value, length):
        segments = None
        if length is not None:  # a query attends to the keys of its segment
            is_hidden = jnp.arange(key.shape[1]) >= length
            segments = kernels.SegmentIds(jnp.zeros(query.shape[1], jnp.int32), is_hidden.astype(jnp.int32))
        return kernel(query, key, value, segments)

    return jnp.swapaxes(jax.vmap(attend_one)(query, key, value, lengths), 1, 2)[:, :queries]


def _padded(x, size: int):
    """Heads first, and tokens up to a multiple of `size`: f[B, L, heads, D] -> f[B, heads, L', D]."""
    return jnp.pad(jnp.swapaxes(x, 1, 2), ((0, 0), (0, 0), (0, -x.shape[1] % size), (0, 0)))
