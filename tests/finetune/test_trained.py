"""The result of a run: each stage's newest checkpoint on the model that it began with, or one sentence."""

import dataclasses
import functools
import json

import numpy as np
import pytest

from dreambooth_jax.config import BaseConfig, ConfigError, DreamBoothConfig, EvaluationConfig, LoraConfig, resolve
from dreambooth_jax.finetune.initial import initial
from dreambooth_jax.finetune.stage import stage_trainable
from dreambooth_jax.finetune.trained import read_config, read_trained, with_whole_kernels, write_model
from dreambooth_jax.generation.cascade import STAGES, Cascade
from dreambooth_jax.models import lora, quantised
from dreambooth_jax.training.checkpoint import CheckpointError
from tests.support import smallest_pipelines
from tests.support.written_runs import assert_shifted, begun, save

MODEL = smallest_pipelines.folder('pixels')


@functools.cache
def model():
    return Cascade.load(MODEL)


@pytest.fixture
def run(tmp_path):
    return begun(tmp_path / 'run', MODEL)


@pytest.fixture(scope='module')
def trained_run(tmp_path_factory):
    """A run of three checkpoints of the base stage, whose weights are averaged, and one of the second; to be read."""
    folder = begun(tmp_path_factory.mktemp('runs') / 'dog', MODEL)
    save(folder, 'base', [1, 3, 4], {'unet': model().base.denoiser.params}, ema=True)
    save(folder, 'super_resolution', [2], {'unet': model().super_resolution.denoiser.params})
    return folder


@pytest.mark.parametrize(('step', 'of_base', 'of_second'), [(None, 4, 2), (3, 3, 2), (2, 4, 2)])
def test_a_stage_has_the_asked_checkpoint_or_its_newest_and_averages_where_there_are_some(
    trained_run, step, of_base, of_second
):
    found = read_trained(trained_run, step)
    assert (found.name, found.stages, found.adapters) == ('dog', ('base', 'super_resolution'), {})
    assert found.origins == [f'base: checkpoint {of_base}', f'super_resolution: checkpoint {of_second}']
    base, second = model().base, model().super_resolution
    assert_shifted(found.cascade.base.denoiser.params, base.denoiser.params, of_base + 0.5)
    assert_shifted(found.cascade.super_resolution.denoiser.params, second.denoiser.params, of_second)
    texts = found.cascade.base.components['text_encoder'].params
    assert all(np.array_equal(texts[name], value) for name, value in base.components['text_encoder'].params.items())


def evaluated(folder, best, stage='base'):
    (folder / 'best.json').write_text(json.dumps({'stage': stage, 'step': best, 'candidates': []}))


@pytest.fixture(scope='module')
def evaluated_run(tmp_path_factory):
    folder = begun(tmp_path_factory.mktemp('runs') / 'dog', MODEL, evaluation=EvaluationConfig(every=1))
    save(folder, 'base', [1, 3, 4], {'unet': model().base.denoiser.params})
    return folder


@pytest.mark.parametrize(
    ('step', 'best', 'origin'),
    [
        (None, 3, 'base: checkpoint 3, the best by evaluation'),
        (1, 3, 'base: checkpoint 1'),
        (3, 3, 'base: checkpoint 3, the best by evaluation'),
        (None, None, 'base: checkpoint 4'),  # nothing is evaluated yet
        (None, 6, 'base: checkpoint 4'),  # killed before that one was complete
    ],
)
def test_of_an_evaluated_run_the_best_checkpoint_is_read_unless_another_is_asked_for(evaluated_run, step, best, origin):
    evaluated(evaluated_run, best)
    found = read_trained(evaluated_run, step)
    assert found.origins[0] == origin
    shift = int(origin.split(',')[0].split()[-1])
    assert_shifted(found.cascade.base.denoiser.params, model().base.denoiser.params, shift)


def test_a_step_that_an_evaluated_run_has_not_is_one_sentence(evaluated_run):
    evaluated(evaluated_run, 3)
    assert sentence(CheckpointError, evaluated_run, 9) == (
        f'{evaluated_run} has no checkpoint 9: the best of base is 3; leave --step out to take the best'
    )


def test_a_choice_of_an_earlier_evaluation_counts_where_it_is_off_only_if_a_second_stage_was_trained_on_it(
    trained_run, tmp_path
):
    evaluated(trained_run, 3)
    try:
        assert read_trained(trained_run).origins[0] == 'base: checkpoint 3, the best by evaluation'
    finally:
        (trained_run / 'best.json').unlink()
    alone = begun(tmp_path / 'dog', MODEL)
    save(alone, 'base', [3, 4], {'unet': model().base.denoiser.params})
    evaluated(alone, 3)
    assert read_trained(alone).origins[0] == 'base: checkpoint 4'


def test_a_stage_without_checkpoints_is_as_in_the_model(run):
    save(run, 'super_resolution', [1], {'unet': model().super_resolution.denoiser.params})
    found = read_trained(run)
    assert found.stages == ('super_resolution',)
    assert found.origins == [f'base: as in {MODEL}', 'super_resolution: checkpoint 1']


def test_a_run_without_checkpoints_gives_the_model_that_it_exported(run):
    (run / 'model').symlink_to(MODEL)
    found = read_trained(run)
    assert (found.stages, found.adapters, found.origins) == ((), {}, [f'both stages: {run / "model"}'])
    assert_shifted(found.cascade.base.denoiser.params, model().base.denoiser.params, 0)


def sentence(kind, folder, step=None):
    with pytest.raises(kind) as error:
        read_trained(folder, step)
    assert '\n' not in str(error.value)
    return str(error.value)


def test_what_is_no_run_is_one_sentence(run, tmp_path):
    assert sentence(ConfigError, tmp_path / 'no') == (
        f"{tmp_path}/no is no run's folder: {tmp_path}/no/config.json is missing; give the --workdir of train"
    )
    assert sentence(CheckpointError, run) == (
        f'{run} holds neither checkpoints nor a model/; start train with it first'
    )
    (run / 'config.json').write_text('{"seed"')
    assert sentence(ConfigError, run).startswith(f'{run / "config.json"} is no readable JSON (')


def test_a_step_that_no_stage_has_is_one_sentence(trained_run, run):
    assert sentence(CheckpointError, trained_run, 9) == (
        f'{trained_run} has no checkpoint 9: the newest of base is 4; the newest of super_resolution is 2; leave '
        f'--step out to take the newest'
    )
    assert sentence(CheckpointError, run, 9) == (
        f'{run} has no checkpoint 9: it has none; leave --step out to take the newest'
    )


@pytest.mark.parametrize('component', ['unet', 'text_encoder', 'vae'])
def test_weights_that_the_model_has_no_place_for_are_one_sentence(run, component):
    params = {'unet': model().base.denoiser.params}
    name, value = next(iter(params['unet'].items()))
    if component == 'unet':
        params['unet'] = {**params['unet'], name: value[..., :1]}
    else:
        params[component] = {name: value}  # a text encoder that the settings do not train, or no part of the model
    save(run, 'base', [1], params)
    assert sentence(CheckpointError, run) == (
        f'checkpoint 1 in {run / "base"} does not fit the {component} of the model {str(MODEL)!r}; '
        f'put that model back as it was when the run began'
    )


def test_a_checkpoint_that_lacks_what_the_settings_train_is_one_sentence(tmp_path):
    run = begun(tmp_path / 'run', MODEL, base=BaseConfig(train_text_encoder=True))
    save(run, 'base', [1], {'unet': model().base.denoiser.params})
    assert 'does not fit the text_encoder of the model' in sentence(CheckpointError, run)


def test_a_damaged_checkpoint_is_one_sentence_and_no_older_one_is_taken_instead(run):
    save(run, 'base', [1, 2], {'unet': {'kernel': np.ones((2, 3), np.float32)}})
    for file in (run / 'base' / 'checkpoints' / '2').rglob('*'):
        if file.is_file():
            file.write_bytes(b'')
    assert ' could not be read: ' in sentence(CheckpointError, run)


LORA = LoraConfig(rank=2, alpha=3.0, targets=('.*',))


def adapted(kind, **settings):
    """(settings of a run that trains both stages and the text encoder, model, what trains, with random adapters)."""
    found = resolve(
        DreamBoothConfig,
        {
            'model': str(MODEL),
            'data': {'instance_dir': 'photos', 'instance_prompt': 'a <new> dog', 'class_prompt': 'a dog'},
            'prior': {'weight': 0.0},
            'lora': {'rank': 2, 'alpha': 3.0, 'targets': ('.*',), 'frozen_dtype': kind, **settings},
            'textual_inversion': {'token': '<new>'},
            'base': {'train_text_encoder': True},
            'super_resolution': {'steps': 1},
        },
    )
    start, _ = initial(found, Cascade.of(found, kind), dtype=np.float32)
    rng, trained = np.random.default_rng(0), {}
    for stage in STAGES:
        shapes = stage_trainable(found, stage, start).params
        trained[stage] = {
            component: {
                name: (value + 0.1 * rng.standard_normal(value.shape)).astype(np.float32)
                for name, value in params.items()
            }
            for component, params in shapes.items()
        }
    return found, start, trained


@pytest.mark.slow
@pytest.mark.parametrize('dora', [False, True])
@pytest.mark.parametrize('kind', ['int8', 'nf4'])
def test_adapters_of_quantised_networks_are_merged_into_the_kernels_of_the_files(kind, dora, tmp_path):
    config, start, trained = adapted(kind, dora=dora)
    assert trained['base'].keys() == {'unet', 'text_encoder'}
    finetuned = start
    for stage in STAGES:
        trainable = stage_trainable(config, stage, finetuned)
        finetuned = finetuned.with_params(**{stage: trainable.plain(trained[stage])})
    assert all(
        quantised.kernel_names(network.params) and any(map(lora.is_adapter, network.params))
        for network in (*finetuned.base.components.values(), finetuned.super_resolution.denoiser)
    )
    found = with_whole_kernels(config, finetuned)
    # As a run without quantisation that has learned the same.
    plain = dataclasses.replace(config, lora=dataclasses.replace(config.lora, frozen_dtype=None))
    whole, _ = initial(plain, Cascade.of(plain), dtype=np.float32)
    for stage in STAGES:
        expected = stage_trainable(plain, stage, whole).plain(trained[stage])
        for component, params in expected.items():
            network = getattr(found, stage).components[component]
            assert network.frozen_dtype is None and network.params.keys() == params.keys()
            for name, value in params.items():
                np.testing.assert_allclose(network.params[name], value, rtol=1e-6, atol=1e-6, err_msg=name)
    assert found.base.added_tokens == ('<new>',)
    write_model(config, finetuned, tmp_path / 'model')
    back = Cascade.load(tmp_path / 'model')
    for name, value in found.super_resolution.denoiser.params.items():
        np.testing.assert_array_equal(back.super_resolution.denoiser.params[name], value)


def test_a_model_without_quantised_kernels_is_exported_as_it_is():
    config = resolve(DreamBoothConfig, {'data': {'subject': 'dog', 'instance_prompt': 'x', 'class_prompt': 'y'}})
    assert with_whole_kernels(config, model()) is model()


def test_a_run_with_quantised_kernels_is_read_with_those_of_the_files(tmp_path):
    folder = begun(tmp_path / 'dog', MODEL, lora=dataclasses.replace(LORA, frozen_dtype='nf4'))
    params = stage_trainable(read_config(folder), 'base', Cascade.load(MODEL, frozen_dtype='nf4')).params
    save(folder, 'base', [1], params)
    found = read_trained(folder)
    unet = found.cascade.base.denoiser
    assert unet.frozen_dtype is None and unet.params.keys() == model().base.denoiser.params.keys()
    kernel = 'mid_block.resnets.0.time_emb_proj.kernel'
    a, b = (params['unet'][kernel.replace('kernel', part)] + 1 for part in ('lora_a', 'lora_b'))
    expected = model().base.denoiser.params[kernel] + 3 / 2 * a @ b
    np.testing.assert_allclose(unet.params[kernel], expected, rtol=1e-5, atol=1e-5)
    assert found.adapters['base'].alpha == 3.0 and found.adapters['base'].params.keys() == {'unet'}
