"""Graphs of TensorFlow 1, by each way of exporting that its guide (tf.compat.v1.saved_model) and TensorFlow Serving's
examples show."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from tests.models.model import Group, fixed, floats, ints, words

GROUP = Group("TensorFlow 1 (graphs and sessions)")
_model = GROUP.model


def _signature(tf: Any, inputs: Mapping[str, Any], outputs: Mapping[str, Any], method: str = "predict") -> Any:
    v1 = tf.compat.v1.saved_model
    infos = [{name: v1.build_tensor_info(tensor) for name, tensor in side.items()} for side in (inputs, outputs)]
    return v1.build_signature_def(*infos, f"tensorflow/serving/{method}")


def _build(tf: Any, out: str, session: Any, signatures: Mapping[str, Any], as_text: bool = False, **about: Any) -> None:
    builder = tf.compat.v1.saved_model.Builder(out)
    builder.add_meta_graph_and_variables(session, ["serve"], dict(signatures), **about)
    builder.save(as_text=as_text)


def _linear(tf: Any, x: Any, use_resource: bool = False) -> Any:
    v1 = tf.compat.v1
    w = v1.get_variable("w", [4, 2], initializer=v1.random_normal_initializer(seed=1), use_resource=use_resource)
    return tf.matmul(x, w)


@_model("`simple_save`", inputs={"x": floats(4)})
def tf1_simple_save(tf: Any, out: str) -> None:
    v1 = tf.compat.v1
    with tf.Graph().as_default(), v1.Session() as session:
        x = v1.placeholder(tf.float32, [None, 4], name="x")
        y = _linear(tf, x)
        session.run(v1.global_variables_initializer())
        v1.saved_model.simple_save(session, out, {"x": x}, {"y": y})


@_model("`simple_save`, resource variables", inputs={"x": floats(4)})
def tf1_resource_variables(tf: Any, out: str) -> None:
    v1 = tf.compat.v1
    with tf.Graph().as_default(), v1.Session() as session:
        x = v1.placeholder(tf.float32, [None, 4], name="x")
        y = _linear(tf, x, use_resource=True)
        session.run(v1.global_variables_initializer())
        v1.saved_model.simple_save(session, out, {"x": x}, {"y": y})


def examples(n: int, rng: np.random.Generator) -> np.ndarray:
    """Serialized tf.train.Examples with the feature x of 4 floats, written without TensorFlow.

    A message in a message: features 1, feature 1 (a map's entry: key 1, value 2), float_list 2, value 1 (packed).
    """

    def field(number: int, content: bytes) -> bytes:
        return bytes([number << 3 | 2, len(content)]) + content

    found = np.empty([n], object)
    for at in range(n):
        values = field(1, rng.normal(size=4).astype("<f4").tobytes())
        found[at] = field(1, field(1, field(1, b"x") + field(2, field(2, values))))
    return found


@_model(
    "builder with `parse_example`: predict, classify and regress",
    {"serving_default": {"x": floats(4)}, "classify": {"inputs": examples}, "regress": {"inputs": examples}},
)
def tf1_parse_example(tf: Any, out: str) -> None:
    v1 = tf.compat.v1
    with tf.Graph().as_default(), v1.Session() as session:
        serialized = v1.placeholder(tf.string, [None], name="tf_example")
        parsed = tf.io.parse_example(serialized, {"x": tf.io.FixedLenFeature([4], tf.float32)})
        x = tf.identity(parsed["x"], name="x")
        scores = tf.nn.softmax(_linear(tf, x))
        classes = tf.tile([["no", "yes"]], [tf.shape(x)[0], 1])
        session.run(v1.global_variables_initializer())
        signatures = {
            "serving_default": _signature(tf, {"x": x}, {"scores": scores}),
            "classify": _signature(tf, {"inputs": serialized}, {"classes": classes, "scores": scores}, "classify"),
            "regress": _signature(tf, {"inputs": serialized}, {"outputs": scores[:, :1]}, "regress"),
        }
        _build(tf, out, session, signatures)


def _with_table(tf: Any, out: str, how: Callable[[Any], dict[str, Any]]) -> None:
    v1 = tf.compat.v1
    with tempfile.TemporaryDirectory() as scratch, tf.Graph().as_default(), v1.Session() as session:
        path = Path(scratch, "vocabulary.txt")
        path.write_text("alpha\nbeta\ngamma\n")
        asset = tf.constant(str(path))
        v1.add_to_collection(v1.GraphKeys.ASSET_FILEPATHS, asset)
        lookup = tf.lookup
        initializer = lookup.TextFileInitializer(
            asset, tf.string, lookup.TextFileIndex.WHOLE_LINE, tf.int64, lookup.TextFileIndex.LINE_NUMBER
        )
        table = lookup.StaticHashTable(initializer, -1)
        text = v1.placeholder(tf.string, [None], name="text")
        ids = table.lookup(text)
        session.run(v1.tables_initializer())
        assets = v1.get_collection(v1.GraphKeys.ASSET_FILEPATHS)
        signature = {"serving_default": _signature(tf, {"text": text}, {"ids": ids})}
        _build(tf, out, session, signature, assets_collection=assets, **how(v1.tables_initializer()))


@_model(
    "builder with a table from an asset, initialised by `main_op`",
    inputs={"text": words("alpha", "beta", "gamma", "other")},
)
def tf1_table_main_op(tf: Any, out: str) -> None:
    _with_table(tf, out, lambda init: {"main_op": init})


@_model("the same, initialised by `legacy_init_op`", inputs={"text": words("alpha", "beta", "gamma", "other")})
def tf1_table_legacy_init_op(tf: Any, out: str) -> None:
    _with_table(tf, out, lambda init: {"legacy_init_op": init})


@_model("builder with an init op that assigns a variable", inputs={"x": floats(4)})
def tf1_init_op(tf: Any, out: str) -> None:
    v1 = tf.compat.v1
    with tf.Graph().as_default(), v1.Session() as session:
        x = v1.placeholder(tf.float32, [None, 4], name="x")
        scale = v1.get_local_variable("scale", initializer=0.0, use_resource=False)
        y = _linear(tf, x) * scale
        session.run([v1.global_variables_initializer(), v1.local_variables_initializer()])
        signature = {"serving_default": _signature(tf, {"x": x}, {"y": y})}
        _build(tf, out, session, signature, main_op=v1.assign(scale, 3.0).op)


@_model("builder, `save(as_text=True)`: saved_model.pbtxt", inputs={"x": floats(4)})
def tf1_as_text(tf: Any, out: str) -> None:
    v1 = tf.compat.v1
    with tf.Graph().as_default(), v1.Session() as session:
        x = v1.placeholder(tf.float32, [None, 4], name="x")
        y = _linear(tf, x)
        session.run(v1.global_variables_initializer())
        _build(tf, out, session, {"serving_default": _signature(tf, {"x": x}, {"y": y})}, as_text=True)


@_model("builder with two graphs: tagged train, and serve", inputs={"x": floats(4)})
def tf1_two_tags(tf: Any, out: str) -> None:
    v1 = tf.compat.v1
    builder = v1.saved_model.Builder(out)
    for tag, scale in (("train", 1.0), ("serve", 2.0)):
        with tf.Graph().as_default(), v1.Session() as session:
            x = v1.placeholder(tf.float32, [None, 4], name="x")
            y = _linear(tf, x) * scale
            session.run(v1.global_variables_initializer())
            signature = {"serving_default": _signature(tf, {"x": x}, {"y": y})}
            if tag == "train":
                builder.add_meta_graph_and_variables(session, [tag], signature)
            else:
                builder.add_meta_graph([tag], signature)
    builder.save()


@_model("control flow of TensorFlow 1: `cond` and `while_loop`", inputs={"x": floats(4), "steps": fixed(5, "int32")})
def tf1_control_flow(tf: Any, out: str) -> None:
    v1 = tf.compat.v1
    v1.disable_control_flow_v2()
    try:
        with tf.Graph().as_default(), v1.Session() as session:
            x, steps = v1.placeholder(tf.float32, [None, 4], name="x"), v1.placeholder(tf.int32, [], name="steps")
            loop = v1.while_loop(lambda i, _: i < steps, lambda i, y: (i + 1, y * 0.5 + 1.0), (tf.constant(0), x))
            y = v1.cond(tf.reduce_sum(x) > 0.0, lambda: loop[1], lambda: -loop[1])
            v1.saved_model.simple_save(session, out, {"x": x, "steps": steps}, {"y": y})
    finally:
        v1.enable_control_flow_v2()


@_model("partitioned variables", inputs={"x": floats(6)})
def tf1_partitioned(tf: Any, out: str) -> None:
    v1 = tf.compat.v1
    with tf.Graph().as_default(), v1.Session() as session:
        x = v1.placeholder(tf.float32, [None, 6], name="x")
        partitioner = v1.fixed_size_partitioner(3)
        w = v1.get_variable("w", [6, 2], partitioner=partitioner, use_resource=False)
        y = tf.matmul(x, tf.convert_to_tensor(w))
        session.run(v1.global_variables_initializer())
        v1.saved_model.simple_save(session, out, {"x": x}, {"y": y})


def _blocks(data: bytes) -> Any:
    """Key and value of each entry of a block of LevelDB's table, and the number of its restart points."""
    restarts = int.from_bytes(data[-4:], "little")
    at, end, key = 0, len(data) - 4 - 4 * restarts, b""
    while at < end:
        shared, at = _varint(data, at)
        own, at = _varint(data, at)
        size, at = _varint(data, at)
        key = key[:shared] + data[at : at + own]
        yield key, data[at + own : at + own + size]
        at += own + size


def _varint(data: bytes, at: int) -> tuple[int, int]:
    value = shift = 0
    while True:
        byte = data[at]
        value |= (byte & 127) << shift
        at, shift = at + 1, shift + 7
        if byte < 128:
            return value, at


def _to_varint(value: int) -> bytes:
    found = b""
    while value > 127:
        found, value = found + bytes([value & 127 | 128]), value >> 7
    return found + bytes([value])


def _snappy(data: bytes) -> bytes:
    """`data` in snappy's format, as literals of up to 60 bytes: what a compressor writes that finds no repetition."""
    parts = [data[at : at + 60] for at in range(0, len(data), 60)]
    return _to_varint(len(data)) + b"".join(bytes([len(part) - 1 << 2]) + part for part in parts)


def compress_index(path: Path) -> None:
    """Writes variables.index anew with compressed blocks, as exporters of 2016 did (`table_options.compression`)."""
    from backends.crc32c import masked_crc32c  # noqa: PLC0415  (only the building process needs it)

    data = path.read_bytes()
    footer = data[-48:]
    _, at = _varint(footer, 0)
    _, at = _varint(footer, at)
    index_at, at = _varint(footer, at)
    index_size, _ = _varint(footer, at)
    written = bytearray()

    def put(block: bytes) -> bytes:
        packed = _snappy(block)
        handle = _to_varint(len(written)) + _to_varint(len(packed))
        written.extend(packed + b"\1" + masked_crc32c(packed + b"\1").to_bytes(4, "little"))
        return handle

    def block_of(entries: list[tuple[bytes, bytes]]) -> bytes:
        body = b"".join(_to_varint(0) + _to_varint(len(k)) + _to_varint(len(v)) + k + v for k, v in entries)
        return body + bytes(4) + (1).to_bytes(4, "little")

    index = []
    for key, handle in _blocks(data[index_at : index_at + index_size]):
        start, at = _varint(handle, 0)
        size, _ = _varint(handle, at)
        index.append((key, put(block_of(list(_blocks(data[start : start + size]))))))
    handles = put(block_of([])) + put(block_of(index))
    path.write_bytes(written + handles.ljust(40, b"\0") + footer[40:])


@_model("the index of variables with compressed blocks, as exporters of 2016 wrote it", inputs={"x": floats(4)})
def tf1_compressed_index(tf: Any, out: str) -> None:
    tf1_simple_save(tf, out)
    compress_index(Path(out, "variables", "variables.index"))


@_model(
    "TensorFlow Serving's counter: signatures that give a reference",
    {"get_counter": {}, "reset_counter": {}},
    judge="session",
    remark="Asked over gRPC alone: REST takes no request without an input.",
)
def tf1_references(tf: Any, out: str) -> None:
    v1 = tf.compat.v1
    with tf.Graph().as_default(), v1.Session() as session:
        counter = v1.Variable(0.0, name="counter", use_resource=False)
        # Of type DT_FLOAT_REF, as v1.assign gives it.
        outputs = {"get_counter": counter._ref(), "reset_counter": v1.assign(counter, 0.0)}
        outputs["incr_counter"] = v1.assign_add(counter, 1.0)
        session.run(v1.global_variables_initializer())
        signatures = {name: _signature(tf, {}, {"output": tensor}) for name, tensor in outputs.items()}
        _build(tf, out, session, signatures)


@_model("a graph without variables, and no folder of them", inputs={"a": ints(dtype="int64"), "b": ints(dtype="int64")})
def tf1_no_variables(tf: Any, out: str) -> None:
    v1 = tf.compat.v1
    with tf.Graph().as_default(), v1.Session() as session:
        a, b = (v1.placeholder(tf.int64, [None], name=name) for name in ("a", "b"))
        v1.saved_model.simple_save(session, out, {"a": a, "b": b}, {"sum": a + b, "product": a * b})
    if os.path.isdir(os.path.join(out, "variables")):
        os.rmdir(os.path.join(out, "variables"))


@_model("a sparse placeholder", refused=r"sparse|no signature")
def tf1_sparse_input(tf: Any, out: str) -> None:
    v1 = tf.compat.v1
    with tf.Graph().as_default(), v1.Session() as session:
        x = v1.sparse_placeholder(tf.float32, [None, 4], name="x")
        v1.saved_model.simple_save(session, out, {"x": x}, {"y": tf.sparse.reduce_sum(x, axis=1)})
