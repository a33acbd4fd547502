"""What XLA is told of cards that are not there: their numbers, in a form that its compiler reads."""

import os
import re
import subprocess
import sys

import pytest

from dreambooth_jax.finetune import cards
from dreambooth_jax.finetune.cards import CARDS, GIB, target_config


@pytest.mark.parametrize('name', CARDS)
def test_every_card_is_described_whole(name):
    card = CARDS[name]
    fields = dict(re.findall(r'(\w+): (\S+)', target_config(card)))
    assert (int(fields['core_count']), int(fields['device_memory_size'])) == (card.cores, card.memory)
    assert (int(fields['memory_bandwidth']), int(fields['l2_cache_size'])) == (card.bandwidth, card.cache)
    config = target_config(card)
    assert f'{{ major: {card.capability[0]} minor: {card.capability[1]} }}' in config and f'"{card.title}"' in config
    assert int(fields['shared_memory_per_block']) <= int(fields['shared_memory_per_block_optin'])
    assert int(fields['shared_memory_per_block_optin']) <= int(fields['shared_memory_per_core'])
    assert 10 * GIB < card.memory < 200 * GIB and 10**11 < card.bandwidth < 10**13 and 1 < card.clock < 3
    assert 10**12 < card.speed < 10**15
    assert config.count('{') == config.count('}')


def test_programs_may_take_the_share_of_memory_that_jax_takes(monkeypatch):
    monkeypatch.delenv('XLA_PYTHON_CLIENT_MEM_FRACTION', raising=False)
    assert CARDS['rtx4090'].usable == 18 * GIB
    monkeypatch.setenv('XLA_PYTHON_CLIENT_MEM_FRACTION', '0.5')
    assert CARDS['rtx4090'].usable == 12 * GIB


COMPILED = """
import jax
from jax.sharding import SingleDeviceSharding
from dreambooth_jax.finetune.target import planned_for
from dreambooth_jax.models.attention import attend
from dreambooth_jax.models.functional import compute_dtype

for name in {names}:
    with planned_for(name) as where:
        shape = jax.ShapeDtypeStruct((2, 1024, 4, 64), compute_dtype(), sharding=SingleDeviceSharding(where.first))
        compiled = jax.jit(lambda x: attend(x, x, x, scale=0.1)).lower(shape).compile()
        print(name, where.count, compiled.memory_analysis().temp_size_in_bytes, 'cudnn' in compiled.as_text())
"""


@pytest.mark.slow
def test_a_program_is_compiled_for_each_of_them(tmp_path):
    """A card without bfloat16 has no kernel, and stores the logits."""
    pytest.importorskip('jax_plugins.xla_cuda12')
    names = [*CARDS, 'h100:2']
    env = {**os.environ, 'JAX_ENABLE_COMPILATION_CACHE': 'false'}
    script = COMPILED.format(names=names)
    done = subprocess.run([sys.executable, '-c', script], env=env, capture_output=True, text=True, check=True)
    found = {line.split()[0]: line.split()[1:] for line in done.stdout.splitlines()}
    assert list(found) == names
    logits = 4 * 2 * 4 * 1024**2
    for name, (count, temporaries, has_kernel) in found.items():
        is_new = cards.CARDS[name.partition(':')[0]].capability >= (8, 0)
        assert count == ('2' if name.endswith(':2') else '1') and has_kernel == str(is_new)
        assert (int(temporaries) < logits / 4) == is_new
