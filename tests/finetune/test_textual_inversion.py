"""Textual inversion on tiny pipelines: what trains, what does not, and what diffusers makes of the result."""

import dataclasses
import functools
import re
import shutil
import tempfile
from pathlib import Path

import diffusers
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file

from dreambooth_jax.config import ConfigError, DreamBoothConfig, resolve
from dreambooth_jax.diffusion import noise as noise_lib
from dreambooth_jax.families.image_space import sample_latents
from dreambooth_jax.families.reading import read_pipeline
from dreambooth_jax.finetune import examples, formats, stage, textual_inversion
from dreambooth_jax.finetune.trainable import make_trainable
from dreambooth_jax.finetune.trained import Trained
from dreambooth_jax.generation.cascade import Cascade
from dreambooth_jax.losses.denoising import streams
from dreambooth_jax.models import lora
from dreambooth_jax.monitoring import metrics
from dreambooth_jax.training.placement import Pmap
from dreambooth_jax.training.step import example_keys
from dreambooth_jax.weights import folders, single_file
from dreambooth_jax.weights.textual_inversion import file_name, read_textual_inversion
from tests.support import smallest_pipelines, tiny_latent_pipelines
from tests.support.torch_reference import largest_relative_difference, nchw, quick_jit

WORD = '<sks-dog>'
PROMPT = f'a {WORD} on a rug'
ALONE = {'base': {'train_denoiser': False}}
_ROOT = tempfile.TemporaryDirectory(prefix='textual_inversion_')


class NoGrid:
    """Generates nothing."""

    def save_if_possible(self, cascade, path, title):
        pass


@functools.cache
def photos():
    folder = Path(_ROOT.name) / 'photos'
    folder.mkdir()
    rng = np.random.default_rng(0)
    for name in 'ab':
        Image.fromarray(rng.integers(0, 256, (40, 40, 3), np.uint8)).save(folder / f'{name}.png')
    return folder


@functools.cache
def original(family):
    folder = smallest_pipelines.folder('pixels') if family == 'if' else tiny_latent_pipelines.folder(family)
    return Cascade.load(folder, super_resolution_model='none')


def settings(steps=3, **changes):
    return resolve(
        DreamBoothConfig,
        {
            'model': 'tiny',
            'data': {'instance_dir': str(photos()), 'instance_prompt': PROMPT, 'class_prompt': 'a dog'},
            'prior': {'weight': 0.0},
            'textual_inversion': {'token': WORD, 'num_vectors': 2, 'initializer': 'dog', 'learning_rate': 1e-2},
            **changes,
            'base': {'steps': steps, 'batch_size': 2, 'learning_rate': 1e-3, **changes.get('base', {})},
        },
    )


def begun(config, family):
    return textual_inversion.with_word(original(family), config.textual_inversion, dtype=jnp.float32, seed=config.seed)


def tables(config, cascade):
    return examples.stage_tables(config, cascade, 'base', examples.read_instance(config, cascade)['base'], [])


def finetune(config, family, workdir):
    cascade = begun(config, family)
    placement = Pmap(jax.devices()[:1])
    finetuned, finished = stage.finetune(
        config, workdir, 'base', cascade, cascade, tables(config, cascade), lambda *_: [], placement
    )
    assert finished
    return finetuned


@functools.cache
def alone(family):
    """(the cascade before, after 3 steps of the examples alone, the run's folder), once per session."""
    config, workdir = settings(**ALONE, checkpoint={'every': 2}), Path(_ROOT.name) / family
    return begun(config, family), finetune(config, family, workdir), workdir


@functools.cache
def learned(family):
    """(a cascade with rows of some size, the folder that it was written to with the file of the rows)."""
    cascade, folder = begun(settings(), family), Path(_ROOT.name) / f'learned_{family}'
    params = {}
    for component, rows in textual_inversion.new_rows(cascade).items():
        network = cascade.base.components[component]
        values = np.random.default_rng(1).normal(0, 0.2, rows.take(network.params).shape).astype(np.float32)
        params[component] = rows.put({**network.params, rows.name: values})
    cascade = cascade.with_params(base=params)
    folders.write_pipeline(cascade.base, folder / 'model')
    assert textual_inversion.write_learned(cascade, folder) == folder / 'sks-dog.safetensors'
    return cascade, folder


PIPELINES = {
    'sd1': diffusers.StableDiffusionPipeline,
    'sdxl': diffusers.StableDiffusionXLPipeline,
    'if': diffusers.IFPipeline,
}


def opened(family, folder):
    options = {'safety_checker': None, 'requires_safety_checker': False} if family != 'sdxl' else {}
    pipeline = PIPELINES[family].from_pretrained(folder, local_files_only=True, **options)
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


def given_file(family, folder):
    """The model that the runs begin with, in one file and in half precision."""
    path = folder / 'given.safetensors'
    shutil.copytree(tiny_latent_pipelines.folder(family) / 'tokenizer', folder / 'tokenizer')
    return single_file.write_pipeline(original(family).base, path, dtype='float16')


def changed(before, after):
    """{component: names of parameters that differ}."""
    found = {}
    for component in before.base.components:
        old, new = (cascade.base.components[component].params for cascade in (before, after))
        assert old.keys() == new.keys()
        found[component] = [name for name in old if not np.array_equal(old[name], new[name])]
    return found


def table_of(cascade, component):
    rows = textual_inversion.new_rows(cascade)[component]
    return rows, np.asarray(cascade.base.components[component].params[f'{rows.layer}.embedding'])


@pytest.mark.slow
@pytest.mark.parametrize('family', ['sd1', 'if', 'sdxl'])
def test_only_the_new_rows_change(family):
    before, after, _ = alone(family)
    found = changed(before, after)
    assert {name for name, params in found.items() if params} == {'text_encoder', 'text_encoder_2'} & found.keys()
    for component in list(original(family).base.text_encoders):
        rows, table = table_of(after, component)
        assert found[component] == [f'{rows.layer}.embedding']
        plain = np.asarray(original(family).base.components[component].params[f'{rows.layer}.embedding'])
        assert np.array_equal(np.delete(table, [rows.first, rows.first + 1], 0), plain)
        moved = np.abs(table - table_of(before, component)[1]).max(1)[rows.first : rows.first + 2]
        # Adam's steps are of the learning rate's size: 3 of 0.01.
        assert (0.01 < moved).all() and (moved < 0.04).all()


def trainable_of(config, cascade):
    return make_trainable(
        cascade.base,
        stage.trained_components(config, 'base', cascade),
        config.lora,
        new_rows=textual_inversion.new_rows(cascade),
        dtype=jnp.float32,
        remat=False,
        seed=0,
    )


def row_gradients(family, config, at=0):
    """(our loss and gradient of the new rows, and what they were computed from) of one batch of two rows."""
    cascade = begun(config, family)
    new, trainable = textual_inversion.new_rows(cascade), trainable_of(config, cascade)
    made = stage.make_stage(config, 'base', cascade, trainable)
    data = stage.stage_data(config, 'base', cascade, cascade, tables(config, cascade)[0], trainable)
    keys = example_keys(jax.random.key(0), jnp.int32(at), jnp.arange(2, dtype=jnp.int32))

    def loss(params, frozen, data):
        return made.loss(trainable.assemble(params, frozen), data, {'image': jnp.arange(2)}, keys)[0].mean()

    value, gradient = quick_jit(jax.value_and_grad(loss))(trainable.params, trainable.frozen, data)
    return cascade, data, keys, value, {part: gradient[part][rows.name] for part, rows in new.items()}


@pytest.mark.slow
def test_loss_and_gradient_of_the_rows_are_those_of_pytorch():
    """As diffusers' script has it: the whole table takes a gradient there, of which all but the new rows is undone."""
    cascade, data, keys, value, ours = row_gradients('sd1', settings(**ALONE))
    theirs = opened('sd1', learned('sd1')[1] / 'model')
    rows, start = table_of(cascade, 'text_encoder')
    table = theirs.text_encoder.get_input_embeddings().weight
    table.data = torch.tensor(start)
    time_keys, noise_keys, _, _, posterior_keys = streams(keys, 5)
    latents = sample_latents(data['moments'], posterior_keys, 0.18215)
    t = torch.from_numpy(np.array(noise_lib.sample_timesteps(time_keys, 0, 1000))).long()
    noise = nchw(noise_lib.sample_noise(noise_keys, latents.shape[1:]))
    ids = theirs.tokenizer(
        theirs.maybe_convert_prompt([PROMPT] * 2, theirs.tokenizer), padding='max_length', return_tensors='pt'
    ).input_ids
    schedule = diffusers.DDPMScheduler.from_config(theirs.scheduler.config)
    x_t = schedule.add_noise(nchw(latents), noise, t)
    answer = theirs.unet(x_t, t, theirs.text_encoder(ids)[0]).sample
    loss = torch.nn.functional.mse_loss(answer, noise)
    loss.backward()
    assert value == pytest.approx(loss.item(), rel=1e-5)
    gradient = table.grad[rows.first : rows.first + rows.count].numpy()
    assert ours['text_encoder'].shape == gradient.shape == (2, 32)
    assert largest_relative_difference(ours['text_encoder'], gradient) < 1e-3


def inverted(family, workdir):
    """The original pipeline with the word's file, as diffusers' documentation loads it."""
    pipeline = opened(family, tiny_latent_pipelines.folder(family))
    path = workdir / file_name(WORD)
    if family == 'sd1':
        pipeline.load_textual_inversion(str(path))
        return pipeline
    for key, part in (('clip_l', ''), ('clip_g', '_2')):
        pipeline.load_textual_inversion(
            load_file(path)[key],
            token=WORD,
            text_encoder=getattr(pipeline, f'text_encoder{part}'),
            tokenizer=getattr(pipeline, f'tokenizer{part}'),
        )
    return pipeline


def encoded(pipeline, prompt):
    """prompt_embeds, and the pooled state of SDXL."""
    with torch.no_grad():
        found = pipeline.encode_prompt(prompt, device='cpu', num_images_per_prompt=1, do_classifier_free_guidance=False)
    return found[0].numpy(), found[2].numpy() if len(found) > 2 else None


def generated(pipeline, prompt):
    side = pipeline.unet.config.sample_size
    latents = torch.randn((1, 4, side, side), generator=torch.Generator().manual_seed(0))
    images = pipeline(prompt, latents=latents, num_inference_steps=3, guidance_scale=4.0, output_type='np').images
    return images[0] * 255


def test_diffusers_generates_the_exported_folder_as_the_original_with_the_learned_file():
    _, workdir = learned('sd1')
    exported = generated(opened('sd1', workdir / 'model'), PROMPT)
    assert np.abs(exported - generated(inverted('sd1', workdir), PROMPT)).max() < 2
    without = generated(opened('sd1', tiny_latent_pipelines.folder('sd1')), PROMPT)
    assert np.abs(exported - without).max() > 4


@pytest.mark.parametrize('family', ['sd1', *(pytest.param(name, marks=pytest.mark.slow) for name in ('sdxl', 'if'))])
def test_diffusers_reads_the_word_in_the_exported_folder_as_we_do(family):
    finetuned, workdir = learned(family)
    again = Cascade.load(workdir / 'model')
    # IFPipeline does not write a word's tokens out.
    theirs = PROMPT.replace(WORD, f'{WORD} {WORD}_1') if family == 'if' else PROMPT
    states, pooled = encoded(opened(family, workdir / 'model'), theirs)
    for cascade, prompt in ((finetuned, PROMPT), (again, PROMPT), (again, theirs)):
        ours = cascade.encode([prompt])
        length = np.flatnonzero(cascade.tokenizer([prompt])[1][0])[-1] + 1  # T5's states of padding are of no use
        assert np.abs(ours['encoder_hidden_states'][0, :length] - states[0, :length]).max() < 1e-4
        if pooled is not None:
            assert np.abs(ours['added_cond']['text_embeds'] - pooled).max() < 1e-4
    for component in finetuned.base.text_encoders:
        _, table = table_of(finetuned, component)
        assert again.base.components[component].config['vocab_size'] == len(table)


def test_the_original_cascade_reads_prompts_as_before():
    before = Cascade.load(tiny_latent_pipelines.folder('sd1')).tokenizer([PROMPT])[0]
    finetuned, _ = learned('sd1')
    assert np.array_equal(original('sd1').tokenizer([PROMPT])[0], before)
    assert not np.array_equal(finetuned.tokenizer([PROMPT])[0], before)
    assert finetuned.programs is original('sd1').programs  # what generates is compiled once for both


@pytest.mark.slow
def test_sdxls_pooled_state_hears_what_follows_the_word():
    """And so it does in diffusers once a pipeline that loads the file knows where texts end."""
    finetuned, workdir = learned('sdxl')
    pooled = lambda prompt: finetuned.encode([prompt])['added_cond']['text_embeds']  # noqa: E731
    assert np.abs(pooled(PROMPT) - pooled(f'a {WORD}')).max() > 1e-3
    theirs = inverted('sdxl', workdir)
    at_the_word = encoded(theirs, PROMPT)[1]
    theirs.text_encoder_2.text_model.eos_token_id = theirs.tokenizer_2.eos_token_id
    assert np.abs(encoded(theirs, PROMPT)[1] - pooled(PROMPT)).max() < 1e-4
    assert np.abs(at_the_word - pooled(PROMPT)).max() > 1e-3


ATTENTION_LORA = {'rank': 2, 'targets': lora.ATTENTION_PROJECTIONS}


@pytest.mark.slow
@pytest.mark.parametrize(
    ('changes', 'moving'),
    [
        ({'lora': ATTENTION_LORA}, 'unet'),
        pytest.param(
            {'lora': ATTENTION_LORA, 'base': {'train_denoiser': False, 'train_text_encoder': True}},
            'text_encoder',
            marks=pytest.mark.slow,
        ),
        ({'base': {'train_denoiser': False, 'train_text_encoder': True}}, 'text_encoder'),
    ],
)
def test_the_rows_train_beside_lora_and_whole_networks(changes, moving, tmp_path):
    config = settings(steps=1, **changes)
    before, after = begun(config, 'if'), finetune(config, 'if', tmp_path)
    found = changed(before, after)
    assert [component for component in found if component != 'text_encoder' and found[component]] == [
        component for component in [moving] if component == 'unet'
    ]
    rows, table = table_of(after, 'text_encoder')
    moved = np.flatnonzero((table != table_of(before, 'text_encoder')[1]).any(1))
    assert {rows.first, rows.first + 1} <= set(moved)
    whole = config.base.train_text_encoder and config.lora.rank is None
    assert (len(moved) > 2) == whole
    kernels = [name for name in found[moving] if name.endswith('.kernel')]
    paths = [name.removesuffix('.kernel') for name in kernels]
    assert kernels and whole != all(re.fullmatch(lora.ATTENTION_PROJECTIONS[0], path) for path in paths)


@pytest.mark.slow
def test_two_and_one_step_equal_three_bit_for_bit(tmp_path):
    _, whole, workdir = alone('if')
    shutil.copytree(workdir / 'base' / 'checkpoints' / '2', tmp_path / 'base' / 'checkpoints' / '2')
    parts = finetune(settings(**ALONE), 'if', tmp_path)
    assert not any(changed(whole, parts).values())
    assert [line['step'] for line in metrics.read(tmp_path, 'base')] == [3]


@pytest.mark.slow
@pytest.mark.parametrize('family', ['sd1', 'sdxl'])
def test_a_single_file_has_the_tables_that_other_programs_expect_and_the_word_beside_it(family, tmp_path):
    cascade, _ = learned(family)
    config, file = settings(), tmp_path / 'dog.safetensors'
    trained = Trained('run', config, cascade, ('base',), {}, [])
    lines = formats.write(trained, 'single_file', file, dtype='float16')
    beside = tmp_path / 'sks-dog.safetensors'
    assert lines[beside] == (
        f'{beside} holds the new word {WORD}, read back and equal; ComfyUI calls it embedding:sks-dog, AUTOMATIC1111 '
        f'sks-dog'
    )
    formats.write(trained, 'single_file', file, dtype='float16')  # in its own file's place
    before, after = (read_pipeline(path) for path in (given_file(family, tmp_path), file))
    widths = {part: table_of(cascade, part)[1].shape[1] for part in cascade.base.text_encoders}
    token, rows = read_textual_inversion(beside, widths)
    assert token == WORD
    for component, network in before.text_encoders.items():
        found = after.components[component].params
        assert all(np.array_equal(found[name], value) for name, value in network.params.items())
        new, table = table_of(cascade, component)
        assert np.array_equal(rows[component], table[new.first :].astype(np.float16))
    with pytest.raises(ConfigError, match='^run has learned a new word and has no checkpoints that tell it from the'):
        formats.write(trained._replace(cascade=cascade.with_tokens({}, ())), 'single_file', file)


@pytest.mark.parametrize(
    ('own', 'optimizer', 'learning_rate'), [(1e-2, {}, 1e-2), (None, {}, 5e-4), (None, {'kind': 'prodigy'}, 1.0)]
)
def test_the_rows_have_a_rate_of_their_own(own, optimizer, learning_rate):
    word = {'token': WORD, 'learning_rate': own}
    base = 1.0 if optimizer else 1e-5
    config = settings(
        textual_inversion=word, optimizer=optimizer, base={'train_denoiser': False, 'learning_rate': base}
    )
    cascade = begun(config, 'if')
    multipliers = stage.lr_multipliers(config, 'base', trainable_of(config, cascade), learns_variance=True)
    name = textual_inversion.new_rows(cascade)['text_encoder'].name
    assert multipliers == {'text_encoder': {name: pytest.approx(learning_rate / base)}}


def test_rows_start_as_the_initializers_tokens_in_turn():
    config = settings(textual_inversion={'token': WORD, 'num_vectors': 3, 'initializer': 'red dog'})
    cascade = begun(config, 'if')
    rows, table = table_of(cascade, 'text_encoder')
    red, dog = original('if').tokenizer.token_ids(['red dog'])[0]
    assert np.array_equal(table[rows.first :], table[[red, dog, red]])
    generated = table_of(begun(settings(textual_inversion={'token': WORD}), 'if'), 'text_encoder')[1][rows.first :]
    assert generated.shape == (1, 24) and 0.3 < generated.std() / table[: rows.first].std() < 3


def test_a_table_that_is_longer_than_the_vocabulary_keeps_its_length():
    """T5 v1.1 has 32128 rows for 32100 tokens; the new ones take the next rows, as their ids say."""
    base = original('if').base
    encoder = base.components['text_encoder']
    table = np.concatenate([encoder.params['shared.embedding'], np.full((5, 24), 7, np.float32)])
    params = {**encoder.params, 'shared.embedding': table}
    longer = dataclasses.replace(encoder, config={**encoder.config, 'vocab_size': len(table)}, params=params)
    cascade = Cascade(base.with_components(text_encoder=longer))
    config = settings()
    begun = textual_inversion.with_word(cascade, config.textual_inversion, dtype=jnp.float32, seed=0)
    rows, found = table_of(begun, 'text_encoder')
    assert found.shape == table.shape and begun.base.components['text_encoder'].config['vocab_size'] == len(table)
    assert rows.first == len(table) - 5 and (found[-3:] == 7).all() and (found[-5:-3] != 7).all()
    folder = folders.write_pipeline(begun.base, Path(_ROOT.name) / 'longer')
    ids, _ = Cascade.load(folder).tokenizer([PROMPT])
    assert [rows.first, rows.first + 1] == [i for i in ids[0] if i >= rows.first]


@pytest.mark.parametrize(
    ('changes', 'sentence'),
    [
        ({'token': 'x'}, "'x' is a token of this tokenizer already; choose a new one."),
        (
            {'initializer': 'a red dog'},
            (
                "config.textual_inversion.initializer 'a red dog' is 3 tokens to the tokenizer of the text_encoder, "
                'but must be 1 to 2 (config.textual_inversion.num_vectors); choose another word'
            ),
        ),
    ],
)
def test_what_the_tokenizer_cannot_do_is_one_sentence(changes, sentence):
    inversion = dataclasses.replace(settings().textual_inversion, **changes)
    with pytest.raises(ConfigError) as error:
        textual_inversion.with_word(original('if'), inversion, dtype=jnp.float32, seed=0)
    assert sentence in str(error.value)
