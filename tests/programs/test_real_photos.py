"""Every program on the paper's real photos, with a model of Stable Diffusion 1.5's shape at a fraction of its width.

Run with the folder of the paper's dataset: DREAMBOOTH_DATASET=<folder> python -m pytest -m slow tests/programs
"""

import functools
import itertools
import os
import string
from pathlib import Path

import jax
import numpy as np
import pytest
import transformers
from PIL import Image

from dreambooth_jax.models import functional
from dreambooth_jax.monitoring import metrics
from dreambooth_jax.training import placement
from dreambooth_jax.weights import folders
from dreambooth_jax.weights.kinds import kind_of
from dreambooth_jax.weights.pipeline import Network
from tests.support import made_pipelines

DATASET = os.environ.get('DREAMBOOTH_DATASET')
pytestmark = [pytest.mark.slow, pytest.mark.skipif(not DATASET, reason='DREAMBOOTH_DATASET names no folder')]
VOCABULARY = 49408
CONFIGS = {  # as published, narrower; four blocks each; it trains and generates at 256 px, 32 x 32 latents
    'unet': {'block_out_channels': [32, 64, 128, 128], 'cross_attention_dim': 64, 'sample_size': 64},
    'vae': {
        'block_out_channels': [32, 32, 64, 64],
        'layers_per_block': 2,
        'sample_size': 512,
        'down_block_types': ['DownEncoderBlock2D'] * 4,
        'up_block_types': ['UpDecoderBlock2D'] * 4,
    },
    'text_encoder': {
        'model_type': 'clip_text_model',
        'hidden_size': 64,
        'intermediate_size': 128,
        'num_hidden_layers': 12,
        'num_attention_heads': 1,
        'max_position_embeddings': 77,
        'hidden_act': 'quick_gelu',
        'vocab_size': VOCABULARY,
        'eos_token_id': 2,
    },
}
SCHEDULER = {
    '_class_name': 'PNDMScheduler',
    'beta_schedule': 'scaled_linear',
    'beta_start': 0.00085,
    'beta_end': 0.012,
    'skip_prk_steps': True,
    'steps_offset': 1,
}
STEPS = 20


def tokenizer():
    """A CLIP tokenizer of the published size with made-up words of two to four letters, the longest last."""
    letters = string.ascii_lowercase
    ends = [f'{letter}</w>' for letter in letters]
    pairs = list(itertools.product(letters, letters)), list(itertools.product(letters, ends))
    inner, last = (list(map(''.join, some)) for some in pairs)
    words = itertools.chain(itertools.product(inner, ends), itertools.product(inner, last))
    count = VOCABULARY - 2 - len(letters) - len(ends)
    merges = list(itertools.islice(itertools.chain(*pairs, words), count))
    pieces = [*letters, *ends, *map(''.join, merges), '<|startoftext|>', '<|endoftext|>']
    vocabulary = {piece: index for index, piece in enumerate(pieces)}
    return transformers.CLIPTokenizer(vocab=vocabulary, merges=merges, model_max_length=77)


@pytest.fixture(scope='module')
def model(tmp_path_factory):
    """A pipeline folder with fresh weights."""
    root = tmp_path_factory.mktemp('model')
    tokenizer().save_pretrained(root / 'tokenizer')

    def network(component, config, seed):
        constructor = kind_of(component, config).constructor
        return Network(config, *functional.init(lambda rngs: constructor(config, rngs=rngs), seed))

    networks = {name: network(name, config, seed) for seed, (name, config) in enumerate(CONFIGS.items())}
    parts = {'scheduler': SCHEDULER, 'tokenizer': root / 'tokenizer', **networks}
    made = made_pipelines.pipeline('StableDiffusionPipeline', **parts)
    return folders.write_pipeline(made, root / 'stable_diffusion')


def test_every_program_runs_on_real_photos(program, model, tmp_path, monkeypatch):
    one = functools.partial(placement.make_placement, devices=jax.devices()[:1])
    monkeypatch.setattr(placement, 'make_placement', one)
    ended = program('find_identifier', f'--model={model}', '--count=5')
    assert ended.code == 0 and 'btaf' in ended.out, ended.error
    run = tmp_path / 'run'
    config = Path(__file__).parents[2] / 'configs' / 'dog.py'
    settings = [
        f'--config={config}:stable-diffusion-v1-5',
        f'--config.model={model}',
        f'--workdir={run}',
        f'--config.data.instance_dir={DATASET}/dog',
        '--config.data.resolution=256',
        '--config.prior.num_images=4',
        '--config.prior.steps=4',
        '--config.prior.batch_size=2',
        f'--config.base.steps={STEPS}',
        '--config.checkpoint.every=10',
        '--config.samples.every=0',
        '--config.samples.steps=4',
        '--config.samples.num_images=1',
        '--config.samples.guidance_scale=1',
    ]
    assert program('generate_prior', *settings).code == 0
    assert len(list((run / 'prior').glob('*.png'))) == 4
    ended = program('train', *settings)
    assert ended.code == 0, ended.error
    lines = metrics.read(run, 'base')
    assert [line['step'] for line in lines] == list(range(1, STEPS + 1))
    assert all(np.isfinite(line['loss']) and line['prior_loss'] > 0 for line in lines)
    options = ['--prompt=a sks dog', '--num_images=1', '--steps=4', f'--output={tmp_path / "out"}']
    generated = program('sample', f'--model={run}', *options)
    assert generated.code == 0 and Image.open(tmp_path / 'out' / '000_00.png').size == (256, 256)
    for format, output in (('diffusers', 'exported'), ('single_file', 'exported.safetensors')):
        assert program('export', f'--workdir={run}', f'--format={format}', f'--output={tmp_path / output}').code == 0
