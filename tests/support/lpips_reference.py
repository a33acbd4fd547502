"""LPIPS on AlexNet as its paper and the `lpips` package define it, in torch, with random weights under all names."""

import functools

import numpy as np
import torch
from flax import nnx
from torch import nn

from dreambooth_jax.models import functional
from dreambooth_jax.models.lpips import LPIPS
from dreambooth_jax.weights import aliases, mapping

# torchvision's alexnet().features: convolutions by index, and which layers give the features.
CONVOLUTIONS = {
    0: (3, 64, 11, 4, 2),
    3: (64, 192, 5, 1, 2),
    6: (192, 384, 3, 1, 1),
    8: (384, 256, 3, 1, 1),
    10: (256, 256, 3, 1, 1),
}
AFTER_RELU = (1, 4, 7, 9, 11)


@functools.cache
def alexnet():
    torch.manual_seed(0)
    layers = []
    for index in range(12):
        if index in CONVOLUTIONS:
            channels, features, side, stride, padding = CONVOLUTIONS[index]
            layers.append(nn.Conv2d(channels, features, side, stride=stride, padding=padding))
        else:
            layers.append(nn.MaxPool2d(3, stride=2) if index in (2, 5) else nn.ReLU())
    return nn.Sequential(*layers)


@functools.cache
def channel_weights():
    generator = torch.Generator().manual_seed(1)
    return [torch.rand(1, CONVOLUTIONS[index][1], 1, 1, generator=generator) for index in CONVOLUTIONS]


def distance(first, second):
    """f32[B, 3, H, W] in [-1, 1] -> f32[B]: equation 1 of the paper, with the scaled input of version 0.1."""
    shift, scale = (torch.tensor(v).view(1, 3, 1, 1) for v in ((-0.030, -0.088, -0.188), (0.458, 0.448, 0.450)))
    total = torch.zeros(len(first))
    x, y = (first - shift) / scale, (second - shift) / scale
    weights = iter(channel_weights())
    for index, layer in enumerate(alexnet()):
        x, y = layer(x), layer(y)
        if index in AFTER_RELU:
            a, b = (f / (f.pow(2).sum(1, keepdim=True).sqrt() + 1e-10) for f in (x, y))
            total = total + nn.functional.conv2d((a - b) ** 2, next(weights)).mean(dim=(1, 2, 3))
    return total.detach().numpy()


def torchvision_names():
    """torchvision's AlexNet, with its classifier, and the package's file of weights of channels."""
    tensors = {f'features.{name}': value.numpy() for name, value in alexnet().state_dict().items()}
    tensors |= {f'classifier.{i}.{kind}': np.zeros(3, np.float32) for i in (1, 4, 6) for kind in ('weight', 'bias')}
    return tensors | {f'lin{i}.model.1.weight': value.numpy() for i, value in enumerate(channel_weights())}


def package_names():
    """The state of the package's LPIPS(net='alex'), version 0.1.4."""
    tensors = {'scaling_layer.shift': np.zeros((1, 3, 1, 1)), 'scaling_layer.scale': np.zeros((1, 3, 1, 1))}
    for place, index in enumerate(CONVOLUTIONS, 1):
        for kind, value in alexnet()[index].state_dict().items():
            tensors[f'net.slice{place}.{index}.{kind}'] = value.numpy()
    for i, value in enumerate(channel_weights()):
        tensors[f'lin{i}.model.1.weight'] = tensors[f'lins.{i}.model.1.weight'] = value.numpy()
    return tensors


def model():
    return nnx.eval_shape(lambda: LPIPS(rngs=functional.Keys(0)))


def load(tensors):
    return mapping.load(model(), tensors, aliases=aliases.LPIPS_ALIASES, ignored=aliases.LPIPS_IGNORED)
