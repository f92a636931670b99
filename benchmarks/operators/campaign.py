"""Goes through all operators, and keeps a line for each: what is there already is not done again."""

import gc
import importlib
import json
import os
import sys
import time
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import numpy as np

from benchmarks.operators.catalogue import items
from benchmarks.operators.trial import try_operator

__all__ = ["read", "run"]


def run(results: str, only: Sequence[str] = ()) -> int:
    """Tries the operators `only`, or all that have no line in the file `results` yet, and says how far it is. How many
    element types of operators are left then.

    Raises KeyError, ValueError for what is not in the catalogue."""
    os.environ["CUDA_VISIBLE_DEVICES"] = "-1"
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
    # Children are forked from here: what is imported now costs none of them anything.
    for module in ("tensorflow", "backends.tensorflow_backend", "tf2onnx.tf_loader", "onnxruntime", "tf2onnx.convert",
                   "backends.onnx_backend", "backends.litert_backend", "converters.freezing"):  # fmt: skip
        importlib.import_module(module)
    np.seterr(all="ignore")  # odd values are what this is about
    done = {(line["op"], line["dtype"]) for line in read(results)}
    left = items(only) if only else [item for item in items() if item not in done]
    by_operator: dict[str, list[str]] = {}
    for op, dtype in left:
        by_operator.setdefault(op, []).append(dtype)
    folder = os.path.join(os.path.dirname(results), "operators-work")
    gc.collect()
    gc.freeze()  # else every child copies the pages of all that its garbage collector looks at
    begun, done_now = time.monotonic(), 0
    for op, its_dtypes in by_operator.items():
        lines = try_operator(op, its_dtypes, folder)
        with open(results, "a", encoding="utf-8") as file:
            file.writelines(json.dumps(line) + "\n" for line in lines)
        done_now += len(its_dtypes)
        rest = (time.monotonic() - begun) / done_now * (len(left) - done_now)
        for line in lines:
            print(f"{op} {line['dtype']}: {_said(line)}")
        print(f"{done_now:,} of {len(left):,}, {rest / 60:.0f} min left", flush=True)
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
