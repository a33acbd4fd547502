"""Files of generated images that people take away: written whole or not at all, marked, and signed if a run says so.

The settings samples.c2pa_certificate and samples.c2pa_key of a run count for its samples, for what sample and generate
make with its models, and for the images that evaluate keeps. Class images are data for training, which class_images.py
writes without a signature.
"""

from pathlib import Path

import numpy as np
from PIL import Image

from dreambooth_jax.config import SamplesConfig
from dreambooth_jax.data import content_credentials, provenance
from dreambooth_jax.data.content_credentials import CredentialsError, Sign
from dreambooth_jax.system import disk


def signer_of(samples: SamplesConfig, otherwise: str = 'set both to None') -> Sign | None:
    """Returns what signs the images of a run; None if its settings name no certificate.

    A trial signature is made at once, so that a wrong file is known before any image is generated.

    Args:
      samples: the run's settings.
      otherwise: how whoever reads the error can do without a signature.

    Raises:
      CredentialsError: if the files do not sign; what is returned raises it too (content_credentials.signer).
    """
    if samples.c2pa_certificate is None:
        return None
    try:
        return content_credentials.signer(Path(samples.c2pa_certificate), Path(samples.c2pa_key))
    except CredentialsError as error:
        settings = 'config.samples.c2pa_certificate and config.samples.c2pa_key'
        raise CredentialsError(f'{settings}: {error}, or {otherwise}') from None


def write(
    image: Image.Image | np.ndarray, path: Path, facts: provenance.Facts | None = None, sign: Sign | None = None
) -> None:
    """Writes a generated image as a PNG file, which has its name only once it is whole and signed.

    Args:
      image: the image, or its pixels uint8[H, W, 3].
      path: the file.
      facts: what it was generated with; None: the file has the mark alone.
      sign: signs a finished PNG file in its place; None: it is not signed.

    Raises:
      OSError: if the disk does not take the file.
      CredentialsError: if it cannot be signed, such as after the certificate has expired.
    """
    with disk.writing(path) as new:
        provenance.save(image, new, facts)
        if sign is not None:
            sign(new)
