"""What the checks find in the paper's photos, as experiments/photo_checks measured it.

Run with the folder of the paper's dataset: DREAMBOOTH_DATASET=<folder> python -m pytest -m slow tests/data
"""

import os
from pathlib import Path

import pytest

from dreambooth_jax.data.checked_photos import check_folder
from dreambooth_jax.data.photo_checks import Reading

DATASET = os.environ.get('DREAMBOOTH_DATASET')
pytestmark = [pytest.mark.slow, pytest.mark.skipif(not DATASET, reason='DREAMBOOTH_DATASET names no folder')]
RIGHT = {
    *((name, 'one background', None) for name in ('berry_bowl', 'red_cartoon', 'cat', 'dog6')),
    *(('cat2', 'bars', name) for name in ('00.jpg', '01.jpg', '04.jpg')),
    *(('dog8', 'bars', '02.jpg'), ('pink_sunglasses', 'bars', '04.jpg'), ('dog5', 'duplicate', '03.jpg')),
}
WRONG = {('red_cartoon', 'duplicate', '01.jpg')}


def test_photos_of_the_paper_have_the_warnings_that_were_measured():
    reading, found = Reading({'training': ((512, 512),)}), set()
    for folder in sorted(path for path in Path(DATASET).iterdir() if path.is_dir()):
        warnings = [one for one in check_folder(folder, reading).all_findings if one.severity != 'note']
        found |= {(folder.name, one.check, one.photo) for one in warnings}
    assert found == RIGHT | WRONG
