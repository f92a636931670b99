"""The process that verifies live answers: it loads TensorFlow, judges the samples, and keeps what was wrong."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest

from appliance.host.processes import spawn
from backends.contract import Signature, TensorSpec
from backends.form import FormDescription, FormSignature, write_form
from backends.samples import Sample, new_file, read_samples, write_samples
from converters import counterexamples
from converters.identity import content_hash
from converters.live import LiveReport
from converters.report import Verdict
from converters.spec import JobSpec
from converters.verifying import VerifyingSpec, wrong_samples
from tests.support.acceleration_jobs import KEY, run_job

pytestmark = pytest.mark.timeout(170)

Verified = Callable[..., dict[str, Any]]


@pytest.fixture
def verified(zoo: Path, tmp_path: Path) -> Verified:
    """Verifies samples of a model of the zoo in a real process, and returns its line. The form is its description."""
    form = tmp_path / "form"
    form.mkdir()
    signature = Signature({"x": TensorSpec("float32", (-1,))}, {"y": TensorSpec("float32", (-1,))})
    entry = FormSignature("0.onnx", signature, {"x": "x"}, {"y": "y"})
    write_form(str(form), FormDescription("onnx", "float32", {"serving_default": entry}))

    def verify(model: str, samples: Sequence[Sample], cpu_seconds: float = 600.0) -> dict[str, Any]:
        path, work_dir = tmp_path / "samples", tmp_path / "work"
        path.unlink(missing_ok=True)
        work_dir.mkdir(exist_ok=True)
        file = new_file(str(path))
        write_samples(file, samples)
        os.close(file)
        job = JobSpec(str(zoo / model), str(work_dir), cache_dir=str(tmp_path / "cache"), yielding=False)
        spec = VerifyingSpec(job, str(form), str(path), cpu_seconds)
        output, theirs = os.pipe()
        with open(tmp_path / "log", "wb") as log, open(output, encoding="utf-8") as lines:
            pid = spawn("appliance.conversion.verifying", spec, stdout=theirs, stderr=log.fileno())
            os.close(theirs)
            text = lines.read()
            os.waitpid(pid, 0)
        return dict(json.loads(text))

    return verify


def answered(*values: float, number: int = 1, wrong: float | None = None) -> Sample:
    x = np.array(values, np.float32)
    y = x / 2 + 2
    return Sample(number, 1, "serving_default", {"x": x}, {"y": y if wrong is None else np.array([wrong], np.float32)})


def test_a_wrong_answer_is_found_and_left_to_who_keeps_it(verified: Verified, tmp_path: Path) -> None:
    samples = [answered(1.0, 2.0), answered(31.0, number=2, wrong=-17.5), answered(4.0, number=3)]
    report = msgspec.convert(verified("tiny_tf2", samples)["verified"], LiveReport)
    left = wrong_samples(str(tmp_path / "work"))
    assert (report.equal, report.different, report.agreed) == (2, 1, 1)
    assert report.difference.startswith("output 'y' is -17.5 instead of 17.5 at [0]")
    assert report.cpu_seconds > 0
    assert os.stat(left).st_mode & 0o777 == 0o600
    (wrong,) = read_samples(left)
    assert wrong.inputs["x"].tolist() == [31.0]
    assert not (tmp_path / "cache").exists()  # a process that runs models has no key


def test_right_answers_of_a_model_of_strings_are_equal(verified: Verified) -> None:
    text = np.array([b"one", b"", "zwölf".encode()], object)
    outputs = {"upper": np.array([b"ONE", b"", "ZWöLF".encode()], object), "length": np.array([3, 0, 6], np.int32)}
    report = verified("strings", [Sample(9, 4, "serving_default", {"text": text}, outputs)])["verified"]
    assert (report["equal"], report["different"], report["agreed"]) == (4, 0, 9)


def test_without_processor_time_left_no_sample_is_begun(verified: Verified) -> None:
    report = verified("tiny_tf2", [answered(1.0)], cpu_seconds=0.0)["verified"]
    assert (report["equal"], report["unjudged"]) == (0, {"no processor time was left": 1})


def test_a_model_that_has_gone_is_an_error_and_no_verdict(verified: Verified) -> None:
    line = verified("not there", [answered(1.0)])
    assert "not there" in line["error"]
    assert line["cpu_seconds"] > 0


# -- what is kept


def keep(folder: Path, content: str, inputs: dict[str, np.ndarray]) -> str:
    return counterexamples.keep(str(folder), content, KEY, [Sample(1, 1, "s", inputs, {})])


def test_only_so_many_inputs_are_kept_and_each_once(tmp_path: Path) -> None:
    kept = [keep(tmp_path, "a", {"x": np.array([n])}) for n in (0, 0, *range(1, 10))]
    assert kept[:9] == [str(tmp_path / "counterexamples" / "a")] * 9
    assert kept[9:] == ["", ""]
    assert [inputs["x"].tolist() for inputs in counterexamples.known(str(tmp_path), "a", KEY)["s"]] == [
        [n] for n in range(8)
    ]
    assert keep(tmp_path, "b", {"x": np.zeros(9 << 20, np.uint8)}) == ""
    assert counterexamples.known(str(tmp_path), "b", KEY) == {}


def test_a_damaged_file_of_them_is_none(tmp_path: Path) -> None:
    path = Path(keep(tmp_path, "a", {"x": np.arange(9)}))
    assert path.stat().st_mode & 0o777 == 0o600
    path.write_bytes(path.read_bytes()[:-3])
    assert counterexamples.known(str(tmp_path), "a", KEY) == {}


def test_those_of_another_model_or_another_key_are_none(tmp_path: Path) -> None:
    path = Path(keep(tmp_path, "a", {"x": np.arange(9)}))
    path.with_name("b").write_bytes(path.read_bytes())
    assert counterexamples.known(str(tmp_path), "b", KEY) == {}
    assert counterexamples.known(str(tmp_path), "a", KEY[::-1]) == {}
    assert counterexamples.copy(str(tmp_path), "a", KEY[::-1], str(tmp_path)) == ""


def test_a_later_proof_begins_with_what_was_wrong_in_service(zoo: Path, tmp_path: Path) -> None:
    """An error that neither cases nor search come upon is found by the request that a client has sent."""
    planted = {
        "converters": {"planted": "tests.support.planted_converter"},
        "policy": "onnx",
        "cache_dir": str(tmp_path / "cache"),
    }
    path = zoo / "tiny_tf2"
    (before,) = run_job(path, **planted).report.forms
    assert before.proofs[0].verdict is Verdict.PROVEN
    sent = {"x": np.array([1.0, np.pi, 2.0], np.float32)}
    sample = Sample(1, 1, "serving_default", sent, {})
    counterexamples.keep(str(tmp_path / "cache"), content_hash(str(path)), KEY, [sample])
    # Another proof: its options make it another entry, as another version of the converters does.
    (after,) = run_job(path, **planted, proof_seconds=61.0).report.forms
    assert after.proofs[0].verdict is Verdict.DIFFERS
    assert "3.14159" in after.proofs[0].reason
