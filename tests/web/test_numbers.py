"""metrics.jsonl is read while it is written, from its end or on from where it was."""

import json

import pytest

from dreambooth_jax.monitoring.metrics import FILE, Metrics
from dreambooth_jax.web import numbers
from dreambooth_jax.web.numbers import Key, Numbers
from tests.support.served import add_metrics


def test_what_the_trainer_writes_is_read(tmp_path):
    written = Metrics(tmp_path, 'base', tensorboard=False)
    written.write(1, {'loss': 0.5})
    written.write(1, {'drift': 0.1})
    written.write(2, {'loss': float('nan')})
    written.close()
    assert [str(line.key) for line in Numbers(tmp_path).lines()] == ['base:1:0', 'base:1:1', 'base:2:0']
    assert numbers.tail(tmp_path)[-1] == {'stage': 'base', 'step': 2, 'loss': None}
    assert Numbers(tmp_path).curves(['drift', 'loss'], 'base') == {'drift': ([1], [0.1]), 'loss': ([1], [0.5])}


def test_only_what_is_new_is_read_and_half_a_line_waits(tmp_path):
    seen = Numbers(tmp_path)
    assert seen.lines() == [] and numbers.tail(tmp_path) == []
    add_metrics(tmp_path, range(1, 4))
    assert [line.key.step for line in seen.lines()] == [1, 2, 3]
    with (tmp_path / FILE).open('a') as file:
        file.write('{"stage": "base", "st')
        file.flush()
        assert len(seen.lines()) == 3
        file.write('ep": 4}\n')
    assert [line.key.step for line in seen.lines(Key(0, 2, 0))] == [3, 4]


def test_a_run_that_goes_on_from_a_checkpoint_takes_lines_back(tmp_path):
    add_metrics(tmp_path, range(1, 9))
    seen = Numbers(tmp_path)
    assert len(seen.lines()) == 8
    resumed = Metrics(tmp_path, 'base', resume_step=4, tensorboard=False)
    assert [line.key.step for line in seen.lines()] == [1, 2, 3, 4]
    resumed.write(5, {'loss': 0.0})
    assert [line.key.step for line in seen.lines()] == [1, 2, 3, 4, 5]
    resumed.close()


def test_the_second_stage_comes_after_the_base_stage(tmp_path):
    add_metrics(tmp_path, [1, 2])
    add_metrics(tmp_path, [1, 2], 'super_resolution')
    lines = Numbers(tmp_path).lines(Key.parsed('base:2'))
    assert [str(line.key) for line in lines] == ['super_resolution:1:0', 'super_resolution:2:0']


def test_a_damaged_file_is_read_as_far_as_it_goes(tmp_path):
    lines = [
        '{"stage": "base", "step": 1}',
        'no json',
        '[1]',
        '{"stage": "other", "step": 2}',
        '{"stage": "base"}',
        '\0',
    ]
    (tmp_path / FILE).write_text('\n'.join(lines) + '\n')
    assert len(Numbers(tmp_path).lines()) == len(numbers.tail(tmp_path)) == 1


def test_of_a_long_file_the_end_alone_is_read(tmp_path):
    add_metrics(tmp_path, range(1, 20_000))
    last = numbers.tail(tmp_path)
    assert last[-1]['step'] == 19_999 and 50 < len(last) < 1000
    assert json.dumps(last[0])


@pytest.mark.parametrize(
    ('text', 'key'),
    [
        ('120', Key(0, 120, 10**9)),
        ('base:120', Key(0, 120, 10**9)),
        ('super_resolution:3:1', Key(1, 3, 1)),
        (str(Key(1, 7, 2)), Key(1, 7, 2)),
        ('', None),
        ('x', None),
        ('other:1', None),
        ('base:-1', None),
        ('base:1:x', None),
        ('base:1:1:1', None),
        ('base:' + '9' * 40, None),
    ],
)
def test_keys(text, key):
    assert Key.parsed(text) == key
