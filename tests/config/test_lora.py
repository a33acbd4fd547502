"""The settings of LoRA: what needs a rank, and what may be quantised to what."""

import pytest

from dreambooth_jax.config import ConfigError, DreamBoothConfig, resolve

DATA = {'subject': 'dog', 'instance_prompt': 'a sks dog', 'class_prompt': 'a dog'}


def resolved(**lora):
    return resolve(DreamBoothConfig, {'data': DATA, 'lora': lora}).lora


@pytest.mark.parametrize('frozen_dtype', ['int8', 'nf4', None])
def test_kernels_beside_adapters_may_be_quantised(frozen_dtype):
    assert resolved(rank=2, frozen_dtype=frozen_dtype).frozen_dtype == frozen_dtype
    assert resolved(rank=2).frozen_dtype is None


@pytest.mark.parametrize(
    'name, value', [('alpha', 2.0), ('targets', ('.*',)), ('dora', True), ('frozen_dtype', 'int8')]
)
def test_without_a_rank_nothing_of_lora_has_an_effect(name, value):
    with pytest.raises(ConfigError) as caught:
        resolved(**{name: value})
    assert str(caught.value) == (
        f'config.lora.{name} is {value!r} but config.lora.rank is None, so whole networks train; set the rank, or '
        f'leave config.lora.{name} out'
    )


def test_another_dtype_is_refused():
    with pytest.raises(ConfigError) as caught:
        resolved(rank=2, frozen_dtype='int4')
    assert str(caught.value) == "config.lora.frozen_dtype must be one of 'int8', 'nf4' or None, got 'int4'"


def test_alpha_is_the_rank_unless_it_is_given():
    assert resolved(rank=3).scale_alpha == 3.0 and resolved(rank=3, alpha=1.5).scale_alpha == 1.5
