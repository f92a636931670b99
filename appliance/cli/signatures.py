"""`dropserve sign` and `dropserve verify`: the signature of a model's folder."""

from __future__ import annotations

import datetime as dt
import os
import sys
from collections.abc import Sequence

from appliance.core.errors import ConfigError
from appliance.signing.errors import SignatureError
from appliance.signing.model import sign_model, verify_model
from appliance.signing.trust import private_key, read_trust

__all__ = ["sign", "verify"]


def sign(folder: str, key: str) -> int:
    """Sign `folder` with the private key in the file `key`; return the exit status. Raise ConfigError."""
    _check_folder(folder)
    try:
        path = sign_model(folder, private_key(key))
    except SignatureError as error:
        raise ConfigError(f"{folder} was not signed: {error}") from None
    print(f"{path}: signed")
    return 0


def verify(folder: str, keys: Sequence[str]) -> int:
    """Say whether somebody whose key or certificate is in the files `keys` has signed `folder`; return the exit status,
    1 if not. Raise ConfigError."""
    _check_folder(folder)
    trust = read_trust(keys)
    try:
        signer = verify_model(folder, trust, dt.datetime.now(dt.UTC))
    except SignatureError as error:
        print(f"{folder} is not what was signed: {error}", file=sys.stderr)
        return 1
    print(f"{folder}: signed by {signer}")
    return 0


def _check_folder(folder: str) -> None:
    if not os.path.isdir(folder):
        raise ConfigError(f"{folder} is not a folder", "give a version folder, such as /models/mine/1")
