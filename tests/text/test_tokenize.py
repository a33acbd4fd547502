"""Prompts as ids: equal to what diffusers' pipelines get from the same folder, quiet, and with a warning when cut."""

import json
import logging
import os
import subprocess
import sys

import numpy as np
import pytest
import transformers

from dreambooth_jax.storybook import vocabulary
from dreambooth_jax.text.tokenize import Tokenizer, TokenizerError, vector_names
from tests.support import tiny_clip

PROMPTS = [
    'a sks dog in the snow',
    '  A Photo of a OHWX Stuffed Animal, floating!  ',
    '',
    'zebra qqq 123 caf\u00e9',
    'a cube-shaped xyz teapot',
    'dog ' * 100,
]


@pytest.fixture(scope='module')
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp('tokenizer')
    vocabulary.write_tokenizer(folder)
    return folder


@pytest.fixture(scope='module')
def tokenizer(folder):
    return Tokenizer.load(folder)


def test_ids_and_mask_are_those_of_ifpipeline(tokenizer, folder):
    theirs = transformers.T5Tokenizer.from_pretrained(folder)
    expected = theirs(
        [prompt.lower().strip() for prompt in PROMPTS],
        padding='max_length',
        max_length=77,
        truncation=True,
        add_special_tokens=True,
        return_tensors='np',
    )
    ids, mask = tokenizer(PROMPTS)
    assert ids.dtype == mask.dtype == np.int32 and ids.shape == mask.shape == (len(PROMPTS), 77)
    assert np.array_equal(ids, expected.input_ids)
    assert np.array_equal(mask, expected.attention_mask)


def test_ids_are_those_of_ifpipelines_own_method(tokenizer, folder):
    import diffusers

    pipeline = diffusers.IFPipeline(
        tokenizer=transformers.T5Tokenizer.from_pretrained(folder),
        text_encoder=None,
        unet=None,
        scheduler=None,
        safety_checker=None,
        feature_extractor=None,
        watermarker=None,
        requires_safety_checker=False,
    )
    assert [tokenizer.prepare(prompt) for prompt in PROMPTS] == pipeline._text_preprocessing(PROMPTS)


def test_a_cut_prompt_is_named_with_what_is_lost(tokenizer, caplog):
    prompt = 'a sks dog ' + 'red ' * 74 + 'hat'
    with caplog.at_level(logging.WARNING):
        ids, mask = tokenizer([prompt, 'a dog'])
    assert [record.getMessage() for record in caplog.records] == [
        f"prompt {prompt!r} has 79 tokens but the model reads 77: 'red hat' is cut off; shorten the prompt."
    ]
    assert ids[0, -1] == 1 and mask[0].all() and mask[1].sum() == 3


def test_a_prompt_of_exactly_the_length_is_not_cut(tokenizer, caplog):
    ids, mask = tokenizer(['dog ' * 76])
    assert mask.all() and ids[0, -1] == 1 and not caplog.records


def test_other_lengths_no_prompts_and_a_bare_string(folder):
    tokenizer = Tokenizer.load(folder, max_length=12)
    assert tokenizer(['a dog'])[0].shape == (1, 12)
    assert [part.shape for part in tokenizer([])] == [(0, 12)] * 2
    assert np.array_equal(tokenizer('a dog')[0], tokenizer(['a dog'])[0])


def test_tokens_decode_to_their_text(tokenizer):
    (ids,) = tokenizer.token_ids(['a sks dog'])
    assert [tokenizer.decode(i) for i in ids] == ['a', 'sks', 'dog']
    assert tokenizer.vocabulary_size == len(vocabulary.pieces())


def test_the_unconditional_prompt_is_the_end_token_alone(tokenizer):
    ids, mask = tokenizer([''])
    assert ids[0].tolist() == [1] + [0] * 76 and mask.sum() == 1


def test_nothing_is_printed_and_importing_costs_nothing(folder):
    code = (
        'import sys; from dreambooth_jax.text import identifier, prompts, tokenize\n'
        'assert "transformers" not in sys.modules and "torch" not in sys.modules\n'
        'sys.modules["torch"] = None\n'  # as where PyTorch is not installed
        f'print(tokenize.Tokenizer.load({str(folder)!r})(["a dog"])[0][0, :3].tolist())'
    )
    environment = {k: v for k, v in os.environ.items() if not k.startswith(('TRANSFORMERS_', 'TOKENIZERS_'))}
    done = subprocess.run([sys.executable, '-c', code], capture_output=True, text=True, env=environment, timeout=60)
    assert done.stderr == '' and done.stdout == str(Tokenizer.load(folder)(['a dog'])[0][0, :3].tolist()) + '\n'


def test_folders_that_are_no_tokenizer_are_one_sentence(tmp_path, folder):
    def fails(match):
        with pytest.raises(TokenizerError, match=match) as error:
            Tokenizer.load(path)
        assert '\n' not in str(error.value) and str(error.value).endswith('.')

    path = tmp_path / 'none'
    fails('none/tokenizer_config.json is missing .the folder does not exist')
    path = tmp_path
    fails('tokenizer_config.json is missing .the folder holds none')
    (path / 'tokenizer_config.json').write_text('{')
    fails('tokenizer_config.json is no readable JSON object')
    (path / 'tokenizer_config.json').write_text(json.dumps({'tokenizer_class': 'BertTokenizer'}))
    fails("tokenizer_class is 'BertTokenizer'; it must be one of")
    (path / 'tokenizer_config.json').write_text((folder / 'tokenizer_config.json').read_text())
    fails('holds no vocabulary; one of')
    (path / 'tokenizer.json').write_text((folder / 'tokenizer.json').read_text()[:500])
    fails('holds no readable T5Tokenizer')


@pytest.fixture(scope='module')
def clip_folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp('clip')
    tiny_clip.tokenizer().save_pretrained(folder)
    return folder


WORD_PROMPTS = ['a <my-dog> dog', '<my-dog>', 'a dog', 'a <my-dog>, do <my-dog>']


def test_a_word_of_several_tokens_is_read_as_diffusers_reads_it(clip_folder):
    import diffusers

    tokens = vector_names('<my-dog>', 3)
    assert tokens == ('<my-dog>', '<my-dog>_1', '<my-dog>_2')
    ours, theirs = Tokenizer.load(clip_folder, added=tokens), transformers.CLIPTokenizer.from_pretrained(clip_folder)
    theirs.add_tokens(list(tokens))
    convert = diffusers.loaders.TextualInversionLoaderMixin().maybe_convert_prompt
    expected = theirs(convert(WORD_PROMPTS, theirs), padding='max_length', truncation=True).input_ids
    assert np.array_equal(ours(WORD_PROMPTS)[0], expected)
    assert ours.token_ids(['<my-dog>']) == [[50, 51, 52]] == [ours.ids_of(tokens)]
    written_out = ours(['a <my-dog> <my-dog>_1 <my-dog>_2 dog', 'a <my-dog>_1'])[0]
    assert np.array_equal(written_out[0], ours(WORD_PROMPTS[:1])[0][0]) and written_out[1, 2] == 51


@pytest.mark.parametrize('kind', ['clip', 't5'])
def test_added_tokens_are_saved_beside_what_the_folder_holds(kind, clip_folder, folder, tmp_path):
    (tmp_path / 'merges.txt').write_text('#')
    plain = Tokenizer.load(clip_folder if kind == 'clip' else folder)
    tokens = vector_names('<my-dog>', 2)
    first = plain.vocabulary_size
    before = plain(['a dog'])[0]
    assert plain.add_tokens(tokens) == [first, first + 1]
    plain.save(tmp_path)
    again = Tokenizer.load(tmp_path)
    assert (tmp_path / 'merges.txt').is_file() and again.kind == kind and again.max_length == plain.max_length
    assert np.array_equal(again(WORD_PROMPTS)[0], plain(WORD_PROMPTS)[0]) and again.vocabulary_size == first + 2
    assert np.array_equal(again(['a dog'])[0], before)
    with pytest.raises(TokenizerError, match="^'<my-dog>_1' is a token of this tokenizer already; choose a new one.$"):
        again.add_tokens(['<new>', '<my-dog>_1'])
    assert again.vocabulary_size == first + 2


def test_a_sentencepiece_model_is_read_like_deepfloyds(tmp_path):
    spm = pytest.importorskip('sentencepiece')
    text = tmp_path / 'text.txt'
    text.write_text('a dog in the snow\na cat on the beach\na red teapot\n' * 20)
    folder = tmp_path / 'tokenizer'
    folder.mkdir()
    spm.SentencePieceTrainer.train(
        input=str(text),
        model_prefix=str(folder / 'spiece'),
        vocab_size=22,
        model_type='unigram',
        pad_id=0,
        eos_id=1,
        unk_id=2,
        bos_id=-1,
        minloglevel=2,
    )
    (folder / 'tokenizer_config.json').write_text(json.dumps({'tokenizer_class': 'T5Tokenizer', 'extra_ids': 10}))
    reference = spm.SentencePieceProcessor(model_file=str(folder / 'spiece.model'))
    ids, mask = Tokenizer.load(folder)(['A dog in the snow'])
    assert ids[0, : mask.sum()].tolist() == [*reference.encode('a dog in the snow'), 1]


def test_a_prompt_as_it_is_written_keeps_capitals_and_has_another_length(tokenizer, folder):
    theirs = transformers.T5Tokenizer.from_pretrained(folder)
    expected = theirs(PROMPTS, padding='max_length', max_length=90, truncation=True)
    ids, mask = tokenizer.as_written(90)(PROMPTS)
    np.testing.assert_array_equal(ids, expected.input_ids)
    np.testing.assert_array_equal(mask, expected.attention_mask)
    assert tokenizer.max_length == 77 and tokenizer.prepare(PROMPTS[1]) != PROMPTS[1]  # it stays as it is
