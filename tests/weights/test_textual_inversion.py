"""Files of textual inversion: what PyTorch's diffusers makes of them, and what is read back."""

import copy
import re

import numpy as np
import pytest
import transformers
from safetensors.torch import load_file

from dreambooth_jax.weights import files
from dreambooth_jax.weights.textual_inversion import file_name, read_textual_inversion, write_textual_inversion
from tests.support import tiny_lora_hosts

ROWS = np.random.default_rng(0).normal(size=(2, 16)).astype(np.float32)
LONGER = np.random.default_rng(1).normal(size=(2, 24)).astype(np.float32)


def tokenizer():
    pieces = ['<|startoftext|>', '<|endoftext|>', 'd', 'o', 'g</w>', 'a</w>']
    return transformers.CLIPTokenizer(vocab={piece: i for i, piece in enumerate(pieces)}, merges=[])


@pytest.mark.parametrize('rows', [ROWS, ROWS[0]])
def test_diffusers_loads_the_token(rows, tmp_path):
    write_textual_inversion(tmp_path / file_name('<dog>'), '<dog>', {'text_encoder': rows})
    text_encoder = copy.deepcopy(tiny_lora_hosts.networks()['text_encoder'])
    pipeline = tiny_lora_hosts.pipeline({**tiny_lora_hosts.networks(), 'text_encoder': text_encoder})
    pipeline.register_modules(tokenizer=tokenizer())
    pipeline.load_textual_inversion(str(tmp_path), weight_name='dog.safetensors')
    tokens = ['<dog>', '<dog>_1'][: rows.size // 16]
    ids = pipeline.tokenizer.convert_tokens_to_ids(tokens)
    table = text_encoder.get_input_embeddings().weight.detach().numpy()
    np.testing.assert_array_equal(table[ids], rows.reshape(-1, 16))
    assert pipeline.maybe_convert_prompt('a <dog>', pipeline.tokenizer) == ' '.join(['a', *tokens])


def test_diffusers_loads_both_encoders_of_sdxl(tmp_path):
    rows = {'text_encoder': ROWS, 'text_encoder_2': ROWS + 1}
    path = write_textual_inversion(tmp_path / 'x.safetensors', '<dog>', rows)
    networks = {name: copy.deepcopy(module) for name, module in tiny_lora_hosts.networks(sdxl=True).items()}
    pipeline = tiny_lora_hosts.pipeline(networks)
    state = load_file(path)
    for key, name in [('clip_l', 'text_encoder'), ('clip_g', 'text_encoder_2')]:
        words = tokenizer()
        pipeline.load_textual_inversion(state[key], token='<dog>', text_encoder=networks[name], tokenizer=words)
        table = networks[name].get_input_embeddings().weight.detach().numpy()
        np.testing.assert_array_equal(table[words.convert_tokens_to_ids(['<dog>', '<dog>_1'])], rows[name])


@pytest.mark.parametrize('rows', [{'text_encoder': ROWS}, {'text_encoder': ROWS, 'text_encoder_2': LONGER}])
def test_what_is_written_is_read_back(rows, tmp_path):
    path = write_textual_inversion(tmp_path / 'x.safetensors', '<dog>', rows, metadata={'modelspec.title': 'Dog'})
    widths = {component: value.shape[1] for component, value in rows.items()}
    token, again = read_textual_inversion(path, widths)
    assert token == '<dog>'
    assert again.keys() == rows.keys()
    assert all(np.array_equal(again[component], rows[component]) for component in rows)
    assert files.read_metadata(path)['modelspec.title'] == 'Dog'


def test_a_file_without_its_token_is_named_after_it(tmp_path):
    for key in ('emb_params', 'string_to_param.*', '*', 'clip_l'):
        files.write_tensors(tmp_path / 'dog.safetensors', {key: ROWS})
        assert read_textual_inversion(tmp_path / 'dog.safetensors', {'text_encoder': 16})[0] == 'dog'
    files.write_tensors(tmp_path / 'cat.safetensors', {'clip_l': ROWS, 'clip_g': LONGER})
    assert read_textual_inversion(tmp_path / 'cat.safetensors', {'text_encoder': 16, 'text_encoder_2': 24})[0] == 'cat'


@pytest.mark.parametrize(
    ('token', 'name'),
    [
        ('<sks-dog>', 'sks-dog'),
        ('rex', 'rex'),
        ('<my/dog>', 'my_dog'),
        ('<../rex>', 'rex'),
        ('<a:b*c>', 'a_b_c'),
        ('<хвост>', 'хвост'),
        ('<>', 'learned_embeds'),
        ('<...>', 'learned_embeds'),
    ],
)
def test_a_words_file_is_named_after_it(token, name):
    """As ComfyUI (embedding:sks-dog) and AUTOMATIC1111 (sks-dog) call it."""
    assert file_name(token) == f'{name}.safetensors'


def test_what_does_not_fit_is_refused_in_a_sentence(tmp_path):
    path = tmp_path / 'x.safetensors'
    wrong = [
        (('', {'text_encoder': ROWS}), "the token is '' but must be a new word, such as <dog>."),
        (('<dog>', {'text_encoder_2': ROWS}), "would hold rows of ('text_encoder_2',); it can hold text_encoder, or "),
        (('<dog>', {'text_encoder': ROWS[None]}), 'text_encoder have shape [1, 2, 16] but must be [n, width].'),
    ]
    for arguments, sentence in wrong:
        with pytest.raises(files.WeightsError, match=re.escape(sentence)):
            write_textual_inversion(path, *arguments)
    assert not path.exists()
    write_textual_inversion(path, '<dog>', {'text_encoder': ROWS})
    sentence = "holds rows of widths {'text_encoder': 16} but the text encoders take {'text_encoder': 768}; "
    with pytest.raises(files.WeightsError, match=re.escape(sentence)):
        read_textual_inversion(path, {'text_encoder': 768})
    files.write_tensors(path, {'a': ROWS, 'b': ROWS})
    with pytest.raises(files.WeightsError, match='holds 2 tensors; a textual inversion holds one'):
        read_textual_inversion(path, {'text_encoder': 16})
