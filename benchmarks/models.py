"""The models and requests under load, made once into benchmarks/.cache; and the check of what the servers answer.

.cache/models/NAME/1          SavedModel
.cache/requests/NAME/         rest.json, tensor_content.bin, float_val.bin, inputs.npz, expected.npz
"""

import json
import os
import shutil
import subprocess
import sys
from typing import Any

import numpy as np

ROOT = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
CACHE = os.path.join(ROOT, "benchmarks", ".cache")
MODELS = os.path.join(CACHE, "models")
NAMES = ("half_plus_two", "digits", "mobilenet_v2")
SEED = 20

# Another batch, thread or runtime changes the last bits; a wrong model or a wrong image changes much more.
RELATIVE_TOLERANCE = 1e-2
ABSOLUTE_TOLERANCE = 1e-5


def locate_request(name: str, file: str) -> str:
    """The path of a model's request file."""
    return os.path.join(CACHE, "requests", name, file)


def prepare_model(name: str) -> None:
    """Make the model and its requests where they are not there yet. Imports TensorFlow, as seldom as it can."""
    folder = os.path.join(MODELS, name, "1")
    if not os.path.exists(folder):
        print(f"making {folder}", flush=True)
        if name == "digits":
            script = os.path.join(ROOT, "examples", "digits", "train.py")
            command = [sys.executable, script, "--models", MODELS]
            subprocess.run(command, check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        else:
            partial = folder + ".partial"
            shutil.rmtree(partial, ignore_errors=True)
            {"half_plus_two": _export_half_plus_two, "mobilenet_v2": _export_mobilenet_v2}[name](partial)
            os.rename(partial, folder)
    if not os.path.exists(locate_request(name, "expected.npz")):
        _write_requests(name, folder)


def find_wrong_answer(name: str, protocol: str, answer: bytes) -> str | None:
    """What is wrong with an answer to the model's request, or None."""
    with np.load(locate_request(name, "expected.npz")) as file:
        expected = dict(file)
    try:
        outputs = _parse_rest(answer, list(expected)) if protocol == "REST" else _parse_grpc(answer)
    except (ValueError, KeyError, TypeError) as error:
        return f"unreadable: {error!r}"
    if outputs.keys() != expected.keys():
        return f"outputs {sorted(outputs)} in place of {sorted(expected)}"
    for key, wanted in expected.items():
        if outputs[key].shape != wanted.shape:
            return f"{key} of shape {outputs[key].shape} in place of {wanted.shape}"
        if not np.allclose(outputs[key], wanted, RELATIVE_TOLERANCE, ABSOLUTE_TOLERANCE):
            return f"{key} differs by up to {np.max(np.abs(outputs[key] - wanted)):.3g}"
    return None


def _parse_rest(answer: bytes, names: list[str]) -> dict[str, np.ndarray]:
    """Row format: a bare value for a single output, an object of names for several."""
    rows = json.loads(answer)["predictions"]
    if len(names) == 1:
        return {names[0]: np.array(rows)}
    return {name: np.array([row[name] for row in rows]) for name in rows[0]}


def _parse_grpc(answer: bytes) -> dict[str, np.ndarray]:
    import tensorflow as tf  # noqa: PLC0415  # only the official client is trusted to read it, and it costs 1.5 s
    from tensorflow_serving.apis import predict_pb2  # noqa: PLC0415

    response = predict_pb2.PredictResponse.FromString(answer)
    return {name: tf.make_ndarray(tensor) for name, tensor in response.outputs.items()}


def _make_inputs(name: str) -> dict[str, np.ndarray]:
    """One request's tensors: TensorFlow Serving's own example for half_plus_two, otherwise one image."""
    if name == "half_plus_two":
        return {"x": np.array([1.0, 2.0, 5.0], np.float32)}
    if name == "digits":
        with open(os.path.join(ROOT, "examples", "digits", "sample.json"), encoding="ascii") as file:
            return {"image": np.array(json.load(file)["instances"][:1], np.float32)}
    return {"image": _make_images(1)}


def _make_images(count: int) -> np.ndarray:
    """Images [count, 224, 224, 3] float32, from bytes scaled to -1..1 as MobileNetV2's preprocessing does."""
    pixels = np.random.default_rng(SEED).integers(0, 256, (count, 224, 224, 3))
    return (pixels / 127.5 - 1).astype(np.float32)


def _write_requests(name: str, folder: str) -> None:
    """The request in every encoding, and the outputs of the bare session for it. expected.npz comes last."""
    import orjson  # noqa: PLC0415  # it writes float32 with the digits of a float32, as a C++ or JavaScript client does
    import tensorflow as tf  # noqa: PLC0415
    from tensorflow_serving.apis import predict_pb2  # noqa: PLC0415

    from benchmarks.session import load_model  # noqa: PLC0415

    inputs = _make_inputs(name)
    ((key, array),) = inputs.items()
    os.makedirs(locate_request(name, ""), exist_ok=True)
    with open(locate_request(name, "rest.json"), "wb") as file:
        file.write(orjson.dumps({"instances": array}, option=orjson.OPT_SERIALIZE_NUMPY))
    for encoding in ("tensor_content", "float_val"):
        request = predict_pb2.PredictRequest()
        request.model_spec.name = name
        tensor = request.inputs[key]
        if encoding == "tensor_content":
            tensor.CopyFrom(tf.make_tensor_proto(array))
            tensor.ClearField("float_val")  # make_tensor_proto chooses it for a single number
            tensor.tensor_content = array.tobytes()
        else:
            tensor.dtype = tf.float32.as_datatype_enum
            tensor.tensor_shape.CopyFrom(tf.TensorShape(array.shape).as_proto())
            tensor.float_val.extend(array.ravel().tolist())
        with open(locate_request(name, f"{encoding}.bin"), "wb") as file:
            file.write(request.SerializeToString())
    np.savez(locate_request(name, "inputs.npz"), **inputs)
    model = load_model(folder)
    outputs = dict(zip(model.outputs, model.call(array), strict=True))
    np.savez(locate_request(name, "expected.npz"), **outputs)


def _export_half_plus_two(folder: str) -> None:
    """TensorFlow Serving's own test model: y = x / 2 + 2."""
    import tensorflow as tf  # noqa: PLC0415

    module = tf.Module()
    module.a, module.b = tf.Variable(0.5), tf.Variable(2.0)

    @tf.function(input_signature=[tf.TensorSpec([None], tf.float32, name="x")], autograph=False)
    def serve(x: tf.Tensor) -> dict[str, tf.Tensor]:
        return {"y": module.a * x + module.b}

    tf.saved_model.save(module, folder, signatures={"serving_default": serve})


def _export_mobilenet_v2(folder: str) -> None:
    """The architecture without the trained weights, which would have to be downloaded and change no timing."""
    import keras  # noqa: PLC0415
    import tensorflow as tf  # noqa: PLC0415

    keras.utils.set_random_seed(SEED)
    model: Any = keras.applications.MobileNetV2(weights=None)
    # Fresh statistics (mean 0, variance 1) let the signal fade through 50 layers until every output is 1/1000, and then
    # no check could tell a right answer from a wrong one. So take them from one batch.
    for layer in model.layers:
        if isinstance(layer, keras.layers.BatchNormalization):
            layer.momentum = 0.0
    model(_make_images(8), training=True)
    head = model.layers[-1]
    head.kernel.assign(head.kernel * 20)  # and spread the logits

    def serve(image: tf.Tensor) -> dict[str, tf.Tensor]:
        return {"probabilities": model(image, training=False)}

    archive = keras.export.ExportArchive()
    archive.track(model)
    archive.add_endpoint("serving_default", serve, [tf.TensorSpec([None, 224, 224, 3], tf.float32, name="image")])
    archive.write_out(folder, verbose=False)


def main() -> None:
    """Make everything. The benchmark runs this in a process of its own, so that it stays small itself."""
    for name in sys.argv[1:] or NAMES:
        prepare_model(name)


if __name__ == "__main__":
    main()
