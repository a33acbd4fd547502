"""The rule of the best checkpoint: what its scales mean, what it prefers, and when it has seen enough."""

import pytest

from dreambooth_jax.evaluation import best

SCALE = best.Scale(dino=0.4, pres=0.3, ceiling=0.8, clip_t=0.3, clip_t_of_class=0.2)


def candidate(step, trade_off, drift=0.0):
    return {'step': step, 'trade_off': trade_off, 'drift': drift}


def chosen(*candidates, max_drift=0.3):
    return best.choose(candidates, max_drift)['step']


def test_the_model_before_is_0_of_the_subject_and_1_of_the_prompt_and_has_not_drifted():
    found = SCALE.measured(dino=0.4, clip_t=0.3, pres=0.3)
    assert found == {'subject_fidelity': 0.0, 'prompt_fidelity': 1.0, 'drift': 0.0, 'trade_off': 0.0}


def test_the_photos_are_1_of_the_subject_and_images_without_the_context_0_of_the_prompt():
    found = SCALE.measured(dino=0.8, clip_t=0.2, pres=0.8)
    assert found == {'subject_fidelity': 1.0, 'prompt_fidelity': 0.0, 'drift': pytest.approx(1), 'trade_off': 0.0}


def test_the_trade_off_is_the_harmonic_mean_in_which_the_subject_weighs_four_times_as_much():
    found = SCALE.measured(dino=0.6, clip_t=0.29, pres=0.35)
    assert found['subject_fidelity'] == pytest.approx(0.5) and found['prompt_fidelity'] == pytest.approx(0.9)
    assert found['trade_off'] == pytest.approx(5 / (4 / 0.5 + 1 / 0.9)) and found['drift'] == pytest.approx(0.1)


def test_images_may_be_more_like_the_photos_than_these_among_each_other_but_count_no_more_than_most():
    found = SCALE.measured(dino=0.84, clip_t=0.4, pres=0.2)
    assert found['subject_fidelity'] == pytest.approx(1.1) and found['prompt_fidelity'] == 1
    assert found['drift'] == pytest.approx(-0.2)
    assert SCALE.measured(dino=0.99, clip_t=0.3, pres=0.2)['subject_fidelity'] == best.MOST


@pytest.mark.parametrize(
    ('curve', 'step'),
    [
        # What experiments/evaluation saw of the dog and of the vase: the subject comes last, while the prompt fades.
        ({50: (0.30, 0.90), 100: (0.53, 0.91), 150: (0.76, 0.92), 200: (0.91, 0.67)}, 200),
        ({50: (0.32, 0.97), 100: (0.94, 0.90), 150: (0.86, 0.90), 200: (1.25, 0.72)}, 200),
        # A subject that is learned before prompts are lost.
        ({50: (0.80, 0.95), 100: (0.95, 0.93), 150: (0.97, 0.40), 200: (1.0, 0.20)}, 100),
    ],
)
def test_prompts_may_fade_while_the_subject_is_still_learned_but_not_be_lost(curve, step):
    assert chosen(*(candidate(step, best.trade_off(*fidelities)) for step, fidelities in curve.items())) == step


def test_photos_that_are_less_like_each_other_than_the_model_before_leave_a_scale():
    scale = best.Scale(dino=0.7, pres=0.7, ceiling=0.5, clip_t=0.2, clip_t_of_class=0.2)
    found = scale.measured(dino=0.69, clip_t=0.21, pres=0.71)
    assert found['subject_fidelity'] == 0 and found['prompt_fidelity'] == pytest.approx(0.5)
    assert found['drift'] == pytest.approx(0.5)


def test_the_best_trade_off_is_chosen_and_of_equals_the_earlier():
    assert chosen(candidate(50, 0.3), candidate(100, 0.6), candidate(150, 0.5)) == 100
    assert chosen(candidate(50, 0.5), candidate(100, 0.5 + best.MARGIN)) == 50
    assert chosen(candidate(50, 0.5), candidate(100, 0.501 + best.MARGIN)) == 100


def test_small_gains_that_add_up_are_a_gain():
    assert chosen(candidate(1, 0.5), candidate(2, 0.515), candidate(3, 0.53), candidate(4, 0.545)) == 3


def test_where_nothing_of_the_subject_is_seen_the_last_is_taken():
    assert chosen(candidate(50, 0.0), candidate(100, 0.0)) == 100
    assert chosen(candidate(50, 0.0), candidate(100, best.MARGIN / 2), candidate(150, 0.0)) == 100


def test_what_has_drifted_beyond_the_bound_is_not_chosen_unless_all_have():
    assert chosen(candidate(50, 0.2), candidate(100, 0.9, drift=0.31)) == 50
    assert chosen(candidate(50, 0.9, drift=0.31), candidate(100, 0.2, drift=0.3)) == 100
    assert chosen(candidate(50, 0.2, drift=0.5), candidate(100, 0.9, drift=0.4), candidate(150, 0.9, drift=0.6)) == 100


def test_of_one_there_is_no_choice_and_of_none_no_best():
    assert chosen(candidate(50, 0.0, drift=9.0)) == 50
    assert best.choose([], 0.3) is None and best.without_gain([], 0.3) == 0


def test_evaluations_without_gain_are_those_after_the_best():
    gained = [candidate(50, 0.3), candidate(100, 0.6)]
    assert best.without_gain(gained, 0.3) == 0
    assert best.without_gain([*gained, candidate(150, 0.61), candidate(200, 0.5)], 0.3) == 2
    assert best.without_gain([*gained, candidate(150, 0.61), candidate(200, 0.5)], 0.3, since=150) == 1


def test_nothing_is_counted_before_anything_is_learned():
    assert best.without_gain([candidate(step, 0.0) for step in (50, 100, 150)], 0.3) == 0


def test_the_rule_in_words_names_its_numbers():
    assert str(best.MARGIN) in best.rule(0.25) and '0.25' in best.rule(0.25)
