"""Scores of images that are known by their features alone: how like the subject, how like the prompt, how varied, how
copied.

Features are f32[N, D] with rows of length 1, one row per image or text, all of the same encoder. Everything here is
NumPy on the host. A score of a set of images is a mean over prompts of means over the images of a prompt. Its interval
comes from the bootstrap over prompts, since images of one prompt resemble each other: with few prompts it is wide.

Sources: Ruiz et al. 2023, section 4.1 (DINO, CLIP-I, CLIP-T) and section 4.3 (PRES, DIV); Efron and Tibshirani 1993,
chapter 13 (percentile interval); the ranking of look-alikes follows Finer-Personalization Rank (2512.19026).
"""

import dataclasses
from collections.abc import Sequence

import numpy as np

_RESAMPLES = 1000
_CONFIDENCE = 0.95


@dataclasses.dataclass(frozen=True, kw_only=True)
class Score:
    """A number with its interval.

    Attributes:
      value: the mean over prompts.
      low, high: the 95 % bootstrap interval of `value`; None with a single prompt, which says nothing about others.
      images: how many images it is of.
    """

    value: float
    low: float | None
    high: float | None
    images: int


def cosines(one: np.ndarray, other: np.ndarray) -> np.ndarray:
    """Returns the cosine of every row of `one` with every row of `other`.

    Args:
      one: f32[N, D], rows of length 1.
      other: f32[M, D], rows of length 1.

    Returns:
      f64[N, M].

    Raises:
      ValueError: if a row is not of length 1, because its products would be no cosines.
    """
    for features in (one, other):
        lengths = np.linalg.norm(np.asarray(features, np.float64), axis=-1)
        if not np.allclose(lengths, 1.0, atol=1e-3):
            raise ValueError(f'features must have length 1, not between {lengths.min():.3g} and {lengths.max():.3g}')
    return np.asarray(one, np.float64) @ np.asarray(other, np.float64).T


def fidelity(images: np.ndarray, photos: np.ndarray) -> np.ndarray:
    """Returns how like the subject every image is: its mean cosine with all photos, f64[N].

    The mean of it over all images is DINO, DINOv2 or CLIP-I, depending on the encoder. Of images of the class it is
    PRES, where less is better.

    Args:
      images: f32[N, D], features of generated images.
      photos: f32[M, D], features of the subject's photos.
    """
    return cosines(images, photos).mean(axis=1)


def ceiling(photos: np.ndarray) -> dict[str, float | None]:
    """Returns what `fidelity` gives for the photos themselves, which no generated images can be expected to exceed.

    Args:
      photos: f32[M, D], features of the subject's photos.

    Returns:
      'others': the mean over pairs of different photos, None for a single photo; 'with_self': the mean over all
      pairs, each photo's with itself among them. The paper does not say which of them its row "real images" is.
    """
    count, table = len(photos), cosines(photos, photos)
    others = None if count == 1 else float((table.sum() - np.trace(table)) / (count * (count - 1)))
    return {'others': others, 'with_self': float(table.mean())}


def prompt_fidelity(images: np.ndarray, texts: np.ndarray) -> np.ndarray:
    """Returns how like its prompt every image is: CLIP-T, neither scaled nor clipped at 0; f64[N].

    Args:
      images: f32[N, D], CLIP features of the images.
      texts: f32[N, D], CLIP features of each image's prompt.
    """
    if len(images) != len(texts):
        raise ValueError(f'there are {len(images)} images and {len(texts)} prompts; there must be one prompt per image')
    return np.diagonal(cosines(images, texts)).copy()


def copy_score(images: np.ndarray, photos: np.ndarray) -> np.ndarray:
    """Returns every image's cosine with the photo that it is most like, f64[N]; near 1 it is a copy of that photo.

    Args:
      images: f32[N, D], features of generated images.
      photos: f32[M, D], features of the photos that the model was trained on.
    """
    return cosines(images, photos).max(axis=1)


def retrieval(images: np.ndarray, photos: np.ndarray, look_alikes: np.ndarray) -> np.ndarray:
    """Returns how well every image finds its subject's photos among look-alikes: the average precision, f64[N].

    Each image is a query. Photos and look-alikes are sorted by their cosine with it, a look-alike first where two are
    equal. 1 means that all photos come before all look-alikes. Unlike a cosine, it says whether this subject is shown
    and not one like it.

    Args:
      images: f32[N, D], features of generated images.
      photos: f32[M, D], features of the subject's photos.
      look_alikes: f32[K, D], features of class images and of other subjects.
    """
    to_photos, to_others = cosines(images, photos), cosines(images, look_alikes)
    # Rank of the j-th best photo: the j photos up to it and the look-alikes that are at least as like.
    ordered = -np.sort(-to_photos, axis=1)
    before = (to_others[:, None, :] >= ordered[:, :, None]).sum(axis=2)
    found = np.arange(1, photos.shape[0] + 1)
    return (found / (found + before)).mean(axis=1)


def score(values: Sequence[float], groups: Sequence[str], *, seed: int = 0) -> Score:
    """Returns the mean over groups of the mean of each group's values, with its interval.

    Args:
      values: one number per image.
      groups: the prompt of each image, or its subject where subjects are compared.
      seed: of the resampling.
    """
    values = np.asarray(values, np.float64)
    if len(values) != len(groups) or not len(values):
        raise ValueError(f'there are {len(values)} values and {len(groups)} groups; there must be one group per value')
    _, members = np.unique(np.asarray(groups), return_inverse=True)
    means = np.bincount(members, values) / np.bincount(members)
    low, high = interval(means, seed=seed)
    return Score(value=float(means.mean()), low=low, high=high, images=len(values))


def interval(means: np.ndarray, *, seed: int = 0) -> tuple[float | None, float | None]:
    """Returns the 95 % percentile interval of the mean of `means`, f64[G]; (None, None) if there is only one."""
    if len(means) < 2:
        return None, None
    drawn = np.random.default_rng(seed).integers(0, len(means), (_RESAMPLES, len(means)))
    low, high = np.quantile(means[drawn].mean(axis=1), [(1 - _CONFIDENCE) / 2, (1 + _CONFIDENCE) / 2])
    return float(low), float(high)
