"""A run's numbers: each step once, through stops, crashes and several stages, readable by strict JSON readers."""

import json
import subprocess
import sys

import numpy as np
import pytest
from tensorboardX.proto import event_pb2

from dreambooth_jax.monitoring import metrics
from tests.support import script


def write(folder, stage, steps, resume_step=0, loss=1.0):
    writer = metrics.Metrics(folder, stage, resume_step=resume_step, tensorboard=False)
    for step in steps:
        writer.write(step, {'loss': loss})
    writer.close()


def steps(folder, stage=None):
    return [line['step'] for line in metrics.read(folder, stage)]


def test_numbers_are_read_as_they_were_written(tmp_path):
    writer = metrics.Metrics(tmp_path / 'new' / 'run', 'base', tensorboard=False)
    writer.write(1, {'loss': np.float32(0.5), 'learning_rate': 1e-5})
    assert metrics.read(tmp_path / 'new' / 'run') == [{'stage': 'base', 'step': 1, 'loss': 0.5, 'learning_rate': 1e-5}]
    writer.close()


def test_lines_are_on_disk_while_the_run_goes_on(tmp_path):
    writer = metrics.Metrics(tmp_path, 'base', tensorboard=False)
    for step in (1, 2):
        writer.write(step, {'loss': 1.0})
        assert steps(tmp_path)[-1] == step
    writer.close()


def test_resumed_run_drops_the_lines_after_its_checkpoint(tmp_path):
    write(tmp_path, 'base', range(1, 8))
    write(tmp_path, 'base', range(6, 11), resume_step=5, loss=2.0)
    assert steps(tmp_path) == list(range(1, 11))
    assert [line['loss'] for line in metrics.read(tmp_path)] == [1.0] * 5 + [2.0] * 5


def test_run_that_starts_anew_drops_its_old_lines(tmp_path):
    write(tmp_path, 'base', range(1, 4))
    write(tmp_path, 'base', range(1, 3))
    assert steps(tmp_path) == [1, 2]


def test_stages_share_the_file_and_leave_each_others_lines_alone(tmp_path):
    write(tmp_path, 'base', range(1, 6))
    write(tmp_path, 'super_resolution', range(1, 4))
    write(tmp_path, 'super_resolution', range(3, 5), resume_step=2)
    assert steps(tmp_path, 'base') == [1, 2, 3, 4, 5]
    assert steps(tmp_path, 'super_resolution') == [1, 2, 3, 4]
    assert len(metrics.read(tmp_path)) == 9


def test_line_that_a_kill_cut_short_is_left_out(tmp_path):
    write(tmp_path, 'base', range(1, 4))
    path = tmp_path / metrics.FILE
    path.write_text(path.read_text()[:-9])
    assert steps(tmp_path) == [1, 2]
    write(tmp_path, 'base', [3, 4], resume_step=3)
    assert steps(tmp_path) == [1, 2, 3, 4]
    assert not list(tmp_path.glob('*.new'))


@pytest.mark.parametrize('value', [float('nan'), float('inf'), -float('inf')])
def test_what_is_no_number_is_null(value, tmp_path):
    write(tmp_path, 'base', [1], loss=value)

    def refuse(constant):
        raise AssertionError(f'{constant} is no JSON')

    line = json.loads((tmp_path / metrics.FILE).read_text(), parse_constant=refuse)
    assert line == {'stage': 'base', 'step': 1, 'loss': None}


def events(folder):
    """(step, tag) of all scalars and images in the event files, as TensorBoard reads them."""
    found, restarts = [], []
    for path in sorted(folder.glob('events.out.tfevents*')):
        data = path.read_bytes()
        while data:
            length = int.from_bytes(data[:8], 'little')  # length, its checksum, the event, its checksum
            event = event_pb2.Event.FromString(data[12 : 12 + length])
            found += [(event.step, value.tag) for value in event.summary.value]
            restarts += [event.session_log.status] if event.HasField('session_log') else []
            data = data[12 + length + 4 :]
    return found, restarts


def test_tensorboard_sees_scalars_under_their_stage(tmp_path):
    writer = metrics.Metrics(tmp_path, 'base')
    writer.write(1, {'loss': 0.5})
    writer.close()
    assert events(tmp_path) == ([(1, 'base/loss')], [])


def test_tensorboard_has_the_numbers_of_a_line_before_the_line_is_written(tmp_path):
    """After a kill the line says that a callback's numbers are written, so that they are not written again."""
    writer = metrics.Metrics(tmp_path, 'base')
    writer.write(1, {'loss': 0.5})
    assert events(tmp_path) == ([(1, 'base/loss')], [])
    writer._file.close()  # as if the process was killed between the two
    with pytest.raises(ValueError):
        writer.write(2, {'loss': 0.5})
    assert events(tmp_path) == ([(1, 'base/loss'), (2, 'base/loss')], [])
    assert [line['step'] for line in metrics.read(tmp_path)] == [1]


def test_resumed_stage_does_not_hide_another_ones_numbers_in_tensorboard(tmp_path):
    for stage, resume_step in (('base', 0), ('super_resolution', 1)):
        writer = metrics.Metrics(tmp_path, stage, resume_step=resume_step)
        writer.write(2, {'loss': 0.5})
        writer.close()
    # A session_log event that starts a session hides all that the folder holds of later steps, of every stage.
    assert events(tmp_path)[1] == []


def test_tensorboard_does_not_bring_pytorch_along_nor_hide_it(tmp_path):
    code = f"""
import sys
from dreambooth_jax.monitoring import metrics
from tests.support import script
run = metrics.Metrics({str(tmp_path)!r}, 'base')
run.write(1, {{'loss': 1.0}})
run.close()
print('torch' in sys.modules)
import torch
print(torch.ones(1).item())"""
    ended = subprocess.run([sys.executable, '-c', code], env=script.environment(), capture_output=True, text=True)
    assert (ended.stdout, ended.returncode) == ('False\n1.0\n', 0), ended.stderr
