"""The part of the page that shows a run."""

import base64
import json
import re
import shutil

import pytest

from dreambooth_jax.data import provenance
from dreambooth_jax.evaluation import page_run
from dreambooth_jax.evaluation.embedded_images import Detail, EmbeddedImages
from tests.support import image_metadata, scored_runs


@pytest.fixture(scope='module')
def whole(tmp_path_factory):
    return scored_runs.run_folder(tmp_path_factory.mktemp('page_run') / 'dog')


@pytest.fixture
def run(whole, tmp_path):
    return shutil.copytree(whole, tmp_path / 'dog')


def embedded(**changed):
    detail = Detail(side=64, grid_side=64, grids=9, class_images=9, per_prompt=9, with_base=True)
    return EmbeddedImages(detail=detail._replace(**changed), limit=10**9)


def captions(markup):
    return re.findall(r'alt="([^"]+)"', markup)


def test_photos_and_class_images_are_shown(run):
    told = captions(page_run.trained_on(run, scored_runs.photos(), embedded(class_images=2)))
    assert told == [
        *(f'photo {i} of the subject, as the model saw it' for i in (1, 2, 3)),
        'class image a_dog_00000',
        'class image a_dog_00002',
    ]


def marks(markup):
    data = [base64.b64decode(text) for text in re.findall(r'base64,([^"]+)', markup)]
    return [image_metadata.iptc(one).get('DigitalSourceType') for one in data]


@pytest.mark.parametrize('photos', ['painted', 'folder', 'dataset'])
@pytest.mark.parametrize('class_images', ['generated', 'kept elsewhere', 'photos'])
def test_only_what_a_model_generated_is_marked_so(run, tmp_path, photos, class_images):
    settings = page_run.read_settings(run)
    if photos != 'painted':
        settings['data'] |= {'instance_dir': 'photos'} if photos == 'folder' else {'tfds': 'dreambench/dog'}
    if class_images != 'generated':
        settings['prior']['dir'] = str(shutil.copytree(run / 'prior', tmp_path / 'dogs'))
        (tmp_path / 'dogs' / 'manifest.json').write_text('{}')
    if class_images == 'photos':
        (tmp_path / 'dogs' / 'manifest.json').unlink()
    (run / 'config.json').write_text(json.dumps(settings))
    found = marks(page_run.trained_on(run, scored_runs.photos(), embedded(class_images=2)))
    of_photos = provenance.PAINTED if photos == 'painted' else None
    of_class = None if class_images == 'photos' else provenance.GENERATED
    assert found == [of_photos] * 3 + [of_class] * 2
    assert set(marks(page_run.samples(run, embedded()))) == {provenance.GENERATED}


def test_of_many_crops_some_are_shown(run):
    markup = page_run.trained_on(run, scored_runs.photos() * 20, embedded(class_images=1))
    assert len(captions(markup)) == 25 and '24 of 60.' in markup


def test_class_images_of_the_second_stage_and_of_a_folder_of_their_own_are_found(run, tmp_path):
    (run / 'prior' / 'super_resolution').mkdir()
    large = shutil.copy(run / 'prior' / 'a_dog_00001.png', run / 'prior' / 'super_resolution' / 'a_dog_00001.png')
    assert page_run.class_image_files(run) == [large]
    settings = page_run.read_settings(run)
    settings['prior']['dir'] = str(tmp_path / 'dogs')
    (run / 'config.json').write_text(json.dumps(settings))
    assert page_run.class_image_files(run) == []  # the folder is not there
    assert 'The run has none' in page_run.trained_on(run, [], embedded())
    shutil.copytree(run / 'prior', tmp_path / 'dogs', ignore=shutil.ignore_patterns('super_resolution'))
    assert [path.parent.name for path in page_run.class_image_files(run)] == ['dogs'] * 3


def test_grids_are_in_the_order_of_their_steps_and_the_last_is_shown(run):
    shutil.copy(run / 'samples' / 'base' / '000020.png', run / 'samples' / 'base' / '1000000.png')
    markup = page_run.samples(run, embedded())
    base, second = markup.split('Super-resolution stage</h3>')
    assert re.findall(r'data-step="(\d+)"( data-shown)?', base) == [
        ('20', ''),
        ('40', ''),
        ('60', ''),
        ('1000000', ' data-shown'),
    ]
    assert 'max="3" value="3"' in base and '<output>step 1000000</output>' in base and 'max="2"' in second
    few = page_run.samples(run, embedded(grids=2))
    assert re.findall(r'data-step="(\d+)"', few) == ['20', '1000000', '20', '60'] and '2 of 4 are shown' in few


def test_a_run_with_one_grid_has_no_slider_and_one_without_has_no_heading(run):
    for name in ('000020.png', '000040.png'):
        (run / 'samples' / 'base' / name).unlink()
    shutil.rmtree(run / 'samples' / 'super_resolution')
    markup = page_run.samples(run, embedded())
    assert '<input' not in markup and 'data-step="60" data-shown' in markup
    shutil.rmtree(run / 'samples')
    assert page_run.samples(run, embedded()) == ''


def test_numbers_that_belong_together_share_a_chart_and_others_are_folded(run):
    markup = page_run.curves(run)
    assert re.findall(r'aria-label="(.*?) over', markup) == ['Loss', 'Learning rate', 'gradient_norm'] * 2
    assert markup.count('<summary>1 more curve</summary>') == 2
    (run / 'metrics.jsonl').unlink()
    assert page_run.curves(run) == ''


def test_settings_tell_versions_encoders_and_config(run):
    markup = page_run.settings(run, scored_runs.scores_of(run))
    import jax

    for text in (f'jax <b>{jax.__version__}</b>', 'dino <b>a1b2c3</b>', 'sampler <b>ddim</b>', 'base: checkpoint 60'):
        assert text in markup
    assert '&quot;instance_prompt&quot;: &quot;a sks dog&quot;' in markup and 'best.json' not in markup
    (run / 'best.json').write_text('{"step": 40}')
    assert '{&quot;step&quot;: 40}' in page_run.settings(run, scored_runs.scores_of(run))
