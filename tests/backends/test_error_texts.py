"""What frameworks say of an error, made fit for a client."""

from __future__ import annotations

import re

import pytest

from backends.contract import BackendError, Code
from backends.error_texts import has_in_order, without_python_trace, without_source_places

TRACE = """\
Graph execution error:

Detected at node 'StatefulPartitionedCall/a' defined at (most recent call last):
<stack traces unavailable>
  File "export.py", line 3, in <module>
Detected at node 'b' defined at (most recent call last):
  File "export.py", line 4, in <module>
Node: 'StatefulPartitionedCall/a'
2 root error(s) found.
  (0) INVALID_ARGUMENT: indices[0] = 7 is not in [0, 3)
\t [[{{node StatefulPartitionedCall/a}}]]

Original stack trace for 'b':
  File "export.py", line 4, in <module>
"""


def test_only_the_words_of_the_runtime_are_left_of_a_message_of_tensorflow() -> None:
    assert without_python_trace(TRACE) == (
        "2 root error(s) found.\n  (0) INVALID_ARGUMENT: indices[0] = 7 is not in [0, 3)\n"
        "\t [[{{node StatefulPartitionedCall/a}}]]"
    )
    assert without_python_trace("Node: nothing\nelse") == "Node: nothing\nelse"
    assert without_python_trace("a\nErrors may have originated from an input operation.\nb") == "a"


def test_only_the_words_of_the_kernel_are_left_of_a_message_of_onnx_runtime() -> None:
    place = "/onnxruntime_src/onnxruntime/core/gather.cc:50"
    assert without_source_places(f"Gather node: {place} n::Gather::Compute(int) idx < 3 was false. too  large") == (
        "Gather node: too large"
    )
    assert without_source_places(f"{place} idx < 3 was false.") == "idx < 3 was false."
    assert without_source_places(f"at {place} it fails") == "at it fails"
    assert without_source_places("a:5 was true. b") == "a:5 was true. b"


def test_words_count_only_in_their_order_and_on_one_line() -> None:
    words = re.compile("type"), re.compile("not"), re.compile("supported")
    assert has_in_order("x\nthis type is not one that is supported", *words)
    assert not has_in_order("not supported type", *words)
    assert not has_in_order("type not\nsupported", *words)


@pytest.mark.timeout(60)
@pytest.mark.parametrize(
    "part", ["\n", " ", "Detected at node ", "Detected at node x defined at (most recent call last):\n", "type not "]
)
def test_a_text_that_a_client_has_made_takes_no_longer_than_its_length(part: str) -> None:
    """A search that starts anew at every place takes years for it."""
    text = part * 1_000_000
    assert len(without_python_trace(text)) <= len(text)
    assert len(without_source_places(text + "onnxruntime_src/" * 100_000)) <= len(text) + 1_600_000
    assert not has_in_order(text, re.compile(r"\btypes?\b"), re.compile(r"\bnot\b"), re.compile(r"\bsupported"))


def test_the_message_of_an_error_has_an_end() -> None:
    assert len(BackendError(Code.INVALID_ARGUMENT, "x" * 10**6).message) < 20_000
