"""The files of generated images: one for each image, and a sheet that compares prompts.

<folder>/000_00.png ...        number of the prompt, number of the image; from the last stage
<folder>/base/000_00.png ...   the base stage's, if there are two stages
<folder>/grid.png              a row of each prompt
"""

from collections.abc import Callable, Sequence
from pathlib import Path

from dreambooth_jax.data import provenance
from dreambooth_jax.generation.cascade import BASE, Images
from dreambooth_jax.generation.origin import Origin
from dreambooth_jax.monitoring import grids
from dreambooth_jax.system import disk

_SMALLEST, _LARGEST = 96, 256  # sides of an image on the sheet, in pixels


def write(
    images: Images,
    prompts: Sequence[str],
    folder: Path,
    origin: Origin,
    sign: Callable[[Path], None] | None = None,
) -> None:
    """Writes the images of N prompts, each completely or not at all, and the sheet.

    Args:
      images: as many of every prompt, as Cascade.generate returns them.
      prompts: the N prompts.
      folder: the folder; it is made if it is missing.
      origin: what the files say of themselves.
      sign: signs a finished PNG file in its place (content_credentials.py); None: nothing is signed.

    Raises:
      OSError: if the disk does not take a file.
    """
    final, count = images.final, len(images.final) // len(prompts)
    folders = {folder: final}
    if images.super_resolution is not None:
        folders[folder / BASE] = images.base
    for where, of_stage in folders.items():
        where.mkdir(parents=True, exist_ok=True)
        for index, pixels in enumerate(of_stage):
            prompt, number = divmod(index, count)
            facts = origin.facts(prompts[prompt], number, last=of_stage is final)
            _write(pixels, where / f'{prompt:03d}_{number:02d}.png', facts, sign)
    side = min(max(final.shape[1], _SMALLEST), _LARGEST)
    sheet = grids.contact_sheet(final.reshape(len(prompts), count, *final.shape[1:]), prompts, side=side)
    _write(sheet, folder / 'grid.png', origin.facts('\n'.join(prompts)), sign)


def _write(image, path: Path, facts: provenance.Facts | None, sign: Callable[[Path], None] | None) -> None:
    with disk.writing(path) as new:
        provenance.save(image, new, facts)
        if sign is not None:
            sign(new)
