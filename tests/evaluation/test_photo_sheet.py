"""photos.html: every photo, its crops with their own pixels, and what was found."""

import base64
import io
import re

import numpy as np
import pytest
from PIL import Image

from dreambooth_jax.data.checked_photos import check_folder, verdict
from dreambooth_jax.data.photo_checks import Reading
from dreambooth_jax.evaluation import photo_sheet
from tests.support.made_photos import scene


@pytest.fixture
def sheet(tmp_path):
    """Writes the sheet of photos, of which one is wide, one too small, one broken, one cut by its mask."""
    folder = tmp_path / 'a <b> & "c"'
    folder.mkdir()
    scene(0, (400, 300)).save(folder / '1.png')
    scene(1, (200, 200)).save(folder / '2.png')
    (folder / '3.png').write_bytes(b'\x89PNG\r\n\x1a\n')
    scene(2, (512, 256)).save(folder / '4.png')
    mask = np.zeros((256, 512), np.uint8)
    mask[50:200, 10:200] = 255
    Image.fromarray(mask).save(folder / '4.mask.png')
    (folder / 'notes.pdf').write_bytes(b'%PDF-1.4 \x00')
    found = check_folder(folder, Reading({'base': ((64, 64),), 'super_resolution': ((256, 256),)}, crops=2))
    photo_sheet.write(tmp_path, [found], verdict([found]), 'steps: 7')
    return found, (tmp_path / photo_sheet.FILE).read_text('utf-8')


def embedded(text):
    """Alternative text -> its images."""
    found = {}
    for uri, caption in re.findall(r'<img src="data:image/webp;base64,([^"]+)" alt="([^"]+)"', text):
        found.setdefault(caption, []).append(np.asarray(Image.open(io.BytesIO(base64.b64decode(uri))).convert('RGB')))
    return found


def test_everything_that_was_found_is_said_and_escaped(sheet):
    found, text = sheet
    for finding in found.all_findings:
        for words in (finding.found, finding.advice):
            assert words.replace('&', '&amp;').replace('<', '&lt;').replace('>', '&gt;').replace('"', '&quot;') in text
    assert 'a &lt;b&gt; &amp; &quot;c&quot;' in text and '<b>' not in text.replace('<b>error', '').replace(
        '<b>warning', ''
    ).replace('<b>note', '')
    assert 'steps: 7' in text and 'training would refuse these photos' in text and 'notes.pdf: it is skipped' in text


def test_crops_have_the_pixels_of_training_and_photos_show_what_is_left_out(sheet):
    found, text = sheet
    images = embedded(text)
    wide = found.photos[0]
    base, second = images['1.png, crop 1']
    np.testing.assert_array_equal(base, wide.crops['base'][0].image)  # without loss, since it is small
    assert (
        second.shape == (256, 256, 3)
        and np.abs(second - wide.crops['super_resolution'][0].image.astype(int)).mean() < 6
    )
    assert len(images['1.png, crop 2']) == 2
    (whole,) = images['1.png']
    plain = np.asarray(scene(0, (400, 300)).resize(whole.shape[1::-1]), float)
    edge, middle = whole[:, :30].mean() / plain[:, :30].mean(), whole[:, 60:-60].mean() / plain[:, 60:-60].mean()
    assert edge < 0.45 and 0.9 < middle < 1.1


def test_a_better_crop_is_outlined(sheet):
    found, text = sheet
    (image,) = embedded(text)['4.png']
    assert found.photos[3].proposal is not None
    scale = image.shape[1] / 512
    left, top, right, bottom = (side * scale for side in found.photos[3].proposal)
    at = image[round((top + bottom) / 2), max(round(left), 0)].astype(int)
    assert np.abs(at - (255, 140, 0)).max() < 100


def test_photos_without_crops_are_there_too(sheet):
    found, text = sheet
    assert 'cannot be read' in text and '3.png' not in embedded(text)
    assert list(found.photos[1].crops) == ['base'] and '2.png' in embedded(text)


def test_the_page_may_load_nothing(sheet):
    _, text = sheet
    policy = re.search(r'Content-Security-Policy" content="([^"]*)"', text)[1].replace('&#x27;', "'")
    assert policy.startswith("default-src 'none'; img-src data:; style-src 'sha256-") and 'script' not in policy
    assert not re.search(r'(src|href)="(?!data:)', text)
