"""Classify ONNX Runtime's errors by fault, and remove its source paths from their messages.

Only worker processes import this module, because it imports ONNX Runtime.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from onnxruntime.capi import onnxruntime_pybind11_state as state

from backends import text_locale
from backends.contract import BackendError, Code
from backends.error_texts import has_in_order, shortened, without_source_places

__all__ = ["REFUSALS", "code_of_load", "message_of", "refusing"]

REFUSALS = tuple(
    getattr(state, name)
    for name in (
        "EPFail",
        "EngineError",
        "Fail",
        "InvalidArgument",
        "InvalidGraph",
        "InvalidProtobuf",
        "ModelLoadCanceled",
        "ModelRequiresCompilation",
        "NoModel",
        "NoSuchFile",
        "NotFound",
        "NotImplemented",
        "RuntimeException",
    )
    if hasattr(state, name)
)

# What ONNX Runtime adds to a kernel's message: its status, and the failed node.
_STATUS = re.compile(r"^(\[ONNXRuntimeError\] : \d+ : \w+ : |Error in execution: )")
_NODE = re.compile(r"Non-zero status code returned while running (\S+) node\. Name:'([^']*)' Status Message: ")
# Messages about a model that needs what this ONNX Runtime lacks.
_NOT_THERE = re.compile(
    r"No Op registered|is not a registered function/op|Could not find an implementation|Unsupported model IR version"
    r"|only \*guarantees\* support for models stamped with official released onnx opset versions"
)
_NO_MEMORY = re.compile(r"failed to allocate memory|out of memory|bad_alloc", re.IGNORECASE)
_GPU = re.compile(r"\b(CUDA|CUDNN|CUBLAS|CUFFT|CUDNN_FE)\b", re.IGNORECASE)
_FAILED = re.compile("fail", re.IGNORECASE)

_MAX_MESSAGE = 2000


@contextmanager
def refusing(code: Callable[[Exception], Code] | None = None) -> Iterator[None]:
    """Raise ONNX Runtime's exceptions as BackendError, with the code that `code` returns, by default that of a run."""
    try:
        yield
    except (*REFUSALS, RuntimeError, ValueError) as error:  # the bindings raise the last two
        raise BackendError((code or code_of)(error), message_of(error)) from error
    except MemoryError as error:
        raise BackendError(Code.RESOURCE_EXHAUSTED, "there is not enough memory for these inputs") from error


def code_of(error: Exception) -> Code:
    """Return the code of an error in a run.

    A kernel does not tell invalid input from its own failure. On the CPU it is nearly always the input.
    """
    text = shortened(str(error))
    if _NO_MEMORY.search(text):
        return Code.RESOURCE_EXHAUSTED
    if has_in_order(text, _GPU, _FAILED) or type(error).__name__ in {"EPFail", "EngineError"}:
        return Code.INTERNAL
    if type(error).__name__ == "NotImplemented":
        return Code.UNIMPLEMENTED
    if type(error).__name__ in {"InvalidArgument", "InvalidGraph", "InvalidProtobuf"} or _NODE.search(text):
        return Code.INVALID_ARGUMENT
    return Code.INTERNAL


def code_of_load(error: Exception) -> Code:
    """Return the code of an error while loading, which is never a client's fault."""
    text = shortened(str(error))
    if _NO_MEMORY.search(text):
        return Code.RESOURCE_EXHAUSTED
    if type(error).__name__ == "NotImplemented" or _NOT_THERE.search(text):
        return Code.UNIMPLEMENTED
    return Code.FAILED_PRECONDITION if text_locale.named_in(text) else Code.INTERNAL


def message_of(error: Exception) -> str:
    """Return the message of an error for clients, with a remedy for a missing locale."""
    text = _STATUS.sub("", shortened(str(error)))
    text = _NODE.sub(lambda found: f"{found[1]} node {found[2]!r}: " if found[2] else f"{found[1]} node: ", text)
    text = without_source_places(text)
    text = f"{text[:_MAX_MESSAGE]}..." if len(text) > _MAX_MESSAGE else text
    name = text_locale.named_in(text)
    return f"{text}; {text_locale.remedy(name)}, and load the model again" if name else text
