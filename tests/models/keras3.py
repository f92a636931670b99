"""Models of Keras 3, by each way of exporting that its guides and TensorFlow's show."""

from __future__ import annotations

import shutil
import tempfile
from pathlib import Path
from typing import Any

import numpy as np

from tests.models.model import Group, floats, ints, uniform, words

GROUP = Group("Keras 3")
_model = GROUP.model

_WORDS = ("alpha", "beta", "gamma", "delta", "unheard of")
_SENTENCES = ("the cat sat", "on the mat", "a dog", "the dog sat on the cat", "unheard of words")


def _dense(tf: Any, name: str = "x") -> Any:
    layers = tf.keras.layers
    inputs = tf.keras.Input((4,), name=name)
    hidden = layers.BatchNormalization()(layers.Dense(8, activation="relu")(inputs))
    return tf.keras.Model(inputs, layers.Dense(3, activation="softmax")(hidden))


def _trained(tf: Any) -> Any:
    model = _dense(tf)
    model.compile(optimizer="adam", loss="mse")
    rng = np.random.default_rng(3)
    model.fit(rng.normal(size=(64, 4)), rng.uniform(size=(64, 3)), epochs=2, verbose=0)
    return model


@_model("`model.export(path)` of a model that was compiled and fitted", inputs={"x": floats(4)})
def keras3_export(tf: Any, out: str) -> None:
    _trained(tf).export(out, verbose=False)


@_model("`model.export(path, input_signature=…)`: images of any size", inputs={"image": floats(12, 9, 3)})
def keras3_export_input_signature(tf: Any, out: str) -> None:
    layers = tf.keras.layers
    inputs = tf.keras.Input((None, None, 3), name="image")
    hidden = layers.MaxPooling2D(2)(layers.Conv2D(8, 3, activation="relu")(inputs))
    model = tf.keras.Model(inputs, layers.GlobalAveragePooling2D()(layers.Conv2D(4, 3)(hidden)))
    model.export(out, input_signature=[tf.TensorSpec([None, None, None, 3], tf.float32, "image")], verbose=False)


@_model("`tf.saved_model.save(model, path)`, compiled and fitted", inputs={"inputs": floats(4)})
def keras3_saved_model_save(tf: Any, out: str) -> None:
    tf.saved_model.save(_trained(tf), out)


@_model(
    "`tf.saved_model.save(model, path, signatures=…)`",
    {"serving_default": {"x": floats(4)}, "best": {"x": floats(4)}},
)
def keras3_saved_model_save_signatures(tf: Any, out: str) -> None:
    model = _trained(tf)
    x = tf.TensorSpec([None, 4], tf.float32, "x")
    scores = tf.function(lambda x: {"scores": model(x)}).get_concrete_function(x)
    best = tf.function(lambda x: {"best": tf.argmax(model(x), axis=1)}).get_concrete_function(x)
    tf.saved_model.save(model, out, signatures={"serving_default": scores, "best": best})


@_model("`tf.saved_model.save` of a `tf.Module` that holds a Keras model", inputs={"x": floats(4)})
def keras3_in_a_module(tf: Any, out: str) -> None:
    class Holder(tf.Module):  # type: ignore[misc]  # tf is Any
        def __init__(self) -> None:
            super().__init__()
            self.model = _trained(tf)
            self.scale = tf.Variable(3.0)

        @tf.function(input_signature=[tf.TensorSpec([None, 4], tf.float32, "x")])  # type: ignore[misc]
        def scaled(self, x: Any) -> Any:
            return {"scaled": self.model(x) * self.scale}

    module = Holder()
    tf.saved_model.save(module, out, signatures=module.scaled)


@_model(
    "`ExportArchive` with several endpoints",
    {"serve": {"x": floats(4)}, "serving_default": {"x": floats(4)}, "embed": {"x": floats(4)}},
)
def keras3_archive_endpoints(tf: Any, out: str) -> None:
    model = _trained(tf)
    embedder = tf.keras.Model(model.input, model.layers[1].output)
    archive = tf.keras.export.ExportArchive()
    archive.track(model)
    x = [tf.TensorSpec([None, 4], tf.float32, "x")]
    archive.add_endpoint("serve", model.call, x)
    archive.add_endpoint("serving_default", model.__call__, x)
    archive.add_endpoint("embed", embedder.__call__, x)
    archive.write_out(out, verbose=False)


@_model("`ExportArchive` of a subclassed model, with `add_variable_collection`", inputs={"x": floats(5)})
def keras3_subclassed_archive(tf: Any, out: str) -> None:
    class Net(tf.keras.Model):  # type: ignore[misc]
        def __init__(self) -> None:
            super().__init__()
            self.first, self.second = tf.keras.layers.Dense(6, activation="gelu"), tf.keras.layers.Dense(2)
            self.dropout = tf.keras.layers.Dropout(0.5)

        def call(self, x: Any, training: bool = False) -> Any:
            return self.second(self.dropout(self.first(x), training=training))

    model = Net()
    model(tf.zeros([1, 5]))
    archive = tf.keras.export.ExportArchive()
    archive.track(model)
    archive.add_endpoint("serving_default", model.__call__, [tf.TensorSpec([None, 5], tf.float32, "x")])
    archive.add_variable_collection("first_layer", model.first.variables)
    archive.write_out(out, verbose=False)


@_model("`model.export(path)` of a subclassed model that was called", inputs={"x": floats(5)})
def keras3_subclassed(tf: Any, out: str) -> None:
    class Residual(tf.keras.Model):  # type: ignore[misc]
        def __init__(self) -> None:
            super().__init__()
            self.blocks = [tf.keras.layers.Dense(5, activation="tanh") for _ in range(3)]
            self.head = tf.keras.layers.Dense(2)

        def call(self, x: Any) -> Any:
            for block in self.blocks:
                x = x + block(x)
            return self.head(x)

    model = Residual()
    model(tf.keras.Input((5,), name="x"))
    model.export(out, verbose=False, input_signature=[tf.TensorSpec([None, 5], tf.float32, "x")])


@_model("functional, two inputs and two outputs, `model.export(path)`", inputs={"a": floats(3), "b": floats(2)})
def keras3_multi_input_output(tf: Any, out: str) -> None:
    layers = tf.keras.layers
    a, b = tf.keras.Input((3,), name="a"), tf.keras.Input((2,), name="b")
    joined = layers.Concatenate()([layers.Dense(4)(a), layers.Dense(4, activation="relu")(b)])
    outputs = [layers.Dense(1, name="price")(joined), layers.Dense(3, activation="softmax", name="kind")(joined)]
    tf.keras.Model([a, b], outputs).export(out, verbose=False)


@_model("dictionaries of inputs and outputs, `model.export(path)`", inputs={"a": floats(3), "b": floats(2)})
def keras3_dictionaries(tf: Any, out: str) -> None:
    layers = tf.keras.layers
    inputs = {"a": tf.keras.Input((3,), name="a"), "b": tf.keras.Input((2,), name="b")}
    joined = layers.Concatenate()([inputs["a"], inputs["b"]])
    outputs = {"price": layers.Dense(1)(joined), "kind": layers.Dense(3, activation="softmax")(joined)}
    tf.keras.Model(inputs, outputs).export(out, verbose=False)


@_model(
    "nested structures of inputs and outputs, `tf.saved_model.save` with signatures",
    inputs={"first": floats(3), "second": floats(2)},
)
def keras3_nested(tf: Any, out: str) -> None:
    layers = tf.keras.layers
    inputs = {"pair": (tf.keras.Input((3,), name="first"), tf.keras.Input((2,), name="second"))}
    joined = layers.Concatenate()(list(inputs["pair"]))
    outputs = {"heads": [layers.Dense(1)(joined), {"deep": layers.Dense(2)(joined)}]}
    model = tf.keras.Model(inputs, outputs)

    def flat(first: Any, second: Any) -> dict[str, Any]:
        heads = model({"pair": (first, second)})["heads"]
        return {"head": heads[0], "deep": heads[1]["deep"]}

    specs = [tf.TensorSpec([None, 3], tf.float32, "first"), tf.TensorSpec([None, 2], tf.float32, "second")]
    tf.saved_model.save(model, out, signatures=tf.function(flat).get_concrete_function(*specs))


@_model("`StringLookup` and `Embedding`, `model.export(path)`", inputs={"word": words(*_WORDS, shape=[2])})
def keras3_string_lookup(tf: Any, out: str) -> None:
    layers = tf.keras.layers
    word = tf.keras.Input((2,), dtype="string", name="word")
    ids = layers.StringLookup(vocabulary=list(_WORDS[:4]))(word)
    tf.keras.Model(word, layers.Flatten()(layers.Embedding(5, 3)(ids))).export(out, verbose=False)


def _vectorized(tf: Any) -> Any:
    layers = tf.keras.layers
    text = tf.keras.Input((), dtype="string", name="text")
    vectorization = layers.TextVectorization(max_tokens=20, output_sequence_length=6)
    vectorization.adapt(np.array(_SENTENCES[:4]))
    embedded = layers.Embedding(20, 4, mask_zero=True)(vectorization(text))
    return tf.keras.Model(text, layers.Dense(2)(layers.GlobalAveragePooling1D()(embedded)))


@_model("`TextVectorization`, adapted, `model.export(path)`", inputs={"text": words(*_SENTENCES)})
def keras3_text_vectorization(tf: Any, out: str) -> None:
    _vectorized(tf).export(out, verbose=False)


@_model("`TextVectorization`, adapted, `tf.saved_model.save(model, path)`", inputs={"inputs": words(*_SENTENCES)})
def keras3_text_vectorization_saved(tf: Any, out: str) -> None:
    tf.saved_model.save(_vectorized(tf), out)


@_model("`Normalization`, adapted, `model.export(path)`", inputs={"x": floats(4)})
def keras3_normalization(tf: Any, out: str) -> None:
    layer = tf.keras.layers.Normalization()
    layer.adapt(np.random.default_rng(5).normal(3.0, 2.0, size=(50, 4)).astype("float32"))
    x = tf.keras.Input((4,), name="x")
    tf.keras.Model(x, tf.keras.layers.Dense(2)(layer(x))).export(out, verbose=False)


@_model("`Hashing` of strings, `model.export(path)`", inputs={"word": words(*_WORDS, shape=[2])})
def keras3_hashing(tf: Any, out: str) -> None:
    word = tf.keras.Input((2,), dtype="string", name="word")
    tf.keras.Model(word, tf.keras.layers.Hashing(num_bins=7)(word)).export(out, verbose=False)


@_model("`CategoryEncoding`, multi-hot, `model.export(path)`", inputs={"ids": ints(3, high=6, dtype="int64")})
def keras3_category_encoding(tf: Any, out: str) -> None:
    ids = tf.keras.Input((3,), dtype="int64", name="ids")
    encoded = tf.keras.layers.CategoryEncoding(num_tokens=6, output_mode="multi_hot")(ids)
    tf.keras.Model(ids, tf.keras.layers.Dense(2)(encoded)).export(out, verbose=False)


@_model(
    "`IntegerLookup` and `Discretization`, `model.export(path)`",
    inputs={"code": ints(1, low=100, high=106, dtype="int64"), "age": uniform(1, high=90.0)},
)
def keras3_integer_lookup(tf: Any, out: str) -> None:
    layers = tf.keras.layers
    code, age = tf.keras.Input((1,), dtype="int64", name="code"), tf.keras.Input((1,), name="age")
    one_hot = layers.IntegerLookup(vocabulary=[101, 102, 104], output_mode="one_hot")(code)
    bins = layers.Discretization(bin_boundaries=[18.0, 40.0, 65.0], output_mode="one_hot")(age)
    tf.keras.Model([code, age], layers.Dense(2)(layers.Concatenate()([one_hot, bins]))).export(out, verbose=False)


@_model(
    "`FeatureSpace` before a dense model, `tf.saved_model.save` with a signature",
    inputs={"colour": words("red", "green", "blue"), "size": uniform(high=10.0)},
)
def keras3_feature_space(tf: Any, out: str) -> None:
    space = tf.keras.utils.FeatureSpace(
        features={
            "colour": tf.keras.utils.FeatureSpace.string_categorical(num_oov_indices=1),
            "size": tf.keras.utils.FeatureSpace.float_normalized(),
        },
        output_mode="concat",
    )
    table = {"colour": np.array(["red", "green", "red", "blue"]), "size": np.array([1.0, 4.0, 2.0, 9.0], "float32")}
    space.adapt(tf.data.Dataset.from_tensor_slices(table))
    module = tf.Module()
    module.space = space
    module.head = tf.Variable(tf.random.stateless_normal([space(dict(table)).shape[1], 2], [1, 2]))

    def score(colour: Any, size: Any) -> dict[str, Any]:
        return {"score": space({"colour": colour, "size": size}) @ module.head}

    specs = [tf.TensorSpec([None], tf.string, "colour"), tf.TensorSpec([None], tf.float32, "size")]
    tf.saved_model.save(module, out, signatures=tf.function(score).get_concrete_function(*specs))


@_model("`LSTM` with `Masking`, fitted, `tf.saved_model.save(model, path)`", inputs={"inputs": floats(6, 4)})
def keras3_lstm_saved(tf: Any, out: str) -> None:
    layers = tf.keras.layers
    steps = tf.keras.Input((None, 4), name="steps")
    hidden = layers.LSTM(8)(layers.Masking(0.0)(steps))
    model = tf.keras.Model(steps, layers.Dense(3)(layers.BatchNormalization()(hidden)))
    model.compile(optimizer="adam", loss="mse")
    rng = np.random.default_rng(4)
    model.fit(rng.normal(size=(32, 6, 4)), rng.uniform(size=(32, 3)), verbose=0)
    tf.saved_model.save(model, out)


@_model("`Bidirectional(GRU)`, `model.export(path)`", inputs={"steps": floats(5, 3)})
def keras3_gru(tf: Any, out: str) -> None:
    layers = tf.keras.layers
    steps = tf.keras.Input((None, 3), name="steps")
    recurrent = layers.Bidirectional(layers.GRU(4, return_sequences=True))(steps)
    tf.keras.Model(steps, layers.Dense(2)(recurrent)).export(out, verbose=False)


@_model("`MultiHeadAttention` with masks of `Embedding(mask_zero=True)`, `model.export(path)`", inputs={"ids": ints(7)})
def keras3_attention(tf: Any, out: str) -> None:
    layers = tf.keras.layers
    ids = tf.keras.Input((7,), dtype="int32", name="ids")
    embedded = layers.Embedding(10, 8, mask_zero=True)(ids)
    attended = layers.MultiHeadAttention(2, 4)(embedded, embedded, use_causal_mask=True)
    pooled = layers.GlobalAveragePooling1D()(layers.LayerNormalization()(embedded + attended))
    tf.keras.Model(ids, layers.Dense(3)(pooled)).export(out, verbose=False)


@_model(
    "MobileNetV2 of `keras.applications` with a new head, `model.export(path)`", inputs={"image": uniform(64, 64, 3)}
)
def keras3_transfer_learning(tf: Any, out: str) -> None:
    layers = tf.keras.layers
    image = tf.keras.Input((64, 64, 3), name="image")
    base = tf.keras.applications.MobileNetV2((64, 64, 3), alpha=0.35, include_top=False, weights=None, pooling="avg")
    base.trainable = False
    scaled = layers.Rescaling(2.0, -1.0)(image)
    model = tf.keras.Model(image, layers.Dense(5, activation="softmax")(base(scaled, training=False)))
    model.export(out, verbose=False)


@_model(
    "`Resizing`, `CenterCrop` and `Rescaling` before a convolution, `model.export(path)`",
    inputs={"image": uniform(20, 16, 3)},
)
def keras3_image_layers(tf: Any, out: str) -> None:
    layers = tf.keras.layers
    image = tf.keras.Input((20, 16, 3), name="image")
    small = layers.Rescaling(2.0, -1.0)(layers.CenterCrop(8, 8)(layers.Resizing(12, 12)(image)))
    model = tf.keras.Model(image, layers.Dense(2)(layers.Flatten()(layers.Conv2D(4, 3)(small))))
    model.export(out, verbose=False)


# Its arithmetic has 11 bits: TensorFlow's own answers move as far with a rounding of the input.
@_model("mixed precision (`mixed_float16`), `model.export(path)`", inputs={"x": floats(4)}, accelerated_tolerance=3e-3)
def keras3_mixed_precision(tf: Any, out: str) -> None:
    layers = tf.keras.layers
    x = tf.keras.Input((4,), name="x")
    hidden = layers.Dense(16, activation="relu", dtype="mixed_float16")(x)
    tf.keras.Model(x, layers.Dense(3, dtype="float32")(hidden)).export(out, verbose=False)


@_model('`model.quantize("int8")`, then `model.export(path)`', inputs={"x": floats(16)})
def keras3_quantized(tf: Any, out: str) -> None:
    layers = tf.keras.layers
    x = tf.keras.Input((16,), name="x")
    model = tf.keras.Model(x, layers.Dense(3)(layers.Dense(32, activation="relu")(x)))
    model.quantize("int8")
    model.export(out, verbose=False)


@_model("`keras.layers.TFSMLayer` around another SavedModel, `model.export(path)`", inputs={"x": floats(4)})
def keras3_around_a_saved_model(tf: Any, out: str) -> None:
    with tempfile.TemporaryDirectory() as scratch:
        _trained(tf).export(scratch, verbose=False)
        x = tf.keras.Input((4,), name="x")
        inner = tf.keras.layers.TFSMLayer(scratch, call_endpoint="serving_default")(x)["output_0"]
        tf.keras.Model(x, tf.keras.layers.Dense(2)(inner)).export(out, verbose=False)


@_model('`model.export(path, format="onnx")`', inputs={"x": floats(4)}, judge="onnx")
def keras3_onnx(tf: Any, out: str) -> None:
    Path(out).mkdir(parents=True)
    model = _dense(tf)
    model(tf.zeros([1, 4]))
    model.export(str(Path(out, "model.onnx")), format="onnx", verbose=False)


@_model('`model.export(path, format="litert")`', inputs={"x": floats(4)}, judge="lite")
def keras3_litert(tf: Any, out: str) -> None:
    Path(out).mkdir(parents=True)
    _dense(tf).export(str(Path(out, "model.tflite")), format="litert", verbose=False)


@_model(
    '`model.save("model.keras")`: no export, but Keras\'s own file', refused=r"model\.keras|saved_model\.pb is missing"
)
def keras3_file(tf: Any, out: str) -> None:
    Path(out).mkdir(parents=True)
    _dense(tf).save(str(Path(out, "model.keras")))


@_model("an export inside a folder of the version folder", refused=r"export/saved_model\.pb|saved_model\.pb is missing")
def keras3_one_folder_too_deep(tf: Any, out: str) -> None:
    _dense(tf).export(str(Path(out, "export")), verbose=False)
    shutil.rmtree(Path(out, "export", "assets"), ignore_errors=True)
