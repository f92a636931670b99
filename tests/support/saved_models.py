"""The models that the tests serve: `python -m tests.support.saved_models OUT_DIR` exports each to `OUT_DIR/<name>/`.

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
from collections.abc import Callable, Iterable, Mapping, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

from tests.support.hostile_models import export_exhausts_memory_at_load, export_hangs_at_load, export_hostile

Exporter = Callable[[Any, str], None]
"""Takes the tensorflow module and the folder to write."""

MODELS: dict[str, Exporter] = {
    "exhausts_memory_at_load": export_exhausts_memory_at_load,
    "hangs_at_load": export_hangs_at_load,
    "hostile": export_hostile,
}

_CACHE = Path(__file__).resolve().parents[2] / "build" / "test-models"


def _model(export: Exporter) -> Exporter:
    MODELS[export.__name__] = export
    return export


LITE_MODELS: set[str] = set()
"""Those of `MODELS` that are a model.tflite without a SavedModel."""


def _lite_model(export: Exporter) -> Exporter:
    LITE_MODELS.add(export.__name__)
    return _model(export)


def model_zoo() -> Path:
    """The folder that holds every model of `MODELS`, built on the first call after they or TensorFlow changed."""
    sources = [Path(__file__), Path(__file__).with_name("hostile_models.py")]
    content = b"".join(path.read_bytes() for path in sources)
    key = hashlib.sha256(content + version("tensorflow").encode()).hexdigest()[:16]
    zoo = _CACHE / key
    if zoo.is_dir():
        return zoo
    _CACHE.mkdir(parents=True, exist_ok=True)
    building = tempfile.mkdtemp(prefix="building-", dir=_CACHE)
    try:
        root = Path(__file__).resolve().parents[2]
        command = [sys.executable, "-m", "tests.support.saved_models", building]
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


def _half_plus(tf: Any, out: str, addend: float, fed: str = "x") -> None:
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
                "serving_default": signature({fed: x}, {"y": y}, "predict"),
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
def half_plus_renamed(tf: Any, out: str) -> None:
    """half_plus_three, whose input for predict is called z."""
    _half_plus(tf, out, 3.0, fed="z")


@_model
def half_plus_columns(tf: Any, out: str) -> None:
    """The model of TensorFlow Serving's own tests, with its signatures: columns [-1, 1], y = x / 2 + 2, y2 = x / 2 + 3,
    y3 = x2 / 2 + 3.

    serving_default is x → y; regress_x_to_y, regress_x_to_y2 and classify_x_to_y parse Examples with "x" and perhaps
    "x2"; regress_x2_to_y3 and classify_x2_to_y3 feed x2 itself. Of TensorFlow 1, with an asset.
    """
    v1 = tf.compat.v1
    with tf.Graph().as_default(), v1.Session() as session, tempfile.TemporaryDirectory() as scratch:
        half, two, three = (v1.Variable(value, use_resource=False) for value in (0.5, 2.0, 3.0))
        serialized = v1.placeholder(tf.string, name="tf_example")
        column = tf.io.FixedLenFeature
        parsed = tf.io.parse_example(
            tf.ensure_shape(serialized, [None]),
            {"x": column([1], tf.float32), "x2": column([1], tf.float32, default_value=[0.0])},
        )
        x, x2 = tf.identity(parsed["x"], name="x"), tf.identity(parsed["x2"], name="x2")
        y, y2 = tf.add(half * x, two, name="y"), tf.add(half * x, three, name="y2")
        y3 = tf.add(half * x2, three, name="y3")
        asset = Path(scratch, "foo.txt")
        asset.write_text("asset-file-contents")
        v1.add_to_collection(v1.GraphKeys.ASSET_FILEPATHS, tf.constant(str(asset)))
        session.run(v1.global_variables_initializer())

        def signature(method: str, source: tuple[str, Any], result: tuple[str, Any]) -> Any:
            sides = [{name: v1.saved_model.build_tensor_info(tensor)} for name, tensor in (source, result)]
            return v1.saved_model.build_signature_def(*sides, f"tensorflow/serving/{method}")

        examples = ("inputs", serialized)
        builder = v1.saved_model.Builder(out)
        builder.add_meta_graph_and_variables(
            session,
            ["serve"],
            {
                "serving_default": signature("predict", ("x", x), ("y", y)),
                "regress_x_to_y": signature("regress", examples, ("outputs", y)),
                "regress_x_to_y2": signature("regress", examples, ("outputs", y2)),
                "regress_x2_to_y3": signature("regress", ("inputs", x2), ("outputs", y3)),
                "classify_x_to_y": signature("classify", examples, ("scores", y)),
                "classify_x2_to_y3": signature("classify", ("inputs", x2), ("scores", y3)),
            },
            assets_collection=v1.get_collection(v1.GraphKeys.ASSET_FILEPATHS),
        )
        builder.save()


@_model
def parsed_examples(tf: Any, out: str) -> None:
    """Signatures on Examples with the features "n" int64, "f" float32 and "s" bytes (0, 0.0 and "" where absent), from
    TensorFlow 2, so that all carry predict's method name.

    classify_text: classes [N, 3] = the features as text, raw. regress_column: outputs [N, 1] = n + f. serving_default
    is classify_text with scores [N, 3] = n, f, n too. What no method takes: classify_int_scores (scores int64),
    classify_flat (scores [N]), classify_shorter (scores [1, 2]), classify_uneven (classes [N, 2], scores [N, 3]),
    regress_wide (outputs [N, 2]), regress_shorter (outputs [1]), regress_int (outputs int64), other_names (examples →
    value), two_inputs (inputs, more), three_outputs, not_parsed (inputs float32 → outputs).
    """

    def features(inputs: Any) -> tuple[Any, Any, Any]:
        fixed = tf.io.FixedLenFeature
        spec = {"n": fixed([], tf.int64, 0), "f": fixed([], tf.float32, 0.0), "s": fixed([], tf.string, "")}
        parsed = tf.io.parse_example(inputs, spec)
        return parsed["n"], parsed["f"], parsed["s"]

    def text(inputs: Any) -> Any:
        n, f, s = features(inputs)
        return tf.stack([tf.strings.as_string(n), tf.strings.as_string(f, precision=2), s], axis=1)

    def scores(inputs: Any) -> Any:
        n, f, _ = features(inputs)
        return tf.stack([tf.cast(n, tf.float32), f, tf.cast(n, tf.float32)], axis=1)

    def total(inputs: Any) -> Any:
        return tf.cast(features(inputs)[0], tf.float32) + features(inputs)[1]

    examples = [tf.TensorSpec([None], tf.string, "inputs")]
    on_examples: dict[str, Callable[..., Any]] = {
        "serving_default": lambda inputs: {"classes": text(inputs), "scores": scores(inputs)},
        "classify_text": lambda inputs: {"classes": text(inputs)},
        "regress_column": lambda inputs: {"outputs": total(inputs)[:, None]},
        "classify_int_scores": lambda inputs: {"scores": tf.cast(scores(inputs), tf.int64)},
        "classify_flat": lambda inputs: {"scores": total(inputs)},
        "classify_shorter": lambda inputs: {"scores": scores(inputs)[:1, :2]},
        "classify_uneven": lambda inputs: {"classes": text(inputs)[:, :2], "scores": scores(inputs)},
        "regress_wide": lambda inputs: {"outputs": scores(inputs)[:, :2]},
        "regress_shorter": lambda inputs: {"outputs": total(inputs)[:1]},
        "regress_int": lambda inputs: {"outputs": features(inputs)[0]},
        "three_outputs": lambda inputs: {"classes": text(inputs), "scores": scores(inputs), "total": total(inputs)},
    }
    functions: dict[str, Any] = {name: (function, examples) for name, function in on_examples.items()}
    functions["other_names"] = (
        lambda examples: {"value": total(examples)},
        [tf.TensorSpec([None], tf.string, "examples")],
    )
    functions["two_inputs"] = (
        lambda inputs, more: {"outputs": total(inputs) + more},
        [*examples, tf.TensorSpec([None], tf.float32, "more")],
    )
    functions["not_parsed"] = (
        lambda inputs: {"outputs": inputs + 1.0},
        [tf.TensorSpec([None], tf.float32, "inputs")],
    )
    _save_all(tf, out, functions, {})


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
def defaults(tf: Any, out: str) -> None:
    """x float32[-1], scale float32[] (by default 2), unit string[] (by default "m") → y = x · scale, label string[-1] =
    unit for each x."""
    two, metres = tf.constant(2.0), tf.constant(b"m")

    class Scaled(tf.Module):  # type: ignore[misc]  # tf is Any
        @tf.function(
            input_signature=[
                tf.TensorSpec([None], tf.float32, "x"),
                tf.TensorSpec([], tf.float32, "scale"),
                tf.TensorSpec([], tf.string, "unit"),
            ]
        )
        def scaled(self, x: Any, scale: Any = two, unit: Any = metres) -> dict[str, Any]:
            return {"y": x * scale, "label": tf.fill(tf.shape(x), unit)}

    module = Scaled()
    tf.saved_model.save(module, out, signatures={"serving_default": module.scaled})


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
    each example how many the execution held; "" is open. A test holds a request in flight, and sees what was merged. An
    execution that waits keeps one of TensorFlow's inter-op threads, of which there are as many as cores unless options
    say more.
    """

    def wait(path: Any) -> dict[str, Any]:
        def closed(i: Any) -> Any:
            # The counter, as an empty suffix, keeps the optimiser from moving the look-up out of the loop.
            pattern = path[0] + tf.strings.substr(tf.strings.as_string(i), 0, 0)
            return tf.logical_and(path[0] != "", tf.equal(tf.size(tf.io.matching_files(pattern)), 0))

        looks = tf.while_loop(closed, lambda i: (i + 1,), (tf.constant(0),))
        with tf.control_dependencies(looks):
            return {"batch_size": tf.fill(tf.shape(path), tf.size(path))}

    _save(tf, out, wait, tf.TensorSpec([None], tf.string, "path"))


@_model
def counter(tf: Any, out: str) -> None:
    """TensorFlow Serving's own counter (`servables/tensorflow/testdata/export_counter.py`): signatures whose output is
    a variable of the graph days, of the element type DT_FLOAT_REF, and change it.

    get_counter, incr_counter and reset_counter take nothing int32[-1], incr_counter_by takes delta float32: all give
    output float32. Ours: get_many and incr_many, nothing → output float32[4]; and `fed`, counter float32, which is the
    variable itself (what is fed stands in its place) → doubled.
    """
    v1 = tf.compat.v1
    with tf.Graph().as_default(), v1.Session() as session:
        count = v1.Variable(0.0, name="counter", use_resource=False)
        many = v1.Variable([0.0] * 4, name="many", use_resource=False)
        nothing = v1.placeholder(tf.int32, [None], name="nothing")
        delta = v1.placeholder(tf.float32, [], name="delta")
        signatures = {
            "get_counter": ({"nothing": nothing}, {"output": count}),
            "incr_counter": ({"nothing": nothing}, {"output": count.assign_add(1.0)}),
            "incr_counter_by": ({"delta": delta}, {"output": count.assign_add(delta)}),
            "reset_counter": ({"nothing": nothing}, {"output": count.assign(0.0)}),
            "get_many": ({"nothing": nothing}, {"output": many}),
            "incr_many": ({"nothing": nothing}, {"output": many.assign_add([1.0] * 4)}),
            "fed": ({"counter": count}, {"doubled": count * 2.0}),
        }
        session.run(v1.global_variables_initializer())
        builder = v1.saved_model.Builder(out)
        builder.add_meta_graph_and_variables(
            session,
            ["serve"],
            signature_def_map={
                name: v1.saved_model.build_signature_def(
                    *({key: _tensor_info(tf, tensor) for key, tensor in side.items()} for side in sides),
                    "tensorflow/serving/predict",
                )
                for name, sides in signatures.items()
            },
        )
        builder.save()


def _tensor_info(tf: Any, tensor: Any) -> Any:
    """As `build_tensor_info` made it when variables were references: of a variable it takes the value now."""
    graph_tensor = getattr(tensor, "_ref", lambda: tensor)()
    return tf.compat.v1.saved_model.build_tensor_info(graph_tensor)


@_model
def sparse_beside_dense(tf: Any, out: str) -> None:
    """serving_default: x float32[-1] → y = x / 2 + 2; and `words`, whose input is a sparse tensor, which no request can
    carry."""
    v1 = tf.compat.v1
    with tf.Graph().as_default(), v1.Session() as session:
        x = v1.placeholder(tf.float32, [None], name="x")
        words = v1.sparse_placeholder(tf.string, [None, None], name="words")
        count = tf.size(words.values, name="count")
        info = v1.saved_model.build_tensor_info
        signatures = {
            "serving_default": ({"x": info(x)}, {"y": info(tf.add(x / 2.0, 2.0, name="y"))}),
            "words": ({"words": info(words)}, {"count": info(count)}),
        }
        builder = v1.saved_model.Builder(out)
        builder.add_meta_graph_and_variables(
            session,
            ["serve"],
            signature_def_map={
                name: v1.saved_model.build_signature_def(*sides, "tensorflow/serving/predict")
                for name, sides in signatures.items()
            },
        )
        builder.save()


@_model
def runs(tf: Any, out: str) -> None:
    """x float32[-1] → y = x, and run int64[-1]: for each example, which run of the model since its load this was."""
    count = tf.Variable(0, dtype=tf.int64)

    def counted(x: Any) -> dict[str, Any]:
        return {"y": tf.identity(x), "run": tf.fill(tf.shape(x), count.assign_add(1))}

    _save(tf, out, counted, tf.TensorSpec([None], tf.float32, "x"), count=count)


@_model
def fails(tf: Any, out: str) -> None:
    """x float32[-1] → y = √x; a negative x is INVALID_ARGUMENT with "x must not be negative" in the message."""

    def root(x: Any) -> dict[str, Any]:
        with tf.control_dependencies([tf.debugging.assert_non_negative(x, message="x must not be negative")]):
            return {"y": tf.sqrt(x)}

    _save(tf, out, root, tf.TensorSpec([None], tf.float32, "x"))


def _crash(
    tf: Any, out: str, what: str, condition: Callable[[Any], Any], shape: Sequence[int | None] = (None,)
) -> None:
    def maybe_abort(x: Any) -> dict[str, Any]:
        def abort() -> Any:
            with tf.control_dependencies([tf.raw_ops.Abort(error_msg=what)]):
                return tf.identity(x)

        return {"y": tf.cond(tf.reduce_any(condition(x)), abort, lambda: tf.identity(x))}

    _save(tf, out, maybe_abort, tf.TensorSpec(shape, tf.float32, "x"))


@_model
def crash_on_negative(tf: Any, out: str) -> None:
    """x float32[-1] → y = x; a negative x aborts the whole process (SIGABRT)."""
    _crash(tf, out, "a negative x", lambda x: x < 0.0)


@_model
def crash_on_positive(tf: Any, out: str) -> None:
    """x float32[-1] → y = x; a positive x, as warm-up makes it up, aborts the whole process (SIGABRT)."""
    _crash(tf, out, "a positive x", lambda x: x > 0.0)


@_model
def crash_always(tf: Any, out: str) -> None:
    """x float32[-1] → y = x: whatever x is, it aborts the whole process (SIGABRT)."""
    _crash(tf, out, "any x", lambda x: x == x)  # noqa: PLR0124 - the optimiser must not see through it


@_model
def crash_on_one(tf: Any, out: str) -> None:
    """x float32[-1, -1] → y = x; rows of one value, as warm-up makes them first, abort the whole process."""
    _crash(tf, out, "a row of one", lambda x: tf.equal(tf.shape(x)[1], 1), [None, None])


@_model
def crash_on_five(tf: Any, out: str) -> None:
    """x float32[-1, 8] → y = x; rows of five values, which no trial of odd shapes has, abort the whole process."""
    _crash(tf, out, "a row of five", lambda x: (tf.size(x) % 5 == 0) & (tf.size(x) % 8 > 0), [None, 8])


@_model
def crash_on_seven(tf: Any, out: str) -> None:
    """x float32[-1, -1] → y = x; rows of seven values abort the whole process."""
    _crash(tf, out, "a row of seven", lambda x: tf.equal(tf.shape(x)[1], 7), [None, None])


@_model
def convolution(tf: Any, out: str) -> None:
    """x float32[-1, 8, 8, 1] → y [-1, 2]: sums of a convolution, whose kernel fails a CHECK (SIGABRT) on ranks below 4
    and answers rank 5 and images of other sizes."""
    weights = tf.Variable(tf.ones([3, 3, 1, 2]))

    def convolve(x: Any) -> dict[str, Any]:
        return {"y": tf.reduce_sum(tf.nn.conv2d(x, weights, 1, "SAME"), axis=[1, 2])}

    _save(tf, out, convolve, tf.TensorSpec([None, 8, 8, 1], tf.float32, "x"), weights=weights)


@_model
def crash_on_three_rows(tf: Any, out: str) -> None:
    """x float32[-1] → y = x; three rows, as the trials of merging have them, abort the whole process."""
    _crash(tf, out, "three rows", lambda x: tf.equal(tf.size(x), 3))


def _from_graph(tf: Any, out: str, build: Callable[[], tuple[Any, Any]]) -> None:
    """Exports a graph of TensorFlow 1 that nothing initialises, from the tensor "x" to "y", as `build` returns them."""
    v1 = tf.compat.v1
    with tf.Graph().as_default(), v1.Session() as session:
        x, y = build()
        v1.saved_model.simple_save(session, out, {"x": x}, {"y": y})


@_model
def unset_table(tf: Any, out: str) -> None:
    """x string[-1] → y int64[-1]: each request is FAILED_PRECONDITION, since no init op fills the table."""

    def build() -> tuple[Any, Any]:
        x = tf.compat.v1.placeholder(tf.string, [None])
        initial = tf.lookup.KeyValueTensorInitializer(["a", "b"], tf.constant([1, 2], tf.int64))
        return x, tf.lookup.StaticHashTable(initial, -1).lookup(x)

    _from_graph(tf, out, build)


@_model
def no_kernel(tf: Any, out: str) -> None:
    """x float32[3, 1, 4] → y: an LSTM of cuDNN, which TensorFlow has no kernel for on a CPU."""

    def lstm(x: Any) -> dict[str, Any]:
        state = tf.zeros([1, 1, 4])
        return {"y": tf.raw_ops.CudnnRNN(input=x, input_h=state, input_c=state, params=tf.zeros([200]))[0]}

    _save(tf, out, lstm, tf.TensorSpec([3, 1, 4], tf.float32, "x"))


@_model
def hangs(tf: Any, out: str) -> None:
    """x float32[-1] → y: waits for what nobody puts into a queue."""

    def build() -> tuple[Any, Any]:
        x = tf.compat.v1.placeholder(tf.float32, [None])
        return x, x + tf.queue.FIFOQueue(10, [tf.float32], [[]]).dequeue()

    _from_graph(tf, out, build)


@_model
def endless(tf: Any, out: str) -> None:
    """x float32[-1] → y: computes for days."""

    def count(x: Any) -> dict[str, Any]:
        start = (tf.constant(0, tf.int64), x)
        return {"y": tf.while_loop(lambda i, _: i < 10**12, lambda i, y: (i + 1, y + 1.0), start)[1]}

    _save(tf, out, count, tf.TensorSpec([None], tf.float32, "x"))


@_model
def on_device_training(tf: Any, out: str) -> None:
    """infer: x float32[-1] → y = w x, w = 2; train: x, t float32[-1] → loss, a step towards w x = t; restore:
    checkpoint_path string[] → w float32[], from then on that of the checkpoint.
    """
    w = tf.Variable(2.0)

    def train(x: Any, t: Any) -> dict[str, Any]:
        error = w * x - t
        w.assign_sub(0.1 * tf.reduce_mean(error * x))
        return {"loss": tf.reduce_mean(error**2)}

    def restore(checkpoint_path: Any) -> dict[str, Any]:
        names, slices = ["w"], [""]
        (value,) = tf.raw_ops.RestoreV2(
            prefix=checkpoint_path, tensor_names=names, shape_and_slices=slices, dtypes=[tf.float32]
        )
        return {"w": w.assign(value)}

    x, t = (tf.TensorSpec([None], tf.float32, name) for name in ("x", "t"))
    functions: dict[str, Any] = {
        "infer": (lambda x: {"y": w * x}, [x]),
        "train": (train, [x, t]),
        "restore": (restore, [tf.TensorSpec([], tf.string, "checkpoint_path")]),
    }
    _save_all(tf, out, functions, {"w": w})


@_model
def writes_files(tf: Any, out: str) -> None:
    """infer: x float32[-1] → y = w x, w = 2; save: checkpoint_path string[] → path, where w is now; note: x → y = x,
    which is noted in the file noted_by_a_model of the working folder; tell: x → y = x, printed to another file.
    """
    w = tf.Variable(2.0)

    def save(checkpoint_path: Any) -> dict[str, Any]:
        write = tf.raw_ops.SaveV2(prefix=checkpoint_path, tensor_names=["w"], shape_and_slices=[""], tensors=[w])
        with tf.control_dependencies([write]):
            return {"path": tf.identity(checkpoint_path)}

    def note(x: Any) -> dict[str, Any]:
        with tf.control_dependencies([tf.io.write_file("noted_by_a_model", "noted")]):
            return {"y": tf.identity(x)}

    def tell(x: Any) -> dict[str, Any]:
        tf.print(x, output_stream="file://printed_by_a_model")
        return {"y": tf.identity(x)}

    x = tf.TensorSpec([None], tf.float32, "x")
    functions: dict[str, Any] = {
        "infer": (lambda x: {"y": w * x}, [x]),
        "save": (save, [tf.TensorSpec([], tf.string, "checkpoint_path")]),
        "note": (note, [x]),
        "tell": (tell, [x]),
    }
    _save_all(tf, out, functions, {"w": w})


@_model
def draws(tf: Any, out: str) -> None:
    """x float32[-1] → y = x and noise of a generator, whose state is a variable."""
    generator = tf.random.Generator.from_seed(1)
    _save(
        tf, out, lambda x: {"y": x + generator.normal([])}, tf.TensorSpec([None], tf.float32, "x"), generator=generator
    )


@_model
def image_bytes(tf: Any, out: str) -> None:
    """bytes string[-1] → mean float32[-1, 3] of each JPEG."""

    def mean(image: Any) -> Any:
        return tf.reduce_mean(tf.cast(tf.io.decode_jpeg(image, channels=3), tf.float32), axis=[0, 1])

    def means(images: Any) -> dict[str, Any]:
        return {"mean": tf.map_fn(mean, images, fn_output_signature=tf.TensorSpec([3], tf.float32))}

    _save(tf, out, means, tf.TensorSpec([None], tf.string, "bytes"))


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


def _dense(tf: Any) -> Any:
    layers = tf.keras.layers
    return tf.keras.Sequential([layers.Input((4,)), layers.Dense(8, activation="relu"), layers.Dense(3)])


@_model
def keras3_saved(tf: Any, out: str) -> None:
    """inputs float32[-1, 4] → output_0 float32[-1, 3], written by tf.saved_model.save: each variable is there twice."""
    tf.saved_model.save(_dense(tf), out)


@_model
def keras3_saved_with_signatures(tf: Any, out: str) -> None:
    """x float32[-1, 4] → y float32[-1, 3], and half the same under the signature half."""
    model, x = _dense(tf), tf.TensorSpec([None, 4], tf.float32, "x")
    signatures = {
        "serving_default": tf.function(lambda x: {"y": model(x)}).get_concrete_function(x),
        "half": tf.function(lambda x: {"y": model(x) / 2.0}).get_concrete_function(x),
    }
    tf.saved_model.save(model, out, signatures=signatures)


@_model
def keras3_in_module(tf: Any, out: str) -> None:
    """x float32[-1, 4] → y float32[-1, 3] by a Keras 3 model inside a tf.Module."""
    model = _dense(tf)
    _save(tf, out, lambda x: {"y": model(x)}, tf.TensorSpec([None, 4], tf.float32, "x"), model=model)


@_model
def keras3_trained(tf: Any, out: str) -> None:
    """inputs float32[-1, 5, 4] → output_0 float32[-1, 3]: LSTM and batch normalisation, trained with Adam."""
    layers = tf.keras.layers
    model = tf.keras.Sequential(
        [layers.Input((5, 4)), layers.LSTM(8), layers.BatchNormalization(momentum=0.5), layers.Dense(3)]
    )
    model.compile("adam", "mse")
    x = tf.random.stateless_normal([16, 5, 4], [1, 2])
    model.fit(x, tf.reduce_sum(x, axis=2)[:, :3], epochs=2, verbose=0)
    tf.saved_model.save(model, out)


@_model
def keras3_text(tf: Any, out: str) -> None:
    """text string[-1], kind string[-1, 1] → output_0 float32[-1, 2]: TextVectorization, StringLookup, Embedding."""
    layers = tf.keras.layers
    words = layers.TextVectorization(max_tokens=20, output_sequence_length=6)
    words.adapt(["the cat sat", "on the mat"])
    text, kind = layers.Input((), dtype="string", name="text"), layers.Input((1,), dtype="string", name="kind")
    mean = layers.GlobalAveragePooling1D()(layers.Embedding(20, 4)(words(text)))
    kinds = layers.StringLookup(vocabulary=["a", "b", "c"], output_mode="one_hot")(kind)
    output = layers.Dense(2)(layers.Concatenate()([mean, kinds]))
    tf.saved_model.save(tf.keras.Model({"text": text, "kind": kind}, output), out)


@_model
def without_saver(tf: Any, out: str) -> None:
    """x float32[-1] → y = x / 2 + 2, and the table's number of "b" · x as z. Only the object graph says which value a
    variable has."""
    a, b = tf.Variable(0.5), tf.Variable(2.0)
    numbers = tf.lookup.KeyValueTensorInitializer(["a", "b"], [1.0, 2.0])
    table = tf.lookup.StaticHashTable(numbers, 0.0)
    module = tf.Module()
    module.a, module.b, module.table = a, b, table
    function = tf.function(lambda x: {"y": a * x + b, "z": table.lookup(tf.constant("b")) * x})
    signature = function.get_concrete_function(tf.TensorSpec([None], tf.float32, "x"))
    options = tf.saved_model.SaveOptions(experimental_skip_saver=True)
    tf.saved_model.save(module, out, signatures={"serving_default": signature}, options=options)


@_model
def never_set(tf: Any, out: str) -> None:
    """x float32[-1] → y = x / 2 + a variable that is not in the checkpoint: every request fails."""
    v1 = tf.compat.v1
    with tf.Graph().as_default(), v1.Session() as session:
        a, b = v1.Variable(0.5, name="a"), v1.Variable(2.0, name="never_set")
        x = v1.placeholder(tf.float32, [None], name="x")
        session.run(v1.global_variables_initializer())
        info = v1.saved_model.build_tensor_info
        signature = v1.saved_model.build_signature_def(
            {"x": info(x)}, {"y": info(a * x + b)}, "tensorflow/serving/predict"
        )
        builder = v1.saved_model.Builder(out)
        builder.add_meta_graph_and_variables(
            session, ["serve"], {"serving_default": signature}, saver=v1.train.Saver([a])
        )
        builder.save()


def _lite(
    tf: Any,
    out: str,
    functions: Mapping[str, tuple[Callable[..., Any], Iterable[Any]]],
    **members: Any,
) -> None:
    """Writes `out/model.tflite` with these signatures; see `_save_all`."""
    with tempfile.TemporaryDirectory() as scratch:
        _save_all(tf, scratch, functions, members)
        _write_lite(tf.lite.TFLiteConverter.from_saved_model(scratch, signature_keys=list(functions)), out)


def _write_lite(converter: Any, out: str) -> None:
    os.makedirs(out, exist_ok=True)
    Path(out, "model.tflite").write_bytes(converter.convert())


@_model
def lite_and_full(tf: Any, out: str) -> None:
    """x float32[-1] → y = x / 2 + 2 as a SavedModel, and y = x / 2 + 3 as model.tflite beside it."""
    tiny_tf2(tf, out)
    _lite(tf, out, {"serving_default": (lambda x: {"y": x / 2.0 + 3.0}, [tf.TensorSpec([None], tf.float32, "x")])})


@_lite_model
def lite(tf: Any, out: str) -> None:
    """model.tflite alone. x float32[-1] → y = x / 2 + 3; the signature multi: a float32[-1, 3], b int32[-1] → total
    float32[-1] = Σa + b, scaled float32[-1, 3] = a·b.
    """

    def multi(a: Any, b: Any) -> dict[str, Any]:
        b = tf.cast(b, tf.float32)
        return {"total": tf.reduce_sum(a, axis=1) + b, "scaled": a * b[:, None]}

    inputs = [tf.TensorSpec([None, 3], tf.float32, "a"), tf.TensorSpec([None], tf.int32, "b")]
    x = tf.TensorSpec([None], tf.float32, "x")
    _lite(tf, out, {"serving_default": (lambda x: {"y": x / 2.0 + 3.0}, [x]), "multi": (multi, inputs)})


@_lite_model
def lite_old(tf: Any, out: str) -> None:
    """model.tflite as early converters wrote it: no signatures, and 1 for unknown sizes. The tensors x float32[1, 1] →
    Identity = x / 2 + 3.
    """
    function = tf.function(lambda x: x / 2.0 + 3.0).get_concrete_function(tf.TensorSpec([1, 1], tf.float32, "x"))
    _write_lite(tf.lite.TFLiteConverter.from_concrete_functions([function]), out)


@_lite_model
def lite_in_metadata(tf: Any, out: str) -> None:
    """lite_old with a SignatureDef as TensorFlow Serving reads it, in the metadata: serving_default of the method name
    regress, inputs = "x:0" of [-1, 1], outputs = "Identity:0".
    """
    import flatbuffers  # type: ignore[import-untyped]  # noqa: PLC0415  (ships no types)
    from flatbuffers import flexbuffers  # noqa: PLC0415
    from tensorflow.core.protobuf import meta_graph_pb2  # noqa: PLC0415
    from tensorflow.lite.python import schema_py_generated as schema  # noqa: PLC0415

    lite_old(tf, out)
    path = Path(out, "model.tflite")
    signature = meta_graph_pb2.SignatureDef(method_name="tensorflow/serving/regress")
    signature.inputs["inputs"].name = "x:0"
    signature.inputs["inputs"].tensor_shape.CopyFrom(tf.TensorShape([None, 1]).as_proto())
    signature.outputs["outputs"].name = "Identity:0"
    packed = flexbuffers.Builder()
    with packed.Map():
        packed.Key("serving_default")
        # As a string, which the public method takes only where it is UTF-8.
        packed._WriteBlob(signature.SerializeToString(), append_zero=True, type_=flexbuffers.Type.STRING)
    model = schema.ModelT.InitFromPackedBuf(path.read_bytes(), 0)
    buffer, metadata = schema.BufferT(), schema.MetadataT()
    buffer.data = list(packed.Finish())
    metadata.name, metadata.buffer = "signature_defs_metadata", len(model.buffers)
    model.buffers.append(buffer)
    model.metadata = [*(model.metadata or []), metadata]
    builder = flatbuffers.Builder(4096)
    builder.Finish(model.Pack(builder), b"TFL3")
    path.write_bytes(builder.Output())


@_lite_model
def lite_dtypes(tf: Any, out: str) -> None:
    """model.tflite with one signature for each element type, under its name: x[-1] → y = x, column[-1, 1] = x."""
    from backends.dtypes import DTYPES  # noqa: PLC0415  (only the building process needs it)

    functions = {
        element.name: (
            lambda x: {"y": tf.identity(x), "column": tf.reshape(x, [-1, 1])},
            [tf.TensorSpec([None], tf.as_dtype(element.number), "x")],
        )
        for element in DTYPES
    }
    _lite(tf, out, functions)


@_lite_model
def lite_conv(tf: Any, out: str) -> None:
    """model.tflite: image float32[-1, 32, 32, 3] → mean float32[-1, 8] of a convolution with fixed weights."""
    weights = tf.reshape(tf.range(3 * 3 * 3 * 8, dtype=tf.float32) % 7.0 - 3.0, [3, 3, 3, 8])

    def mean(image: Any) -> dict[str, Any]:
        return {"mean": tf.reduce_mean(tf.nn.relu(tf.nn.conv2d(image, weights, 1, "SAME")), axis=[1, 2])}

    _lite(tf, out, {"serving_default": (mean, [tf.TensorSpec([None, 32, 32, 3], tf.float32, "image")])})


@_lite_model
def lite_gather(tf: Any, out: str) -> None:
    """model.tflite: x float32[-1, 2], index int32[-1] → rows float32[-1, 2] = x[index]; others are refused."""
    inputs = [tf.TensorSpec([None, 2], tf.float32, "x"), tf.TensorSpec([None], tf.int32, "index")]
    _lite(tf, out, {"serving_default": (lambda x, index: {"rows": tf.gather(x, index)}, inputs)})


def _lite_frames(tf: Any, out: str, window: int) -> None:
    """Writes samples float32[-1, -1] → frames float32[-1, n, 1, 1], sums of windows that begin 160 samples apart."""

    def frames(samples: Any) -> dict[str, Any]:
        column = tf.expand_dims(tf.expand_dims(samples, -1), -1)
        return {"frames": tf.nn.conv2d(column, tf.ones([window, 1, 1, 1]), [160, 1], "VALID")}

    _lite(tf, out, {"serving_default": (frames, [tf.TensorSpec([None, None], tf.float32, "samples")])})


@_lite_model
def lite_audio(tf: Any, out: str) -> None:
    """model.tflite of audio of any length: see `_lite_frames`. XNNPACK refuses less than a window, 512 samples;
    LiteRT's own kernels find no frames in 193 to 511, and refuse less."""
    _lite_frames(tf, out, 512)


@_lite_model
def lite_long_audio(tf: Any, out: str) -> None:
    """lite_audio with windows of 40,000 samples."""
    _lite_frames(tf, out, 40_000)


@_lite_model
def lite_custom_op(tf: Any, out: str) -> None:
    """model.tflite with an operator that LiteRT has not: text string[-1] → upper."""
    function = tf.function(tf.strings.upper).get_concrete_function(tf.TensorSpec([None], tf.string, "text"))
    converter = tf.lite.TFLiteConverter.from_concrete_functions([function])
    converter.allow_custom_ops = True
    _write_lite(converter, out)


@_lite_model
def lite_custom_op_beside(tf: Any, out: str) -> None:
    """model.tflite: text string[-1] → y = text; the signature upper is of an operator that LiteRT has not."""

    def upper(text: Any) -> dict[str, Any]:
        return {"y": tf.strings.upper(text)}

    def same(text: Any) -> dict[str, Any]:
        return {"y": tf.identity(text)}

    text = tf.TensorSpec([None], tf.string, "text")
    with tempfile.TemporaryDirectory() as scratch:
        functions = {"serving_default": (same, [text]), "upper": (upper, [text])}
        _save_all(tf, scratch, functions, {})
        converter = tf.lite.TFLiteConverter.from_saved_model(scratch, signature_keys=list(functions))
        converter.allow_custom_ops = True
        _write_lite(converter, out)


if __name__ == "__main__":
    build(sys.argv[1])
