"""ONNX Runtime as a backend: what it loads, carries and refuses. Runs ONNX Runtime in the tests' own process."""

from __future__ import annotations

import contextlib
import functools
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import TensorProto, helper

from backends import onnx_backend
from backends.contract import BackendError, Code, Placed, Signature, TensorSpec
from backends.dtypes import BY_NAME
from backends.form import FormDescription, FormSignature, write_form
from backends.onnx_backend import OnnxBackend
from backends.onnx_session import SessionSettings
from backends.registry import check_complete
from tests.support.onnx_models import (
    BFLOAT16,
    FLOAT,
    INT64,
    STRING,
    branching,
    constant,
    expand,
    external,
    gather,
    half_plus,
    identity,
    linear,
    model,
    normalizer,
    op,
    port,
    with_external_weights,
    write,
)
from tests.support.server import ROOT

SERVING = "serving_default"
ELEMENTS = {
    "float32": FLOAT,
    "float64": TensorProto.DOUBLE,
    "int32": TensorProto.INT32,
    "uint8": TensorProto.UINT8,
    "int16": TensorProto.INT16,
    "int8": TensorProto.INT8,
    "string": STRING,
    "int64": INT64,
    "bool": TensorProto.BOOL,
    "bfloat16": BFLOAT16,
    "uint16": TensorProto.UINT16,
    "float16": TensorProto.FLOAT16,
    "uint32": TensorProto.UINT32,
    "uint64": TensorProto.UINT64,
}

Load = Callable[..., OnnxBackend]


@pytest.fixture
def load(tmp_path: Path) -> Load:
    def load_model(found: onnx.ModelProto | bytes, **options: object) -> OnnxBackend:
        write(tmp_path / "m", found)
        return onnx_backend.load(str(tmp_path / "m"), SessionSettings(**options))  # type: ignore[arg-type]

    return load_model


def floats(*values: object) -> np.ndarray:
    return np.array(values, np.float32)


def refusal(
    backend: OnnxBackend, inputs: dict[str, np.ndarray], *outputs: str, signature: str = SERVING
) -> BackendError:
    with pytest.raises(BackendError) as caught:
        backend.run(signature, inputs, outputs or ["y"])
    return caught.value


# -- signatures ------------------------------------------------------------------------------------------------


def test_the_signature_has_the_names_types_and_shapes_of_the_graph(load: Load) -> None:
    backend = load(linear())
    assert backend.signatures == {
        SERVING: Signature(
            {"x": TensorSpec("float32", (-1, 3), "x")},
            {"h": TensorSpec("float32", (-1, 2), "h"), "y": TensorSpec("float32", (-1, 2), "y")},
        )
    }
    h, y, again = backend.run(SERVING, {"x": floats([1, 0, 0], [0, 0, 1])}, ["h", "y", "h"])
    assert h.tolist() == again.tolist() == [[1, 2], [5, 6]]
    assert y.tolist() == [[1.5, 1.5], [5.5, 5.5]]
    assert backend.run(SERVING, {"x": floats([1, 0, 0])}, []) == []


def test_a_weight_that_is_listed_as_an_input_is_none(load: Load) -> None:
    found = half_plus(1)
    found.graph.input.append(port("c", FLOAT, []))
    backend = load(found)
    assert set(backend.signatures[SERVING].inputs) == {"x"}
    assert backend.run(SERVING, {"x": floats(2)}, ["y"])[0].tolist() == [2.0]


def test_a_scalar_and_an_unknown_shape_are_told_apart(load: Load) -> None:
    assert load(identity(FLOAT, [], [])).signatures[SERVING].inputs["x"].shape == ()
    backend = load(identity(FLOAT, None, None))
    assert backend.signatures[SERVING].inputs["x"].shape is None
    assert backend.signatures[SERVING].outputs["y"].shape is None
    for shape in ((), (0,), (2, 3), (1, 1, 1)):
        assert backend.run(SERVING, {"x": np.ones(shape, "f4")}, ["y"])[0].shape == shape


def test_outputs_that_are_no_tensors_are_left_out_and_named(load: Load) -> None:
    backend = load(
        model(
            [op("SequenceConstruct", "x", "s"), op("Neg", "x", "y")],
            [port("x")],
            [port("y"), helper.make_tensor_sequence_value_info("s", FLOAT, None)],
        )
    )
    assert set(backend.signatures[SERVING].outputs) == {"y"}
    assert any("'s' is a seq(tensor(float))" in remark for remark in backend.remarks)


# -- values ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ELEMENTS)
def test_every_element_type_passes_in_and_out(load: Load, name: str) -> None:
    backend = load(identity(ELEMENTS[name], ["n", "m"], ["n", "m"]))
    dtype = BY_NAME[name].numpy
    assert backend.signatures[SERVING].inputs["x"].dtype == name
    values = [b"", "äöü\0".encode(), b"a" * 100_000, b"z"] if name == "string" else [0, 1, 2, 100]
    x = np.array(values, dtype).reshape(2, 2)
    x.setflags(write=False)
    (y,) = backend.run(SERVING, {"x": x}, ["y"])
    assert y.dtype == dtype
    assert y.tolist() == x.tolist()
    (y,) = backend.run(SERVING, {"x": x[:0]}, ["y"])
    assert (y.shape, y.dtype) == ((0, 2), dtype)


@pytest.mark.parametrize("name", ["float32", "string", "bfloat16"])
def test_scalars_pass(load: Load, name: str) -> None:
    backend = load(identity(ELEMENTS[name], [], []))
    x = np.array(b"a" if name == "string" else 2, BY_NAME[name].numpy)
    (y,) = backend.run(SERVING, {"x": x}, ["y"])
    assert (y.shape, y.dtype, y[()]) == ((), x.dtype, x[()])


def test_a_string_that_is_not_utf_8_is_refused(load: Load) -> None:
    error = refusal(load(identity(STRING)), {"x": np.array([b"a", b"\xff\xfe"], object)})
    assert error.code == Code.INVALID_ARGUMENT
    assert "input 'x' has the string b'\\xff\\xfe'; ONNX's are UTF-8" in error.message


def test_results_are_no_views_of_what_the_next_request_overwrites(load: Load) -> None:
    backend = load(identity(FLOAT))
    x = floats(1, 2)
    (first,) = backend.run(SERVING, {"x": x}, ["y"])
    x[:] = 100
    backend.run(SERVING, {"x": x}, ["y"])
    assert first.tolist() == [1, 2]


def test_arrays_may_lie_anyhow_in_memory(load: Load) -> None:
    backend = load(linear())
    transposed = np.arange(12, dtype="f4").reshape(3, 4).T
    unaligned = np.frombuffer(bytes(1) + transposed.tobytes(), np.uint8)[1:].view("f4").reshape(4, 3)
    assert not unaligned.flags.aligned
    expected = transposed @ np.array([[1, 2], [3, 4], [5, 6]], "f4")
    for x in (transposed, unaligned, transposed[::-1][::-1]):
        assert backend.run(SERVING, {"x": x}, ["h"])[0].tolist() == expected.tolist()


def test_requests_run_side_by_side_and_get_their_own_answers(load: Load) -> None:
    backend = load(linear())

    def ask(seed: int) -> bool:
        x = np.random.default_rng(seed).integers(0, 9, (seed % 7, 3)).astype("f4")
        (h,) = backend.run(SERVING, {"x": x}, ["h"])
        return h.tolist() == (x @ np.array([[1, 2], [3, 4], [5, 6]], "f4")).tolist()

    with ThreadPoolExecutor(8) as pool:
        assert all(pool.map(ask, range(400)))


# -- refusals --------------------------------------------------------------------------------------------------


def test_names_that_the_signature_has_not_are_refused(load: Load) -> None:
    backend = load(linear())
    x = floats([1, 2, 3])
    error = refusal(backend, {"x": x}, signature="nope")
    assert (error.code, error.message) == (Code.FAILED_PRECONDITION, 'Serving signature key "nope" not found.')
    error = refusal(backend, {"z": x})
    assert (error.code, "['x']" in error.message) == (Code.INVALID_ARGUMENT, True)
    error = refusal(backend, {"x": x}, "nope")
    assert error.message.startswith("output tensor alias not found in signature: nope Outputs expected to be")


@pytest.mark.parametrize("shape", [(3,), (2, 4), (1, 3, 1), ()])
def test_a_wrong_shape_is_refused_with_what_is_expected(load: Load, shape: tuple[int, ...]) -> None:
    error = refusal(load(linear()), {"x": np.zeros(shape, "f4")})
    assert error.code == Code.INVALID_ARGUMENT
    assert error.message == f"input 'x' has the shape [{','.join(map(str, shape))}]; the model takes [-1,3]"


@pytest.mark.parametrize("kind", [FLOAT, BFLOAT16])  # by both ways to run
def test_what_a_kernel_refuses_is_the_clients_fault_and_named(load: Load, kind: int) -> None:
    found = gather()
    if kind == BFLOAT16:
        found.graph.input[0].type.tensor_type.elem_type = found.graph.output[0].type.tensor_type.elem_type = kind
    backend = load(found)
    x = np.ones(3, backend.signatures[SERVING].inputs["x"].element.numpy)
    error = refusal(backend, {"x": x, "i": np.array([7])})
    assert error.code == Code.INVALID_ARGUMENT
    assert error.message.startswith("Gather node 'the_Gather': indices element out of data bounds, idx=7")
    assert backend.run(SERVING, {"x": x, "i": np.array([2, 0])}, ["y"])[0].tolist() == [1, 1]


def test_a_broken_condition_is_told_without_the_sources_it_is_in(load: Load) -> None:
    backend = load(model([op("Add", "x z", "y")], [port("x"), port("z")], [port("y")]))
    error = refusal(backend, {"x": np.ones(3, "f4"), "z": np.ones(4, "f4")})
    assert error.code == Code.INVALID_ARGUMENT
    assert error.message == ("Add node 'the_Add': Attempting to broadcast an axis by a dimension other than 1. 3 by 4")


def test_more_memory_than_there_is_exhausts_the_resources_and_nothing_else(load: Load) -> None:
    backend = load(expand())
    error = refusal(backend, {"x": floats(1), "s": np.array([1 << 20, 1 << 22])})
    assert error.code == Code.RESOURCE_EXHAUSTED
    assert "17592186044416" in error.message
    assert backend.run(SERVING, {"x": floats(1), "s": np.array([2])}, ["y"])[0].tolist() == [1, 1]


def with_domain() -> onnx.ModelProto:
    found = model([helper.make_node("Mine", ["x"], ["y"], domain="com.mine")], [port("x")], [port("y")])
    found.opset_import.add(domain="com.mine", version=1)
    return found


@pytest.mark.parametrize(
    ("found", "code", "words"),
    [
        (b"", Code.INTERNAL, "no ir_version"),
        (b"no model at all", Code.INTERNAL, "model.onnx"),
        (half_plus(1).SerializeToString()[:-1], Code.INTERNAL, "model.onnx is cut off"),
        (with_external_weights("c.bin"), Code.INTERNAL, "c.bin is missing"),
        (model([op("Nope", "x", "y")], [port("x")], [port("y")]), Code.UNIMPLEMENTED, "Nope"),
        (
            model([helper.make_node("Mine", ["x"], ["y"], domain="com.mine")], [port("x")], [port("y")]),
            Code.INTERNAL,
            "No opset import for domain 'com.mine'",
        ),
        (with_domain(), Code.UNIMPLEMENTED, "com.mine:Mine"),
        (model([op("Identity", "x", "y")], [port("x")], [port("y")], opset=99), Code.UNIMPLEMENTED, "Opset 99"),
        (identity(TensorProto.FLOAT8E4M3FN), Code.INTERNAL, "float8e4m3fn"),
        (
            model(
                [op("SequenceAt", "x i", "y")],
                [helper.make_tensor_sequence_value_info("x", FLOAT, None), port("i", INT64, [])],
                [port("y", FLOAT, None)],
            ),
            Code.UNIMPLEMENTED,
            "its input 'x' is a seq(tensor(float))",
        ),
    ],
)
def test_what_cannot_be_run_is_refused_with_the_reason(load: Load, found: object, code: Code, words: str) -> None:
    with pytest.raises(BackendError) as caught:
        load(found)
    assert (caught.value.code, words in caught.value.message) == (code, True), caught.value.message
    assert caught.value.message.startswith("cannot load /")


@given(shape=st.lists(st.integers(1, 6), max_size=5), second=st.lists(st.integers(1, 6), max_size=5))
@settings(max_examples=150, deadline=None)
def test_any_shapes_are_answered_or_refused(shape: list[int], second: list[int]) -> None:
    backend = _fuzzed()
    x, z = np.ones(shape, "f4"), np.ones(second, "f4")
    try:
        expected = x @ z + 1
    except ValueError:
        assert refusal(backend, {"x": x, "z": z}).code == Code.INVALID_ARGUMENT
    else:
        assert backend.run(SERVING, {"x": x, "z": z}, ["y"])[0].tolist() == expected.tolist()


@functools.cache
def _fuzzed() -> OnnxBackend:
    """MatMul of inputs whose ranks are unknown: ONNX Runtime itself has to refuse what does not fit."""
    found = model(
        [op("MatMul", "x z", "h"), op("Add", "h one", "y")],
        [port("x", FLOAT, None), port("z", FLOAT, None)],
        [port("y", FLOAT, None)],
        [constant("one", 1)],
    )
    with tempfile.TemporaryDirectory() as folder:
        return onnx_backend.load(str(write(Path(folder), found)), SessionSettings())


@pytest.fixture
def own_environment() -> Iterator[None]:
    """Undoes what a load may change in this process, which a worker has for itself."""
    before = os.environ.get("LOCPATH")
    yield
    os.environ.pop("LOCPATH", None)
    if before is not None:
        os.environ["LOCPATH"] = before


@pytest.mark.usefixtures("own_environment")
def test_nothing_that_onnx_runtime_loads_is_refused(tmp_path: Path) -> None:
    """By the models of ONNX's own tests that lie in its package as files: a fifth of them."""
    files = sorted(Path(onnx.__file__).parent.joinpath("backend", "test", "data").rglob("*.onnx"))[::5]
    loaded = 0
    for file in files:
        check_complete("onnx", str(write(tmp_path, file.read_bytes())))
        with contextlib.suppress(Exception):  # it loads not all of the old ones
            onnxruntime.InferenceSession(str(tmp_path / "model.onnx"), providers=["CPUExecutionProvider"])
            loaded += 1
            try:
                onnx_backend.load(str(tmp_path), SessionSettings(device="cpu"))
            except BackendError as error:
                pytest.fail(f"{file}: {error.message}")
    assert loaded > 10


# -- weights in files beside the model -------------------------------------------------------------------------


def test_weights_beside_the_model_are_loaded_and_not_held_on_to(tmp_path: Path) -> None:
    write(tmp_path, with_external_weights("w/c.bin", offset=40, length=4000))
    (tmp_path / "w").mkdir()
    values = np.arange(1010, dtype="f4")
    (tmp_path / "w" / "c.bin").write_bytes(values.tobytes())
    backend = onnx_backend.load(str(tmp_path), SessionSettings())
    (tmp_path / "w" / "c.bin").write_bytes(b"")  # whoever overwrites it must not change, or kill, what runs
    (y,) = backend.run(SERVING, {"x": np.zeros((1, 1000), "f4")}, ["y"])
    assert y.tolist() == [values[10:].tolist()]


@pytest.mark.parametrize("location", ["c.bin", "./c.bin", "w/../c.bin", "w//c.bin", "a*b.bin", "a\\b.bin", "a\nb.bin"])
def test_weights_by_any_name_that_onnx_runtime_takes_are_loaded(tmp_path: Path, location: str) -> None:
    write(tmp_path, with_external_weights(location, 3))
    (tmp_path / "w").mkdir()
    (tmp_path / location).write_bytes(floats(1, 2, 3).tobytes())
    check_complete("onnx", str(tmp_path))
    backend = onnx_backend.load(str(tmp_path), SessionSettings())
    assert backend.run(SERVING, {"x": np.zeros((1, 3), "f4")}, ["y"])[0].tolist() == [[1, 2, 3]]


def test_a_folder_of_links_into_another_is_loaded(tmp_path: Path) -> None:
    """As Hugging Face's cache lays a model out: all of its files are links into the folder blobs."""
    blobs = write(tmp_path / "blobs", with_external_weights("w.bin", 3))
    (blobs / "w.bin").write_bytes(floats(1, 2, 3).tobytes())
    folder = tmp_path / "snapshot"
    folder.mkdir()
    for name in ("model.onnx", "w.bin"):
        (folder / name).symlink_to(f"../blobs/{name}")
    check_complete("onnx", str(folder))
    backend = onnx_backend.load(str(folder), SessionSettings())
    assert backend.run(SERVING, {"x": np.zeros((1, 3), "f4")}, ["y"])[0].tolist() == [[1, 2, 3]]


@pytest.mark.parametrize("beside", [True, False])
def test_weights_in_a_branch_are_loaded_from_the_file_or_beside_it(tmp_path: Path, beside: bool) -> None:
    (tmp_path / "c.bin").write_bytes(floats(1, 2, 3).tobytes())
    write(tmp_path, branching(external("c", 3, "c.bin") if beside else constant("c", [1, 2, 3])))
    check_complete("onnx", str(tmp_path))
    backend = onnx_backend.load(str(tmp_path), SessionSettings())
    x = np.zeros(3, "f4")
    assert backend.run(SERVING, {"x": x, "b": np.array(True)}, ["y"])[0].tolist() == [1, 2, 3]
    assert backend.run(SERVING, {"x": x, "b": np.array(False)}, ["y"])[0].tolist() == [-1, -2, -3]


# -- text --------------------------------------------------------------------------------------------------------


@pytest.mark.usefixtures("own_environment")
@pytest.mark.parametrize("locale", ["en_US.UTF-8", "en_US", "en_GB.UTF-8"])
def test_text_is_made_lower_case_whichever_locales_the_machine_has(load: Load, locale: str) -> None:
    """ONNX Runtime asks for en_US.UTF-8, which small containers lack."""
    backend = load(normalizer(locale=locale) if locale != "en_US.UTF-8" else normalizer())
    text = "ÄÖÜ ÉÈ ŁÓDŹ ΑΒΓ ДЖ İI ẞ \u1e9e Ǆ 𐐀 x1"
    (y,) = backend.run(SERVING, {"x": np.array([text.encode(), b"", b"ABC"], object)}, ["y"])
    expected = "äöü éè łódź αβγ дж i̇i ß \u00df ǆ 𐐨 x1".replace("i̇i", "ii")
    assert [element.decode() for element in y] == [expected, "", "abc"]


def test_a_locale_that_cannot_be_had_is_an_error_with_a_remedy(load: Load) -> None:
    with pytest.raises(BackendError) as caught:
        load(normalizer(locale="xx_YY.UTF-8"))
    assert caught.value.code == Code.FAILED_PRECONDITION
    for words in ("xx_YY.UTF-8", "localedef -i xx_YY -f UTF-8 xx_YY.UTF-8", "glibc-langpack-xx"):
        assert words in caught.value.message


# -- converted models ------------------------------------------------------------------------------------------


SIGNATURE = Signature(
    {"images": TensorSpec("float32", (-1, 3), "serving_default_images:0"), "unused": TensorSpec("int64", (), "u:0")},
    {"logits": TensorSpec("float32", (-1, 2), "StatefulPartitionedCall:0")},
    "tensorflow/serving/predict",
)


def form(**entries: FormSignature) -> FormDescription:
    return FormDescription("onnx", "float32", entries)


def entry(signature: Signature = SIGNATURE, file: str = "0.onnx", x: str = "x", y: str = "y") -> FormSignature:
    return FormSignature(file, signature, {"images": x}, {"logits": y})


def test_a_converted_model_presents_the_signatures_that_it_was_made_of(tmp_path: Path) -> None:
    write(tmp_path, linear(), "0.onnx")
    only_h = Signature({"images": SIGNATURE.inputs["images"]}, {"logits": SIGNATURE.outputs["logits"]}, "my/method")
    write_form(str(tmp_path), form(a=entry(), b=entry(only_h, y="h")))
    backend = onnx_backend.load(str(tmp_path), SessionSettings())
    assert backend.signatures == {"a": SIGNATURE, "b": only_h}
    x = floats([1, 0, 0])
    assert backend.run("a", {"images": x, "unused": np.array(1)}, ["logits"])[0].tolist() == [[1.5, 1.5]]
    assert backend.run("b", {"images": x}, ["logits"])[0].tolist() == [[1, 2]]
    error = refusal(backend, {"images": x[0]}, "logits", signature="b")
    assert error.message == "input 'images' has the shape [3]; the model takes [-1,3]"
    assert "nope" in refusal(backend, {"images": x}, "nope", signature="b").message


def test_subnormal_floats_are_zero_to_a_converted_model(tmp_path: Path) -> None:
    """In the thread that loads it, and in those that are started later, as a worker's are. A model that was written as
    ONNX has them as ONNX Runtime does. Either way, what a client sends is seen to be subnormal."""
    only_h = Signature({"images": SIGNATURE.inputs["images"]}, {"logits": SIGNATURE.outputs["logits"]})
    (tmp_path / "converted").mkdir()
    write(tmp_path / "converted", linear(), "0.onnx")
    write_form(str(tmp_path / "converted"), form(serving_default=entry(only_h, y="h")))
    write(tmp_path / "written", linear())
    script = (
        "import json, sys, numpy as np\n"
        "from concurrent.futures import ThreadPoolExecutor\n"
        "from backends import onnx_backend\n"
        "from backends.domain import Domain\n"
        "from backends.onnx_session import SessionSettings\n"
        "backend = onnx_backend.load(sys.argv[1], SessionSettings(intra_op_threads=2))\n"
        "((name, spec),) = backend.signatures['serving_default'].inputs.items()\n"
        "x = np.array([[1 << 22, 0, 0]], 'u4').view('f4')\n"  # the thread that loads may make a subnormal 1e-39 to 0
        "def run():\n"
        "    answer = backend.run('serving_default', {name: x.copy()}, [sys.argv[2]])[0]\n"
        "    is_seen = 'subnormal' in Domain(subnormal=False).beyond(name, x, spec)\n"
        "    return bool((answer.view('u4') != 0).any()), is_seen\n"
        "print(json.dumps([run(), ThreadPoolExecutor().submit(run).result()]))\n"
    )
    found = {}
    for folder, output in (("converted", "logits"), ("written", "h")):
        command = [sys.executable, "-c", script, str(tmp_path / folder), output]
        done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=60, check=True)
        found[folder] = json.loads(done.stdout)
    assert found == {"converted": [[False, True]] * 2, "written": [[True, True]] * 2}


def test_an_input_with_a_default_may_be_left_out(tmp_path: Path) -> None:
    # A TensorProto: dtype DT_FLOAT, shape [1, 3], float_val 2.0, which stands for all three.
    default = bytes.fromhex("0801 1208 1202 0801 1202 0803 2d 00000040".replace(" ", ""))
    signature = Signature(
        {"images": SIGNATURE.inputs["images"]}, SIGNATURE.outputs, SIGNATURE.method_name, {"images": default}
    )
    write(tmp_path, linear(), "0.onnx")
    write_form(str(tmp_path), form(a=entry(signature)))
    backend = onnx_backend.load(str(tmp_path), SessionSettings())
    assert backend.signatures["a"].defaults == {"images": default}
    assert backend.run("a", {}, ["logits"])[0].tolist() == [[18.5, 23.5]]
    assert backend.run("a", {"images": floats([0, 0, 0])}, ["logits"])[0].tolist() == [[0.5, -0.5]]


@pytest.mark.parametrize(
    ("found", "words"),
    [
        (entry(x="nope"), "its input 'images' is 'nope' there, which it has not"),
        (entry(y="nope"), "its output 'logits' is 'nope' there, which it has not"),
        (FormSignature("0.onnx", SIGNATURE, {}, {"logits": "y"}), "nothing is given to the inputs ['x'] there"),
        (
            entry(Signature({"images": TensorSpec("int32", None)}, SIGNATURE.outputs)),
            "its input 'images' is int32, there a tensor(float)",
        ),
    ],
)
def test_a_converted_file_that_does_not_fit_its_signature_is_refused(
    tmp_path: Path, found: FormSignature, words: str
) -> None:
    write(tmp_path, linear(), "0.onnx")
    write_form(str(tmp_path), form(a=found))
    with pytest.raises(BackendError) as caught:
        onnx_backend.load(str(tmp_path), SessionSettings())
    assert caught.value.message.endswith(f"its signature 'a' does not fit 0.onnx: {words}")


# -- the device ------------------------------------------------------------------------------------------------


def test_without_a_gpu_it_runs_on_the_cpu_and_says_so_only_where_cuda_was_asked_for(load: Load) -> None:
    if _has_driver():
        pytest.skip("this machine has an NVIDIA driver")
    for device, remarks in (("auto", 0), ("cpu", 0), ("cuda", 1)):
        backend = load(half_plus(1), device=device, gpu_memory_limit_bytes=1 << 30)
        assert isinstance(backend, Placed)
        assert (backend.device, len(backend.remarks)) == ("cpu", remarks)
        assert backend.run(SERVING, {"x": floats(2)}, ["y"])[0].tolist() == [2.0]
    assert "it runs on the CPU, because CUDA cannot be used: there is no NVIDIA driver" in backend.remarks[0]


def test_a_gpu_is_used_where_there_is_one(load: Load) -> None:
    if not _has_driver():
        pytest.skip("this machine has no NVIDIA driver")
    backend = load(linear(), device="cuda", gpu_memory_limit_bytes=1 << 30)
    assert (backend.device, backend.remarks) == ("cuda", ())
    x = np.random.default_rng(1).random((5, 3), np.float32)
    expected = load(linear(), device="cpu").run(SERVING, {"x": x}, ["y"])[0]
    np.testing.assert_allclose(backend.run(SERVING, {"x": x}, ["y"])[0], expected, rtol=1e-2)


def _has_driver() -> bool:
    return Path("/proc/driver/nvidia/version").exists()


def test_it_loads_no_tensorflow_and_says_nothing(tmp_path: Path) -> None:
    """What a client can provoke must not fill the log."""
    write(tmp_path, gather())
    script = (
        "import json, sys, numpy as np\n"
        "from backends import registry\n"
        "from backends.contract import BackendError\n"
        "backend = registry.load('onnx', sys.argv[1], tags=[], intra_op_threads=1, inter_op_threads=0, device='cuda')\n"
        "try:\n"
        "    backend.run('serving_default', {'x': np.ones(3, 'f4'), 'i': np.array([7])}, ['y'])\n"
        "except BackendError as error:\n"
        "    code = error.code\n"
        "print(json.dumps([code, sorted(m for m in sys.modules if m in ('tensorflow', 'onnx', 'tf2onnx'))]))\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", script, str(tmp_path)], cwd=ROOT, capture_output=True, text=True, timeout=60, check=True
    )
    assert (json.loads(done.stdout), done.stderr) == ([3, []], "")
