"""pretrain from the command line: what it trains on which data, and the model that it leaves."""

import json
import shutil
import types

import diffusers
import jax
import numpy as np
import pytest
import torch

from dreambooth_jax.data import provenance
from dreambooth_jax.families.reading import read_pipeline
from dreambooth_jax.storybook import pools
from dreambooth_jax.training import train_run
from tests.support import made_certificates, smallest_pipelines, tiny_flow_pretraining
from tests.support.flow_model import FlowModel

CONFIG = """
from dreambooth_jax.config import PretrainConfig, to_config_dict

def get_config():
    config = to_config_dict(PretrainConfig())
    config.stage = {stage!r}
    config.init = {init!r}
    config.base = {base!r}
    config.steps, config.batch_size, config.pool_size, config.passes, config.painters = 2, 2, 4, 1, 0
    config.schedule, config.warmup_steps = 'constant', 0
    config.seed = 5
    return config
"""


@pytest.fixture
def pretrain(program, tmp_path):
    """(stage, settings) -> how the program ended; the run is in tmp_path/run and starts from the smallest pipelines."""

    def run(stage, *settings):
        folder = smallest_pipelines.folder('pixels')
        second = stage == 'super_resolution'
        init, base = (str(folder / stage), str(folder)) if second else (str(folder), None)
        (tmp_path / 'config.py').write_text(CONFIG.format(stage=stage, init=init, base=base))
        arguments = [f'--config.{setting}' for setting in settings]
        return program('pretrain', f'--config={tmp_path}/config.py', f'--workdir={tmp_path}/run', *arguments)

    return run


@pytest.fixture
def made(monkeypatch):
    """The training that pretrain asks for; instead of it, all parameters grow by one."""
    found = []

    def fit(run, workdir):
        found.append(run)
        params = jax.tree.map(lambda value: value + 1, run.params)
        return types.SimpleNamespace(best_params=params, step=np.int32(2)), True

    monkeypatch.setattr(train_run, 'fit', fit)
    return found


def pool(number, size):
    return pools.paint_pool(5, number, range(4), size, rare_tokens=(), rare_token_rate=0.0)


def test_the_base_stage_trains_with_its_text_encoder_on_pools_of_painted_images(pretrain, made, tmp_path):
    ended = pretrain('base', 'rare_token_rate=0')
    run_folder = tmp_path / 'run'
    assert (ended.code, ended.out) == (0, f'finished at step 2; model: {run_folder}/model\n'), ended.error
    (run,) = made
    before, after = read_pipeline(smallest_pipelines.folder('pixels')), read_pipeline(run_folder / 'model')
    assert run.params.keys() == {'unet', 'text_encoder'} and (run.budget.steps, run.seed) == (2, 5)
    for component, network in before.components.items():
        for name, value in network.params.items():  # written in half precision
            np.testing.assert_allclose(after.components[component].params[name], value + 1, atol=2e-3)
    # A pool lasts for 1 * 4 / 2 steps, and is the same in a run that goes on.
    first, second = run.frozen_at(None, 0), run.frozen_at(None, 2)
    for data, number in ((first, 0), (second, 1)):
        np.testing.assert_array_equal(data['images'], pool(number, 8).images)
        assert data['prompt_of'].tolist() == [1, 2, 3, 4] and len(data['tokens']['text_encoder']['ids']) == 5
    assert run.frozen_at(None, 3) is second
    assert run.callbacks == [] and not (run_folder / 'samples').exists()
    assert json.loads((run_folder / 'config.json').read_text())['stage'] == 'base'


def test_the_second_stage_trains_alone_on_states_of_the_bases_text_encoder(pretrain, made, tmp_path):
    ended = pretrain('super_resolution', 'rare_token_rate=0', 'factor=2', 'crop=8')
    assert ended.code == 0, ended.error
    (run,) = made
    assert run.params.keys() == {'unet'}
    data = run.frozen_at(None, 0)
    np.testing.assert_array_equal(data['images'], pool(0, 16).images)
    assert data['text']['encoder_hidden_states'].shape[0] == 5 and 'tokens' not in data
    after = read_pipeline(tmp_path / 'run' / 'model')
    assert after.class_name == 'IFSuperResolutionPipeline'


def test_images_are_taken_in_order_since_scenes_are_random_already(pretrain, made):
    pretrain('base', 'batch_size=2')
    (run,) = made
    picked = [
        np.asarray(run.pick(jax.random.key(9), np.int32(step), run.batch, None)['image'])[:2].tolist()
        for step in range(3)
    ]
    assert picked == [[0, 1], [2, 3], [0, 1]]


def test_samples_are_of_the_base_stage_if_prompts_are_given(pretrain, made):
    pretrain('base', "samples.prompts=('a dog',)", 'samples.every=1')
    (sampling,) = made[0].callbacks
    assert sampling.every == 1 and list(sampling.grid.prompts) == ['a dog']


def test_samples_are_signed_with_a_certificate_that_is_tried_first(pretrain, made, tmp_path):
    c2pa = pytest.importorskip('c2pa')
    files = made_certificates.make(tmp_path)
    signing = (f'samples.c2pa_certificate={files.certificate}', f'samples.c2pa_key={files.key}')
    assert pretrain('base', "samples.prompts=('a dog',)", *signing).code == 0
    (sampling,) = made[0].callbacks
    provenance.save(np.zeros((8, 8, 3), np.uint8), tmp_path / 'x.png')
    sampling.grid.sign(tmp_path / 'x.png')
    assert c2pa.Reader(str(tmp_path / 'x.png')).get_validation_state() == 'Valid'
    shutil.rmtree(tmp_path / 'run')
    files.key.write_text('no key')
    ended = pretrain('base', *signing)
    assert ended.code == 1 and ended.error.splitlines()[-1].startswith(
        f'config.samples.c2pa_certificate and config.samples.c2pa_key: {files.key} is no private key that can be used ('
    )
    assert len(made) == 1 and not (tmp_path / 'run' / 'config.json').exists()


def test_a_run_that_is_stopped_says_so(pretrain, monkeypatch):
    stopped = lambda run, workdir: (types.SimpleNamespace(best_params=run.params, step=np.int32(1)), False)  # noqa: E731
    monkeypatch.setattr(train_run, 'fit', stopped)
    assert pretrain('base').out.startswith('stopped at step 1; model: ')


def test_a_start_of_another_kind_is_one_sentence(pretrain, tmp_path):
    latents = smallest_pipelines.folder('latents')
    ended = pretrain('base', f'init={latents}')
    assert (ended.code, ended.error.splitlines()[-1]) == (
        1,
        f"config.init is '{latents}', which is a StableDiffusionPipeline, but a complete IFPipeline is needed; give a "
        f'folder of one',
    )
    assert not (tmp_path / 'run' / 'model').exists()


@pytest.mark.slow  # the step is compiled
def test_two_real_steps_and_the_same_command_again(pretrain, tmp_path):
    assert pretrain('base').out.startswith('finished at step 2')
    metrics = (tmp_path / 'run' / 'metrics.jsonl').read_text()
    assert len(metrics.splitlines()) == 2
    assert pretrain('base').out.startswith('finished at step 2')
    assert (tmp_path / 'run' / 'metrics.jsonl').read_text() == metrics


@pytest.mark.slow  # the steps of an autoencoder and a transformer are compiled
def test_an_autoencoder_and_then_a_flow_on_its_latents_which_diffusers_opens(program, tmp_path):
    common = {**tiny_flow_pretraining.SETTINGS, 'steps': 2, 'batch_size': 2, 'pool_size': 4, 'painters': 0}
    first = {**common, 'stage': 'autoencoder', 'crop': 8}
    second = {**common, 'init': str(tmp_path / 'vae' / 'model'), 'rare_token_rate': 0.0}
    for name, settings in (('vae', first), ('flow', second)):
        (tmp_path / f'{name}.py').write_text(
            'from dreambooth_jax.config import PretrainConfig, to_config_dict\n'
            'def get_config():\n'
            '    config = to_config_dict(PretrainConfig())\n'
            f'    config.update({settings!r})\n'
            '    return config\n'
        )
        ended = program('pretrain', f'--config={tmp_path}/{name}.py', f'--workdir={tmp_path}/{name}')
        assert ended.code == 0, ended.error
    vae, flow = (read_pipeline(tmp_path / name / 'model') for name in ('vae', 'flow'))
    for component in ('vae', 'text_encoder'):  # they stay as they were
        for key, value in vae.components[component].params.items():
            np.testing.assert_array_equal(value, flow.components[component].params[key])
    assert flow.components['vae'].config['scaling_factor'] == vae.space.scaling_factor != 1.0
    moved = [
        not np.array_equal(value, flow.components['transformer'].params[key])
        for key, value in vae.components['transformer'].params.items()
    ]
    assert any(moved)

    # diffusers opens the folder as it is, and makes the same image of the same noise.
    pipe = diffusers.ZImagePipeline.from_pretrained(tmp_path / 'flow' / 'model')
    pipe.set_progress_bar_config(disable=True)
    size = tiny_flow_pretraining.SIZE
    model = types.SimpleNamespace(
        folder=lambda: tmp_path / 'flow' / 'model', torch_pipeline=lambda: pipe.to(torch.float32), SIZE=size
    )
    ours, theirs, _ = FlowModel(model, (size // 2, size // 2, 4), 5.0, {'guidance_scale': 4.0}).images
    assert ours.std() > 1 and np.abs(ours - theirs).max() <= 2
