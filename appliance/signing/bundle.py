"""The file model.sig: a Sigstore bundle whose DSSE envelope has the signed payload.

Formats: github.com/sigstore/protobuf-specs, sigstore_bundle.proto; github.com/secure-systems-lab/dsse, protocol.md.
"""

from __future__ import annotations

import base64
import binascii
import json
import os
import secrets
from dataclasses import dataclass

import msgspec

from appliance.signing.errors import SignatureError
from appliance.signing.files import SIGNATURE

__all__ = ["Bundle", "encoding_of", "read_bundle", "write_bundle"]

_MEDIA_TYPE = "application/vnd.dev.sigstore.bundle.v0.3+json"
_PAYLOAD_TYPE = "application/vnd.in-toto+json"
_MAX_BYTES = 64 << 20


class _Certificate(msgspec.Struct):
    raw_bytes: str = msgspec.field(name="rawBytes")


class _Chain(msgspec.Struct):
    certificates: list[_Certificate]


class _PublicKey(msgspec.Struct):
    hint: str | None = None


class _Material(msgspec.Struct):
    public_key: _PublicKey | None = msgspec.field(name="publicKey", default=None)
    chain: _Chain | None = msgspec.field(name="x509CertificateChain", default=None)


class _Signature(msgspec.Struct):
    sig: str


class _Envelope(msgspec.Struct):
    payload: str
    payload_type: str = msgspec.field(name="payloadType")
    signatures: list[_Signature]


class _Document(msgspec.Struct):
    media_type: str = msgspec.field(name="mediaType")
    material: _Material = msgspec.field(name="verificationMaterial")
    envelope: _Envelope = msgspec.field(name="dsseEnvelope")


@dataclass(frozen=True, slots=True)
class Bundle:
    """A signature of `payload`: made with the key that `key_hint` is the hash of, or, if there are `certificates` (in
    DER), with the key of the first, which the next has issued."""

    payload: bytes
    signature: bytes
    key_hint: str = ""
    certificates: tuple[bytes, ...] = ()


def encoding_of(payload: bytes) -> bytes:
    """Return the bytes that are signed for `payload`: DSSE's pre-authentication encoding."""
    return b"DSSEv1 %d %b %d %b" % (len(_PAYLOAD_TYPE), _PAYLOAD_TYPE.encode(), len(payload), payload)


def read_bundle(folder: str) -> Bundle:
    """Return the signature of a model's folder. Raise OSError, SignatureError if there is none or it cannot be read."""
    try:
        with open(os.open(os.path.join(folder, SIGNATURE), os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK), "rb") as file:
            data = file.read(_MAX_BYTES + 1)
    except FileNotFoundError:
        raise SignatureError(
            f"it is not signed: there is no {SIGNATURE}; sign it by dropserve sign, or by model-signing",
            is_missing=True,
        ) from None
    if len(data) > _MAX_BYTES:
        raise SignatureError(f"{SIGNATURE} has more than {_MAX_BYTES:,} bytes")
    try:
        return _bundle(msgspec.json.decode(data, type=_Document))
    except (ValueError, RecursionError, binascii.Error) as error:
        raise SignatureError(f"{SIGNATURE} is no Sigstore bundle: {error}") from None


def _bundle(document: _Document) -> Bundle:
    envelope, material = document.envelope, document.material
    if document.media_type != _MEDIA_TYPE or envelope.payload_type != _PAYLOAD_TYPE:
        found = f"{document.media_type!r} with {envelope.payload_type!r}"
        raise SignatureError(f"{SIGNATURE} is {found}; sign the model by Model Signing 1.0 or newer")
    if len(envelope.signatures) != 1:
        raise SignatureError(f"{SIGNATURE} has {len(envelope.signatures)} signatures instead of one")
    if (material.public_key is None) == (material.chain is None):
        raise SignatureError(
            f"{SIGNATURE} was made without a key or certificate of your own: keyless ones are not verified"
        )
    certificates = material.chain.certificates if material.chain else ()
    return Bundle(
        base64.b64decode(envelope.payload, validate=True),
        base64.b64decode(envelope.signatures[0].sig, validate=True),
        (material.public_key.hint or "") if material.public_key else "",
        tuple(base64.b64decode(certificate.raw_bytes, validate=True) for certificate in certificates),
    )


def write_bundle(folder: str, bundle: Bundle) -> str:
    """Write the signature of a model's folder, atomically, and return its file. Raise OSError."""
    document = {
        "mediaType": _MEDIA_TYPE,
        "verificationMaterial": {"publicKey": {"hint": bundle.key_hint}, "tlogEntries": []},
        "dsseEnvelope": {
            "payload": base64.b64encode(bundle.payload).decode(),
            "payloadType": _PAYLOAD_TYPE,
            "signatures": [{"sig": base64.b64encode(bundle.signature).decode(), "keyid": ""}],
        },
    }
    path = os.path.join(folder, SIGNATURE)
    temporary = os.path.join(folder, f".{SIGNATURE}.{secrets.token_hex(8)}")
    try:
        with open(temporary, "x", encoding="utf-8") as file:
            json.dump(document, file)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except BaseException:
        if os.path.lexists(temporary):
            os.unlink(temporary)
        raise
    return path
