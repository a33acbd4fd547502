"""Image files made byte by byte, which no library can write: PNG chunks, TIFF pages, colour profiles."""

import struct
import zlib

import numpy as np


def chunk(kind, body):
    return struct.pack('>I', len(body)) + kind + body + struct.pack('>I', zlib.crc32(kind + body))


def png(values, depth, colour, *chunks):
    """A PNG of integers [height, width, channels] in this bit depth and PNG colour type; `chunks` precede the data."""
    height, width, channels = values.shape
    bits = (values.reshape(height, -1, 1) >> np.arange(depth)[::-1]) & 1
    rows = np.packbits(bits.reshape(height, -1).astype(np.uint8), axis=1)
    data = zlib.compress(b''.join(b'\0' + row.tobytes() for row in rows))
    head = chunk(b'IHDR', struct.pack('>IIBBBBB', width, height, depth, colour, 0, 0, 0))
    return b'\x89PNG\r\n\x1a\n' + head + b''.join(chunks) + chunk(b'IDAT', data) + chunk(b'IEND', b'')


def inserted(png, *chunks):
    """The same PNG with chunks after its header."""
    return png[:33] + b''.join(chunks) + png[33:]


def tiff(*pages, inner=(), order='<', magic=None):
    """A TIFF of pages ({tag: ints}, pixel bytes); the first page's SubIFDs point to the pages in `inner`."""
    data = bytearray((magic or (b'II*\0' if order == '<' else b'MM\0*')) + bytes(4))

    def page(tags, pixels):
        """Writes a page; returns its offset and the position of its pointer to the next page."""
        start = len(data)
        data.extend(pixels + bytes(len(pixels) % 2))
        fields = []
        for tag, values in sorted({**tags, 273: start, 279: len(pixels)}.items()):
            values = values if isinstance(values, tuple) else (values,)
            kind = 4 if tag in (273, 279, 330) else 3
            packed = struct.pack(f'{order}{len(values)}{"I" if kind == 4 else "H"}', *values)
            if len(packed) > 4:
                packed, offset = struct.pack(order + 'I', len(data)), packed
                data.extend(offset + bytes(len(offset) % 2))
            fields.append(struct.pack(order + 'HHI', tag, kind, len(values)) + packed.ljust(4, b'\0'))
        offset = len(data)
        data.extend(struct.pack(order + 'H', len(fields)) + b''.join(fields) + bytes(4))
        return offset, len(data) - 4

    offsets = tuple(page(*content)[0] for content in inner)
    link = 4
    for number, (tags, pixels) in enumerate(pages):
        offset, after = page({**tags, 330: offsets} if offsets and not number else tags, pixels)
        data[link : link + 4] = struct.pack(order + 'I', offset)
        link = after
    return bytes(data)


def tags(width, height, *, bits=(8, 8, 8), photometric=2, **more):
    """The tags that every page has, and more by their numbers, such as t254=1."""
    found = {256: width, 257: height, 258: bits, 259: 1, 262: photometric, 277: len(bits), 278: height}
    return found | {int(name[1:]): value for name, value in more.items()}


def _icc(space, pcs, device, fields):
    table, data, start = struct.pack('>I', len(fields)), b'', 132 + 12 * len(fields)
    for tag, value in fields.items():
        table += tag + struct.pack('>II', start + len(data), len(value))
        data += value + bytes(-len(value) % 4)
    white = struct.pack('>3i', *(round(v * 65536) for v in (0.9642, 1.0, 0.8249)))
    head = struct.pack('>I4xI', start + len(data), 0x02400000) + device + space + pcs + bytes(12) + b'acsp' + bytes(28)
    return (head + white).ljust(128, b'\0') + table + data, white


def grey_profile(gamma):
    _, white = _icc(b'GRAY', b'XYZ ', b'mntr', {})
    curve = b'curv' + struct.pack('>4xIH', 1, round(gamma * 256))
    return _icc(b'GRAY', b'XYZ ', b'mntr', {b'wtpt': b'XYZ ' + bytes(4) + white, b'kTRC': curve})[0]


def cmyk_profile(lab_of):
    """A CMYK profile from lab_of(c, m, y, k) -> (L, a, b) at the 16 corners, interpolated between them."""
    _, white = _icc(b'CMYK', b'Lab ', b'prtr', {})
    corners = [lab_of(*(offset >> shift & 1 for shift in (3, 2, 1, 0))) for offset in range(16)]
    grid = b''.join(bytes((round(L * 2.55), a + 128, b + 128)) for L, a, b in corners)
    matrix = struct.pack('>9i', *(65536 * (offset % 4 == 0) for offset in range(9)))
    table = b'mft1' + bytes(4) + bytes((4, 3, 2, 0)) + matrix + bytes(range(256)) * 4 + grid + bytes(range(256)) * 3
    return _icc(b'CMYK', b'Lab ', b'prtr', {b'wtpt': b'XYZ ' + bytes(4) + white, b'A2B0': table})[0]
