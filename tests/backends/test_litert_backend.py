"""LiteRT as a backend: what it loads, carries and refuses. Runs LiteRT in the tests' own process: a shape that crashes
it ends them."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import ml_dtypes
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from backends import litert_backend
from backends.contract import Backend, BackendError, Code, Placed, Signature, TensorSpec
from backends.dtypes import DTYPES, DType
from backends.form import FormDescription, FormSignature, write_form
from backends.interpreter_pool import InterpreterPool
from backends.litert_interpreters import refusing
from backends.registry import check_complete
from tests.support.saved_models import model_zoo

SERVING = "serving_default"


@pytest.fixture(scope="module")
def zoo() -> Path:
    return model_zoo()


@pytest.fixture(scope="module")
def load(zoo: Path) -> Callable[[str], Backend]:
    """Loads a model of the zoo, once for all tests, with two interpreters."""
    loaded: dict[str, Backend] = {}

    def load_once(name: str) -> Backend:
        if name not in loaded:
            loaded[name] = litert_backend.load(str(zoo / name), interpreters=2)
        return loaded[name]

    return load_once


def floats(*values: object) -> np.ndarray:
    return np.array(values, np.float32)


def refusal(backend: Backend, signature: str, inputs: dict[str, np.ndarray], *outputs: str) -> BackendError:
    with pytest.raises(BackendError) as caught:
        backend.run(signature, inputs, outputs)
    return caught.value


# -- signatures ------------------------------------------------------------------------------------------------


def test_every_signature_of_the_model_is_served_by_its_names(load: Callable[[str], Backend]) -> None:
    backend = load("lite")
    assert set(backend.signatures) == {SERVING, "multi"}
    multi = backend.signatures["multi"]
    assert multi.method_name == "tensorflow/serving/predict"
    assert multi.inputs == {
        "a": TensorSpec("float32", (-1, 3), "multi_a:0"),
        "b": TensorSpec("int32", (-1,), "multi_b:0"),
    }
    assert {name: (spec.dtype, spec.shape) for name, spec in multi.outputs.items()} == {
        "total": ("float32", (-1,)),
        "scaled": ("float32", (-1, 3)),
    }
    (y,) = backend.run(SERVING, {"x": floats(1, 2, 5)}, ["y"])
    assert y.tolist() == [3.5, 4.0, 5.5]
    a, b = floats([1, 2, 3], [4, 5, 6]), np.array([10, 20], np.int32)
    total, scaled, again = backend.run("multi", {"a": a, "b": b}, ["total", "scaled", "total"])
    assert total.tolist() == again.tolist() == [16.0, 35.0]
    assert scaled.tolist() == (a * b[:, None]).tolist()


def test_a_model_without_signatures_is_served_by_the_names_of_its_tensors(load: Callable[[str], Backend]) -> None:
    backend = load("lite_old")
    assert set(backend.signatures) == {SERVING}
    assert backend.signatures[SERVING].inputs == {"x": TensorSpec("float32", (1, 1), "x")}
    assert backend.signatures[SERVING].outputs == {"Identity": TensorSpec("float32", (1, 1), "Identity")}
    (y,) = backend.run(SERVING, {"x": floats([2])}, ["Identity"])
    assert y.tolist() == [[4.0]]


def test_where_no_signature_is_the_default_one_is_named_after_the_tensors(load: Callable[[str], Backend]) -> None:
    backend = load("lite_dtypes")
    assert {element.name for element in DTYPES} | {SERVING} == set(backend.signatures)
    ((name, spec),) = backend.signatures[SERVING].inputs.items()
    assert ":" not in name
    assert spec.tensor_name == f"{name}:0"
    x = np.array([1, 0, 1], spec.element.numpy)
    for _ in range(2):  # by tensor and by the signature's key in turn, on the same interpreters
        results = backend.run(SERVING, {name: x}, list(backend.signatures[SERVING].outputs))
        assert all((result.reshape(-1) == x).all() for result in results)
        assert (backend.run("int8", {"x": np.array([5], np.int8)}, ["y"])[0] == 5).all()


def test_a_signature_in_the_metadata_is_what_tensorflow_serving_reads(load: Callable[[str], Backend]) -> None:
    backend = load("lite_in_metadata")
    assert set(backend.signatures) == {SERVING}
    signature = backend.signatures[SERVING]
    assert signature.method_name == "tensorflow/serving/regress"
    assert signature.inputs == {"inputs": TensorSpec("float32", (-1, 1), "x")}  # what it says of the shape, it says
    assert signature.outputs == {"outputs": TensorSpec("float32", (1, 1), "Identity")}
    (y,) = backend.run(SERVING, {"inputs": floats([1], [5])}, ["outputs"])
    assert y.tolist() == [[3.5], [5.5]]


def test_names_that_a_signature_has_not_are_refused(load: Callable[[str], Backend]) -> None:
    backend = load("lite")
    error = refusal(backend, "nope", {"x": floats(1)}, "y")
    assert (error.code, error.message) == (Code.FAILED_PRECONDITION, 'Serving signature key "nope" not found.')
    error = refusal(backend, SERVING, {"z": floats(1)}, "y")
    assert error.code == Code.INVALID_ARGUMENT
    assert "['x']" in error.message
    error = refusal(backend, SERVING, {"x": floats(1)}, "nope")
    assert error.message.startswith(
        "output tensor alias not found in signature: nope Outputs expected to be in the set"
    )


# -- values ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("element", DTYPES, ids=lambda element: element.name)
def test_every_element_type_passes_in_and_out(load: Callable[[str], Backend], element: DType) -> None:
    if element.name == "string":
        x = np.array([b"", b"\xff\x00z\x00", "äöü".encode(), b"a" * 100_000], object)
    elif element.name == "bool":
        x = np.array([True, False, True])
    else:
        limits = ml_dtypes.finfo(element.numpy) if element.name in {"bfloat16", "float16"} else None
        x = np.array([0, 1, limits.max if limits else 2], element.numpy)
        x.setflags(write=False)
    backend = load("lite_dtypes")
    assert backend.signatures[element.name].inputs["x"].dtype == element.name
    y, column = backend.run(element.name, {"x": x}, ["y", "column"])
    assert y.dtype == column.dtype == element.numpy
    assert y.tolist() == x.tolist()
    assert column.tolist() == x.reshape(-1, 1).tolist()


def test_results_are_no_views_of_memory_that_the_next_request_overwrites(load: Callable[[str], Backend]) -> None:
    backend = load("lite")
    x = floats(1, 2)
    (first,) = backend.run(SERVING, {"x": x}, ["y"])
    x[:] = 100
    backend.run(SERVING, {"x": x}, ["y"])
    assert first.tolist() == [3.5, 4.0]


# -- shapes ----------------------------------------------------------------------------------------------------


def test_the_interpreter_is_resized_to_each_batch(load: Callable[[str], Backend]) -> None:
    backend = load("lite_conv")
    images = np.random.default_rng(1).random((9, 32, 32, 3), np.float32)
    alone = np.concatenate([backend.run(SERVING, {"image": image[None]}, ["mean"])[0] for image in images])
    for size in (9, 1, 4, 0, 7):
        (mean,) = backend.run(SERVING, {"image": images[:size]}, ["mean"])
        assert mean.shape == (size, 8)
        np.testing.assert_allclose(mean, alone[:size], rtol=1e-5)


def test_where_a_model_fixes_no_size_any_shape_is_tried(load: Callable[[str], Backend]) -> None:
    """TensorFlow Serving's own example feeds [3] to an input of [1, 1]."""
    backend = load("lite_old")
    for shape in ((3,), (), (2, 2), (0,), (1, 1)):
        (y,) = backend.run(SERVING, {"x": np.full(shape, 2, np.float32)}, ["Identity"])
        assert y.tolist() == np.full(shape, 4.0).tolist()


@pytest.mark.parametrize("name", ["lite_audio", "lite_long_audio"])
def test_audio_of_any_length_is_framed(load: Callable[[str], Backend], name: str) -> None:
    """What is no longer than a window has no frames for LiteRT's own kernels, and is refused by XNNPACK."""
    window = {"lite_audio": 512, "lite_long_audio": 40_000}[name]
    backend = load(name)
    for size in (window + 3 * 160, window, window - 1, 10 * window, window - 100, window - 1, window):
        (frames,) = backend.run(SERVING, {"samples": np.ones((2, size), np.float32)}, ["frames"])
        assert frames.shape == (2, max(0, (size - window) // 160 + 1), 1, 1)
        assert (frames == window).all()


def test_a_length_that_no_kernel_takes_is_refused_in_its_words_and_the_next_request_is_served(
    load: Callable[[str], Backend],
) -> None:
    backend = load("lite_audio")
    for _ in range(3):
        error = refusal(backend, SERVING, {"samples": np.ones((1, 100), np.float32)}, "frames")
        assert (error.code, error.message) == (Code.INVALID_ARGUMENT, "Node number 2 (CONV_2D) failed to prepare.")
        (frames,) = backend.run(SERVING, {"samples": np.ones((1, 512), np.float32)}, ["frames"])
        assert frames.tolist() == [[[[512.0]]]]


def test_a_model_of_which_no_made_up_size_can_be_planned_is_loaded_and_says_so(load: Callable[[str], Backend]) -> None:
    backend = load("lite_long_audio")
    assert isinstance(backend, Placed)
    (remark,) = backend.remarks
    assert "the shapes of the first request decide" in remark
    assert "CONV_2D" in remark
    for name in ("lite", "lite_old", "lite_audio", "lite_conv"):
        found = load(name)
        assert isinstance(found, Placed)
        assert found.remarks == ()


@pytest.mark.parametrize("shape", [(2, 4), (3,), (2, 3, 1), (), (0, 0)])
def test_a_shape_that_contradicts_the_model_is_refused(load: Callable[[str], Backend], shape: tuple[int, ...]) -> None:
    inputs = {"a": np.ones(shape, np.float32), "b": np.ones(2, np.int32)}
    error = refusal(load("lite"), "multi", inputs, "total")
    text = f"[{','.join(map(str, shape))}]"
    assert (error.code, error.message) == (
        Code.INVALID_ARGUMENT,
        f"input 'a' has the shape {text}; the model takes [-1,3]",
    )


def test_what_would_crash_or_overflow_is_refused(load: Callable[[str], Backend]) -> None:
    backend = load("lite")
    error = refusal(backend, SERVING, {"x": np.ones((1,) * 12, np.float32)}, "y")  # LiteRT 2.3 dies of it
    assert error.code == Code.INVALID_ARGUMENT
    assert "12 dimensions" in error.message
    error = refusal(backend, SERVING, {"x": np.ones((1 << 20, 0, 1 << 20), np.float32)}, "y")
    assert error.code == Code.INVALID_ARGUMENT
    assert "2,147,483,647 elements" in error.message


def test_inputs_that_do_not_fit_each_other_are_refused_and_the_next_request_is_served(
    load: Callable[[str], Backend],
) -> None:
    backend = load("lite")
    for _ in range(3):
        inputs = {"a": np.ones((2, 3), np.float32), "b": np.ones(5, np.int32)}
        assert refusal(backend, "multi", inputs, "total").code == Code.INVALID_ARGUMENT
        inputs["b"] = np.ones(2, np.int32)
        assert backend.run("multi", inputs, ["total"])[0].tolist() == [4.0, 4.0]


def test_an_error_tells_of_its_own_request_alone(load: Callable[[str], Backend]) -> None:
    """LiteRT never empties the buffer of its messages: the interpreter must be another."""
    backend = load("lite_gather")
    x = floats([1, 2], [3, 4])
    messages = {
        refusal(backend, SERVING, {"x": x, "index": np.array([index], np.int32)}, "rows").message
        for index in (7, 8, 9, 10)
    }
    assert messages == {"gather index out of bounds; Node number 0 (GATHER) failed to invoke."}
    (rows,) = backend.run(SERVING, {"x": x, "index": np.array([1, 0], np.int32)}, ["rows"])
    assert rows.tolist() == [[3.0, 4.0], [1.0, 2.0]]


SHAPES = st.lists(st.integers(0, 5), max_size=9).map(tuple)


@settings(max_examples=150, deadline=None)
@given(name=st.sampled_from(["lite", "lite_old", "lite_conv", "lite_gather", "lite_audio"]), data=st.data())
def test_no_shape_harms_the_process_or_the_next_request(name: str, data: st.DataObject) -> None:
    backend = FUZZED.setdefault(name, litert_backend.load(str(model_zoo() / name), interpreters=1))
    signature = data.draw(st.sampled_from(sorted(backend.signatures)))
    specs = backend.signatures[signature].inputs
    inputs = {key: np.zeros(data.draw(SHAPES), spec.element.numpy) for key, spec in specs.items()}
    outputs = list(backend.signatures[signature].outputs)
    code = Code.OK
    try:
        backend.run(signature, inputs, outputs)
    except BackendError as error:
        code = error.code
    assert code in {Code.OK, Code.INVALID_ARGUMENT}
    if name == "lite":
        (y,) = backend.run(SERVING, {"x": floats(1, 2, 5)}, ["y"])
        assert y.tolist() == [3.5, 4.0, 5.5]


FUZZED: dict[str, Backend] = {}


# -- interpreters ----------------------------------------------------------------------------------------------


def test_requests_run_side_by_side_without_mixing(load: Callable[[str], Backend]) -> None:
    backend = load("lite_conv")
    images = np.random.default_rng(2).random((16, 32, 32, 3), np.float32)
    alone = [backend.run(SERVING, {"image": image[None]}, ["mean"])[0][0] for image in images]

    def run(start: int) -> None:
        size = 1 + start % 5
        (mean,) = backend.run(SERVING, {"image": images[start : start + size]}, ["mean"])
        np.testing.assert_allclose(mean, alone[start : start + size], rtol=1e-5)

    with ThreadPoolExecutor(8) as pool:
        for future in [pool.submit(run, n % 11) for n in range(200)]:
            future.result(60)


def test_the_pool_makes_one_more_only_when_all_are_lent_and_never_too_many() -> None:
    numbers = iter(range(10))
    pool = InterpreterPool(lambda: next(numbers), 2, 0.05)
    for _ in range(3):
        with pool.borrow() as alone:
            assert alone == 0
    with pool.borrow() as first, pool.borrow() as second:
        assert {first, second} == {0, 1}
        with pytest.raises(BackendError, match="all 2 interpreters have been busy") as caught, pool.borrow():
            pass
        assert caught.value.code == Code.RESOURCE_EXHAUSTED
    with pool.borrow() as first, pool.borrow() as second:
        assert {first, second} == {0, 1}


def test_the_pool_drops_what_was_lent_to_who_failed() -> None:
    numbers = iter(range(10))
    pool = InterpreterPool(lambda: next(numbers), 1, 0.05)
    with pytest.raises(ValueError, match="of the borrower"), pool.borrow():
        raise ValueError("of the borrower")
    with pool.borrow() as second:
        assert second == 1


def test_the_pool_survives_what_cannot_be_made() -> None:
    results = iter([1, 0])
    pool = InterpreterPool(lambda: 1 // (1 - next(results)), 1, 0.05)
    with pytest.raises(ZeroDivisionError), pool.borrow():
        pass
    with pool.borrow() as made:
        assert made == 1


# -- what cannot be loaded -------------------------------------------------------------------------------------


def test_an_operator_that_litert_has_not_is_named_with_a_remedy(zoo: Path) -> None:
    with pytest.raises(BackendError) as caught:
        litert_backend.load(str(zoo / "lite_custom_op"))
    assert caught.value.code == Code.UNIMPLEMENTED
    assert "unresolved custom op: StringUpper" in caught.value.message
    assert "serve the SavedModel" in caught.value.message


def test_a_signature_without_an_operator_is_not_its_inputs_fault(load: Callable[[str], Backend]) -> None:
    backend = load("lite_custom_op_beside")
    text = {"text": np.array([b"a"], object)}
    assert backend.run(SERVING, text, ["y"])[0].tolist() == [b"a"]
    error = refusal(backend, "upper", text, "y")
    assert (error.code, "StringUpper" in error.message) == (Code.UNIMPLEMENTED, True)


@pytest.mark.parametrize(
    ("said", "code"),
    [
        ("Type INT16 is unsupported by op Cast.Node number 3 (CAST) failed to prepare.", Code.UNIMPLEMENTED),
        ("Currently BatchMatMul doesn't support type: INT64Node number 0 (BATCH_MATMUL) failed", Code.UNIMPLEMENTED),
        ("Indices of type 'FLOAT32' are not supported by gather_nd.", Code.UNIMPLEMENTED),
        ("a.cc:9 variable != nullptr was not true.Node number 1 (READ_VARIABLE) failed", Code.FAILED_PRECONDITION),
        ("gather index out of boundsNode number 0 (GATHER) failed to invoke.", Code.INVALID_ARGUMENT),
        ("a.cc:77 num_input_elements != num_output_elements (6 != 4)", Code.INVALID_ARGUMENT),
    ],
)
def test_the_words_of_litert_say_whose_fault_it_is(said: str, code: Code) -> None:
    with pytest.raises(BackendError) as caught, refusing():
        raise RuntimeError(said)
    assert caught.value.code == code


def test_a_file_that_went_or_is_no_model_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(BackendError, match=r"model\.tflite is missing"):
        litert_backend.load(str(tmp_path))
    (tmp_path / "model.tflite").write_bytes(b"\x1c\0\0\0nope" + bytes(100))
    with pytest.raises(BackendError, match=f"cannot load {tmp_path}") as caught:
        litert_backend.load(str(tmp_path))
    assert caught.value.code == Code.INTERNAL


# -- converted models ------------------------------------------------------------------------------------------


def converted(zoo: Path, folder: Path, source: str, *entries: FormSignature) -> Backend:
    """A folder as a converter leaves it, with the file of a model of the zoo, loaded."""
    shutil.copy(zoo / source / "model.tflite", folder / "0.tflite")
    found = {f"s{number}": entry for number, entry in enumerate(entries)}
    write_form(str(folder), FormDescription("tflite", "float32", found))
    check_complete("litert", str(folder))
    return litert_backend.load(str(folder), interpreters=2)


def test_a_converted_model_presents_the_signatures_that_it_was_made_of(zoo: Path, tmp_path: Path) -> None:
    signature = Signature(
        {"in": TensorSpec("float32", (1, 1), "in:0"), "unused": TensorSpec("int64", (), "u:0")},
        {"out": TensorSpec("float32", None, "PartitionedCall:0")},
        "my/method",
    )
    entry = FormSignature("0.tflite", signature, {"in": "x"}, {"out": "Identity"})
    backend = converted(zoo, tmp_path, "lite_old", entry, entry)
    assert backend.signatures == {"s0": signature, "s1": signature}
    inputs = {"in": floats([2]), "unused": np.array(1)}
    for name in backend.signatures:
        assert backend.run(name, inputs, ["out"])[0].tolist() == [[4.0]]
    assert "takes the inputs" in refusal(backend, "s0", {"in": inputs["in"]}, "out").message


def test_a_size_of_one_is_no_unknown_size_in_a_converted_model(zoo: Path, tmp_path: Path) -> None:
    known, unknown = (
        FormSignature(
            "0.tflite",
            Signature({"in": TensorSpec("float32", shape)}, {"out": TensorSpec("float32", None)}),
            {"in": "x"},
            {"out": "Identity"},
        )
        for shape in ((1, 1), None)
    )
    backend = converted(zoo, tmp_path, "lite_old", known, unknown)
    for x in (floats(2), floats([2], [4])):
        assert "the model takes [1,1]" in refusal(backend, "s0", {"in": x}, "out").message
        assert backend.run("s1", {"in": x}, ["out"])[0].shape == x.shape


def test_a_converted_file_with_one_signature_is_mapped_by_its_names(zoo: Path, tmp_path: Path) -> None:
    source = "lite_gather"
    (own,) = (s for s in litert_backend.load(str(zoo / source)).signatures.values())
    signature = Signature(
        {f"my_{name}": spec for name, spec in own.inputs.items()},
        {f"my_{name}": spec for name, spec in own.outputs.items()},
    )
    entry = FormSignature(
        "0.tflite", signature, {f"my_{name}": name for name in own.inputs}, {f"my_{name}": name for name in own.outputs}
    )
    backend = converted(zoo, tmp_path, source, entry)
    inputs = {
        name: np.zeros([max(n, 1) for n in spec.shape or ()], spec.element.numpy) for name, spec in own.inputs.items()
    }
    expected = litert_backend.load(str(zoo / source)).run(SERVING, inputs, list(own.outputs))
    results = backend.run("s0", {f"my_{name}": array for name, array in inputs.items()}, list(signature.outputs))
    assert [result.tolist() for result in results] == [result.tolist() for result in expected]


def test_a_converted_model_leaves_to_tensorflow_what_xnnpack_refuses(zoo: Path, tmp_path: Path) -> None:
    signature = Signature({"samples": TensorSpec("float32", (-1, -1))}, {"frames": TensorSpec("float32", None)})
    entry = FormSignature("0.tflite", signature, {"samples": "samples"}, {"frames": "frames"})
    backend = converted(zoo, tmp_path, "lite_audio", entry)
    assert backend.run("s0", {"samples": np.ones((1, 512), np.float32)}, ["frames"])[0].shape == (1, 1, 1, 1)
    error = refusal(backend, "s0", {"samples": np.ones((1, 511), np.float32)}, "frames")
    assert (error.code, "XNNPack" in error.message) == (Code.INVALID_ARGUMENT, True)


def test_a_converted_file_that_does_not_fit_its_signature_is_refused(zoo: Path, tmp_path: Path) -> None:
    signature = Signature({"in": TensorSpec("int32", None)}, {"out": TensorSpec("float32", None)})
    with pytest.raises(BackendError, match=r"does not fit 0\.tflite: its input 'in' is int32, there float32"):
        converted(zoo, tmp_path, "lite_old", FormSignature("0.tflite", signature, {"in": "x"}, {"out": "Identity"}))
    with pytest.raises(BackendError, match="its input 'in' is 'z' there, which it has not"):
        converted(zoo, tmp_path, "lite_old", FormSignature("0.tflite", signature, {"in": "z"}, {"out": "Identity"}))
