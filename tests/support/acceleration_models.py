"""The models on which acceleration is tested: `python -m tests.support.acceleration_models OUT_DIR` exports them.

Built once, as `tests.support.saved_models` does it; apart from those, since few tests want them.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path
from typing import Any

_CACHE = Path(__file__).resolve().parents[2] / "build" / "test-models"
MODELS: dict[str, Callable[[Any, str], None]] = {}


def _model(export: Callable[[Any, str], None]) -> Callable[[Any, str], None]:
    MODELS[export.__name__] = export
    return export


def acceleration_zoo() -> Path:
    """The folder that holds every model of `MODELS`."""
    key = hashlib.sha256(Path(__file__).read_bytes() + version("tensorflow").encode()).hexdigest()[:16]
    zoo = _CACHE / f"acceleration-{key}"
    if zoo.is_dir():
        return zoo
    _CACHE.mkdir(parents=True, exist_ok=True)
    building = tempfile.mkdtemp(prefix="building-", dir=_CACHE)
    try:
        command = [sys.executable, "-m", "tests.support.acceleration_models", building]
        root = Path(__file__).resolve().parents[2]
        built = subprocess.run(command, cwd=root, capture_output=True, text=True, check=False, timeout=150)
        if built.returncode:
            raise RuntimeError(f"{' '.join(command)} failed:\n{built.stderr[-4000:]}")
        with contextlib.suppress(OSError):
            os.rename(building, zoo)
    finally:
        shutil.rmtree(building, ignore_errors=True)
    return zoo


def build(out_dir: str) -> None:
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
    os.environ["CUDA_VISIBLE_DEVICES"] = "-1"
    import tensorflow as tf  # noqa: PLC0415  (the tests' own process stays free of it)

    tf.keras.utils.set_random_seed(7)
    for name, export in MODELS.items():
        export(tf, os.path.join(out_dir, name))


def _export(tf: Any, out: str, *layers: Any) -> None:
    """A Keras 3 model, under the signature serving_default alone: `export` writes two that are the same."""
    model = tf.keras.Sequential(list(layers))
    archive = tf.keras.export.ExportArchive()
    archive.track(model)
    archive.add_endpoint(
        "serving_default", model.call, [tf.TensorSpec([None, *model.input_shape[1:]], model.inputs[0].dtype)]
    )
    archive.write_out(out, verbose=False)


@_model
def conv(tf: Any, out: str) -> None:
    """float32[-1, 16, 16, 3] → float32[-1, 5], written by Keras 3: two convolutions, batch normalisation,
    gelu, softmax."""
    layers = tf.keras.layers
    _export(
        tf,
        out,
        layers.Input((16, 16, 3)),
        layers.Conv2D(8, 3, padding="same", activation="relu"),
        layers.BatchNormalization(),
        layers.DepthwiseConv2D(3, strides=2, activation="gelu"),
        layers.GlobalAveragePooling2D(),
        layers.Dense(5, activation="softmax"),
    )


@_model
def any_size(tf: Any, out: str) -> None:
    """float32[-1, -1, -1, 3] → float32[-1, -1, -1, 4], written by Keras 3: convolutions, for images from 8 × 8 on."""
    layers = tf.keras.layers
    _export(
        tf,
        out,
        layers.Input((None, None, 3)),
        layers.Conv2D(8, 3, activation="relu"),
        layers.MaxPooling2D(2),
        layers.Conv2D(4, 3, strides=2),
    )


@_model
def lstm(tf: Any, out: str) -> None:
    """float32[-1, -1, 4] → float32[-1, 3], written by Keras 3: a loop over a sequence of any length."""
    layers = tf.keras.layers
    _export(tf, out, layers.Input((None, 4)), layers.LSTM(8), layers.Dense(3))


@_model
def embedding(tf: Any, out: str) -> None:
    """ids int32[-1, -1] → mean float32[-1, 6] of their vectors; ids from 50 on are refused."""
    table = tf.Variable(tf.random.stateless_normal([50, 6], [1, 2]))
    module = tf.Module()
    module.table = table
    mean = tf.function(lambda ids: {"mean": tf.reduce_mean(tf.gather(table, ids), axis=1)})
    signature = mean.get_concrete_function(tf.TensorSpec([None, None], tf.int32, "ids"))
    tf.saved_model.save(module, out, signatures={"serving_default": signature})


def _save(tf: Any, out: str, function: Callable[[Any], Any]) -> None:
    signature = tf.function(function).get_concrete_function(tf.TensorSpec([None, 3], tf.float32, "x"))
    tf.saved_model.save(tf.Module(), out, signatures={"serving_default": signature})


@_model
def saturated(tf: Any, out: str) -> None:
    """x float32[-1, 3] → y float32[-1] = 1, whatever x is: a model that looks right in any form."""
    _save(tf, out, lambda x: {"y": tf.sigmoid(tf.reduce_sum(x * x, axis=1) + 100.0)})


@_model
def by_chance(tf: Any, out: str) -> None:
    """x float32[-1, 3] → y = x and noise: another answer each time."""
    _save(tf, out, lambda x: {"y": x + tf.random.normal(tf.shape(x))})


@_model
def counts(tf: Any, out: str) -> None:
    """x float32[-1, 3] → y = 2 x, and counts the requests in a variable that no answer tells."""
    requests = tf.Variable(0)

    def double(x: Any) -> dict[str, Any]:
        requests.assign_add(1)
        return {"y": 2.0 * x}

    module = tf.Module()
    module.requests = requests
    function = tf.function(double).get_concrete_function(tf.TensorSpec([None, 3], tf.float32, "x"))
    tf.saved_model.save(module, out, signatures={"serving_default": function})


@_model
def unknown_operator(tf: Any, out: str) -> None:
    """x float32[-1, 3] → y, by an operator that neither ONNX nor TF-Lite has."""
    _save(tf, out, lambda x: {"y": tf.math.igamma(tf.abs(x) + 1.0, tf.abs(x) + 0.5)})


@_model
def whole(tf: Any, out: str) -> None:
    """ids int64[-1] → what converters get wrong: remainders, quotients and one-hot rows of negative ones, casts that
    round."""
    table = tf.constant([[0.3 * row + column for column in range(4)] for row in range(10)])

    def answers(ids: Any) -> dict[str, Any]:
        return {
            "remainder": ids % 1009,
            "high": ids // 2**32,
            "day": ids // 86_400_000,
            "row": tf.one_hot(ids, 10) @ table,
            "half": tf.cast(tf.cast(ids % 10_000, tf.float16), tf.float32),
            "rounded": tf.cast(tf.cast(ids % 10**9, tf.float32), tf.int64),
        }

    signature = tf.function(answers).get_concrete_function(tf.TensorSpec([None], tf.int64, "ids"))
    tf.saved_model.save(tf.Module(), out, signatures={"serving_default": signature})


@_model
def rectified(tf: Any, out: str) -> None:
    """x float32[-1, 3] → what LiteRT gets wrong of NaN."""
    _save(tf, out, lambda x: {"relu": tf.nn.relu(x), "relu6": tf.nn.relu6(x), "most": tf.reduce_max(x, axis=1)})


@_model
def pairs(tf: Any, out: str) -> None:
    """x float32[-1, 3] → y, for two rows and no others."""
    _save(tf, out, lambda x: {"y": tf.ensure_shape(x, [2, 3]) * 2.0})


@_model
def ranking(tf: Any, out: str) -> None:
    """x float32[-1, 6] → the label, and the 3 largest of 8 scores with their places: a softmax behind layers, with
    three sets of weights. Where an input is large, most scores are 0."""
    module = tf.Module()
    shapes = ([6, 16], [16], [16, 8], [8])
    module.weights = [
        [tf.Variable(tf.random.stateless_normal(shape, [seed, n])) for n, shape in enumerate(shapes)]
        for seed in range(3)
    ]

    def ranked_by(weights: Any) -> Any:
        def ranked(x: Any) -> Any:
            hidden = tf.nn.relu((x - 3.0) / 2.0 @ weights[0] + weights[1])
            scores = tf.nn.softmax(hidden @ weights[2] + weights[3])
            values, places = tf.math.top_k(scores, 3)
            return {"label": tf.argmax(scores, axis=1), "values": values, "places": places}

        return tf.function(ranked).get_concrete_function(tf.TensorSpec([None, 6], tf.float32, "x"))

    signatures = {f"weights_{seed}": ranked_by(weights) for seed, weights in enumerate(module.weights)}
    tf.saved_model.save(module, out, signatures=signatures)


def _save_signatures(tf: Any, out: str, module: Any, signatures: dict[str, tuple[Callable[..., Any], str]]) -> None:
    """Signatures of x and z, or x alone: of rows of 4 floats, of sequences, or of ids."""
    specs = {
        "floats": [tf.TensorSpec([None, 4], tf.float32, "x")],
        "two floats": [tf.TensorSpec([None, 4], tf.float32, name) for name in "xz"],
        "sequences": [tf.TensorSpec([None, None], tf.float32, "x")],
        "ids": [tf.TensorSpec([None], tf.int64, "x")],
        "two ids": [tf.TensorSpec([None], tf.int64, name) for name in "xz"],
    }
    concrete = {}
    for name, (function, kind) in signatures.items():
        traced = tf.function(lambda *inputs, function=function: {"y": function(*inputs)})
        concrete[name] = traced.get_concrete_function(*specs[kind])
    tf.saved_model.save(module, out, signatures=concrete)


@_model
def rare_by_cases(tf: Any, out: str) -> None:
    """A signature for each error of `tests.support.planted_converter` that the cases of a proof come upon."""
    module = tf.Module()
    module.table = tf.Variable(tf.random.stateless_normal([1000, 4], [3, 4]))
    signatures = {
        "beyond_a_million": (lambda x: x * 2.0, "floats"),
        "from_33_rows": (lambda x: x * 2.0, "floats"),
        "no_look_for_nan": (lambda x: tf.where(tf.math.is_nan(x), tf.zeros_like(x), x), "floats"),
        "at_least": (lambda x: tf.where(x > 6.5, x, tf.zeros_like(x)), "floats"),
        "clipped_elsewhere": (lambda x: tf.clip_by_value(x, -1.0, 6.0), "floats"),
        "sign_of_zero": (lambda x: 1.0 / x, "floats"),
        "last_of_equals": (lambda x: tf.argmax(x, axis=1), "floats"),
        "halves_up": (tf.round, "floats"),
        "odd_length": (lambda x: tf.reduce_sum(x, axis=1), "sequences"),
        "narrow": (lambda x: x * 3, "ids"),
        "towards_zero": (lambda x: x // 7, "ids"),
        "last_id": (lambda x: tf.gather(module.table, x), "ids"),
    }
    _save_signatures(tf, out, module, signatures)


@_model
def rare_by_search(tf: Any, out: str) -> None:
    """A signature for each error of `tests.support.planted_converter` that no case of a proof comes upon."""
    module = tf.Module()
    module.table = tf.Variable(tf.random.stateless_normal([1000, 4], [3, 4]))
    module.limit = tf.Variable(3.25)

    def above(x: Any) -> Any:
        return tf.where(x * 2.0 + 1.0 > module.limit, x, tf.zeros_like(x))

    def product(x: Any, z: Any) -> Any:
        return tf.reduce_sum(tf.gather(module.table, x) * tf.gather(module.table, z), axis=1)

    signatures = {
        "from_100_rows": (lambda x: x * 2.0, "floats"),
        "at_least_behind_arithmetic": (above, "floats"),
        "another_limit_behind_arithmetic": (above, "floats"),
        "both_large": (lambda x, z: x * 0.5 + z, "two floats"),
        "one_length": (lambda x: tf.reduce_sum(x, axis=1), "sequences"),
        "one_number": (lambda x: x * 3, "ids"),
        "middle_id": (lambda x: tf.gather(module.table, x), "ids"),
        "two_ids": (product, "two ids"),
    }
    _save_signatures(tf, out, module, signatures)


if __name__ == "__main__":
    build(sys.argv[1])
