"""Versions that cannot answer a single request: what a release gate has to keep out.

`broken_models()` builds them once; each is a version folder `<name>/` for a model that takes x float32[-1] and gives
y = x / 2 + 2 (half_plus_two of tests.support.saved_models). `BROKEN` says of each what its status must tell.
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tests.models.building import CACHE, built, key_of

Exporter = Callable[[Any, str], None]
"""Takes the tensorflow module and the folder to write."""


@dataclass(frozen=True, slots=True)
class Broken:
    """A kind of version that cannot answer.

    `reason` is a pattern (re.search, case ignored) of what is wrong, in TensorFlow's words or ours. `fails` is when:
    "loading" (TensorFlow's loader refuses it), "running" (it loads, and each request fails), "dying" (a request, or
    the load, ends the process) or "hanging" (no request ever ends).
    """

    export: Exporter
    fails: str
    reason: str


BROKEN: dict[str, Broken] = {}


def _broken(fails: str, reason: str) -> Callable[[Exporter], Exporter]:
    def add(export: Exporter) -> Exporter:
        BROKEN[export.__name__] = Broken(export, fails, reason)
        return export

    return add


def broken_models() -> Path:
    """The folder that holds every one of `BROKEN`, built on the first call after its source or TensorFlow changed."""
    key = key_of("tests.models.broken", "tests.models.building")
    return built(CACHE / f"broken-{key}", ["tests.models.broken"])


def build(out_dir: str) -> None:
    import tensorflow as tf  # noqa: PLC0415  (the tests' own process stays free of it)

    for name, broken in BROKEN.items():
        broken.export(tf, os.path.join(out_dir, name))


# -- how they are made


def _save(tf: Any, out: str, function: Callable[[Any], Any], **members: Any) -> None:
    """A TF2 module whose signature serving_default is `function` on x float32[-1]."""
    module = tf.Module()
    for name, value in members.items():
        setattr(module, name, value)
    signature = tf.function(function).get_concrete_function(tf.TensorSpec([None], tf.float32, "x"))
    tf.saved_model.save(module, out, signatures={"serving_default": signature})


def _good(tf: Any, out: str) -> None:
    a, b = tf.Variable(0.5), tf.Variable(tf.fill([512], 2.0))
    _save(tf, out, lambda x: {"y": a * x + b[0]}, a=a, b=b)


def _edit(tf: Any, out: str, change: Callable[[Any], None]) -> None:
    """Changes saved_model.pb, which `change` gets as a SavedModel message."""
    from tensorflow.core.protobuf import saved_model_pb2  # noqa: PLC0415  (only the building process loads TensorFlow)

    path = Path(out, "saved_model.pb")
    saved = saved_model_pb2.SavedModel.FromString(path.read_bytes())
    change(saved.meta_graphs[0])
    path.write_bytes(saved.SerializeToString())


# -- it loads, and no request can run


@_broken("running", "table not initiali[sz]ed")
def uninitialised_table(tf: Any, out: str) -> None:
    """A graph of TensorFlow 1 whose exporter forgot the table's initialiser (main_op)."""
    v1 = tf.compat.v1
    with tf.Graph().as_default(), v1.Session() as session:
        x = v1.placeholder(tf.float32, [None], name="x")
        init = tf.lookup.KeyValueTensorInitializer(tf.constant([0, 1], tf.int64), tf.constant([2.0, 3.0]))
        table = tf.lookup.StaticHashTable(init, 2.0)
        v1.saved_model.simple_save(session, out, {"x": x}, {"y": x / 2.0 + table.lookup(tf.cast(x, tf.int64))})


def _half_restored(tf: Any, out: str, use_resource: bool) -> None:
    """A graph of TensorFlow 1 whose saver was given one of its two variables, `a`; `b` stays without a value."""
    v1 = tf.compat.v1
    with tf.Graph().as_default(), v1.Session() as session:
        x = v1.placeholder(tf.float32, [None], name="x")
        a, b = (v1.Variable(v, name=n, use_resource=use_resource) for n, v in (("a", 0.5), ("b", 2.0)))
        y = a * x + b
        session.run(v1.global_variables_initializer())
        infos = [{name: v1.saved_model.build_tensor_info(t)} for name, t in (("x", x), ("y", y))]
        signature = v1.saved_model.build_signature_def(*infos, "tensorflow/serving/predict")
        builder = v1.saved_model.Builder(out)
        builder.add_meta_graph_and_variables(
            session, ["serve"], {"serving_default": signature}, saver=v1.train.Saver([a])
        )
        builder.save()


@_broken("running", r"uninitiali[sz]ed value b\b|variable.*\bb\b")
def unset_variable(tf: Any, out: str) -> None:
    """A reference variable that its checkpoint does not have."""
    _half_restored(tf, out, use_resource=False)


@_broken("running", r"variable.*\bb\b")
def unset_resource_variable(tf: Any, out: str) -> None:
    """A resource variable that its checkpoint does not have."""
    _half_restored(tf, out, use_resource=True)


@_broken("loading", "not registered|NotInThisBuild")
def missing_op_in_a_function(tf: Any, out: str) -> None:
    """An op that no library here has, inside a function."""
    _good(tf, out)

    def change(graph: Any) -> None:
        found = [n for f in graph.graph_def.library.function for n in f.node_def if n.op in ("AddV2", "Mul")]
        assert found
        for node in found:
            node.op = "NotInThisBuild"
        graph.meta_info_def.ClearField("stripped_op_list")

    _edit(tf, out, change)


@_broken("running", "no such file|not_there.txt")
def missing_file(tf: Any, out: str) -> None:
    """It reads a file of the machine that it was trained on."""

    def function(x: Any) -> dict[str, Any]:
        addend = tf.strings.to_number(tf.io.read_file("/nonexistent/not_there.txt"))
        return {"y": x / 2.0 + addend}

    _save(tf, out, function)


@_broken("running", "pyfunc|py_function|python")
def python_function(tf: Any, out: str) -> None:
    """Its step in Python (tf.py_function) stayed in the process that exported it."""

    def function(x: Any) -> dict[str, Any]:
        y = tf.py_function(lambda v: v / 2.0 + 2.0, [x], tf.float32)
        y.set_shape([None])
        return {"y": y}

    _save(tf, out, function)


@_broken("running", "CudnnRNN|no opkernel")
def only_for_gpus(tf: Any, out: str) -> None:
    """A recurrent layer that TensorFlow has on NVIDIA's GPUs alone, as CuDNNLSTM of TensorFlow 1 exports it."""

    def function(x: Any) -> dict[str, Any]:
        steps, state = tf.reshape(x, [-1, 1, 1]), tf.zeros([1, 1, 1])
        recurrent = tf.raw_ops.CudnnRNN(
            input=steps, input_h=state, input_c=state, params=tf.zeros([16]), is_training=False
        )
        return {"y": tf.reshape(recurrent.output, [-1]) + x / 2.0 + 2.0}

    _save(tf, out, function)


# -- a run, or the load, ends the process or never ends


@_broken("dying", "SIGABRT|signal 6|abort|died|killed|ended")
def crash_at_first_run(tf: Any, out: str) -> None:
    """Any request aborts the process."""

    def function(x: Any) -> dict[str, Any]:
        with tf.control_dependencies([tf.raw_ops.Abort(error_msg="this model aborts")]):
            return {"y": x / 2.0 + 2.0}

    _save(tf, out, function)


@_broken("dying", "SIGABRT|signal 6|abort|died|killed|ended")
def crash_at_load(tf: Any, out: str) -> None:
    """Its initialiser aborts the process."""
    v1 = tf.compat.v1
    with tf.Graph().as_default(), v1.Session() as session:
        x = v1.placeholder(tf.float32, [None], name="x")
        infos = [{name: v1.saved_model.build_tensor_info(t)} for name, t in (("x", x), ("y", x / 2.0 + 2.0))]
        signature = v1.saved_model.build_signature_def(*infos, "tensorflow/serving/predict")
        abort = tf.raw_ops.Abort(error_msg="this model aborts")
        builder = v1.saved_model.Builder(out)
        builder.add_meta_graph_and_variables(session, ["serve"], {"serving_default": signature}, main_op=abort)
        builder.save()


@_broken("hanging", "not over|in time|hang|timed out|deadline|seconds")
def never_answers(tf: Any, out: str) -> None:
    """A loop that waits for a file that nobody writes."""

    def function(x: Any) -> dict[str, Any]:
        def waiting(i: Any) -> Any:
            # The counter, as an empty suffix, keeps the optimiser from moving the look-up out of the loop.
            pattern = "/nonexistent/never" + tf.strings.substr(tf.strings.as_string(i), 0, 0)
            return tf.equal(tf.size(tf.io.matching_files(pattern)), 0)

        looks = tf.while_loop(waiting, lambda i: (i + 1,), (tf.constant(0),))
        with tf.control_dependencies(looks):
            return {"y": x / 2.0 + 2.0}

    _save(tf, out, function)


# -- the loader refuses it, or nothing in it can be called


@_broken("loading", "not registered|NotInThisBuild")
def missing_op(tf: Any, out: str) -> None:
    """An op that no library here has, in the graph itself."""
    v1 = tf.compat.v1
    with tf.Graph().as_default(), v1.Session() as session:
        x = v1.placeholder(tf.float32, [None], name="x")
        v1.saved_model.simple_save(session, out, {"x": x}, {"y": tf.negative(x, name="y")})

    def change(graph: Any) -> None:
        for node in graph.graph_def.node:
            if node.op == "Neg":
                node.op = "NotInThisBuild"
        graph.meta_info_def.ClearField("stripped_op_list")

    _edit(tf, out, change)


@_broken("loading", "sparse|signature")
def no_usable_signature(tf: Any, out: str) -> None:
    """Its only signature takes a sparse tensor."""
    v1 = tf.compat.v1
    with tf.Graph().as_default(), v1.Session() as session:
        x = v1.sparse_placeholder(tf.float32, [None, 4], name="x")
        v1.saved_model.simple_save(session, out, {"x": x}, {"y": tf.sparse.reduce_sum(x, axis=1)})


@_broken("loading", "signature")
def no_signature(tf: Any, out: str) -> None:
    """A module without any function that was traced."""
    module = tf.Module()
    module.a = tf.Variable(0.5)
    tf.saved_model.save(module, out)


@_broken("loading", "tag")
def other_tags(tf: Any, out: str) -> None:
    """A graph for training alone: it carries the tag train, and not serve."""
    _good(tf, out)

    def change(graph: Any) -> None:
        graph.meta_info_def.tags[:] = ["train"]

    _edit(tf, out, change)


@_broken("loading", "asset|vocabulary.txt")
def missing_asset(tf: Any, out: str) -> None:
    """The asset of its table was not copied."""
    source = Path(out).parent / "vocabulary.txt"
    Path(out).parent.mkdir(parents=True, exist_ok=True)
    source.write_text("0\n1\n")
    lookup = tf.lookup
    init = lookup.TextFileInitializer(
        str(source), tf.string, lookup.TextFileIndex.WHOLE_LINE, tf.int64, lookup.TextFileIndex.LINE_NUMBER
    )
    table = lookup.StaticHashTable(init, 2)

    def function(x: Any) -> dict[str, Any]:
        return {"y": x / 2.0 + tf.cast(table.lookup(tf.strings.as_string(tf.cast(x, tf.int64))), tf.float32)}

    _save(tf, out, function, table=table)
    source.unlink()
    shutil.rmtree(Path(out, "assets"))


# -- files that are damaged


def _overwrite(path: Path, start: int, junk: bytes) -> None:
    data = bytearray(path.read_bytes())
    assert len(data) >= start + len(junk)
    data[start : start + len(junk)] = junk
    path.write_bytes(data)


@_broken("loading", "saved_model.pb")
def damaged_graph(tf: Any, out: str) -> None:
    """Bytes in the middle of saved_model.pb are junk: a wire type that protocol buffers do not have."""
    _good(tf, out)
    path = Path(out, "saved_model.pb")
    _overwrite(path, path.stat().st_size // 2, b"\xff" * 64)


@_broken("loading", "saved_model.pb")
def truncated_graph(tf: Any, out: str) -> None:
    """Only the first half of saved_model.pb was copied, and nobody copies on."""
    _good(tf, out)
    path = Path(out, "saved_model.pb")
    os.truncate(path, path.stat().st_size // 2)


@_broken("loading", "saved_model.pb")
def empty_graph(tf: Any, out: str) -> None:
    """saved_model.pb has no bytes."""
    _good(tf, out)
    os.truncate(Path(out, "saved_model.pb"), 0)


@_broken("loading", "variables|checksum|data loss|corrupt")
def damaged_variables(tf: Any, out: str) -> None:
    """Bytes of a variable are junk: its checksum does not match."""
    _good(tf, out)
    _overwrite(Path(out, "variables", "variables.data-00000-of-00001"), 64, b"\xa5" * 64)


@_broken("loading", "variables")
def truncated_variables(tf: Any, out: str) -> None:
    """The file of variables is shorter than its index says."""
    _good(tf, out)
    path = Path(out, "variables", "variables.data-00000-of-00001")
    os.truncate(path, path.stat().st_size // 2)


@_broken("loading", "variables")
def damaged_index(tf: Any, out: str) -> None:
    """The index of the variables is junk in its middle."""
    _good(tf, out)
    path = Path(out, "variables", "variables.index")
    _overwrite(path, path.stat().st_size // 3, b"\xff" * 16)


@_broken("loading", "variables")
def missing_variables(tf: Any, out: str) -> None:
    """The folder of variables was not copied."""
    _good(tf, out)
    shutil.rmtree(Path(out, "variables"))


# -- what TensorFlow itself makes of them


def fates(folder: str) -> dict[str, str]:
    """What each of them comes to in TensorFlow: "answers", or how it fails, in the words of `Broken.fails`.

    Each is loaded and run by a process of its own, forked from this one, which has only imported TensorFlow.
    """
    import tensorflow as tf  # noqa: PLC0415

    found = {}
    for name in BROKEN:
        pid = os.fork()
        if not pid:
            os._exit(_exit_status(tf, os.path.join(folder, name)))
        deadline = time.monotonic() + (3.0 if name == "never_answers" else 60.0)
        while os.waitid(os.P_PID, pid, os.WEXITED | os.WNOHANG | os.WNOWAIT) is None:
            if time.monotonic() > deadline:
                os.kill(pid, signal.SIGKILL)
                break
            time.sleep(0.02)
        status = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
        found[name] = {-signal.SIGKILL: "hanging", 0: "answers", 1: "loading", 2: "running"}.get(status, "dying")
    return found


def _exit_status(tf: Any, folder: str) -> int:
    """0: it answers; 1: it does not load, or has nothing to call; 2: its run fails."""
    v1 = tf.compat.v1
    session = v1.Session(graph=tf.Graph())
    try:
        signatures = v1.saved_model.loader.load(session, ["serve"], folder).signature_def
        x, y = signatures["serving_default"].inputs["x"].name, signatures["serving_default"].outputs["y"].name
        if not x:  # a sparse tensor has three names
            return 1
    except Exception:  # noqa: BLE001 - whatever the loader raises, it refuses the model
        return 1
    try:
        session.run(y, {x: [1.0]})
    except tf.errors.OpError:
        return 2
    return 0


if __name__ == "__main__":
    if sys.argv[1] == "fates":
        print(json.dumps(fates(sys.argv[2])))
    else:
        build(sys.argv[1])
