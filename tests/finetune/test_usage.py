"""How an export is used, as its card says it."""

import ast
import re
import shlex

import numpy as np
import pytest

from dreambooth_jax.finetune import usage
from dreambooth_jax.generation import new_words
from dreambooth_jax.generation.cascade import Cascade
from tests.support import smallest_pipelines, tiny_latent_pipelines

FORMS = {
    'diffusers': "StableDiffusionPipeline.from_pretrained('PATH/TO/THIS/FOLDER')",
    'single_file': "StableDiffusionPipeline.from_single_file('it.safetensors')",
    'lora_peft': "pipe.load_lora_weights('.', weight_name='it.safetensors')",
    'lora_kohya': "pipe.load_lora_weights('.', weight_name='it.safetensors')",
    'lora_comfyui': "pipe.load_lora_weights('.', weight_name='it.safetensors')",
}


def blocks(told, language):
    return re.findall(rf'```{language}\n(.*?)\n```', '\n'.join(told), re.DOTALL)


@pytest.mark.parametrize('form', FORMS)
@pytest.mark.parametrize('prompt', ['a sks dog', 'it\'s "a dog"; rm -r'])
def test_every_form_has_its_call_and_its_command(form, prompt):
    cascade = tiny_latent_pipelines.cascade('sd1')
    told = usage.paragraphs(cascade, form, None if form == 'diffusers' else 'it.safetensors', 'owner/base', prompt)
    (code,) = blocks(told, 'python')
    assert FORMS[form] in code and f'pipe({prompt!r})' in code
    ast.parse(code)
    words = shlex.split(blocks(told, 'bash')[0])
    assert words[-2:] == [f'--prompt={prompt}', '--output=out']
    named = (
        '--model=owner/base --lora=it.safetensors'
        if form.startswith('lora')
        else '--model=' + ('PATH/TO/THIS/FOLDER' if form == 'diffusers' else 'it.safetensors')
    )
    assert ' '.join(words[3:-2]) == named
    others = [line for line in told if line.startswith('In other programs, put it.safetensors into')]
    assert len(others) == (form in ('single_file', 'lora_kohya', 'lora_comfyui'))


def test_the_second_stage_and_a_new_word_are_named():
    told = usage.paragraphs(Cascade.load(smallest_pipelines.folder('pixels')), 'diffusers', None, 'x', 'a dog')
    assert any('IFSuperResolutionPipeline, lies in `super_resolution/`' in line for line in told)
    assert 'With dreambooth-jax, both stages:' in told
    rows = {'text_encoder': np.ones((1, 32), np.float32)}
    learned = new_words.with_rows(tiny_latent_pipelines.cascade('sd1'), ('<rex>',), rows, dtype=np.float32)
    for form, is_named in (('lora_peft', True), ('single_file', True), ('diffusers', False)):
        (code,) = blocks(usage.paragraphs(learned, form, 'x.safetensors', 'x', 'a <rex> dog'), 'python')
        assert ("pipe.load_textual_inversion('rex.safetensors', token='<rex>')" in code) == is_named


def test_in_a_repository_everything_is_found_there():
    rows = {'text_encoder': np.ones((1, 32), np.float32)}
    learned = new_words.with_rows(tiny_latent_pipelines.cascade('sd1'), ('<rex>',), rows, dtype=np.float32)
    calls = {
        'diffusers': "from_pretrained('ana/rex')",
        'single_file': "from_single_file('https://huggingface.co/ana/rex/blob/main/it.safetensors')",
        'lora_kohya': "load_lora_weights('ana/rex', weight_name='it.safetensors')",
    }
    for form, call in calls.items():
        file = None if form == 'diffusers' else 'it.safetensors'
        told = usage.paragraphs(learned, form, file, 'owner/base', 'a <rex> dog', 'ana/rex')
        (code,) = blocks(told, 'python')
        assert call in code
        word = "pipe.load_textual_inversion('ana/rex', weight_name='rex.safetensors', token='<rex>')"
        assert (word in code) == (form != 'diffusers')
        lines = blocks(told, 'bash')[0].splitlines()
        assert lines[:-1] == ([] if file is None else ['hf download ana/rex it.safetensors --local-dir .'])
        assert ('--model=ana/rex' in lines[-1]) == (file is None)
