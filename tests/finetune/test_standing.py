"""Settings of the evaluation that change at any moment of a run: what is evaluated again, chosen and told.

The training counts its steps and learns nothing, and what is scored is painted, so nothing is compiled.
"""

import dataclasses

import numpy as np
import optax
import pytest

from dreambooth_jax.config import (
    BaseConfig,
    CheckpointConfig,
    ConfigError,
    DataConfig,
    DreamBoothConfig,
    EvaluationConfig,
    RunSamplesConfig,
    SuperResolutionConfig,
)
from dreambooth_jax.evaluation.score_checkpoints import Evaluation, Measure, spread
from dreambooth_jax.finetune.extension import extended
from dreambooth_jax.finetune.standing import standing, told
from dreambooth_jax.generation.cascade import Cascade
from dreambooth_jax.generation.options import SamplingOptions
from dreambooth_jax.training import best_checkpoint, run, train_run
from dreambooth_jax.training.train_run import Budget, TrainRun
from tests.evaluation.test_score_checkpoints import SUBJECT, Colours, Painter, written
from tests.support import smallest_pipelines, toy
from tests.support.written_runs import save

# How much of the subject each step has learned, and of its prompts forgotten: 4 is the best, and 6 has drifted less.
SHARES = {2: 0.95, 4: 0.7, 6: 0.2, 8: 0.3, 10: 0.3}
SCORED = {'every': 2, 'num_prompts': 2, 'class_images': 3, 'max_drift': 9.0}


TRAINING = TrainRun(
    name='base',
    loss=None,
    params={'unet': {'kernel': np.zeros(2, np.float32)}},
    frozen_at=lambda placed, step: placed,
    batch={'is_instance': np.ones(1), 'weight': np.ones(1)},
    pick=None,
    tx=optax.identity(),
    learning_rate=lambda step: 0.0,
    placement=toy.placed('one'),
    budget=Budget(steps=0),
    seed=0,
    checkpoint=CheckpointConfig(every=2),
)


def count_a_step(state, frozen, key, batch):
    numbers = dict.fromkeys(('loss', 'gradient_norm'), np.zeros(1, np.float32))
    return dataclasses.replace(state, step=state.step + 1), numbers


@pytest.fixture(autouse=True)
def nothing_is_compiled(monkeypatch):
    monkeypatch.setattr(TrainRun, 'compile', lambda self, num_steps: count_a_step)


def settings(steps=6, second=0, **evaluation):
    return DreamBoothConfig(
        data=DataConfig(instance_dir='photos', instance_prompt='a sks dog', class_prompt='a dog'),
        base=BaseConfig(steps=steps),
        super_resolution=SuperResolutionConfig(steps=second),
        evaluation=EvaluationConfig(**{**SCORED, **evaluation}),
    )


def go(workdir, config, more=None):
    """Starts the run as `train` does; returns the steps that are evaluated and the step that the base stage gives."""
    config, extension = extended(config, workdir, more)
    chosen, seen = standing(config, workdir, extension), []
    run.begin(config, workdir)
    extension.write(workdir)
    if chosen is None and not config.evaluation.every:
        best_checkpoint.forget(workdir)
    counts = {'num_images': config.evaluation.num_images, 'class_images': config.evaluation.class_images}
    evaluation = Evaluation(
        settings=config.evaluation,
        workdir=workdir,
        measures=[Measure(subject=spread(SUBJECT, 2), dino=Colours(), clip=Colours(), **counts)],
        options=SamplingOptions(steps=2, guidance_scale=1.0, sampler='ddim', super_resolution=False),
        original=Painter(0.0),
        since=extension.since,
    )

    def cascade_of(state):
        seen.append(int(state.step))
        return Painter(SHARES[int(state.step)])

    callbacks = [chosen] if chosen else [evaluation.during(cascade_of)] if config.evaluation.every else []
    training = dataclasses.replace(TRAINING, callbacks=callbacks, budget=Budget(steps=config.base.steps))
    state, finished = train_run.fit(training, workdir)
    assert finished
    if config.super_resolution.steps:
        save_second(workdir, config.super_resolution.steps)
    return seen, int(state.step)


def save_second(workdir, step):
    if step not in run.checkpoints(workdir, 'super_resolution'):
        save(workdir, 'super_resolution', [step], {'unet': {'kernel': np.ones((2, 2), np.float32)}})


# What is there when the settings change: the steps of the first start, of the second stage, and of the base stage now.
MOMENTS = {
    'during the base stage': (4, 0, 6, None),
    'after the base stage': (6, 0, 6, None),
    'after the second stage has begun': (6, 2, 6, None),
    'with more steps, after the second stage': (6, 2, 8, None),
    'with --extend, after the second stage': (6, 2, 6, 2),
}
DURING, BASE_ALONE, STANDS, MORE, EXTENDED = MOMENTS
MEASURE, STRICT, OFF, ON = {'num_images': 2}, {'max_drift': 1e-9}, {'every': 0}, {'every': 2}


@pytest.mark.parametrize(
    ('moment', 'before', 'now', 'evaluated', 'best'),
    [
        (DURING, {}, {}, [6], 4),
        (DURING, {}, MEASURE, [2, 4, 6], 4),
        (DURING, {}, STRICT, [6], 6),
        (DURING, {}, OFF, [], None),
        (DURING, OFF, ON, [2, 4, 6], 4),
        (BASE_ALONE, {}, {}, [], 4),
        (BASE_ALONE, {}, MEASURE, [4, 6], 4),
        (BASE_ALONE, {}, STRICT, [], 6),
        (BASE_ALONE, {}, OFF, [], None),
        (BASE_ALONE, OFF, ON, [4, 6], 4),
        (STANDS, {}, {}, [], 4),
        (STANDS, {}, MEASURE, [], 4),
        (STANDS, {}, STRICT, [], 4),
        (STANDS, {}, OFF, [], 4),
        (STANDS, OFF, ON, [], None),
        (MORE, {}, {}, [8], 4),
        (MORE, {}, MEASURE, [4, 6, 8], 4),
        (EXTENDED, {}, {}, [8], 4),
        (EXTENDED, {}, MEASURE, [4, 6, 8], 4),
        (EXTENDED, {}, STRICT, [8], 6),
        (EXTENDED, {}, OFF, [], None),
        (EXTENDED, OFF, ON, [4, 6, 8], 4),
    ],
)
def test_settings_that_change(tmp_path, caplog, moment, before, now, evaluated, best):
    first, second, then, more = MOMENTS[moment]
    assert go(tmp_path, settings(first, second, **before))[1] == (first if before == OFF else 4)
    seen, step = go(tmp_path, settings(then, second, **now), more)
    assert (seen, step) == (evaluated, best or then + (more or 0))
    if before != OFF or now != ON or moment != STANDS:
        assert written(tmp_path)['step'] == best and 'again' not in written(tmp_path)
    warned = moment == STANDS and before != now
    assert ('this choice stands' in caplog.text) == warned
    # Started again with the same settings, nothing is evaluated and nothing changes.
    assert go(tmp_path, settings(then, second, **now)) == ([], step)


def test_a_base_stage_that_patience_has_ended_goes_on_only_while_it_is_alone(tmp_path):
    for folder, second, steps in ((tmp_path / 'alone', 0, [8]), (tmp_path / 'both', 2, [])):
        assert go(folder, settings(8, second, patience=1)) == ([2, 4, 6], 4)
        assert go(folder, settings(8, second)) == (steps, 4)
        assert go(folder, settings(8, second, every=0), more=2)[1] == (10 if second == 0 else 8)


def test_what_stands_is_told_by_name(tmp_path, caplog):
    go(tmp_path, settings(second=2))
    go(tmp_path, dataclasses.replace(settings(second=2, num_images=2), samples=RunSamplesConfig(steps=9)))
    assert caplog.messages[-1].startswith('config.evaluation.num_images is 2 and was 1, config.samples.steps is 9 and ')
    assert caplog.messages[-1].endswith(
        'but the second stage was trained on checkpoint 4 of the base stage: this choice stands, and nothing is '
        'evaluated again'
    )


def test_a_kill_while_checkpoints_are_evaluated_again_loses_neither_them_nor_the_former_best(tmp_path, monkeypatch):
    go(tmp_path, settings())
    # From here on a single checkpoint is kept, which deletes none of those that are to be evaluated again.
    calls = []

    def killed(self, *arguments):
        calls.append(arguments)
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(Evaluation, 'scored', killed)
        with pytest.raises(KeyboardInterrupt):
            go(tmp_path, settings(num_images=2))
    found = written(tmp_path)
    assert (found['again'], found['former'], found['step'], found['candidates']) == ([4], 4, 4, [])
    assert go(tmp_path, settings(num_images=2)) == ([4, 6], 4)


def test_a_checkpoint_that_cannot_be_evaluated_again_is_not_tried_for_ever(tmp_path, monkeypatch):
    go(tmp_path, settings())
    with monkeypatch.context() as patched:
        patched.setattr(Painter, 'stream', lambda *_, **__: (_ for _ in ()).throw(ConfigError('no')))
        seen, step = go(tmp_path, settings(num_images=2))
    assert step == 6 and written(tmp_path)['step'] is None and 'again' not in written(tmp_path)


def test_a_choice_whose_checkpoint_was_deleted_does_not_stand(tmp_path):
    config = settings(second=2)
    go(tmp_path, config)
    (tmp_path / 'base' / 'checkpoints' / '4').rename(tmp_path / 'elsewhere')
    assert go(tmp_path, config) == ([], 6)


@pytest.mark.parametrize('text', [False, True])
def test_what_becomes_of_a_trained_second_stage_is_told(tmp_path, text):
    cascade = Cascade.load(smallest_pipelines.folder('pixels'))
    config = settings(second=2)
    if text:
        config = dataclasses.replace(config, base=dataclasses.replace(config.base, train_text_encoder=True))
    assert told(config, tmp_path, cascade, None) is None
    go(tmp_path, config)
    chosen = standing(config, tmp_path, extended(config, tmp_path, None)[1])
    assert told(config, tmp_path, cascade, chosen) == (
        'checkpoint 4 of the base stage stands: the second stage was trained on it'
    )
    line = 'the base stage goes on from step 6, the second stage {}'
    if text:
        line += '. It has learned from prompts as the text encoder read them until now'
    assert told(config, tmp_path, cascade, None) == line.format(
        'is trained already and stays as it is; config.super_resolution.steps above 2 trains it on'
    )
    more = dataclasses.replace(config, super_resolution=SuperResolutionConfig(steps=3))
    assert told(more, tmp_path, cascade, None) == line.format('then from its step 2')
