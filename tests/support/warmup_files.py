"""Files of recorded warm-up requests, written by TensorFlow and the official protos.

`python -m tests.support.warmup_files DIR` writes each as `DIR/<name>`. Only that process imports TensorFlow.
"""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

ROOT = Path(__file__).resolve().parents[2]
RECORDS = Path("assets.extra", "tf_serving_warmup_requests")


def write(out_dir: Path) -> None:
    """Writes all files, in a process of its own."""
    command = [sys.executable, "-m", "tests.support.warmup_files", str(out_dir)]
    ended = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False, timeout=120)
    assert ended.returncode == 0, ended.stderr[-4000:]


def put(file: Path, version: Path) -> None:
    """Makes `file` the recorded requests of the version folder `version`."""
    target = version / RECORDS
    target.parent.mkdir(exist_ok=True)
    target.write_bytes(file.read_bytes())


def main(out_dir: str) -> None:
    os.environ["TF_CPP_MIN_LOG_LEVEL"] = "2"
    import tensorflow as tf  # noqa: PLC0415  (tests import the helpers above)
    from tensorflow.core.example import example_pb2  # noqa: PLC0415
    from tensorflow_serving.apis import logging_pb2, prediction_log_pb2  # noqa: PLC0415

    def log() -> Any:
        message = prediction_log_pb2.PredictionLog()
        message.log_metadata.CopyFrom(logging_pb2.LogMetadata())
        return message

    def predict(value: Any, alias: str = "x", content: bool = False, outputs: tuple[str, ...] = ()) -> Any:
        message = log()
        request = message.predict_log.request
        request.model_spec.name = "another name"
        request.model_spec.version.value = 77
        request.inputs[alias].CopyFrom(tf.make_tensor_proto(value))
        if content:
            array = tf.make_ndarray(request.inputs[alias])
            request.inputs[alias].ClearField("float_val")
            request.inputs[alias].tensor_content = array.tobytes()
        request.output_filter.extend(outputs)
        return message

    def example(x: float) -> Any:
        features = example_pb2.Example()
        features.features.feature["x"].float_list.value.append(x)
        return features

    def on_examples(kind: str, signature: str, context: bool = False) -> Any:
        message = log()
        request = getattr(message, f"{kind}_log").request
        request.model_spec.signature_name = signature
        fill(request.input, context)
        return message

    def fill(message: Any, context: bool) -> None:
        if context:
            message.example_list_with_context.context.CopyFrom(example(3.0))
            message.example_list_with_context.examples.add()
        else:
            message.example_list.examples.extend([example(1.0), example(2.0)])

    def multi_inference(*tasks: tuple[str, str]) -> Any:
        message = log()
        fill(message.multi_inference_log.request.input, False)
        for method, signature in tasks:
            task = message.multi_inference_log.request.tasks.add(method_name=f"tensorflow/serving/{method}")
            task.model_spec.name = "half_plus_two"
            task.model_spec.signature_name = signature
        return message

    constant = log()
    constant.predict_log.request.model_spec.signature_name = "constant"
    session_run = log()
    session_run.session_run_log.request.model_spec.name = "m"
    streamed = log()
    streamed.predict_streamed_log.request.add()
    x = np.array([1.0, 2.0], np.float32)
    files: dict[str, Callable[[], list[Any]]] = {
        "empty": list,
        "predicts": lambda: [predict(x), predict(x + 1, content=True), predict(x[:1])],
        "filtered": lambda: [predict(x, outputs=("y",))],
        "half_plus_two": lambda: [
            predict(x),
            on_examples("classify", "classify_x_to_label"),
            on_examples("regress", "regress_x_to_y", context=True),
            multi_inference(("regress", "regress_x_to_y"), ("classify", "classify_x_to_y")),
        ],
        "passed_over": lambda: [streamed, log(), predict(x)],
        "without_inputs": lambda: [constant],
        "session_run": lambda: [session_run],
        "wrong_input": lambda: [predict(x), predict(x, alias="z")],
        "wrong_dtype": lambda: [predict(x.astype(np.float64))],
        "wrong_output": lambda: [predict(x, outputs=("nope",))],
        "same_output_twice": lambda: [predict(x, outputs=("y", "y"))],
        "no_signature": lambda: [on_examples("classify", "nope")],
        "same_task_twice": lambda: [multi_inference(*[("regress", "regress_x_to_y")] * 2)],
        "unknown_method": lambda: [multi_inference(("predict", "regress_x_to_y"))],
        "negative": lambda: [predict(x), predict(-x)],
        "thousand": lambda: [predict(x[:1])] * 1000,
        "too_many": lambda: [predict(x[:1])] * 1001,
        "texts": lambda: [predict(np.array([b"a", b"\xff\0"], object), alias="text")],
    }
    for name, messages in files.items():
        with tf.io.TFRecordWriter(os.path.join(out_dir, name)) as writer:
            for message in messages():
                writer.write(message.SerializeToString())
    with tf.io.TFRecordWriter(os.path.join(out_dir, "no_log")) as writer:
        writer.write(predict(x).SerializeToString())
        writer.write(b"\xff\xff\xff")


if __name__ == "__main__":
    main(sys.argv[1])
