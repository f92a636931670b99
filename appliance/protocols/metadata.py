"""A model's signatures, as GetModelMetadata and REST's `/metadata` send them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from google.protobuf import json_format

from appliance.protocols import protos
from backends.contract import Signature, TensorSpec
from backends.dtypes import REFERENCE

__all__ = ["metadata_json", "signature_def_map"]


def signature_def_map(signatures: Mapping[str, Signature]) -> Any:
    """Return the `protos.SignatureDefMap` of a model's signatures by key."""
    result = protos.SignatureDefMap()
    for key, signature in signatures.items():
        definition = result.signature_def[key]
        definition.method_name = signature.method_name
        for infos, specs in ((definition.inputs, signature.inputs), (definition.outputs, signature.outputs)):
            for name, spec in specs.items():
                _fill(infos[name], spec)
        for name, data in signature.defaults.items():
            definition.defaults[name].MergeFromString(data)
    return result


def _fill(info: Any, spec: TensorSpec) -> None:
    info.name = spec.tensor_name
    info.dtype = spec.element.number + (REFERENCE if spec.is_reference else 0)
    info.tensor_shape.unknown_rank = spec.shape is None
    for size in spec.shape or ():
        info.tensor_shape.dim.add(size=size)


def metadata_json(model: str, version: int, signatures: Mapping[str, Signature]) -> dict[str, Any]:
    """Return the body of `GET /v1/models/{m}/metadata`.

    It uses protobuf's own mapping to JSON, as TensorFlow Serving does: int64 values are strings, enums their names, and
    fields with default values (`unknown_rank`, empty maps) are written too.
    """
    return {
        "model_spec": {"name": model, "signature_name": "", "version": str(version)},
        "metadata": {
            "signature_def": json_format.MessageToDict(
                signature_def_map(signatures),
                preserving_proto_field_name=True,
                always_print_fields_with_no_presence=True,
            )
        },
    }
