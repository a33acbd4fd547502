"""A run goes on with the commit of the hub that it was begun with; the hub is a cache on this machine."""

import dataclasses
import json
import shutil

import huggingface_hub
import pytest

from dreambooth_jax.config import ConfigError, DreamBoothConfig
from dreambooth_jax.finetune.pinned import read_pinned, with_commit_of_samples
from dreambooth_jax.generation.cascade import Cascade
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


def with_samples(**samples):
    return dataclasses.replace(CONFIG, samples=dataclasses.replace(CONFIG.samples, **samples))


def test_the_model_of_the_samples_goes_on_with_its_commit_too(main, tmp_path):
    workdir, asked = tmp_path / 'run', with_samples(model='owner/model', model_revision='v1')
    main.write_text(NEW)
    begun, _ = read_pinned(asked, workdir)
    sampled_on = Cascade.load('owner/model', revisions=(asked.samples.model_revision, None))
    begun = with_commit_of_samples(begun, sampled_on)
    assert (begun.model_revision, begun.samples.model_revision) == (NEW, OLD)
    run.begin(begun, workdir)
    assert json.loads((workdir / 'config.json').read_text())['samples']['model_revision'] == OLD

    again, _ = read_pinned(with_samples(model='owner/model'), workdir)
    assert again.samples.model_revision == OLD
    other, _ = read_pinned(with_samples(model='owner/other'), workdir)
    assert other.samples.model_revision is None
    asked, _ = read_pinned(with_samples(model='owner/model', model_revision='main'), workdir)
    assert asked.samples.model_revision == 'main'
    of_folder = Cascade.load(tiny_pipelines.folder())
    for without in (None, of_folder):
        assert with_commit_of_samples(again, without) == again


def test_a_folder_has_no_commit(tmp_path):
    config = DreamBoothConfig(model=str(tiny_pipelines.folder()))
    assert read_pinned(config, tmp_path)[0] == config
