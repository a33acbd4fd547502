"""export from the command line: what a run has trained, as a pipeline folder."""

import json

import jax
import numpy as np
import optax
import pytest

from dreambooth_jax.config import DataConfig, DreamBoothConfig, to_dict
from dreambooth_jax.generation.cascade import Cascade
from dreambooth_jax.training.checkpoint import Checkpoints
from dreambooth_jax.training.state import init_state
from dreambooth_jax.weights import folders
from tests import tiny_pipelines


@pytest.fixture
def workdir(tmp_path):
    """A run that has written its settings and no checkpoint yet."""
    folder = tmp_path / 'run'
    folder.mkdir()
    data = DataConfig(instance_dir='photos', instance_prompt='a sks dog', class_prompt='a dog')
    config = DreamBoothConfig(model=str(tiny_pipelines.folder()), data=data)
    (folder / 'config.json').write_text(json.dumps(to_dict(config)))
    return folder


def save(workdir, stage, steps, params, *, ema=False):
    """Checkpoints whose weights are `params` + step, and their average `params` + step + 0.5."""
    checkpoints = Checkpoints(workdir / stage / 'checkpoints', keep=9)
    for step in steps:
        state = init_state(jax.tree.map(lambda x, at=step: x + at, params), optax.sgd(1e-3), ema=ema)
        if ema:
            state.ema = jax.tree.map(lambda x: x + 0.5, state.ema)
        checkpoints.save(step, state, wait=True)
    checkpoints.close()


def assert_shifted(params, original, shift):
    assert params.keys() == original.keys()
    for name, value in original.items():
        np.testing.assert_allclose(params[name], value + np.float32(shift), atol=1e-6)


def test_the_newest_averages_of_both_stages_are_exported(program, workdir, tmp_path):
    base, second, output = tiny_pipelines.base(), tiny_pipelines.super_resolution(), tmp_path / 'out'
    both = {'unet': base.unet.params, 'text_encoder': base.text_encoder.params}
    save(workdir, 'base', [1, 3], both, ema=True)
    save(workdir, 'super_resolution', [2], {'unet': second.unet.params})
    ended = program('export', f'--workdir={workdir}', '--format=diffusers', f'--output={output}')
    count = sum(len(network.params) for network in (base.unet, base.text_encoder, second.unet))
    assert (ended.code, ended.out.splitlines()) == (
        0,
        [
            'base: checkpoint 3',
            'super_resolution: checkpoint 2',
            f'{output} holds {count} tensors, read back and equal',
        ],
    )
    exported = Cascade.load(output)
    assert_shifted(exported.base.unet.params, base.unet.params, 3.5)
    assert_shifted(exported.base.text_encoder.params, base.text_encoder.params, 3.5)
    assert_shifted(exported.super_resolution.unet.params, second.unet.params, 2)


def test_one_stage_at_one_step_in_half_precision(program, workdir, tmp_path):
    base, output = tiny_pipelines.base(), tmp_path / 'out'
    save(workdir, 'base', [1, 3], {'unet': base.unet.params})
    ended = program('export', f'--workdir={workdir}', f'--output={output}', '--step=1', '--dtype=float16')
    assert ended.code == 0
    assert ended.out.splitlines()[:2] == ['base: checkpoint 1', f'super_resolution: as in {tiny_pipelines.folder()}']
    exported = Cascade.load(output)
    for name, value in base.unet.params.items():
        np.testing.assert_array_equal(exported.base.unet.params[name], (value + np.float32(1)).astype(np.float16))
    ended = program('export', f'--workdir={workdir}', f'--output={tmp_path / "other"}', '--step=2')
    assert (ended.code, ended.error) == (
        1, f'{workdir} has no checkpoint 2: the newest of base is 3; leave --step out to take the newest')  # fmt: skip
    assert not (tmp_path / 'other').exists()


def test_a_finished_run_without_checkpoints_gives_its_model(program, workdir, tmp_path):
    ended = program('export', f'--workdir={workdir}', f'--output={tmp_path / "out"}')
    assert (ended.code, ended.error) == (
        1, f'{workdir} holds neither checkpoints nor a model/; start train with it first')  # fmt: skip
    folders.write_pipeline(tiny_pipelines.base(1), workdir / 'model')
    ended = program('export', f'--workdir={workdir}', f'--output={tmp_path / "out"}')
    assert ended.code == 0 and ended.out.startswith(f'both stages: {workdir}/model\n')
    assert_shifted(Cascade.load(tmp_path / 'out').base.unet.params, tiny_pipelines.base(1).unet.params, 0)


def test_what_is_wrong_is_named(program, workdir, tmp_path):
    def said(*arguments):
        ended = program('export', f'--output={tmp_path / "out"}', *arguments)
        assert (ended.code, ended.out) == (1, '')
        assert not (tmp_path / 'out').exists()
        return ended.error

    run = f'--workdir={workdir}'
    assert said(run, '--format=ckpt') == (
        'flag --format=ckpt: value should be one of <diffusers|single_file|lora_peft|lora_kohya> (--help lists the '
        'flags)'
    )
    assert said(f'--workdir={tmp_path / "no"}') == (
        f"{tmp_path}/no is no run's folder: {tmp_path}/no/config.json is missing; give the --workdir of train"
    )
    save(workdir, 'base', [4], {'unet': {'strange': np.zeros(3, np.float32)}})
    assert said(run) == (
        f'checkpoint 4 in {workdir}/base does not fit the unet of the model {str(tiny_pipelines.folder())!r}; put that '
        f'model back as it was when the run began'
    )
    for file in (workdir / 'base' / 'checkpoints' / '4').rglob('*'):
        if file.is_file() and file.name not in ('_CHECKPOINT_METADATA', 'commit_success.txt'):
            file.write_bytes(b'damaged')
    assert said(run).startswith(f'checkpoint 4 in {workdir}/base/checkpoints could not be read: ')
    (workdir / 'config.json').write_text('{')
    assert said(run).startswith(f'{workdir}/config.json is no readable JSON (')


def test_a_folder_that_does_not_read_back_as_written_is_no_success(program, workdir, tmp_path, monkeypatch):
    save(workdir, 'base', [1], {'unet': tiny_pipelines.base().unet.params})
    write, output = folders.write_pipeline, tmp_path / 'out'
    monkeypatch.setattr(folders, 'write_pipeline', lambda pipeline, *a, **k: write(tiny_pipelines.base(), *a, **k))
    ended = program('export', f'--workdir={workdir}', f'--output={output}')
    first = next(iter(tiny_pipelines.base().unet.params))
    assert (ended.code, ended.error) == (1, f'{output} does not read back as written: base unet {first} differs.')
