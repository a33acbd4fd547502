"""Marks in image files with which their makers say that no model may be trained on them ("do not train").

Three kinds are read. What counts is what they say of training a generative model.

    C2PA    the assertion cawg.training-mining, or c2pa.training-mining as it was called before
    IPTC    the property plus:DataMining in XMP, with one of the values of PLUS that prohibit it
    TDMRep  the property tdm:reservation in XMP, 1

XMP is found wherever it lies in the file, as the XMP specification says for readers that do not know the format: as a
packet of plain text. The extended XMP of JPEG files is put together first. Compressed XMP is not found. Nor are
reservations outside the file: on web pages, in the headers of servers, in licences. Nothing here says that an image may
be used; it only says what its file says.

Sources: CAWG Training and Data Mining Assertion 1.1; C2PA Technical Specification 1.4, 17.14; PLUS LDF vocabulary,
  Data Mining (as in IPTC Photo Metadata Standard 2023.1); TDM Reservation Protocol, W3C Community Group report of 2024;
  Adobe XMP Specification, part 3.
"""

import re
import xml.etree.ElementTree as ElementTree
from collections.abc import Iterable, Iterator
from typing import Any, NamedTuple

from dreambooth_jax.data import c2pa
from dreambooth_jax.data.decode import ImageError, ImagePath, read_file

_LABEL = re.compile(r'((?:cawg|c2pa)\.training-mining)(?:\.v\d+)?(?:__\d+)?')  # a number tells several from each other
# The uses of an assertion that decide about training a generative model, from the narrowest on. If the narrowest is not
# among its entries, a wider one decides.
_USES = ('ai_generative_training', 'ai_training', 'data_mining')
_REFUSED = ('notAllowed', 'constrained')
_PLUS, _DATA_MINING = 'http://ns.useplus.org/ldf/xmp/1.0/', 'DataMining'
_PROHIBITED = 'DMI-PROHIBITED'  # the values begin so, such as DMI-PROHIBITED-GENAIMLTRAINING
_TDM = ('http://www.w3.org/ns/tdmrep/', 'http://www.w3.org/ns/tdmrep#')  # both are written
_RESOURCE = '{http://www.w3.org/1999/02/22-rdf-syntax-ns#}resource'
_PACKET = re.compile(rb'<(\w+:(?:xmpmeta|xapmeta|RDF))[\s>].*?</\1\s*>', re.DOTALL)
_APP1, _EXTENDED = 0xE1, b'http://ns.adobe.com/xmp/extension/\0'


class Mark(NamedTuple):
    """One mark.

    Attributes:
      kind: 'C2PA', 'IPTC' or 'TDMRep'.
      says: what the file says, in its own words.
    """

    kind: str
    says: str

    def __str__(self) -> str:
        return f'{self.kind}: {self.says}'


def find(data: bytes, format: str) -> list[Mark]:
    """Returns the marks of an image file against training, each once; none: the file says nothing against it.

    Args:
      data: the file's bytes.
      format: Pillow's name of its format, or 'HEIF'.
    """
    found = [_of_assertion(label, content) for label, content in c2pa.assertions(data, format)]
    for packet in _packets(data, format):
        found += _of_xmp(packet)
    return list(dict.fromkeys(mark for mark in found if mark is not None))


def refuse(paths: Iterable[ImagePath], consent: str | None) -> None:
    """Refuses to train on marked images, unless it is said whose consent there is.

    Args:
      paths: the images.
      consent: whose consent, and how it was given; None: nothing is said.

    Raises:
      ImageError: for the first image with a mark, and for one that cannot be read.
    """
    for path in paths if consent is None else ():
        if marks := find(*read_file(path)):
            raise ImageError(refusal(path, marks))


def refusal(path: ImagePath, marks: Iterable[Mark]) -> str:
    """Returns the sentence that refuses an image for its marks."""
    return (
        f'{path} is marked "do not train" ({"; ".join(map(str, marks))}); take it out of its folder or, if its owner '
        f'lets you train on it, say whose consent it is and how it was given in config.data.consent'
    )


def _of_assertion(label: str, content: dict[str, Any]) -> Mark | None:
    known = _LABEL.fullmatch(label)
    entries = content.get('entries')
    if known is None or not isinstance(entries, dict):
        return None
    uses = {str(name).partition('.')[2]: entry for name, entry in entries.items()}
    use = next((use for use in _USES if use in uses), None)
    says = uses[use].get('use') if use and isinstance(uses[use], dict) else None
    return Mark('C2PA', f'{known[1]} has {use}: {says}') if says in _REFUSED else None


def _packets(data: bytes, format: str) -> Iterator[bytes]:
    """Yields the XMP packets of a file."""
    for found in _PACKET.finditer(data):
        yield found[0]
    # Extended XMP is cut into segments: an identifier of 32 bytes, its whole length, an offset, a part of it.
    parts: dict[bytes, dict[int, bytes]] = {}
    for marker, content in c2pa.jpeg_segments(data) if format == 'JPEG' else ():
        if marker == _APP1 and content.startswith(_EXTENDED):
            rest = content[len(_EXTENDED) :]
            parts.setdefault(rest[:32], {})[int.from_bytes(rest[36:40])] = rest[40:]
    for one in parts.values():
        for found in _PACKET.finditer(b''.join(one[offset] for offset in sorted(one))):
            yield found[0]


def _of_xmp(packet: bytes) -> Iterator[Mark]:
    try:
        root = ElementTree.fromstring(packet)
    except ElementTree.ParseError:
        return
    # A property is an attribute or an element, which has its value as text or as a link.
    for element in root.iter():
        properties = [*element.attrib.items(), (element.tag, element.get(_RESOURCE) or element.text or '')]
        for name, value in properties:
            value = value.strip()
            if name == f'{{{_PLUS}}}{_DATA_MINING}' and (term := value.rpartition('/')[2]).startswith(_PROHIBITED):
                yield Mark('IPTC', f'plus:DataMining is {term}')
            elif name in (f'{{{space}}}reservation' for space in _TDM) and value == '1':
                yield Mark('TDMRep', 'tdm:reservation is 1')
