"""A whole run of train on two processes with two devices each, as on two hosts, and how they find each other."""

import functools
import importlib.util
import itertools
import socket

import jax
import numpy as np
import pytest
from PIL import Image

from dreambooth_jax.config import ConfigError
from dreambooth_jax.monitoring import metrics
from dreambooth_jax.system import ending
from dreambooth_jax.training import best_checkpoint, hosts
from dreambooth_jax.training.checkpoint import CheckpointError
from dreambooth_jax.training.hosts import Address
from dreambooth_jax.weights import files
from tests.conftest import XLA_FLAGS
from tests.programs.test_train import CONFIG, WEIGHTS
from tests.support import forked, made_certificates, script, smallest_pipelines, tiny_encoders

# Kind of pipeline -> what its settings need besides; the second stage on latents knows ten noise levels.
KINDS = {'pixels': '', 'latents': 'config.super_resolution.noise_level = (0, 9)'}
DEVICES_FLAG = '--xla_force_host_platform_device_count'
NUMBERS = itertools.count()  # of logs


@pytest.mark.parametrize(
    ('distributed', 'address', 'sentence'),
    [
        (False, Address(num_processes=2), '--num_processes is given but --distributed is not; give both or neither'),
        (
            True,
            Address('localhost:1', 2),
            '--coordinator_address is given but --process_id is not; give all three, or none where a cluster tells',
        ),
        (True, Address('localhost:1', 2, 2), '--process_id is 2 but --num_processes is 2; count from 0'),
    ],
)
def test_an_address_that_cannot_be_is_one_sentence(distributed, address, sentence):
    with pytest.raises(ConfigError) as error:
        hosts.join(distributed, address)
    assert str(error.value) == sentence


def test_processes_meet_where_they_are_told_or_where_the_cluster_says(monkeypatch):
    calls = []
    monkeypatch.setattr(jax.config, 'update', lambda *_: None)
    monkeypatch.setattr(jax.distributed, 'initialize', lambda **given: calls.append(given))
    hosts.join(True, Address('localhost:1', 2, 1))
    hosts.join(True)
    hosts.join(False)
    nothing = {'coordinator_address': None, 'num_processes': None, 'process_id': None}
    # The others may have to wait for an export of tens of GB.
    assert [call.pop('shutdown_timeout_seconds') for call in calls] == [24 * 3600] * 2
    assert calls == [{'coordinator_address': 'localhost:1', 'num_processes': 2, 'process_id': 1}, nothing]


def test_no_cluster_is_one_sentence(monkeypatch):
    def initialize(**_):
        raise ValueError('coordinator_address should be defined.')

    monkeypatch.setattr(jax.config, 'update', lambda *_: None)
    monkeypatch.setattr(jax.distributed, 'initialize', initialize)
    with pytest.raises(ConfigError) as error:
        hosts.join(True)
    assert str(error.value) == (
        '--distributed finds no cluster that tells where the processes meet (coordinator_address should be defined.); '
        'give --coordinator_address, --num_processes and --process_id'
    )


def test_processes_that_do_not_come_together_are_one_sentence(monkeypatch):
    def initialize(**_):
        raise jax.errors.JaxRuntimeError('DEADLINE_EXCEEDED: Barrier timed out.\nmore')

    monkeypatch.setattr(jax.config, 'update', lambda *_: None)
    monkeypatch.setattr(jax.distributed, 'initialize', initialize)
    with pytest.raises(ConfigError) as error:
        hosts.join(True)
    assert str(error.value) == (
        '--distributed: the processes of this run did not all come together in time (DEADLINE_EXCEEDED: Barrier timed '
        'out); start the same command on all hosts'
    )


RESET = jax.errors.JaxRuntimeError('UNKNOWN: Gloo AllGather failed: Connection reset by peer\nmore')


@pytest.fixture
def ended(monkeypatch):
    """How a process of two was ended: [(exit code, last words)]."""
    calls = []
    monkeypatch.setattr(ending, 'end', lambda *given: calls.append(given))
    monkeypatch.setattr(jax.distributed, 'is_initialized', lambda: True)
    monkeypatch.setattr(jax, 'process_count', lambda: 2)
    return calls


@pytest.mark.parametrize('wrapped', [False, True])
def test_a_process_that_loses_another_ends_at_once_with_a_sentence(wrapped, ended):
    with hosts.together():
        if wrapped:
            raise CheckpointError('checkpoint 2 could not be written') from RESET
        raise RESET
    assert ended == [
        (
            1,
            'another process of this run has ended or does not answer (UNKNOWN: Gloo AllGather failed: Connection '
            'reset by peer); what it says itself tells why. Start the same command on all hosts again: it goes on from '
            'the last checkpoint',
        )
    ]


@pytest.mark.parametrize('error', [ValueError('no'), jax.errors.JaxRuntimeError('INTERNAL: no'), CheckpointError('no')])
def test_other_errors_of_a_process_stay_what_they_are(error, ended):
    with pytest.raises(type(error)) as caught, hosts.together():
        raise error
    assert caught.value is error and ended == []


def test_a_process_alone_has_nobody_to_lose(ended, monkeypatch):
    monkeypatch.setattr(jax, 'process_count', lambda: 1)
    with pytest.raises(jax.errors.JaxRuntimeError), hosts.together():
        raise RESET
    assert ended == []


def start(config, run, devices, *arguments, module='dreambooth_jax.train'):
    given = {**XLA_FLAGS, DEVICES_FLAG: devices}
    flags = ' '.join(f'{name}={value}' for name, value in given.items() if value is not None)
    log = run.with_name(f'{run.name}.{next(NUMBERS)}.log')
    words = [f'--config={config}', f'--workdir={run}', *arguments]
    return forked.start(module, words, environment=script.environment(XLA_FLAGS=flags), log=log), log


def end(*started):
    try:
        codes = [process.wait(900) for process, _ in started]
        assert codes == [0] * len(started), '\n'.join(log.read_text('utf-8', 'replace') for _, log in started)
    finally:
        for process, _ in started:
            process.kill()


@pytest.fixture(scope='module')
def on_one_device(tmp_path_factory):
    """kind of smallest_pipelines -> (settings file, the folder of a whole run on one device), made on first use."""

    @functools.cache
    def run(kind='pixels'):
        folder = tmp_path_factory.mktemp('whole_runs')
        photos = folder / 'photos'
        photos.mkdir()
        rng = np.random.default_rng(0)
        for name in ('1.png', '2.png', '3.png'):
            Image.fromarray(rng.integers(0, 256, (40, 40, 3), np.uint8)).save(photos / name)
        config = folder / 'config.py'
        text = CONFIG.format(model=str(smallest_pipelines.folder(kind)), photos=str(photos))
        scores = tiny_encoders.settings(folder / 'encoders')
        config.write_text(text.replace('    return config', f'{scores}    {KINDS[kind]}\n    return config'))
        end(start(config, folder / 'one', 1))
        return config, folder / 'one'

    return run


def files_of(run):
    """What a run leaves, apart from the innards of checkpoints and files that are named after the time."""
    found = {path.relative_to(run).as_posix() for path in run.rglob('*') if path.is_file()}
    return {name for name in found if '/checkpoints/' not in name and 'tfevents' not in name}


def assert_same_run(run, other, prior=None):
    """The same losses, images within 2/255, scores within 1e-4 with the same best checkpoint, and the same files."""
    assert (files_of(run) | {f'prior/{path.name}' for path in (prior or run / 'prior').iterdir()}) == files_of(other)
    images = sorted(path.relative_to(other) for path in other.rglob('*.png'))
    assert any('samples' in path.parts for path in images) and any('prior' in path.parts for path in images)
    for path in images:
        place = prior / path.relative_to('prior') if prior and path.parts[0] == 'prior' else run / path
        ours, theirs = (np.asarray(Image.open(one), int) for one in (place, other / path))
        assert np.abs(ours - theirs).max() <= 2, path
    for stage in ('base', 'super_resolution'):
        ours, theirs = ([line['loss'] for line in metrics.read(one, stage) if 'loss' in line] for one in (run, other))
        np.testing.assert_allclose(ours, theirs, rtol=1e-5)
    ours, theirs = (best_checkpoint.read(one) for one in (run, other))
    assert ours['step'] == theirs['step'] and ours['measured_by'] == theirs['measured_by']
    assert [one['step'] for one in ours['candidates']] == [one['step'] for one in theirs['candidates']] == [2, 4]
    measured = ([*found['before'], *found['candidates']] for found in (ours, theirs))
    for one, two in zip(*measured, strict=True):
        cosines = [name for name in one if name in ('dino', 'clip_t', 'pres', 'ceiling', 'clip_t_of_class')]
        assert {name: one[name] for name in cosines} == pytest.approx({name: two[name] for name in cosines}, abs=1e-4)
    for name in WEIGHTS:
        ours, theirs = (files.read_tensors(one / 'model' / name) for one in (run, other))
        assert ours.keys() == theirs.keys()
        assert max(np.abs(ours[key] - theirs[key]).max() for key in ours) < 1e-3


@pytest.mark.slow
@pytest.mark.parametrize('mode', ['pmap', 'fsdp'])
@pytest.mark.parametrize('kind', KINDS)
def test_eight_devices_in_any_order_train_what_one_trains(kind, mode, on_one_device, tmp_path):
    config, alone = on_one_device(kind)
    settings = [f'--config.parallel.mode={mode}', '--config.parallel.fsdp_min_bytes=128']
    end(start(config, tmp_path / 'run', 8, *settings, module='tests.support.permuted_train'))
    assert_same_run(tmp_path / 'run', alone)


@pytest.mark.slow
def test_a_cpu_that_generates_as_two_devices_trains_what_one_trains(on_one_device, tmp_path):
    config, alone = on_one_device()
    end(start(config, tmp_path / 'run', None, '--config.parallel.cpu_devices=2'))
    assert_same_run(tmp_path / 'run', alone)


def two_processes(config, folder, mode, *arguments):
    """Trains in <folder>/run on two processes with two devices each, and class images in a folder of each of them."""
    with socket.socket() as free:
        free.bind(('localhost', 0))
        address = f'localhost:{free.getsockname()[1]}'
    together = [
        start(
            config,
            folder / 'run',
            2,
            f'--config.parallel.mode={mode}',
            '--config.parallel.fsdp_min_bytes=128',
            f'--config.prior.dir={folder / f"prior_{number}"}',
            '--distributed',
            f'--coordinator_address={address}',
            '--num_processes=2',
            f'--process_id={number}',
            *arguments,
        )
        for number in range(2)
    ]
    end(*together)


@pytest.mark.slow
@pytest.mark.parametrize('mode', ['pmap', 'fsdp'])
def test_two_processes_train_what_one_trains_without_a_shared_folder_of_class_images(mode, on_one_device, tmp_path):
    config, alone = on_one_device()
    two_processes(config, tmp_path, mode)
    assert not (tmp_path / 'prior_1').exists()
    assert_same_run(tmp_path / 'run', alone, tmp_path / 'prior_0')


@pytest.mark.slow
def test_two_processes_sample_with_adapters_what_one_samples(on_one_device, tmp_path):
    """Samples are generated with the sharded kernels that the training has placed, and adapters beside them.

    The first process signs them; the run of one process does not.
    """
    config, _ = on_one_device()
    signing = []
    if importlib.util.find_spec('c2pa') is not None:
        made = made_certificates.make(tmp_path)
        signing = [f'--config.samples.c2pa_certificate={made.certificate}', f'--config.samples.c2pa_key={made.key}']
    settings = ['--config.lora.rank=2', '--config.super_resolution.steps=0']
    end(start(config, tmp_path / 'alone', 1, *settings))
    two_processes(config, tmp_path, 'fsdp', *settings, *signing)
    grids = [sorted((tmp_path / run / 'samples').rglob('*.png')) for run in ('run', 'alone')]
    assert len(grids[0]) == len(grids[1]) > 2
    for ours, theirs in zip(*grids, strict=True):
        assert np.abs(np.asarray(Image.open(ours), int) - np.asarray(Image.open(theirs), int)).max() <= 2, ours
    losses = [
        [line['loss'] for line in metrics.read(tmp_path / run, 'base') if 'loss' in line] for run in ('run', 'alone')
    ]
    np.testing.assert_allclose(*losses, rtol=1e-5)
    c2pa = pytest.importorskip('c2pa')
    assert {c2pa.Reader(str(grid)).get_validation_state() for grid in grids[0]} == {'Valid'}
