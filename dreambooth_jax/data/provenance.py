"""Image files that say where they come from. No other module writes images that a model has generated.

    XMP          Iptc4xmpExt:DigitalSourceType, the mark of generated images that search engines and networks read, in
                 every file; and the prompt, the model and the version in the fields of IPTC 2025.1, with facts
    parameters   in PNG files with facts, the text that AUTOMATIC1111 writes and ComfyUI, Forge and Civitai show

A file depends on its pixels and facts alone: there is no date in it, so that equal runs write equal files. Images that
a program has painted by rules, such as Storybook's photos, have another mark: no model has generated them.

A mark proves nothing by itself. Whoever wants to removes it, many websites strip all metadata, and anybody can write
the same text into a photograph. content_credentials.py adds a signature.

Sources: IPTC Photo Metadata Standard 2025.1; the NewsCodes at cv.iptc.org/newscodes/digitalsourcetype; XMP
Specification Part 3, 1.1.5 (PNG); AUTOMATIC1111/stable-diffusion-webui modules/infotext_utils.py.
"""

import dataclasses
import json
import os
import re
import xml.etree.ElementTree as ElementTree
from collections.abc import Mapping, Sequence
from typing import Any, BinaryIO, NamedTuple
from xml.sax.saxutils import escape

import numpy as np
from PIL import Image, PngImagePlugin, UnidentifiedImageError

VERSION = '0.1.0'  # that of setup.py; it is known without installing the package
PROGRAM = 'dreambooth-jax'

_SOURCE_TYPES = 'http://cv.iptc.org/newscodes/digitalsourcetype/'
GENERATED = f'{_SOURCE_TYPES}trainedAlgorithmicMedia'
PAINTED = f'{_SOURCE_TYPES}algorithmicMedia'

FULL, MARK = METADATA = ('full', 'mark')  # how much files say; config.SamplesConfig.metadata has the same words

XMP_KEYWORD = 'XML:com.adobe.xmp'  # of the PNG chunk
PARAMETERS = 'parameters'
_IPTC = 'http://iptc.org/std/Iptc4xmpExt/2008-02-29/'
_PACKET = (
    '<?xpacket begin="\ufeff" id="W5M0MpCehiHzreSzNTczkc9d"?>'
    '<x:xmpmeta xmlns:x="adobe:ns:meta/"><rdf:RDF xmlns:rdf="http://www.w3.org/1999/02/22-rdf-syntax-ns#">'
    f'<rdf:Description rdf:about="" xmlns:Iptc4xmpExt="{_IPTC}">{{}}'
    '</rdf:Description></rdf:RDF></x:xmpmeta><?xpacket end="r"?>'
)
# What neither XML 1.0 nor the text chunks of PNG can hold.
_IMPOSSIBLE = re.compile('[^\t\n\r\x20-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]')


class AddedFile(NamedTuple):
    """A file that was added to the model: its name without folder and ending, its sha256, and its strength or None."""

    name: str
    sha256: str
    scale: float | None = None


@dataclasses.dataclass(frozen=True, kw_only=True)
class Facts:
    """What an image was generated with. Its size and the version of this program are added when it is written.

    Attributes:
      prompt: the prompt; of a sheet of several, one on each line.
      negative_prompt: what guidance led away from.
      steps: denoising steps.
      sampler: name of the sampler.
      guidance_scale: classifier-free guidance; 1 is none.
      seed: seed of the noise.
      model: what the model is called, without the folder that it lies in; None: unknown.
      model_hash: sha256 of its weights as weights.pipeline computes it, hexadecimal; None: unknown.
      adapters: LoRA files that were merged into it.
      embeddings: textual inversions that were added to it.
      more: further names and values, such as {'Image number': 3}; names have letters, digits, spaces and hyphens.
    """

    prompt: str
    negative_prompt: str = ''
    steps: int
    sampler: str
    guidance_scale: float
    seed: int
    model: str | None = None
    model_hash: str | None = None
    adapters: Sequence[AddedFile] = ()
    embeddings: Sequence[AddedFile] = ()
    more: Mapping[str, Any] = dataclasses.field(default_factory=dict)


def save(
    image: Image.Image | np.ndarray,
    file: str | os.PathLike | BinaryIO,
    facts: Facts | None = None,
    *,
    source: str | None = GENERATED,
    format: str = 'PNG',
    **encoding: Any,
) -> None:
    """Writes an image with its mark and, if they are given, the facts.

    Args:
      image: the image, or its pixels uint8[H, W, 3] or uint8[H, W].
      file: path, or file opened for writing in binary mode.
      facts: what it was generated with; None: the file has the mark alone.
      source: its digital source type, GENERATED or PAINTED; None: it is a photo of the user's, which gets no mark.
      format: 'PNG', 'WEBP' or 'JPEG'. Only PNG files have the text `parameters`.
      **encoding: options of the format's encoder in Pillow.

    Raises:
      ValueError: if there are facts but no mark, or the format is another one.
      OSError: if the file cannot be written.
    """
    if source is None and facts is not None:
        raise ValueError('facts are of an image that a model has generated, so it needs that mark too')
    if format not in ('PNG', 'WEBP', 'JPEG'):
        raise ValueError(f'format is {format!r} but must be PNG, WEBP or JPEG, in which the mark is known to be read')
    image = Image.fromarray(image) if isinstance(image, np.ndarray) else image
    if source is not None and format != 'PNG':
        encoding['xmp'] = xmp(source, facts)
    elif source is not None:
        encoding['pnginfo'] = chunks = PngImagePlugin.PngInfo()
        chunks.add_itxt(XMP_KEYWORD, xmp(source, facts).decode())
        if facts is not None:
            text = parameters(facts, image.size)
            # PNG's plain text is Latin-1, but ComfyUI takes it for UTF-8: what is not ASCII goes into the other chunk.
            (chunks.add_text if text.isascii() else chunks.add_itxt)(PARAMETERS, text)
    image.save(file, format, **encoding)


def xmp(source: str, facts: Facts | None = None) -> bytes:
    """Returns an XMP packet in UTF-8.

    Args:
      source: the digital source type, GENERATED or PAINTED.
      facts: what else it says; None: nothing.
    """
    fields = {'DigitalSourceType': source}
    if facts is not None:
        without = f'\nNegative prompt: {facts.negative_prompt}' if facts.negative_prompt else ''
        fields |= {
            'AISystemUsed': f'{PROGRAM}, model {facts.model}' if facts.model else PROGRAM,
            'AISystemVersionUsed': VERSION,
            'AIPromptInformation': facts.prompt + without,
        }
    told = (f'<Iptc4xmpExt:{name}>{_in_xml(text)}</Iptc4xmpExt:{name}>' for name, text in fields.items())
    return _PACKET.format(''.join(told)).encode()


def parameters(facts: Facts, size: tuple[int, int]) -> str:
    """Returns the text that AUTOMATIC1111 keeps with its images, and reads again.

    The last line has names and values; a value with a comma, colon, quote or line break is quoted as a JSON string.
    The line of the negative prompt is there even if that is empty, because ComfyUI reads no text without it. Names of
    samplers are those of this program; ComfyUI has most of them too.

    Args:
      size: width and height of the image in pixels.
    """
    values = {
        'Steps': facts.steps,
        'Sampler': facts.sampler,
        'CFG scale': f'{facts.guidance_scale:g}',
        'Seed': facts.seed,
        'Size': f'{size[0]}x{size[1]}',
        'Model hash': facts.model_hash,
        'Model': facts.model,
        'Lora hashes': _hashes(facts.adapters),
        'Lora strengths': ', '.join(f'{one.name}: {one.scale:g}' for one in facts.adapters if one.scale is not None),
        'TI hashes': _hashes(facts.embeddings),
        **facts.more,
        'Version': f'{PROGRAM} {VERSION}',
    }
    told = ', '.join(f'{name}: {_quoted(str(value))}' for name, value in values.items() if value not in (None, ''))
    return _IMPOSSIBLE.sub('\ufffd', f'{facts.prompt}\nNegative prompt: {facts.negative_prompt}\n{told}')


class Said(NamedTuple):
    """What an image file says of itself.

    Attributes:
      source: its digital source type; None: it names none.
      prompt: the prompt in the text `parameters`; None: it has no such text.
    """

    source: str | None
    prompt: str | None


def read(path: str | os.PathLike) -> Said:
    """Reads what a PNG file of this module says of itself.

    Raises:
      ValueError: if it is no PNG file that can be read.
    """
    try:
        with Image.open(path, formats=['PNG']) as image:
            texts = dict(image.text)
        packet = texts.get(XMP_KEYWORD)
        found = None if packet is None else ElementTree.fromstring(packet).find(f'.//{{{_IPTC}}}DigitalSourceType')
    except (UnidentifiedImageError, SyntaxError) as error:  # Pillow's and XML's are of the second kind
        raise ValueError(f'{path} is no PNG file that can be read ({error})') from None
    told = texts.get(PARAMETERS)
    return Said(None if found is None else found.text, told and told.partition('\nNegative prompt:')[0])


def _hashes(added: Sequence[AddedFile]) -> str:
    return ', '.join(f'{one.name}: {one.sha256}' for one in added)


def _quoted(value: str) -> str:
    return json.dumps(value, ensure_ascii=False) if re.search(r'[,:"\n\\]', value) else value


def _in_xml(text: str) -> str:
    # A plain carriage return would be read as a line feed.
    return escape(_IMPOSSIBLE.sub('\ufffd', text), {'\r': '&#13;'})
