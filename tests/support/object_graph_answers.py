"""What `tf.saved_model.load` answers: `python -m tests.support.object_graph_answers FILE` reads a pickle of (folder,
inputs by signature) for each model, and replaces it by the outputs. In a process
of its own, as a user of the model would."""

from __future__ import annotations

import os
import pickle
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from pathlib import Path

import numpy as np

Arrays = Mapping[str, np.ndarray]


def answers(models: Mapping[str, tuple[str, Mapping[str, Arrays]]]) -> dict[str, dict[str, Arrays]]:
    """For each model, (folder, inputs by signature), the outputs by signature."""
    with tempfile.TemporaryDirectory() as scratch:
        file = Path(scratch, "pickled")
        file.write_bytes(pickle.dumps(models))
        command = [sys.executable, "-m", "tests.support.object_graph_answers", str(file)]
        environment = {**os.environ, "CUDA_VISIBLE_DEVICES": "-1", "TF_CPP_MIN_LOG_LEVEL": "2"}
        subprocess.run(command, cwd=Path(__file__).parents[2], env=environment, check=True, timeout=120)
        found: dict[str, dict[str, Arrays]] = pickle.loads(file.read_bytes())
        return found


def main(file: str) -> None:
    import tensorflow as tf  # noqa: PLC0415  (the tests' own process may do without)

    found: dict[str, dict[str, Arrays]] = {}
    for name, (folder, signatures) in pickle.loads(Path(file).read_bytes()).items():
        loaded = tf.saved_model.load(folder)
        for signature, inputs in signatures.items():
            outputs = loaded.signatures[signature](**{alias: tf.constant(array) for alias, array in inputs.items()})
            found.setdefault(name, {})[signature] = {alias: tensor.numpy() for alias, tensor in outputs.items()}
    Path(file).write_bytes(pickle.dumps(found))


if __name__ == "__main__":
    main(sys.argv[1])
