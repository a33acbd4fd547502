"""A model is known by its weights, its noise schedules with what it predicts, and its tokenizers; not by its place."""

import dataclasses
import shutil

from dreambooth_jax.families import reading
from dreambooth_jax.weights.identity import identity, scheduler_hash
from tests.support import smallest_pipelines, tiny_pipelines


def with_params(pipeline, **params):
    networks = {name: dataclasses.replace(getattr(pipeline, name), params=value) for name, value in params.items()}
    return dataclasses.replace(pipeline, **networks)


def test_the_hash_is_of_values_names_and_shapes():
    base = tiny_pipelines.base()
    assert base.weights_hash == tiny_pipelines.base().weights_hash
    name, value = next(iter(base.unet.params.items()))
    for changed in ({name: value + 1e-3}, {name: value[None]}):
        assert with_params(base, unet={**base.unet.params, **changed}).weights_hash != base.weights_hash
    other = with_params(base, text_encoder=tiny_pipelines.base(1).text_encoder.params)
    assert other.weights_hash != base.weights_hash


def test_a_model_is_the_same_in_another_folder_and_another_with_another_schedule_or_tokenizer(tmp_path):
    before = identity(reading.read_pipeline(smallest_pipelines.folder('pixels')))
    assert before.keys() == {'weights', 'scheduler', 'tokenizer'}
    moved = tmp_path / 'moved'
    shutil.copytree(smallest_pipelines.folder('pixels'), moved)
    (moved / 'tokenizer' / 'README.md').write_text('of no use to the tokenizer')
    assert identity(reading.read_pipeline(moved)) == before
    overridden = identity(reading.read_pipeline(moved, prediction_type='v_prediction'))
    assert {part for part in before if overridden[part] != before[part]} == {'scheduler'}
    path = next((moved / 'tokenizer').glob('*.json'))
    path.write_text(path.read_text() + ' ')
    after = identity(reading.read_pipeline(moved))
    assert {part for part in before if after[part] != before[part]} == {'tokenizer'}


def test_the_schedule_of_the_low_images_noise_counts_and_who_wrote_the_file_does_not():
    second = tiny_pipelines.super_resolution()
    noising = {**second.image_noising_scheduler, 'beta_end': 0.5}
    assert scheduler_hash(dataclasses.replace(second, image_noising_scheduler=noising)) != scheduler_hash(second)
    written = {**dict(reversed(second.scheduler.items())), '_diffusers_version': '0.1'}
    assert scheduler_hash(dataclasses.replace(second, scheduler=written)) == scheduler_hash(second)
