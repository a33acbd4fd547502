"""Trains Storybook's CLIP and its ViT in DINO's manner from scratch, measures both, and writes them.

  python experiments/storybook_encoders/run.py

README.md beside this file says what they are and what to expect. A training that was stopped (Ctrl-C) goes on from the
last 50 steps when the same command is given again; with more steps than it has, a finished one goes on too, but from
weights whose learning rate had fallen to zero.
"""

import json
import math
import time
from datetime import date
from pathlib import Path

import measuring
import numpy as np
import paintings
import training
from absl import app, flags

from dreambooth_jax.evaluation import experiment
from dreambooth_jax.evaluation.encoders import load_encoder
from dreambooth_jax.storybook import storybook_folder, vocabulary
from dreambooth_jax.text.tokenize import Tokenizer
from dreambooth_jax.weights import files
from dreambooth_jax.weights.encoder_export import write_encoder
from dreambooth_jax.weights.encoder_folders import IMAGE, STORYBOOK_ENCODERS, TEXT, own_configs

HERE = Path(__file__).parent
_SEED = flags.DEFINE_integer('seed', 0, 'Of paintings, weights, batches and views.')
_WORKDIR = flags.DEFINE_string('workdir', 'runs/storybook_encoders', 'Keeps paintings and trainings.')
_OUTPUT = flags.DEFINE_string('output', None, 'Folder of dino/ and clip/; default: the shipped ones are replaced.')
_RESULTS = flags.DEFINE_string('results', str(HERE), 'Folder of results.json and of the README with the numbers.')
_PAINTINGS = flags.DEFINE_integer('paintings', 30000, 'Painted for both.', lower_bound=training.BATCH)
_DINO_STEPS = flags.DEFINE_integer('dino_steps', 800, 'Steps of DINO.', lower_bound=1)
_CLIP_STEPS = flags.DEFINE_integer('clip_steps', 1200, 'Steps of CLIP.', lower_bound=1)
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
        return data['images'][rows], training.evenness(i)

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


def measured(folder: Path, results: Path) -> dict:
    """Measures the encoders of a folder, and adds how those that were trained here were made."""
    encoders = {name: load_encoder(folder / name, batch_size=64) for name in STORYBOOK_ENCODERS}
    started = time.perf_counter()
    numbers = measuring.measure(encoders)
    note = {'seconds': time.perf_counter() - started, 'hardware': experiment.hardware()}
    note['date'] = date.today().isoformat()
    before = json.loads(results.read_text('utf-8')) if results.is_file() else {}
    trained = before.get('trained', {})
    for name in _TRAIN.value:
        made = training.read(Path(_WORKDIR.value) / f'{name}.pickle')
        trained[name] = {
            'steps': made.step,
            'paintings': _PAINTINGS.value,
            'paintings seen': made.step * training.BATCH,
            'seconds': {key: round(value) for key, value in made.seconds.items()},
        }
    about = {
        name: {'fingerprint': encoder.fingerprint[:16], **sizes(folder / name)} for name, encoder in encoders.items()
    }
    return {
        'measured': experiment.measured_on([{'measured': note}]),
        'files': about,
        'trained': trained,
        'results': numbers,
    }


def sizes(folder: Path) -> dict[str, int]:
    """Returns the number of parameters, and of bytes in all files."""
    tensors = files.read_tensors(folder / 'model.safetensors')
    return {
        'parameters': int(sum(value.size for value in tensors.values())),
        'bytes': sum(path.stat().st_size for path in folder.iterdir()),
    }


def tables(found: dict) -> str:
    """Returns what was measured as Markdown."""
    percent, rows, texts = experiment.percent, [], []
    for name, sides in found['results'].items():
        for side, numbers in sides.items():
            own = numbers['subjects']
            shares = (percent(own[key]) for key in ('top-1', 'top-1 elsewhere', 'mAP'))
            rows.append([name, side, *shares, f'{numbers["agreement"]:.2f}'])
            if 'R@1 of 100' in numbers:
                ranked = numbers['R@1 of 100'].values()
                texts.append([name, side, percent(numbers['prompt of 25']), *map(percent, ranked)])
    chance = found['results']['pixels']['128 px']['subjects']['chance']
    rows.append(['chance', '', *3 * [percent(chance)], '0.00'])
    texts.append(['chance', '', percent(1 / 25), *2 * [percent(1 / measuring.CAPTION_GROUP)]])
    first = experiment.table(['encoder', 'images', 'subject, top-1', 'elsewhere', 'mAP', 'with the classifier'], rows)
    names = ['encoder', 'images', 'prompt, of 25', 'caption, of 100', 'painting, of 100']
    return f'{first}\n\n{experiment.table(names, texts)}'


def main(_):
    workdir = Path(_WORKDIR.value)
    output = Path(_OUTPUT.value) if _OUTPUT.value else storybook_folder()
    if _TRAIN.value:
        data = paintings.pools(workdir / 'paintings', _SEED.value, _PAINTINGS.value)
    for name, train in (('dino', train_dino), ('clip', train_clip)):
        if name in _TRAIN.value:
            train(data, workdir, output)
    found = measured(output, Path(_RESULTS.value) / 'results.json')
    experiment.write_json(Path(_RESULTS.value) / 'results.json', found)
    experiment.report(Path(_RESULTS.value), HERE / 'expected.json', found, tables(found))


if __name__ == '__main__':
    app.run(main)
