"""Models that are distilled to few steps without guidance, known by their names where nothing in their files says it.

The files of Stable Diffusion 3.5 Large Turbo are those of Large with other numbers, and a file of a transformer alone
says nothing at all. Their published names do.
"""

import dataclasses
import re
from pathlib import Path

from dreambooth_jax.weights.pipeline import Pipeline

# Words of their own: neither 'hyperion' counts nor 'de-turbo', from which the distillation was taken away again.
_WORDS = re.compile(r'(?<![a-z])(?<!\bde[-_])(turbo|schnell|lightning|hyper|lcm|distill(ed)?)(?![a-z])')
_HUB_FOLDER = re.compile(r'models--.+--(.+)')  # of huggingface_hub's cache


def name_of(pipeline: Pipeline) -> str:
    """Returns the published name of the denoiser's weights in small letters, or '' if they were not read from files.

    It is the name of the transformer's own file, if it has one; else that of the hub model, the file or the folder.
    """
    path = pipeline.denoiser_file or pipeline.folder
    if path is None:
        return ''
    path = Path(path)
    hub = [found[1] for part in path.parts if (found := _HUB_FOLDER.fullmatch(part))]
    return (hub[-1] if hub and not pipeline.denoiser_file else path.name).lower()


def is_guess(pipeline: Pipeline) -> bool:
    """Whether a name alone would tell that the model is distilled: then it may be wrong."""
    if pipeline.denoiser_file is not None:
        return True
    return not pipeline.family.is_distilled(dataclasses.replace(pipeline, folder=None))


def by_name(pipeline: Pipeline) -> bool:
    """Whether the name of the denoiser's weights says that they are distilled."""
    return _WORDS.search(name_of(pipeline)) is not None
