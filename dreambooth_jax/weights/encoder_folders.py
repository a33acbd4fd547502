"""Reads the encoders that images and prompts are scored with, from folders as transformers writes them.

    config.json                                     says by model_type which encoder it is (KINDS)
    model.safetensors, or shards and their index
    tokenizer_config.json, vocab.json, ...          only for encoders of text

A folder lies here, or is downloaded once from the hub; Storybook's own are part of the package. A whole CLIP is read as
two networks, one for images and one for texts. LPIPS has no such folder: it is read from a single file.
"""

import dataclasses
import os
import shlex
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from flax import nnx

from dreambooth_jax.models import clip, functional, vit
from dreambooth_jax.models.clip import CLIPTextModel
from dreambooth_jax.models.lpips import LPIPS
from dreambooth_jax.models.vit import VisionTransformer
from dreambooth_jax.storybook import storybook_folder
from dreambooth_jax.weights import aliases, files, hub, mapping
from dreambooth_jax.weights.errors import WeightsError
from dreambooth_jax.weights.pipeline import Network

IMAGE, TEXT = 'image', 'text'
# {model_type: the class of transformers whose files are read}.
KINDS = {
    'vit': 'ViTModel',
    'dinov2': 'Dinov2Model',
    'dinov2_with_registers': 'Dinov2WithRegistersModel',
    'clip': 'CLIPModel',
    'clip_vision_model': 'CLIPVisionModelWithProjection',
    'clip_text_model': 'CLIPTextModelWithProjection',
}
# Storybook's own encoders, which are part of the package: their folders there, and the names that they are read by.
STORYBOOK_ENCODERS = {'dino': 'storybook-dino', 'clip': 'storybook-clip'}
# Those that score by default otherwise: the paper's, and DINOv2.
PUBLISHED_ENCODERS = {
    'dino': 'facebook/dino-vits16',
    'dinov2': 'facebook/dinov2-small',
    'clip': 'openai/clip-vit-base-patch32',
}
ALLOWED = (
    "a folder (with config.json and model.safetensors) or a hub id 'owner/model', or one of Storybook's own: "
    f'{", ".join(STORYBOOK_ENCODERS.values())}'
)
_STEM = 'model'
_TOKENIZER = ('tokenizer_config.json', 'tokenizer.json', 'vocab.json', 'merges.txt', 'special_tokens_map.json')
_DOWNLOADED = ('config.json', 'model.safetensors', 'model.safetensors.index.json', 'model-*.safetensors', *_TOKENIZER)


@dataclasses.dataclass(frozen=True)
class EncoderFolder:
    """An encoder as it was read.

    Attributes:
      folder: where it was read from.
      kind: its model_type, a key of KINDS.
      networks: {IMAGE or TEXT: network}; their configurations are completed with all defaults.
      tokenizer: the folder for text.tokenize.Tokenizer.load; None if it encodes no texts.
    """

    folder: Path
    kind: str
    networks: Mapping[str, Network]
    tokenizer: Path | None


def usual_encoders(is_storybook: bool) -> dict[str, str]:
    """Returns the encoders that score by default: 'dino', 'dinov2' and 'clip' -> what read_encoder takes.

    Args:
      is_storybook: whether the model that is scored is the one that ships with the package.
    """
    return PUBLISHED_ENCODERS | (STORYBOOK_ENCODERS if is_storybook else {})


def read_encoder(name: str | os.PathLike, *, revision: str | None = None) -> EncoderFolder:
    """Reads an encoder of images, of texts or of both.

    Args:
      name: one of ALLOWED. What looks like a path is never looked up on the hub.
      revision: branch, tag or commit of a hub repository; None means its main branch.

    Raises:
      WeightsError: one sentence: what was found, what is allowed and what to do; it may be followed by one line for
        each tensor that does not fit. Pickled weights are refused, and the sentence holds the command that converts
        them.
    """
    folder = _find(name, revision)
    path = folder / 'config.json'
    config = files.read_json(path, ALLOWED)
    kind = config.get('model_type')
    if kind not in tuple(KINDS):  # it may be anything that JSON can hold
        raise WeightsError(f'{path}: model_type is {kind!r}; give an encoder of one of {tuple(KINDS)}.')
    try:
        configs = {part: _RESOLVE[part](own) for part, own in own_configs(config).items()}
    except ValueError as error:
        raise WeightsError(f'{path} is not supported: {str(error).rstrip(".")}.') from None
    weights = _find_weights(folder, kind, str(name), TEXT in configs)
    if TEXT in configs and not (folder / _TOKENIZER[0]).is_file():
        raise WeightsError(
            f'{folder} holds an encoder of texts but no {_TOKENIZER[0]}; put the files of its tokenizer there '
            f'({", ".join(_TOKENIZER)}, as far as there are).'
        )
    tensors = files.read_tensors(weights)
    networks = {part: _network(part, own, tensors, str(weights)) for part, own in configs.items()}
    return EncoderFolder(folder, kind, networks, folder if TEXT in configs else None)


def read_lpips(path: str | os.PathLike) -> Network:
    """Reads LPIPS on AlexNet from one .safetensors file.

    The file holds the state of the `lpips` package's LPIPS(net='alex'), version 0.1:

        python -c "import lpips; from safetensors.torch import save_model
        save_model(lpips.LPIPS(net='alex'), 'lpips.safetensors')"

    or torchvision's AlexNet together with the package's weights/v0.1/alex.pth:

        python -c "import torch; from safetensors.torch import save_file
        read = lambda path: torch.load(path, map_location='cpu', weights_only=True)
        save_file({**read('alexnet-owt-7be5be79.pth'), **read('alex.pth')}, 'lpips.safetensors')"

    Raises:
      WeightsError: as read_encoder.
    """
    path = Path(path).expanduser()
    if path.name.endswith(files.PICKLED_SUFFIXES):
        files.refuse_pickled(path, convert=f'by `{_CONVERT_LPIPS}`, and give that file')
    if not path.name.endswith(files.SUFFIX):
        raise WeightsError(f'{path} is no {files.SUFFIX} file; LPIPS is made into one by `{_CONVERT_LPIPS}`.')
    return _filled(LPIPS, {}, files.read_tensors(path), aliases.LPIPS_ALIASES, aliases.LPIPS_IGNORED, str(path))


_CONVERT_LPIPS = (
    'python -c "import lpips; from safetensors.torch import save_model; '
    "save_model(lpips.LPIPS(net='alex'), 'lpips.safetensors')\""
)
_RESOLVE: dict[str, Callable] = {IMAGE: vit.resolve, TEXT: clip.resolve}


def _find(name: str | os.PathLike, revision: str | None) -> Path:
    hub.check_revision(name, revision)
    path = Path(name).expanduser()
    if path.is_dir():
        return path
    for own, given in STORYBOOK_ENCODERS.items():
        if name == given:
            return storybook_folder() / own
    if not path.exists() and hub.may_be_on_hub(name):
        return hub.download(str(name), _DOWNLOADED, revision=revision, must_be=ALLOWED)
    what = 'is a file' if path.exists() else 'is not there'
    raise WeightsError(f'encoder {str(name)!r} {what}; it must be {ALLOWED}.')


def _find_weights(folder: Path, kind: str, name: str, has_text: bool) -> Path:
    """Returns the weights of an encoder's folder.

    Raises:
      WeightsError: if there are none, or only pickled ones; the sentence says how to convert those.
    """
    # transformers opens pickled files with torch.load(weights_only=True), which runs none of their code.
    save = f't.{KINDS[kind]}.from_pretrained(a).save_pretrained(b)'
    if has_text:
        save += '; t.AutoTokenizer.from_pretrained(a).save_pretrained(b)'
    source = shlex.quote(name)
    command = f'python -c "import sys, transformers as t; a, b = sys.argv[1:]; {save}" {source} converted'
    if not Path(name).expanduser().exists() and not any(folder.glob(f'{_STEM}*{files.SUFFIX}')):
        # It is of the hub, and pickled files were not even downloaded.
        raise WeightsError(
            f'model {name!r} on the hub has no {_STEM}{files.SUFFIX}, but perhaps pickled weights, which can run any '
            f'code when they are opened; convert them where you trust them by `{command}`, and give the folder '
            f'converted.'
        )
    return files.find_weights(folder, _STEM, convert=f'by `{command}`, and give the folder converted')


def own_configs(config: Mapping[str, Any]) -> dict[str, Mapping[str, Any]]:
    """Returns {IMAGE or TEXT: the configuration that a folder of this network alone would have}.

    Raises:
      ValueError: one sentence, if a whole CLIP lacks one of them.
    """
    kind = config['model_type']
    if kind != 'clip':
        return {TEXT if kind == 'clip_text_model' else IMAGE: config}
    # Both towers are projected to the width that the whole CLIP says; inside they may say another one.
    shared = {'projection_dim': config.get('projection_dim', 512)}
    return {
        IMAGE: {**_inner(config, 'vision_config'), **shared, 'model_type': 'clip_vision_model'},
        TEXT: {**_inner(config, 'text_config'), **shared, 'model_type': 'clip_text_model'},
    }


def _inner(config: Mapping[str, Any], key: str) -> dict[str, Any]:
    # Old files of OpenCLIP's models have a second object, which transformers lets override the first.
    found = {name: config.get(name) for name in (key, f'{key}_dict') if name == key or config.get(name) is not None}
    for name, inner in found.items():
        if not isinstance(inner, Mapping):
            raise ValueError(f'{name} is {inner!r} but must be an object')
    return {**found[key], **found.get(f'{key}_dict', {})}


def _network(part: str, config: Mapping[str, Any], tensors: Mapping[str, Any], source: str) -> Network:
    if part == IMAGE:
        names = aliases.VISION_ALIASES, aliases.VISION_IGNORED
        return _filled(lambda rngs: VisionTransformer(config, rngs=rngs), config, tensors, *names, source)
    names = aliases.CLIP_ALIASES, aliases.CLIP_IGNORED
    return _filled(lambda rngs: CLIPTextModel(config, rngs=rngs, projection=True), config, tensors, *names, source)


def _filled(constructor, config, tensors, other_names, ignored, source: str) -> Network:
    model = nnx.eval_shape(lambda: constructor(rngs=functional.Keys(0)))
    params = mapping.load(model, tensors, aliases=other_names, ignored=ignored, source=source)
    return Network(config, functional.split(model)[0], params)
