"""Text encoders and tokenizers that do not belong together: one sentence instead of an error of shapes, or NaN."""

import dataclasses
import json

import pytest

from dreambooth_jax.families.prompts import PromptEncoder
from dreambooth_jax.families.reading import read_pipeline
from dreambooth_jax.text.tokenize import Tokenizer
from dreambooth_jax.weights.errors import WeightsError
from tests.support import bent_folders, smallest_pipelines, tiny_pipelines


@pytest.fixture(scope='module')
def pipeline():
    return read_pipeline(smallest_pipelines.folder('latents'), components=('text_encoder',))


def conditioning(pipeline, **changes):
    return pipeline.family.prompt_encoder(dataclasses.replace(pipeline, **changes), size=16)


def test_a_tokenizer_of_another_kind_is_named(pipeline):
    with pytest.raises(
        WeightsError, match='its text_encoder reads CLIP prompts of 20 tokens, but .* T5 prompts of 77;'
    ):
        conditioning(pipeline, tokenizers={'text_encoder': tiny_pipelines.tokenizer_folder()})


def test_a_tokenizer_of_longer_prompts_is_named(pipeline, tmp_path):
    folder = bent_folders.copied(pipeline.tokenizers['text_encoder'], tmp_path / 'tokenizer')
    bent_folders.bend(folder / 'tokenizer_config.json', 'model_max_length', 77)
    with pytest.raises(
        WeightsError, match='CLIP prompts of 20 tokens, but its tokenizer makes CLIP prompts of 77; give'
    ):
        conditioning(pipeline, tokenizers={'text_encoder': folder})


def test_a_token_that_the_text_encoder_does_not_know_is_named(pipeline):
    """Its state would be NaN."""
    more = Tokenizer.load(pipeline.tokenizers['text_encoder'], added=('<new>',))
    known = conditioning(pipeline)
    wider = dataclasses.replace(known, tokenizers={'text_encoder': more})
    assert wider.tokens(['a dog'])['text_encoder']['ids'].shape == (1, 20)
    with pytest.raises(WeightsError, match='makes the token 50, but the text_encoder knows 50; give the tokenizer'):
        wider.tokens(['a <new>'])


@pytest.mark.parametrize(
    ('key', 'value', 'reason'),
    [
        ('tokenizer_class', ['x'], r"tokenizer_class is \['x'\]; it must be one of"),
        ('model_max_length', 'x', 'holds no readable CLIPTokenizer'),
        ('model_max_length', 1, 'model_max_length is 1'),
        ('model_max_length', 1.5, 'model_max_length is 1.5'),
    ],
)
def test_a_damaged_tokenizer_is_one_sentence(pipeline, tmp_path, key, value, reason):
    folder = bent_folders.copied(pipeline.tokenizers['text_encoder'], tmp_path / 'tokenizer')
    bent_folders.bend(folder / 'tokenizer_config.json', key, value)
    assert json.loads((folder / 'tokenizer_config.json').read_text())[key] == value
    with pytest.raises(ValueError, match=reason) as error:
        conditioning(pipeline, tokenizers={'text_encoder': folder})
    assert type(error.value).__name__ == 'TokenizerError' and '\n' not in str(error.value)


def test_a_way_of_reading_prompts_that_does_not_say_how_to_encode_them_cannot_be_made():
    class Silent(PromptEncoder):
        kind = 'clip'

    with pytest.raises(TypeError, match='abstract'):
        Silent({}, {})
