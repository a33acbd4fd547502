"""check_photos from the command line: findings as lines, the sheet, the exit code."""

import json

import pytest

from tests.support import marked_files
from tests.support.made_photos import scene


@pytest.fixture
def folder(tmp_path):
    (tmp_path / 'photos').mkdir()
    for number in range(4):
        scene(number).save(tmp_path / 'photos' / f'{number}.png')
    return tmp_path / 'photos'


def config_file(tmp_path, **settings):
    lines = ''.join(f'    config.{name} = {value!r}\n' for name, value in settings.items())
    path = tmp_path / 'config.py'
    path.write_text(
        'from dreambooth_jax.config import DreamBoothConfig, to_config_dict\n\n\ndef get_config():\n'
        f'    config = to_config_dict(DreamBoothConfig())\n{lines}    return config\n'
    )
    return path


def test_good_photos_end_with_0_and_nothing_is_written(program, folder, tmp_path):
    before = sorted(tmp_path.rglob('*'))
    ended = program('check_photos', f'--photos={folder}', '--resolution=256')
    assert (ended.code, ended.error) == (0, '')
    assert ended.out.splitlines() == [
        f'{folder}: 4 photos',
        'steps: give --config to see how often its steps show each photo',
        'nothing found: these photos can be trained on',
    ]
    assert sorted(tmp_path.rglob('*')) == before


def test_an_error_ends_with_1_and_the_report_is_written(program, folder, tmp_path):
    marked_files.marked(folder / '7.jpg')
    ended = program('check_photos', f'--photos={folder}', '--resolution=256', f'--output={tmp_path / "out"}')
    assert (ended.code, ended.error) == (1, '')
    lines = ended.out.splitlines()
    assert lines[1].startswith('  error: 7.jpg: it is marked "do not train" (IPTC: plus:DataMining is DMI-PROHIBITED')
    assert lines[2].startswith('  error: 7.jpg: it is 48 x 40 pixels, smaller than the resolution 256; ')
    assert lines[-3] == '2 errors: training would refuse these photos'
    assert lines[-2:] == [f'{tmp_path}/out/photos.html', f'{tmp_path}/out/photos.json']
    found = json.loads((tmp_path / 'out' / 'photos.json').read_text('utf-8'))
    assert found['verdict'] == lines[-3] and found['steps'] == lines[-4]
    (subject,) = found['subjects']
    assert len(subject['photos']) == 5
    assert [one['check'] for one in subject['findings']] == ['marked', 'too small']
    assert '7.jpg' in (tmp_path / 'out' / 'photos.html').read_text('utf-8')


def test_without_a_config_the_crops_have_512_px(program, folder):
    ended = program('check_photos', f'--photos={folder}')
    assert ended.code == 1 and 'smaller than the resolution 512' in ended.out


def test_settings_say_which_photos_how_large_and_how_often(program, folder, tmp_path):
    words = {'data.instance_prompt': 'a sks dog', 'data.class_prompt': 'a dog', 'data.resolution': 256}
    config = config_file(tmp_path, model='a/model', **words, **{'base.steps': 100})
    ended = program('check_photos', f'--config={config}', f'--config.data.instance_dir={folder}')
    assert (ended.code, ended.error) == (0, '')
    assert ended.out.splitlines()[1].startswith('steps: 100 of the base stage with 1 of the photos each, as set')
    again = program('check_photos', f'--config={config}', f'--photos={folder}')
    assert again.out == ended.out
    smaller = program('check_photos', f'--config={config}', f'--photos={folder}', '--resolution=400')
    assert smaller.code == 1 and 'smaller than the resolution 400' in smaller.out


def test_consent_makes_a_mark_a_note(program, folder, tmp_path):
    packet = marked_files.xmp(marked_files.mining('DMI-PROHIBITED'))
    scene(7).save(folder / '7.jpg', quality=95, xmp=packet)
    words = {'data.instance_prompt': 'a sks dog', 'data.class_prompt': 'a dog', 'data.resolution': 256}
    config = config_file(tmp_path, model='a/model', **words)
    assert program('check_photos', f'--config={config}', f'--photos={folder}').code == 1
    ended = program('check_photos', f'--config={config}', f'--photos={folder}', '--config.data.consent=mine')
    assert ended.code == 0 and 'config.data.consent says: mine' in ended.out


def test_an_encoder_tells_subjects_apart(program, folder, monkeypatch):
    monkeypatch.setattr('dreambooth_jax.data.photo_checks.OTHER_FEATURES', -1)
    ended = program('check_photos', f'--photos={folder}', '--resolution=256', '--encoder=storybook-dino')
    assert ended.code == 0 and "the encoder's features of it are unlike those of the others" in ended.out


@pytest.mark.parametrize(
    ('arguments', 'sentence'),
    [
        ([], 'neither --photos nor --config is given; give the folder of the photos, or a settings file'),
        (['--photos=nowhere'], 'the folder nowhere does not exist; create it and put images ('),
        (['--photos=photos', '--resolution=4'], 'flag --resolution=4: 4 is not integer >= 8 (--help lists the flags)'),
    ],
)
def test_wrong_flags_are_one_sentence(program, arguments, sentence):
    ended = program('check_photos', *arguments)
    assert ended.code == 1 and ended.out == '' and ended.error.startswith(sentence) and '\n' not in ended.error.strip()


def test_photos_of_several_subjects_are_those_of_the_settings(program, folder, tmp_path):
    one = {'instance_dir': str(folder), 'instance_prompt': 'a sks dog', 'class_prompt': 'a dog'}
    config = config_file(tmp_path, **{'data.subjects': (one, one)})
    ended = program('check_photos', f'--config={config}', '--resolution=256')
    assert ended.code == 0 and ended.out.count(f'{folder}: 4 photos') == 2
    refused = program('check_photos', f'--config={config}', f'--photos={folder}')
    assert (refused.code, refused.error) == (
        1,
        '--photos is given but --config has several subjects; leave --photos out to check them all',
    )
