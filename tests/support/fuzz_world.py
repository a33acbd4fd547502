"""The folder in which a fuzz case runs, with photos, a tiny model and room for runs; at first nothing in it is bent.

A bend (bends_*.py) changes one thing and says what must be the result. test_fuzz.py checks what must be true for every
bend: the exit code is 0 or 1, an error is one sentence without a traceback, every photo is used or named as skipped,
and nothing outside the run's own folders changes.
"""

import hashlib
import json
import logging
import re
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from PIL import Image

from tests.support import smallest_pipelines

SIDE = 24  # of the photos in px; larger than the images of both models, so that photos are scaled down
NAMES = ('1', '2', '3')
CONFIG = """
from dreambooth_jax.config import DreamBoothConfig, to_config_dict

def get_config():
    config = to_config_dict(DreamBoothConfig())
    config.model = 'model'
    config.super_resolution_model = 'none'
    config.data.instance_dir = 'photos'
    config.data.instance_prompt = 'a sks dog'
    config.data.class_prompt = 'a dog'
    config.prior.num_images = 1
    config.prior.steps = 1
    config.prior.sampler = 'ddim'
    config.prior.guidance_scale = 1.0
    config.prior.batch_size = 1
    config.base.steps = 1
    config.base.learning_rate = 1e-3
    config.samples.steps = 1
    config.samples.num_images = 1
    config.samples.guidance_scale = 1.0
    config.samples.sampler = 'ddim'
    return config
"""


class Expected(NamedTuple):
    """The expected result of a bend.

    Attributes:
      code: the exit code; None if both 0 and 1 are right.
      words: if the code is 1, the error must contain at least one of these.
      check: function of the World and of what a run with code 0 saw; it asserts that the result is right.
    """

    code: int | None
    words: tuple[str, ...] = ()
    check: Callable[['World', 'Seen'], None] | None = None


class Seen(NamedTuple):
    """What a run saw: the subject's images uint8[N, H, W, 3] and the weights (None if it ended earlier), its output."""

    images: np.ndarray | None
    params: Mapping[str, np.ndarray] | None
    out: str


class World:
    """The folder of one case.

    Attributes:
      root: the folder that holds everything; programs run in `root / 'here'`.
      photos, model, run: folders; `run` is the --workdir and does not exist at first.
      kind: 'pixels' or 'latents'.
      program, arguments: the program to start and its arguments; a bend may change them.
      fresh: names in `here` that programs may create.
      new: beginnings of paths below `root` that programs may create.
    """

    def __init__(self, root: Path, kind: str):
        self.root, self.kind = root, kind
        self.here = root / 'here'
        self.photos, self.model, self.run = self.here / 'photos', self.here / 'model', self.here / 'run'
        self.photos.mkdir(parents=True)
        self.fresh, self.new = ('run',), ('\0',)
        self.program = 'train'
        self.arguments = ['--config=config.py', '--workdir=run', '--dry_run']
        (self.here / 'config.py').write_text(CONFIG)
        (root / 'sentinel').mkdir()
        (root / 'sentinel' / 'precious.txt').write_text('not to be touched')
        for seed, name in enumerate(NAMES):
            photo(seed).save(self.photos / f'{name}.png')
        self.model.symlink_to(smallest_pipelines.folder(kind))

    def own_model(self) -> Path:
        """Replaces the link to the model by a copy that may be changed."""
        if self.model.is_symlink():
            self.model.unlink()
            shutil.copytree(smallest_pipelines.folder(self.kind), self.model)
        return self.model

    def snapshot(self) -> dict[str, str]:
        """Hashes every file below the root, except where programs may write."""
        found = {}
        for path in sorted(self.root.rglob('*')):
            inside = path.relative_to(self.here).parts if path.is_relative_to(self.here) else ()
            if not (inside and (inside[0] in self.fresh or '__pycache__' in inside)):
                is_file = path.is_file() and not path.is_symlink()
                found[str(path.relative_to(self.root))] = (
                    hashlib.sha256(path.read_bytes()).hexdigest() if is_file else 'a folder or link'
                )
        return found


def photo(seed: int, side: int = SIDE) -> Image.Image:
    """Returns a smooth coloured image, which lossy formats change by only a few levels."""
    rng = np.random.default_rng(seed)
    corners = rng.integers(40, 216, (2, 2, 3), np.uint8)
    return Image.fromarray(corners).resize((side, side), Image.Resampling.BILINEAR)


def check_message(error: str, words: tuple[str, ...]) -> None:
    """Checks that an error is a sentence for users, without traceback or bare exception, with one of the words."""
    assert 'Traceback' not in error, error
    last = error.strip().splitlines()
    assert last, 'exit code 1 without a word'
    assert not re.match(r"^(\w+(Error|Exception)\b|'\w*'$|\[Errno)", last[-1].strip()), error
    assert len(error.split()) >= 5, error
    assert not words or any(word.lower() in error.lower() for word in words), (words, error)


def check_accounting(found: list[tuple], skipped: Mapping[str, str], folder: Path, said: str) -> None:
    """Checks that every file of the folder is a photo, a caption or mask of one, or was named as skipped."""
    beside = {path.name for path in folder.iterdir() if not path.name.startswith('.')}
    used = {file.path.name for file in found} | {file.mask.name for file in found if file.mask}
    stems = {file.path.stem.lower() for file in found if file.caption is not None}
    for name in beside - used - set(skipped):
        suffix = Path(name).suffix.lower()
        assert suffix in ('.txt', '.caption') and Path(name).stem.lower() in stems, f'{name} is lost without a word'
    for name in skipped:
        assert name in said or ascii(name)[1:-1] in said, f'{name} is skipped without a word'


class Log(logging.Handler):
    """Collects the warnings that programs log."""

    def __init__(self):
        super().__init__(logging.WARNING)
        self.text = ''

    def emit(self, record):
        self.text += record.getMessage() + '\n'


def change_json(path: Path, change: Callable[[dict[str, Any]], None]) -> None:
    content = json.loads(path.read_text())
    change(content)
    path.write_text(json.dumps(content))
