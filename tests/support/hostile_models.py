"""Models that do harm, of TensorFlow's stock operators: what a deployer could drop.

`hostile` does what its clients say, so that one server stands many attacks: each signature is one, on paths, addresses
and numbers that a test names. Nothing is done on what a warm-up makes up. The others do theirs when they are loaded.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import Any


def export_hostile(tf: Any, out: str) -> None:  # noqa: C901 - a function for each attack
    """Save the model to the folder `out`."""
    text = tf.TensorSpec([], tf.string)
    number = tf.TensorSpec([], tf.int64)
    nothing = tf.constant("")

    def named(path: Any) -> Any:
        return tf.strings.regex_full_match(path, "/.+")

    def read(path: Any) -> Any:
        return {"content_bytes": tf.cond(named(path), lambda: tf.io.read_file(path), lambda: nothing)}

    def glob(pattern: Any) -> Any:
        empty = tf.zeros([0], tf.string)
        return {"paths_bytes": tf.cond(named(pattern), lambda: tf.io.matching_files(pattern), lambda: empty)}

    def write(path: Any, content: Any) -> Any:
        def do() -> Any:
            with tf.control_dependencies([tf.io.write_file(path, content)]):
                return tf.identity(path)

        return {"written": tf.cond(named(path), do, lambda: nothing)}

    def save(path: Any) -> Any:
        def do() -> Any:
            saved = tf.raw_ops.SaveV2(prefix=path, tensor_names=["x"], shape_and_slices=[""], tensors=[tf.zeros([4])])
            with tf.control_dependencies([saved]):
                return tf.identity(path)

        return {"written": tf.cond(named(path), do, lambda: nothing)}

    def print_lines(lines: Any) -> Any:
        def body(line: Any) -> tuple[Any]:
            with tf.control_dependencies([tf.print("a line of a model that says much")]):
                return (line + 1,)

        (said,) = tf.while_loop(lambda line: line < tf.where(lines > 1000, lines, 0), body, [tf.constant(0, tf.int64)])
        return {"said": said}

    def exhaust(wanted: Any) -> Any:
        return {"held": _exhausted(tf, lambda: wanted > 1000)}

    def abort(wanted: Any) -> Any:
        def do() -> Any:
            with tf.control_dependencies([tf.raw_ops.Abort(error_msg="as was wanted", exit_without_error=False)]):
                return tf.identity(wanted)

        return {"wanted": tf.cond(wanted > 1000, do, lambda: wanted)}

    def hang(wanted: Any) -> Any:
        return {"wanted": tf.while_loop(lambda x: x > 1000, lambda x: (x + 1,), [wanted])[0]}

    def rows(count: Any) -> Any:
        """Rows without an element, which take no memory until somebody writes them down."""
        return {"rows": tf.zeros(tf.stack([tf.where(count > 1000, count, 1), 0]))}

    def strings(count: Any) -> Any:
        return {"strings": tf.fill([tf.where(count > 1000, count, 1)], "")}

    def scores(inputs: Any) -> Any:
        """Classify: eight million scores of an example that is long."""
        count = tf.where(tf.reduce_max(tf.strings.length(inputs)) > 1000, 8_000_000, 1)
        return {"scores": tf.zeros(tf.stack([tf.size(inputs), count]))}

    def connect(address: Any) -> Any:
        def do() -> Any:
            dataset = tf.data.Dataset.range(1)._variant_tensor
            return tf.raw_ops.RegisterDatasetV2(
                dataset=dataset,
                address=address,
                protocol="grpc",
                external_state_policy=0,
                requested_dataset_id="",
                element_spec="",
                metadata="",
            )

        return {"asked": tf.cond(tf.strings.regex_full_match(address, r"127\.0\.0\.1:\d+"), do, lambda: nothing)}

    attacks = {
        "read": (read, [text]),
        "glob": (glob, [text]),
        "write": (write, [text, text]),
        "save": (save, [text]),
        "print_lines": (print_lines, [number]),
        "exhaust": (exhaust, [number]),
        "abort": (abort, [number]),
        "hang": (hang, [number]),
        "rows": (rows, [number]),
        "strings": (strings, [number]),
        "scores": (scores, [tf.TensorSpec([None], tf.string)]),
        "connect": (connect, [text]),
    }
    signatures = {name: tf.function(do).get_concrete_function(*specs) for name, (do, specs) in attacks.items()}
    tf.saved_model.save(tf.Module(), out, signatures=signatures)


def _exhausted(tf: Any, goes_on: Callable[[], Any]) -> Any:
    """A number, for which a text is made twice as long again and again, as long as `goes_on` says so.

    Of a tensor's memory there would be said after ten seconds that there is no more.
    """
    start = [tf.strings.as_string(tf.range(1 << 10))]
    (long,) = tf.while_loop(lambda _: goes_on(), lambda text: (tf.strings.join([text, text]),), start)
    return tf.reduce_sum(tf.strings.length(long))


def export_writes_at_load(tf: Any, out: str, path: str) -> None:
    """Save y = x / 2 that writes the file `path` when it is loaded."""
    _export_with_harm(tf, out, lambda: tf.io.write_file(path, "harm"))


def export_exhausts_memory_at_load(tf: Any, out: str) -> None:
    """Save y = x / 2 that allocates without end when it is loaded."""
    _export_with_harm(tf, out, lambda: _exhausted(tf, lambda: tf.constant(True)).op)


def export_hangs_at_load(tf: Any, out: str) -> None:
    """Save y = x / 2 that computes without end when it is loaded."""
    _export_with_harm(tf, out, lambda: tf.while_loop(lambda x: x >= 0, lambda x: (x * 0,), [tf.constant(0)])[0].op)


def _export_with_harm(tf: Any, out: str, harm_of: Callable[[], Any]) -> None:
    """Save y = x / 2 that runs the operator that `harm_of` makes when it is loaded."""
    v1 = tf.compat.v1
    with tf.Graph().as_default(), v1.Session() as session:
        x = v1.placeholder(tf.float32, [None, 1], name="x")
        y = tf.multiply(x, 0.5, name="y")
        harm = harm_of()
        builder = v1.saved_model.Builder(out)
        signature = v1.saved_model.predict_signature_def({"x": x}, {"y": y})
        builder.add_meta_graph_and_variables(session, ["serve"], {"serving_default": signature}, main_op=harm)
        builder.save()


if __name__ == "__main__":
    import tensorflow as tf

    export_writes_at_load(tf, *sys.argv[1:])
