"""Reads what image files say of themselves without the code that wrote it: chunks, XMP, and AUTOMATIC1111's text."""

import json
import re
import shutil
import struct
import subprocess
import xml.etree.ElementTree as ElementTree
import zlib
from pathlib import Path

IPTC = '{http://iptc.org/std/Iptc4xmpExt/2008-02-29/}'
DESCRIPTION = '{http://www.w3.org/1999/02/22-rdf-syntax-ns#}Description'
GENERATED = 'http://cv.iptc.org/newscodes/digitalsourcetype/trainedAlgorithmicMedia'
PAINTED = 'http://cv.iptc.org/newscodes/digitalsourcetype/algorithmicMedia'
# The rule by which AUTOMATIC1111 reads the last line: names, and values that are quoted or end at a comma.
_PAIR = re.compile(r'\s*(?P<name>\w[\w \-/]+):\s*(?P<value>"(?:\\.|[^\\"])+"|[^,]*)(?:,|$)')


def chunks(data: bytes) -> list[tuple[str, bytes]]:
    """Returns the names and contents of a PNG file's chunks; every checksum must be right."""
    assert data[:8] == b'\x89PNG\r\n\x1a\n'
    found, at = [], 8
    while at < len(data):
        length, name = struct.unpack('>I4s', data[at : at + 8])
        content = data[at + 8 : at + 8 + length]
        assert struct.unpack('>I', data[at + 8 + length : at + 12 + length])[0] == zlib.crc32(name + content)
        found.append((name.decode(), content))
        at += 12 + length
    return found


def texts(data: bytes) -> dict[str, str]:
    """Returns the texts of a PNG file, {keyword: text}, from plain and from international chunks."""
    found = {}
    for name, content in chunks(data):
        keyword, _, rest = content.partition(b'\0')
        if name == 'tEXt':
            found[keyword.decode('latin-1')] = rest.decode('latin-1')
        if name == 'iTXt':
            assert rest[:4] == b'\0\0\0\0'  # not compressed, of no language
            found[keyword.decode('latin-1')] = rest[4:].decode('utf-8')
    return found


def packet(data: bytes) -> str | None:
    """Returns the XMP packet of a PNG or WebP file; None if it has none."""
    if data[:4] != b'RIFF':
        return texts(data).get('XML:com.adobe.xmp')
    at = 12
    while at < len(data):
        name, length = struct.unpack('<4sI', data[at : at + 8])
        if name == b'XMP ':
            return data[at + 8 : at + 8 + length].decode('utf-8')
        at += 8 + length + length % 2
    return None


def iptc(data: bytes) -> dict[str, str]:
    """Returns the IPTC fields of a file's XMP, {name: text}; empty if it has no XMP."""
    found = packet(data)
    if found is None:
        return {}
    (description,) = ElementTree.fromstring(found).iter(DESCRIPTION)
    return {child.tag.removeprefix(IPTC): child.text for child in description}


def is_marked(path: Path, source: str = GENERATED) -> bool:
    """Whether a file has exactly this digital source type."""
    return iptc(path.read_bytes()).get('DigitalSourceType') == source


def read_parameters(text: str) -> dict[str, str]:
    """Reads the text `parameters` as AUTOMATIC1111 does."""
    *lines, last = text.strip().split('\n')
    assert len(_PAIR.findall(last)) >= 3  # otherwise it is taken for a part of the prompt
    found, into = {'Prompt': [], 'Negative prompt': []}, 'Prompt'
    for line in lines:
        line = line.strip()
        if line.startswith('Negative prompt:'):
            into, line = 'Negative prompt', line[16:].strip()
        found[into].append(line)
    read = {name: '\n'.join(told) for name, told in found.items()}
    for pair in _PAIR.finditer(last):
        name, value = pair['name'], pair['value']
        read[name] = json.loads(value) if value.startswith('"') and value.endswith('"') else value
    return read


def parameters(path: Path) -> dict[str, str]:
    """Returns the text `parameters` of a PNG file, read as AUTOMATIC1111 does; empty if it has none."""
    text = texts(path.read_bytes()).get('parameters')
    return {} if text is None else read_parameters(text)


def exiftool(path: Path) -> dict[str, str] | None:
    """Returns what exiftool reads in a file, {group:name: value}; None if it is not installed."""
    if shutil.which('exiftool') is None:
        return None
    ended = subprocess.run(['exiftool', '-json', '-G1', str(path)], capture_output=True, text=True, check=True)
    return json.loads(ended.stdout)[0]
