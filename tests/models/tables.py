"""ONNX models of tables: scikit-learn (skl2onnx), XGBoost and LightGBM (onnxmltools).

Only the tools' own virtual environment imports them (tests/models/requirements.lock).
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from tests.models.model import Group, floats, words

GROUP = Group("scikit-learn, XGBoost, LightGBM", judge="onnx", environment="requirements", needs_tensorflow=False)
_model = GROUP.model

_SENTENCES = ["the cat sat", "a Dog sat on the mat", "dogs and cats", "no animal here", "CAT and dog"]


def _table() -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(6)
    x = rng.normal(size=(200, 4)).astype("float32")
    return x, (x[:, 0] + x[:, 1] * x[:, 2] > 0).astype("int64") + (x[:, 3] > 1)


def _write(model: Any, out: str) -> None:
    Path(out).mkdir(parents=True)
    Path(out, "model.onnx").write_bytes(model.SerializeToString())


def _from_sklearn(model: Any, out: str, **options: Any) -> None:
    from skl2onnx import to_onnx  # noqa: PLC0415

    _write(to_onnx(model, _table()[0][:1], target_opset={"": 17, "ai.onnx.ml": 3}, **options), out)


@_model("scikit-learn: scaler and logistic regression, `to_onnx(zipmap=False)`", inputs={"X": floats(4)})
def sklearn_pipeline(_: Any, out: str) -> None:
    from sklearn.linear_model import LogisticRegression  # noqa: PLC0415
    from sklearn.pipeline import make_pipeline  # noqa: PLC0415
    from sklearn.preprocessing import StandardScaler  # noqa: PLC0415

    _from_sklearn(make_pipeline(StandardScaler(), LogisticRegression()).fit(*_table()), out, options={"zipmap": False})


@_model("the same with skl2onnx's defaults: its map of probabilities is left out", inputs={"X": floats(4)})
def sklearn_zipmap(_: Any, out: str) -> None:
    from sklearn.linear_model import LogisticRegression  # noqa: PLC0415

    _from_sklearn(LogisticRegression().fit(*_table()), out)


@_model("scikit-learn: random forest, regression", inputs={"X": floats(4)})
def sklearn_forest(_: Any, out: str) -> None:
    from sklearn.ensemble import RandomForestRegressor  # noqa: PLC0415

    x, y = _table()
    _from_sklearn(RandomForestRegressor(8, random_state=1).fit(x, y.astype("float32")), out)


@_model(
    "scikit-learn: a column transformer of numbers and words",
    inputs={"n": floats(1), "w": words("a", "b", "c", shape=[1])},
)
def sklearn_columns(_: Any, out: str) -> None:
    from skl2onnx import to_onnx  # noqa: PLC0415
    from skl2onnx.common.data_types import FloatTensorType, StringTensorType  # noqa: PLC0415
    from sklearn.compose import ColumnTransformer  # noqa: PLC0415
    from sklearn.linear_model import LinearRegression  # noqa: PLC0415
    from sklearn.pipeline import make_pipeline  # noqa: PLC0415
    from sklearn.preprocessing import OneHotEncoder, StandardScaler  # noqa: PLC0415

    rng = np.random.default_rng(2)
    table = np.empty((60, 2), object)
    table[:, 0], table[:, 1] = rng.normal(size=60).astype("float32"), rng.choice(["a", "b"], size=60)
    columns = [("n", StandardScaler(), [0]), ("w", OneHotEncoder(handle_unknown="ignore"), [1])]
    model = make_pipeline(ColumnTransformer(columns), LinearRegression()).fit(table, rng.normal(size=60))
    inputs = [("n", FloatTensorType([None, 1])), ("w", StringTensorType([None, 1]))]
    _write(to_onnx(model, initial_types=inputs, target_opset={"": 17, "ai.onnx.ml": 3}), out)


def _text(out: str, lower: bool) -> None:
    from skl2onnx import to_onnx  # noqa: PLC0415
    from skl2onnx.common.data_types import StringTensorType  # noqa: PLC0415
    from sklearn.feature_extraction.text import TfidfVectorizer  # noqa: PLC0415
    from sklearn.linear_model import LogisticRegression  # noqa: PLC0415
    from sklearn.pipeline import make_pipeline  # noqa: PLC0415

    model = make_pipeline(TfidfVectorizer(lowercase=lower, token_pattern="[a-zA-Z]+"), LogisticRegression())
    model.fit(_SENTENCES, [0, 1, 0, 2, 1])
    about = {"options": {"zipmap": False}, "target_opset": {"": 17, "ai.onnx.ml": 3}}
    _write(to_onnx(model, initial_types=[("text", StringTensorType([None]))], **about), out)


@_model(
    "scikit-learn: `TfidfVectorizer`, which makes lower case (a locale is needed)",
    inputs={"text": words(*_SENTENCES)},
)
def sklearn_tfidf(_: Any, out: str) -> None:
    _text(out, lower=True)


@_model("scikit-learn: `TfidfVectorizer(lowercase=False)`", inputs={"text": words(*_SENTENCES)})
def sklearn_tfidf_as_it_is(_: Any, out: str) -> None:
    _text(out, lower=False)


def _boosted(convert: str, model: Any, out: str) -> None:
    import onnxmltools  # noqa: PLC0415
    from onnxmltools.convert.common.data_types import FloatTensorType  # noqa: PLC0415

    inputs = [("x", FloatTensorType([None, 4]))]
    _write(getattr(onnxmltools, convert)(model, initial_types=inputs, target_opset=15), out)


@_model("XGBoost: `convert_xgboost` of a classifier", inputs={"x": floats(4)})
def xgboost_classifier(_: Any, out: str) -> None:
    from xgboost import XGBClassifier  # noqa: PLC0415

    _boosted("convert_xgboost", XGBClassifier(n_estimators=8, max_depth=3).fit(*_table()), out)


@_model("LightGBM: `convert_lightgbm` of a regressor", inputs={"x": floats(4)})
def lightgbm_regressor(_: Any, out: str) -> None:
    from lightgbm import LGBMRegressor  # noqa: PLC0415

    x, y = _table()
    _boosted("convert_lightgbm", LGBMRegressor(n_estimators=8, verbose=-1).fit(x, y.astype("float32")), out)
