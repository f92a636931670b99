"""The models that the tests serve: `python -m tests.saved_models OUT_DIR` exports each to `OUT_DIR/<name>/`.

Tests call `model_zoo()`, which builds them once and keeps them below `build/test-models/`. Only the process that builds
imports TensorFlow. Every model is a SavedModel folder without a version number: tests copy it to where they need it.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterable, Mapping
from importlib.metadata import version
from pathlib import Path
from typing import Any

Exporter = Callable[[Any, str], None]
"""Takes the tensorflow module and the folder to write."""

MODELS: dict[str, Exporter] = {}

_CACHE = Path(__file__).resolve().parents[1] / "build" / "test-models"


def _model(export: Exporter) -> Exporter:
    MODELS[export.__name__] = export
    return export


def model_zoo() -> Path:
    """The folder that holds every model of `MODELS`, built on the first call after this file or TensorFlow changed."""
    key = hashlib.sha256(Path(__file__).read_bytes() + version("tensorflow").encode()).hexdigest()[:16]
    zoo = _CACHE / key
    if zoo.is_dir():
        return zoo
    _CACHE.mkdir(parents=True, exist_ok=True)
    building = tempfile.mkdtemp(prefix="building-", dir=_CACHE)
    try:
        root = Path(__file__).resolve().parents[1]
        command = [sys.executable, "-m", "tests.saved_models", building]
        built = subprocess.run(command, cwd=root, capture_output=True, text=True, check=False, timeout=150)
        if built.returncode:
            raise RuntimeError(f"{' '.join(command)} failed:\n{built.stderr[-4000:]}")
        # Of two test runs that build at once, the first rename wins: a folder that is not empty is never replaced.
        with contextlib.suppress(OSError):
            os.rename(building, zoo)
    finally:
        shutil.rmtree(building, ignore_errors=True)
    return zoo


def build(out_dir: str | os.PathLike[str]) -> None:
    """Exports every model to `out_dir/<name>/`, in this process."""
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
    os.environ["CUDA_VISIBLE_DEVICES"] = "-1"  # exporting needs no GPU, and another test may be using it
    import tensorflow as tf  # noqa: PLC0415  (the tests' own process stays free of it)

    for name, export in MODELS.items():
        export(tf, os.path.join(out_dir, name))


def _save(tf: Any, out: str, function: Callable[..., Any], *inputs: Any, **members: Any) -> None:
    """Exports a TF2 module whose only signature, serving_default, is `function` on `inputs` (TensorSpecs).

    `members` become attributes of the module: the variables, tables and assets that `function` uses.
    """
    _save_all(tf, out, {"serving_default": (function, inputs)}, members)


def _save_all(
    tf: Any,
    out: str,
    functions: Mapping[str, tuple[Callable[..., Any], Iterable[Any]]],
    members: Mapping[str, Any],
) -> None:
    module = tf.Module()
    for name, value in members.items():
        setattr(module, name, value)
    signatures = {
        key: tf.function(function).get_concrete_function(*inputs) for key, (function, inputs) in functions.items()
    }
    tf.saved_model.save(module, out, signatures=signatures)


def _half_plus(tf: Any, out: str, addend: float) -> None:
    """TensorFlow Serving's own example: y = x / 2 + addend, from the graph days.

    As there, the x of predict is a feed in the middle of the graph, below the parser that classify and regress use.
    """
    v1 = tf.compat.v1
    with tf.Graph().as_default(), v1.Session() as session:
        a = v1.Variable(0.5, name="a", use_resource=False)
        b = v1.Variable(addend, name="b", use_resource=False)
        serialized = v1.placeholder(tf.string, [None], name="tf_example")
        parsed = tf.io.parse_example(serialized, {"x": tf.io.FixedLenFeature([], tf.float32)})
        x = tf.identity(parsed["x"], name="x")
        y = tf.add(tf.multiply(a, x), b, name="y")
        scores = tf.stack([y, -y], axis=1, name="scores")
        classes = tf.tile([["plus", "minus"]], [tf.size(y), 1], name="classes")
        session.run(v1.global_variables_initializer())

        def signature(inputs: dict[str, Any], outputs: dict[str, Any], method: str) -> Any:
            infos = [{k: v1.saved_model.build_tensor_info(t) for k, t in side.items()} for side in (inputs, outputs)]
            return v1.saved_model.build_signature_def(*infos, f"tensorflow/serving/{method}")

        builder = v1.saved_model.Builder(out)
        builder.add_meta_graph_and_variables(
            session,
            ["serve"],
            {
                "serving_default": signature({"x": x}, {"y": y}, "predict"),
                "regress_x_to_y": signature({"inputs": serialized}, {"outputs": y}, "regress"),
                "classify_x_to_y": signature({"inputs": serialized}, {"scores": scores}, "classify"),
                "classify_x_to_label": signature(
                    {"inputs": serialized}, {"classes": classes, "scores": scores}, "classify"
                ),
            },
        )
        builder.save()


@_model
def half_plus_two(tf: Any, out: str) -> None:
    """x float32[-1] → y = x / 2 + 2; regress_x_to_y, classify_x_to_y (scores [N, 2] = y, -y) and
    classify_x_to_label (classes "plus", "minus" too) on Examples with the feature "x".
    """
    _half_plus(tf, out, 2.0)


@_model
def half_plus_three(tf: Any, out: str) -> None:
    """half_plus_two, but y = x / 2 + 3: tells one version from another."""
    _half_plus(tf, out, 3.0)


@_model
def tf1_no_variables(tf: Any, out: str) -> None:
    """x float32[-1] → y = 2 x: exported from a graph, with no variables/ folder."""
    v1 = tf.compat.v1
    with tf.Graph().as_default(), v1.Session() as session:
        x = v1.placeholder(tf.float32, [None], name="x")
        v1.saved_model.simple_save(session, out, {"x": x}, {"y": x * 2.0})


@_model
def tiny_tf2(tf: Any, out: str) -> None:
    """x float32[-1] → y = x / 2 + 2."""
    a, b = tf.Variable(0.5), tf.Variable(2.0)
    _save(tf, out, lambda x: {"y": a * x + b}, tf.TensorSpec([None], tf.float32, "x"), a=a, b=b)


@_model
def no_variables(tf: Any, out: str) -> None:
    """x float32[-1] → y = 2 x, of TensorFlow 2."""
    _save(tf, out, lambda x: {"y": x * 2.0}, tf.TensorSpec([None], tf.float32, "x"))


@_model
def multi_io(tf: Any, out: str) -> None:
    """a float32[-1, 3], b int32[-1] → total float32[-1] = Σa + b, scaled float32[-1, 3] = a·b.

    The signature swapped gives the same under the outputs' names exchanged, and echoes its input b as same_b; the
    signature constant takes nothing, and gives answer int64[] = 42.
    """

    def total(a: Any, b: Any) -> dict[str, Any]:
        b = tf.cast(b, tf.float32)
        return {"total": tf.reduce_sum(a, axis=1) + b, "scaled": a * b[:, None]}

    def swapped(a: Any, b: Any) -> dict[str, Any]:
        result = total(a, b)
        return {"total": result["scaled"], "scaled": result["total"], "same_b": b}

    inputs = [tf.TensorSpec([None, 3], tf.float32, "a"), tf.TensorSpec([None], tf.int32, "b")]
    functions: dict[str, Any] = {
        "serving_default": (total, inputs),
        "swapped": (swapped, inputs),
        "constant": (lambda: {"answer": tf.constant(42, tf.int64)}, []),
    }
    _save_all(tf, out, functions, {})


@_model
def fed_and_fetched(tf: Any, out: str) -> None:
    """x float32[-1] → same = the tensor of x itself, twice and again the one tensor of 2 x."""
    v1 = tf.compat.v1
    with tf.Graph().as_default(), v1.Session() as session:
        x = v1.placeholder(tf.float32, [None], name="x")
        y = x * 2.0
        v1.saved_model.simple_save(session, out, {"x": x}, {"same": x, "twice": y, "again": y})


@_model
def scalars(tf: Any, out: str) -> None:
    """x float32[], n int64[], s string[] → y = 2 x, m = n + 1, t = s + "!"."""
    _save(
        tf,
        out,
        lambda x, n, s: {"y": x * 2.0, "m": n + 1, "t": s + "!"},
        tf.TensorSpec([], tf.float32, "x"),
        tf.TensorSpec([], tf.int64, "n"),
        tf.TensorSpec([], tf.string, "s"),
    )


@_model
def strings(tf: Any, out: str) -> None:
    """text string[-1] → upper (ASCII), and length int32[-1], echo_bytes = text, raw."""
    _save(
        tf,
        out,
        lambda text: {
            "upper": tf.strings.upper(text),
            "length": tf.strings.length(text),
            "echo_bytes": tf.identity(text),
        },
        tf.TensorSpec([None], tf.string, "text"),
    )


@_model
def dtypes(tf: Any, out: str) -> None:
    """One signature for each element type, under its name ("bfloat16"): x[-1] → y = x, double[-1] = x and x again."""
    from backends.dtypes import DTYPES  # noqa: PLC0415  (only the building process needs it)

    functions = {
        element.name: (
            lambda x: {"y": tf.identity(x), "double": tf.concat([x, x], axis=0)},
            [tf.TensorSpec([None], tf.as_dtype(element.number), "x")],
        )
        for element in DTYPES
    }
    _save_all(tf, out, functions, {})


@_model
def assets_vocab(tf: Any, out: str) -> None:
    """words string[-1] → ids int64[-1]: alpha 0, beta 1, gamma 2, else -1, from the asset vocab.txt."""
    with tempfile.TemporaryDirectory() as scratch:
        path = Path(scratch, "vocab.txt")
        path.write_text("alpha\nbeta\ngamma\n")
        lookup = tf.lookup
        initializer = lookup.TextFileInitializer(
            str(path),
            tf.string,
            lookup.TextFileIndex.WHOLE_LINE,
            tf.int64,
            lookup.TextFileIndex.LINE_NUMBER,
        )
        table = lookup.StaticHashTable(initializer, -1)
        _save(tf, out, lambda words: {"ids": table.lookup(words)}, tf.TensorSpec([None], tf.string, "words"), t=table)


@_model
def slow(tf: Any, out: str) -> None:
    """iterations int32[-1] → done int32[-1] = iterations, after the largest of them: very roughly 0.3 ms each."""

    def burn(iterations: Any) -> dict[str, Any]:
        def body(i: Any, m: Any) -> Any:
            return i + 1, tf.math.l2_normalize(tf.matmul(m, m) + 1.0)

        most = tf.reduce_max(iterations)
        _, m = tf.while_loop(lambda i, _: i < most, body, (tf.constant(0), tf.random.uniform([256, 256], seed=1)))
        with tf.control_dependencies([m]):
            return {"done": tf.identity(iterations)}

    _save(tf, out, burn, tf.TensorSpec([None], tf.int32, "iterations"))


@_model
def gate(tf: Any, out: str) -> None:
    """path string[-1] → batch_size int32[-1]: waits (on one busy core) until the file path[0] exists, then says for
    each example how many the execution held. A test holds a request in flight, and sees what was merged. An execution
    that waits keeps one of TensorFlow's inter-op threads, of which there are as many as cores unless options say more.
    """

    def wait(path: Any) -> dict[str, Any]:
        def closed(i: Any) -> Any:
            # The counter, as an empty suffix, keeps the optimiser from moving the look-up out of the loop.
            pattern = path[0] + tf.strings.substr(tf.strings.as_string(i), 0, 0)
            return tf.equal(tf.size(tf.io.matching_files(pattern)), 0)

        looks = tf.while_loop(closed, lambda i: (i + 1,), (tf.constant(0),))
        with tf.control_dependencies(looks):
            return {"batch_size": tf.fill(tf.shape(path), tf.size(path))}

    _save(tf, out, wait, tf.TensorSpec([None], tf.string, "path"))


@_model
def fails(tf: Any, out: str) -> None:
    """x float32[-1] → y = √x; a negative x is INVALID_ARGUMENT with "x must not be negative" in the message."""

    def root(x: Any) -> dict[str, Any]:
        with tf.control_dependencies([tf.debugging.assert_non_negative(x, message="x must not be negative")]):
            return {"y": tf.sqrt(x)}

    _save(tf, out, root, tf.TensorSpec([None], tf.float32, "x"))


@_model
def crash_on_negative(tf: Any, out: str) -> None:
    """x float32[-1] → y = x; a negative x aborts the whole process (SIGABRT)."""

    def maybe_abort(x: Any) -> dict[str, Any]:
        def abort() -> Any:
            with tf.control_dependencies([tf.raw_ops.Abort(error_msg="a negative x")]):
                return tf.identity(x)

        return {"y": tf.cond(tf.reduce_any(x < 0.0), abort, lambda: tf.identity(x))}

    _save(tf, out, maybe_abort, tf.TensorSpec([None], tf.float32, "x"))


@_model
def big_output(tf: Any, out: str) -> None:
    """n int32[] → zeros float32[n]."""
    _save(tf, out, lambda n: {"zeros": tf.zeros([n], tf.float32)}, tf.TensorSpec([], tf.int32, "n"))


@_model
def batch_softmax(tf: Any, out: str) -> None:
    """x float32[-1] → y = softmax over the batch itself: a wrong answer wherever requests are merged."""
    _save(tf, out, lambda x: {"y": tf.nn.softmax(x, axis=0)}, tf.TensorSpec([None], tf.float32, "x"))


@_model
def keras2(tf: Any, out: str) -> None:
    """float32[-1, 4] → float32[-1, 3], compiled and fitted one step: the kind that tf.saved_model.load refuses."""
    import tf_keras  # type: ignore[import-untyped]  # noqa: PLC0415  (ships no types)

    layers = [tf_keras.layers.Dense(8, activation="relu", input_shape=(4,)), tf_keras.layers.BatchNormalization()]
    model = tf_keras.Sequential([*layers, tf_keras.layers.Dense(3, activation="softmax")])
    model.compile(optimizer="adam", loss="mse")
    model.fit(tf.ones([8, 4]), tf.ones([8, 3]), verbose=0)
    model.save(out, save_format="tf")


@_model
def keras3(tf: Any, out: str) -> None:
    """float32[-1, 4] → float32[-1, 3], written by keras.Model.export."""
    layers = tf.keras.layers
    model = tf.keras.Sequential([layers.Input((4,)), layers.Dense(8, activation="relu"), layers.Dense(3)])
    model.export(out, verbose=False)


if __name__ == "__main__":
    build(sys.argv[1])
