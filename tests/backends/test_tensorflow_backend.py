"""TensorFlow as a backend: what it loads, carries and refuses. Imports TensorFlow into the tests' own process."""

from __future__ import annotations

import gc
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import ml_dtypes
import msgspec
import numpy as np
import pytest
import tensorflow as tf

from backends import registry, tensorflow_backend
from backends.contract import Backend, BackendError, Code, Signature, TensorSpec
from backends.dtypes import BY_NUMPY, DTYPES, DType
from backends.tensorflow_loading import backend_error
from tests.support.op_library import needing
from tests.support.saved_models import model_zoo
from tests.support.tables import SNAPPY, blocks_of, copies, literals, table_of

SERVING = "serving_default"


@pytest.fixture(scope="module")
def zoo() -> Path:
    return model_zoo()


@pytest.fixture(scope="module", autouse=True)
def _threads(zoo: Path) -> None:
    """A held execution of the model gate keeps one of TensorFlow's inter-op threads, which one core has one of."""
    tensorflow_backend.load(str(zoo / "tf1_no_variables"), inter_op_threads=4)


@pytest.fixture(scope="module")
def load(zoo: Path) -> Callable[[str], Backend]:
    """Loads a model of the zoo, once for all tests."""
    loaded: dict[str, Backend] = {}

    def load_once(name: str) -> Backend:
        if name not in loaded:
            loaded[name] = tensorflow_backend.load(str(zoo / name))
        return loaded[name]

    return load_once


def floats(*values: object) -> np.ndarray:
    return np.array(values, np.float32)


def texts(*values: bytes) -> np.ndarray:
    return np.array(values, object)


def refusal(backend: Backend, signature: str, inputs: dict[str, np.ndarray], *outputs: str) -> BackendError:
    with pytest.raises(BackendError) as caught:
        backend.run(signature, inputs, outputs)
    return caught.value


# --- What it loads


@pytest.mark.parametrize("name", ["half_plus_two", "tiny_tf2"])
def test_half_plus_two_of_either_generation(load: Callable[[str], Backend], name: str) -> None:
    (y,) = load(name).run(SERVING, {"x": floats(1, 2, 5)}, ["y"])
    np.testing.assert_array_equal(y, floats(2.5, 3, 4.5))


def test_signature_tells_names_types_shapes_and_method(load: Callable[[str], Backend]) -> None:
    signatures = load("half_plus_two").signatures
    assert sorted(signatures) == ["classify_x_to_label", "classify_x_to_y", "regress_x_to_y", SERVING]
    assert signatures["classify_x_to_label"] == Signature(
        {"inputs": TensorSpec("string", (-1,), "tf_example:0")},
        {"classes": TensorSpec("string", (-1, 2), "classes:0"), "scores": TensorSpec("float32", (-1, 2), "scores:0")},
        "tensorflow/serving/classify",
    )


def test_initialiser_is_no_signature(load: Callable[[str], Backend]) -> None:
    assert sorted(load("multi_io").signatures) == ["constant", SERVING, "swapped"]


@pytest.mark.parametrize("name", ["keras2", "keras3"])
def test_keras_export_with_its_trained_weights(load: Callable[[str], Backend], name: str) -> None:
    backend = load(name)
    signature = backend.signatures[SERVING]
    (output,) = backend.run(SERVING, dict.fromkeys(signature.inputs, np.ones((5, 4), np.float32)), [*signature.outputs])
    assert output.shape == (5, 3)
    assert np.ptp(output[0]) > 0


def test_table_is_filled_from_its_asset(load: Callable[[str], Backend]) -> None:
    (ids,) = load("assets_vocab").run(SERVING, {"words": texts(b"gamma", b"alpha", b"nope")}, ["ids"])
    assert ids.tolist() == [2, 0, -1]


@pytest.mark.parametrize("encode", [literals, copies])
def test_compressed_index_of_variables_as_older_exporters_wrote_it(
    zoo: Path, tmp_path: Path, encode: Callable[[bytes], bytes]
) -> None:
    model = Path(shutil.copytree(zoo / "half_plus_two", tmp_path / "m"))
    index = model / "variables/variables.index"
    index.write_bytes(table_of(*((encode(block), SNAPPY) for block in blocks_of(index.read_bytes()))))
    (y,) = tensorflow_backend.load(str(model)).run(SERVING, {"x": floats(1, 2, 5)}, ["y"])
    np.testing.assert_array_equal(y, floats(2.5, 3, 4.5))


def test_split_form_is_refused_with_a_remedy(tmp_path: Path) -> None:
    (tmp_path / "saved_model.cpb").write_bytes(b"riegeli")
    with pytest.raises(BackendError, match=r"does not exist.*experimental_image_format"):
        tensorflow_backend.load(str(tmp_path))


def test_unknown_tags_are_refused_with_those_there_are(zoo: Path) -> None:
    with pytest.raises(BackendError, match=r"'x'.*available tags '\[{'serve'}\]'"):
        tensorflow_backend.load(str(zoo / "tiny_tf2"), ("x",))


@pytest.mark.parametrize("name", ["tiny_tf2", "half_plus_two"])
def test_unknown_op_is_named(zoo: Path, tmp_path: Path, name: str) -> None:
    model = Path(shutil.copytree(zoo / name, tmp_path / name))
    graph = model / "saved_model.pb"
    graph.write_bytes(graph.read_bytes().replace(b"AddV2", b"MyAdd"))
    with pytest.raises(BackendError, match="Op type not registered 'MyAdd'"):
        tensorflow_backend.load(str(model))


@pytest.mark.parametrize("name", ["tiny_tf2", "half_plus_two"])
def test_all_unknown_ops_are_named_at_once_with_what_to_do(zoo: Path, tmp_path: Path, name: str) -> None:
    model = needing(zoo / name, tmp_path / name, (b"AddV2", b"IO>Up"), (b"Mul", b"Mux"))
    with pytest.raises(BackendError) as caught:
        tensorflow_backend.load(str(model))
    assert caught.value.message.startswith(f"cannot load {model}: Op type not registered 'IO>Up', 'Mux': they are not ")
    assert "TensorFlow I/O has 'IO>Up' (tensorflow-io on PyPI; " in caught.value.message
    assert "A library of custom operators has 'Mux'. Write the libraries' files, built for " in caught.value.message
    assert "contrib" not in caught.value.message


def test_library_that_others_may_write_by_now_is_not_loaded(zoo: Path, tmp_path: Path) -> None:
    library = tmp_path / "x.so"
    library.touch()
    library.chmod(0o666)
    with pytest.raises(BackendError, match=f"op_libraries: {library} may be written by others") as caught:
        registry.load(
            "tensorflow",
            str(zoo / "tiny_tf2"),
            tags=["serve"],
            intra_op_threads=0,
            inter_op_threads=0,
            libraries=[str(library)],
        )
    assert caught.value.code is Code.FAILED_PRECONDITION


@pytest.mark.parametrize(
    ("file", "code"),
    [
        ("saved_model.pb", Code.INVALID_ARGUMENT),
        ("variables/variables.data-00000-of-00001", Code.OUT_OF_RANGE),
        ("variables/variables.index", Code.DATA_LOSS),
    ],
)
def test_cut_file_is_refused(zoo: Path, tmp_path: Path, file: str, code: Code) -> None:
    model = Path(shutil.copytree(zoo / "tiny_tf2", tmp_path / "m"))
    os.truncate(model / file, 20 if "data" not in file else 2)
    with pytest.raises(BackendError) as caught:
        tensorflow_backend.load(str(model))
    assert caught.value.code is code
    assert str(model) in caught.value.message
    assert "Traceback" not in caught.value.message


def test_damaged_variable_is_data_loss(zoo: Path, tmp_path: Path) -> None:
    model = Path(shutil.copytree(zoo / "half_plus_two", tmp_path / "m"))
    data = model / "variables/variables.data-00000-of-00001"
    data.write_bytes(bytes(data.stat().st_size))
    with pytest.raises(BackendError, match=r"(?i)checksum") as caught:
        tensorflow_backend.load(str(model))
    assert caught.value.code is Code.DATA_LOSS


def test_missing_asset_is_named_without_a_python_trace(zoo: Path, tmp_path: Path) -> None:
    model = Path(shutil.copytree(zoo / "assets_vocab", tmp_path / "m"))
    (model / "assets/vocab.txt").unlink()
    with pytest.raises(
        BackendError, match=re.escape(f"cannot load {model}: {model}/assets/vocab.txt; No such")
    ) as caught:
        tensorflow_backend.load(str(model))
    assert caught.value.code is Code.NOT_FOUND
    assert "most recent call last" not in caught.value.message


@pytest.mark.timeout(60)
def test_an_error_that_quotes_a_long_text_is_told_at_once_and_cut() -> None:
    quoted = "could not convert string: " + "\n" * 1_000_000
    told = backend_error(tf.errors.InvalidArgumentError(None, None, quoted))
    assert told.message.startswith("could not convert string:")
    assert len(told.message) < 20_000


def test_sparse_signature_is_set_aside_with_its_reason(zoo: Path) -> None:
    session = tf.compat.v1.Session(graph=tf.Graph())
    meta_graph = tf.compat.v1.saved_model.loader.load(session, ["serve"], str(zoo / "half_plus_two"))
    sparse = meta_graph.signature_def["sparse"]
    sparse.CopyFrom(meta_graph.signature_def[SERVING])
    sparse.inputs["x"].coo_sparse.values_tensor_name = "x:0"
    resource = meta_graph.signature_def["resource"]
    resource.CopyFrom(meta_graph.signature_def[SERVING])
    resource.inputs["x"].dtype = tf.resource.as_datatype_enum
    backend = tensorflow_backend.TensorFlowBackend(session, meta_graph)
    assert SERVING in backend.signatures
    assert backend.unsupported.keys() == {"sparse", "resource"}
    assert "not dense" in refusal(backend, "sparse", {}, "y").message


def test_variable_of_the_graph_days_is_served_as_its_base_type(zoo: Path) -> None:
    backend = tensorflow_backend.load(str(zoo / "counter"))
    assert not backend.unsupported
    assert backend.signatures["get_counter"].outputs["output"] == TensorSpec("float32", (), "counter:0", True)
    assert backend.signatures["get_counter"].inputs["nothing"] == TensorSpec("int32", (-1,), "nothing:0")
    nothing = {"nothing": np.zeros(0, np.int32)}

    def asked(signature: str, inputs: dict[str, np.ndarray] = nothing) -> float:
        (output,) = backend.run(signature, inputs, ["output"])
        assert (output.dtype, output.shape) == (np.float32, ())
        return output.item()

    assert [asked("get_counter"), asked("incr_counter")] == [0.0, 1.0]
    assert asked("incr_counter_by", {"delta": np.array(2.5, np.float32)}) == 3.5
    assert asked("get_counter") == 3.5
    (doubled,) = backend.run("fed", {"counter": np.array(21, np.float32)}, ["doubled"])
    assert (doubled.item(), asked("get_counter"), asked("reset_counter")) == (42.0, 3.5, 0.0)


def test_answer_stays_when_its_variable_changes(zoo: Path) -> None:
    backend = tensorflow_backend.load(str(zoo / "counter"))
    nothing = {"nothing": np.zeros(0, np.int32)}
    (before,) = backend.run("get_many", nothing, ["output"])
    (after,) = backend.run("incr_many", nothing, ["output"])
    backend.run("incr_many", nothing, ["output"])
    assert (before.tolist(), after.tolist()) == ([0.0] * 4, [1.0] * 4)


@pytest.mark.parametrize("name", ["half_plus_two", "counter"])
def test_weights_can_be_moved_and_set_back(zoo: Path, name: str) -> None:
    backend = tensorflow_backend.load(str(zoo / name))
    inputs = {"x": floats(1, 2)} if name == "half_plus_two" else {"nothing": np.zeros(0, np.int32)}
    signature, output = (SERVING, "y") if name == "half_plus_two" else ("get_counter", "output")

    def answer() -> list[float]:
        (found,) = backend.run(signature, inputs, [output])
        return found.reshape(-1).tolist()

    own, before = backend.weights(), answer()
    assert own
    backend.set_weights([weights + 1 for weights in own])
    assert answer() != before
    backend.set_weights(own)
    assert answer() == before
    assert all(np.array_equal(one, other) for one, other in zip(backend.weights(), own, strict=True))


def test_a_model_without_variables_of_floats_has_no_weights(zoo: Path) -> None:
    assert tensorflow_backend.load(str(zoo / "tf1_no_variables")).weights() == []


def test_spec_of_a_reference_travels_as_one() -> None:
    for spec in (TensorSpec("float32", (), "counter:0", True), TensorSpec("float32", None, "x:0")):
        assert msgspec.convert(msgspec.to_builtins(spec), TensorSpec) == spec


# --- What it carries


@pytest.mark.parametrize("element", DTYPES, ids=lambda element: element.name)
@pytest.mark.parametrize("size", [0, 1, 3, 1000])
def test_every_element_type_goes_both_ways(load: Callable[[str], Backend], element: DType, size: int) -> None:
    values = [0, 1, 1, 0, 1] * 200
    x = texts(*[b"\x00\xff%d" % v for v in values[:size]]) if element.name == "string" else values[:size]
    x = np.array(x, element.numpy)
    y, double = load("dtypes").run(element.name, {"x": x}, ["y", "double"])
    for array, expected in ((y, x), (double, np.concatenate([x, x]))):
        assert BY_NUMPY[array.dtype] is element
        assert array.flags.c_contiguous
        assert array.shape == expected.shape
        assert array.tolist() == expected.tolist()


@pytest.mark.parametrize(
    "x",
    [
        np.array([np.iinfo(np.uint64).max], np.uint64),
        np.array([np.iinfo(np.int64).min], np.int64),
        np.array([np.iinfo(np.uint32).max], np.uint32),
        np.array([np.nan, np.inf, -0.0], ml_dtypes.bfloat16),
        np.array([np.nan, np.inf, 65504], np.float16),
        np.array([1 - 2j], np.complex128),
    ],
    ids=lambda x: x.dtype.name,
)
def test_extreme_values_survive(load: Callable[[str], Backend], x: np.ndarray) -> None:
    (y,) = load("dtypes").run(x.dtype.name, {"x": x}, ["y"])
    assert y.tobytes() == x.tobytes()


def test_strings_with_zero_bytes_and_any_encoding(load: Callable[[str], Backend]) -> None:
    text = texts(b"abc\0\0", b"", "é".encode(), b"\xff")
    upper, length, echo = load("strings").run(SERVING, {"text": text}, ["upper", "length", "echo_bytes"])
    assert echo.tolist() == text.tolist()
    assert upper.tolist() == [b"ABC\0\0", b"", "é".encode(), b"\xff"]
    assert length.tolist() == [5, 0, 2, 1]


def test_scalars_come_back_as_arrays_of_rank_0(load: Callable[[str], Backend]) -> None:
    inputs: dict[str, np.ndarray] = {
        "x": np.array(1.5, np.float32),
        "n": np.array(2**62, np.int64),
        "s": np.array(b"hi", object),
    }
    results = load("scalars").run(SERVING, inputs, ["y", "m", "t"])
    assert all(type(result) is np.ndarray and result.shape == () for result in results)
    assert [(result.dtype.name, result.item()) for result in results] == [
        ("float32", 3.0),
        ("int64", 2**62 + 1),
        ("object", b"hi!"),
    ]


def test_read_only_and_strided_inputs(load: Callable[[str], Backend]) -> None:
    x = np.arange(10, dtype=np.float32)[::3]
    x.flags.writeable = False
    (y,) = load("tiny_tf2").run(SERVING, {"x": x}, ["y"])
    np.testing.assert_array_equal(y, x / 2 + 2)


def test_outputs_never_share_the_callers_memory(load: Callable[[str], Backend]) -> None:
    # TensorFlow takes 64-byte aligned arrays as they are, and Identity passes them on.
    memory = np.zeros(4096 + 64, np.uint8)
    start = -memory.ctypes.data % 64
    x = memory[start : start + 4096].view(np.float32)
    for model, signature, output in (("dtypes", "float32", "y"), ("fed_and_fetched", SERVING, "same")):
        (y,) = load(model).run(signature, {"x": x}, [output])
        x[:] += 1
        np.testing.assert_array_equal(y, x - 1)


def test_outputs_come_in_the_order_asked_for_and_as_often(load: Callable[[str], Backend]) -> None:
    x = floats(1, 2)
    results = load("fed_and_fetched").run(SERVING, {"x": x}, ["twice", "same", "again", "same", "twice"])
    for result, factor in zip(results, (2, 1, 2, 1, 2), strict=True):
        np.testing.assert_array_equal(result, x * factor)
    assert load("fed_and_fetched").run(SERVING, {"x": x}, []) == []


def test_several_inputs_of_different_types(load: Callable[[str], Backend]) -> None:
    inputs = {"b": np.array([10, 20], np.int32), "a": floats([1, 2, 3], [4, 5, 6])}
    total, scaled = load("multi_io").run(SERVING, inputs, ["total", "scaled"])
    assert total.tolist() == [16, 35]
    assert scaled.tolist() == [[10, 20, 30], [80, 100, 120]]
    (same,) = load("multi_io").run("swapped", inputs, ["same_b"])
    assert same.tolist() == [10, 20]


def test_signature_without_inputs(load: Callable[[str], Backend]) -> None:
    (answer,) = load("multi_io").run("constant", {}, ["answer"])
    assert answer.item() == 42


def test_shape_is_judged_by_the_graph_not_by_the_signature(load: Callable[[str], Backend]) -> None:
    (y,) = load("half_plus_two").run(SERVING, {"x": floats([1], [2])}, ["y"])
    assert y.tolist() == [[2.5], [3.0]]


def test_many_output_filters_are_bounded(zoo: Path) -> None:
    backend = tensorflow_backend.load(str(zoo / "fed_and_fetched"))
    before = callables()
    for length in range(1, 200):
        (*_, y) = backend.run(SERVING, {"x": floats(1)}, ["twice"] * length)
        assert y.tolist() == [2.0]
    assert 0 < callables() - before <= 64


def callables() -> int:
    """How many callables of TensorFlow's sessions this process holds."""
    gc.collect()
    return sum(type(found).__qualname__ == "BaseSession._Callable" for found in gc.get_objects())


def test_threads_run_at_once_and_do_not_mix(load: Callable[[str], Backend], tmp_path: Path) -> None:
    # Two calls wait in the same graph: only a third, in its own thread, lets them go on.
    release = tmp_path / "release"
    gate, half = load("gate"), load("tiny_tf2")
    with ThreadPoolExecutor(8) as pool:
        held = [pool.submit(gate.run, SERVING, {"path": texts(os.fsencode(release))}, ["batch_size"]) for _ in range(2)]
        values = [floats(*range(n)) for n in range(50)]
        results = list(pool.map(lambda x: half.run(SERVING, {"x": x}, ["y"])[0], values))
        assert not any(call.done() for call in held)
        release.touch()
        assert [call.result(timeout=30)[0].tolist() for call in held] == [[1], [1]]
    for x, y in zip(values, results, strict=True):
        np.testing.assert_array_equal(y, x / 2 + 2)


# --- What it refuses


def test_assertion_in_the_graph_is_the_runtimes_message_alone(load: Callable[[str], Backend]) -> None:
    error = refusal(load("fails"), SERVING, {"x": floats(1, -1)}, "y")
    assert error.code is Code.INVALID_ARGUMENT
    assert error.message.startswith("assertion failed: [x must not be negative")
    assert ".py" not in error.message
    (y,) = load("fails").run(SERVING, {"x": floats(4)}, ["y"])
    assert y.tolist() == [2.0]


@pytest.mark.parametrize(
    ("model", "inputs", "message"),
    [
        ("multi_io", {"a": floats([1, 2, 3]), "b": np.zeros((7, 2, 2), np.int32)}, "must|shapes"),
        ("keras2", {"dense_input": np.ones((1, 2), np.float32)}, "Matrix size-incompatible"),
        ("keras2", {"dense_input": np.ones(4, np.float32)}, "not a matrix"),
        ("tiny_tf2", {"x": np.array([1], np.int32)}, "Type mismatch: actual int32 vs. expect float"),
        ("tiny_tf2", {"x": texts(b"1")}, "Type mismatch: actual string vs. expect float"),
        ("tiny_tf2", {}, "takes the inputs"),
        ("tiny_tf2", {"x": floats(1), "z": floats(1)}, "takes the inputs"),
        ("big_output", {"n": np.array(-1, np.int32)}, ">= 0"),
    ],
)
def test_wrong_value_is_an_invalid_argument(
    load: Callable[[str], Backend], model: str, inputs: dict[str, np.ndarray], message: str
) -> None:
    backend = load(model)
    error = refusal(backend, SERVING, inputs, *backend.signatures[SERVING].outputs)
    assert error.code is Code.INVALID_ARGUMENT
    assert re.search(message, error.message)


def test_example_that_does_not_parse_is_an_invalid_argument(load: Callable[[str], Backend]) -> None:
    error = refusal(load("half_plus_two"), "regress_x_to_y", {"inputs": texts(b"\xff\xff")}, "outputs")
    assert error.code is Code.INVALID_ARGUMENT
    assert "Could not parse example input, value: '\ufffd\ufffd'" in error.message


def test_unknown_signature_and_output(load: Callable[[str], Backend]) -> None:
    error = refusal(load("tiny_tf2"), "nope", {}, "y")
    assert (error.code, error.message) == (Code.FAILED_PRECONDITION, 'Serving signature key "nope" not found.')
    error = refusal(load("tiny_tf2"), SERVING, {"x": floats(1)}, "y", "nope")
    assert error.code is Code.INVALID_ARGUMENT
    assert "output tensor alias not found in signature: nope" in error.message


def test_crashing_op_ends_its_process(zoo: Path) -> None:
    script = (
        "import sys, numpy as np; from backends import tensorflow_backend as t; b = t.load(sys.argv[1]);"
        "run = lambda v: b.run('serving_default', {'x': np.array([v], 'f4')}, ['y']); run(1); print('ran', flush=True);"
        "run(-1); print('survived')"
    )
    command = [sys.executable, "-c", script, str(zoo / "crash_on_negative")]
    ended = subprocess.run(command, capture_output=True, check=False, cwd=Path(__file__).parents[2], timeout=60)
    assert (ended.returncode, ended.stdout) == (-6, b"ran\n")
