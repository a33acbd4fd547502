"""Image files with marks against training, in the byte structures of C2PA and XMP."""

import io
import struct

import cbor2
import numpy as np
import pillow_heif
from PIL import Image

from tests.support.made_files import chunk, inserted

TAIL = bytes.fromhex('00110010800000aa00389b71')  # of the uuids of JUMBF types
HEIF_UUID = bytes.fromhex('d8fec3d61b0e483c92975828877ec481')
PLUS = 'http://ns.useplus.org/ldf/xmp/1.0/'
NO_TRAINING = {'cawg.ai_generative_training': {'use': 'notAllowed'}}


def box(kind, content):
    return struct.pack('>I4s', 8 + len(content), kind) + content


def superbox(kind, label, *content):
    """A JUMBF box with its description: the type's uuid, the toggles 'requestable, labelled', the label."""
    description = kind + TAIL + b'\x03' + label.encode() + b'\0'
    return box(b'jumb', box(b'jumd', description) + b''.join(content))


def store(*assertions):
    """A manifest store of (label, kind, content), or of (label, entries) for an assertion about training."""
    boxes = []
    for label, *rest in assertions:
        kind, content = rest if len(rest) == 2 else (b'cbor', cbor2.dumps({'entries': rest[0]}))
        boxes.append(superbox(kind, label, box(kind, content)))
    claim = superbox(b'c2cl', 'c2pa.claim.v2', box(b'cbor', cbor2.dumps({'instanceID': 'xmp:iid:1'})))
    manifest = superbox(b'c2ma', 'urn:c2pa:1', superbox(b'c2as', 'c2pa.assertions', *boxes), claim)
    return superbox(b'c2pa', 'c2pa', manifest)


def image(format='JPEG', **options):
    """The bytes of a small image of this format."""
    file, plain = io.BytesIO(), Image.fromarray(np.full((40, 48, 3), 90, np.uint8))
    if format == 'HEIF':
        pillow_heif.from_pillow(plain).save(file)
    else:
        plain.save(file, format, **options)
    return file.getvalue()


def segment(marker, content):
    return b'\xff' + bytes([marker]) + struct.pack('>H', 2 + len(content)) + content


def app11(content, largest=65000, number=1):
    """A box as APP11 segments, each of which repeats its head."""
    head, rest = content[:8], content[8:]
    parts = [rest[at : at + largest] for at in range(0, len(rest), largest)]
    return b''.join(
        segment(0xEB, b'JP' + struct.pack('>HI', number, sequence) + head + part)
        for sequence, part in enumerate(parts, 1)
    )


def jpeg_with(*segments):
    data = image()
    return data[:2] + b''.join(segments) + data[2:]


def with_store(format, content):
    """An image of a format with a manifest store."""
    data = image(format)
    if format == 'JPEG':
        return jpeg_with(app11(content))
    if format == 'PNG':
        return inserted(data, chunk(b'caBX', content))
    if format == 'WEBP':
        data += struct.pack('<4sI', b'C2PA', len(content)) + content + bytes(len(content) % 2)
        return data[:4] + struct.pack('<I', len(data) - 8) + data[8:]
    if format in ('HEIF', 'AVIF'):
        return data + box(b'uuid', HEIF_UUID + bytes(4) + b'manifest\0' + bytes(8) + content)
    assert format == 'TIFF'
    return image('TIFF', tiffinfo={0xCD41: content})


def xmp(properties='', *, attributes=''):
    """An XMP packet of a description with these elements and attributes."""
    return (
        '<?xpacket begin="\ufeff" id="W5M0MpCehiHzreSzNTczkc9d"?><x:xmpmeta xmlns:x="adobe:ns:meta/"><rdf:RDF '
        'xmlns:rdf="http://www.w3.org/1999/02/22-rdf-syntax-ns#"><rdf:Description rdf:about="" '
        f'xmlns:plus="{PLUS}" xmlns:tdm="http://www.w3.org/ns/tdmrep/" {attributes}>{properties}</rdf:Description>'
        '</rdf:RDF></x:xmpmeta><?xpacket end="w"?>'
    ).encode()


def mining(term):
    """The property of IPTC as ExifTool and editors write it."""
    return f'<plus:DataMining>http://ns.useplus.org/ldf/vocab/{term}</plus:DataMining>'


def jpeg_with_xmp(packet):
    return jpeg_with(segment(0xE1, b'http://ns.adobe.com/xap/1.0/\0' + packet))


def marked(path):
    """Writes a photo that may not be trained on; returns its path."""
    path.write_bytes(jpeg_with_xmp(xmp(mining('DMI-PROHIBITED-GENAIMLTRAINING'))))
    return path
