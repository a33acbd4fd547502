"""train with evaluations: a run exports its best checkpoint, ends by patience, goes on and is extended."""

import functools
import json
import os
import shutil
import signal
from pathlib import Path

import jax
import numpy as np
import pytest
import safetensors.numpy
from PIL import Image

from dreambooth_jax.evaluation import best, scores
from dreambooth_jax.evaluation.encoders import load_encoder
from dreambooth_jax.evaluation.protocol import noise_of
from dreambooth_jax.evaluation.score_checkpoints import Evaluation
from dreambooth_jax.finetune import memory_plan
from dreambooth_jax.finetune.trained import read_trained
from dreambooth_jax.generation.options import SamplingOptions
from dreambooth_jax.monitoring import metrics
from dreambooth_jax.training import placement
from dreambooth_jax.weights import files
from tests.programs.test_train import WEIGHTS, config, equal, weights  # noqa: F401 (config is a fixture)
from tests.support import tiny_encoders

pytestmark = pytest.mark.slow


@pytest.fixture(autouse=True)
def one_device(monkeypatch):
    """On the four devices of conftest.py XLA would compile and compute for minutes (training/placement.py)."""
    one = functools.partial(placement.make_placement, devices=jax.devices()[:1])
    monkeypatch.setattr(placement, 'make_placement', one)


@pytest.fixture(scope='module')
def encoders(tmp_path_factory):
    folder = tmp_path_factory.mktemp('encoders')
    return {name: tiny_encoders.write(name, folder / name) for name in ('dino', 'clip')}


@pytest.fixture
def liked(monkeypatch):
    """Steps that are liked: the encoders and the model are random, so the rule would choose by chance."""
    found = []

    def is_better(new, chosen, max_drift):
        return chosen is None or new['step'] in found

    monkeypatch.setattr(best, 'is_better', is_better)
    monkeypatch.setattr(best.Scale, 'measured', lambda self, **numbers: {'trade_off': 0.5, **SHOWN})
    return found


SHOWN = {'subject_fidelity': 0.5, 'prompt_fidelity': 0.5, 'drift': 0.0}


@pytest.fixture
def train(program, config, encoders):  # noqa: F811
    """(run's folder, more flags) -> a run of 6 steps of the base stage that is evaluated every two steps."""

    def run(workdir, *flags, second='none', every=2):
        sources = [f'--config.evaluation.{name}={folder}' for name, folder in encoders.items()] if every else []
        options = {'every': every, 'num_prompts': 2, 'num_images': 2, 'class_images': 2}
        return program(
            'train',
            f'--config={config}',
            f'--workdir={workdir}',
            f'--config.super_resolution_model={second}' if second else '--config.super_resolution.steps=2',
            '--config.base.steps=6',
            *sources,
            *[f'--config.evaluation.{name}={value}' for name, value in options.items()],
            *flags,
        )

    return run


@pytest.fixture
def whole(train, tmp_path_factory):
    """The folder of an undisturbed run, made on first use; a test must not change it."""
    if not WHOLE:
        run = tmp_path_factory.mktemp('whole') / 'run'
        assert train(run).code == 0
        WHOLE.append(run)
    return WHOLE[0]


WHOLE = []


def exported(run):
    return files.read_tensors(run / 'model' / WEIGHTS[0])


def of_checkpoint(run, step, tmp_path):
    """What export writes of a checkpoint."""
    from dreambooth_jax.weights import folders

    return files.read_tensors(
        folders.write_pipeline(read_trained(run, step).cascade.base, tmp_path / f'step_{step}') / WEIGHTS[0]
    )


def choice(run):
    return json.loads((run / 'best.json').read_text())


def checkpoints(run):
    return sorted(int(path.name) for path in (run / 'base' / 'checkpoints').iterdir())


def test_the_best_checkpoint_is_exported_and_enlarged_and_any_other_can_be_chosen(train, program, liked, tmp_path):
    liked.append(2)
    run = tmp_path / 'run'
    ended = train(run, '--config.checkpoint.keep=1', second=None)
    assert ended.code == 0, ended.error
    assert 'best of 3 evaluated checkpoints: step 2 (subject 0.50, prompt 0.50, drift 0.00; ' in ended.out
    assert choice(run)['step'] == 2 and [one['step'] for one in choice(run)['candidates']] == [2, 4, 6]
    assert checkpoints(run) == [2, 6]
    best_weights, last_weights = of_checkpoint(run, 2, tmp_path), of_checkpoint(run, 6, tmp_path)
    assert equal([exported(run)], [best_weights]) and not equal([best_weights], [last_weights])
    numbers = [line for line in metrics.read(run, 'base') if 'trade_off' in line]
    assert [line['step'] for line in numbers] == [2, 4, 6]
    assert {'dino', 'clip_t', 'pres', *SHOWN} <= numbers[0].keys()
    for flags, weights_of in (([], best_weights), (['--step=6'], last_weights)):
        output = tmp_path / f'exported{len(flags)}'
        ended = program('export', f'--workdir={run}', f'--output={output}', *flags)
        assert ended.code == 0, ended.error
        assert ('base: checkpoint 2, the best by evaluation' in ended.out) == (not flags)
        assert equal([files.read_tensors(output / WEIGHTS[0])], [weights_of])
    # Again, nothing is measured and nothing changes.
    written = (run / 'best.json').read_bytes(), exported(run)
    assert train(run, '--config.checkpoint.keep=1', second=None).code == 0
    assert (run / 'best.json').read_bytes() == written[0] and equal([exported(run)], [written[1]])
    assert [line['step'] for line in metrics.read(run, 'base') if 'trade_off' in line] == [2, 4, 6]


def test_patience_ends_the_stage_and_an_extension_goes_on(train, liked, tmp_path):
    liked.append(2)
    run = tmp_path / 'run'
    ended = train(run, '--config.evaluation.patience=1')
    assert ended.code == 0 and 'trained model' in ended.out, ended.error
    assert checkpoints(run) == [2, 4] and choice(run)['enough'] == 4
    assert (run / 'samples' / 'base' / '000004.png').is_file()
    first = exported(run)
    assert train(run, '--config.evaluation.patience=1').code == 0
    assert checkpoints(run) == [2, 4] and equal([exported(run)], [first])
    liked.append(8)
    ended = train(run, '--config.evaluation.patience=3', '--extend=4')
    assert ended.code == 0, ended.error
    assert json.loads((run / 'config.json').read_text())['base']['steps'] == 8
    assert checkpoints(run) == [6, 8] and choice(run)['step'] == 8
    assert equal([exported(run)], [of_checkpoint(run, 8, tmp_path)])


def test_under_a_trained_second_stage_the_choice_stands_until_the_base_stage_is_extended(
    train, liked, tmp_path, caplog
):
    liked.append(2)
    run = tmp_path / 'run'
    assert train(run, '--config.checkpoint.keep=1', second=None).code == 0
    before, (_, second) = (run / 'best.json').read_bytes(), weights(run)
    ended = train(run, '--config.checkpoint.keep=1', '--config.evaluation.num_images=1', second=None)
    assert ended.code == 0 and 'checkpoint 2 of the base stage stands: the second stage was trained on it' in ended.out
    assert 'evaluation.num_images is 1 and was 2; but the second stage was trained on checkpoint 2 of' in caplog.text
    assert (run / 'best.json').read_bytes() == before and checkpoints(run) == [2, 6]
    liked.append(8)
    ended = train(run, '--config.checkpoint.keep=1', '--extend=2', second=None)
    assert ended.code == 0, ended.error
    assert 'goes on from step 6, the second stage is trained already and stays as it is' in ended.out
    assert choice(run)['step'] == 8 and checkpoints(run) == [8]
    assert equal(weights(run), [of_checkpoint(run, 8, tmp_path), second])


def test_an_extended_run_equals_one_of_as_many_steps(train, whole, tmp_path):
    parts = tmp_path / 'parts'
    assert train(parts, '--config.base.steps=3').code == 0
    ended = train(parts, '--config.base.steps=3', '--extend=3')
    assert ended.code == 0, ended.error
    assert json.loads((parts / 'config.json').read_text())['base']['steps'] == 6
    assert equal([of_checkpoint(whole, 6, tmp_path)], [of_checkpoint(parts, 6, tmp_path / 'parts')])
    assert json.loads((parts / 'extended.json').read_text()) == {'from': 3, 'steps': 6}


@pytest.mark.parametrize('moment', ['between', 'before_the_metrics', 'while_it_scores'])
def test_a_run_that_is_interrupted_chooses_as_an_undisturbed_one(train, whole, tmp_path, monkeypatch, moment):
    run = tmp_path / 'run'
    write, scored = metrics.Metrics.write, Evaluation.scored

    def write_then_end(self, step, values):
        if moment == 'before_the_metrics' and 'trade_off' in values and step == 4:
            raise KeyboardInterrupt
        write(self, step, values)
        if moment == 'between' and (self.stage, step) == ('base', 3):
            os.kill(os.getpid(), signal.SIGTERM)

    def scored_or_killed(self, *arguments):
        if moment == 'while_it_scores' and [path for path in checkpoint_folders(run) if path == '4']:
            raise KeyboardInterrupt
        return scored(self, *arguments)

    with monkeypatch.context() as patched:
        patched.setattr(metrics.Metrics, 'write', write_then_end)
        patched.setattr(Evaluation, 'scored', scored_or_killed)
        train(run)
    assert not (run / 'model').exists()
    assert train(run).code == 0
    assert (run / 'best.json').read_bytes() == (whole / 'best.json').read_bytes()
    assert equal([exported(run)], [exported(whole)]) and checkpoints(run) == checkpoints(whole)
    lines = [[{**line, 'images_per_second': None} for line in metrics.read(folder, 'base')] for folder in (run, whole)]
    assert lines[0] == lines[1]


def checkpoint_folders(run):
    folder = run / 'base' / 'checkpoints'
    return [path.name for path in folder.iterdir()] if folder.is_dir() else []


def test_off_it_leaves_no_trace(train, tmp_path, monkeypatch):
    monkeypatch.setattr(Evaluation, 'scales', None)
    run = tmp_path / 'run'
    ended = train(run, every=0)
    assert ended.code == 0 and 'best' not in ended.out
    assert not (run / 'best.json').exists() and checkpoints(run) == [4, 6]
    assert equal([exported(run)], [of_checkpoint(run, 6, tmp_path)])


@pytest.mark.parametrize('flags', [(), ('--dry_run',)], ids=['run', 'plan'])
def test_an_encoder_that_is_not_there_is_one_sentence_before_anything_is_generated(train, tmp_path, flags):
    ended = train(tmp_path / 'run', f'--config.evaluation.dino={tmp_path}', *flags)
    assert ended.code == 1 and 'Traceback' not in ended.error
    assert ended.error.splitlines()[-1].startswith(
        f'checkpoints are to be scored with config.evaluation.dino, which cannot be read (to train without scores, set '
        f'config.evaluation.every to 0): {tmp_path}'
    )
    assert not (tmp_path / 'run' / 'prior').exists()


def test_a_plan_counts_the_encoders_and_writes_nothing(train, encoders, tmp_path, monkeypatch):
    uses, found = memory_plan.uses, []
    monkeypatch.setattr(memory_plan, 'uses', lambda *args, **more: found.extend(uses(*args, **more)) or found)
    ended = train(tmp_path / 'run', '--dry_run', '--compile')
    assert ended.code == 0 and not (tmp_path / 'run').exists(), ended.error
    assert '\n    evaluation of base  ' in ended.out
    stored = sum(path.stat().st_size for folder in encoders.values() for path in folder.glob('*.safetensors'))
    (step,) = (use for use in found if use.phase == 'training base')
    scored = {use.program: use for use in found if use.phase == 'evaluation of base'}
    assert list(scored)[-3:] == ['dino image', 'clip text', 'clip image']
    assert 0.9 * stored < scored['clip image'].weights - step.weights <= stored
    assert all(use.complete and use.temporaries > 0 for use in scored.values())


@pytest.mark.parametrize(
    ('flag', 'sentence'),
    [
        (
            '--config.data.class_prompt=an animal',
            "the run cannot be evaluated: instance prompt 'a sks dog' must be class prompt 'an animal' with an "
            "identifier before the class noun, as 'a sks dog' is to 'a dog'. To train without scores, set "
            'config.evaluation.every to 0.',
        ),
        (
            '--config.evaluation.clip=DINO',
            'config.evaluation.clip is {dino!r}, which encodes no texts; give one that does',
        ),
    ],
)
def test_what_cannot_be_evaluated_is_one_sentence(train, encoders, tmp_path, flag, sentence):
    ended = train(tmp_path / 'run', flag.replace('DINO', str(encoders['dino'])))
    assert (ended.code, ended.error.splitlines()[-1]) == (1, sentence.format(dino=str(encoders['dino'])))


def test_scores_are_those_of_the_images_that_the_checkpoint_generates(whole, encoders):
    found, trained = choice(whole), read_trained(whole, 6)
    options = SamplingOptions.of_samples(trained.config.samples)
    asked = {'dino': found['measured_by']['prompts'], 'pres': ['a dog']}
    dino = load_encoder(encoders['dino'])
    folder = Path(trained.config.data.instance_dir)
    photos = dino.embed_images([np.asarray(Image.open(folder / f'{number}.png')) for number in (1, 2, 3)])
    for name, prompts in asked.items():
        requests = [(index, noise_of(prompt, number)) for index, prompt in enumerate(prompts) for number in (0, 1)]
        images = np.concatenate([made.base for _, made in trained.cascade.stream(prompts, requests, options)])
        expected = scores.fidelity(dino.embed_images(images), photos).mean()
        assert found['candidates'][-1][name] == pytest.approx(expected, abs=1e-4)


def test_a_run_starts_from_another_and_is_scored_from_the_model(train, whole, tmp_path):
    first, second = tmp_path / 'first', tmp_path / 'second'
    shutil.copytree(whole, first)
    # A learning rate that is too low for float32 moves nothing, so the weights are those that it starts from.
    flags = [
        f'--config.init_from={first}',
        f'--config.prior.dir={first / "prior"}',
        '--config.base.learning_rate=1e-30',
    ]
    ended = train(second, *flags)
    assert ended.code == 0, ended.error
    assert equal([exported(second)], [exported(first)])
    assert choice(second)['before'] == choice(first)['before']  # class images and the floor are those of the model
    for init, sentence in (
        ('None', f"config.init_from is None but {second} was begun with '{first}'; set it back, or start another run"),
        (
            first / 'model',
            f"config.init_from is '{first / 'model'}' but {second} was begun with '{first}'; set it back",
        ),
    ):
        refused = train(second, *flags, f'--config.init_from={init}')
        assert refused.code == 1 and refused.error.splitlines()[-1].startswith(sentence)
    name = first / 'model' / WEIGHTS[0]
    safetensors.numpy.save_file({key: value + 1 for key, value in files.read_tensors(name).items()}, name)
    refused = train(second, *flags)
    assert (refused.code, refused.error.splitlines()[-1]) == (
        1,
        f"config.init_from is '{first}', which differs in weights from the model that {second} was begun with; put "
        f'that model back, or start another run with --workdir',
    )
