"""Softmax attention, whose implementation is chosen only here, and the attention layers of DeepFloyd IF.

On NVIDIA cards, in half precision, cuDNN's flash kernel computes the attention if it supports the shapes; on TPUs, in
bfloat16, JAX's splash kernel if the logits would be large (splash.py). Then the logits are never stored. On CPUs it is
computed in a form that is fast with XLA's CPU backend, and everywhere else with jax.nn's implementation for XLA.
Without a kernel, the queries are split into parts if the logits of all of them would be large, and each part is
computed again in the backward pass. So the logits of all queries are never stored either: Rabe & Staats 2021,
Self-attention Does Not Need O(n^2) Memory.

Logits and softmax are f32, whatever the compute dtype is. Attributes have the names of the published checkpoints.

Source: diffusers 0.42.1 models/attention_processor.py (Attention, AttnAddedKVProcessor2_0), models/embeddings.py.
"""

import jax
import jax.numpy as jnp
from flax import nnx

from dreambooth_jax.models import splash
from dreambooth_jax.models.functional import call
from dreambooth_jax.models.layers import GroupNorm, layer_norm
from dreambooth_jax.system import cuda

# The norm of the text states inside attention has its own number of groups, independent of norm_num_groups. It is
# `cross_attention_norm_num_groups` of diffusers' Attention, which no configuration sets.
CROSS_NORM_GROUPS = 32
FLASH_DTYPES = (jnp.bfloat16, jnp.float16)
FLASH_QUERIES = 128  # with fewer queries, such as the single one of AttentionPooling, the logits are small anyway
PART = 2**21  # most logits of a head in one part: 512 queries for an image of 512 x 512 px in Stable Diffusion
LARGE = 2 * PART  # if a head has more logits than this, they are computed in parts


def attend(query, key, value, *, scale: float, bias=None, lengths=None):
    """Computes softmax attention for each head.

    Args:
      query: f[B, Q, heads, D].
      key: f[B, K, heads, D] with the dtype of `query`.
      value: f[B, K, heads, D] with the dtype of `query`.
      scale: factor on the logits.
      bias: f32 with four axes, broadcastable to [B, heads, Q, K]; it is added to the scaled logits.
      lengths: i32[B], how many of the first keys of each example are attended, at least one; None: all. Unlike a bias
        that hides the others, it leaves the choice of a kernel.

    Returns:
      f[B, Q, heads, D] with the dtype of `value`.
    """
    name = kernel(query.shape, key.shape[1], query.dtype, bias is not None)
    if name == 'cudnn':
        return _flash_attend(query, key, value, scale, lengths)
    if name == 'splash':
        return splash.splash_attend(query, key, value, scale=scale, lengths=lengths)
    queries, keys = query.shape[1], key.shape[1]
    if lengths is not None:
        is_attended = jnp.arange(keys) < lengths[:, None, None, None]
        hiding = jnp.where(is_attended, 0.0, jnp.finfo(jnp.float32).min)
        bias = hiding if bias is None else bias + hiding
    # A bias of its own for each query is as large as the logits anyway.
    parts = _parts(queries, keys) if bias is None or bias.shape[2] == 1 else 1
    if parts == 1:
        return _attend_at_once(query, key, value, scale, bias)

    @jax.checkpoint
    def attend_part(part):
        return _attend_at_once(part, key, value, scale, bias)

    batch, _, *head = query.shape
    split = jnp.moveaxis(query.reshape(batch, parts, queries // parts, *head), 1, 0)
    return jnp.moveaxis(jax.lax.map(attend_part, split), 0, 1).reshape(query.shape)


def kernel(query_shape: tuple[int, ...], keys: int, dtype, has_bias: bool) -> str | None:
    """Returns which kernel computes this attention on the devices at hand: 'cudnn', 'splash' or None.

    Args:
      query_shape: (B, Q, heads, D).
      keys: their number, K.
      dtype: dtype of the queries.
      has_bias: whether there is a bias.
    """
    backend = jax.default_backend()
    if backend == 'cpu':
        return None
    if flash_fits(query_shape, dtype, has_bias, cuda.capability()):
        return 'cudnn'
    is_large = _parts(query_shape[1], keys) > 1
    fits = backend == 'tpu' and is_large and splash.splash_fits(query_shape, dtype, has_bias, splash.shards())
    return 'splash' if fits else None


def _parts(queries: int, keys: int) -> int:
    """Number of equal parts of the queries: the smallest for which the logits of a part are at most PART."""
    if queries * keys <= LARGE:
        return 1
    return next(parts for parts in range(-(-queries * keys // PART), queries + 1) if queries % parts == 0)


def _attend_at_once(query, key, value, scale, bias=None):
    if jax.default_backend() == 'cpu':
        return _attend_on_cpu(query, key, value, scale, bias)
    return jax.nn.dot_product_attention(query, key, value, bias, scale=scale, implementation='xla')


def flash_fits(query_shape, dtype, has_bias: bool, capability: tuple[int, int] | None) -> bool:
    """Whether cuDNN's flash attention should compute this.

    Args:
      query_shape: (B, Q, heads, D).
      dtype: dtype of the queries.
      has_bias: whether there is a bias. Then nothing is gained, because its gradient is as large as the logits.
      capability: compute capability of the NVIDIA card; None on other devices.

    Source: jax 0.10 _src/cudnn/fused_attention_stablehlo.py, check_is_flash_attention; cuDNN requires at least Ampere.
    """
    if capability is None or capability < (8, 0) or has_bias or dtype not in FLASH_DTYPES:
        return False
    _, queries, _, width = query_shape
    widest = 256 if capability >= (9, 0) else 128
    return queries >= FLASH_QUERIES and queries % 2 == 0 and width % 8 == 0 and width <= widest


def _flash_attend(query, key, value, scale, lengths=None):
    batch, length = key.shape[:2]
    if length % 2:
        # cuDNN's gradient needs an even length, but a text has 77 tokens. So one token is added that is never attended.
        key, value = (jnp.pad(part, ((0, 0), (0, 1), (0, 0), (0, 0))) for part in (key, value))
        lengths = jnp.full(batch, length, jnp.int32) if lengths is None else lengths
    options = {} if lengths is None else {'key_value_seq_lengths': lengths}
    return jax.nn.dot_product_attention(query, key, value, scale=scale, implementation='cudnn', **options)


def _attend_on_cpu(query, key, value, scale, bias):
    # Moving the heads before the tokens first is faster: if one einsum computes the same products, as in
    # jax.nn.dot_product_attention, XLA's CPU backend takes twice as long (134 ms against 310 ms with gradients, on two
    # cores, for 2 x 1024 tokens and 8 heads of 40).
    query, key, value = (jnp.swapaxes(part, 1, 2) for part in (query * scale, key, value))
    logits = jnp.einsum('bhqd,bhkd->bhqk', query, key, preferred_element_type=jnp.float32)
    if bias is not None:
        logits = logits + bias
    weights = jax.nn.softmax(logits, axis=-1).astype(value.dtype)
    return jnp.swapaxes(jnp.einsum('bhqk,bhkd->bhqd', weights, value), 1, 2)


def split_heads(x, heads: int):
    """Splits f[B, L, heads * D] into f[B, L, heads, D]; the channels of a head are adjacent, as in torch."""
    return x.reshape(*x.shape[:-1], heads, x.shape[-1] // heads)


class AddedKVAttention(nnx.Module):
    """Residual attention of pixels to the tokens of the text and, unless only_cross_attention, to all pixels.

    Args:
      channels: channels of the feature map.
      head_dim: width of a head, a divisor of `channels`.
      text_channels: width of the text states.
      groups: number of groups of the norm at the input.
      epsilon: epsilon of the norm at the input.
      cross_norm: norm of the text states: None, 'layer_norm' or 'group_norm'.
      only_cross_attention: if true, pixels do not attend to pixels.
      remat: whether everything except the residual sum is computed again in the backward pass.
      dtype: compute dtype.
      rngs: source of the initial parameters.
    """

    def __init__(
        self,
        channels: int,
        head_dim: int,
        text_channels: int,
        *,
        groups: int,
        epsilon: float,
        cross_norm: str | None,
        only_cross_attention: bool,
        remat: bool = False,
        dtype,
        rngs: nnx.Rngs,
    ):
        def dense(in_features, **options):
            return nnx.Linear(in_features, channels, dtype=dtype, rngs=rngs, **options)

        self.heads = channels // head_dim
        self.scale = head_dim**-0.5
        self.only_cross_attention = only_cross_attention
        self.remat = remat
        self.group_norm = GroupNorm(channels, groups, epsilon, dtype=dtype, rngs=rngs)
        if cross_norm == 'group_norm':
            self.norm_cross = GroupNorm(text_channels, CROSS_NORM_GROUPS, 1e-5, dtype=dtype, rngs=rngs)
        elif cross_norm == 'layer_norm':
            self.norm_cross = layer_norm(text_channels, dtype=dtype, rngs=rngs)
        else:
            self.norm_cross = None
        self.to_q = dense(channels)
        if not only_cross_attention:
            self.to_k = dense(channels)
            self.to_v = dense(channels)
        self.add_k_proj = dense(text_channels)
        self.add_v_proj = dense(text_channels)
        self.to_out = nnx.List([dense(channels, kernel_init=nnx.initializers.zeros_init())])

    def __call__(self, x, text):
        """Maps x f[B, H, W, channels] and text f[B, L, text_channels] to f[B, H, W, channels]."""
        return x + call(self._branch, x, text, remat=self.remat)

    def _branch(self, x, text):
        pixels = self.group_norm(x.reshape(x.shape[0], -1, x.shape[-1]))
        if self.norm_cross is not None:
            text = self.norm_cross(text)
        key, value = self.add_k_proj(text), self.add_v_proj(text)
        if not self.only_cross_attention:
            key = jnp.concatenate([key, self.to_k(pixels)], axis=1)
            value = jnp.concatenate([value, self.to_v(pixels)], axis=1)
        query, key, value = (split_heads(part, self.heads) for part in (self.to_q(pixels), key, value))
        return self.to_out[0](attend(query, key, value, scale=self.scale).reshape(x.shape))


class AttentionPooling(nnx.Module):
    """Pools f[B, L, features] to f[B, features].

    The mean of the tokens, to which a learned bias is added, attends to itself and to all tokens.
    """

    def __init__(self, features: int, heads: int, *, dtype, rngs: nnx.Rngs):
        self.heads = heads
        start = jax.random.normal(rngs.params(), (1, features)) / features**0.5
        self.positional_embedding = nnx.Param(start)
        self.k_proj = nnx.Linear(features, features, dtype=dtype, rngs=rngs)
        self.q_proj = nnx.Linear(features, features, dtype=dtype, rngs=rngs)
        self.v_proj = nnx.Linear(features, features, dtype=dtype, rngs=rngs)

    def __call__(self, x):
        mean = jnp.mean(x, axis=1, keepdims=True) + self.positional_embedding[...].astype(x.dtype)
        x = jnp.concatenate([mean, x], axis=1)
        query, key, value = (
            split_heads(part, self.heads) for part in (self.q_proj(mean), self.k_proj(x), self.v_proj(x))
        )
        pooled = attend(query, key, value, scale=query.shape[-1] ** -0.5)
        return pooled.reshape(x.shape[0], x.shape[-1])


class TextTimeEmbedding(nnx.Module):
    """Computes what the text adds to the time features: f[B, L, text_features] -> f[B, features]."""

    def __init__(self, text_features: int, features: int, heads: int, *, dtype, rngs: nnx.Rngs):
        self.norm1 = layer_norm(text_features, dtype=dtype, rngs=rngs)
        self.pool = AttentionPooling(text_features, heads, dtype=dtype, rngs=rngs)
        self.proj = nnx.Linear(text_features, features, dtype=dtype, rngs=rngs)
        self.norm2 = layer_norm(features, dtype=dtype, rngs=rngs)

    def __call__(self, text):
        return self.norm2(self.proj(self.pool(self.norm1(text))))
