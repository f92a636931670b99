"""Checks of a Predict request before it is run, in TensorFlow Serving's order and words.

Source: `PreProcessPrediction` (`servables/tensorflow/predict_util.cc`), `GetInputValues`
(`tensorflow/cc/saved_model/util.cc`) and, for types, `FunctionCallFrame::SetArgs`. Shapes are left to the graph.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Set

import numpy as np

from appliance.core.errors import Code, ServingError
from backends.contract import Signature
from backends.dtypes import of_array

__all__ = ["check_dtypes", "check_method_name", "check_names", "wanted_outputs"]

_METHOD_NAMES = tuple(f"tensorflow/serving/{method}" for method in ("predict", "classify", "regress"))


def check_method_name(signature: Signature) -> None:
    """Raise INTERNAL if the exporter gave the signature an unknown method name.

    This is the check that `enable_signature_method_name_check` turns on.
    """
    if signature.method_name not in _METHOD_NAMES:
        raise ServingError(
            Code.INTERNAL,
            f"Expected prediction signature method_name to be one of {{{', '.join(_METHOD_NAMES)}}}. "
            f"Was: {signature.method_name}",
        )


def check_names(sent: Set[str], signature: Signature) -> None:
    """Raise INVALID_ARGUMENT unless `sent` names the signature's inputs; those with defaults may be missing."""
    inputs = signature.inputs
    if sent == inputs.keys():
        return
    if len(sent) > len(inputs) or (len(sent) < len(inputs) and not signature.defaults):
        raise _invalid(
            f"input size does not match signature: {len(sent)}!={len(inputs)} "
            f"len({{{_listed(sent)}}}) != len({{{_listed(inputs)}}}). "
            f"Sent extra: {{{_listed(sent - inputs.keys())}}}. "
            f"Missing but required: {{{_listed(inputs.keys() - sent)}}}."
        )
    missing = min(inputs.keys() - sent - signature.defaults.keys(), default=None)
    if missing is not None:
        raise _invalid(
            f"Signature input alias: {missing}(feed name: {inputs[missing].tensor_name}) not found in request and no "
            f"default value provided. Inputs expected to be in the request {{{_listed(sent)}}}, "
            f"or default input alias set: {_listed(signature.defaults)}",
            f"send the signature's inputs, {{{_listed(inputs)}}}. Sent extra: {{{_listed(sent - inputs.keys())}}}. "
            f"Missing but required: {{{_listed(inputs.keys() - sent - signature.defaults.keys())}}}.",
        )
    if sent - inputs.keys():
        raise _invalid(
            f"Inputs contains invalid name. Used request inputs: {_listed(sent & inputs.keys())}, "
            f"request input: {_listed(sent)}",
            f"the signature's inputs are {{{_listed(inputs)}}}",
        )


def wanted_outputs(output_filter: tuple[str, ...], signature: Signature) -> list[str]:
    """Return the names of the outputs that a request asks for. Raise INVALID_ARGUMENT for unknown or repeated names."""
    outputs = signature.outputs
    if not output_filter:
        return list(outputs)
    for index, name in enumerate(output_filter):
        if name not in outputs:
            raise _invalid(
                f"output tensor alias not found in signature: {name[:200]} "
                f"Outputs expected to be in the set {{{_listed(outputs)}}}."
            )
        if name in output_filter[:index]:
            raise _invalid(f"duplicate output tensor alias: {name[:200]}")
    return list(output_filter)


def check_dtypes(inputs: Mapping[str, np.ndarray], signature: Signature) -> None:
    """Raise INVALID_ARGUMENT if an array does not have its input's element type."""
    wrong = [name for name, array in inputs.items() if array.dtype != signature.inputs[name].element.numpy]
    if not wrong:
        return
    # The session numbers its arguments in the order of their tensor names.
    feeds = sorted((spec.tensor_name, name) for name, spec in signature.inputs.items())
    index, name = next((index, name) for index, (_, name) in enumerate(feeds) if name in wrong)
    wanted = signature.inputs[name].element
    raise _invalid(
        f"Expects arg[{index}] to be {wanted.label} but {of_array(inputs[name]).label} is provided",
        f"send the input {name} as {wanted.proto_name}",
    )


def _listed(names: Iterable[str]) -> str:
    return ",".join(sorted(names))


def _invalid(message: str, remedy: str = "") -> ServingError:
    return ServingError(Code.INVALID_ARGUMENT, message, remedy)
