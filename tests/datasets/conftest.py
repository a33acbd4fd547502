"""A manual_dir in the layout of the paper's dataset, with two subjects and tiny images."""

import numpy as np
import pytest
from PIL import Image


def _noise(seed, width=24, height=20):
    return Image.fromarray(np.random.default_rng(seed).integers(0, 256, (height, width, 3), np.uint8))


@pytest.fixture
def manual_dir(tmp_path):
    folder = tmp_path / 'dreambooth' / 'dataset'
    for subject, names in {'dog': ('02.JPG', '00.jpg', '01.jpeg'), 'vase': ('00.png',)}.items():
        (folder / subject).mkdir(parents=True)
        for number, name in enumerate(names):
            _noise(number, width=24 + number).save(folder / subject / name)
    (folder / 'dog' / '.DS_Store').write_bytes(b'\0' * 9)
    (folder / 'dog' / 'notes.txt').write_text('from a trip')
    (folder / 'teapot').mkdir()
    (folder / 'references_and_licenses.txt').write_text('mine')
    return folder
