"""TF-Lite models, by each way of converting that LiteRT's guide shows."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from tests.models.model import Group, floats, ints

GROUP = Group("TF-Lite (LiteRT's converter)", judge="lite")
_model = GROUP.model


def _write(converter: Any, out: str) -> None:
    os.makedirs(out, exist_ok=True)
    Path(out, "model.tflite").write_bytes(converter.convert())


def _keras(tf: Any) -> Any:
    layers = tf.keras.layers
    x = tf.keras.Input((8, 8, 3), name="image")
    hidden = layers.Conv2D(8, 3, activation="relu")(x)
    return tf.keras.Model(x, layers.Dense(4)(layers.Flatten()(hidden)))


def _pictures() -> Iterator[list[np.ndarray]]:
    rng = np.random.default_rng(9)
    for _ in range(20):
        yield [rng.normal(size=(1, 8, 8, 3)).astype("float32")]


@_model("`from_saved_model` of a Keras export", inputs={"image": floats(8, 8, 3)})
def lite_from_saved_model(tf: Any, out: str) -> None:
    with tempfile.TemporaryDirectory() as scratch:
        _keras(tf).export(scratch, verbose=False)
        _write(tf.lite.TFLiteConverter.from_saved_model(scratch, signature_keys=["serving_default"]), out)


@_model("`from_keras_model`", inputs={"image": floats(8, 8, 3)})
def lite_from_keras_model(tf: Any, out: str) -> None:
    _write(tf.lite.TFLiteConverter.from_keras_model(_keras(tf)), out)


@_model("several signatures", {"serving_default": {"x": floats(3)}, "pair": {"a": floats(3), "b": ints()}})
def lite_several_signatures(tf: Any, out: str) -> None:
    def pair(a: Any, b: Any) -> dict[str, Any]:
        return {"total": tf.reduce_sum(a, axis=1) + tf.cast(b, tf.float32)}

    specs = [tf.TensorSpec([None, 3], tf.float32, "a"), tf.TensorSpec([None], tf.int32, "b")]
    x = tf.TensorSpec([None, 3], tf.float32, "x")
    functions = {
        "serving_default": tf.function(lambda x: {"y": x / 2.0 + 3.0}).get_concrete_function(x),
        "pair": tf.function(pair).get_concrete_function(*specs),
    }
    with tempfile.TemporaryDirectory() as scratch:
        tf.saved_model.save(tf.Module(), scratch, signatures=functions)
        _write(tf.lite.TFLiteConverter.from_saved_model(scratch, signature_keys=list(functions)), out)


def _quantized(tf: Any, out: str, **about: Any) -> None:
    converter = tf.lite.TFLiteConverter.from_keras_model(_keras(tf))
    converter.optimizations = [tf.lite.Optimize.DEFAULT]
    for name, value in about.items():
        setattr(converter, name, value)
    _write(converter, out)


@_model("dynamic range quantisation", inputs={"image": floats(8, 8, 3)})
def lite_dynamic_range(tf: Any, out: str) -> None:
    _quantized(tf, out)


@_model("float16 quantisation", inputs={"image": floats(8, 8, 3)})
def lite_float16(tf: Any, out: str) -> None:
    spec = tf.lite.TargetSpec()
    spec.supported_types = [tf.float16]
    _quantized(tf, out, target_spec=spec)


@_model("full integer quantisation, int8 in and out", inputs={"image": ints(8, 8, 3, low=-128, high=128, dtype="int8")})
def lite_int8(tf: Any, out: str) -> None:
    spec = tf.lite.TargetSpec(supported_ops=[tf.lite.OpsSet.TFLITE_BUILTINS_INT8])
    about = {"inference_input_type": tf.int8, "inference_output_type": tf.int8}
    _quantized(tf, out, representative_dataset=_pictures, target_spec=spec, **about)


@_model("full integer quantisation, uint8 in and out", inputs={"image": ints(8, 8, 3, high=256, dtype="uint8")})
def lite_uint8(tf: Any, out: str) -> None:
    spec = tf.lite.TargetSpec(supported_ops=[tf.lite.OpsSet.TFLITE_BUILTINS_INT8])
    about = {"inference_input_type": tf.uint8, "inference_output_type": tf.uint8}
    _quantized(tf, out, representative_dataset=_pictures, target_spec=spec, **about)


@_model("integer quantisation with float inputs and outputs", inputs={"image": floats(8, 8, 3)})
def lite_int8_inside(tf: Any, out: str) -> None:
    _quantized(tf, out, representative_dataset=_pictures)


@_model("16-bit activations with 8-bit weights", inputs={"image": floats(8, 8, 3)})
def lite_int16_activations(tf: Any, out: str) -> None:
    ops = tf.lite.OpsSet.EXPERIMENTAL_TFLITE_BUILTINS_ACTIVATIONS_INT16_WEIGHTS_INT8
    _quantized(tf, out, representative_dataset=_pictures, target_spec=tf.lite.TargetSpec(supported_ops=[ops]))


@_model("without signatures (`from_concrete_functions`)", inputs={"x": floats(4)})
def lite_without_signatures(tf: Any, out: str) -> None:
    w = tf.constant(np.random.default_rng(1).normal(size=(4, 3)).astype("float32"))
    function = tf.function(lambda x: tf.nn.softmax(x @ w)).get_concrete_function(
        tf.TensorSpec([None, 4], tf.float32, "x")
    )
    _write(tf.lite.TFLiteConverter.from_concrete_functions([function]), out)
    _without_signatures(out)


@_model("full integer quantisation, without signatures", inputs={"image": ints(8, 8, 3, high=256, dtype="uint8")})
def lite_uint8_without_signatures(tf: Any, out: str) -> None:
    lite_uint8(tf, out)
    _without_signatures(out, {"image": "image"})


def _without_signatures(out: str, names: dict[str, str] | None = None) -> None:
    """Takes the table of signatures away, which converters before 2.5 did not write.

    An input whose name has a key of `names` in it gets that one's value as its name.
    """
    import flatbuffers  # type: ignore[import-untyped]  # noqa: PLC0415  (ships no types)
    from tensorflow.lite.python import schema_py_generated as schema  # noqa: PLC0415

    path = Path(out, "model.tflite")
    model = schema.ModelT.InitFromPackedBuf(path.read_bytes(), 0)
    graph = model.subgraphs[0]
    for number in graph.inputs:
        for part, name in (names or {}).items():
            if part in graph.tensors[number].name.decode():
                graph.tensors[number].name = name
    model.signatureDefs = []
    builder = flatbuffers.Builder(4096)
    builder.Finish(model.Pack(builder), b"TFL3")
    path.write_bytes(builder.Output())


@_model("`LSTM` with a fixed number of steps", inputs={"steps": floats(5, 3)})
def lite_lstm(tf: Any, out: str) -> None:
    steps = tf.keras.Input((5, 3), name="steps")
    model = tf.keras.Model(steps, tf.keras.layers.Dense(2)(tf.keras.layers.LSTM(4, unroll=True)(steps)))
    _write(tf.lite.TFLiteConverter.from_keras_model(model), out)


@_model("operators of TensorFlow (`SELECT_TF_OPS`)", refused=r"Flex|Select TensorFlow ops")
def lite_select_tf_ops(tf: Any, out: str) -> None:
    function = tf.function(tf.linalg.inv).get_concrete_function(tf.TensorSpec([None, 2, 2], tf.float32, "x"))
    converter = tf.lite.TFLiteConverter.from_concrete_functions([function])
    converter.target_spec.supported_ops = [tf.lite.OpsSet.TFLITE_BUILTINS, tf.lite.OpsSet.SELECT_TF_OPS]
    _write(converter, out)


@_model("a custom operator", refused=r"custom|StringUpper")
def lite_custom_operator(tf: Any, out: str) -> None:
    function = tf.function(tf.strings.upper).get_concrete_function(tf.TensorSpec([None], tf.string, "text"))
    converter = tf.lite.TFLiteConverter.from_concrete_functions([function])
    converter.allow_custom_ops = True
    _write(converter, out)
