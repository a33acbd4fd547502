"""The scripts in experiments/speed run, on tiny networks, and write what their README reads from them."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

SPEED = Path(__file__).parents[1] / 'experiments' / 'speed'


def run(script, *arguments):
    environment = {**os.environ, 'OMP_NUM_THREADS': '1'}
    command = [sys.executable, SPEED / script, *arguments]
    return subprocess.run(command, capture_output=True, text=True, env=environment, check=False)


@pytest.mark.slow
def test_memory_counts_weights_and_moments(tmp_path):
    choice = ('--settings=bf16 moments', '--text_encoder=no', '--dtype=float32', '--remat=no')
    done = run('memory.py', '--tiny', f'--workdir={tmp_path}', f'--output={tmp_path}', *choice)
    assert done.returncode == 0, done.stderr
    (row,) = json.loads((tmp_path / 'memory.json').read_text())['rows']
    assert row['trained_weights'] == 4 * row['trained_parameters'] > 0 == row['frozen_weights']
    assert 0 <= row['optimizer_state'] - 2 * 2 * row['trained_parameters'] < 16  # and the number of steps taken
    state = row['trained_weights'] + row['optimizer_state']
    assert row['argument'] > state
    assert row['alias'] >= state  # the new state takes the place of the old one
    assert row['peak'] == row['argument'] + row['output'] + row['temp'] - row['alias'] > state


@pytest.mark.slow
def test_training_measures_this_package_and_diffusers(tmp_path):
    choice = ('--method=lora', '--batch_size=1', '--framework=jax', '--framework=torch', '--steps=2', '--repeats=2')
    done = run('training.py', '--tiny', f'--output={tmp_path}', *choice)
    assert done.returncode == 0, done.stderr
    found = json.loads((tmp_path / 'training.json').read_text())
    assert [row['framework'] for row in found['rows']] == ['jax', 'torch']
    for row in found['rows']:
        low, middle, high = row['images_per_second']
        assert 0 < low <= middle <= high and len(row['seconds_per_step']) == 2
    assert {'jax', 'torch', 'diffusers'} <= found['versions'].keys()


@pytest.mark.slow
def test_phases_tells_every_phase_of_a_run():
    config = SPEED.parents[1] / 'configs' / 'dog.py'
    done = run('phases.py', '--tiny', f'--config={config}:stable-diffusion-v1-5')
    assert done.returncode == 0, done.stderr
    for phase in ('class images', 'encoding for base', 'training base', 'samples of base', 'export'):
        assert f'\n    {phase} ' in done.stdout


def test_training_without_an_accelerator_is_one_sentence():
    done = run('training.py')
    assert done.returncode == 1
    assert done.stderr.splitlines()[-1] == (
        'JAX found no accelerator, and on CPU a step takes minutes; give --tiny to try the script'
    )
