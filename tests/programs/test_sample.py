"""sample from the command line: which images it writes, by whose settings, and what is wrong in one sentence."""

import dataclasses
import json
import re

import jax
import numpy as np
import pytest
from PIL import Image

from dreambooth_jax.config import STORYBOOK_ENLARGING, STORYBOOK_SAMPLING
from dreambooth_jax.data.fingerprints import file_hash
from dreambooth_jax.families.reading import read_pipeline
from dreambooth_jax.generation.cascade import Cascade
from dreambooth_jax.weights import files as weight_files
from tests.support import image_metadata, made_certificates, smallest_pipelines, tiny_flow, tiny_klein
from tests.support.generating import generate

QUICK = ('--steps=2', '--guidance_scale=1', '--sampler=ddim', '--batch_size=4', '--num_images=2')


@pytest.fixture
def run_folder(tmp_path):
    """A finished run: its settings and its model/."""
    folder = tmp_path / 'run'
    folder.mkdir()
    (folder / 'model').symlink_to(smallest_pipelines.folder('pixels'))
    samples = {'steps': 2, 'guidance_scale': 1.0, 'sampler': 'ddim'}
    written = {'samples': samples, 'super_resolution': {'sample_noise_level': 9, 'sample_guidance_scale': 1.5}}
    (folder / 'config.json').write_text(json.dumps(written))
    return folder


def test_sample_writes_every_image_of_both_stages_and_a_grid(program, tmp_path, monkeypatch):
    cascade, output = Cascade.load(smallest_pipelines.folder('pixels')), tmp_path / 'new' / 'out'
    monkeypatch.setattr(Cascade, 'load', lambda *_, **__: cascade)  # compiled once for the program and for us
    model = f'--model={smallest_pipelines.folder("pixels")}'
    ended = program(
        'sample', model, '--prompt=a dog', '--prompt=a cat, asleep', f'--output={output}', '--seed=4', *QUICK
    )
    assert ended[:2] == (0, f'4 images of 16 x 16 pixels and grid.png in {output}\n')
    names = ['000_00.png', '000_01.png', '001_00.png', '001_01.png']
    assert sorted(path.name for path in output.iterdir()) == [*names, 'base', 'grid.png']
    assert sorted(path.name for path in (output / 'base').iterdir()) == names
    options = dict(num_images=2, steps=2, guidance_scale=1.0, sampler='ddim', seed=4, batch_size=4)
    images = generate(cascade, ['a dog', 'a cat, asleep'], **options)
    for index, name in enumerate(names):
        assert np.array_equal(np.asarray(Image.open(output / name)), images.final[index])
        assert np.array_equal(np.asarray(Image.open(output / 'base' / name)), images.base[index])


def write_adapter(pipeline, path):
    """A LoRA of rank 2 of one layer of the denoiser."""
    params = pipeline.denoiser.params
    kernel = next(name for name in sorted(params) if name.endswith('time_emb_proj.kernel'))
    (inputs, outputs), layer = params[kernel].shape, f'unet.{kernel.removesuffix(".kernel")}'
    rng = np.random.default_rng(0)
    shapes = {'lora_A': (2, inputs), 'lora_B': (outputs, 2)}
    made = {f'{layer}.{name}.weight': rng.normal(size=shape).astype(np.float32) for name, shape in shapes.items()}
    weight_files.write_tensors(path, made)


def test_files_say_what_they_come_from_or_that_they_are_generated(program, run_folder, tmp_path):
    arguments = (f'--model={run_folder}', '--prompt=a dog', '--super_resolution_model=none', *QUICK)
    lora = tmp_path / 'dog.safetensors'
    model = read_pipeline(run_folder / 'model')
    write_adapter(model, lora)
    assert program('sample', *arguments, f'--output={tmp_path / "full"}', f'--lora={lora}').code == 0
    told = image_metadata.parameters(tmp_path / 'full' / '000_01.png')
    assert (told['Model'], told['Model hash']) == ('run', model.weights_hash)
    assert (told['Lora hashes'], told['Lora strengths']) == (f'dog: {file_hash(lora)}', 'dog: 1')
    assert (told['Prompt'], told['Sampler'], told['Steps'], told['Image number']) == ('a dog', 'ddim', '2', '1')
    config = json.loads((run_folder / 'config.json').read_text())
    config['samples']['metadata'] = 'mark'
    (run_folder / 'config.json').write_text(json.dumps(config))
    assert program('sample', *arguments, f'--output={tmp_path / "mark"}').code == 0
    assert program('sample', *arguments, f'--output={tmp_path / "again"}', '--metadata=full').code == 0
    for folder, is_told in (('full', True), ('mark', False), ('again', True)):
        files = sorted((tmp_path / folder).glob('*.png'))
        assert len(files) == 3 and all(map(image_metadata.is_marked, files))
        assert [bool(image_metadata.parameters(file)) for file in files] == [is_told] * 3


def test_images_are_signed_with_the_given_certificate(program, tmp_path):
    c2pa = pytest.importorskip('c2pa')
    made = made_certificates.make(tmp_path)
    arguments = (f'--model={smallest_pipelines.folder("pixels")}', '--prompt=a dog', f'--output={tmp_path / "out"}')
    signing = (f'--c2pa_certificate={made.certificate}', f'--c2pa_key={made.key}')
    assert program('sample', *arguments, *QUICK, *signing).code == 0
    files = sorted((tmp_path / 'out').rglob('*.png'))
    assert len(files) == 5
    for file in files:
        assert c2pa.Reader(str(file)).get_validation_state() == 'Valid' and image_metadata.is_marked(file)
    other = made_certificates.make(tmp_path, name='Other')
    made.key.write_text('no key')
    ended = program('sample', *arguments[:2], f'--output={tmp_path / "new"}', *QUICK, *signing)
    assert ended.code == 1 and ended.error.startswith(f'{other.key} is no private key that can be used')
    assert not (tmp_path / 'new').exists()


def test_images_of_a_run_are_signed_as_its_settings_say_unless_the_flags_say_otherwise(program, run_folder, tmp_path):
    c2pa = pytest.importorskip('c2pa')
    for name in ('own', 'other'):
        (tmp_path / name).mkdir()
    own, other = (made_certificates.make(tmp_path / name, name=name) for name in ('own', 'other'))
    config = json.loads((run_folder / 'config.json').read_text())
    config['samples'] |= {'c2pa_certificate': str(own.certificate), 'c2pa_key': str(own.key)}
    (run_folder / 'config.json').write_text(json.dumps(config))
    arguments = (f'--model={run_folder}', '--prompt=a dog', '--super_resolution_model=none', *QUICK)
    flags = (f'--c2pa_certificate={other.certificate}', f'--c2pa_key={other.key}')
    for name, more in (('own', ()), ('other', flags)):
        assert program('sample', *arguments, f'--output={tmp_path / "out"}', *more).code == 0
        files = sorted((tmp_path / 'out').rglob('*.png'))
        signatures = [c2pa.Reader(str(file)).get_active_manifest()['signature_info'] for file in files]
        assert [one['common_name'] for one in signatures] == [name] * 3
    own.key.unlink()
    ended = program('sample', *arguments, f'--output={tmp_path / "new"}')
    assert (ended.code, ended.error.splitlines()[-1], (tmp_path / 'new').exists()) == (
        1,
        f'config.samples.c2pa_certificate and config.samples.c2pa_key: {own.key} cannot be read: No such file or '
        f'directory; give a PEM file that can, or give --nosign',
        False,
    )
    assert program('sample', *arguments, f'--output={tmp_path / "new"}', '--nosign').code == 0
    names = [name for name, _ in image_metadata.chunks((tmp_path / 'new' / 'grid.png').read_bytes())]
    assert 'iTXt' in names and 'caBX' not in names


def test_a_full_memory_is_one_sentence(program, tmp_path, monkeypatch):
    def full(*_, **__):
        raise jax.errors.JaxRuntimeError('RESOURCE_EXHAUSTED: 9 bytes.\n more')

    monkeypatch.setattr(Cascade, 'generate', full)
    ended = program(
        'sample', f'--model={smallest_pipelines.folder("pixels")}', '--prompt=a dog', f'--output={tmp_path}', *QUICK
    )
    assert (ended.code, ended.error.splitlines()[-1]) == (
        1,
        "the device's memory is full while images are generated (RESOURCE_EXHAUSTED: 9 bytes.); try --batch_size=2, "
        'and start again',
    )


def test_sample_of_one_stage_writes_that(program, tmp_path):
    ended = program(
        'sample',
        f'--model={smallest_pipelines.folder("pixels")}',
        '--prompt=a dog',
        f'--output={tmp_path}',
        '--super_resolution_model=none',
        *QUICK,
    )
    assert ended.code == 0 and '2 images of 8 x 8 pixels' in ended.out
    assert sorted(path.name for path in tmp_path.iterdir()) == ['000_00.png', '000_01.png', 'grid.png']


def test_sample_of_a_run_takes_its_settings_unless_flags_say_otherwise(program, run_folder, tmp_path, monkeypatch):
    seen = {}

    def generate(self, prompts, options, *, num_images):
        seen.update(dataclasses.asdict(options), num_images=num_images)
        raise KeyboardInterrupt

    monkeypatch.setattr(Cascade, 'generate', generate)
    arguments = (f'--model={run_folder}', '--prompt=a dog', f'--output={tmp_path}')
    assert program('sample', *arguments).code == 130
    assert seen == dict(
        num_images=4,
        steps=2,
        guidance_scale=1.0,
        sampler='ddim',
        seed=0,
        negative_prompt='',
        super_resolution=True,
        noise_level=9,
        super_resolution_steps=None,
        super_resolution_guidance_scale=1.5,
        batch_size=8,
    )
    program(
        'sample',
        *arguments,
        '--steps=7',
        '--guidance_scale=2.5',
        '--sampler=ddpm',
        '--noise_level=0',
        '--seed=3',
        '--negative_prompt=blue',
        '--super_resolution_steps=5',
        '--super_resolution_guidance_scale=2',
    )
    assert seen == dict(
        num_images=4,
        steps=7,
        guidance_scale=2.5,
        sampler='ddpm',
        seed=3,
        negative_prompt='blue',
        super_resolution=True,
        noise_level=0,
        super_resolution_steps=5,
        super_resolution_guidance_scale=2.0,
        batch_size=8,
    )
    program('sample', f'--model={smallest_pipelines.folder("pixels")}', *arguments[1:])
    assert (seen['steps'], seen['guidance_scale'], seen['sampler'], seen['noise_level']) == (25, 7.5, 'dpmsolver++', 0)
    program('sample', '--model=storybook', *arguments[1:])
    assert {name: seen[name] for name in STORYBOOK_SAMPLING} == STORYBOOK_SAMPLING
    second = {name: seen[f'super_resolution_{name.removeprefix("sample_")}'] for name in STORYBOOK_ENLARGING}
    assert second == STORYBOOK_ENLARGING


def test_sample_of_a_model_that_is_no_run_does_as_its_makers_do(program, tmp_path, monkeypatch):
    seen = []

    def generate(self, prompts, options, *, num_images):
        seen.append((options.sampler, options.steps, options.guidance_scale))
        raise KeyboardInterrupt

    monkeypatch.setattr(Cascade, 'generate', generate)
    distilled = tiny_flow.changed(tiny_klein.folder(), tmp_path / 'distilled', None, is_distilled=True)
    more = ('--prompt=a dog', f'--output={tmp_path / "out"}')
    for model, flags in ((tiny_klein.folder(), ()), (distilled, ()), (distilled, ('--steps=8', '--sampler=heun'))):
        assert program('sample', f'--model={model}', *more, *flags).code == 130
    assert seen == [('euler', 50, 4.0), ('euler', 4, 1.0), ('heun', 8, 1.0)]


def test_sample_names_what_is_wrong(program, tmp_path):
    model = f'--model={smallest_pipelines.folder("pixels")}'
    file = tmp_path / 'file'
    file.touch()
    (tmp_path / 'config.json').write_text('{')

    def said(*arguments):
        ended = program('sample', *arguments)
        assert (ended.code, ended.out) == (1, '')
        return ended.error

    assert said('--prompt=a', '--output=o') == '--model must be given; --help says what it is'
    assert said(model, '--output=o') == '--prompt must be given; --help says what it is'
    assert said(model, '--prompt=a', f'--output={file}') == f'{file}: File exists'
    assert said(model, '--prompt=a', f'--output={tmp_path / "o"}', '--steps=1001') == (
        'steps is 1001; 1 to 1000 denoise steps are possible.'
    )
    assert said(model, '--prompt=a', f'--output={tmp_path / "o"}', '--noise_level=1000') == (
        'noise_level is 1000; it must be 0 to 999'
    )
    assert re.match(
        r"model '.*/nowhere' is not there; it must be 'storybook', 'storybook-flow', a pipeline folder",
        said(f'--model={tmp_path}/nowhere', '--prompt=a', '--output=o'),
    )
    assert said(f'--model={tmp_path}', '--prompt=a', '--output=o').startswith(
        f'{tmp_path / "config.json"} is no readable JSON ('
    )
    assert said(model, '--prompt=a', '--output=o', '--c2pa_key=key.pem') == (
        '--c2pa_certificate and --c2pa_key belong together, but one of them is not given; give both'
    )
    assert said(model, '--prompt=a', '--output=o', '--c2pa_key=key.pem', '--c2pa_certificate=x.pem', '--nosign') == (
        '--nosign is given but --c2pa_certificate and --c2pa_key are too; leave it or them out'
    )
    assert said(model, 'a dog', '--prompt=a', '--output=o') == (
        "'a dog' belongs to no flag; give flags as --name=value (--help lists them)"
    )
    assert said(model, '--prompt=a', '--output=o', '--stesp=3') == (
        "Unknown command line flag 'stesp'. Did you mean: steps ? (--help lists the flags)"
    )
    assert said(model, '--prompt=a', '--output=o', '--steps=0') == (
        'flag --steps=0: 0 is not a positive integer (--help lists the flags)'
    )
