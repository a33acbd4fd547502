"""export from the command line: what a run has trained, in every format."""

import shutil
import subprocess
import sys

import huggingface_hub
import numpy as np
import pytest

from dreambooth_jax.config import BaseConfig, DataConfig, DreamBoothConfig, LoraConfig
from dreambooth_jax.families.reading import read_pipeline
from dreambooth_jax.finetune import formats
from dreambooth_jax.generation.cascade import Cascade
from dreambooth_jax.models import lora
from dreambooth_jax.weights import files, folders, lora_files
from tests.support import loopback_hub, same_noise, script, tiny_latent_pipelines, tiny_pipelines
from tests.support.written_runs import assert_shifted, begun, save


@pytest.fixture
def workdir(tmp_path):
    """A run that has written its settings and no checkpoint yet."""
    return begun(tmp_path / 'run', tiny_pipelines.folder())


@pytest.mark.slow
def test_the_newest_averages_of_both_stages_are_exported(program, tmp_path):
    workdir = begun(tmp_path / 'run', tiny_pipelines.folder(), base=BaseConfig(train_text_encoder=True))
    base, second, output = tiny_pipelines.base(), tiny_pipelines.super_resolution(), tmp_path / 'out'
    both = {'unet': base.denoiser.params, 'text_encoder': base.components['text_encoder'].params}
    save(workdir, 'base', [1, 3], both, ema=True)
    save(workdir, 'super_resolution', [2], {'unet': second.denoiser.params})
    ended = program('export', f'--workdir={workdir}', '--format=diffusers', f'--output={output}')
    count = sum(len(network.params) for network in (base.denoiser, base.components['text_encoder'], second.denoiser))
    assert (ended.code, ended.out.splitlines()) == (
        0,
        [
            'base: checkpoint 3',
            'super_resolution: checkpoint 2',
            f'{output} holds {count} tensors, read back and equal',
        ],
    )
    assert '- **Weights**: base: checkpoint 3; super\\_resolution: checkpoint 2\n' in (output / 'README.md').read_text()
    exported = Cascade.load(output)
    assert_shifted(exported.base.denoiser.params, base.denoiser.params, 3.5)
    assert_shifted(exported.base.components['text_encoder'].params, base.components['text_encoder'].params, 3.5)
    assert_shifted(exported.super_resolution.denoiser.params, second.denoiser.params, 2)


def test_one_stage_at_one_step_in_half_precision(program, workdir, tmp_path):
    base, output = tiny_pipelines.base(), tmp_path / 'out'
    save(workdir, 'base', [1, 3], {'unet': base.denoiser.params})
    ended = program('export', f'--workdir={workdir}', f'--output={output}', '--step=1', '--dtype=float16')
    assert ended.code == 0
    assert ended.out.splitlines()[:2] == ['base: checkpoint 1', f'super_resolution: as in {tiny_pipelines.folder()}']
    exported = Cascade.load(output)
    for name, value in base.denoiser.params.items():
        np.testing.assert_array_equal(exported.base.denoiser.params[name], (value + np.float32(1)).astype(np.float16))
    ended = program('export', f'--workdir={workdir}', f'--output={tmp_path / "other"}', '--step=2')
    assert (ended.code, ended.error) == (
        1,
        f'{workdir} has no checkpoint 2: the newest of base is 3; leave --step out to take the newest',
    )
    assert not (tmp_path / 'other').exists()


def test_a_finished_run_without_checkpoints_gives_its_model(program, workdir, tmp_path):
    ended = program('export', f'--workdir={workdir}', f'--output={tmp_path / "out"}')
    assert (ended.code, ended.error) == (
        1,
        f'{workdir} holds neither checkpoints nor a model/; start train with it first',
    )
    folders.write_pipeline(tiny_pipelines.base(1), workdir / 'model')
    ended = program('export', f'--workdir={workdir}', f'--output={tmp_path / "out"}')
    assert ended.code == 0 and ended.out.startswith(f'both stages: {workdir}/model\n')
    assert_shifted(Cascade.load(tmp_path / 'out').base.denoiser.params, tiny_pipelines.base(1).denoiser.params, 0)


def test_what_is_wrong_is_named(program, workdir, tmp_path):
    def said(*arguments):
        ended = program('export', f'--output={tmp_path / "out"}', *arguments)
        assert (ended.code, ended.out) == (1, '')
        assert not (tmp_path / 'out').exists()
        return ended.error

    run = f'--workdir={workdir}'
    assert said(run, '--format=ckpt') == (
        'flag --format=ckpt: value should be one of <diffusers|single_file|lora_peft|lora_kohya|lora_comfyui> '
        '(--help lists the flags)'
    )
    assert said(f'--workdir={tmp_path / "no"}') == (
        f"{tmp_path}/no is no run's folder: {tmp_path}/no/config.json is missing; give the --workdir of train"
    )
    save(workdir, 'base', [4], {'unet': {'strange': np.zeros(3, np.float32)}})
    assert said(run) == (
        f'checkpoint 4 in {workdir}/base does not fit the unet of the model {str(tiny_pipelines.folder())!r}; put that '
        f'model back as it was when the run began'
    )
    for file in (workdir / 'base' / 'checkpoints' / '4').rglob('*'):
        if file.is_file() and file.name not in ('_CHECKPOINT_METADATA', 'commit_success.txt'):
            file.write_bytes(b'damaged')
    assert said(run).startswith(f'checkpoint 4 in {workdir}/base/checkpoints could not be read: ')
    (workdir / 'config.json').write_text('{')
    assert said(run).startswith(f'{workdir}/config.json is no readable JSON (')


def test_a_folder_that_does_not_read_back_as_written_is_no_success(program, workdir, tmp_path, monkeypatch):
    save(workdir, 'base', [1], {'unet': tiny_pipelines.base().denoiser.params})
    write, output = folders.write_pipeline, tmp_path / 'out'
    monkeypatch.setattr(folders, 'write_pipeline', lambda pipeline, *a, **k: write(tiny_pipelines.base(), *a, **k))
    ended = program('export', f'--workdir={workdir}', f'--output={output}')
    first = next(iter(tiny_pipelines.base().denoiser.params))
    assert (ended.code, ended.error) == (1, f'{output} does not read back as written: base unet {first} differs.')


@pytest.mark.slow
@pytest.mark.parametrize('family', ['sd1', 'sdxl'])
def test_diffusers_generates_the_same_with_a_single_file(program, family, tmp_path):
    model, file = tiny_latent_pipelines.folder(family), tmp_path / 'dog.safetensors'
    run = begun(tmp_path / 'run', model)
    rng = np.random.default_rng(0)
    params = same_noise.cascade(family).base.denoiser.params
    save(run, 'base', [0], {'unet': {name: value * rng.uniform(0.8, 1.2) for name, value in params.items()}})
    ended = program('export', f'--workdir={run}', '--format=single_file', f'--output={file}')
    count = len(files.read_header(file).shapes)
    written = f'{file} holds {count} tensors, read back and equal'
    card = f'{tmp_path / "dog.md"} is its model card'
    assert (ended.code, ended.out.splitlines()) == (0, ['base: checkpoint 0', written, card])
    assert files.read_metadata(file)['modelspec.description'].startswith('A fine-tuned copy of ')
    assert files.read_metadata(file)['modelspec.title'] == 'run: a sks dog'
    assert files.read_metadata(file)['modelspec.trigger_phrase'] == 'sks dog'
    shutil.copytree(model / 'tokenizer', tmp_path / 'tokenizer')
    ours = same_noise.ours(family, read_pipeline(file))
    assert same_noise.difference(ours, same_noise.ours(family)) > 20
    kind = type(tiny_latent_pipelines.torch_pipeline(family))
    pipe = kind.from_single_file(file, config=str(model), local_files_only=True)
    pipe.scheduler = tiny_latent_pipelines.torch_pipeline(family).scheduler
    pipe.set_progress_bar_config(disable=True)
    assert same_noise.difference(same_noise.theirs(pipe), ours) <= 2


def adapters(network, seed=0):
    """Random adapters of rank 2 on the attention of a network."""
    rng = np.random.default_rng(seed)
    shapes = {name: value.shape for name, value in network.params.items() if name.endswith('.to_q.kernel')}
    return {
        f'{name.removesuffix("kernel")}{part}': rng.normal(0, 0.1, shape).astype(np.float32)
        for name, (inputs, outputs) in shapes.items()
        for part, shape in ((lora.A, (inputs, 2)), (lora.B, (2, outputs)))
    }


@pytest.fixture
def lora_run(tmp_path):
    """A LoRA run of both stages of a pixel model; and the adapters of its checkpoints."""
    settings = LoraConfig(rank=2, alpha=1.0, targets=(r'.*\.to_q',))
    run = begun(tmp_path / 'run', tiny_pipelines.folder(), lora=settings)
    given = adapters(tiny_pipelines.base().denoiser), adapters(tiny_pipelines.super_resolution().denoiser, 1)
    for stage, params in zip(('base', 'super_resolution'), given, strict=True):
        save(run, stage, [0], {'unet': params})
    return run, given


def test_adapters_of_both_stages_of_a_pixel_model_are_exported(program, lora_run, tmp_path):
    run, given = lora_run
    paths = tmp_path / 'dog.safetensors', tmp_path / 'dog.super_resolution.safetensors'
    ended = program('export', f'--workdir={run}', '--format=lora_peft', f'--output={paths[0]}', '--dtype=float16')
    counts = [len(params) for params in given]
    assert (ended.code, ended.out.splitlines()) == (
        0,
        [
            'base: checkpoint 0',
            'super_resolution: checkpoint 0',
            *(f'{path} holds {count} tensors, read back and equal' for path, count in zip(paths, counts, strict=True)),
            f'{tmp_path / "dog.md"} is its model card',
        ],
    )
    networks = tiny_pipelines.base().denoiser, tiny_pipelines.super_resolution().denoiser
    for path, params, network, name in zip(paths, given, networks, ('deepfloyd-if-i', 'deepfloyd-if-ii'), strict=True):
        read = lora_files.read_lora(path, {'unet': network.params})
        for part, value in params.items():
            scale = 0.5 if part.endswith(lora.B) else 1.0
            np.testing.assert_array_equal(read.params['unet'][part], (value * np.float32(scale)).astype(np.float16))
        assert files.read_metadata(path)['modelspec.architecture'] == f'{name}/lora'
        assert files.read_metadata(path)['modelspec.description'].startswith('Adapters (LoRA) for ')
    assert "weight_name='dog.safetensors'" in (tmp_path / 'dog.md').read_text()

    merged = tmp_path / 'merged'
    assert program('export', f'--workdir={run}', f'--output={merged}').code == 0
    kernel = next(iter(given[0])).replace(lora.A, 'kernel')
    a, b = (given[0][kernel.replace('kernel', part)] for part in (lora.A, lora.B))
    before, after = networks[0].params[kernel], Cascade.load(merged).base.denoiser.params[kernel]
    np.testing.assert_allclose(after, before + 0.5 * a @ b, atol=1e-6)


def test_what_a_run_or_its_model_cannot_give_is_said(program, lora_run, tmp_path):
    run, _ = lora_run
    full = begun(tmp_path / 'full', tiny_pipelines.folder())
    save(full, 'base', [1], {'unet': tiny_pipelines.base().denoiser.params})
    file = tmp_path / 'x.safetensors'

    def said(run, name, output=file):
        ended = program('export', f'--workdir={run}', f'--format={name}', f'--output={output}')
        assert (ended.code, ended.out) == (1, '') and not file.exists()
        return ended.error

    for name in lora_files.FORMATS:
        assert said(full, name) == (
            f'--format={name} writes LoRA adapters, but full has trained whole networks (config.lora.rank is None); '
            f'export diffusers or single_file'
        )
    assert said(run, 'single_file') == (
        '--format=single_file cannot hold an IFPipeline: the layout is that of Stable Diffusion and has no place for '
        'its networks; export diffusers'
    )
    assert said(run, 'lora_peft', tmp_path / 'x') == (
        f'--output={tmp_path / "x"} must be a file .safetensors for --format=lora_peft'
    )
    save(run, 'base', [3], {'unet': {'mid_block.attentions.0.to_q.lora_a': np.zeros((9, 9), np.float32)}})
    assert said(run, 'lora_peft') == (
        f'checkpoint 3 in {run}/base does not fit the unet of the model {str(tiny_pipelines.folder())!r}; put that '
        f'model back as it was when the run began'
    )


def test_a_lora_file_that_does_not_read_back_as_written_is_no_success(program, lora_run, tmp_path, monkeypatch):
    run, given = lora_run
    file, write = tmp_path / 'x.safetensors', lora_files.write_lora
    wrong = lora_files.Adapter({'unet': {name: value * 1.01 for name, value in given[0].items()}}, 2, 1.0)
    monkeypatch.setattr(lora_files, 'write_lora', lambda path, adapter, *a, **k: write(path, wrong, *a, **k))
    ended = program('export', f'--workdir={run}', '--format=lora_peft', f'--output={file}')
    assert (ended.code, ended.error) == (1, f'{file} does not read back as written: unet {min(given[0])} differs.')


def test_what_is_exported_is_pushed_on_request(program, lora_run, tmp_path, monkeypatch):
    run, _ = lora_run
    file = tmp_path / 'dog.safetensors'
    arguments = f'--workdir={run}', '--format=lora_peft', f'--output={file}', '--push_to=ana/rex'
    with loopback_hub.in_this_process(monkeypatch, tmp_path) as hub:
        ended = program('export', *arguments)
        there = hub.repositories['ana/rex']
    assert (ended.code, ended.out.splitlines()[-1]) == (
        0,
        f'{huggingface_hub.constants.ENDPOINT}/ana/rex holds 3 files, read back and equal, 0 of them examples',
    )
    assert there.private and there.commits == ['lora_peft by dreambooth-jax 0.1.0, steps: base 0, super_resolution 0']
    assert there.files['pytorch_lora_weights.safetensors'] == file.read_bytes()
    second = file.with_suffix('.super_resolution.safetensors').read_bytes()
    assert there.files['pytorch_lora_weights.super_resolution.safetensors'] == second
    assert 'write-token' not in ended.out + ended.error + there.files['README.md'].decode()


def test_what_cannot_be_pushed_is_said_before_anything_is_written(program, lora_run, tmp_path, monkeypatch):
    run, _ = lora_run
    output = tmp_path / 'out'

    def said(*arguments):
        ended = program('export', f'--workdir={run}', f'--output={output}', *arguments)
        assert (ended.code, ended.out) == (1, '') and not output.exists()
        return ended.error

    needs = '--push_private says how a repository is made, so it needs --push_to=OWNER/NAME'
    assert said('--nopush_private') == needs == said('--push_private')
    with loopback_hub.in_this_process(monkeypatch, tmp_path, None):
        assert said('--push_to=ana/rex').endswith('there is none here; log in with `hf auth login`, or set HF_TOKEN')
    assert said('--push_to=rex').startswith("'rex' is no place on the Hugging Face hub")


# Loads the adapters of a file, and those that diffusers finds on the hub by the repository's name alone.
LOADED_TWICE = """
import os, sys
from diffusers import StableDiffusionPipeline
loaded = []
for place, name in (('ana/rex', None), os.path.split(sys.argv[2])):
    pipe = StableDiffusionPipeline.from_pretrained(sys.argv[1], local_files_only=True)
    pipe.load_lora_weights(place, weight_name=name)
    loaded.append({key: value for key, value in pipe.unet.state_dict().items() if 'lora' in key})
assert loaded[0] and loaded[0].keys() == loaded[1].keys()
print('equal' if all((loaded[0][key] == loaded[1][key]).all() for key in loaded[1]) else 'different')
"""


@pytest.mark.slow
def test_diffusers_finds_the_adapters_on_the_hub(tmp_path):
    """The whole way, by the program in a process of its own, with a private repository that only the token opens."""
    model, file = tiny_latent_pipelines.folder('sd1'), tmp_path / 'dog.safetensors'
    run = begun(tmp_path / 'run', model, lora=LoraConfig(rank=2, alpha=1.0, targets=(r'.*\.to_q',)))
    save(run, 'base', [0], {'unet': adapters(same_noise.cascade('sd1').base.denoiser)})
    with loopback_hub.running() as (hub, address):
        found = {'HF_ENDPOINT': address, 'HF_TOKEN': 'write-token', 'HF_HUB_DISABLE_XET': '1', 'HF_HUB_OFFLINE': '0'}
        environment = script.environment() | found | {'TRANSFORMERS_OFFLINE': '0', 'HF_HOME': str(tmp_path / 'home')}
        words = ['export', f'--workdir={run}', '--format=lora_peft', f'--output={file}', '--push_to=ana/rex']
        command = [sys.executable, '-m', f'dreambooth_jax.{words[0]}', *words[1:]]
        ended = subprocess.run(command, env=environment, capture_output=True, text=True)
        assert ended.returncode == 0, ended.stderr
        assert f'{address}/ana/rex holds 2 files, read back and equal' in ended.stdout
        assert 'write-token' not in ended.stdout + ended.stderr
        assert not any(
            'write-token' in path.read_text('utf-8', 'replace') for path in tmp_path.rglob('*.*') if path.is_file()
        )
        ended = subprocess.run(
            [sys.executable, '-c', LOADED_TWICE, str(model), str(file)], env=environment, capture_output=True, text=True
        )
        assert (ended.returncode, ended.stdout) == (0, 'equal\n'), ended.stderr
        assert 'GET /ana/rex/resolve/main/pytorch_lora_weights.safetensors' in hub.asked


@pytest.mark.slow
def test_two_exports_to_one_path_at_once_both_succeed(tmp_path):
    run, output = begun(tmp_path / 'run', tiny_pipelines.folder()), tmp_path / 'out'
    save(run, 'base', [1, 3], {'unet': tiny_pipelines.base().denoiser.params})
    command = [sys.executable, '-m', 'dreambooth_jax.export', f'--workdir={run}', f'--output={output}']
    for _ in range(3):
        options = {'env': script.environment(), 'stdout': subprocess.PIPE, 'stderr': subprocess.PIPE, 'text': True}
        both = [subprocess.Popen([*command, f'--step={step}'], **options) for step in (1, 3)]
        ended = [one.communicate(timeout=120) for one in both]
        assert [one.returncode for one in both] == [0, 0], ended
        weights = Cascade.load(output).base.denoiser.params
        name, value = next(iter(tiny_pipelines.base().denoiser.params.items()))
        assert float((weights[name] - value).mean().round()) in (1, 3)
    assert {path.name for path in tmp_path.iterdir()} == {'run', 'out'}


def test_a_subject_without_a_class_prompt_is_called_by_its_whole_prompt():
    data = DataConfig(subject='dog', instance_prompt='a sks dog')
    assert formats.trigger_phrase(DreamBoothConfig(data=data)) == 'a sks dog'
