"""Operators that TensorFlow alone has not: whose they are, and the libraries that `op_libraries` names."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from appliance.config.model_options import ModelOptions
from appliance.config.op_libraries import check_op_libraries
from appliance.core.errors import ConfigError
from backends.known_ops import explained, library_of, missing_text
from backends.op_libraries import OpLibraryError, check
from converters.cache import key_of
from converters.job import ingredients
from converters.spec import JobSpec
from tests.support.op_library import compiled, needing
from tests.support.server import ROOT, Server, eventually

UNREGISTERED = (
    "Op type not registered 'MyAdd' in binary running on vm. Make sure the Op and Kernel are registered in the binary "
    "running in this process. Note that if you are loading a saved graph which used ops from tf.contrib (e.g. "
    "`tf.contrib.resampler`), accessing should be done before importing the graph, as contrib ops are lazily "
    "registered when the module is first accessed."
)
ADVICE = (
    "Write the libraries' files, built for TensorFlow 2.21.0, into the configuration: op_libraries = "
    '["/path/to/library.so"]'
)


# -- whose an operator is ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("op", "package"),
    [
        ("TFText>WhitespaceTokenizeWithOffsetsV2", "tensorflow-text"),
        ("TFText>SomethingOfNextYear", "tensorflow-text"),
        ("SentencepieceTokenizeOp", "tensorflow-text"),
        ("SentencepieceEncodeSparse", "tf-sentencepiece"),
        ("SimpleMLInferenceOpWithHandle", "ydf-tf"),
        ("SimpleMLShowModel", "ydf-tf"),
        ("IO>AudioDecodeMP3", "tensorflow-io"),
        ("Addons>ImageProjectiveTransformV3", "tensorflow-addons"),
        ("EquiJoinIndices", "struct2tensor"),
        ("MyAdd", None),
        ("UnicodeScript", None),  # TensorFlow's own
    ],
)
def test_the_library_of_an_operator_is_known_by_its_name(op: str, package: str | None) -> None:
    found = library_of(op)
    assert (None if found is None else found.package) == package


def test_what_is_missing_is_told_by_library_with_the_files_and_what_to_do() -> None:
    ops = ["WordpieceTokenizeWithOffsets", "TFText>WhitespaceTokenizeWithOffsetsV2", "SimpleMLInferenceOp", "MyAdd"]
    assert missing_text(ops, "2.21.0", "2.24.0") == (
        "Op type not registered 'MyAdd', 'SimpleMLInferenceOp', 'TFText>WhitespaceTokenizeWithOffsetsV2', "
        "'WordpieceTokenizeWithOffsets': they are not TensorFlow's own. "
        "TensorFlow Text has 'TFText>WhitespaceTokenizeWithOffsetsV2', 'WordpieceTokenizeWithOffsets' in "
        "_whitespace_tokenizer_v2.so, _wordpiece_tokenizer.so (tensorflow-text on PyPI). "
        "TensorFlow Decision Forests has 'SimpleMLInferenceOp' in inference.so (ydf-tf on PyPI). "
        "A library of custom operators has 'MyAdd'; or TensorFlow 2.24.0, which exported the model, has. " + ADVICE
    )


def test_the_message_of_tensorflow_loses_its_advice_on_contrib_and_nothing_else() -> None:
    text = explained(f"before: {UNREGISTERED}\n\t [[{{{{node add}}}}]]", "2.21.0")
    assert text == (
        "before: Op type not registered 'MyAdd': it is not TensorFlow's own. A library of custom operators has "
        f"'MyAdd'. {ADVICE}\n\t [[{{{{node add}}}}]]"
    )
    assert explained("a dimension is wrong", "2.21.0") == "a dimension is wrong"


def test_of_many_missing_operators_the_first_are_named() -> None:
    text = missing_text([f"Odd{number:02}" for number in range(25)], "2.21.0")
    assert "'Odd19' and 5 more: they are not TensorFlow's own" in text
    assert "'Odd20'" not in text


# -- which file may be loaded --------------------------------------------------------------------------------------


@pytest.fixture
def library(tmp_path: Path) -> Path:
    path = tmp_path / "ops" / "x.so"
    path.parent.mkdir(mode=0o755)
    path.write_bytes(b"")
    path.chmod(0o644)
    return path


def refusal(path: Path) -> str:
    with pytest.raises(OpLibraryError) as caught:
        check(str(path))
    with pytest.raises(ConfigError) as configured:
        check_op_libraries([ModelOptions(), ModelOptions(op_libraries=(str(path),))])
    assert str(configured.value) == f"op_libraries: {caught.value}"
    return str(caught.value)


def test_a_file_that_only_its_owner_can_write_is_taken(library: Path) -> None:
    check(str(library))
    check_op_libraries([ModelOptions(op_libraries=(str(library),))])
    library.parent.chmod(0o1777)  # as /tmp: nobody may replace what is another's
    check(str(library))


def test_a_missing_file_and_a_folder_are_refused(library: Path) -> None:
    missing = library.with_name("y.so")
    assert refusal(missing).startswith(f"{missing} cannot be looked at: No such file or directory; correct its path")
    assert refusal(library.parent) == f"{library.parent} is not a file; name each library's file (.so)"


@pytest.mark.parametrize("mode", [0o664, 0o646])
def test_a_file_that_others_may_write_is_refused(library: Path, mode: int) -> None:
    library.chmod(mode)
    assert refusal(library) == (
        f"{library} may be written by others than its owner (mode {mode:04o}); chmod go-w {library}"
    )


def test_a_folder_that_everybody_may_write_is_refused_also_behind_a_link(library: Path, tmp_path: Path) -> None:
    library.parent.chmod(0o777)
    expected = f"everybody may write {library.parent}, and so replace"
    assert refusal(library).startswith(f"{expected} {library} (mode 0777); chmod o-w {library.parent}")
    link = tmp_path / "link.so"
    link.symlink_to(library)
    assert refusal(link).startswith(f"{expected} {link}")


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can give files away")
def test_a_file_of_another_user_is_refused(library: Path) -> None:
    os.chown(library, 4321, -1)
    assert refusal(library).startswith(f"{library} belongs to user 4321, who could change what the server runs; chown")


# -- on a real server ----------------------------------------------------------------------------------------------


@pytest.fixture
def models(zoo: Path, tmp_path: Path) -> Callable[..., Path]:
    """Puts models that need MyAdd into a root: one of TensorFlow 1, where a graph has it, one of 2, where functions
    do."""

    def put(*names: str) -> Path:
        for name in names:
            source = "half_plus_two" if name.startswith("graph") else "tiny_tf2"
            needing(zoo / source, tmp_path / "models" / name / "1")
        return tmp_path / "models"

    return put


def configuration(tmp_path: Path, library: Path, *models: str) -> Path:
    config = tmp_path / "dropserve.toml"
    with config.open("a") as file:
        file.writelines(f"[models.{name}]\nop_libraries = [{json.dumps(str(library))}]\n" for name in models)
    return config


def test_libraries_are_loaded_for_the_models_that_name_them_alone(models: Callable[..., Path], tmp_path: Path) -> None:
    library, odd = compiled(tmp_path), tmp_path / "odd.so"
    odd.write_bytes(b"not a library")
    odd.chmod(0o755)
    root = models("graph", "functions", "without", "damaged")
    configuration(tmp_path, library, "graph", "functions")
    config = configuration(tmp_path, odd, "damaged")
    with Server(model_root=root, config=config, max_num_load_retries=0) as server:
        for name in ("graph", "functions"):
            server.wait_for(name, 1)
            assert server.predict(name, {"instances": [1.0, 2.0, 5.0]}) == (200, {"predictions": [2.5, 3.0, 4.5]})
        reason = server.wait_for("without", 1, "failed")
        assert "Op type not registered 'MyAdd': it is not TensorFlow's own. A library of custom operators has" in reason
        assert ADVICE in reason
        assert "contrib" not in server.log()
        reason = server.wait_for("damaged", 1, "failed")
        assert f"op_libraries: {odd} does not load into TensorFlow 2.21.0, which it has to be built for" in reason
        assert "file too short" in reason or "invalid ELF header" in reason

        configuration(tmp_path, library, "without")
        library.chmod(0o775)
        server.process.send_signal(signal.SIGHUP)
        eventually(lambda: "the configuration was not reloaded" in server.log(), "the reload is refused")
        told = f"op_libraries: {library} may be written by others than its owner (mode 0775); chmod go-w {library}"
        assert told in server.log()
        assert server.predict("graph", {"instances": [1.0]}) == (200, {"predictions": [2.5]})
        library.chmod(0o755)
        server.process.send_signal(signal.SIGHUP)
        eventually(lambda: "the configuration was reloaded" in server.log(), "the reload is taken")
        # What is loaded from now on has the library.
        shutil.copytree(root / "without" / "1", root / "without" / "2")
        server.wait_for("without", 2)
        assert server.predict("without", {"instances": [1.0]}) == (200, {"predictions": [2.5]})


def test_a_start_with_a_library_that_may_not_be_loaded_is_refused(tmp_path: Path, library: Path) -> None:
    library.chmod(0o666)
    command = [sys.executable, "-m", "appliance", "serve", f"--model_root={tmp_path}"]
    config = configuration(tmp_path, library, "functions")
    ended = subprocess.run(
        [*command, f"--config={config}"], cwd=ROOT, capture_output=True, text=True, timeout=60, check=False
    )
    assert ended.returncode == 2
    assert f"op_libraries: {library} may be written by others than its owner (mode 0666)" in ended.stderr


def test_conversion_has_the_library_and_leaves_the_model_to_tensorflow(zoo: Path, tmp_path: Path) -> None:
    model = needing(zoo / "tiny_tf2", tmp_path / "models" / "m" / "1")
    config = configuration(tmp_path, compiled(tmp_path), "m")
    config.write_text(f"cache_max_bytes = 0\n{config.read_text()}")
    command = [sys.executable, "-m", "appliance", "accelerate", str(model), "--json", "--model=m", f"--config={config}"]
    ended = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=240, check=True)
    report = json.loads(ended.stdout)
    assert report["chosen"] == "tensorflow"
    # TensorFlow loaded it, and the converters did: what they say is that they know no such operator.
    assert [candidate["name"] for candidate in report["candidates"]] == ["onnx", "tflite"]
    assert all("MyAdd" in json.dumps(candidate["attempts"]) for candidate in report["candidates"])
    assert "not registered" not in ended.stdout


def test_what_a_job_keeps_depends_on_what_is_in_the_libraries(tmp_path: Path) -> None:
    spec = JobSpec("/m/1", str(tmp_path), op_libraries=("/a.so",))
    elsewhere = replace(spec, op_libraries=("/b.so",))
    none = replace(spec, op_libraries=())

    def key(of: JobSpec, *hashes: str) -> str:
        return key_of(ingredients(of, "content", hashes, {}, "code"))

    assert key(spec, "1") == key(elsewhere, "1")
    assert len({key(spec, "1"), key(spec, "2"), key(none)}) == 3
