"""Models of Keras 2 (tf_keras), by each way of exporting that its guides show."""

from __future__ import annotations

from typing import Any

import numpy as np

from tests.models.model import Group, floats, ints, uniform, words

GROUP = Group("Keras 2 (tf_keras)")
_model = GROUP.model


def images(n: int, rng: np.random.Generator) -> np.ndarray:
    """Bitmaps of 8 × 8 pixels, which need no library to write."""
    found = np.empty([n], object)
    for at in range(n):
        pixels = rng.integers(256, size=8 * 8 * 3).astype("uint8").tobytes()
        head = (54 + len(pixels)).to_bytes(4, "little") + bytes(4) + (54).to_bytes(4, "little")
        sizes = (40).to_bytes(4, "little") + (8).to_bytes(4, "little") + (8).to_bytes(4, "little")
        found[at] = b"BM" + head + sizes + b"\1\0\x18\0" + bytes(24) + pixels
    return found


def _keras() -> Any:
    import tf_keras  # type: ignore[import-untyped]  # noqa: PLC0415  (only the building process loads TensorFlow)

    return tf_keras


def _trained(keras: Any) -> Any:
    layers = keras.layers
    stack = [layers.Dense(8, activation="relu", input_shape=(4,), name="x"), layers.BatchNormalization()]
    model = keras.Sequential([*stack, layers.Dense(3, activation="softmax", name="scores")])
    model.compile(optimizer="adam", loss="mse", metrics=["mae"])
    rng = np.random.default_rng(3)
    model.fit(rng.normal(size=(64, 4)), rng.uniform(size=(64, 3)), epochs=2, verbose=0)
    return model


@_model('`model.save(path, save_format="tf")`, compiled and fitted', inputs={"x_input": floats(4)}, judge="session")
def keras2_save(tf: Any, out: str) -> None:
    _trained(_keras()).save(out, save_format="tf")


@_model("`model.save(path, include_optimizer=False)`", inputs={"x_input": floats(4)})
def keras2_save_without_optimizer(tf: Any, out: str) -> None:
    _trained(_keras()).save(out, save_format="tf", include_optimizer=False)


@_model("`model.export(path)`", inputs={"x_input": floats(4)})
def keras2_export(tf: Any, out: str) -> None:
    _trained(_keras()).export(out)


@_model("`tf.saved_model.save(model, path)`", inputs={"x_input": floats(4)})
def keras2_saved_model_save(tf: Any, out: str) -> None:
    keras = _keras()
    model = keras.Sequential([keras.layers.Dense(3, activation="tanh", input_shape=(4,), name="x")])
    tf.saved_model.save(model, out)


@_model("two inputs and outputs by name, `model.save(path)`", inputs={"a": floats(3), "b": floats(2)})
def keras2_multi_input_output(tf: Any, out: str) -> None:
    keras = _keras()
    a, b = keras.Input((3,), name="a"), keras.Input((2,), name="b")
    joined = keras.layers.concatenate([a, b])
    outputs = [keras.layers.Dense(1, name="price")(joined), keras.layers.Dense(3, name="kind")(joined)]
    keras.Model([a, b], outputs).save(out, save_format="tf")


@_model("subclassed, called once, `model.save(path)`", inputs={"input_1": floats(5)})
def keras2_subclassed(tf: Any, out: str) -> None:
    keras = _keras()

    class Net(keras.Model):  # type: ignore[misc]  # keras is Any
        def __init__(self) -> None:
            super().__init__()
            self.first, self.second = keras.layers.Dense(6, activation="relu"), keras.layers.Dense(2)

        def call(self, x: Any, training: Any = None) -> Any:
            return self.second(self.first(x))

    model = Net()
    model.predict(np.zeros([1, 5], "float32"), verbose=0)
    model.save(out, save_format="tf")


@_model("`LSTM` and `GRU`, `model.save(path)`", inputs={"steps": floats(6, 3)})
def keras2_recurrent(tf: Any, out: str) -> None:
    keras = _keras()
    steps = keras.Input((None, 3), name="steps")
    hidden = keras.layers.GRU(4)(keras.layers.LSTM(5, return_sequences=True)(keras.layers.Masking(0.0)(steps)))
    keras.Model(steps, keras.layers.Dense(2)(hidden)).save(out, save_format="tf")


@_model(
    "`TextVectorization`, adapted, `model.save(path)`",
    inputs={"text": words("the cat sat", "a dog sat", "unheard of", shape=[1])},
)
def keras2_text_vectorization(tf: Any, out: str) -> None:
    keras = _keras()
    text = keras.Input((1,), dtype=tf.string, name="text")
    vectorization = keras.layers.TextVectorization(max_tokens=12, output_sequence_length=4)
    vectorization.adapt(np.array(["the cat sat", "the dog sat"]))
    embedded = keras.layers.Embedding(12, 4)(vectorization(text))
    model = keras.Model(text, keras.layers.Dense(2)(keras.layers.Flatten()(embedded)))
    model.save(out, save_format="tf")


@_model(
    "feature columns (`DenseFeatures`), `model.save(path)`",
    inputs={"age": uniform(1, high=90.0), "city": words("Bonn", "Oslo", "Rome", "Lima", shape=[1])},
)
def keras2_feature_columns(tf: Any, out: str) -> None:
    keras = _keras()
    column = tf.feature_column
    age = column.numeric_column("age")
    city = column.categorical_column_with_vocabulary_list("city", ["Bonn", "Oslo", "Rome"])
    columns = [age, column.bucketized_column(age, [18.0, 40.0]), column.indicator_column(city)]
    inputs = {"age": keras.Input((1,), name="age"), "city": keras.Input((1,), dtype=tf.string, name="city")}
    hidden = keras.layers.DenseFeatures(columns)(inputs)
    keras.Model(inputs, keras.layers.Dense(2)(hidden)).save(out, save_format="tf")


@_model(
    "`model.save(path, signatures=…)`: images from bytes",
    inputs={"image_bytes": images},
)
def keras2_signature_from_bytes(tf: Any, out: str) -> None:
    keras = _keras()
    stack = [keras.layers.Conv2D(4, 3, input_shape=(8, 8, 3)), keras.layers.GlobalAveragePooling2D()]
    model = keras.Sequential([*stack, keras.layers.Dense(2)])

    @tf.function(input_signature=[tf.TensorSpec([None], tf.string, "image_bytes")])  # type: ignore[misc]
    def from_bytes(image_bytes: Any) -> dict[str, Any]:
        def decoded(content: Any) -> Any:
            pixels = tf.io.decode_bmp(content, channels=3)
            return tf.ensure_shape(tf.image.convert_image_dtype(pixels, tf.float32), [8, 8, 3])

        return {"scores": model(tf.map_fn(decoded, image_bytes, fn_output_signature=tf.float32))}

    model.save(out, save_format="tf", signatures={"serving_default": from_bytes})


@_model("recommender: `Embedding` dot `Embedding`, `model.save(path)`", inputs={"user": ints(1), "item": ints(1)})
def keras2_embeddings(tf: Any, out: str) -> None:
    keras = _keras()
    user, item = (keras.Input((1,), dtype=tf.int32, name=name) for name in ("user", "item"))
    towers = [keras.layers.Flatten()(keras.layers.Embedding(10, 6)(ids)) for ids in (user, item)]
    keras.Model([user, item], keras.layers.Dot(axes=1, name="score")(towers)).save(out, save_format="tf")
