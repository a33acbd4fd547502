"""A run goes on with the commit of the hub that it was begun with; the hub is a cache on this machine."""

import json
import shutil

import huggingface_hub
import pytest

from dreambooth_jax.config import ConfigError, DreamBoothConfig
from dreambooth_jax.finetune.pinned import read_pinned
from dreambooth_jax.training import run
from dreambooth_jax.weights import hub
from tests.support import tiny_pipelines

OLD, NEW = 'a' * 40, 'b' * 40
CONFIG = DreamBoothConfig(model='owner/model')


@pytest.fixture
def main(tmp_path, monkeypatch):
    """The file that says which commit is the newest; the tag v1 is the older one."""
    repository = tmp_path / 'hub' / 'models--owner--model'
    for commit in (OLD, NEW):
        shutil.copytree(tiny_pipelines.folder(), repository / 'snapshots' / commit)
    (repository / 'refs').mkdir()
    (repository / 'refs' / 'v1').write_text(OLD)
    (repository / 'refs' / 'main').write_text(OLD)
    monkeypatch.setattr(huggingface_hub.constants, 'HF_HUB_CACHE', str(tmp_path / 'hub'))
    monkeypatch.setattr(huggingface_hub.constants, 'HF_HUB_OFFLINE', True)
    monkeypatch.chdir(tmp_path)
    return repository / 'refs' / 'main'


def test_a_run_goes_on_with_the_commit_that_it_was_begun_with(main, tmp_path):
    workdir = tmp_path / 'run'
    begun, cascade = read_pinned(CONFIG, workdir)
    assert begun.model_revision == OLD == hub.commit_of(cascade.base.folder)
    assert begun.super_resolution_model_revision is None  # it lies inside the model's folder
    run.begin(begun, workdir)
    assert json.loads((workdir / 'config.json').read_text())['model_revision'] == OLD

    main.write_text(NEW)  # the model's owner uploads another
    again, cascade = read_pinned(CONFIG, workdir)
    assert again.model_revision == OLD == hub.commit_of(cascade.base.folder)
    run.begin(again, workdir)
    assert read_pinned(CONFIG, tmp_path / 'other')[0].model_revision == NEW


def test_a_branch_or_tag_that_is_asked_for_is_recorded_as_its_commit(main, tmp_path):
    workdir = tmp_path / 'run'
    main.write_text(NEW)
    tagged = DreamBoothConfig(model='owner/model', model_revision='v1')
    begun, _ = read_pinned(tagged, workdir)
    assert begun.model_revision == OLD
    run.begin(begun, workdir)
    (workdir / 'base' / 'checkpoints' / '1').mkdir(parents=True)  # until then settings may change
    run.begin(read_pinned(tagged, workdir)[0], workdir)
    moved, _ = read_pinned(DreamBoothConfig(model='owner/model', model_revision='main'), workdir)
    with pytest.raises(ConfigError, match=f"config.model_revision is '{NEW}' but .* was begun with '{OLD}'"):
        run.begin(moved, workdir)


def test_a_run_that_was_begun_without_a_record_goes_on_without_one(main, tmp_path):
    workdir = tmp_path / 'run'
    run.begin(CONFIG, workdir)
    again, _ = read_pinned(CONFIG, workdir)
    assert again == CONFIG
    run.begin(again, workdir)


def test_a_folder_has_no_commit(tmp_path):
    config = DreamBoothConfig(model=str(tiny_pipelines.folder()))
    assert read_pinned(config, tmp_path)[0] == config
