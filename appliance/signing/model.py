"""Signs a model's folder, and verifies the signature that it has."""

from __future__ import annotations

import datetime as dt
import os

from appliance.signing.bundle import Bundle, read_bundle, write_bundle
from appliance.signing.errors import SignatureError
from appliance.signing.files import model_files
from appliance.signing.statement import check_folder, make_statement, parse_statement
from appliance.signing.trust import PrivateKey, Trust, key_hint, signature_of, signer_of

__all__ = ["sign_model", "verify_model"]


def sign_model(folder: str, key: PrivateKey) -> str:
    """Sign all files of `folder`, and return the file of the signature. Raise SignatureError if that cannot be done."""
    try:
        payload = make_statement(folder, os.path.basename(os.path.abspath(folder)), model_files(folder))
        hint = key_hint(key.public_key())
        return write_bundle(folder, Bundle(payload, signature_of(payload, key), hint))
    except OSError as error:
        raise SignatureError(_unreadable(folder, error)) from None


def verify_model(folder: str, trust: Trust, now: dt.datetime) -> str:
    """Return who has signed `folder`, of whom `trust` has; nothing but what was signed is there. Raise
    SignatureError."""
    try:
        bundle = read_bundle(folder)
        signer = signer_of(bundle, trust, now)
        check_folder(folder, model_files(folder), parse_statement(bundle.payload))
    except OSError as error:
        raise SignatureError(_unreadable(folder, error)) from None
    return signer


def _unreadable(folder: str, error: OSError) -> str:
    return f"{error.filename or folder} cannot be read or written: {error.strerror or error}"
