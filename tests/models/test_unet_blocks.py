"""Blocks of the UNet: the residual block as diffusers computes it, and in which order a stack calls its layers."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from diffusers.models.resnet import ResnetBlock2D as TorchResnet
from diffusers.models.unets import unet_2d_blocks
from flax import nnx

from dreambooth_jax.models import functional, unet_blocks
from dreambooth_jax.models.layers import average_pool, nearest_upsample
from dreambooth_jax.models.unet_blocks import DownBlock, MidBlock, ResnetBlock2D, UpBlock
from tests.support.torch_reference import nchw, nhwc, quick_jit, randomise, to_ours

RESAMPLE = {'down': average_pool, 'up': nearest_upsample}


@pytest.mark.parametrize(
    ('outputs', 'shift', 'options'),
    [
        (4, 'default', {}),
        (6, 'scale_shift', {'output_scale_factor': 1.4}),
        (6, 'scale_shift', {'skip_time_act': True, 'down': True}),
        (4, 'default', {'up': True, 'non_linearity': 'gelu'}),
        (6, None, {}),  # as in an autoencoder, without the time
    ],
)
def test_a_residual_block_equals_that_of_diffusers(outputs, shift, options):
    features = 5 if shift else None
    shared = {'groups': 2, 'temb_channels': features, 'time_embedding_norm': shift or 'default', 'eps': 1e-5}
    theirs = TorchResnet(in_channels=4, out_channels=outputs, **shared, **{'non_linearity': 'silu', **options})
    randomise(theirs, seed=1, std=0.3)
    rng = np.random.default_rng(2)
    x, time = (rng.normal(size=shape).astype(np.float32) for shape in ((2, 4, 6, 4), (2, 5)))
    inputs = (x, time) if shift else (x,)
    with torch.no_grad():
        expected = nhwc(theirs(nchw(x), torch.from_numpy(time) if shift else None))
    apply, shapes = functional.abstract(
        lambda: ResnetBlock2D(
            4,
            outputs,
            time_features=features,
            groups=2,
            epsilon=1e-5,
            activation=options.get('non_linearity', 'silu'),
            time_scale_shift=shared['time_embedding_norm'],
            skip_time_act=options.get('skip_time_act', False),
            out_scale_factor=options.get('output_scale_factor', 1.0),
            resample=next((RESAMPLE[name] for name in options if name in RESAMPLE), None),
            dtype=jnp.float32,
            rngs=functional.Keys(0),
        )
    )
    params = to_ours(theirs)
    assert {name: value.shape for name, value in params.items()} == {k: v.shape for k, v in shapes.items()}
    np.testing.assert_allclose(quick_jit(apply)(params, *inputs), expected, atol=1e-4)


@pytest.mark.parametrize('table', [unet_blocks.DOWN_BLOCKS, unet_blocks.MID_BLOCKS, unet_blocks.UP_BLOCKS])
def test_blocks_have_the_names_of_diffusers_and_attend_as_their_names_say(table):
    for name, kind in table.items():
        assert hasattr(unet_2d_blocks, name)
        assert (kind.attention is not None) == ('CrossAttn' in name)
        assert (kind.attention == 'added_kv') == ('SimpleCrossAttn' in name)
        assert (kind.resampling == 'resnet') == ('Resnet' in name or 'Simple' in name)


class Layer(nnx.Module):
    """Notes that it was called, and gives its input's first `out` channels, filled up with ones."""

    def __init__(self, calls, name, out):
        self.note = lambda x: calls.append((name, x.shape))
        self.out = out

    def __call__(self, x, *others):
        self.note(x)
        missing = max(0, self.out - x.shape[-1])
        return jnp.pad(x, [(0, 0)] * 3 + [(0, missing)], constant_values=1)[..., : self.out]


def layers(calls):
    return {
        'resnet': lambda inputs, outputs: Layer(calls, f'resnet {inputs} {outputs}', outputs),
        'attention': lambda channels: Layer(calls, 'attention', channels),
    }


X = jnp.zeros((1, 2, 2, 3))


def test_down_blocks_keep_a_state_after_every_layer():
    calls = []
    block = DownBlock([(3, 4), (4, 4)], **layers(calls), downsampler=lambda channels: Layer(calls, 'down', channels))
    x, states = block(X, None, None)
    assert [name for name, _ in calls] == ['resnet 3 4', 'attention', 'resnet 4 4', 'attention', 'down']
    assert [state.shape[-1] for state in states] == [4, 4, 4] and states[-1] is x
    calls.clear()
    _, states = DownBlock([(3, 4)], resnet=layers(calls)['resnet'])(X, None, None)
    assert [name for name, _ in calls] == ['resnet 3 4'] and len(states) == 1


def test_up_blocks_take_the_last_states_first_and_leave_the_others():
    calls, states = [], [jnp.full((1, 2, 2, width), width) for width in (2, 5, 7)]
    block = UpBlock([(10, 4), (9, 4)], **layers(calls), upsampler=lambda channels: Layer(calls, 'up', channels))
    block(X, None, None, states)
    assert calls == [
        ('resnet 10 4', (1, 2, 2, 3 + 7)),
        ('attention', (1, 2, 2, 4)),
        ('resnet 9 4', (1, 2, 2, 4 + 5)),
        ('attention', (1, 2, 2, 4)),
        ('up', (1, 2, 2, 4)),
    ]
    assert [state.shape[-1] for state in states] == [2]


def test_the_middle_attends_between_two_residual_blocks():
    calls = []
    MidBlock(3, **layers(calls))(X, None, None)
    assert [name for name, _ in calls] == ['resnet 3 3', 'attention', 'resnet 3 3']


def test_resampling_layers_halve_and_double_and_leave_the_time_alone():
    made = {'dtype': jnp.float32, 'rngs': functional.Keys(0)}
    for kind, shape in ((unet_blocks.Downsample2D, (1, 2, 3, 4)), (unet_blocks.Upsample2D, (1, 8, 12, 4))):
        found = jax.eval_shape(lambda kind=kind: kind(4, **made)(jnp.zeros((1, 4, 6, 4)), None))
        assert found.shape == shape
    for change, resample in (
        (unet_blocks.residual_downsampler, average_pool),
        (unet_blocks.residual_upsampler, nearest_upsample),
    ):
        assert change(lambda *channels, **options: (channels, options))(4) == ((4, 4), {'resample': resample})
