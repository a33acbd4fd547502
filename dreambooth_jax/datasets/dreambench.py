"""The thirty subjects of the DreamBooth paper as a dataset of TensorFlow Datasets (TFDS).

    import tensorflow_datasets as tfds
    import dreambooth_jax.datasets.dreambench  # from now on TFDS knows the dataset

    builder = tfds.builder('dreambench/dog', file_format='array_record')
    builder.download_and_prepare(download_config=tfds.download.DownloadConfig(manual_dir='dreambooth/dataset'))
    photos = builder.as_data_source('test')  # photos[0]['image']: uint8[height, width, 3]

Every subject has two configurations: `dog` holds the paper's photos, which TFDS finds in its manual_dir, and
`storybook_dog` the images of Storybook's subject of the same name, which are painted and need no files.

The only split is 'test': DreamBench is a benchmark, which compares methods and feeds none, and that is TFDS's name for
the split of such a dataset. 'all' cannot be the name of a split, because TFDS reads it as all splits together.
"""

import dataclasses
import io
from collections.abc import Iterable, Iterator
from typing import Any, BinaryIO

import numpy as np
import tensorflow_datasets as tfds
from etils.epath import Path

from dreambooth_jax.data import provenance
from dreambooth_jax.data.images import ImageError
from dreambooth_jax.storybook import draw, subjects
from dreambooth_jax.text.prompts import LIVE_CLASSES

NAME = 'dreambench'
SPLIT = 'test'
PAINTED = 'storybook_'  # how the names of painted configurations begin
_SIDE = 128  # of painted images, in pixels
_SUFFIXES = ('.jpg', '.jpeg', '.png')
_SOURCE = 'https://github.com/google/dreambooth'

_DESCRIPTION = """
Thirty subjects with four to six images of each, by which the DreamBooth paper measures subject-driven generation: a
model is fine-tuned on the images of one subject and generates it by the paper's 25 prompts. A photo keeps the bytes of
its file, so that one with an EXIF orientation still has to be turned.
"""
_CITATION = """
@inproceedings{ruiz2023dreambooth,
  title     = {DreamBooth: Fine Tuning Text-to-Image Diffusion Models for Subject-Driven Generation},
  author    = {Ruiz, Nataniel and Li, Yuanzhen and Jampani, Varun and Pritch, Yael and Rubinstein, Michael and
               Aberman, Kfir},
  booktitle = {CVPR},
  year      = {2023}
}
"""
_LICENCE_OF_PHOTOS = (
    'CC BY 4.0 for photos by the authors and their friends, the Unsplash licence for photos from there; '
    f'dataset/references_and_licenses.txt of {_SOURCE} says whose each photo is.'
)
_LICENCE_OF_PAINTED = 'Apache-2.0'


@dataclasses.dataclass(eq=False, kw_only=True)
class DreambenchConfig(tfds.core.BuilderConfig):
    """One subject from one source.

    Attributes:
      subject: the subject's name, which is also the name of its folder in the paper's dataset.
      is_painted: True for Storybook's images, False for the paper's photos.
    """

    subject: str
    is_painted: bool


def _configs() -> list[DreambenchConfig]:
    photos, painted = [], []
    for name, subject in subjects.SUBJECTS.items():
        described = f'The {subject.class_noun} {name!r}'
        photos.append(
            DreambenchConfig(name=name, description=f'{described} in photos.', subject=name, is_painted=False)
        )
        described += f' as Storybook paints it, {_SIDE} x {_SIDE} pixels.'
        painted.append(DreambenchConfig(name=PAINTED + name, description=described, subject=name, is_painted=True))
    return photos + painted


class Dreambench(tfds.core.GeneratorBasedBuilder):
    """Builds the dataset. Its examples are

        image       the bytes of a photo's file or of a PNG; decoded, uint8[height, width, 3]
        subject     such as 'dog6'
        class_noun  the paper's word for the subject's class, such as 'dog'
        is_live     whether the paper's prompts for live subjects apply, those for cats and dogs
        file_name   such as '00.jpg'; examples come in the order of these names

    Preparing a configuration with photos raises ImageError if manual_dir does not hold the subject's photos.
    """

    VERSION = tfds.core.Version('1.0.0')
    RELEASE_NOTES = {'1.0.0': 'The thirty subjects, in photos and painted.'}
    BUILDER_CONFIGS = _configs()
    MANUAL_DOWNLOAD_INSTRUCTIONS = f'Clone {_SOURCE} and give its folder dataset as manual_dir.'

    def _info(self) -> tfds.core.DatasetInfo:
        features = {
            'image': tfds.features.Image(),
            'subject': tfds.features.Text(),
            'class_noun': tfds.features.Text(),
            'is_live': tfds.features.Scalar(np.bool_),
            'file_name': tfds.features.Text(),
        }
        return tfds.core.DatasetInfo(
            builder=self,
            description=_DESCRIPTION,
            features=tfds.features.FeaturesDict(features),
            homepage='https://dreambooth.github.io',
            citation=_CITATION,
            license=_LICENCE_OF_PAINTED if self.builder_config.is_painted else _LICENCE_OF_PHOTOS,
            disable_shuffling=True,  # a photo's place in the order is part of what a run learns from
        )

    def _split_generators(self, dl_manager: tfds.download.DownloadManager) -> dict[str, Iterable]:
        subject = self.builder_config.subject
        images = _painted(subject) if self.builder_config.is_painted else _photos(_manual_dir(dl_manager), subject)
        return {SPLIT: self._generate_examples(images)}

    def _generate_examples(self, images: Iterable[tuple[str, Any]]) -> Iterator[tuple[int, dict[str, Any]]]:
        subject = subjects.SUBJECTS[self.builder_config.subject]
        for number, (file_name, image) in enumerate(images):
            yield (
                number,
                {
                    'image': image,
                    'subject': subject.name,
                    'class_noun': subject.class_noun,
                    'is_live': subject.class_noun in LIVE_CLASSES,
                    'file_name': file_name,
                },
            )


def _manual_dir(dl_manager: tfds.download.DownloadManager) -> Path | None:
    try:
        return dl_manager.manual_dir
    except AssertionError:  # TFDS's answer to a folder that is missing or empty
        return None


def _photos(manual_dir: Path | None, subject: str) -> list[tuple[str, Path]]:
    """Returns the names and paths of a subject's photos.

    Raises:
      ImageError: if there are none.
    """
    folder = manual_dir / subject if manual_dir is not None else None
    found = sorted(folder.iterdir()) if folder is not None and folder.is_dir() else []
    photos = [(path.name, path) for path in found if path.suffix.lower() in _SUFFIXES]
    if not photos:
        nowhere = "manual_dir (where none is given, downloads/manual in TFDS's data_dir) is missing or empty"
        lacking = f'{folder} holds no JPEG or PNG file' if folder is not None else nowhere
        raise ImageError(
            f'{lacking}; clone {_SOURCE} and give its folder dataset as manual_dir, in a run as '
            f'config.data.tfds_manual_dir'
        )
    return photos


def _painted(subject: str) -> Iterator[tuple[str, BinaryIO]]:
    for number, scene in enumerate(subjects.reference_scenes(subject)):
        file = io.BytesIO()
        provenance.save(draw.paint(scene, _SIDE), file, source=provenance.PAINTED)
        file.seek(0)
        yield f'{number:02d}.png', file
