"""Makes the screenshots of the web page that the README shows, of a finished run.

  python -m tests.support.screenshots RUN OUT

RUN: a finished run of configs/dog.py:storybook-flow on the built-in dog, which is shown as runs/dog.
OUT: a folder for runs.png, photos.png, new.png and run.png.

The server runs in /tmp/studio, which must not be there yet, so that pages show no path of anybody.
"""

import os
import shutil
import sys
from pathlib import Path

import numpy as np
from PIL import Image

from dreambooth_jax.config import STORYBOOK_FLOW
from dreambooth_jax.data import provenance
from dreambooth_jax.storybook import draw
from dreambooth_jax.storybook.subjects import captions, reference_scenes
from tests.support import chromium
from tests.support.served import CONFIGS, Server

FOLDER = Path('/tmp/studio')
WIDTH, SIDE = 1100, 768
LOADED = '[...document.images].every(one => one.complete && one.naturalWidth > 0)'


class _Server(Server):
    """A server whose paths are relative to the folder in which this program works."""

    def __init__(self, *flags: str):
        shutil.copytree(CONFIGS, 'configs')
        super().__init__(Path('runs'), *flags, configs=Path('configs'), folder=Path.cwd())


def main(run: Path, out: Path) -> None:
    out.mkdir(parents=True, exist_ok=True)
    run, out = run.resolve(), out.resolve()
    FOLDER.mkdir()
    try:
        os.chdir(FOLDER)
        shutil.copytree(run, Path('runs', 'dog'))
        for number, scene in enumerate(reference_scenes('dog')[:4]):
            provenance.save(draw.paint(scene, SIDE), FOLDER / f'{number}.png', source=provenance.PAINTED)
        with _Server('--price_per_hour=1.20 USD') as server:
            with chromium.Page(server.address, Path('profile'), width=WIDTH) as page:
                shoot(page, f'http://127.0.0.1:{server.port}', out)
        for path in out.glob('*.png'):  # they show generated images
            with Image.open(path) as image:
                pixels = np.asarray(image.convert('RGB'))
            provenance.save(pixels, path)
    finally:
        shutil.rmtree(FOLDER)


def shoot(page: chromium.Page, address: str, out: Path) -> None:
    page.screenshot(out / 'runs.png')
    page.go(f'{address}/photos')
    page.drop('.drop', sorted(FOLDER.glob('*.png')))
    page.until("location.pathname === '/photos/photos-1' && document.querySelectorAll('main li img').length === 4")
    page.until(f"{LOADED} && document.querySelector('main').textContent.includes('No check knows')")
    page.fill('[data-caption]', captions('dog', 'a sks dog')[0])
    page.until("document.querySelector('#told').textContent === 'The caption is saved.'")
    page.screenshot(out / 'photos.png')
    page.go(f'{address}/new?photos=photos-1&config=dog:{STORYBOOK_FLOW}')
    page.until("document.querySelector('#plan').textContent.includes('an hour')", 300)
    page.screenshot(out / 'new.png')
    page.go(f'{address}/runs/dog')
    page.until(LOADED)
    page.screenshot(out / 'run.png')


if __name__ == '__main__':
    main(*map(Path, sys.argv[1:]))
