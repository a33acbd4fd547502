"""All photos of a subject, checked: one by one, against each other, and whether their folder can be read.

A folder that training would refuse as a whole, such as one with a mask that fits no image, is an error; its images are
then checked all the same, without captions and masks.
"""

import dataclasses
import pathlib
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from dreambooth_jax.data import photo_checks, photo_kinds
from dreambooth_jax.data.decode import ImageError
from dreambooth_jax.data.photo_checks import ERROR, NOTE, SEVERITIES, WARNING, CheckedPhoto, Finding, Reading
from dreambooth_jax.data.subjects import ImageFile, list_images

Embed = Callable[[Sequence[np.ndarray]], np.ndarray]


@dataclasses.dataclass(frozen=True, eq=False)
class CheckedSubject:
    """The photos of a subject and what was found in them.

    Attributes:
      place: their folder or dataset.
      photos: in the order in which a run uses them.
      findings: those about all of them or about several, the worst first.
    """

    place: str
    photos: Sequence[CheckedPhoto]
    findings: Sequence[Finding]

    @property
    def all_findings(self) -> list[Finding]:
        """Every finding, the worst first."""
        return photo_checks.worst_first([*self.findings, *(one for photo in self.photos for one in photo.findings)])

    def of_photo(self, photo: CheckedPhoto) -> list[Finding]:
        """Returns every finding that names a photo, the worst first."""
        return [finding for finding in self.all_findings if finding.photo == photo.name]

    def to_json(self) -> dict[str, Any]:
        """Returns all of it as JSON can hold it; boxes are left, top, right and bottom in pixels of the photo."""
        return {
            'place': self.place,
            'photos': [
                {
                    'name': photo.name,
                    'size': photo.size,
                    'crops': {stage: [_whole(one.box) for one in crops] for stage, crops in photo.crops.items()},
                    'proposed crop': photo.proposal,
                }
                for photo in self.photos
            ],
            'findings': [finding._asdict() for finding in self.all_findings],
        }


def check_folder(folder: str | pathlib.Path, reading: Reading, embed: Embed | None = None) -> CheckedSubject:
    """Checks the photos in a folder.

    Args:
      folder: the folder.
      reading: how a run would read it.
      embed: N images, uint8[H, W, 3] -> f32[N, D] of length 1, the features of an encoder; None: there is none.

    Raises:
      ImageError: if the folder is missing or cannot be read, or holds no image.
    """
    try:
        files, skipped = list_images(folder)
        findings = _of_skipped(skipped)
    except ImageError as error:
        files = _images_alone(pathlib.Path(folder))
        if not files:
            raise
        words, _, advice = str(error).partition('; ')
        findings = [Finding(ERROR, 'folder', None, words, advice)]
    if not files:
        raise ImageError(f'the folder {folder} holds no image; put images ({photo_kinds.READABLE}) there')
    return check_files(str(folder), files, reading, embed, findings)


def check_files(
    place: str,
    files: Sequence[ImageFile],
    reading: Reading,
    embed: Embed | None = None,
    findings: Sequence[Finding] = (),
) -> CheckedSubject:
    """Checks the photos of a subject wherever they lie.

    Args:
      place: their folder or dataset, in words.
      files: the photos, in the order in which a run uses them.
      reading, embed: as in `check_folder`.
      findings: what is known about them already.
    """
    photos = [photo_checks.check_photo(file, index, reading) for index, file in enumerate(files)]
    seen = [photo for photo in photos if photo.centre is not None]
    images = [photo.centre.image for photo in seen]
    features = None if embed is None or not images else embed(images)
    together = photo_checks.check_together([photo.name for photo in seen], images, features)
    every = [*findings, *together, *photo_checks.check_crops(photos)]
    return CheckedSubject(place, photos, photo_checks.worst_first(every))


def verdict(subjects: Sequence[CheckedSubject]) -> str:
    """Returns one sentence about all findings."""
    found = [finding for subject in subjects for finding in subject.all_findings]
    counts = {severity: sum(one.severity == severity for one in found) for severity in SEVERITIES}
    numbers = ', '.join(f'{n} {name}{"" if n == 1 else "s"}' for name, n in counts.items() if n)
    if counts[ERROR]:
        return f'{numbers}: training would refuse these photos'
    if counts[WARNING]:
        return f'{numbers}: training would begin, but look at the warnings first'
    return f'{numbers or "nothing found"}: these photos can be trained on'


def _of_skipped(skipped: Mapping[str, str]) -> list[Finding]:
    do = 'take it out of the folder if it is not meant for this'
    return [Finding(NOTE, 'skipped', name, f'it is skipped: {why}', do) for name, why in skipped.items()]


def _images_alone(folder: pathlib.Path) -> list[ImageFile]:
    """Returns the images of a folder by their content alone, without masks and captions; none if it is no folder."""
    if not folder.is_dir():
        return []
    visible = (path for path in sorted(folder.iterdir()) if not path.name.startswith('.'))
    return [ImageFile(path, None) for path in visible if photo_kinds.look(path).format]


def _whole(box: Sequence[float]) -> list[int]:
    return [round(side) for side in box]
