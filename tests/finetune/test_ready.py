"""What is read before a run begins: all of it, and in the order in which the run began."""

import dataclasses
import shutil

import huggingface_hub
import jax
import numpy as np
import pytest
from PIL import Image

from dreambooth_jax.config import (
    BaseConfig,
    ConfigError,
    DataConfig,
    DreamBoothConfig,
    LoraConfig,
    PriorConfig,
    RunSamplesConfig,
)
from dreambooth_jax.data import provenance
from dreambooth_jax.data.content_credentials import CredentialsError
from dreambooth_jax.data.images import ImageError
from dreambooth_jax.finetune import ready
from dreambooth_jax.finetune.extension import Extension
from dreambooth_jax.system import cuda
from dreambooth_jax.training import run
from tests.support import made_certificates, marked_files, smallest_pipelines
from tests.support.written_runs import save


@pytest.fixture
def config(tmp_path):
    for folder, count in (('photos', 2), ('class', 3)):
        (tmp_path / folder).mkdir()
        for number in range(count):
            image = np.random.default_rng(number).integers(0, 256, (24, 24, 3), np.uint8)
            Image.fromarray(image).save(tmp_path / folder / f'{number}.png')
    return DreamBoothConfig(
        model=str(smallest_pipelines.folder('pixels')),
        super_resolution_model='none',
        data=DataConfig(instance_dir=str(tmp_path / 'photos'), instance_prompt='a sks dog', class_prompt='a dog'),
        prior=PriorConfig(dir=str(tmp_path / 'class')),
        base=BaseConfig(steps=2),
    )


def test_everything_is_there_and_nothing_is_written(config, tmp_path):
    found = ready.read(config, tmp_path / 'run')
    assert found.config == config and found.extension == Extension()
    assert [len(group.images) for group in found.instance['base']] == [2]
    assert found.class_photos == ['0.png', '1.png', '2.png']
    assert found.original.base.components.keys() == found.cascade.base.components.keys()
    assert not (tmp_path / 'run').exists()


def test_the_settings_say_the_commit_of_the_model_of_the_samples(config, tmp_path, monkeypatch):
    repository, commit = tmp_path / 'hub' / 'models--owner--other', 'a' * 40
    shutil.copytree(smallest_pipelines.folder('pixels'), repository / 'snapshots' / commit)
    (repository / 'refs').mkdir()
    (repository / 'refs' / 'main').write_text(commit)
    monkeypatch.setattr(huggingface_hub.constants, 'HF_HUB_CACHE', str(tmp_path / 'hub'))
    monkeypatch.setattr(huggingface_hub.constants, 'HF_HUB_OFFLINE', True)
    monkeypatch.chdir(tmp_path)
    samples = dataclasses.replace(config.samples, model='owner/other')
    config = dataclasses.replace(config, samples=samples, lora=LoraConfig(rank=1))
    assert ready.read(config, tmp_path / 'run').config.samples.model_revision == commit


@pytest.mark.parametrize('folder', ['photos', 'class'])
def test_marked_photos_are_refused_unless_there_is_consent(config, folder, tmp_path):
    path = marked_files.marked(tmp_path / folder / '7.jpg')
    with pytest.raises(ImageError) as error:
        ready.read(config, tmp_path / 'run')
    assert str(error.value).startswith(f'{path} is marked "do not train" (IPTC: plus:DataMining is DMI-PROHIBITED')
    allowed = dataclasses.replace(config, data=dataclasses.replace(config.data, consent='mine, my own photo'))
    assert ready.read(allowed, tmp_path / 'run').config.data.consent == 'mine, my own photo'


def test_the_certificate_is_tried_before_anything_is_read(config, tmp_path, monkeypatch):
    c2pa = pytest.importorskip('c2pa')
    assert ready.read(config, tmp_path / 'run').sign is None
    made = made_certificates.make(tmp_path)
    signed = dataclasses.replace(config, samples=made_certificates.settings(made))
    provenance.save(np.zeros((8, 8, 3), np.uint8), tmp_path / 'x.png')
    ready.read(signed, tmp_path / 'run').sign(tmp_path / 'x.png')
    assert c2pa.Reader(str(tmp_path / 'x.png')).get_validation_state() == 'Valid'
    made_certificates.make(tmp_path, expired=True)
    monkeypatch.setattr(ready.pinned, 'read_pinned', lambda *_: 1 / 0)
    with pytest.raises(CredentialsError, match=r'not valid at time of signing\); .*, or set both to None$'):
        ready.read(signed, tmp_path / 'run')
    assert not (tmp_path / 'run').exists()


def test_a_host_that_writes_nothing_needs_no_certificate(config, tmp_path, monkeypatch):
    files = {'c2pa_certificate': 'is_not_here.pem', 'c2pa_key': 'is_not_here.pem'}
    signed = dataclasses.replace(config, samples=RunSamplesConfig(**files))
    monkeypatch.setattr(jax, 'process_index', lambda: 1)
    assert ready.read(signed, tmp_path / 'run').sign is None


def test_a_begun_run_keeps_its_order_and_refuses_other_photos(config, tmp_path):
    begun = ready.read(config, tmp_path / 'run')
    run.begin(config, tmp_path / 'run', begun.inputs)
    save(tmp_path / 'run', 'base', [2], {'unet': {'kernel': np.ones((2, 2), np.float32)}})
    (tmp_path / 'class' / '0.png').rename(tmp_path / 'class' / '9.png')
    assert ready.read(config, tmp_path / 'run').class_photos == ['9.png', '1.png', '2.png']
    assert ready.read(config, tmp_path / 'run', more=3).config.base.steps == 5
    (tmp_path / 'photos' / '1.png').unlink()
    with pytest.raises(ConfigError, match='data.instance_dir is .* does not hold what'):
        ready.read(config, tmp_path / 'run')


def test_bfloat16_is_refused_on_cards_that_have_none(config, tmp_path, monkeypatch):
    monkeypatch.setattr(cuda, 'capability', lambda: (7, 5))
    assert ready.read(config, tmp_path / 'run').config == config
    half = dataclasses.replace(config, parallel=dataclasses.replace(config.parallel, dtype='bfloat16'))
    with pytest.raises(ConfigError) as raised:
        ready.read(half, tmp_path / 'run')
    assert str(raised.value) == (
        "config.parallel.dtype is 'bfloat16', in which cards of compute capability 7.5 cannot multiply; set it to "
        "'auto' or 'float32'"
    )
