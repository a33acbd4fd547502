"""best.json: the choice is read for its stage alone, and taken back without what it was chosen from."""

import pytest

from dreambooth_jax.config import ConfigError
from dreambooth_jax.training import best_checkpoint

CONTENT = {'stage': 'base', 'step': 4, 'candidates': [{'step': 4, 'trade_off': 0.5}]}


def test_a_choice_is_one_of_its_stage(tmp_path):
    assert best_checkpoint.read(tmp_path) is best_checkpoint.step_of(tmp_path, 'base') is None
    best_checkpoint.write(tmp_path, CONTENT)
    assert best_checkpoint.read(tmp_path) == CONTENT
    assert best_checkpoint.step_of(tmp_path, 'base') == 4
    assert best_checkpoint.step_of(tmp_path, 'super_resolution') is None


def test_a_choice_that_is_taken_back_leaves_what_was_measured(tmp_path, caplog):
    best_checkpoint.forget(tmp_path)
    assert not list(tmp_path.iterdir())
    best_checkpoint.write(tmp_path, CONTENT)
    best_checkpoint.forget(tmp_path)
    best_checkpoint.forget(tmp_path)
    assert best_checkpoint.read(tmp_path) == {**CONTENT, 'step': None}
    assert caplog.messages == [
        'config.evaluation.every is 0: the last checkpoint of the base stage is taken, not step 4, which '
        f'{tmp_path}/best.json has named the best'
    ]


@pytest.mark.parametrize('text', ['{', '[]', '{"candidates": []}', '{"candidates": 3, "step": 4}'])
def test_a_damaged_file_is_one_sentence(tmp_path, text):
    (tmp_path / 'best.json').write_text(text)
    with pytest.raises(ConfigError) as error:
        best_checkpoint.read(tmp_path)
    assert str(error.value) == (
        f'{tmp_path}/best.json is damaged; restore it, or delete it and the checkpoints are evaluated from here on'
    )
