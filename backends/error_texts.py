"""What frameworks say of an error, made fit for a client. Pure.

These texts quote what clients send, so they may hold anything at any length. `shortened` comes first, and the others
read them word by word or line by line, in time that grows with the length: a regular expression that starts anew at
every place of a text would take minutes for some.
"""

from __future__ import annotations

import re

__all__ = ["has_in_order", "shortened", "without_python_trace", "without_source_places"]

_MAX_CHARACTERS = 16384

# What TensorFlow's Session.run adds to the message of its runtime (python/framework/error_interpolation.py): a heading,
# the Python calls that have made a node up to a line with its name, and all lines from one of these on.
_HEADING = "Graph execution error:"
_CALLS, _CALLS_END = "Detected at node ", " defined at (most recent call last):"
_NODE = "Node: "
_TAIL = ("Original stack trace for ", "Errors may have originated from ")

_ONNX_SOURCE = "onnxruntime_src/"  # in the path of each of its source files


def shortened(text: str) -> str:
    """Return the text of an error, cut at 16,384 characters."""
    return text if len(text) <= _MAX_CHARACTERS else f"{text[:_MAX_CHARACTERS]}..."


def without_python_trace(message: str) -> str:
    """Return a message of TensorFlow without the Python calls that have made the failed node."""
    kept: list[str] = []
    is_call = False
    for line in message.split("\n"):
        if line.startswith(_TAIL):
            break
        if line.startswith(_NODE):
            is_call = False
            if line.startswith(f"{_NODE}'") and line.endswith("'"):
                continue
        elif line.startswith(_CALLS) and line.endswith(_CALLS_END):
            is_call = True
        if not is_call:
            kept.append(line.removeprefix(_HEADING))
    return "\n".join(kept).strip()


def without_source_places(message: str) -> str:
    """Return a message of ONNX Runtime without its source places ("/onnxruntime_src/…/gather.cc:50") and conditions.

    A condition that failed stands behind its place, and ends in "was false." or "was true."; if nothing follows, it is
    kept. All blanks become single spaces.
    """
    words = message.split()
    ends = [i for i in range(1, len(words) - 1) if words[i] in ("true.", "false.") and words[i - 1] == "was"]
    last_end = ends[-1] if ends else -1
    kept: list[str] = []
    skipped_to = 0
    for index, word in enumerate(words):
        if index < skipped_to:
            continue
        if not _is_source_place(word):
            kept.append(word)
        elif index < last_end:
            skipped_to = last_end + 1
    return " ".join(kept)


def _is_source_place(word: str) -> bool:
    path, _, line = word.rpartition(":")
    return line.isdecimal() and _ONNX_SOURCE in path


def has_in_order(text: str, *patterns: re.Pattern[str]) -> bool:
    """Return whether one line of `text` has a match of each of `patterns`, one behind the other.

    A single expression with ".*" between them would start anew at each match of the first.
    """
    return any(_are_in_order(line, patterns) for line in text.split("\n"))


def _are_in_order(line: str, patterns: tuple[re.Pattern[str], ...]) -> bool:
    position = 0
    for pattern in patterns:
        found = pattern.search(line, position)
        if found is None:
            return False
        position = found.end()
    return True
