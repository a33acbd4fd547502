"""Trains Storybook's CLIP and its ViT in DINO's manner from scratch, measures both, and writes them."""

import math
from pathlib import Path

import numpy as np
import paintings
import training
from absl import app, flags

from dreambooth_jax.storybook import storybook_folder, vocabulary
from dreambooth_jax.text.tokenize import Tokenizer
from dreambooth_jax.weights.encoder_export import write_encoder
from dreambooth_jax.weights.encoder_folders import IMAGE, TEXT, own_configs

HERE = Path(__file__).parent
_SEED = flags.DEFINE_integer('seed', 0, 'Of paintings, weights, batches and views.')
_WORKDIR = flags.DEFINE_string('workdir', 'runs/storybook_encoders', 'Keeps paintings and trainings.')
_OUTPUT = flags.DEFINE_string('output', None, 'Folder of dino/ and clip/; default: the shipped ones are replaced.')
_PAINTINGS = flags.DEFINE_integer('paintings', 30000, 'Painted for both.', lower_bound=training.BATCH)
_DINO_STEPS = flags.DEFINE_integer('dino_steps', 1500, 'Steps of DINO.', lower_bound=1)
_CLIP_STEPS = flags.DEFINE_integer('clip_steps', 2000, 'Steps of CLIP.', lower_bound=1)
_TRAIN = flags.DEFINE_list('train', ['dino', 'clip'], 'Encoders to train; the weights of others are kept.')

LAYERS = {'hidden_act': 'quick_gelu', 'layer_norm_eps': 1e-5}
VISION = {
    'hidden_size': 192,
    'num_hidden_layers': 3,
    'num_attention_heads': 3,
    'intermediate_size': 768,
    'image_size': 64,
    'patch_size': 16,
    'num_channels': 3,
    **LAYERS,
}
READING = {
    'hidden_size': 128,
    'num_hidden_layers': 2,
    'num_attention_heads': 2,
    'intermediate_size': 512,
    'projection_dim': 128,
    **LAYERS,
}
DINO = {'model_type': 'vit', 'architectures': ['ViTModel'], **VISION, 'qkv_bias': True}


def clip_config(tokenizer: Tokenizer) -> dict:
    """config.json of the CLIP that reads this tokenizer's prompts."""
    text = {
        **READING,
        'vocab_size': tokenizer.vocabulary_size,
        'max_position_embeddings': tokenizer.max_length,
        'bos_token_id': tokenizer.wrapped.bos_token_id,
        'eos_token_id': tokenizer.end_id,
        'pad_token_id': tokenizer.wrapped.pad_token_id,
    }
    return {
        'model_type': 'clip',
        'architectures': ['CLIPModel'],
        'projection_dim': 128,
        'logit_scale_init_value': math.log(1 / 0.07),
        'vision_config': {'model_type': 'clip_vision_model', **VISION, 'projection_dim': 128},
        'text_config': {'model_type': 'clip_text_model', **text},
    }


def replaced(folder: Path, write) -> None:
    """Writes a folder beside its place and puts it there."""
    new, old = (folder.with_name(f'.{folder.name}.{word}') for word in ('new', 'old'))
    for path in (new, old):
        remove(path)
    write(new)
    if folder.exists():
        folder.rename(old)
    new.rename(folder)
    remove(old)


def remove(folder: Path) -> None:
    for path in folder.glob('*'):
        path.unlink()
    if folder.exists():
        folder.rmdir()


def train_dino(data, workdir: Path, output: Path):
    def batch(i):
        rows = np.random.default_rng((_SEED.value, 2, i)).integers(0, len(data['images']), training.BATCH)
        return (data['images'][rows],)

    def write(kept):
        params = {IMAGE: kept.rest['teacher']['vit']}
        replaced(output / 'dino', lambda folder: write_encoder(folder, DINO, params))

    start = training.start_dino(DINO, _SEED.value)
    return training.train(start, batch, _DINO_STEPS.value, workdir / 'dino.pickle', _SEED.value, write)


def train_clip(data, workdir: Path, output: Path):
    words = workdir / 'tokenizer'
    vocabulary.write_clip_tokenizer(words)
    tokenizer = Tokenizer.load(words)
    config = clip_config(tokenizer)
    ids = tokenizer(list(data['captions'].ravel()))[0]
    longest = int((ids != tokenizer.end_id).sum(axis=1).max()) + 1
    ids = ids.reshape(*data['captions'].shape, -1)[..., :longest]

    def batch(i):
        rng = np.random.default_rng((_SEED.value, 3, i))
        rows = rng.integers(0, len(ids), training.BATCH)
        return data['images'][rows], ids[rows, rng.integers(0, ids.shape[1], training.BATCH)]

    def write(kept):
        def write_folder(folder):
            params = {IMAGE: kept.params['vit'], TEXT: kept.params['text']}
            write_encoder(folder, config, params, logit_scale=float(kept.params['logit_scale']))
            tokenizer.wrapped.save_pretrained(str(folder))

        replaced(output / 'clip', write_folder)

    configs = own_configs(config)
    start = training.start_clip(configs[IMAGE], configs[TEXT], _SEED.value)
    return training.train(start, batch, _CLIP_STEPS.value, workdir / 'clip.pickle', _SEED.value, write)


def main(_):
    workdir = Path(_WORKDIR.value)
    output = Path(_OUTPUT.value) if _OUTPUT.value else storybook_folder()
    data = paintings.pools(workdir / 'paintings', _SEED.value, _PAINTINGS.value)
    for name, train in (('dino', train_dino), ('clip', train_clip)):
        if name in _TRAIN.value:
            train(data, workdir, output)


if __name__ == '__main__':
    app.run(main)
