"""Reads the assertions of C2PA manifests ("Content Credentials") inside image files.

A manifest store is a JUMBF box: boxes inside boxes, each of which has a label, and the assertions in CBOR or JSON at
the bottom. The store lies in APP11 segments of a JPEG, in a caBX chunk of a PNG, in a C2PA chunk of a WebP, in a uuid
box of HEIC and AVIF, and in a tag of a TIFF. It is read in all of these and not in GIF.

Signatures are not checked, so that the answer is what the file says and not who says it. Manifests that lie outside the
file, which C2PA allows, are not fetched, and compressed ones are not unpacked. What is damaged is left out.

Sources: C2PA Technical Specification 2.2, annex A (embedding) and 11 (manifests); ISO/IEC 19566-5 (JUMBF); ISO/IEC
  18477-3 (JPEG extensions: boxes in APP11 segments).
"""

import io
import json
import struct
import warnings
from collections.abc import Iterator
from typing import Any

import cbor2
from PIL.TiffImagePlugin import ImageFileDirectory_v2

_APP11, _START_OF_SCAN = 0xEB, 0xDA
_ALONE = (0x01, *range(0xD0, 0xD9))  # JPEG markers without a length
_UUID = bytes.fromhex('d8fec3d61b0e483c92975828877ec481')  # of the box in HEIC and AVIF
_TIFF_TAG = 0xCD41
_HAS_LABEL = 0x02  # among the toggles of a description box
_DEEPEST = 16  # boxes inside boxes; manifests have four or five


def assertions(data: bytes, format: str) -> Iterator[tuple[str, dict[str, Any]]]:
    """Yields the label and the content of every assertion that is a map in CBOR or JSON.

    The assertions of all manifests in the file are among them, also of those about the images that it was made from.

    Args:
      data: the bytes of an image file.
      format: Pillow's name of its format, or 'HEIF'.
    """
    for store in _stores(data, format):
        yield from _of_boxes(store, '', 0)


def jpeg_segments(data: bytes) -> Iterator[tuple[int, bytes]]:
    """Yields the marker's second byte and the content of every segment of a JPEG before its pixels."""
    at = 2
    while at + 4 <= len(data) and data[at] == 0xFF:
        marker = data[at + 1]
        if marker == 0xFF or marker in _ALONE:  # a fill byte stands alone too
            at += 1 if marker == 0xFF else 2
            continue
        if marker == _START_OF_SCAN:
            return
        length = int.from_bytes(data[at + 2 : at + 4])
        yield marker, data[at + 4 : at + 2 + length]
        at += 2 + max(length, 2)


def _stores(data: bytes, format: str) -> list[bytes]:
    """Returns the JUMBF boxes of a file, each as bytes that begin with its length."""
    if format == 'JPEG':
        return _in_jpeg(data)
    if format == 'PNG':
        return [content for kind, content in _chunks(data, 8, '>', 4) if kind == b'caBX']
    if format == 'WEBP':
        return [content for kind, content in _chunks(data, 12, '<', 0) if kind == b'C2PA']
    if format in ('HEIF', 'AVIF'):
        return [found for kind, content in _boxes(data) if kind == b'uuid' and (found := _in_uuid_box(content))]
    return _in_tiff(data) if format == 'TIFF' else []


def _in_jpeg(data: bytes) -> list[bytes]:
    """Returns the boxes that lie in the APP11 segments, each of which may be cut into several segments."""
    parts: dict[int, list[tuple[int, bytes]]] = {}
    for marker, content in jpeg_segments(data):
        if marker == _APP11 and content[:2] == b'JP' and len(content) >= 16:
            instance, number = struct.unpack('>HI', content[2:8])
            parts.setdefault(instance, []).append((number, content[8:]))
    boxes = []
    for found in parts.values():
        (_, first), *others = sorted(found, key=lambda part: part[0])
        repeated = 16 if first[:4] == b'\0\0\0\1' else 8  # every segment repeats the head of the box
        boxes.append(first + b''.join(part[repeated:] for _, part in others))
    return boxes


def _chunks(data: bytes, at: int, order: str, behind: int) -> Iterator[tuple[bytes, bytes]]:
    """Yields the kind and the content of the chunks of a PNG (length first) or a RIFF file (kind first).

    Args:
      at: where the first chunk begins.
      order: byte order of the lengths.
      behind: bytes behind the content of a chunk, its checksum.
    """
    while at + 8 <= len(data):
        if order == '>':
            length, kind = struct.unpack('>I4s', data[at : at + 8])
        else:
            kind, length = struct.unpack('<4sI', data[at : at + 8])
        yield kind, data[at + 8 : at + 8 + length]
        at += 8 + length + (behind or length % 2)


def _boxes(data: bytes) -> Iterator[tuple[bytes, bytes]]:
    """Yields the kind and the content of ISO boxes, which JUMBF has too."""
    at = 0
    while at + 8 <= len(data):
        length, kind = struct.unpack('>I4s', data[at : at + 8])
        head = 8
        if length == 1 and at + 16 <= len(data):
            length, head = int.from_bytes(data[at + 8 : at + 16]), 16
        length = length or len(data) - at  # 0: up to the end
        if length < head:
            return
        yield kind, data[at + head : at + length]
        at += length


def _in_uuid_box(content: bytes) -> bytes | None:
    """Returns the store in a uuid box: the uuid, version and flags, a purpose, an offset, then the store."""
    purpose, end, rest = content[20:].partition(b'\0')
    return rest[8:] if content[:16] == _UUID and purpose == b'manifest' and end else None


def _in_tiff(data: bytes) -> list[bytes]:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter('ignore')
            tags, file = ImageFileDirectory_v2(data[: 16 if data[2] == 43 else 8]), io.BytesIO(data)
            file.seek(tags.next)
            tags.load(file)
            found = tags.get(_TIFF_TAG)
    except Exception:  # damaged; whoever reads the pixels will say so
        return []
    return [found] if isinstance(found, bytes) else []


def _of_boxes(data: bytes, label: str, depth: int) -> Iterator[tuple[str, dict[str, Any]]]:
    """Yields the assertions among these boxes, of which `label` is the label."""
    for kind, content in _boxes(data):
        if kind == b'jumb' and depth < _DEEPEST:
            yield from _of_boxes(content, '', depth + 1)
        elif kind == b'jumd':
            label = _label(content)
        elif kind in (b'cbor', b'json') and label:
            found = _decoded(kind, content)
            if isinstance(found, dict):
                yield label, found


def _label(description: bytes) -> str:
    """Returns the label in a description box: a uuid, toggles, the label up to a zero."""
    if len(description) < 18 or not description[16] & _HAS_LABEL:
        return ''
    return description[17:].partition(b'\0')[0].decode('utf-8', 'replace')


def _decoded(kind: bytes, content: bytes) -> Any:
    try:
        return cbor2.loads(content) if kind == b'cbor' else json.loads(content)
    except Exception:  # damaged, or blacked out by an editor, as C2PA allows
        return None
