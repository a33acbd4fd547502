"""The callback that scores checkpoints, with a model and encoders that are only pretended, so nothing is compiled."""

import dataclasses
import json
import types

import jax
import numpy as np
import pytest

from dreambooth_jax.config import ConfigError, EvaluationConfig
from dreambooth_jax.evaluation.protocol import Asked, Subject
from dreambooth_jax.evaluation.score_checkpoints import Evaluation, Measure, spread
from dreambooth_jax.generation.options import SamplingOptions
from dreambooth_jax.monitoring import metrics
from dreambooth_jax.training import best_checkpoint

RED, BLUE = (200, 10, 10), (10, 10, 200)  # the subject, and the class


@dataclasses.dataclass
class Colours:
    """An encoder: colours of images, and of prompts that name one."""

    fingerprint: str = 'colours'
    placed: bool = False

    def embed_images(self, images):
        self.placed = True
        found = np.array([image.reshape(-1, 3).mean(axis=0) for image in images], np.float64)
        return found / np.linalg.norm(found, axis=1, keepdims=True)

    def embed_texts(self, texts):
        return self.embed_images([np.full((1, 1, 3), (100, 200, 10) if 'green' in text else BLUE) for text in texts])

    def release(self):
        self.placed = False


@dataclasses.dataclass
class Painter:
    """A model that has learned a share of the subject, and gives as much of the prompt up."""

    share: float
    error: Exception | None = None
    generated: int = 0
    usual_batch_size: int = 8

    def stream(self, prompts, requests, options):
        if self.error is not None:
            raise self.error
        assert not options.super_resolution
        assert len({number for _, number in requests}) == len(requests)  # no two images from the same noise
        self.generated += len(requests)
        colours = []
        for prompt in (prompts[index] for index, _ in requests):
            share = self.share if 'sks' in prompt else self.share / 10
            other = (100, 200, 10) if 'green' in prompt else BLUE
            colours.append(np.add(np.multiply(RED, share), np.multiply(other, 1 - share)))
        images = np.broadcast_to(np.array(colours)[:, None, None], (len(colours), 4, 4, 3)).astype(np.uint8)
        for first in range(0, len(requests), 3):
            yield range(first, first + 3), types.SimpleNamespace(base=images[first : first + 3])

    def release(self):
        pass


SUBJECT = Subject(
    name='sks dog',
    instance_prompt='a sks dog',
    class_prompt='a dog',
    photos=tuple(np.broadcast_to(np.uint8(colour), (5, 5, 3)) for colour in (RED, (200, 30, 10))),
    prompts=tuple(Asked('context', f'a sks dog, green {place}', f'a dog, green {place}') for place in range(25)),
)


def evaluation(workdir, original=None, **settings):
    settings = EvaluationConfig(every=10, num_prompts=2, num_images=2, class_images=3, **settings)
    encoder = Colours()
    measure = Measure(subject=spread(SUBJECT, 2), dino=encoder, clip=encoder, num_images=2, class_images=3)
    return Evaluation(
        settings=settings,
        workdir=workdir,
        measures=[measure],
        options=SamplingOptions(steps=2, guidance_scale=1.0, sampler='ddim', super_resolution=False),
        original=original or Painter(0.0),
    )


def callback(workdir, shares, **settings):
    """The callback of a training that has learned shares[step] of the subject."""
    return evaluation(workdir, **settings).during(lambda step: Painter(shares[step]))


def written(workdir):
    return json.loads((workdir / 'best.json').read_text())


def checkpoint(workdir, step):
    (workdir / 'base' / 'checkpoints' / str(step)).mkdir(parents=True, exist_ok=True)


def test_prompts_are_spread_over_all_of_them():
    places = [asked.text.split()[-1] for asked in spread(SUBJECT, 4).prompts]
    assert places == ['3', '9', '15', '21']
    assert [len(spread(SUBJECT, count).prompts) for count in (1, 25)] == [1, 25]
    assert spread(SUBJECT, 25).prompts == SUBJECT.prompts


def test_what_is_learned_and_lost_is_measured_and_the_best_trade_off_named(tmp_path):
    scored = callback(tmp_path, {10: 0.1, 20: 0.7, 30: 0.95})
    numbers = [scored(step, step) for step in (10, 20, 30)]
    for name, rises in (('subject_fidelity', True), ('prompt_fidelity', False), ('drift', True), ('dino', True)):
        values = [one[name] for one in numbers]
        assert values == sorted(values, reverse=not rises) and values[0] != values[-1]
    assert scored.best == written(tmp_path)['step'] == 20
    candidates = written(tmp_path)['candidates']
    assert [one['step'] for one in candidates] == [10, 20, 30]
    assert [{name: value for name, value in one.items() if name != 'step'} for one in candidates] == numbers
    assert written(tmp_path)['stage'] == 'base' and 'harmonic mean' in written(tmp_path)['rule']


def test_nothing_stays_on_the_devices(tmp_path):
    scored = callback(tmp_path, {10: 0.5})
    scored(10, 10)
    assert not scored.evaluation.measures[0].dino.placed


def test_a_run_that_goes_on_measures_neither_the_model_before_nor_a_step_again(tmp_path):
    callback(tmp_path, {10: 0.1})(10, 10)
    checkpoint(tmp_path, 10)
    original, again = Painter(0.0), Painter(0.5)
    scored = evaluation(tmp_path, original).during(lambda step: again)
    assert [one['step'] for one in scored.candidates] == [10] and scored.best == 10
    scored(10, 10)
    assert (original.generated, again.generated) == (0, 0)
    scored(20, 20)
    assert (original.generated, again.generated) == (0, 2 * 2 + 3)
    assert [one['step'] for one in written(tmp_path)['candidates']] == [10, 20]


def test_evaluations_beyond_the_newest_checkpoint_are_made_again(tmp_path):
    before = callback(tmp_path, {10: 0.5, 20: 0.9})
    before(10, 10), before(20, 20)
    checkpoint(tmp_path, 10)
    scored = callback(tmp_path, {20: 0.2})
    assert scored.best == 10 and scored.missed(20)
    scored(20, 20)
    assert [one['step'] for one in written(tmp_path)['candidates']] == [10, 20]
    assert written(tmp_path)['candidates'][1]['dino'] < before.candidates[1]['dino']


def test_a_checkpoint_that_is_gone_is_not_chosen_when_the_settings_would_choose_it_now(tmp_path):
    scored = callback(tmp_path, {10: 0.2, 20: 0.7, 30: 0.95}, max_drift=9.0)
    for step in (10, 20, 30):
        scored(step, step)
    assert scored.best == 20
    checkpoint(tmp_path, 20), checkpoint(tmp_path, 30)
    strict = min(one['drift'] for one in scored.candidates) + 1e-6
    assert callback(tmp_path, {}, max_drift=strict).best == written(tmp_path)['step'] == 20
    assert f'{strict:g}' in written(tmp_path)['rule']


def test_numbers_that_the_metrics_lack_after_a_kill_are_told_once(tmp_path):
    scored = callback(tmp_path, {10: 0.5})
    numbers = scored(10, 10)  # killed before the loop has written them
    checkpoint(tmp_path, 10)
    scored = callback(tmp_path, {10: 0.5})
    assert scored.missed(10) and scored(10, 10) == numbers
    writer = metrics.Metrics(tmp_path, 'base', resume_step=10, tensorboard=False)
    writer.write(10, numbers)
    writer.close()
    assert not scored.missed(10) and scored(10, 10) is None


@pytest.mark.parametrize('change', ['num_images', 'encoder', 'trade_off'])
def test_evaluations_by_other_measures_are_made_again_with_a_warning_where_the_checkpoint_is_left(
    tmp_path, caplog, change
):
    before = callback(tmp_path, {10: 0.2, 20: 0.7, 30: 0.95})
    for step in (10, 20, 30):
        before(step, step)
    checkpoint(tmp_path, 20), checkpoint(tmp_path, 30)
    found = written(tmp_path)
    found['measured_by']['encoders' if change == 'encoder' else change] = 'other'
    best_checkpoint.write(tmp_path, found)
    scored = callback(tmp_path, {20: 0.7, 30: 0.95})
    assert scored.again == [20] and scored.best == written(tmp_path)['step'] == 20 and scored.missed(30)
    assert 'of 3 checkpoints, the 2 that are still there are evaluated again' in caplog.text
    scored(20, 20), scored(30, 30)
    assert not scored.again and scored.best == 20
    assert written(tmp_path)['candidates'] == found['candidates'][1:]


def test_patience_ends_after_so_many_evaluations_without_gain_and_not_at_earlier_steps(tmp_path):
    scored = callback(tmp_path, {10: 0.7, 20: 0.95, 30: 0.95}, patience=2)
    for step in (10, 20):
        scored(step, step)
        assert not scored.enough(step)
    scored(30, 30)
    assert scored.enough(30) and not scored.enough(20) and scored.best == 10
    assert not callback(tmp_path / 'other', {}).enough(30)
    checkpoint(tmp_path, 10), checkpoint(tmp_path, 30)
    later = dataclasses.replace(scored.evaluation, since=20).during(None)
    assert later.best == 10 and not later.enough(30)


def test_without_patience_nothing_is_enough(tmp_path):
    scored = callback(tmp_path, {step: 0.9 for step in (10, 20, 30, 40)})
    for step in (10, 20, 30, 40):
        scored(step, step)
    assert not scored.enough(40)


@pytest.mark.parametrize('error', [ConfigError('no'), jax.errors.JaxRuntimeError('RESOURCE_EXHAUSTED: Out of memory')])
def test_an_evaluation_that_fails_is_a_warning_and_no_candidate(tmp_path, caplog, error):
    scored = evaluation(tmp_path).during(lambda step: Painter(0.5, error))
    assert scored(10, 10) is None and scored.best is None
    assert 'step 10 is not evaluated, training goes on: ' in caplog.text
    if isinstance(error, jax.errors.JaxRuntimeError):
        assert '--config.evaluation.every=0' in caplog.text


def test_one_photo_is_enough(tmp_path):
    one = evaluation(tmp_path)
    measure = dataclasses.replace(one.measures[0], subject=dataclasses.replace(SUBJECT, photos=SUBJECT.photos[:1]))
    scored = dataclasses.replace(one, measures=[measure]).during(lambda step: Painter(0.5))
    assert 0 < scored(10, 10)['subject_fidelity'] < 1
    assert written(tmp_path)['before'][0]['ceiling'] == 1.0


def test_of_several_subjects_the_mean_counts(tmp_path):
    one = evaluation(tmp_path)
    blue = Subject(**{**vars(SUBJECT), 'photos': (np.full((4, 4, 3), BLUE, np.uint8),) * 2})
    both = [one.measures[0], dataclasses.replace(one.measures[0], subject=spread(blue, 2), _known={})]
    alone = [
        dataclasses.replace(one, measures=[measure], workdir=tmp_path / str(number)).during(lambda step: Painter(0.5))
        for number, measure in enumerate(both)
    ]
    for number in (0, 1):
        (tmp_path / str(number)).mkdir()
    numbers = dataclasses.replace(one, measures=both).during(lambda step: Painter(0.5))(10, 10)
    single = [scored(10, 10) for scored in alone]
    assert all(numbers[name] == pytest.approx((single[0][name] + single[1][name]) / 2) for name in numbers)


def test_the_verdict_is_one_line_and_drift_beyond_the_bound_a_warning(tmp_path, caplog):
    scored = callback(tmp_path, {10: 0.5})
    assert scored.evaluation.verdict() == 'no checkpoint of the base stage was evaluated; the last one is taken'
    scored(10, 10)
    assert scored.evaluation.verdict().startswith('best of 1 evaluated checkpoints: step 10 (subject 0.')
    assert caplog.text == ''
    evaluation(tmp_path, max_drift=0.0).verdict()
    assert 'at every evaluation the class had drifted beyond config.evaluation.max_drift 0; step 10' in caplog.text


def test_a_damaged_best_json_is_one_sentence(tmp_path):
    (tmp_path / 'best.json').write_text('{"candidates": 3}')
    with pytest.raises(ConfigError) as error:
        callback(tmp_path, {})
    assert str(error.value) == (
        f'{tmp_path}/best.json is damaged; restore it, or delete it and the checkpoints are evaluated from here on'
    )
