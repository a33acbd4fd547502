"""What the files of generated images say of themselves, read back by other code than wrote it."""

import dataclasses
import io
import re
import typing
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from dreambooth_jax.config import Metadata
from dreambooth_jax.data import provenance
from dreambooth_jax.data.decode import decode_image
from dreambooth_jax.data.images import read_image
from dreambooth_jax.data.provenance import AddedFile, Facts
from tests.support import image_metadata
from tests.support.image_metadata import GENERATED, PAINTED

FACTS = Facts(
    prompt='a sks dog',
    steps=25,
    sampler='dpmsolver++',
    guidance_scale=7.5,
    seed=3,
    model='storybook',
    model_hash='0f' * 32,
    more={'Image number': 2},
)
PIXELS = np.random.default_rng(0).integers(0, 256, (24, 40, 3), np.uint8)


def written(facts=None, pixels=PIXELS, **options):
    file = io.BytesIO()
    provenance.save(pixels, file, facts, **options)
    return file.getvalue()


def test_the_mark_is_in_every_file_and_says_exactly_what_iptc_says():
    assert image_metadata.iptc(written()) == {'DigitalSourceType': GENERATED}
    assert image_metadata.iptc(written(source=provenance.PAINTED)) == {'DigitalSourceType': PAINTED}
    assert [name for name, _ in image_metadata.chunks(written())] == ['IHDR', 'iTXt', 'IDAT', 'IEND']


def test_pillow_reads_the_mark_too():
    image = Image.open(io.BytesIO(written()))
    assert GENERATED in image.text['XML:com.adobe.xmp'] and GENERATED.encode() in image.info['xmp']


def test_files_with_facts_say_what_they_were_generated_with():
    data = written(FACTS)
    assert image_metadata.read_parameters(image_metadata.texts(data)['parameters']) == {
        'Prompt': 'a sks dog',
        'Negative prompt': '',
        'Steps': '25',
        'Sampler': 'dpmsolver++',
        'CFG scale': '7.5',
        'Seed': '3',
        'Size': '40x24',
        'Model hash': '0f' * 32,
        'Model': 'storybook',
        'Image number': '2',
        'Version': f'dreambooth-jax {provenance.VERSION}',
    }
    assert image_metadata.iptc(data) == {
        'DigitalSourceType': GENERATED,
        'AISystemUsed': 'dreambooth-jax, model storybook',
        'AISystemVersionUsed': provenance.VERSION,
        'AIPromptInformation': 'a sks dog',
    }


TEXTS = [
    'a dog, a cat: both, "asleep"',
    'it\'s <b>bold</b> & back\\slash \\" {x}',
    'one\ntwo\n\nfour',
    'ein süßer Hund, 犬, 🐕',
    'CFG scale: 9, Steps: 3',
    'ends with a colon:',
    '"quoted"',
]


@pytest.mark.parametrize('text', TEXTS)
def test_any_prompt_comes_back_as_it_was(text):
    data = written(dataclasses.replace(FACTS, prompt=text, negative_prompt=text))
    read = image_metadata.read_parameters(image_metadata.texts(data)['parameters'])
    assert read['Prompt'] == read['Negative prompt'] == text and read['Seed'] == '3'
    assert image_metadata.iptc(data)['AIPromptInformation'] == f'{text}\nNegative prompt: {text}'
    assert image_metadata.iptc(data)['DigitalSourceType'] == GENERATED
    assert Image.open(io.BytesIO(data)).text['parameters'] == image_metadata.texts(data)['parameters']


@pytest.mark.parametrize('text', [text for text in TEXTS if text != 'CFG scale: 9, Steps: 3'])
def test_any_value_comes_back_as_it_was(text):
    added = [AddedFile(text.replace('\n', ' '), 'ab' * 32, 0.8), AddedFile('other', 'cd' * 32, -1.0)]
    facts = dataclasses.replace(FACTS, model=text, adapters=added, embeddings=[AddedFile('rex', 'ef' * 32)])
    data = written(facts)
    read = image_metadata.read_parameters(image_metadata.texts(data)['parameters'])
    name = added[0].name
    assert read['Model'] == text
    assert read['Lora hashes'] == f'{name}: {"ab" * 32}, other: {"cd" * 32}'
    assert read['Lora strengths'] == f'{name}: 0.8, other: -1'
    assert read['TI hashes'] == f'rex: {"ef" * 32}'
    assert image_metadata.iptc(data)['AISystemUsed'] == f'dreambooth-jax, model {text}'


def test_the_text_is_plain_where_that_is_enough_and_else_in_utf_8():
    kinds = {
        prompt: [name for name, content in image_metadata.chunks(written(facts)) if content.startswith(b'parameters')]
        for prompt in ('a dog', 'é')
        for facts in [dataclasses.replace(FACTS, prompt=prompt)]
    }
    assert kinds == {'a dog': ['tEXt'], 'é': ['iTXt']}  # ComfyUI takes the plain one for UTF-8


def test_what_no_file_can_hold_is_replaced():
    data = written(dataclasses.replace(FACTS, prompt='a\0b\x1bc\ud800d\re'))
    assert image_metadata.iptc(data)['AIPromptInformation'] == 'a\ufffdb\ufffdc\ufffdd\re'
    read = image_metadata.read_parameters(image_metadata.texts(data)['parameters'])
    assert read['Prompt'] == 'a\ufffdb\ufffdc\ufffdd\re' and read['Seed'] == '3'


def test_what_is_not_known_is_left_out():
    facts = Facts(prompt='', steps=1, sampler='ddim', guidance_scale=1.0, seed=0, more={'Image number': None})
    text = image_metadata.texts(written(facts))['parameters']
    assert text == (
        '\nNegative prompt: \nSteps: 1, Sampler: ddim, CFG scale: 1, Seed: 0, Size: 40x24, Version: dreambooth-jax '
        + provenance.VERSION
    )
    assert image_metadata.iptc(written(facts))['AISystemUsed'] == 'dreambooth-jax'


def test_equal_images_are_equal_files_and_pixels_are_what_they_were(tmp_path):
    assert written(FACTS) == written(FACTS) and written(FACTS) != written()
    (tmp_path / 'x.png').write_bytes(written(FACTS))
    np.testing.assert_array_equal(np.asarray(decode_image(tmp_path / 'x.png')), PIXELS)
    (tmp_path / 'plain.png').write_bytes(b'')
    Image.fromarray(PIXELS).save(tmp_path / 'plain.png')
    read = [read_image(tmp_path / name, 24) for name in ('x.png', 'plain.png')]
    np.testing.assert_array_equal(*read)


@pytest.mark.parametrize('format', ['WEBP', 'JPEG'])
def test_other_formats_have_the_mark(format):
    data = written(FACTS, format=format)
    image = Image.open(io.BytesIO(data))
    assert GENERATED.encode() in image.info['xmp'] and b'a sks dog' in image.info['xmp'] and image.size == (40, 24)
    if format == 'WEBP':
        assert image_metadata.iptc(data)['DigitalSourceType'] == GENERATED
        assert np.array_equal(
            np.asarray(Image.open(io.BytesIO(written(format='WEBP', lossless=True))).convert('RGB')), PIXELS
        )


def test_a_photo_of_the_users_gets_no_mark_and_keeps_none_of_its_own():
    own = Image.open(io.BytesIO(written(FACTS)))
    for format in ('PNG', 'WEBP'):
        data = written(pixels=own, source=None, format=format)
        assert image_metadata.packet(data) is None and b'sks' not in data
    with pytest.raises(ValueError, match='needs that mark too'):
        written(FACTS, source=None)
    with pytest.raises(ValueError, match="'GIF' but must be PNG, WEBP or JPEG"):
        written(format='GIF')


def test_exiftool_reads_it(tmp_path):
    (tmp_path / 'x.png').write_bytes(written(FACTS))
    read = image_metadata.exiftool(tmp_path / 'x.png')
    if read is None:
        pytest.skip('exiftool is not installed')
    assert read['XMP-iptcExt:DigitalSourceType'] in (GENERATED, 'Trained Algorithmic Media')
    assert 'a sks dog' in read['PNG:Parameters']


@pytest.mark.parametrize('format', ['PNG', 'WEBP', 'JPEG'])
def test_exiv2_reads_it(format, tmp_path):
    exiv2 = pytest.importorskip('exiv2')
    path = tmp_path / 'x'
    path.write_bytes(written(FACTS, format=format))
    image = exiv2.ImageFactory.open(str(path))
    image.readMetadata()
    read = {one.key(): one.print().strip('()') for one in image.xmpData()}
    assert read == {f'Xmp.iptcExt.{name}': text for name, text in image_metadata.iptc(written(FACTS)).items()}


def test_the_version_is_that_of_the_package_and_the_words_are_those_of_the_setting():
    setup = (Path(__file__).parents[2] / 'setup.py').read_text('utf-8')
    assert re.search(r"version='([^']+)'", setup)[1] == provenance.VERSION
    assert re.search(r"name='([^']+)'", setup)[1] == provenance.PROGRAM
    assert typing.get_args(Metadata) == provenance.METADATA


def test_what_a_file_says_is_read_again(tmp_path):
    path = tmp_path / 'x.png'
    prompt = 'a "sks" dog,\nin the snow: é'
    for facts, source, said in (
        (dataclasses.replace(FACTS, prompt=prompt, negative_prompt='a cat'), GENERATED, (GENERATED, prompt)),
        (None, GENERATED, (GENERATED, None)),
        (None, PAINTED, (PAINTED, None)),
        (None, None, (None, None)),
    ):
        provenance.save(PIXELS, path, facts, source=source)
        assert provenance.read(path) == said


@pytest.mark.parametrize('kind', ['JPEG', 'text', 'XMP that is no XML'])
def test_what_cannot_be_read_is_an_error(kind, tmp_path):
    path = tmp_path / 'x.png'
    if kind == 'JPEG':
        provenance.save(PIXELS, path, format='JPEG')
    elif kind == 'text':
        path.write_text('no image')
    else:
        path.write_bytes(written().replace(b'<x:xmpmeta', b'<x:xmpmet>'))
    with pytest.raises(ValueError, match=f'^{path} is no PNG file that can be read '):
        provenance.read(path)
