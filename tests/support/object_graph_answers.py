"""What `tf.saved_model.load` answers, in a process of its own, as a user of the model would run it.

`python -m tests.support.object_graph_answers FOLDER` reads `asked` in the folder, and writes `answered`: each is an
index in JSON and the arrays that it numbers.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from pathlib import Path

import numpy as np

Arrays = Mapping[str, np.ndarray]
BySignature = Mapping[str, Arrays]


def answers(models: Mapping[str, tuple[str, BySignature]]) -> dict[str, dict[str, Arrays]]:
    """For each model, (folder, inputs by signature), the outputs by signature."""
    with tempfile.TemporaryDirectory() as scratch:
        Path(scratch, "folders.json").write_text(json.dumps({name: folder for name, (folder, _) in models.items()}))
        write(Path(scratch, "asked"), {name: inputs for name, (_, inputs) in models.items()})
        command = [sys.executable, "-m", "tests.support.object_graph_answers", scratch]
        environment = {**os.environ, "CUDA_VISIBLE_DEVICES": "-1", "TF_CPP_MIN_LOG_LEVEL": "2"}
        subprocess.run(command, cwd=Path(__file__).parents[2], env=environment, check=True, timeout=120)
        return read(Path(scratch, "answered"))


def write(path: Path, models: Mapping[str, BySignature]) -> None:
    arrays: list[np.ndarray] = []

    def number(array: np.ndarray) -> int:
        # numpy writes arrays of objects as pickles; ours are all strings.
        arrays.append(array.astype(np.bytes_) if array.dtype.kind == "O" else array)
        return len(arrays) - 1

    index = {
        name: {of: {alias: number(np.asarray(array)) for alias, array in named.items()} for of, named in each.items()}
        for name, each in models.items()
    }
    path.with_suffix(".json").write_text(json.dumps(index))
    np.savez(path.with_suffix(".npz"), *arrays, allow_pickle=False)


def read(path: Path) -> dict[str, dict[str, Arrays]]:
    index = json.loads(path.with_suffix(".json").read_text())
    with np.load(path.with_suffix(".npz"), allow_pickle=False) as arrays:

        def numbered(number: int) -> np.ndarray:
            array = arrays[f"arr_{number}"]
            return array.astype(object) if array.dtype.kind == "S" else array

        return {
            name: {of: {alias: numbered(number) for alias, number in named.items()} for of, named in each.items()}
            for name, each in index.items()
        }


def main(scratch: str) -> None:
    import tensorflow as tf  # noqa: PLC0415  (the tests' own process may do without)

    found: dict[str, dict[str, Arrays]] = {}
    folders = json.loads(Path(scratch, "folders.json").read_text())
    for name, signatures in read(Path(scratch, "asked")).items():
        loaded = tf.saved_model.load(folders[name])
        for signature, inputs in signatures.items():
            outputs = loaded.signatures[signature](**{alias: tf.constant(array) for alias, array in inputs.items()})
            found.setdefault(name, {})[signature] = {alias: tensor.numpy() for alias, tensor in outputs.items()}
    write(Path(scratch, "answered"), found)


if __name__ == "__main__":
    main(sys.argv[1])
