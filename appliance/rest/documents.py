"""The JSON documents of the REST API, besides the answers of models: errors, the list of models, and their status."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import msgspec
import orjson

from appliance.core.errors import as_utf8
from appliance.core.routes import ModelRoute, Snapshot, VersionRoute

__all__ = ["error_document", "json_document", "models_document", "status_document"]


def json_document(value: object) -> bytes:
    """Return `value`, also if it has dataclasses, as indented JSON with a line end.

    Names of files and folders that are not UTF-8 are shown as `as_utf8` has them.
    """
    try:
        text = orjson.dumps(value, option=orjson.OPT_INDENT_2)
    except TypeError:  # there is such a name
        text = orjson.dumps(_readable(msgspec.to_builtins(value)), option=orjson.OPT_INDENT_2)
    return text + b"\n"


def _readable(value: Any) -> Any:
    if isinstance(value, str):
        return as_utf8(value)
    if isinstance(value, dict):
        return {_readable(key): _readable(item) for key, item in value.items()}
    return [_readable(item) for item in value] if isinstance(value, list | tuple) else value


def error_document(message: str) -> bytes:
    """Return an error as TensorFlow Serving's REST API writes it."""
    return json_document({"error": message})


def models_document(snapshot: Snapshot) -> bytes:
    """Return the answer to GET /v1/models: all models by name, with the state of each version and its reason."""
    models = sorted(snapshot.models.values(), key=lambda model: model.name)
    return json_document({"models": [_model(model) for model in models]})


def _model(model: ModelRoute) -> dict[str, Any]:
    return {
        "name": model.name,
        "base_path": model.base_path,
        "reason": model.reason,
        "labels": dict(model.labels),
        "versions": [_version(version) for version in model.versions],
    }


def _version(version: VersionRoute) -> dict[str, Any]:
    return {
        "version": str(version.version),
        "state": version.public_state.name,
        "phase": version.state,
        "reason": version.reason,
        "accelerated": version.form_backend,
        "remarks": list(version.remarks),
        "unsupported": dict(version.unsupported),
        "refused": [str(refused) for refused in version.refused],
        "confined_by": list(version.confined_by),
    }


def status_document(versions: Iterable[VersionRoute]) -> bytes:
    """Return the `tensorflow.serving.GetModelStatusResponse` of `versions` as JSON."""
    return json_document(
        {
            "model_version_status": [
                {
                    "version": str(version.version),
                    "state": version.public_state.name,
                    "status": {"error_code": version.code.name, "error_message": version.reason},
                }
                for version in versions
            ]
        }
    )
