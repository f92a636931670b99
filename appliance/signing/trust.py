"""Keys and certificates: whose signatures are trusted, and whether a signature is one of theirs."""

from __future__ import annotations

import datetime as dt
import hashlib
import os
import stat
from collections.abc import Sequence
from dataclasses import dataclass

from cryptography import x509
from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID
from cryptography.x509.verification import ExtensionPolicy, PolicyBuilder, Store, VerificationError

from appliance.core.errors import ConfigError
from appliance.signing.bundle import Bundle, encoding_of
from appliance.signing.errors import SignatureError

__all__ = ["PrivateKey", "Trust", "key_hint", "private_key", "read_trust", "signature_of", "signer_of"]

PrivateKey = ec.EllipticCurvePrivateKey

_HASHES: dict[str, type[hashes.HashAlgorithm]] = {
    "secp256r1": hashes.SHA256,
    "secp384r1": hashes.SHA384,
    "secp521r1": hashes.SHA512,
}
_CURVES = "an elliptic curve (P-256, P-384 or P-521)"
_MAX_KEY_BYTES = 1 << 20
_MAX_CERTIFICATES = 16


@dataclass(frozen=True, slots=True)
class Trust:
    """Public keys, with the files that they are from, and certificates of authorities."""

    keys: tuple[tuple[str, ec.EllipticCurvePublicKey], ...] = ()
    authorities: tuple[x509.Certificate, ...] = ()


def read_trust(paths: Sequence[str]) -> Trust:
    """Return the keys and certificates in the files `paths`, each in PEM. Raise ConfigError if one cannot be used."""
    keys: list[tuple[str, ec.EllipticCurvePublicKey]] = []
    authorities: list[x509.Certificate] = []
    for path in paths:
        data = _read(path)
        remedy = f"give a public key of {_CURVES}, or certificates of an authority, in PEM"
        if b"PRIVATE KEY-----" in data:
            raise ConfigError(f"{path} has a private key", "only who signs may have that: give its public key")
        try:
            if b"-----BEGIN CERTIFICATE-----" in data:
                authorities += x509.load_pem_x509_certificates(data)
                continue
            key = serialization.load_pem_public_key(data)
        except (ValueError, UnsupportedAlgorithm) as error:
            raise ConfigError(f"{path} has no key and no certificate: {error}", remedy) from None
        if not isinstance(key, ec.EllipticCurvePublicKey) or key.curve.name not in _HASHES:
            raise ConfigError(f"the key in {path} is none of {_CURVES}", remedy)
        keys.append((path, key))
    return Trust(tuple(keys), tuple(authorities))


def private_key(path: str) -> PrivateKey:
    """Return the private key in a file in PEM. Raise ConfigError if it cannot be used."""
    remedy = f"give a private key of {_CURVES}, in PEM and without a password"
    try:
        key = serialization.load_pem_private_key(_read(path), None)
    except (ValueError, TypeError, UnsupportedAlgorithm) as error:
        raise ConfigError(f"{path} has no private key that can be used: {error}", remedy) from None
    if not isinstance(key, ec.EllipticCurvePrivateKey) or key.curve.name not in _HASHES:
        raise ConfigError(f"the key in {path} is none of {_CURVES}", remedy)
    return key


def _read(path: str) -> bytes:
    try:
        with open(os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK), "rb") as file:
            if not stat.S_ISREG(os.fstat(file.fileno()).st_mode):
                raise ConfigError(f"{path} is no file", "give a file in PEM")
            return file.read(_MAX_KEY_BYTES)
    except OSError as error:
        raise ConfigError(f"{path} cannot be read: {error.strerror}", "give a file in PEM") from None


def key_hint(key: ec.EllipticCurvePublicKey) -> str:
    """Return the hash by which a bundle names the key that it was signed with."""
    encoded = key.public_bytes(serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo)
    return hashlib.sha256(encoded).hexdigest()


def signature_of(payload: bytes, key: PrivateKey) -> bytes:
    """Return the signature of `payload`."""
    return key.sign(encoding_of(payload), ec.ECDSA(_HASHES[key.curve.name]()))


def signer_of(bundle: Bundle, trust: Trust, now: dt.datetime) -> str:
    """Return who has signed the payload of `bundle`: the file of a key, or the subject of a certificate. Raise
    SignatureError if it is nobody of `trust`, at the time `now`."""
    if bundle.certificates:
        certificate = _trusted(bundle.certificates, trust.authorities, now)
        key = certificate.public_key()
        if not isinstance(key, ec.EllipticCurvePublicKey) or not _has_signed(bundle, key):
            raise SignatureError(
                "the signature is not that of its certificate's key: it, or what is signed, was changed"
            )
        return f"the certificate {certificate.subject.rfc4514_string()}"
    for path, key in trust.keys:
        if _has_signed(bundle, key):
            return f"the key {path}"
    if not trust.keys:
        raise SignatureError("it is signed with a key, and no key is trusted: model_signing_keys has certificates only")
    if any(key_hint(key) == bundle.key_hint for _, key in trust.keys):
        raise SignatureError("the signature is not that of the key it names: it, or what is signed, was changed")
    named = f"the key with the SHA-256 {bundle.key_hint[:16]}…" if bundle.key_hint else "a key that it does not name"
    raise SignatureError(f"it is signed with {named}, which is not trusted: add the public key to model_signing_keys")


def _has_signed(bundle: Bundle, key: ec.EllipticCurvePublicKey) -> bool:
    if key.curve.name not in _HASHES:
        return False
    try:
        key.verify(bundle.signature, encoding_of(bundle.payload), ec.ECDSA(_HASHES[key.curve.name]()))
    except InvalidSignature:
        return False
    return True


def _trusted(chain: Sequence[bytes], authorities: Sequence[x509.Certificate], now: dt.datetime) -> x509.Certificate:
    """Return the certificate of the signer, which is valid at `now` and leads to an authority. Raise SignatureError.

    Model Signing's own tool takes a certificate that was valid when it began to be; without a time stamp that somebody
    vouches for, that would let an expired one sign for ever.
    """
    if not authorities:
        raise SignatureError(
            "it is signed with a certificate, and no authority is trusted: add its certificate to model_signing_keys"
        )
    if len(chain) > _MAX_CERTIFICATES:
        raise SignatureError(f"it has {len(chain)} certificates, more than {_MAX_CERTIFICATES}")
    try:
        certificate, *between = map(x509.load_der_x509_certificate, chain)
        subject = certificate.subject.rfc4514_string()
        if not certificate.not_valid_before_utc <= now <= certificate.not_valid_after_utc:
            raise SignatureError(
                f"the certificate {subject} is valid from {certificate.not_valid_before_utc:%Y-%m-%d} to "
                f"{certificate.not_valid_after_utc:%Y-%m-%d}: sign the model with one that is valid"
            )
        if not _may_sign(certificate):
            raise SignatureError(f"the certificate {subject} is not for signing (digitalSignature, codeSigning)")
        policy = PolicyBuilder().store(Store(list(authorities))).time(now.astimezone(dt.UTC).replace(tzinfo=None))
        policy = policy.extension_policies(
            ca_policy=ExtensionPolicy.webpki_defaults_ca(), ee_policy=ExtensionPolicy.permit_all()
        )
        policy.build_client_verifier().verify(certificate, between)
    except VerificationError as error:
        raise SignatureError(
            f"the certificate {subject} does not lead to an authority in model_signing_keys: {error}"
        ) from None
    except (ValueError, UnsupportedAlgorithm) as error:
        raise SignatureError(f"its certificates cannot be read: {error}") from None
    return certificate


def _may_sign(certificate: x509.Certificate) -> bool:
    try:
        if certificate.extensions.get_extension_for_class(x509.KeyUsage).value.digital_signature:
            return True
    except x509.ExtensionNotFound:
        pass
    try:
        usage = certificate.extensions.get_extension_for_class(x509.ExtendedKeyUsage).value
    except x509.ExtensionNotFound:
        return False
    return ExtendedKeyUsageOID.CODE_SIGNING in usage
