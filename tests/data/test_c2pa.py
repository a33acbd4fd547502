"""Assertions of C2PA manifests, in every kind of file that can hold them."""

import json
import struct

import cbor2
import numpy as np
import pytest

from dreambooth_jax.data import c2pa
from dreambooth_jax.data.decode import decode_image
from tests.support import marked_files
from tests.support.marked_files import app11, box, jpeg_with, store, superbox, with_store

FORMATS = ('JPEG', 'PNG', 'WEBP', 'TIFF', 'HEIF', 'AVIF')
ENTRIES = {'cawg.ai_training': {'use': 'notAllowed'}}
STORE = store(('cawg.training-mining', ENTRIES), ('stds.exif', b'json', json.dumps({'a': [1]}).encode()))


def found(data, format='JPEG'):
    return list(c2pa.assertions(data, format))


@pytest.mark.parametrize('format', FORMATS)
def test_assertions_are_found_and_the_image_stays_readable(format, tmp_path):
    data = with_store(format, STORE)
    claim = ('c2pa.claim.v2', {'instanceID': 'xmp:iid:1'})
    assert found(data, format) == [('cawg.training-mining', {'entries': ENTRIES}), ('stds.exif', {'a': [1]}), claim]
    (tmp_path / 'image').write_bytes(data)
    assert np.asarray(decode_image(tmp_path / 'image')).shape == (40, 48, 3)


@pytest.mark.parametrize('format', (*FORMATS, 'GIF'))
def test_a_file_without_a_manifest_has_none(format):
    assert found(marked_files.image(format), format) == []


def test_a_box_of_several_segments_is_put_together_in_their_order():
    long = store(('c2pa.thumbnail', b'cbor', cbor2.dumps({'pixels': bytes(range(256)) * 600})))
    segments = app11(long)
    assert segments.count(b'\xff\xebCI') == 0 and len(long) > 2 * 65000
    assert found(jpeg_with(segments))[0][1]['pixels'] == bytes(range(256)) * 600
    size = struct.unpack('>H', segments[2:4])[0] + 2
    assert found(jpeg_with(segments[size:], segments[:size]))[0][0] == 'c2pa.thumbnail'


def test_two_boxes_in_one_file_are_both_read():
    other = store(('c2pa.training-mining', {}))
    labels = [label for label, _ in found(jpeg_with(app11(STORE), app11(other, number=2)))]
    assert {'cawg.training-mining', 'c2pa.training-mining'} <= set(labels)


def test_a_box_with_a_long_length_is_read():
    length = struct.pack('>I4sQ', 1, b'jumb', len(STORE) + 8) + STORE[8:]
    assert found(with_store('PNG', length), 'PNG') == found(with_store('PNG', STORE), 'PNG') != []


def test_what_is_blacked_out_or_damaged_is_left_out():
    redacted = store(
        ('cawg.training-mining', b'cbor', bytes(40)), ('stds.exif', b'json', b'{'), ('a', b'cbor', b'\x18')
    )
    assert [label for label, _ in found(with_store('PNG', redacted), 'PNG')] == ['c2pa.claim.v2']
    unlabelled = superbox(b'cbor', '', box(b'cbor', cbor2.dumps({'a': 1})))
    assert found(with_store('PNG', unlabelled), 'PNG') == []


@pytest.mark.parametrize('format', FORMATS)
def test_no_damage_raises_an_error_or_runs_for_ever(format):
    data, rng = with_store(format, STORE), np.random.default_rng(0)
    for length in range(0, len(data), 7):
        found(data[:length], format)
    for _ in range(200):
        bent = np.frombuffer(data, np.uint8).copy()
        bent[rng.integers(2, len(bent), size=8)] = rng.choice([0, 1, 255, 16], size=8)
        found(bent.tobytes(), format)


def test_boxes_inside_boxes_have_an_end():
    deep = box(b'cbor', cbor2.dumps({'a': 1}))
    for _ in range(2000):
        deep = superbox(b'c2ma', 'a', deep)
    assert found(with_store('PNG', deep), 'PNG') == []
