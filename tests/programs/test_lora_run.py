"""A LoRA run of Stable Diffusion from the command line to its files, and what diffusers and `sample` generate with
them."""

import functools
import json
import shutil

import jax
import numpy as np
import pytest
from PIL import Image

from dreambooth_jax.families.family import FAMILIES
from dreambooth_jax.families.reading import read_pipeline
from dreambooth_jax.generation.cascade import Cascade
from dreambooth_jax.training import placement
from dreambooth_jax.weights import files, single_file
from tests.support import same_noise, tiny_latent_pipelines
from tests.support.reports import nothing_reported

CONFIG = """
from dreambooth_jax.config import DreamBoothConfig, to_config_dict

def get_config():
    config = to_config_dict(DreamBoothConfig())
    config.model = {model!r}
    config.data.instance_dir = {photos!r}
    config.data.instance_prompt = 'a sks dog'
    config.data.class_prompt = 'a dog'
    config.prior.weight = 0.0
    config.base.steps = 2
    config.base.learning_rate = 0.1  # two steps must show
    config.base.train_text_encoder = True
    config.lora.rank = 2
    config.lora.alpha = 3.0
    config.samples.prompts = ('a sks dog',)
    config.samples.num_images = 1
    config.samples.steps = 1
    config.samples.guidance_scale = 1.0
    config.samples.sampler = 'ddim'
    return config
"""


@pytest.fixture(autouse=True)
def one_device(monkeypatch):
    """On the four devices of conftest.py XLA would compile and compute for minutes (training/placement.py)."""
    one = functools.partial(placement.make_placement, devices=jax.devices()[:1])
    monkeypatch.setattr(placement, 'make_placement', one)


@pytest.fixture(scope='module')
def run_of(tmp_path_factory):
    """(program, family) -> the folder of a finished LoRA run, made on first use."""
    made = {}

    def run(program, family):
        if family not in made:
            folder = tmp_path_factory.mktemp(family)
            (folder / 'photos').mkdir()
            rng = np.random.default_rng(0)
            for name in ('1.png', '2.png'):
                Image.fromarray(rng.integers(0, 256, (40, 40, 3), np.uint8)).save(folder / 'photos' / name)
            photos, model = folder / 'photos', folder / 'model.safetensors'  # of the original layout
            single_file.write_pipeline(same_noise.cascade(family).base, model)
            shutil.copytree(tiny_latent_pipelines.folder(family) / 'tokenizer', folder / 'tokenizer')
            (folder / 'config.py').write_text(CONFIG.format(model=str(model), photos=str(photos)))
            ended = program('train', f'--config={folder / "config.py"}', f'--workdir={folder / "run"}')
            assert ended.code == 0, ended.error
            made[family] = folder / 'run'
        return made[family]

    return run


@pytest.mark.slow
@pytest.mark.parametrize('family', ['sd1', 'sdxl'])
def test_both_lora_files_of_a_run_generate_the_same_in_diffusers_as_its_merged_model_here(
    program, run_of, family, tmp_path
):
    run = run_of(program, family)
    merged = same_noise.ours(family, read_pipeline(run))
    assert same_noise.difference(merged, same_noise.ours(family)) > 20  # the adapters show
    pipe = tiny_latent_pipelines.torch_pipeline(family)
    for name in ('lora_peft', 'lora_kohya'):
        file = tmp_path / f'{name}.safetensors'
        ended = program('export', f'--workdir={run}', f'--format={name}', f'--output={file}')
        count = len(files.read_header(file).shapes)
        read = count if name == 'lora_peft' else count * 2 // 3  # without a layer's alpha
        written = f'{file} holds {read} tensors, read back and equal'
        card = f'{file.with_suffix(".md")} is its model card'
        assert (ended.code, ended.out.splitlines()) == (0, ['base: checkpoint 2', written, card])
        with nothing_reported():
            pipe.load_lora_weights(file)
        try:
            assert same_noise.difference(same_noise.theirs(pipe), merged) <= 2
        finally:
            pipe.unload_lora_weights()


@pytest.mark.slow
def test_lora_files_say_what_they_are(program, run_of, tmp_path):
    run = run_of(program, 'sd1')
    for name, implementation in (('lora_peft', 'diffusers'), ('lora_kohya', 'diffusers')):
        file = tmp_path / f'{name}.safetensors'
        assert program('export', f'--workdir={run}', f'--format={name}', f'--output={file}').code == 0
        said = {key: value for key, value in files.read_metadata(file).items() if key.startswith('modelspec.')}
        assert said.pop('modelspec.date')
        assert said.pop('modelspec.description').startswith('Adapters (LoRA) for ')
        assert said == {
            'modelspec.sai_model_spec': '1.0.1',
            'modelspec.architecture': 'stable-diffusion-v1/lora',
            'modelspec.implementation': implementation,
            'modelspec.title': 'run: a sks dog',
            'modelspec.resolution': '32x32',
            'modelspec.prediction_type': 'epsilon',
            'modelspec.trigger_phrase': 'sks dog',
        }


@pytest.mark.slow
def test_an_image_with_the_lora_file_is_the_image_of_the_merged_model(program, run_of, tmp_path):
    run = run_of(program, 'sd1')
    model = run.parent / 'model.safetensors'
    quick = ('--prompt=a sks dog', '--num_images=1', '--steps=2', '--guidance_scale=1', '--sampler=ddim')

    def generated(name, *arguments):
        ended = program('sample', f'--output={tmp_path / name}', *quick, *arguments)
        assert ended.code == 0, ended.error
        return np.asarray(Image.open(tmp_path / name / '000_00.png'))

    merged = generated('merged', f'--model={run}')
    files_of = {name: tmp_path / f'{name}.safetensors' for name in ('lora_peft', 'lora_kohya')}
    for name, file in files_of.items():
        assert program('export', f'--workdir={run}', f'--format={name}', f'--output={file}').code == 0
    file = files_of['lora_kohya']
    assert same_noise.difference(generated('kohya', f'--model={model}', f'--lora={file}'), merged) <= 1
    halves = [word for file in files_of.values() for word in (f'--lora={file}', '--lora_scale=0.5')]
    assert same_noise.difference(generated('halves', f'--model={model}', *halves), merged) <= 1
    plain = generated('plain', f'--model={model}')
    assert same_noise.difference(generated('off', f'--model={model}', f'--lora={file}', '--lora_scale=0'), plain) == 0
    assert same_noise.difference(plain, merged) > 20


@pytest.mark.slow
def test_a_merged_single_file_is_the_model_that_the_run_wrote(program, run_of, tmp_path):
    run, file = run_of(program, 'sd1'), tmp_path / 'dog.safetensors'
    ended = program('export', f'--workdir={run}', '--format=single_file', f'--output={file}')
    assert ended.code == 0 and f'{file} holds ' in ended.out
    found = single_file.read_single_file(file, families=FAMILIES)
    for component, stem in (('unet', 'diffusion_pytorch_model'), ('text_encoder', 'model')):
        written = files.read_tensors(run / 'model' / component / f'{stem}.safetensors')
        assert written.keys() == found.components[component].keys()
        for name, value in written.items():
            np.testing.assert_allclose(found.components[component][name], value, atol=1e-6)


@pytest.mark.slow
def test_what_a_lora_file_cannot_be_is_said_in_one_sentence(program, run_of, tmp_path, monkeypatch):
    run, model = run_of(program, 'sd1'), tiny_latent_pipelines.folder('sd1')
    monkeypatch.setattr(Cascade, 'generate', lambda *_, **__: pytest.fail('drew'))
    file = tmp_path / 'x.safetensors'
    assert program('export', f'--workdir={run}', '--format=lora_peft', f'--output={file}').code == 0

    def said(name, *arguments):
        ended = program(name, *arguments)
        assert ended.code == 1
        return ended.error

    sample = ('--prompt=a dog', f'--output={tmp_path / "out"}')
    assert said('sample', f'--model={file}', *sample) == (
        f'{file} holds LoRA adapters, which change a model and are none; give the model that they were trained on, and '
        f'this file to sample as --lora.'
    )
    assert said('sample', f'--model={model}', f'--lora={file}', '--lora_scale=1', '--lora_scale=2', *sample) == (
        '--lora_scale is given 2 times, --lora 1; give one for each'
    )
    assert said('sample', f'--model={model}', f'--super_resolution_lora={file}', *sample) == (
        f'{file} is for a super_resolution stage, but {model} has none; leave it out'
    )
    pickled = tmp_path / 'x.bin'
    pickled.touch()
    assert said('sample', f'--model={model}', f'--lora={pickled}', *sample).startswith(
        f'{pickled} is a pickled checkpoint, which can run any code when it is opened; convert it to safetensors'
    )
    assert said('export', f'--workdir={run}', '--format=lora_kohya', f'--output={tmp_path / "out"}') == (
        f'--output={tmp_path / "out"} must be a file .safetensors for --format=lora_kohya'
    )
    settings = json.loads((run / 'config.json').read_text())
    bare = tmp_path / 'bare'
    bare.mkdir()
    (bare / 'config.json').write_text(json.dumps(settings))
    (bare / 'model').symlink_to(model)
    assert said('export', f'--workdir={bare}', '--format=lora_peft', f'--output={file}') == (
        '--format=lora_peft writes LoRA adapters, but bare has no checkpoint; export diffusers or single_file'
    )
