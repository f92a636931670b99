"""Models of TensorFlow Decision Forests, whose last release (1.12) belongs to TensorFlow 2.19.

An environment of its own makes them (tests/models/forests.lock).
"""

from __future__ import annotations

from typing import Any

import numpy as np

from tests.models.model import Group, uniform

GROUP = Group("TensorFlow Decision Forests", environment="forests")
_model = GROUP.model

_MISSING = r"Op type not registered|SimpleML|has the op"


@_model("`GradientBoostedTreesModel`, `model.save(path)`", refused=_MISSING)
def tfdf_boosted_trees(tf: Any, out: str) -> None:
    _fitted("GradientBoostedTreesModel").save(out)


@_model("`RandomForestModel`, `tf.saved_model.save(model, path)`", refused=_MISSING)
def tfdf_random_forest(tf: Any, out: str) -> None:
    tf.saved_model.save(_fitted("RandomForestModel"), out)


@_model(
    "`GradientBoostedTreesModel`, with `op_libraries` (ydf-tf, built for this TensorFlow)",
    inputs={"a": uniform(), "b": uniform()},
    libraries=("ydf_tf/inference.so",),
)
def tfdf_with_library(tf: Any, out: str) -> None:
    tfdf_boosted_trees(tf, out)


def _fitted(kind: str) -> Any:
    import pandas as pd  # noqa: PLC0415
    import tensorflow_decision_forests as tfdf  # noqa: PLC0415

    rng = np.random.default_rng(8)
    table = pd.DataFrame({"a": rng.uniform(size=200), "b": rng.uniform(size=200)})
    table["y"] = (table["a"] > table["b"]).astype(int)
    model = getattr(tfdf.keras, kind)(num_trees=5, verbose=0)
    model.fit(tfdf.keras.pd_dataframe_to_tf_dataset(table, label="y"), verbose=0)
    return model
