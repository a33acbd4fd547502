"""Marks that forbid training: what is found, what is not, and what is said about it."""

import struct
import zlib

import pytest

from dreambooth_jax.data import training_marks
from dreambooth_jax.data.decode import ImageError, StoredImage
from tests.support import marked_files
from tests.support.made_files import chunk, inserted
from tests.support.marked_files import jpeg_with, jpeg_with_xmp, mining, segment, store, with_store, xmp

TDM = '<tdm:reservation>1</tdm:reservation>'


def found(data, format='JPEG'):
    return [str(mark) for mark in training_marks.find(data, format)]


def of_entries(entries, label='cawg.training-mining'):
    return found(with_store('PNG', store((label, entries))), 'PNG')


# C2PA


@pytest.mark.parametrize('format', ['JPEG', 'PNG', 'WEBP', 'TIFF', 'HEIF', 'AVIF'])
def test_an_assertion_against_training_is_found_in_every_kind_of_file(format):
    data = with_store(format, store(('cawg.training-mining', marked_files.NO_TRAINING)))
    assert found(data, format) == ['C2PA: cawg.training-mining has ai_generative_training: notAllowed']


@pytest.mark.parametrize('label', ['c2pa.training-mining', 'c2pa.training-mining__2', 'c2pa.training-mining.v2'])
def test_the_older_name_and_numbered_ones_are_known(label):
    says = of_entries({'c2pa.data_mining': {'use': 'constrained', 'constraint_info': 'ask'}}, label)
    assert says == ['C2PA: c2pa.training-mining has data_mining: constrained']


@pytest.mark.parametrize(
    'entries',
    [
        {},
        {'cawg.ai_generative_training': {'use': 'allowed'}},
        {'cawg.ai_inference': {'use': 'notAllowed'}},
        # The narrowest use decides, whatever is said of wider ones.
        {'cawg.ai_generative_training': {'use': 'allowed'}, 'cawg.data_mining': {'use': 'notAllowed'}},
        {'cawg.ai_training': 'notAllowed'},
        'notAllowed',
    ],
)
def test_an_assertion_that_allows_it_or_says_nothing_is_no_mark(entries):
    assert of_entries(entries) == []


def test_other_assertions_are_no_marks():
    assert of_entries(marked_files.NO_TRAINING, 'c2pa.actions') == []


# XMP


@pytest.mark.parametrize(
    'term', ['', '-AIMLTRAINING', '-GENAIMLTRAINING', '-EXCEPTSEARCHENGINEINDEXING', '-SEECONSTRAINT']
)
def test_every_prohibition_of_iptc_is_found(term):
    says = [f'IPTC: plus:DataMining is DMI-PROHIBITED{term}']
    value = f'http://ns.useplus.org/ldf/vocab/DMI-PROHIBITED{term}'
    assert found(jpeg_with_xmp(xmp(mining(f'DMI-PROHIBITED{term}')))) == says
    assert found(jpeg_with_xmp(xmp(attributes=f'plus:DataMining="{value}"'))) == says
    assert found(jpeg_with_xmp(xmp(f'<plus:DataMining rdf:resource="{value}"/>'))) == says


@pytest.mark.parametrize(
    'packet',
    [
        xmp(),
        xmp(mining('DMI-ALLOWED')),
        xmp(mining('DMI-UNSPECIFIED')),
        xmp('<tdm:reservation>0</tdm:reservation>'),
        xmp('<tdm:policy>http://example.org/policy.json</tdm:policy>'),
        xmp(mining('DMI-PROHIBITED')).replace(b'ns.useplus.org/ldf/xmp', b'example.org'),  # another vocabulary's word
        xmp('<plus:DataMining>'),  # damaged
    ],
)
def test_xmp_that_allows_it_or_says_nothing_is_no_mark(packet):
    assert found(jpeg_with_xmp(packet)) == []


@pytest.mark.parametrize('space', ['http://www.w3.org/ns/tdmrep/', 'http://www.w3.org/ns/tdmrep#'])
def test_a_reservation_is_found_under_both_names(space):
    packet = xmp(TDM).replace(b'http://www.w3.org/ns/tdmrep/', space.encode())
    assert found(jpeg_with_xmp(packet)) == ['TDMRep: tdm:reservation is 1']


def test_xmp_is_found_in_every_kind_of_file():
    packet = xmp(TDM)
    text = b'XML:com.adobe.xmp\0\0\0\0\0' + packet
    plain, at = marked_files.image('PNG'), marked_files.image('PNG').index(b'IDAT') - 4
    behind = plain[:-12] + chunk(b'iTXt', text) + plain[-12:]  # where ExifTool puts it
    assert found(inserted(plain, chunk(b'iTXt', text)), 'PNG') == found(behind, 'PNG') != []
    assert at > 0 and found(marked_files.image('WEBP', xmp=packet), 'WEBP') != []
    assert found(marked_files.image('AVIF', xmp=packet), 'AVIF') != []
    assert found(marked_files.image('TIFF', tiffinfo={700: packet}), 'TIFF') != []


def test_compressed_xmp_is_not_found():
    """As the module says."""
    text = b'XML:com.adobe.xmp\0\1\0\0\0' + zlib.compress(xmp(TDM))
    assert found(inserted(marked_files.image('PNG'), chunk(b'iTXt', text)), 'PNG') == []


def test_extended_xmp_is_put_together():
    packet, identifier = xmp(TDM + f'<plus:Note>{"long " * 200}</plus:Note>'), b'0' * 32
    cut = 500
    parts = [
        segment(
            0xE1, training_marks._EXTENDED + identifier + struct.pack('>II', len(packet), at) + packet[at : at + cut]
        )
        for at in range(0, len(packet), cut)
    ]
    assert found(jpeg_with(*reversed(parts))) == ['TDMRep: tdm:reservation is 1']


def test_several_marks_are_named_once_each():
    packet = xmp(TDM + mining('DMI-PROHIBITED'))
    data = jpeg_with(*[segment(0xE1, b'http://ns.adobe.com/xap/1.0/\0' + packet)] * 2)
    assert found(data) == ['TDMRep: tdm:reservation is 1', 'IPTC: plus:DataMining is DMI-PROHIBITED']


# What is done about it


def test_a_marked_image_is_refused_by_name(tmp_path):
    path = marked_files.marked(tmp_path / '1.jpg')
    with pytest.raises(ImageError) as error:
        training_marks.refuse([path], None)
    assert str(error.value) == (
        f'{path} is marked "do not train" (IPTC: plus:DataMining is DMI-PROHIBITED-GENAIMLTRAINING); take it out of '
        f'its folder or, if its owner lets you train on it, say whose consent it is and how it was given in '
        f'config.data.consent'
    )
    with pytest.raises(ImageError, match='^1.jpg of a set is marked'):
        training_marks.refuse([StoredImage('1.jpg', 'a set', path.read_bytes())], None)


def test_consent_lets_it_pass_and_others_pass_anyway(tmp_path):
    training_marks.refuse([marked_files.marked(tmp_path / '1.jpg')], 'mine')
    (tmp_path / '2.jpg').write_bytes(marked_files.image())
    training_marks.refuse([tmp_path / '2.jpg'], None)
