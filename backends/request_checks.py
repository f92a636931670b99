"""Check what is asked of a loaded model, before its framework runs: the same for every backend.

The messages of `not_found` and `check_outputs` are TensorFlow Serving's.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from backends.contract import BackendError, Code, Signature

__all__ = ["check_outputs", "complete", "not_found", "shape_text", "wrong_shape"]


def not_found(name: str, unsupported: Mapping[str, str]) -> BackendError:
    """Return the error for a signature that is not served; `unsupported` has those of the model → why not."""
    reason = f" It cannot be served: {unsupported[name]}" if name in unsupported else ""
    return BackendError(Code.FAILED_PRECONDITION, f'Serving signature key "{name}" not found.{reason}')


def complete(
    name: str, signature: Signature, inputs: Mapping[str, np.ndarray], defaults: Mapping[str, np.ndarray]
) -> Mapping[str, np.ndarray]:
    """Return `inputs` with copies of the `defaults` of those that are missing: frameworks own what they are fed.

    Raise BackendError unless these are the inputs of `signature`, which has the name `name`.
    """
    if inputs.keys() == signature.inputs.keys():
        return inputs
    found = {**{alias: array.copy() for alias, array in defaults.items() if alias not in inputs}, **inputs}
    if found.keys() == signature.inputs.keys():
        return found
    raise BackendError(
        Code.INVALID_ARGUMENT,
        f"signature {name!r} takes the inputs {sorted(signature.inputs)}, but got {sorted(found)}",
    )


def check_outputs(signature: Signature, outputs: Sequence[str]) -> None:
    """Raise BackendError if `signature` has not all of `outputs`."""
    for output in outputs:
        if output not in signature.outputs:
            raise BackendError(
                Code.INVALID_ARGUMENT,
                f"output tensor alias not found in signature: {output} Outputs expected to be in the set "
                f"{{{','.join(sorted(signature.outputs))}}}.",
            )


def wrong_shape(alias: str, shape: Sequence[int], declared: Sequence[int]) -> BackendError:
    """Return the error for an input that has not the `declared` shape, in which -1 is any size."""
    return BackendError(
        Code.INVALID_ARGUMENT,
        f"input {alias!r} has the shape {shape_text(shape)}; the model takes {shape_text(declared)}",
    )


def shape_text(shape: Sequence[int]) -> str:
    """Return a shape as messages have it, such as [-1,3]."""
    return f"[{','.join(map(str, shape))}]"
