"""The files of generated images: one for each image, and a sheet that compares prompts.

<folder>/000_00.png ...        number of the prompt, number of the image; from the last stage
<folder>/base/000_00.png ...   the base stage's, if there are two stages
<folder>/grid.png              a row of each prompt
"""

from collections.abc import Sequence
from pathlib import Path

from dreambooth_jax.data.content_credentials import Sign
from dreambooth_jax.generation import signed_files
from dreambooth_jax.generation.cascade import BASE, Images
from dreambooth_jax.generation.origin import Origin
from dreambooth_jax.monitoring import grids

_SMALLEST, _LARGEST = 96, 256  # sides of an image on the sheet, in pixels


def write(
    images: Images,
    prompts: Sequence[str],
    folder: Path,
    origin: Origin,
    sign: Sign | None = None,
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
      CredentialsError: if a file cannot be signed.
    """
    final, count = images.final, len(images.final) // len(prompts)
    places = [(prompt, number) for prompt in range(len(prompts)) for number in range(count)]
    write_images(images, places, prompts, folder, origin, sign)
    side = min(max(final.shape[1], _SMALLEST), _LARGEST)
    sheet = grids.contact_sheet(final.reshape(len(prompts), count, *final.shape[1:]), prompts, side=side)
    signed_files.write(sheet, folder / 'grid.png', origin.facts('\n'.join(prompts)), sign)


def write_images(
    images: Images,
    places: Sequence[tuple[int, int]],
    prompts: Sequence[str],
    folder: Path,
    origin: Origin,
    sign: Sign | None = None,
    step: int | None = None,
) -> None:
    """Writes some images of N prompts without the sheet, such as a batch of Cascade.stream; errors are those of write.

    Args:
      images: the images.
      places: number of the prompt and number of the image of each.
      prompts, folder, origin, sign: as of write.
      step: the step of the training that the model is at; None: it is not said.
    """
    folder.mkdir(parents=True, exist_ok=True)
    stages = [(folder, images.final)]
    if images.super_resolution is not None:
        (folder / BASE).mkdir(exist_ok=True)
        stages.insert(0, (folder / BASE, images.base))  # so that where the last stage's is, the base stage's is too
    for where, of_stage in stages:
        for (prompt, number), pixels in zip(places, of_stage, strict=True):
            facts = origin.facts(prompts[prompt], number, last=where == folder, step=step)
            signed_files.write(pixels, where / image_name(prompt, number), facts, sign)


def image_name(prompt: int, number: int) -> str:
    """Returns the name of the file of an image, by the numbers of its prompt and of itself."""
    return f'{prompt:03d}_{number:02d}.png'
