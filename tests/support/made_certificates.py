"""A certificate for signing, made here and trusted by nobody: a root of its own, and a certificate below it."""

import datetime
from pathlib import Path
from typing import NamedTuple

from dreambooth_jax.config.dreambooth import RunSamplesConfig

YEAR = datetime.timedelta(days=365)


class Made(NamedTuple):
    """Files: the certificate with its root behind it, its private key, and the root alone."""

    certificate: Path
    key: Path
    root: Path


def settings(made: Made, **samples) -> RunSamplesConfig:
    """Returns the settings `samples` of a run that signs with these files."""
    return RunSamplesConfig(c2pa_certificate=str(made.certificate), c2pa_key=str(made.key), **samples)


def make(folder: Path, kind: str = 'ES256', name: str = 'Test Signer', expired: bool = False) -> Made:
    """Makes the files; `kind` is ES256, ES384, PS256 or ED25519. The package `cryptography` is needed."""
    from cryptography import x509
    from cryptography.hazmat.primitives import hashes, serialization
    from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa
    from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

    def new_key():
        if kind == 'ED25519':
            return ed25519.Ed25519PrivateKey.generate()
        if kind == 'PS256':
            return rsa.generate_private_key(public_exponent=65537, key_size=2048)
        return ec.generate_private_key(ec.SECP256R1() if kind == 'ES256' else ec.SECP384R1())

    def named(text):
        attributes = [(NameOID.COUNTRY_NAME, 'DE'), (NameOID.ORGANIZATION_NAME, 'Tests'), (NameOID.COMMON_NAME, text)]
        return x509.Name([x509.NameAttribute(*one) for one in attributes])

    def signed(subject, key, issuer, issuer_key, is_root):
        now = datetime.datetime.now(datetime.UTC)
        until = now - YEAR / 2 if expired and not is_root else now + YEAR
        usage = dict.fromkeys(
            ('content_commitment', 'key_encipherment', 'data_encipherment', 'key_agreement', 'encipher_only'), False
        )
        usage |= {'digital_signature': not is_root, 'key_cert_sign': is_root, 'crl_sign': is_root}
        built = (
            x509.CertificateBuilder()
            .subject_name(named(subject))
            .issuer_name(named(issuer))
            .public_key(key.public_key())
            .serial_number(x509.random_serial_number())
            .not_valid_before(now - YEAR)
            .not_valid_after(until)
            .add_extension(x509.BasicConstraints(ca=is_root, path_length=None), critical=True)
            .add_extension(x509.KeyUsage(**usage, decipher_only=False), critical=True)
            .add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False)
            .add_extension(x509.AuthorityKeyIdentifier.from_issuer_public_key(issuer_key.public_key()), critical=False)
        )
        if not is_root:
            built = built.add_extension(x509.ExtendedKeyUsage([ExtendedKeyUsageOID.EMAIL_PROTECTION]), critical=False)
        return built.sign(issuer_key, None if kind == 'ED25519' else hashes.SHA256())

    root_key, key = new_key(), new_key()
    root = signed('Test Root', root_key, 'Test Root', root_key, True)
    leaf = signed(name, key, 'Test Root', root_key, False)
    made = Made(folder / 'chain.pem', folder / 'key.pem', folder / 'root.pem')
    pem = serialization.Encoding.PEM
    made.certificate.write_bytes(leaf.public_bytes(pem) + root.public_bytes(pem))
    made.root.write_bytes(root.public_bytes(pem))
    made.key.write_bytes(key.private_bytes(pem, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()))
    return made
