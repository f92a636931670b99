"""Modules of TensorFlow 2 (tf.Module, tf.function), by each way of exporting that its SavedModel guide shows."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from tests.models.keras2 import images
from tests.models.model import Group, Signatures, fixed, floats, ints, uniform, words
from tests.models.tf1 import examples

GROUP = Group("TensorFlow 2 (tf.Module and tf.function)")
_model = GROUP.model

Functions = Mapping[str, tuple[Callable[..., Any], Iterable[Any]]]


def _save(tf: Any, out: str, function: Callable[..., Any], *inputs: Any, **members: Any) -> None:
    _save_all(tf, out, {"serving_default": (function, inputs)}, **members)


def _save_all(tf: Any, out: str, functions: Functions, options: Any = None, **members: Any) -> None:
    """`members` become attributes of the module: the variables, tables and assets that the functions use."""
    module = tf.Module()
    for name, value in members.items():
        setattr(module, name, value)
    signatures = {key: tf.function(f).get_concrete_function(*inputs) for key, (f, inputs) in functions.items()}
    tf.saved_model.save(module, out, signatures=signatures, options=options)


def _vector(tf: Any, name: str = "x", dtype: str = "float32") -> Any:
    return tf.TensorSpec([None], dtype, name)


@_model(
    "`tf.function` with an input signature, `tf.saved_model.save(module, path, signatures=…)`", inputs={"x": floats()}
)
def tf2_module(tf: Any, out: str) -> None:
    class Adder(tf.Module):  # type: ignore[misc]  # tf is Any
        def __init__(self) -> None:
            super().__init__()
            self.total = tf.Variable(2.5)

        @tf.function(input_signature=[tf.TensorSpec([None], tf.float32, "x")])  # type: ignore[misc]
        def add(self, x: Any) -> Any:
            return {"y": x + self.total}

    module = Adder()
    tf.saved_model.save(module, out, signatures=module.add)


@_model(
    "several signatures, one of which takes nothing",
    {"double": {"x": floats()}, "pair": {"a": floats(2), "b": floats(2)}, "version": {}},
)
def tf2_several_signatures(tf: Any, out: str) -> None:
    pair = [tf.TensorSpec([None, 2], tf.float32, "a"), tf.TensorSpec([None, 2], tf.float32, "b")]
    functions: Functions = {
        "double": (lambda x: {"y": x * 2.0}, [_vector(tf)]),
        "pair": (lambda a, b: {"sum": a + b, "dot": tf.reduce_sum(a * b, axis=1)}, pair),
        "version": (lambda: {"version": tf.constant(7, tf.int64)}, []),
    }
    _save_all(tf, out, functions)


@_model(
    "`tf.saved_model.save(module, path)` of a module with one function: it becomes the signature",
    inputs={"x": floats()},
)
def tf2_default_signature(tf: Any, out: str) -> None:
    class Plain(tf.Module):  # type: ignore[misc]
        @tf.function(input_signature=[tf.TensorSpec([None], tf.float32, "x")])  # type: ignore[misc]
        def __call__(self, x: Any) -> Any:
            return x * 2.0

    tf.saved_model.save(Plain(), out)


@_model("the same of a module whose function takes whatever it is given: no signature", refused=r"no signature")
def tf2_no_signatures(tf: Any, out: str) -> None:
    class Plain(tf.Module):  # type: ignore[misc]
        @tf.function  # type: ignore[misc]
        def __call__(self, x: Any) -> Any:
            return x * 2.0

    tf.saved_model.save(Plain(), out)


@_model("inputs of rank 0", inputs={"x": fixed(1.25, "float32"), "n": fixed(-3, "int64"), "s": fixed(b"text", "O")})
def tf2_scalars(tf: Any, out: str) -> None:
    specs = [tf.TensorSpec([], tf.float32, "x"), tf.TensorSpec([], tf.int64, "n"), tf.TensorSpec([], tf.string, "s")]
    _save(tf, out, lambda x, n, s: {"y": x * 2.0, "m": n + 1, "t": s + "!"}, *specs)


@_model("an input of unknown rank", inputs={"x": floats(2, 2)})
def tf2_unknown_rank(tf: Any, out: str) -> None:
    _save(tf, out, lambda x: {"y": tf.nn.relu(x), "rank": tf.rank(x)}, tf.TensorSpec(None, tf.float32, "x"))


@_model(
    "inputs with defaults, left away by the client",
    inputs={"x": floats()},
    judge="session",
    rest=False,
    remark="Over REST every input has to be named, as with TensorFlow Serving: asked over gRPC.",
)
def tf2_defaults(tf: Any, out: str) -> None:
    two = tf.constant(2.0)

    class Scaled(tf.Module):  # type: ignore[misc]
        @tf.function(input_signature=[tf.TensorSpec([None], tf.float32, "x"), tf.TensorSpec([], tf.float32, "scale")])  # type: ignore[misc]
        def scaled(self, x: Any, scale: Any = two) -> dict[str, Any]:
            return {"y": x * scale}

    module = Scaled()
    tf.saved_model.save(module, out, signatures={"serving_default": module.scaled})


_FLOATS = ("bfloat16", "float16", "float32", "float64")
_INTEGERS = ("int8", "int16", "int32", "int64", "uint8", "uint16", "uint32", "uint64")
_COMPLEX = ("complex64", "complex128")


def _every_dtype() -> Signatures:
    """A signature for each element type of the API, under its name."""
    import ml_dtypes  # noqa: PLC0415  (registers bfloat16 with numpy)

    assert np.dtype("bfloat16") == ml_dtypes.bfloat16
    found: dict[str, Any] = {name: {"x": floats(2, dtype=name)} for name in _FLOATS}
    found |= {name: {"x": ints(2, high=100, dtype=name)} for name in _INTEGERS}
    found |= {name: {"x": lambda n, rng, name=name: (rng.normal(size=n) + 1j).astype(name)} for name in _COMPLEX}
    found["bool"] = {"x": lambda n, rng: rng.integers(2, size=n).astype(bool)}
    found["string"] = {"x": lambda n, _rng: np.array([b"\x00\xff raw", "é".encode(), b""][:n], object)}
    return found


@_model("every element type of the API", _every_dtype())
def tf2_dtypes(tf: Any, out: str) -> None:
    def function(name: str) -> Callable[..., Any]:
        # REST gives the strings of outputs that end in _bytes in Base64: any bytes pass.
        same, again = ("same_bytes", "again_bytes") if name == "string" else ("same", "again")
        return lambda x: {same: tf.identity(x), again: tf.concat([x, x], axis=0)}

    def spec(name: str) -> Any:
        return tf.TensorSpec([None, 2] if name in (*_FLOATS, *_INTEGERS) else [None], name, "x")

    _save_all(tf, out, {name: (function(name), [spec(name)]) for name in GROUP.models["tf2_dtypes"].signatures})


_WORDS = words("alpha", "beta", "gamma", "delta")


@_model("`tf.lookup.StaticHashTable` of constants", inputs={"words": _WORDS})
def tf2_static_table(tf: Any, out: str) -> None:
    keys, values = tf.constant(["alpha", "beta", "gamma"]), tf.constant([1.0, 2.0, 3.0])
    table = tf.lookup.StaticHashTable(tf.lookup.KeyValueTensorInitializer(keys, values), -1.0)
    _save(tf, out, lambda words: {"value": table.lookup(words)}, _vector(tf, "words", "string"), table=table)


@_model("`tf.lookup.StaticVocabularyTable` from an asset, with buckets", inputs={"words": _WORDS})
def tf2_vocabulary_asset(tf: Any, out: str) -> None:
    with tempfile.TemporaryDirectory() as scratch:
        path = Path(scratch, "vocabulary.txt")
        path.write_text("alpha\nbeta\ngamma\n")
        lookup = tf.lookup
        initializer = lookup.TextFileInitializer(
            str(path), tf.string, lookup.TextFileIndex.WHOLE_LINE, tf.int64, lookup.TextFileIndex.LINE_NUMBER
        )
        table = lookup.StaticVocabularyTable(initializer, num_oov_buckets=4)
        _save(tf, out, lambda words: {"ids": table.lookup(words)}, _vector(tf, "words", "string"), table=table)


@_model("`tf.lookup.experimental.MutableHashTable`, restored from the checkpoint", inputs={"words": _WORDS})
def tf2_mutable_table(tf: Any, out: str) -> None:
    table = tf.lookup.experimental.MutableHashTable(tf.string, tf.int64, default_value=-1)
    table.insert(tf.constant(["alpha", "beta"]), tf.constant([10, 20], tf.int64))
    _save(tf, out, lambda words: {"ids": table.lookup(words)}, _vector(tf, "words", "string"), table=table)


@_model(
    "`tf.lookup.experimental.DenseHashTable`, restored from the checkpoint", inputs={"ids": ints(high=6, dtype="int64")}
)
def tf2_dense_table(tf: Any, out: str) -> None:
    table = tf.lookup.experimental.DenseHashTable(tf.int64, tf.int64, -1, empty_key=-1, deleted_key=-2)
    table.insert(tf.constant([1, 2], tf.int64), tf.constant([10, 20], tf.int64))
    _save(tf, out, lambda ids: {"values": table.lookup(ids)}, _vector(tf, "ids", "int64"), table=table)


@_model("images decoded from bytes (`decode_image`, `map_fn`, resize)", inputs={"image_bytes": images})
def tf2_images_from_bytes(tf: Any, out: str) -> None:
    def decoded(content: Any) -> Any:
        pixels = tf.io.decode_image(content, channels=3, expand_animations=False)
        return tf.image.resize(tf.image.convert_image_dtype(pixels, tf.float32), [4, 4])

    def mean(image_bytes: Any) -> dict[str, Any]:
        batch = tf.map_fn(decoded, image_bytes, fn_output_signature=tf.TensorSpec([4, 4, 3], tf.float32))
        return {"mean": tf.reduce_mean(batch, axis=[1, 2])}

    _save(tf, out, mean, _vector(tf, "image_bytes", "string"))


@_model("serialized Examples (`tf.io.parse_example`)", inputs={"examples": examples})
def tf2_parse_example(tf: Any, out: str) -> None:
    def parsed(examples: Any) -> dict[str, Any]:
        x = tf.io.parse_example(examples, {"x": tf.io.FixedLenFeature([4], tf.float32)})["x"]
        return {"sum": tf.reduce_sum(x, axis=1)}

    _save(tf, out, parsed, _vector(tf, "examples", "string"))


@_model("`tf.while_loop`, and `for` and `while` by AutoGraph", inputs={"x": floats(), "steps": fixed(4, "int32")})
def tf2_while(tf: Any, out: str) -> None:
    def looped(x: Any, steps: Any) -> dict[str, Any]:
        _, y = tf.while_loop(lambda i, _: i < steps, lambda i, y: (i + 1, y * 0.5 + 1.0), (tf.constant(0), x))
        z = x
        for i in tf.range(steps):
            z += tf.cast(i, tf.float32)
        return {"y": y, "z": z}

    _save(tf, out, looped, _vector(tf), tf.TensorSpec([], tf.int32, "steps"))


@_model("`tf.cond`, `tf.switch_case`", inputs={"x": floats(), "which": fixed(1, "int32")})
def tf2_cond(tf: Any, out: str) -> None:
    def chosen(x: Any, which: Any) -> dict[str, Any]:
        positive = tf.cond(tf.reduce_sum(x) > 0.0, lambda: x, lambda: -x)
        return {"y": positive, "z": tf.switch_case(which, [lambda: x + 1.0, lambda: x * 3.0, lambda: x / 2.0])}

    _save(tf, out, chosen, _vector(tf), tf.TensorSpec([], tf.int32, "which"))


@_model("`tf.TensorArray` in a loop", inputs={"x": floats(5)})
def tf2_tensor_array(tf: Any, out: str) -> None:
    def running(x: Any) -> dict[str, Any]:
        array = tf.TensorArray(tf.float32, size=5, element_shape=[None])
        total = tf.zeros_like(x[:, 0])
        for i in tf.range(5):
            total += x[:, i]
            array = array.write(i, total)
        return {"sums": tf.transpose(array.stack())}

    _save(tf, out, running, tf.TensorSpec([None, 5], tf.float32, "x"))


@_model("ragged tensors inside, dense ones at the edges", inputs={"text": words("a b c", "d", "e f")})
def tf2_ragged_inside(tf: Any, out: str) -> None:
    def counted(text: Any) -> dict[str, Any]:
        parts = tf.strings.split(text)
        return {"parts": parts.to_tensor("-"), "count": parts.row_lengths()}

    _save(tf, out, counted, _vector(tf, "text", "string"))


def _ragged(n: int) -> dict[str, np.ndarray]:
    """Row i has i + 1 numbers: the flat values, and where rows begin."""
    splits = np.cumsum([0, *range(1, n + 1)], dtype="int64")
    return {"x": np.linspace(-1.0, 1.0, splits[-1], dtype="float32"), "x_1": splits}


@_model(
    "a ragged tensor as the input of a signature: its parts are inputs",
    inputs={name: lambda n, _rng, name=name: _ragged(n)[name] for name in ("x", "x_1")},
)
def tf2_ragged_input(tf: Any, out: str) -> None:
    spec = tf.RaggedTensorSpec([None, None], tf.float32, ragged_rank=1)
    _save_all(tf, out, {"serving_default": (lambda x: {"sum": tf.reduce_sum(x, axis=1)}, [spec])})


def _sparse(n: int) -> dict[str, np.ndarray]:
    indices = np.array([[row, row % 4] for row in range(n)], "int64")
    return {"x": indices, "x_1": np.arange(1.0, n + 1.0, dtype="float32"), "x_2": np.array([n, 4], "int64")}


@_model(
    "a sparse tensor as the input of a signature: its parts are inputs",
    inputs={name: lambda n, _rng, name=name: _sparse(n)[name] for name in ("x", "x_1", "x_2")},
)
def tf2_sparse_input(tf: Any, out: str) -> None:
    spec = tf.SparseTensorSpec([None, 4], tf.float32)
    _save_all(tf, out, {"serving_default": (lambda x: {"sum": tf.sparse.reduce_sum(x, axis=1)}, [spec])})


@_model("`tf.function(jit_compile=True)`: XLA", inputs={"x": floats(4)})
def tf2_xla(tf: Any, out: str) -> None:
    w = tf.Variable(tf.random.stateless_normal([4, 3], [1, 2]))
    compiled = tf.function(lambda x: tf.nn.softmax(x @ w), jit_compile=True)
    _save(tf, out, lambda x: {"y": compiled(x)}, tf.TensorSpec([None, 4], tf.float32, "x"), w=w)


@_model("operations on strings: split, join, regular expressions", inputs={"text": words("Ab 12", "c-d 3", "", "é 45")})
def tf2_strings(tf: Any, out: str) -> None:
    def worked(text: Any) -> dict[str, Any]:
        digits = tf.strings.regex_replace(text, "[^0-9]", "")
        return {
            "digits": digits,
            "long": tf.strings.length(text, "UTF8_CHAR"),
            "joined": tf.strings.join([text, digits], "/"),
        }

    _save(tf, out, worked, _vector(tf, "text", "string"))


@_model("audio of any length: short-time Fourier transform, mel spectrum", inputs={"audio": floats(1600)})
def tf2_audio(tf: Any, out: str) -> None:
    def mel(audio: Any) -> dict[str, Any]:
        spectrum = tf.abs(tf.signal.stft(audio, 400, 160))
        weights = tf.signal.linear_to_mel_weight_matrix(8, spectrum.shape[-1], 16000)
        return {"mel": tf.math.log(spectrum @ weights + 1e-3)}

    _save(tf, out, mel, tf.TensorSpec([None, None], tf.float32, "audio"))


@_model("a gradient inside of the signature", inputs={"x": floats(3)})
def tf2_gradient(tf: Any, out: str) -> None:
    w = tf.Variable([0.5, -1.0, 2.0])

    def saliency(x: Any) -> dict[str, Any]:
        with tf.GradientTape() as tape:
            tape.watch(x)
            y = tf.reduce_sum(tf.tanh(x * w), axis=1)
        return {"y": y, "gradient": tape.gradient(y, x)}

    _save(tf, out, saliency, tf.TensorSpec([None, 3], tf.float32, "x"), w=w)


@_model("one module that loaded another SavedModel, and was saved", inputs={"x": floats()})
def tf2_saved_again(tf: Any, out: str) -> None:
    with tempfile.TemporaryDirectory() as scratch:
        tf2_vocabulary_asset(tf, os.path.join(scratch, "words"))
        tf2_module(tf, os.path.join(scratch, "adder"))
        adder, table = (tf.saved_model.load(os.path.join(scratch, name)) for name in ("adder", "words"))
        look_up = table.signatures["serving_default"]

        def both(x: Any) -> dict[str, Any]:
            ids = look_up(words=tf.constant(["beta"]))["ids"]
            return {"y": adder.add(x)["y"] + tf.cast(ids, tf.float32)}

        _save(tf, out, both, _vector(tf), adder=adder, table=table)


@_model("several shards of variables (`MaxShardSizePolicy`)", inputs={"x": floats(64)})
def tf2_shards(tf: Any, out: str) -> None:
    weights = [tf.Variable(tf.random.stateless_normal([64, 64], [1, i]) / 8.0) for i in range(6)]

    def stacked(x: Any) -> dict[str, Any]:
        for w in weights:
            x = tf.tanh(x @ w)
        return {"y": x}

    policy = tf.train.experimental.MaxShardSizePolicy(max_shard_size=30_000)
    options = tf.saved_model.SaveOptions(experimental_sharding_callback=policy)
    functions: Functions = {"serving_default": (stacked, [tf.TensorSpec([None, 64], tf.float32, "x")])}
    _save_all(tf, out, functions, options, weights=weights)


@_model("over 200 MB of variables", inputs={"ids": ints(4, high=210_000)})
def tf2_large(tf: Any, out: str) -> None:
    table = tf.Variable(tf.random.stateless_normal([210_000, 256], [1, 2]))
    mean = lambda ids: {"mean": tf.reduce_mean(tf.gather(table, ids), axis=1)}  # noqa: E731
    _save(tf, out, mean, tf.TensorSpec([None, None], tf.int32, "ids"), table=table)


@_model("an image model on uint8, its scaling inside", inputs={"image": ints(8, 8, 3, high=256, dtype="uint8")})
def tf2_uint8_image(tf: Any, out: str) -> None:
    w = tf.Variable(tf.random.stateless_normal([3, 3, 3, 4], [1, 2]))

    def mean(image: Any) -> dict[str, Any]:
        scaled = tf.cast(image, tf.float32) / 255.0
        return {"mean": tf.reduce_mean(tf.nn.relu(tf.nn.conv2d(scaled, w, 2, "SAME")), axis=[1, 2])}

    _save(tf, out, mean, tf.TensorSpec([None, 8, 8, 3], tf.uint8, "image"), w=w)


@_model("post-processing: `tf.nn.top_k`, `tf.image.combined_non_max_suppression`", inputs={"scores": uniform(6, 2)})
def tf2_detection(tf: Any, out: str) -> None:
    corners = tf.constant([[i * 0.1, i * 0.1, i * 0.1 + 0.25, i * 0.1 + 0.25] for i in range(6)])

    def detected(scores: Any) -> dict[str, Any]:
        boxes = tf.tile(corners[None, :, None], [tf.shape(scores)[0], 1, 1, 1])
        found = tf.image.combined_non_max_suppression(boxes, scores, 3, 4)
        best = tf.nn.top_k(scores[:, :, 0], 2)
        return {"boxes": found[0], "classes": found[2], "valid": found[3], "best": best.indices}

    _save(tf, out, detected, tf.TensorSpec([None, 6, 2], tf.float32, "scores"))
