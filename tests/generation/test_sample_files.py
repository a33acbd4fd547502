"""The files of generated images and the sheet of them."""

import numpy as np
from PIL import Image

from dreambooth_jax.generation import sample_files
from dreambooth_jax.generation.cascade import Images
from dreambooth_jax.generation.options import SamplingOptions
from dreambooth_jax.generation.origin import Model, Origin
from tests.support import image_metadata

OPTIONS = SamplingOptions(steps=3, guidance_scale=2.5, sampler='ddim', seed=4)
ORIGIN = Origin(options=OPTIONS, base=Model('one', 'ab'), super_resolution=Model('two', 'cd'))
PROMPTS = ['a dog', 'a cat, asleep']


def images(*sides):
    stages = [np.random.default_rng(side).integers(0, 256, (4, side, side, 3), np.uint8) for side in sides]
    return Images(*stages, *[None] * (2 - len(stages)))


def test_every_image_and_the_sheet_say_where_they_come_from(tmp_path):
    made = images(8, 16)
    sample_files.write(made, PROMPTS, tmp_path / 'new' / 'out', ORIGIN)
    files = sorted((tmp_path / 'new' / 'out').rglob('*.png'))
    names = ['000_00.png', '000_01.png', '001_00.png', '001_01.png']
    folder = tmp_path / 'new' / 'out'
    assert [str(file.relative_to(folder)) for file in files] == [
        *names,
        *(f'base/{name}' for name in names),
        'grid.png',
    ]
    assert all(map(image_metadata.is_marked, files))
    for index, name in enumerate(names):
        for path, pixels, second in (
            (folder / name, made.super_resolution, 'two'),
            (folder / 'base' / name, made.base, None),
        ):
            np.testing.assert_array_equal(np.asarray(Image.open(path)), pixels[index])
            told = image_metadata.parameters(path)
            assert (told['Prompt'], told['Image number']) == (PROMPTS[index // 2], str(index % 2))
            assert (told['Model'], told['Model hash'], told['Seed']) == ('one', 'ab', '4')
            assert told.get('Super-resolution model') == second
    assert image_metadata.parameters(folder / 'grid.png')['Prompt'] == '\n'.join(PROMPTS)


def test_one_stage_has_one_folder_and_files_are_equal_again(tmp_path):
    for name in ('one', 'two'):
        sample_files.write(images(8), PROMPTS, tmp_path / name, ORIGIN)
    read = [{path.name: path.read_bytes() for path in (tmp_path / name).iterdir()} for name in ('one', 'two')]
    assert read[0] == read[1] and len(read[0]) == 5


def test_with_the_mark_alone_files_have_that(tmp_path):
    sample_files.write(images(8), PROMPTS, tmp_path, Origin(options=OPTIONS, metadata='mark'))
    for path in tmp_path.iterdir():
        assert image_metadata.is_marked(path) and list(image_metadata.iptc(path.read_bytes())) == ['DigitalSourceType']
        assert image_metadata.parameters(path) == {} and b'dog' not in path.read_bytes()


def test_every_file_is_signed_before_it_has_its_name(tmp_path):
    signed = []

    def sign(path):
        assert path.is_file() and path.name.startswith('.')
        signed.append(path.name)
        path.write_bytes(path.read_bytes() + b'signed')

    sample_files.write(images(8, 16), PROMPTS, tmp_path, ORIGIN, sign)
    files = list(tmp_path.rglob('*.png'))
    assert len(files) == len(signed) == 9 and all(path.read_bytes().endswith(b'signed') for path in files)
