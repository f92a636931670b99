"""What a framework itself answers, in a process of its own: `python -m tests.models.judge NAME=FOLDER… OUT_DIR`.

Each answer goes to `OUT_DIR/<name>/<signature>/<batch>.pb`, a PredictResponse of TensorFlow Serving's.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np

from backends import text_locale
from tests.models.catalogue import MODELS, library_files
from tests.models.model import Model

Answer = Callable[[str, Mapping[str, np.ndarray]], Mapping[str, np.ndarray]]
"""Runs a signature on inputs."""


def by_load(folder: str) -> Answer:
    """`tf.saved_model.load`."""
    import tensorflow as tf  # noqa: PLC0415

    loaded = tf.saved_model.load(folder, tags=["serve"])

    def answer(signature: str, inputs: Mapping[str, np.ndarray]) -> Mapping[str, np.ndarray]:
        function = loaded.signatures[signature]
        outputs = function(**{name: tf.constant(value) for name, value in inputs.items()})
        return {name: np.asarray(tensor.numpy()) for name, tensor in outputs.items()}

    answer.loaded = loaded  # type: ignore[attr-defined]  # its variables live as long as it does
    return answer


def by_session(folder: str) -> Answer:
    """The loader of TensorFlow 1, and `Session.run`."""
    import tensorflow as tf  # noqa: PLC0415

    v1 = tf.compat.v1
    session = v1.Session(graph=tf.Graph())
    meta_graph = v1.saved_model.loader.load(session, ["serve"], folder)

    def answer(signature: str, inputs: Mapping[str, np.ndarray]) -> Mapping[str, np.ndarray]:
        definition = meta_graph.signature_def[signature]
        given = {name: tf.make_ndarray(value) for name, value in definition.defaults.items()} | dict(inputs)
        feeds = {definition.inputs[name].name: value for name, value in given.items()}
        outputs = session.run({name: info.name for name, info in definition.outputs.items()}, feeds)
        return {name: np.asarray(value) for name, value in outputs.items()}

    return answer


def by_onnx(folder: str) -> Answer:
    import onnxruntime  # noqa: PLC0415

    text_locale.provide("en_US.UTF-8")  # where it is not installed: text normalisers ask for it
    session = onnxruntime.InferenceSession(str(Path(folder, "model.onnx")), providers=["CPUExecutionProvider"])

    def answer(_: str, inputs: Mapping[str, np.ndarray]) -> Mapping[str, np.ndarray]:
        texts = {n: np.vectorize(bytes.decode, [object])(v) if v.dtype == object else v for n, v in inputs.items()}
        names = [output.name for output in session.get_outputs()]
        # An output that is no tensor, such as a map of probabilities, is not served.
        return {n: v for n, v in zip(names, session.run(None, texts), strict=True) if isinstance(v, np.ndarray)}

    return answer


def by_lite(folder: str) -> Answer:
    from ai_edge_litert.interpreter import Interpreter, OpResolverType  # noqa: PLC0415

    path = str(Path(folder, "model.tflite"))
    interpreter = Interpreter(path)
    try:
        interpreter.allocate_tensors()
    except RuntimeError:  # XNNPACK has nothing to compute where sizes that the model leaves open are 1
        plain = OpResolverType.BUILTIN_WITHOUT_DEFAULT_DELEGATES
        interpreter = Interpreter(path, experimental_op_resolver_type=plain)

    def answer(signature: str, inputs: Mapping[str, np.ndarray]) -> Mapping[str, np.ndarray]:
        if signature in interpreter.get_signature_list():
            return interpreter.get_signature_runner(signature)(**inputs)  # type: ignore[no-any-return]
        details = {detail["name"].removesuffix(":0"): detail["index"] for detail in interpreter.get_input_details()}
        for name, value in inputs.items():
            interpreter.resize_tensor_input(details[name], value.shape)
        interpreter.allocate_tensors()
        for name, value in inputs.items():
            interpreter.set_tensor(details[name], value)
        interpreter.invoke()
        outputs = interpreter.get_output_details()
        return {o["name"].removesuffix(":0"): interpreter.get_tensor(o["index"]) for o in outputs}

    return answer


JUDGES: Mapping[str, Callable[[str], Answer]] = {
    "load": by_load,
    "session": by_session,
    "onnx": by_onnx,
    "lite": by_lite,
}


def write_answers(model: Model, folder: str, out: Path) -> None:
    import tensorflow as tf  # noqa: PLC0415
    from tensorflow_serving.apis import predict_pb2  # noqa: PLC0415

    for library in library_files(model):
        tf.load_op_library(library)
    answer = JUDGES[model.judge](folder)
    for signature in model.signatures:
        for batch in model.batches:
            response = predict_pb2.PredictResponse()
            for name, value in answer(signature, model.inputs(signature, batch)).items():
                response.outputs[name].CopyFrom(tf.make_tensor_proto(value))
            path = out / model.name / signature / f"{batch}.pb"
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(response.SerializeToString())
    (out / model.name / "done").touch()


def main(arguments: list[str]) -> None:
    os.environ["CUDA_VISIBLE_DEVICES"] = "-1"
    *asked, out = arguments
    for name, _, folder in (text.partition("=") for text in asked):
        try:
            write_answers(MODELS[name], folder, Path(out))
        except Exception as error:  # the models before it have their answers
            raise RuntimeError(f"{name}: {MODELS[name].judge} gives no answer: {error}") from error


if __name__ == "__main__":
    main(sys.argv[1:])
