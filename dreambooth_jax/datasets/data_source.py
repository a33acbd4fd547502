"""Reads the images of a dataset of TensorFlow Datasets (TFDS) as photos, without tensorflow.

They are read by TFDS's data source, which needs a dataset that is prepared as array_record or parquet. Images stay the
files that they were when the dataset was prepared, so that a photo is the same photo, by its hash too, whether it lies
in a dataset or in a folder.
"""

import contextlib
import importlib.util
import io
import os
from collections.abc import Iterator, Mapping
from itertools import repeat
from typing import Any, NamedTuple

from dreambooth_jax.data.decode import ImageError, StoredImage
from dreambooth_jax.data.subjects import ImageFile

_FORMAT = 'array_record'
_FILE_NAMES = ('file_name', 'filename', 'image/filename')  # what datasets call the name of an image's file
_PACKAGES = ('tensorflow_datasets', 'array_record', 'importlib_resources')  # TFDS imports the last two on demand


class Dataset(NamedTuple):
    """The images of a dataset.

    Attributes:
      name: with its configuration and version, such as 'dreambench/dog/1.0.0'.
      files: the images in the dataset's order. They have no captions and no masks.
    """

    name: str
    files: list[ImageFile]


def read(
    name: str,
    split: str | None = None,
    *,
    data_dir: str | os.PathLike | None = None,
    manual_dir: str | os.PathLike | None = None,
) -> Dataset:
    """Reads the images of a dataset. dreambench is prepared first where it is not yet, in less than a second.

    Args:
      name: the dataset as tfds.builder takes it, such as 'dreambench/dog'.
      split: what to read, in TFDS's notation, such as 'train[:5]'. None: all splits.
      data_dir: folder of prepared datasets. None: the one of TFDS, which is the environment variable TFDS_DATA_DIR or
        ~/tensorflow_datasets.
      manual_dir: folder that dreambench is prepared from, see dreambench.py. None: downloads/manual in data_dir.

    Returns:
      The images, with the dataset's whole name.

    Raises:
      ImageError: if that is not possible. Its message is a clause that says what is wrong with the name.
    """
    tfds = _import()
    with _refusals():
        builder = _prepared(tfds, name, data_dir, manual_dir)
        name, split = builder.info.full_name, split or 'all'
        if not builder.info.splits[split].num_examples:
            raise ImageError(f'{split} of {name} holds no image')
        image_key, name_key = _keys(tfds, name, dict(builder.info.features.items()))
        decoders = {image_key: tfds.decode.SkipDecoding()}
        examples = list(builder.as_data_source(split, decoders=decoders))
    names = [example[name_key].decode('utf-8', 'replace') for example in examples] if name_key else []
    if len(set(names)) < len(examples):  # files are known by their names
        names = [f'{number:05d}' for number in range(len(examples))]
    data = [example[image_key] for example in examples]
    images = map(StoredImage, names, repeat(name), data)
    return Dataset(name, [ImageFile(image, None) for image in images])


def _keys(tfds: Any, name: str, features: Mapping[str, Any]) -> tuple[str, str | None]:
    """Returns which features are the image and the name of its file; None if no feature is that.

    Raises:
      ImageError: unless exactly one feature is an image.
    """
    # Exactly of this class: LabeledImage, for masks, is derived from it.
    images = [key for key, feature in features.items() if type(feature) is tfds.features.Image]
    if len(images) != 1:
        known = ', '.join(sorted(features))
        raise ImageError(f'{name} must have one feature that is an image, but has {len(images)} among {known}')
    texts = (key for key in _FILE_NAMES if isinstance(features.get(key), tfds.features.Text))
    return images[0], next(texts, None)


def _import() -> Any:
    """Returns the module tensorflow_datasets, which knows dreambench then.

    Raises:
      ImageError: if a package is missing.
    """
    for package in _PACKAGES:
        if importlib.util.find_spec(package) is None:
            raise ImageError(f"the package {package} is not installed; pip install -e '.[tfds]'")
    import tensorflow_datasets as tfds

    from dreambooth_jax.datasets import dreambench  # noqa: F401

    return tfds


def _prepared(tfds: Any, name: str, data_dir: str | os.PathLike | None, manual_dir: str | os.PathLike | None) -> Any:
    """Returns the builder of a dataset that is prepared.

    Raises:
      ImageError: if it is not and cannot be.
    """
    from dreambooth_jax.datasets.dreambench import NAME, Dreambench

    parsed, options = tfds.core.naming.parse_builder_name_kwargs(name)
    if others := options.keys() - {'config', 'version'}:
        raise ImageError(f'it holds arguments ({", ".join(sorted(others))}); give the name alone')
    config = options.get('config')
    if parsed.name == NAME and config not in Dreambench.builder_configs:
        known = ', '.join(Dreambench.builder_configs)
        raise ImageError(f'{NAME} needs the name of a configuration, such as {NAME}/dog; it has {known}')
    builder = tfds.builder(name, data_dir=data_dir)
    if builder.data_path.exists():
        return builder
    if parsed.name != NAME:
        raise ImageError(
            f'it is not prepared in {builder.data_dir_root}; prepare it there as {_FORMAT} (a run prepares only {NAME})'
        )
    settings = tfds.download.DownloadConfig(manual_dir=manual_dir, try_download_gcs=False)
    try:
        with _silent(tfds):
            builder.download_and_prepare(download_config=settings, file_format=_FORMAT)
    except OSError:
        # Another process may have prepared it meanwhile: then the last step, which gives the folder its name, fails.
        builder = tfds.builder(name, data_dir=data_dir)
        if not builder.data_path.exists():
            raise
    return builder


@contextlib.contextmanager
def _refusals() -> Iterator[None]:
    """Turns what TFDS raises for a wrong name, version or split into one sentence."""
    try:
        yield
    except ImageError:
        raise
    except NotImplementedError:
        raise ImageError(f'it is prepared in another format than {_FORMAT}; prepare it as that') from None
    except (ValueError, AssertionError) as error:
        told = str(error).strip().splitlines()[0]
        raise ImageError(f'TFDS says: {told}') from None


@contextlib.contextmanager
def _silent(tfds: Any) -> Iterator[None]:
    """Hides the lines and progress bars of a preparation that takes less than a second."""
    progress = tfds.core.utils.tqdm_utils
    before = progress._active
    progress.display_progress_bar(False)
    try:
        with contextlib.redirect_stdout(io.StringIO()):
            yield
    finally:
        progress.display_progress_bar(before)
