"""Models of every family are read, and a model of none is told which there are."""

import json

from dreambooth_jax.families.family import FAMILIES
from dreambooth_jax.families.reading import read_pipeline, read_second_stage
from tests.support import smallest_pipelines
from tests.support.reports import sentence_of


def test_a_model_of_no_family_is_told_all_that_there_are(tmp_path):
    (tmp_path / 'model_index.json').write_text(json.dumps({'_class_name': 'FluxKontextPipeline'}))
    said = sentence_of(read_pipeline, tmp_path)
    assert "_class_name is 'FluxKontextPipeline'; this package reads " in said
    assert all(family.class_name in said for family in FAMILIES)


def test_a_second_stage_is_read_without_what_it_shares_with_its_base():
    base = read_pipeline(smallest_pipelines.folder('pixels'), components=('text_encoder',))
    second = read_second_stage(base.super_resolution_folder, base)
    assert second.family.is_super_resolution and second.denoiser is not None and not second.text_encoders
