"""Exports models of a group: `python -m tests.models.make MODULE NAME… OUT_DIR`, each to `OUT_DIR/<name>/`.

The words of an exporter that fails are left in `OUT_DIR/<name>.error`, and the others are made.
"""

from __future__ import annotations

import importlib
import os
import sys
import traceback


def main(module: str, names: list[str], out_dir: str) -> None:
    group = importlib.import_module(module).GROUP
    tf = None
    if group.needs_tensorflow:
        import tensorflow as tf  # type: ignore[no-redef]  # noqa: PLC0415  (the tests' own process stays free of it)

        tf.keras.utils.set_random_seed(7)
    for name in names:
        try:
            group.exporters[name](tf, os.path.join(out_dir, name))
        except Exception:  # noqa: BLE001 - the outer loop: whatever a tool raises is told of its model
            with open(os.path.join(out_dir, f"{name}.error"), "w", encoding="utf-8") as file:
                traceback.print_exc(file=file)


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2:-1], sys.argv[-1])
