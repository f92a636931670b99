"""A converter whose entry points go wrong in every way, until the last: for tests of what that costs."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from pathlib import Path

from backends.form import FormSignature
from converters import to_onnx
from converters.plugin import Converted, EntryPoint, Failed, Task

FORMAT = "onnx"
PRECISIONS = ("float32",)
VERSIONS = ("onnx",)


def _raise(task: Task) -> Iterator[Converted | Failed]:
    raise RuntimeError(f"cannot convert {len(task.signatures)} signatures")
    yield


def _crash(task: Task) -> Iterator[Converted | Failed]:
    os.kill(os.getpid(), signal.SIGSEGV)
    yield Failed("", "")


def _hang(task: Task) -> Iterator[Converted | Failed]:
    sleeper = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"])
    Path(task.folder).parents[2].joinpath("sleeper").write_text(str(sleeper.pid))
    time.sleep(600)
    yield Failed("", "")


def _eat_memory(task: Task) -> Iterator[Converted | Failed]:
    eaten = []
    while True:
        eaten.append(b"x" * (32 << 20))
        yield from ()
        time.sleep(0.005)


def _write_garbage(task: Task) -> Iterator[Converted | Failed]:
    for name, signature in task.signatures.items():
        Path(task.folder, f"{task.prefix}0.onnx").write_bytes(b"\x08\x08 this is no graph")
        names = {alias: alias for alias in signature.inputs}, {alias: alias for alias in signature.outputs}
        yield Converted(name, FormSignature(f"{task.prefix}0.onnx", signature, *names))


def _change_one_weight(task: Task) -> Iterator[Converted | Failed]:
    import numpy as np  # noqa: PLC0415
    import onnx  # noqa: PLC0415

    for result in to_onnx.ENTRY_POINTS["frozen session"](task):
        assert isinstance(result, Converted)
        path = os.path.join(task.folder, result.entry.file)
        model = onnx.load(path)
        weights = max(model.graph.initializer, key=lambda tensor: int(np.prod(tensor.dims)))
        values = onnx.numpy_helper.to_array(weights).copy()
        values.reshape(-1)[0] += 0.05
        weights.CopyFrom(onnx.numpy_helper.from_array(values, weights.name))
        onnx.save(model, path)
        yield result


ENTRY_POINTS: Mapping[str, EntryPoint] = {
    "raise": _raise,
    "crash": _crash,
    "hang": _hang,
    "eat memory": _eat_memory,
    "write garbage": _write_garbage,
    "change one weight": _change_one_weight,
    "work": to_onnx.ENTRY_POINTS["frozen session"],
}
