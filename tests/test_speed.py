"""The scripts in experiments/speed run, on tiny networks, and write what their README reads from them."""

import dataclasses
import importlib
import itertools
import json
import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
from absl import flags

from dreambooth_jax.finetune import memory_plan

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
@pytest.mark.parametrize('model', ['sdxl', 'deepfloyd-if', 'sd3.5-medium', 'flux1-dev'])
def test_phases_tells_every_phase_of_a_run(model):
    config = SPEED.parents[1] / 'configs' / 'dog.py'
    done = run('phases.py', '--tiny', f'--config={config}:{model}')
    assert done.returncode == 0, done.stderr
    stages = ('base', 'super_resolution') if model == 'deepfloyd-if' else ('base',)
    trained = (f'{phase} {stage}' for stage in stages for phase in ('encoding for', 'training', 'samples of'))
    for phase in ('class images', *trained, 'export'):
        assert f'\n    {phase} ' in done.stdout


@pytest.fixture
def module(monkeypatch):
    """A function that imports what the scripts share, which must have no flags: programs tested later have the same."""
    monkeypatch.syspath_prepend(SPEED)
    before = set(flags.FLAGS)
    yield importlib.import_module
    assert set(flags.FLAGS) == before


def test_memory_is_read_from_what_the_compiler_writes_about_its_buffers(module):
    text = """BufferAssignment:
allocation 0: size 512, thread-local:
 value: <2 reduce_sum.5 @0> (size=512,offset=0): f32[]{:T(128)}
allocation 1: size 300, parameter 17, shape |bf16[3,50]| at ShapeIndex {}:
allocation 2: size 40, output shape is |f32[10]|, maybe-live-out:
allocation 3: size 500, parameter 0, shape |f32[125]| at ShapeIndex {}, output shape is |f32[125]|, maybe-live-out:
allocation 4: size 36, color 2, preallocated-temp:
allocation 5: size 7000, preallocated-temp:
allocation 6: size 900, color 1, preallocated-temp:
allocation 7: size 64, constant:
"""
    assert module('compiled').buffers(text) == {'argument': 800, 'output': 540, 'alias': 500, 'temp': 7000}


def test_cycles_of_a_program_count_loop_bodies_as_often_as_there_are_parts(module):
    text = """%fused.1 (x: f32[8]) -> f32[8] {
  ROOT %add.1 = f32[8]{0} add(%x, %x)
}

%body.2 (state: (s32[], f32[8])) -> (s32[], f32[8]) {
  %fusion.1 = f32[8]{0} fusion(%x), calls=%fused.1, backend_config={"window_config":{"estimated_cycles":"100"}}
  %copy.1 = f32[8]{0} copy(%x), backend_config={"window_config":{"estimated_cycles":"10"}}
}

ENTRY %main.3 (x: f32[8]) -> f32[8] {
  %while.1 = (s32[], f32[8]{0}) while(%tuple.1), condition=%condition.1, body=%body.2, metadata={}
  %copy.2 = f32[8]{0} copy(%x), backend_config={"window_config":{"estimated_cycles":"7"}}
}
"""
    assert module('cycles').program_cycles(text, 3) == 3 * 110 + 7


def test_cycles_of_a_kernel_are_the_instructions_in_its_loop_times_its_turns(module):
    text = """     0   :  { %s1 = smov 0 }
   0x1 LB: > { %s2 = sadd.s32 1, %s1 }
   0x2   : > { %p1 = scmp.ge.s32.totalorder %s2, 18 /* loop exit test */ }
   0x3 PF: > { %33 = sbr.rel (!%p1) target = $region3 }
   0x4   :  { %34 = vsyncpa [#allocation6], 1 }
"""
    kernel_cycles = module('cycles').kernel_cycles
    assert kernel_cycles(text) == 3 * 18
    with pytest.raises(ValueError, match='one was expected'):
        kernel_cycles(text.replace('0x2   : >', '0x2   : >>'))


def test_temporaries_are_extrapolated_along_the_depth_of_the_stage(module):
    def use(phase, temporaries):
        complete = temporaries is not None
        return memory_plan.Use(phase=phase, program='step', weights=10, temporaries=temporaries, complete=complete)

    phases = 'training base', 'training super_resolution'
    whole = [use(phase, None) for phase in phases]
    at = {1: [use(phases[0], 100), use(phases[1], None)], 2: [use(phases[0], 130), use(phases[1], None)]}
    found = module('compiled').extrapolated(whole, at, {'base': 4, 'super_resolution': 5})
    assert [(one.total, one.complete) for one, _ in found] == [(200, True), (10, False)]
    assert found[0][1] == 'extrapolated to depth 4 from 1 and 2'
    found = module('compiled').extrapolated(whole, {**at, 3: [use(phases[0], 150), use(phases[1], None)]}, {'base': 4})
    assert found[0][0].total == 180 and found[0][1].endswith('from 2 and 3, where 1 is +10.0% off')
    # A sampler is of its own stage, whichever stage is trained.
    sampler = dataclasses.replace(use('samples of super_resolution', 100), program='base model, base sampler')
    at = {depth: [dataclasses.replace(sampler, temporaries=100 * depth)] for depth in (1, 2)}
    ((_, told),) = module('compiled').extrapolated([sampler], at, {'base': 4, 'super_resolution': 5})
    assert told == 'extrapolated to depth 4 from 1 and 2'


def test_how_a_program_was_counted_is_told_of_the_stage_that_it_runs(module, tmp_path):
    counted = module('compiled').Counted(tmp_path, '', '')
    counted.told = {'step base': 'a', 'base sampler': 'b', 'super_resolution sampler': 'c', 'images': 'd'}
    second, use = 'samples of super_resolution', memory_plan.Use
    assert counted.told_of(use(phase='training base', program='step')) == 'a'
    assert counted.told_of(use(phase=second, program='base model, base sampler')) == 'b'
    assert counted.told_of(use(phase=second, program='super_resolution sampler')) == 'c'
    assert counted.told_of(use(phase='encoding for base', program='images')) == 'd'
    assert counted.told_of(use(phase='training super_resolution', program='step')) == ''


def test_a_count_is_kept_for_the_device_and_the_way_in_which_it_was_counted(module, tmp_path, monkeypatch):
    compiled, sizes = module('compiled'), itertools.count()
    monkeypatch.setattr(
        memory_plan, 'compiled_counts', lambda *_: (SimpleNamespace(temp_size_in_bytes=next(sizes)), None)
    )
    found = []
    for device, buffers_only in [('v5', False), ('v6', False), ('v6', True)] * 2:
        counted = compiled.Counted(tmp_path, '', 'libtpu', device_kind=device, buffers_only=buffers_only)
        counts, _ = counted('images', lambda: SimpleNamespace(as_text=lambda: 'the same program'))
        found.append(counts.temp_size_in_bytes)
    assert found == [0, 1, 2] * 2


@pytest.mark.slow
def test_published_networks_can_be_made_shallow_and_tiny(module):
    published = module('published')
    depths = {name: stage.depth for name, stage in published.PUBLISHED.items()}
    assert list(depths.values()) == [2, 10, 3, 20, 30, 24, 38, 5]
    for stage in published.PUBLISHED.values():
        assert stage.shallow(stage.depth).depth == stage.depth and stage.shallow(1).depth == 1
        for made in (stage.shallow(1), stage.tiny()):
            network = published.pipeline(made, 'float32').denoiser
            assert {value.strides for value in network.params.values()} <= {(0,) * n for n in range(6)}


def test_training_without_an_accelerator_is_one_sentence():
    done = run('training.py')
    assert done.returncode == 1
    assert done.stderr.splitlines()[-1] == (
        'JAX found no accelerator, and on CPU a step takes minutes; give --tiny to try the script'
    )
