"""Every command of README.md for the API is run, in its order, against a server; a small model stands in for SDXL."""

import contextlib
import json
import os
import re
import shutil
import signal
import subprocess
import time
from pathlib import Path

import psutil
import pytest
from PIL import Image

from dreambooth_jax.client import Client
from tests.support import smallest_pipelines
from tests.support.served import Server, image_bytes

README = (Path(__file__).parents[2] / 'README.md').read_text('utf-8')
(BLOCK,) = (block for block in re.findall(r'```bash\n(.*?)```', README, re.DOTALL) if 'ask()' in block)
LINES = BLOCK.replace('\\\n', ' ').splitlines()
PREAMBLE, COMMANDS = '\n'.join(LINES[:3]), LINES[3:]
SETTINGS = '''
"""A dog, by a model that trains in seconds."""
from dreambooth_jax.config import DreamBoothConfig, to_config_dict

MODELS = ('sdxl',)


def get_config(model='sdxl'):
    config = to_config_dict(DreamBoothConfig())
    config.model, config.super_resolution_model = {model!r}, 'none'
    config.data.instance_prompt, config.data.class_prompt = 'a sks dog', 'a dog'
    config.prior.weight = 0.0
    config.lora.rank = 2
    config.checkpoint.every = 300
    config.samples.update(steps=2, sampler='ddim', guidance_scale=1.0)
    return config
'''
PATIENCE = 300  # seconds

pytestmark = [pytest.mark.slow, pytest.mark.skipif(shutil.which('curl') is None, reason='curl is not installed')]


def test_the_commands_are_found():
    assert PREAMBLE.startswith('api=http://127.0.0.1:8124/api\nask() {')
    assert len(COMMANDS) == 12 and all('ask ' in one for one in COMMANDS)


@pytest.fixture
def served(tmp_path):
    """A server over a folder with photos and the settings file; what it has started ends with it."""
    (tmp_path / 'photos' / 'rex').mkdir(parents=True)
    for number in range(3):
        (tmp_path / 'photos' / 'rex' / f'{number}.png').write_bytes(image_bytes(seed=number))
    (tmp_path / 'configs').mkdir()
    model = str(smallest_pipelines.folder('latents'))
    (tmp_path / 'configs' / 'dog.py').write_text(SETTINGS.format(model=model))
    with Server(tmp_path / 'runs', configs=tmp_path / 'configs') as server:
        yield server
    for path in (tmp_path / 'runs' / '.serve' / 'jobs').glob('*.json'):
        job = json.loads(path.read_text())
        with contextlib.suppress(psutil.NoSuchProcess):
            process = psutil.Process(job['pid']) if job['state'] == 'running' else None
            if process and str(tmp_path) in ' '.join(process.cmdline()):
                process.kill()


def until(asked, path, is_so):
    """Asks the server again and again until an answer is as awaited."""
    last, ends = None, time.monotonic() + PATIENCE
    while time.monotonic() < ends:
        last = asked.ask('GET', path)
        assert last['state'] != 'failed', last
        if is_so(last):
            return
        time.sleep(0.1)
    raise AssertionError(f'{path} is still {last}')


def first_events(command, cwd):
    """What a command that does not end by itself prints, as far as the first event of the run."""
    process = subprocess.Popen(
        ['bash', '-euo', 'pipefail', '-c', command], cwd=cwd, stdout=subprocess.PIPE, text=True, start_new_session=True
    )
    told = []
    for line in process.stdout:
        told.append(line)
        if line.startswith('data: ') and told[-2].startswith('event: run'):
            break
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    process.stdout.close()
    return told


def test_every_command_succeeds(served, tmp_path):
    asked = Client(served.address)
    preamble = PREAMBLE.replace(':8124/', f':{served.port}/')
    run = '/api/runs/my_rex'
    ready = {  # a reader waits here too, for what the run's state says
        f'{run}/sample': (run, lambda it: 'sample' in it['actions']),
        f'{run}/export ': (run, lambda it: it['state'] == 'finished'),
        f'{run}/generate/1/grid': (f'{run}/generate/1', lambda it: it['state'] == 'done'),
    }
    told = {}
    for command in COMMANDS:
        named = command.replace('$api', '/api').replace('"', ' ') + ' '
        for part, awaited in ready.items():
            if part in named:
                until(asked, *awaited)
        whole = f'{preamble}\n{command}'
        if 'ask -N' in command:
            told[command] = ''.join(first_events(whole, tmp_path))
            continue
        done = subprocess.run(
            ['bash', '-euo', 'pipefail', '-c', whole], cwd=tmp_path, capture_output=True, text=True, timeout=PATIENCE
        )
        assert done.returncode == 0, f'{command}\n{done.stdout}{done.stderr}'
        told[command] = done.stdout
    (events,) = (text for command, text in told.items() if 'ask -N' in command)
    assert json.loads(events.splitlines()[-1].removeprefix('data: '))['id'] == 'my_rex'
    (plan,) = (json.loads(text) for command, text in told.items() if command.endswith('$api/plan'))
    assert 'base: 1000 steps' in plan['plan']
    assert asked.ask('GET', f'{run}/settings')['base.steps'] == 600
    assert [one['name'] for one in asked.ask('GET', '/api/photos/rex')] == ['001.png', '002.png', '003.png']
    assert asked.ask('GET', f'{run}/exports')['jobs'][0]['command'].count('lora_kohya') == 2
    with Image.open(tmp_path / 'grid.png') as sheet:
        assert sheet.format == 'PNG' and sheet.width >= 8 * 16  # a row of 2 models x 4 images of 16 px
