"""The licences of base models, which what is trained from them keeps to.

Of models of the hub they are those that their pages, or copies of these, are known to have named when this was written;
of a folder or a file, what it says of itself. Their pages have the last word.

Source: the models' pages on huggingface.co and copies of them, 2026-11; the identifiers are those of
huggingface.co/docs/hub/repositories-licenses.
"""

import re
from pathlib import Path
from typing import NamedTuple

from dreambooth_jax.weights import files, hub, modelspec
from dreambooth_jax.weights.errors import WeightsError


class Licence(NamedTuple):
    """A licence.

    Attributes:
      id: its identifier on the hub; 'other' for one that has none there.
      name: what it is called.
    """

    id: str
    name: str


APACHE = Licence('apache-2.0', 'Apache License 2.0')
_OPENRAIL_M = Licence('creativeml-openrail-m', 'CreativeML Open RAIL-M')
_OPENRAIL_PLUS = Licence('openrail++', 'CreativeML Open RAIL++-M')
_STABILITY = Licence('other', 'Stability AI Community License')
_FLUX_1 = Licence('other', 'FLUX.1 [dev] Non-Commercial License')
_FLUX_2 = Licence('other', 'FLUX Non-Commercial License')
_IF = Licence('deepfloyd-if-license', 'DeepFloyd IF License')
# Hub ids, which are compared as a whole and without regard to capital letters.
_PUBLISHED = (
    (r'(stable-diffusion-v1-5|runwayml|compvis)/stable-diffusion-v1-\d', _OPENRAIL_M),
    (r'(stabilityai|sd2-community)/stable-diffusion-2(-1)?(-base)?', _OPENRAIL_PLUS),
    (r'stabilityai/stable-diffusion-(xl-base-1\.0|x4-upscaler)', _OPENRAIL_PLUS),
    (r'stabilityai/stable-diffusion-3(\.5)?-(medium|large)(-diffusers)?', _STABILITY),
    (r'deepfloyd/if-i{1,3}-\w+-v1\.[01]', _IF),
    (r'black-forest-labs/flux\.1-dev', _FLUX_1),
    (r'black-forest-labs/flux\.1-schnell', APACHE),
    (r'black-forest-labs/flux\.2-klein-(base-)?4b', APACHE),
    (r'black-forest-labs/flux\.2-klein-(base-)?9b', _FLUX_2),
    (r'tongyi-mai/z-image(-turbo)?', APACHE),
)
_IN_CARD = re.compile(r'^(license|license_name):[ \t]*(.+?)[ \t]*$', re.MULTILINE)


def licence_of(model: str) -> Licence | None:
    """Returns the licence of a model; None if neither its name nor its files say one.

    Args:
      model: as hub.find takes it: 'storybook', 'storybook-flow', a folder, a run, a single file or a hub id.
    """
    if model in hub.BUILT_IN:
        return APACHE
    path = Path(model).expanduser()
    if path.is_dir():
        cards = (folder / 'README.md' for folder in (path, path / hub.RUN_MODEL))
        return next(filter(None, (_in_card(card) for card in cards if card.is_file())), None)
    if path.is_file():
        return _in_header(path)
    return next((licence for ids, licence in _PUBLISHED if re.fullmatch(ids, model, re.IGNORECASE)), None)


def _in_card(path: Path) -> Licence | None:
    """Returns what the head of a model card says."""
    text = path.read_text('utf-8', errors='replace')
    head = re.match(r'---\n(.*?)\n---\n', text, re.DOTALL)
    found = {key: value.strip('"\'') for key, value in _IN_CARD.findall(head[1])} if head else {}
    name = found.get('license')
    if name in (None, 'unknown'):
        return None
    return Licence(name, found.get('license_name', name))


def _in_header(path: Path) -> Licence | None:
    """Returns what the header of a single file says (modelspec.py)."""
    try:
        name = files.read_metadata(path).get(f'{modelspec.PREFIX}license')
    except WeightsError:
        return None
    return Licence('other', name) if name else None
