"""A run's folder with everything that its page shows, made without training: images are noise and scores are drawn."""

import json
from pathlib import Path

import numpy as np
from PIL import Image

from dreambooth_jax.config import DataConfig, DreamBoothConfig, to_dict
from dreambooth_jax.evaluation.evaluator import Column, summary
from dreambooth_jax.evaluation.protocol import image_name

PROMPTS = {'a sks dog in the snow': 'context', 'a sks dog wearing a red hat': 'accessory', 'a red sks dog': 'property'}
CLASS_PROMPT = 'a dog'
SCORES = {'dino': (0.76, 0.45), 'dino_copy': (0.8, 0.5), 'clip_t': (0.29, 0.3), 'dino_pres': (0.5, 0.45)}


def run_folder(folder: Path, *, side: int = 12, steps=(20, 40, 60)) -> Path:
    """Writes the folder of a finished run: settings, class images, sample grids of both stages and numbers."""
    rng = np.random.default_rng(0)
    config = DreamBoothConfig(data=DataConfig(subject='dog', instance_prompt='a sks dog', class_prompt=CLASS_PROMPT))
    folder.mkdir(parents=True)
    (folder / 'config.json').write_text(json.dumps(to_dict(config)))
    for index in range(3):
        _image(folder / 'prior' / f'a_dog_{index:05d}.png', rng, side)
    lines = []
    for stage in ('base', 'super_resolution'):
        for step in steps:
            _image(folder / 'samples' / stage / f'{step:06d}.png', rng, side)
        for step in range(1, 61):
            values = {'loss': 2 / step, 'instance_loss': 1 / step, 'learning_rate': 1e-4, 'gradient_norm': float(step)}
            lines.append(json.dumps({'stage': stage, 'step': step, **values}))
    (folder / 'metrics.jsonl').write_text('\n'.join(lines))
    return folder


def scores_of(run: Path, *, prompts=PROMPTS, subject: str = 'sks dog', num_images: int = 2, side: int = 12) -> dict:
    """Writes the images of an evaluation into <run>/evaluation/images; returns the content of its scores.json."""
    rng, models = np.random.default_rng(1), {}
    for number, model in enumerate(('run', 'base')):
        for prompt in [*prompts, CLASS_PROMPT]:
            for index in range(num_images):
                _image(run / 'evaluation' / 'images' / model / 'weights' / image_name(prompt, index), rng, side)
        columns = {}
        for name, means in SCORES.items():
            asked = {CLASS_PROMPT: 'class'} if name.endswith('pres') else prompts
            texts = [prompt for prompt in asked for _ in range(num_images)]
            values = means[number] + rng.uniform(-0.05, 0.05, len(texts))
            columns[name] = Column(values=values, prompts=texts, kinds=[asked[text] for text in texts])
        models[model] = {subject: summary(columns)}
    return {
        'models': models,
        'ceiling': {'dino': {subject: {'others': 0.8, 'with_self': 0.85}}},
        'subjects': {subject: {'live': True, 'prompts': dict(prompts)}},
        'images': {model: f'{model}/weights' for model in models},
        'weights': ['base: checkpoint 60'],
        'encoders': {'dino': 'a1b2c3'},
        'images_per_prompt': num_images,
        'class_images': num_images,
        'sampling': {'steps': 25, 'sampler': 'ddim', 'negative_prompt': ''},
    }


def photos(side: int = 12) -> list[np.ndarray]:
    rng = np.random.default_rng(2)
    return [rng.integers(0, 256, (side, side, 3), np.uint8) for _ in range(3)]


def _image(path: Path, rng: np.random.Generator, side: int) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(rng.integers(0, 256, (side, side, 3), np.uint8)).save(path)
