"""The limit: a TensorFlow session in process, with no server around it.

    python -m benchmarks.session --model FOLDER --inputs FILE.npz --concurrency 1 8 --seconds 5

The model is loaded as TensorFlow Serving loads it, and called at batch 1 from as many threads as the servers get
connections.
"""

import argparse
import dataclasses
import os
import threading
import time
from collections.abc import Callable

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")

import numpy as np
import tensorflow as tf

from benchmarks.measurement import Recorder


@dataclasses.dataclass(frozen=True, slots=True)
class BareModel:
    """`call` takes one array for each of `inputs` and returns one for each of `outputs`, in those orders."""

    inputs: dict[str, np.dtype]
    outputs: list[str]
    call: Callable[..., list[np.ndarray]]


def load_model(folder: str) -> BareModel:
    """The signature `serving_default` of a version folder, in a session that lives as long as the process."""
    session = tf.compat.v1.Session(graph=tf.Graph())
    meta_graph = tf.compat.v1.saved_model.loader.load(session, ["serve"], folder)
    signature = meta_graph.signature_def["serving_default"]
    inputs, outputs = sorted(signature.inputs), sorted(signature.outputs)
    call = session.make_callable(
        [signature.outputs[name].name for name in outputs], feed_list=[signature.inputs[name].name for name in inputs]
    )
    dtypes = {name: tf.as_dtype(signature.inputs[name].dtype).as_numpy_dtype for name in inputs}
    return BareModel(dtypes, outputs, call)


def measure_session(
    model: BareModel, inputs: dict[str, np.ndarray], threads: int, warmup_seconds: float, seconds: float
) -> Recorder:
    """Call from `threads` threads to the end of the window."""
    recorder = Recorder(warmup_seconds, seconds)
    lock = threading.Lock()
    arguments = [inputs[name] for name in model.inputs]

    def call_repeatedly() -> None:
        sent = time.perf_counter()
        while not recorder.is_over(sent):
            model.call(*arguments)
            now = time.perf_counter()
            with lock:
                recorder.add_answer(sent, now, b"")  # the answers come from the model that defines what is right
            sent = time.perf_counter()

    callers = [threading.Thread(target=call_repeatedly) for _ in range(threads)]
    for caller in callers:
        caller.start()
    for caller in callers:
        caller.join()
    return recorder


def main() -> None:
    """Prints one Measurement as JSON for each concurrency: loading TensorFlow takes longer than measuring it."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", required=True, help="a version folder")
    parser.add_argument("--inputs", required=True, help="an .npz file with one array for each input")
    parser.add_argument("--concurrency", type=int, nargs="+", default=[1], help="numbers of threads")
    parser.add_argument("--seconds", type=float, default=5.0)
    parser.add_argument("--warmup-seconds", type=float, default=1.0)
    options = parser.parse_args()
    with np.load(options.inputs) as file:
        inputs = dict(file)
    model = load_model(options.model)
    for threads in options.concurrency:
        recorder = measure_session(model, inputs, threads, options.warmup_seconds, options.seconds)
        measurement = recorder.summarize()
        measurement.answers.clear()
        print(measurement.to_json())


if __name__ == "__main__":
    main()
