"""What the protocol tells of the server and of its models, as values that JSON writes and `v2.messages` turns into
messages: metadata, configuration, and the index of models."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from appliance import __version__
from appliance.core.errors import Code, ServingError
from appliance.core.routes import ModelRoute, Snapshot, VersionRoute
from appliance.core.servable import PublicState
from appliance.protocols.v2.datatypes import config_type, datatype, shape_of
from backends.contract import DEFAULT_SIGNATURE, TensorSpec

__all__ = [
    "NO_LOADING",
    "model_config",
    "model_metadata",
    "repository_index",
    "server_metadata",
    "signature_name_of",
]

_PLATFORM = "tensorflow_savedmodel"  # Triton's name for what the model is, whatever form of it answers

_EXTENSIONS = ("binary_tensor_data", "model_configuration", "model_repository", "parameters")

NO_LOADING = (
    "Models are not loaded or unloaded by requests",
    "copy a version folder into the model's folder, and it is loaded; remove it, and it is unloaded",
)
"""Why load and unload are refused, and what to do."""

_STATES = {
    PublicState.START: "LOADING",
    PublicState.LOADING: "LOADING",
    PublicState.AVAILABLE: "READY",
    PublicState.UNLOADING: "UNLOADING",
}


def server_metadata() -> dict[str, Any]:
    """Return the answer to GET /v2."""
    return {"name": "dropserve", "version": __version__, "extensions": list(_EXTENSIONS)}


def model_metadata(model: ModelRoute, version: VersionRoute, signature_name: str = "") -> dict[str, Any]:
    """Return a model's metadata: the inputs and outputs of one signature of `version`.

    Which one: `signature_name_of`. Raise ServingError (INVALID_ARGUMENT) for a name that the version does not have.
    """
    signature = version.signatures[signature_name_of(version, signature_name)]
    return {
        "name": model.name,
        "versions": [str(route.version) for route in model.versions if route.available],
        "platform": _PLATFORM,
        "inputs": _tensors(signature.inputs),
        "outputs": _tensors(signature.outputs),
    }


def model_config(model: ModelRoute, version: VersionRoute, signature_name: str = "") -> dict[str, Any]:
    """Return a model's configuration, as far as this server has one: the shapes are whole, so max_batch_size is 0.

    Raise ServingError as `model_metadata` does.
    """
    signature = version.signatures[signature_name_of(version, signature_name)]
    return {
        "name": model.name,
        "platform": _PLATFORM,
        "backend": "tensorflow",
        "max_batch_size": 0,
        "input": [
            {**_config(name, spec), "optional": name in signature.defaults} for name, spec in signature.inputs.items()
        ],
        "output": [_config(name, spec) for name, spec in signature.outputs.items()],
    }


def repository_index(snapshot: Snapshot, ready_only: bool) -> list[dict[str, str]]:
    """Return a row for each version of each model, by name, newest first: its state and why it is not ready."""
    rows = []
    for name in sorted(snapshot.models):
        model = snapshot.models[name]
        for version in model.versions:
            if version.available or not ready_only:
                state = _STATES.get(version.public_state, "UNAVAILABLE")
                rows.append({"name": name, "version": str(version.version), "state": state, "reason": version.reason})
        if not model.versions and not ready_only:
            rows.append({"name": name, "version": "", "state": "UNAVAILABLE", "reason": model.reason})
    return rows


def signature_name_of(version: VersionRoute, asked: str) -> str:
    """Return the name of the signature that is meant by `asked`, "" for none.

    Without a name it is the default one or, if the version has none, the first. Raise ServingError (INVALID_ARGUMENT).
    """
    signatures = version.signatures
    name = asked or DEFAULT_SIGNATURE
    if name in signatures:
        return name
    if not asked and signatures:
        return min(signatures)
    raise ServingError(
        Code.INVALID_ARGUMENT,
        f"the model has no signature {name[:200]!r}",
        version.why_not(name) or f"it has {', '.join(sorted(signatures)) or 'none'}",
    )


def _tensors(specs: Mapping[str, TensorSpec]) -> list[dict[str, Any]]:
    return [{"name": name, "datatype": datatype(spec.element), "shape": shape_of(spec)} for name, spec in specs.items()]


def _config(name: str, spec: TensorSpec) -> dict[str, Any]:
    return {"name": name, "data_type": config_type(spec.element), "dims": shape_of(spec)}
