"""Exports models of a group: `python -m tests.models.make MODULE NAME… OUT_DIR`, each to `OUT_DIR/<name>/`.

A folder is there only when it is whole. What an exporter raises is left in `OUT_DIR/<name>.error`; the others are made.
"""

from __future__ import annotations

import importlib
import os
import shutil
import sys
import tempfile
import traceback


def main(module: str, names: list[str], out_dir: str) -> None:
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
    os.environ["CUDA_VISIBLE_DEVICES"] = "-1"  # exporting needs no GPU
    group = importlib.import_module(module).GROUP
    tf = None
    if group.needs_tensorflow:
        import tensorflow as tf  # type: ignore[no-redef]  # noqa: PLC0415  (after the environment is set)

        tf.keras.utils.set_random_seed(7)
    for name in names:
        error = os.path.join(out_dir, f"{name}.error")
        with tempfile.TemporaryDirectory(dir=out_dir) as scratch:
            made = os.path.join(scratch, "1")
            try:
                group.exporters[name](tf, made)
            except Exception:  # noqa: BLE001 - the outer loop: whatever a tool raises is told of its model
                with open(error, "w", encoding="utf-8") as file:
                    traceback.print_exc(file=file)
                continue
            folder = os.path.join(out_dir, name)
            shutil.rmtree(folder, ignore_errors=True)
            os.rename(made, folder)


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2:-1], sys.argv[-1])
