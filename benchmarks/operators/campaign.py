"""Goes through all operators, and keeps a line for each: what is there already is not done again."""

import importlib
import json
import os
import sys
import time
from collections.abc import Iterable, Iterator
from typing import Any

import numpy as np

from benchmarks.operators.catalogue import items
from benchmarks.operators.trial import try_operator

__all__ = ["read", "run"]


def run(results: str, only: tuple[str, ...] = ()) -> int:
    """Tries the operators `only`, or all that have no line in the file `results` yet, and says how far it is. How many
    element types of operators are left then.

    Raises KeyError for an operator that is not known."""
    os.environ["CUDA_VISIBLE_DEVICES"] = "-1"
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
    # Children are forked from here: what is imported now costs none of them anything.
    for module in ("tensorflow", "backends.tensorflow_backend", "tf2onnx.tf_loader", "onnxruntime", "tf2onnx.convert",
                   "backends.onnx_backend", "backends.litert_backend", "converters.freezing"):  # fmt: skip
        importlib.import_module(module)
    np.seterr(all="ignore")  # odd values are what this is about
    done = {(line["op"], line["dtype"]) for line in read(results)}
    left = items(only) if only else [item for item in items() if item not in done]
    folder = os.path.join(os.path.dirname(results), "operators-work")
    begun = time.monotonic()
    for number, (op, dtype) in enumerate(left, 1):
        started = time.monotonic()
        line = {**try_operator(op, dtype, folder), "seconds": round(time.monotonic() - started, 2)}
        with open(results, "a", encoding="utf-8") as file:
            file.write(json.dumps(line) + "\n")
        rest = (time.monotonic() - begun) / number * (len(left) - number)
        print(f"{number:,} of {len(left):,}, {rest / 60:.0f} min left: {op} {dtype}: {_said(line)}", flush=True)
    return len(set(items()) - done - set(left))


def read(results: str) -> Iterator[dict[str, Any]]:
    """The lines of the file; the last one of an item counts, and what a crash cut off does not."""
    found: dict[tuple[str, str], dict[str, Any]] = {}
    try:
        with open(results, encoding="utf-8") as file:
            for text in file:
                try:
                    line = json.loads(text)
                except ValueError:
                    print(f"{results} has a line that is cut off: it is left out", file=sys.stderr)
                    continue
                found[line["op"], line["dtype"]] = line
    except FileNotFoundError:
        return
    yield from found.values()


def _said(line: dict[str, Any]) -> str:
    counts: dict[str, int] = {}
    for what in _outcomes(line):
        counts[what] = counts.get(what, 0) + 1
    return ", ".join(f"{count} {what}" for what, count in counts.items()) or "not run by TensorFlow"


def _outcomes(line: dict[str, Any]) -> Iterable[str]:
    for variants in line["forms"].values():
        for found in variants.values():
            if "not converted" in found:
                yield "not converted"
            for outcome in found.get("classes", {}).values():
                yield outcome if isinstance(outcome, str) else outcome[0]
