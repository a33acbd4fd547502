"""The transformer of Z-Image, which predicts the negative velocity x0 - noise of latents.

Two refiner blocks for the image and two for the text come first; then one stream of image and text passes through all
other blocks. Image and text are each padded to a multiple of 32 tokens by learned tokens, which are attended to; only
what makes the texts of a batch equally long is masked. Submodules have the names of the published checkpoints.

Source: diffusers 0.42.1 models/transformers/transformer_z_image.py; Cai et al. 2025 (Z-Image).
"""

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from dreambooth_jax.models import configuration, rotary, scanned
from dreambooth_jax.models.attention import attend
from dreambooth_jax.models.dit import ZERO, HeadNorms, normalise
from dreambooth_jax.models.layers import sinusoidal_embedding

# Defaults in the constructor of diffusers' ZImageTransformer2DModel.
DEFAULTS: dict[str, Any] = {
    'all_patch_size': (2,),
    'all_f_patch_size': (1,),
    'in_channels': 16,
    'dim': 3840,
    'n_layers': 30,
    'n_refiner_layers': 2,
    'n_heads': 30,
    'n_kv_heads': 30,
    'norm_eps': 1e-5,
    'qk_norm': True,
    'cap_feat_dim': 2560,
    'siglip_feat_dim': None,
    'rope_theta': 256.0,
    't_scale': 1000.0,
    'axes_dims': (32, 48, 48),
    'axes_lens': (1024, 512, 512),
}
PATCH = 2  # side of the square of latents that is a token
MULTIPLE = 32  # tokens; image and text are padded to a multiple of it
TIME_FEATURES = 256  # most features of the embedded time
TIME_HIDDEN = 1024
SINUSOIDS = 256
EPSILON, LAST_EPSILON = 1e-5, 1e-6  # of the norms of heads and of the last norm; no configuration sets them


def resolve(config: Mapping[str, Any]) -> dict[str, Any]:
    """Checks and completes the transformer's config.json.

    Args:
      config: as diffusers writes it. Keys that start with '_' are ignored; missing keys have diffusers' defaults.

    Returns:
      All keys of DEFAULTS.

    Raises:
      ValueError: one sentence with the key, the value found and the values allowed.
    """
    configuration.check_known('z_image', config, DEFAULTS)
    full = configuration.resolve('z_image', config, DEFAULTS, choices={}, fixed=('qk_norm', 'siglip_feat_dim'))
    for key, only in (('all_patch_size', PATCH), ('all_f_patch_size', 1)):
        if not isinstance(full[key], list | tuple) or list(full[key]) != [only]:
            raise configuration.wrong('z_image', key, full[key], f'[{only}]: no other value is implemented')
    heads, width = full['n_heads'], full['dim']
    if full['n_kv_heads'] != heads:
        raise configuration.wrong('z_image', 'n_kv_heads', full['n_kv_heads'], f'n_heads, which is {heads}')
    if width % heads:
        raise configuration.wrong('z_image', 'n_heads', heads, f'a divisor of dim, which is {width}')
    for key in ('axes_dims', 'axes_lens'):
        axes = full[key]
        if (
            not isinstance(axes, list | tuple)
            or len(axes) != 3
            or not all(configuration.is_positive(n, int) for n in axes)
        ):
            raise configuration.wrong('z_image', key, axes, 'a list of 3 positive integers')
    if any(axis % 2 for axis in full['axes_dims']) or sum(full['axes_dims']) != width // heads:
        allowed = f'even integers with the sum dim / n_heads, which is {width // heads}'
        raise configuration.wrong('z_image', 'axes_dims', full['axes_dims'], allowed)
    return full


def patches(latents):
    """Makes a token of each square of latents, channels last: f[B, h, w, C] -> f[B, h / 2 * w / 2, 4 C]."""
    batch, height, width, channels = latents.shape
    squares = latents.reshape(batch, height // PATCH, PATCH, width // PATCH, PATCH, channels)
    return squares.transpose(0, 1, 3, 2, 4, 5).reshape(batch, -1, PATCH**2 * channels)


def from_patches(tokens, height: int, width: int):
    """Undoes `patches`: f[B, h / 2 * w / 2, 4 C] -> f[B, h, w, C]."""
    squares = tokens.reshape(len(tokens), height // PATCH, width // PATCH, PATCH, PATCH, -1)
    return squares.transpose(0, 1, 3, 2, 4, 5).reshape(len(tokens), height, width, -1)


def padded_length(length):
    """Returns the next multiple of MULTIPLE; `length` is an integer or an integer array."""
    return (length + MULTIPLE - 1) // MULTIPLE * MULTIPLE


def _norm(features, epsilon, made):
    return nnx.RMSNorm(features, epsilon=epsilon, **made)


class Attention(HeadNorms):
    """Self-attention over f[B, L, width]."""

    def __init__(self, c, made):
        width, heads = c['dim'], c['n_heads']
        super().__init__(heads, width // heads, EPSILON, **made)

        def dense():
            return nnx.Linear(width, width, use_bias=False, **made)

        self.to_q, self.to_k, self.to_v = dense(), dense(), dense()
        self.to_out = nnx.List([dense()])

    def __call__(self, x, rotation, lengths):
        query, key, value = self.split(self.to_q(x), self.to_k(x), self.to_v(x))
        query, key = (rotary.rotate_neighbours(part, *rotation) for part in (query, key))
        attended = attend(query, key, value, scale=query.shape[-1] ** -0.5, lengths=lengths)
        return self.to_out[0](attended.reshape(x.shape))


class FeedForward(nnx.Module):
    """Computes w2(silu(w1 x) * w3 x)."""

    def __init__(self, width: int, made):
        hidden = int(width / 3 * 8)
        self.w1 = nnx.Linear(width, hidden, use_bias=False, **made)
        self.w2 = nnx.Linear(hidden, width, use_bias=False, **made)
        self.w3 = nnx.Linear(width, hidden, use_bias=False, **made)

    def __call__(self, x):
        return self.w2(jax.nn.silu(self.w1(x)) * self.w3(x))


class Block(nnx.Module):
    """Residual self-attention and feed-forward layer between norms, with scales and gates of the time if modulated."""

    def __init__(self, c, made, *, modulated: bool):
        width, epsilon = c['dim'], c['norm_eps']
        self.attention = Attention(c, made)
        self.feed_forward = FeedForward(width, made)
        self.attention_norm1 = _norm(width, epsilon, made)
        self.ffn_norm1 = _norm(width, epsilon, made)
        self.attention_norm2 = _norm(width, epsilon, made)
        self.ffn_norm2 = _norm(width, epsilon, made)
        features = min(width, TIME_FEATURES)
        self.adaLN_modulation = (
            nnx.List([nnx.Linear(features, 4 * width, kernel_init=ZERO, **made)]) if modulated else None
        )

    def __call__(self, x, rotation, lengths, time=None):
        """Maps x f[B, L, width] to the same shape.

        Args:
          x: the tokens.
          rotation: their cosines and sines.
          lengths: i32[B], how many of the first tokens are attended; None: all.
          time: time features f[B, TIME_FEATURES] if the block is modulated.
        """
        scale = ff_scale = gate = ff_gate = 0.0
        if self.adaLN_modulation is not None:
            scale, gate, ff_scale, ff_gate = jnp.split(self.adaLN_modulation[0](time)[:, None, :], 4, axis=-1)
            gate, ff_gate = jnp.tanh(gate), jnp.tanh(ff_gate)
        else:
            gate = ff_gate = 1.0
        x = x + gate * self.attention_norm2(self.attention(self.attention_norm1(x) * (1 + scale), rotation, lengths))
        return x + ff_gate * self.ffn_norm2(self.feed_forward(self.ffn_norm1(x) * (1 + ff_scale)))


class TimeEmbedder(nnx.Module):
    """Embeds times f32[B], already multiplied by t_scale, as f[B, features]."""

    def __init__(self, features: int, made):
        self.mlp = nnx.List(
            [nnx.Linear(SINUSOIDS, TIME_HIDDEN, **made), None, nnx.Linear(TIME_HIDDEN, features, **made)]
        )

    def __call__(self, time):
        return self.mlp[2](jax.nn.silu(self.mlp[0](sinusoidal_embedding(time, SINUSOIDS))))


class FinalLayer(nnx.Module):
    """The last norm, scaled by the time, and the projection of tokens to latents."""

    def __init__(self, width: int, channels: int, made):
        self.linear = nnx.Linear(width, channels, kernel_init=ZERO, **made)
        self.adaLN_modulation = nnx.List([None, nnx.Linear(min(width, TIME_FEATURES), width, kernel_init=ZERO, **made)])

    def __call__(self, x, time):
        scale = self.adaLN_modulation[1](jax.nn.silu(time))[:, None, :]
        return self.linear(normalise(x, LAST_EPSILON) * (1 + scale))


class ZImageTransformer2DModel(nnx.Module):
    """The transformer.

    Args:
      config: contents of a diffusers config.json; missing keys have diffusers' defaults.
      dtype: compute dtype; parameters are f32.
      remat: whether every block is computed again in the backward pass. Values and gradients stay the same; it needs
        less memory and about a third more time.
      scan: whether equal blocks are one loop of the compiled program (scanned.py).
      rngs: source of the initial parameters. Modulations, the output and the learned padding start at zero.

    Raises:
      ValueError: one sentence, if the configuration is not supported (`resolve`).
    """

    def __init__(
        self,
        config: Mapping[str, Any],
        *,
        dtype=jnp.float32,
        remat: bool = False,
        scan: bool = True,
        rngs: nnx.Rngs,
    ):
        c = resolve(config)
        made = {'dtype': dtype, 'rngs': rngs}
        width, channels, name = c['dim'], PATCH**2 * c['in_channels'], f'{PATCH}-1'

        def blocks(count, *, modulated):
            return nnx.List([Block(c, made, modulated=modulated) for _ in range(count)])

        self.all_x_embedder = nnx.Dict({name: nnx.Linear(channels, width, **made)})
        self.all_final_layer = nnx.Dict({name: FinalLayer(width, channels, made)})
        self.noise_refiner = blocks(c['n_refiner_layers'], modulated=True)
        self.context_refiner = blocks(c['n_refiner_layers'], modulated=False)
        self.t_embedder = TimeEmbedder(min(width, TIME_FEATURES), made)
        text_width = c['cap_feat_dim']
        self.cap_embedder = nnx.List([_norm(text_width, c['norm_eps'], made), nnx.Linear(text_width, width, **made)])
        self.x_pad_token = nnx.Param(jnp.zeros((1, width), jnp.float32))
        self.cap_pad_token = nnx.Param(jnp.zeros((1, width), jnp.float32))
        self.layers = blocks(c['n_layers'], modulated=True)

        self.patch_name, self.dtype, self.remat, self.scan = name, dtype, remat, scan
        self.axes, self.theta, self.time_scale = tuple(c['axes_dims']), float(c['rope_theta']), float(c['t_scale'])
        self.longest = tuple(c['axes_lens'])
        self.in_channels, self.text_width = c['in_channels'], text_width

    def __call__(self, sample, timesteps, encoder_hidden_states, encoder_attention_mask):
        """Predicts the negative velocity x0 - noise.

        Args:
          sample: noisy latents f[B, h, w, in_channels], shifted and scaled; h and w are even.
          timesteps: f32[B] in 0..1, the share of the image (one minus that of the noise), or a scalar for all examples.
          encoder_hidden_states: text states f[B, L, cap_feat_dim].
          encoder_attention_mask: int or bool [B, L], zero for padding, which comes after the text. States of padding
            are not used.

        Returns:
          f32[B, h, w, in_channels].

        Raises:
          ValueError: if a shape does not fit, or if the text or the image has more tokens than axes_lens allows.
        """
        self._check(sample, encoder_hidden_states)
        batch, height, width, _ = sample.shape
        time = jnp.broadcast_to(jnp.asarray(timesteps, jnp.float32), (batch,))
        time = self.t_embedder(self.time_scale * time)
        counts = jnp.sum(jnp.asarray(encoder_attention_mask) != 0, axis=1)
        text, of_text, lengths = self._text(encoder_hidden_states, counts)
        x, of_image = self._image(sample, counts)

        how = {'remat': self.remat, 'scan': self.scan}
        x = scanned.run(self.noise_refiner, x, of_image, None, time, **how)
        # Something must be attended, even where there is no text.
        text = scanned.run(self.context_refiner, text, of_text, jnp.maximum(lengths, 1), **how)
        tokens = x.shape[1]
        x = jnp.concatenate([x, text], axis=1)
        rotation = tuple(
            jnp.concatenate([jnp.broadcast_to(part, (batch, *part.shape[1:])) for part in parts], axis=1)
            for parts in zip(of_image, of_text, strict=True)
        )
        x = scanned.run(self.layers, x, rotation, tokens + lengths, time, **how)
        x = x[:, : height * width // PATCH**2]
        return from_patches(self.all_final_layer[self.patch_name](x, time).astype(jnp.float32), height, width)

    def _text(self, states, counts):
        """Embeds and pads the text.

        Returns:
          (tokens f[B, L', width], their cosines and sines, i32[B], how many come before those that pad only the batch).
        """
        length = states.shape[1]
        whole = padded_length(length)
        norm, dense = self.cap_embedder
        tokens = jnp.pad(dense(norm(states.astype(self.dtype))), ((0, 0), (0, whole - length), (0, 0)))
        places = np.arange(whole)
        is_text = places < counts[:, None]
        tokens = jnp.where(is_text[..., None], tokens, self.cap_pad_token[...].astype(self.dtype))
        positions = np.stack([1 + places, 0 * places, 0 * places], axis=-1)
        rotation = rotary.of_heads(rotary.axes_angles(positions, self.axes, self.theta))
        return tokens, tuple(part[None] for part in rotation), padded_length(counts)

    def _image(self, sample, counts):
        """Embeds and pads the image; returns (tokens f[B, N', width], their cosines and sines f32[B, N', 1, D / 2])."""
        _, height, width, _ = sample.shape
        tokens = self.all_x_embedder[self.patch_name](patches(sample.astype(self.dtype)))
        count = tokens.shape[1]
        added = padded_length(count) - count
        padding = jnp.broadcast_to(self.x_pad_token[...].astype(self.dtype), (len(tokens), added, tokens.shape[-1]))
        tokens = jnp.concatenate([tokens, padding], axis=1)
        # The image comes after the padded text on the first axis; what pads the image is at zero on all axes.
        frames = jnp.where(np.arange(count + added) < count, padded_length(counts)[:, None] + 1, 0)
        table = rotary.of_heads(rotary.angles(np.arange(self.longest[0]), self.axes[0], self.theta))
        grid = np.concatenate([rotary.grid(height // PATCH, width // PATCH), np.zeros((added, 2), np.int64)])
        places = rotary.of_heads(rotary.axes_angles(grid, self.axes[1:], self.theta))
        return tokens, tuple(
            jnp.concatenate(
                [jnp.asarray(of_frame)[frames], jnp.broadcast_to(place, (len(tokens), *place.shape))], axis=-1
            )
            for of_frame, place in zip(table, places, strict=True)
        )

    def _check(self, sample, text):
        if sample.ndim != 4 or sample.shape[-1] != self.in_channels or any(side % PATCH for side in sample.shape[1:3]):
            wanted = f'[B, h, w, {self.in_channels}] with h and w multiples of {PATCH}'
            raise ValueError(f'z_image: sample has shape {sample.shape} but must be {wanted}')
        if text.ndim != 3 or text.shape[-1] != self.text_width:
            raise ValueError(
                f'z_image: encoder_hidden_states have shape {text.shape} but must be [B, L, {self.text_width}]'
            )
        sides = tuple(side // PATCH for side in sample.shape[1:3])
        sizes = (padded_length(text.shape[1]) + 2, *sides)  # the image lies behind the text, on the axis of frames
        if any(size > longest for size, longest in zip(sizes, self.longest, strict=True)):
            raise ValueError(
                f'z_image: a text of {text.shape[1]} and an image of {sides[0]} x {sides[1]} tokens exceed axes_lens, '
                f'which is {self.longest}'
            )
