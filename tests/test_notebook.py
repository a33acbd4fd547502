"""The notebook for Colab and Kaggle: what it is, that its commands are ours, and that it runs from photos to a file."""

import json
import os
import sys
from pathlib import Path

import nbclient
import pytest
from absl import flags

from dreambooth_jax.config import DreamBoothConfig, resolve
from dreambooth_jax.data import provenance
from tests.support import image_metadata, loopback_hub, notebooks

ROOT = Path(__file__).parents[1]
PATH = ROOT / 'experiments' / 'notebook' / 'dreambooth.ipynb'
# A run of seconds, without a second stage: what is looked at here is that one cell leads to the next.
SHORT = {
    'super_resolution_model': 'none',
    'prior.num_images': 1,
    'prior.steps': 1,
    'base.steps': 2,
    'samples.steps': 1,
    'samples.guidance_scale': 1.0,
    'samples.every': 0,
    'samples.num_images': 1,
    'evaluation.every': 0,
    'parallel.cpu_devices': 1,
}


@pytest.fixture
def notebook():
    return notebooks.read(PATH)


def test_it_is_clean_and_each_code_cell_is_explained(notebook):
    assert [cell.id for cell in notebooks.code(notebook)] == [
        'settings',
        'install',
        'accelerator',
        'photos',
        'train',
        'look',
        'try',
        'export',
    ]
    assert all(cell.outputs == [] and cell.execution_count is None for cell in notebooks.code(notebook))
    kinds = [cell.cell_type for cell in notebook.cells]
    assert kinds == ['markdown', *['markdown', 'code'] * 8]
    assert [cell.id for cell in notebook.cells if cell.metadata.get('tags')] == ['settings']
    assert json.loads(PATH.read_text('utf-8'))['metadata'].keys() == {'accelerator', 'kernelspec', 'language_info'}
    names = {}
    exec(notebooks.code(notebook)[0].source, names)
    asked = 'SOURCE MODEL PHOTOS INSTANCE_PROMPT CLASS_PROMPT CONSENT PROMPTS RUN SETTINGS SHARE_AS'
    assert {name for name in names if name.isupper()} == set(asked.split())


class Terminal:
    """Notes commands, and leaves the files behind that later cells read."""

    def __init__(self, model, rank):
        self.commands, self.model, self.rank = [], model, rank

    def __call__(self, words):
        self.commands.append(words)
        with notebooks.flags_of(words) as given:
            program = words[2].removeprefix('dreambooth_jax.')
            if program == 'check_photos':
                Path(given.output).mkdir()
                Path(given.output, 'photos.html').write_text('<p>"photos"</p>')
            if program in ('check_photos', 'train'):
                resolve(DreamBoothConfig, given.config)
            if program == 'train' and not given.dry_run:
                run = Path(given.workdir)
                run.mkdir(parents=True)
                samples = {'steps': 25, 'guidance_scale': 7.5, 'sampler': 'ddim'}
                told = {'model': self.model, 'samples': samples, 'lora': {'rank': self.rank}}
                (run / 'config.json').write_text(json.dumps(told))
                for stage in ('base', 'super_resolution'):
                    line = {'stage': stage, 'step': 1, 'instance_loss': 0.5, 'prior_loss': 0.25}
                    with open(run / 'metrics.jsonl', 'a', encoding='utf-8') as lines:
                        lines.write(json.dumps(line) + '\n')
                    image(run / 'samples' / stage / '000001.png')
            if program == 'sample':
                image(Path(given.output) / 'grid.png')


def image(path):
    from PIL import Image

    path.parent.mkdir(parents=True, exist_ok=True)
    provenance.save(Image.new('RGB', (160, 160)), path)


COMMANDS = ('check_photos', 'train', 'train', 'sample', 'sample', 'export')


@pytest.mark.parametrize('model', ['auto', 'stable-diffusion-v1-5', 'sdxl'])
def test_its_commands_are_ours(notebook, model, tmp_path, monkeypatch, capsys):
    """With Storybook, which a CPU gets, and with LoRA: programs, flags and settings exist and fit each other."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv('PATH', os.environ['PATH'])  # which the notebook changes
    if model != 'auto':
        image(tmp_path / 'my photos' / '1.png')
    photos = '' if model == 'auto' else 'my photos'
    values = {'SOURCE': str(ROOT), 'MODEL': model, 'PHOTOS': photos, 'RUN': 'runs/my run', 'SHARE_AS': 'ana/rex'}
    terminal = Terminal('storybook', None if model == 'auto' else 16)
    notebooks.run(notebooks.with_parameters(notebook, **values), terminal)
    assert tuple(words[2].removeprefix('dreambooth_jax.') for words in terminal.commands) == COMMANDS
    is_lora = model != 'auto'
    said = capsys.readouterr().out
    assert ('the model is storybook' in said) == (not is_lora)
    for stage in ('base', 'super_resolution'):
        assert f'{stage}, steps to 1: instance_loss 0.5000, prior_loss 0.2500\n<IPython.core.display.Image' in said
    train, export = terminal.commands[2], terminal.commands[-1]
    assert ('--config.lora.rank=16' in train) == is_lora and '--workdir=runs/my run' in train
    assert ('--format=lora_peft' in export) == is_lora and '--push_to=ana/rex' in export
    if not is_lora:
        assert len(list((tmp_path / 'photos').iterdir())) >= 3
        assert all(image_metadata.is_marked(path, provenance.PAINTED) for path in (tmp_path / 'photos').iterdir())


@pytest.mark.parametrize(
    ('wrong', 'error'),
    [
        (['--nothing=1'], flags.UnrecognizedFlagError),
        (['word'], AssertionError),
        (['--format=ckpt'], flags.IllegalFlagValueError),
        ([], AssertionError),  # --output is missing
    ],
)
def test_a_command_that_is_not_ours_is_seen(wrong, error):
    given = ['--output=y'] if wrong else []
    with (
        pytest.raises(error),
        notebooks.flags_of(['python', '-m', 'dreambooth_jax.export', '--workdir=x', *given, *wrong]),
    ):
        pass


@pytest.mark.slow
def test_it_runs_from_photos_to_the_hub_on_storybook(notebook, tmp_path, monkeypatch):
    """In a kernel, as Jupyter, Colab and Kaggle run it, and shared with a hub on this machine."""
    # As a notebook has it; the other flags of conftest.py, by which code is ready sooner, stay.
    one_device = [flag for flag in os.environ['XLA_FLAGS'].split() if 'device_count' not in flag]
    with loopback_hub.running() as (hub, address):
        for name, value in {
            'HF_ENDPOINT': address,
            'HF_TOKEN': 'write-token',
            'HF_HUB_DISABLE_XET': '1',
            'HF_HUB_OFFLINE': '0',
            'XLA_FLAGS': ' '.join(one_device),
            'PYTHONPATH': os.pathsep.join([str(ROOT), *filter(None, [os.environ.get('PYTHONPATH')])]),
        }.items():
            monkeypatch.setenv(name, value)
        values = {'SOURCE': str(ROOT), 'SETTINGS': SHORT, 'RUN': 'run', 'SHARE_AS': 'ana/rex'}
        values |= {'PROMPTS': ['a sks dog', 'a dog']}
        ready = notebooks.with_parameters(notebook, **values)
        nbclient.NotebookClient(
            ready, timeout=None, kernel_name='python3', resources={'metadata': {'path': str(tmp_path)}}
        ).execute()
    said = {cell.id: ''.join(output.get('text', '') for output in cell.outputs) for cell in notebooks.code(ready)}
    assert 'the model is storybook' in said['accelerator']
    assert 'base, steps to 2: instance_loss' in said['look'] and 'prior_loss' in said['look']
    shown = [output.data.keys() for cell in notebooks.code(ready) for output in cell.outputs if 'data' in output]
    assert sum('image/png' in data for data in shown) == 1 + 2 and sum('text/html' in data for data in shown) == 1
    assert f'{address}/ana/rex holds ' in said['export'] and 'write-token' not in json.dumps(ready)
    there = hub.repositories['ana/rex']
    assert there.private and {'model_index.json', 'README.md', 'images/000_00.png'} < there.files.keys()
    assert (tmp_path / 'exported' / 'model' / 'unet' / 'config.json').is_file()
    assert there.head['widget'][0]['text'] == 'a sks dog' and sys.prefix not in there.files['README.md'].decode()
