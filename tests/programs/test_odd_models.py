"""Models that are not as others, from the command line: the same sentence from every program, before it writes."""

import dataclasses
import json

import pytest
from PIL import Image

from dreambooth_jax.config import DataConfig, DreamBoothConfig, to_dict
from dreambooth_jax.generation.cascade import Cascade
from tests.support import bent_folders, smallest_pipelines, tiny_pipelines

CONFIG = """
from dreambooth_jax.config import DreamBoothConfig, to_config_dict

def get_config():
    config = to_config_dict(DreamBoothConfig())
    config.data.instance_dir = '.'
    config.data.instance_prompt = 'a sks dog'
    config.data.class_prompt = 'a dog'
    return config
"""


@pytest.fixture
def config(tmp_path):
    path = tmp_path / 'config.py'
    path.write_text(CONFIG)
    return path


def folder_with(tmp_path, **changes):
    folder = bent_folders.copied(smallest_pipelines.folder('latents'), tmp_path / 'odd')
    for key, value in changes.items():
        bent_folders.bend(folder / 'unet' / 'config.json', key, value)
    return folder


def test_every_program_says_that_a_unet_inpaints(program, config, tmp_path):
    folder, output = folder_with(tmp_path, in_channels=9), tmp_path / 'out'
    run = tmp_path / 'run'
    run.mkdir()
    data = DataConfig(instance_dir='.', instance_prompt='a sks dog', class_prompt='a dog')
    (run / 'config.json').write_text(json.dumps(to_dict(DreamBoothConfig(model=str(folder), data=data))))
    (run / 'model').symlink_to(folder)
    train = ('train', f'--config={config}', f'--workdir={tmp_path / "new"}', f'--config.model={folder}')
    commands = [
        train,
        (*train, '--dry_run'),
        ('sample', f'--model={folder}', '--prompt=a dog', f'--output={output}'),
        ('export', f'--workdir={run}', f'--output={output}'),
    ]
    for command in commands:
        target = run / 'model' if command[0] == 'export' else folder
        assert program(*command) == (
            1,
            '',
            f'{target} is a variant of Stable Diffusion that takes 9 channels (inpainting, editing or depth), but 4 '
            'are supported; give the plain model.',
        )
    assert not output.exists() and not (tmp_path / 'new').exists()


@pytest.mark.slow
def test_a_model_without_a_size_is_planned_and_generated_at_the_given_one(program, config, tmp_path, monkeypatch):
    folder = folder_with(tmp_path, sample_size=None)
    photos = tmp_path / 'photos'
    photos.mkdir()
    Image.new('RGB', (20, 20)).save(photos / '1.png')
    arguments = (f'--config={config}', f'--workdir={tmp_path / "new"}', f'--config.model={folder}', '--dry_run')
    ended = program('train', *arguments, '--config.super_resolution_model=none')
    assert (ended.code, ended.error) == (
        1,
        f'the images that {folder} was made for have a size that it does not say; set config.data.resolution '
        f'(sample: --resolution).',
    )
    arguments += (f'--config.data.instance_dir={photos}', '--config.data.resolution=16')
    ended = program('train', *arguments, '--config.super_resolution_model=none')
    assert ended.code == 0 and 'config.data.resolution = 16' in ended.out

    generated = []
    monkeypatch.setattr(Cascade, 'generate', lambda self, *_, **__: generated.append(self.base_size) or 1 / 0)
    with pytest.raises(ZeroDivisionError):
        program('sample', f'--model={folder}', '--prompt=a', f'--output={tmp_path / "out"}', '--resolution=32')
    assert generated == [32]


def test_sample_generates_from_a_run_of_pretrain(program, tmp_path, monkeypatch):
    """Its config.json has `base` and `super_resolution` that are no groups of settings."""
    run = tmp_path / 'run'
    run.mkdir()
    (run / 'model').symlink_to(tiny_pipelines.folder())
    generated = {}

    def generate(self, prompts, options, *, num_images):
        generated.update(dataclasses.asdict(options), size=self.base_size)
        raise KeyboardInterrupt

    monkeypatch.setattr(Cascade, 'generate', generate)
    samples = {'steps': 3, 'guidance_scale': 2.0, 'sampler': 'ddim'}
    for base in (None, 'runs/storybook_base'):
        (run / 'config.json').write_text(json.dumps({'stage': 'base', 'base': base, 'steps': 9, 'samples': samples}))
        assert program('sample', f'--model={run}', '--prompt=a', f'--output={tmp_path / "out"}').code == 130
        assert (generated['steps'], generated['guidance_scale'], generated['sampler'], generated['size']) == (
            3,
            2.0,
            'ddim',
            8,
        )


def test_a_damaged_config_of_a_run_is_one_sentence(program, tmp_path):
    path = tmp_path / 'config.json'
    path.write_text('[]')
    ended = program('sample', f'--model={tmp_path}', '--prompt=a', f'--output={tmp_path / "out"}')
    said = f"{path} holds a JSON list but must hold a run's settings; restore it"
    assert (ended.code, ended.error) == (1, said)  # all others: tests/generation/test_run_settings.py


def test_a_revision_of_no_hub_model_is_one_sentence(program, config, tmp_path):
    for model in (str(tiny_pipelines.folder()), 'storybook'):
        sentence = (
            f"revision 'v1' is given for the model {model!r}, which is none of the hub; leave the revision (setting "
            f'and flag model_revision) out.'
        )
        ended = program('sample', f'--model={model}', '--prompt=a', '--output=o', '--model_revision=v1')
        assert (ended.code, ended.error) == (1, sentence)
        ended = program(
            'train',
            f'--config={config}',
            '--workdir=w',
            f'--config.model={model}',
            '--dry_run',
            '--config.model_revision=v1',
        )
        assert (ended.code, ended.error) == (1, sentence)
    ended = program('train', f'--config={config}', '--workdir=w', '--config.super_resolution_model_revision=v1')
    assert (ended.code, ended.error) == (
        1,
        "config.super_resolution_model_revision is 'v1' but config.super_resolution_model names no model of the hub; "
        'set that too, or the revision to None',
    )
