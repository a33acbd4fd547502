"""What the PNG file of a generated image says of itself, as data/provenance.py has written it."""

import dataclasses
import json
import re
from pathlib import Path

from PIL import Image

from dreambooth_jax.data import provenance

_SOURCE = re.compile(r'<Iptc4xmpExt:DigitalSourceType>([^<]*)<')
_VALUE = re.compile(r'([\w -]+): ("(?:\\.|[^"\\])*"|[^,]*)(?:, |$)')  # in the last line of the parameters


@dataclasses.dataclass(frozen=True, kw_only=True)
class Metadata:
    """What a file says.

    Attributes:
      source: the IPTC code of where the image comes from, such as 'trainedAlgorithmicMedia'; None: it has no mark.
      prompt, negative_prompt: what it was generated with; None: the file does not say it.
      values: name -> value, such as {'Seed': '0', 'Model hash': '...'}.
      width, height: in pixels.
    """

    source: str | None
    prompt: str | None
    negative_prompt: str | None
    values: dict[str, str]
    width: int
    height: int


def metadata_of(path: Path) -> Metadata:
    """Returns what a file says.

    Raises:
      OSError: if it cannot be read.
    """
    with Image.open(path) as image:
        chunks, (width, height) = dict(image.info), image.size
    mark = _SOURCE.search(str(chunks.get(provenance.XMP_KEYWORD, '')))
    text, _, last = str(chunks.get(provenance.PARAMETERS, '')).rpartition('\n')
    prompt, told, negative = text.rpartition('\nNegative prompt: ')
    values = {name: json.loads(value) if value.startswith('"') else value for name, value in _VALUE.findall(last)}
    return Metadata(
        source=mark[1].rpartition('/')[2] if mark else None,
        prompt=prompt if told else None,
        negative_prompt=negative if told else None,
        values=values,
        width=width,
        height=height,
    )
