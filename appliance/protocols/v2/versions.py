"""The version that a request asks for, which the protocol gives as text."""

from __future__ import annotations

from appliance.core.errors import Code, ServingError
from appliance.core.servable import ModelSpec

__all__ = ["model_spec"]

_MAX_VERSION = 2**63 - 1
_MAX_DIGITS = 30  # of a version in a request, leading zeros included


def model_spec(model: str, version: str) -> ModelSpec:
    """Return the model and version that a request asks for; "" leaves the version to the server.

    Text that is no number is a version label. Raise ServingError (INVALID_ARGUMENT) for a number beyond int64.
    """
    if not version:
        return ModelSpec(model)
    if not (version.isascii() and version.isdigit()):
        return ModelSpec(model, label=version)
    if len(version) > _MAX_DIGITS or int(version) > _MAX_VERSION:
        raise ServingError(
            Code.INVALID_ARGUMENT, f"version {version[:100]} is too large", f"a version is at most {_MAX_VERSION}"
        )
    return ModelSpec(model, int(version))
