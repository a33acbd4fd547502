"""Content Credentials: signs images by C2PA, so that a change of the file can be seen and who signed is known.

The signature covers all of the file, its mark and texts too, and says that a model generated the image. It holds no
prompt of its own and names no photo as an ingredient. It does not say that what was signed is true, only who said it;
a certificate that its reader's list of trusted roots does not know is shown as valid but untrusted. There is no time
stamp, which would need a service on the network: readers trust the signature until the certificate expires. Whoever
removes the signature leaves an unsigned image, not a broken one.

Needs the package c2pa-python (pip install 'dreambooth-jax[provenance]').

Source: C2PA Technical Specification 2.2, c2pa.actions.v2 and X.509 certificates.
"""

import io
from collections.abc import Callable
from pathlib import Path
from typing import Any

from dreambooth_jax.data import provenance

_FORMAT = 'image/png'
# A thumbnail would stand inside the image that it shows. Nothing is looked up on the network.
_SETTINGS = {'builder': {'thumbnail': {'enabled': False}}, 'verify': {'remote_manifest_fetch': False}}

Sign = Callable[[Path], None]  # signs a finished PNG file in its place; may raise CredentialsError


class CredentialsError(ValueError):
    """Images cannot be signed. The message is one sentence: the file, what is wrong and what to do."""


def signer(certificate: Path, key: Path) -> Sign:
    """Returns what signs PNG files in their place.

    A trial signature is made at once, so that a wrong file is known before any image is generated.

    Args:
      certificate: PEM file with the certificate for signing and, behind it, those that lead up to its root.
      key: PEM file with its private key, not encrypted: RSA of at least 2048 bits, P-256, P-384, P-521 or Ed25519.

    Raises:
      CredentialsError: if c2pa-python is not installed, or the files cannot be read, do not belong together or are not
        such as C2PA allows. What is returned raises it too, such as after the certificate has expired.
    """
    try:
        import c2pa
        from cryptography.hazmat.primitives.serialization import load_pem_private_key
    except ImportError:
        raise CredentialsError(
            "signing needs the package c2pa-python, which is not installed; pip install 'dreambooth-jax[provenance]'"
        ) from None
    pems = {path: _read(path) for path in (certificate, key)}
    try:
        algorithm = _algorithm(load_pem_private_key(pems[key], password=None))
    except (ValueError, TypeError) as error:  # TypeError: it is encrypted
        raise CredentialsError(
            f'{key} is no private key that can be used ({_first_line(error)}); give a PEM file that is not encrypted, '
            f'of RSA, P-256, P-384, P-521 or Ed25519'
        ) from None
    info = c2pa.C2paSignerInfo(algorithm, pems[certificate], pems[key], None)

    def signed(data: bytes) -> bytes:
        context = c2pa.Context.from_dict(_SETTINGS)
        program = {'name': provenance.PROGRAM, 'version': provenance.VERSION}
        with c2pa.Builder({'claim_generator_info': [program]}, context=context) as builder:
            source_type = c2pa.C2paDigitalSourceType.TRAINED_ALGORITHMIC_MEDIA
            builder.set_intent(c2pa.C2paBuilderIntent.CREATE, source_type)
            found = io.BytesIO()
            try:
                builder.sign(c2pa.Signer.from_info(info), _FORMAT, io.BytesIO(data), found)
            except c2pa.C2paError as error:
                raise CredentialsError(
                    f'{certificate} and {key} do not sign ({_first_line(error)}); give a certificate for signing as '
                    f'C2PA wants it, with the chain behind it, and its private key'
                ) from None
        return found.getvalue()

    def sign(path: Path) -> None:
        path.write_bytes(signed(path.read_bytes()))

    signed(_smallest_image())
    return sign


def _algorithm(key: Any) -> str:
    """Returns the name of C2PA's algorithm for a private key; raises ValueError if there is none."""
    from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa

    if isinstance(key, ed25519.Ed25519PrivateKey):
        return 'ed25519'
    if isinstance(key, rsa.RSAPrivateKey):
        return 'ps256'
    curves = {'secp256r1': 'es256', 'secp384r1': 'es384', 'secp521r1': 'es512'}
    if isinstance(key, ec.EllipticCurvePrivateKey) and key.curve.name in curves:
        return curves[key.curve.name]
    raise ValueError('a key of another kind')


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise CredentialsError(f'{path} cannot be read: {error.strerror}; give a PEM file that can') from None


def _first_line(error: Exception) -> str:
    return next(iter(str(error).splitlines()), type(error).__name__)


def _smallest_image() -> bytes:
    from PIL import Image

    file = io.BytesIO()
    provenance.save(Image.new('RGB', (1, 1)), file)
    return file.getvalue()
