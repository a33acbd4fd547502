"""LPIPS, the learned perceptual distance of two images, version 0.1 on AlexNet's features.

The features of five layers are normalised to unit length at every position; their squared differences are weighted per
channel, averaged over the positions and added up.

Submodules have the names of the `lpips` package: net.slice2.3 is features.3 of torchvision's AlexNet.

Source: Zhang et al. 2018, The Unreasonable Effectiveness of Deep Features as a Perceptual Metric, equation 1; version
0.1 of its code, which scales the input; Krizhevsky 2014 (one tower), as in torchvision.
"""

import jax
import jax.numpy as jnp
from flax import nnx

# Mean and deviation of ImageNet, for images in [-1, 1].
SHIFT = (-0.030, -0.088, -0.188)
SCALE = (0.458, 0.448, 0.450)
SMALLEST = 31  # side of an image whose last feature map still has one position
_UNIT_EPSILON = 1e-10

# Index in torchvision's features, output channels, side of the kernel, stride, padding. The layers after an index that
# skips one start with a maximum over 3 x 3 positions and a stride of 2.
_LAYERS = ((0, 64, 11, 4, 2), (3, 192, 5, 1, 2), (6, 384, 3, 1, 1), (8, 256, 3, 1, 1), (10, 256, 3, 1, 1))
_POOLED_BEFORE = (3, 6)


class LPIPS(nnx.Module):
    """The distance of two images; everything is computed in f32.

    Args:
      rngs: source of the initial parameters, which have no meaning: the network is only evaluated here.
    """

    def __init__(self, *, rngs: nnx.Rngs):
        slices, channels = {}, 3
        for place, (index, features, side, stride, padding) in enumerate(_LAYERS):
            conv = nnx.Conv(
                channels, features, (side,) * 2, (stride,) * 2, padding=((padding, padding),) * 2, rngs=rngs
            )
            slices[f'slice{place + 1}'] = nnx.Dict({str(index): conv})
            weights = nnx.Conv(features, 1, (1, 1), use_bias=False, rngs=rngs)
            # A dropout precedes it in the package.
            setattr(self, f'lin{place}', nnx.Dict({'model': nnx.Dict({'1': weights})}))
            channels = features
        self.net = nnx.Dict(slices)

    def __call__(self, first, second):
        """Compares pairs of images.

        Args:
          first: f32[B, H, W, 3] in [-1, 1], with H and W of at least SMALLEST.
          second: the same shape.

        Returns:
          f32[B], at least 0 with published weights, which are not negative; 0 for equal images.

        Raises:
          ValueError: if the shapes differ or are too small.
        """
        if first.shape != second.shape or first.ndim != 4 or first.shape[-1] != 3 or min(first.shape[1:3]) < SMALLEST:
            allowed = f'equal [B, H, W, 3] with H and W of at least {SMALLEST}'
            raise ValueError(f'lpips: images have shapes {first.shape} and {second.shape} but must be {allowed}')
        distance = jnp.zeros(len(first), jnp.float32)
        for place, (one, other) in enumerate(zip(self._features(first), self._features(second), strict=True)):
            weights = getattr(self, f'lin{place}')['model']['1']
            distance += jnp.mean(weights(jnp.square(_unit(one) - _unit(other))), axis=(1, 2, 3))
        return distance

    def _features(self, images):
        """f32[B, H, W, 3] -> the features of the five layers, f32[B, h, w, C] each."""
        x = (images - jnp.asarray(SHIFT)) / jnp.asarray(SCALE)
        found = []
        for place, (index, *_) in enumerate(_LAYERS):
            if index in _POOLED_BEFORE:
                x = nnx.max_pool(x, (3, 3), strides=(2, 2))
            x = jax.nn.relu(self.net[f'slice{place + 1}'][str(index)](x))
            found.append(x)
        return found


def _unit(x):
    return x / (jnp.sqrt(jnp.sum(jnp.square(x), axis=-1, keepdims=True)) + _UNIT_EPSILON)
