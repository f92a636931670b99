"""Whose fault a refusal is: what TensorFlow 2.21, ONNX Runtime and LiteRT were seen to say."""

from __future__ import annotations

import pytest

from appliance.core.errors import Code
from appliance.core.outcomes import Outcome
from appliance.worker.verdicts import Failure, verdict

FOR_THE_INPUTS_SAKE = [
    (Code.INVALID_ARGUMENT, "indices[0,0] = 4 is not in [0, 2)"),
    (Code.INVALID_ARGUMENT, "Input to reshape is a tensor with 1 values, but the requested shape requires 50"),
    (Code.INVALID_ARGUMENT, "Conv node 'y': Input channels C is not equal to kernel channels * group. C: 1 kernel 3"),
    (Code.INVALID_ARGUMENT, "input 'x' has the shape [1,1]; the model takes [1,7]"),
    (Code.OUT_OF_RANGE, "Read past end of file"),
    (Code.FAILED_PRECONDITION, "sequence_length(0) <= 1"),
]
FOR_THE_SERVERS_SAKE = [
    (Code.FAILED_PRECONDITION, "Table not initialized."),
    (Code.FAILED_PRECONDITION, "Could not find variable nosuch. This could mean that the variable has been deleted."),
    (Code.FAILED_PRECONDITION, "Attempting to use uninitialized value VariableV2"),
    (Code.FAILED_PRECONDITION, "GetNext() failed because the iterator has not been initialized."),
    (Code.NOT_FOUND, "/nonexistent/asset; No such file or directory"),
    (Code.NOT_FOUND, "Resource localhost/t/N10tensorflow6lookup15LookupInterfaceE does not exist."),
    (Code.INVALID_ARGUMENT, "No OpKernel was registered to support Op 'CudnnRNN' used by {{node CudnnRNN}}"),
    (Code.INVALID_ARGUMENT, "ValueError: Could not find callback with key=pyfunc_0 in the registry."),
    (
        Code.INVALID_ARGUMENT,
        "Tensor nosuch:0, specified in either feed_devices or fetch_devices was not found in the Graph",
    ),
    (Code.NOT_FOUND, "The current platform CPU is not among the platforms required by the module: [TPU]"),
    (Code.PERMISSION_DENIED, "/etc/shadow; Permission denied"),
    *(
        (code, "whatever it says")
        for code in (
            Code.INTERNAL,
            Code.UNIMPLEMENTED,
            Code.UNAVAILABLE,
            Code.DATA_LOSS,
            Code.UNKNOWN,
            Code.RESOURCE_EXHAUSTED,
            Code.ABORTED,
            Code.DEADLINE_EXCEEDED,
        )
    ),
]


@pytest.mark.parametrize(("code", "message"), FOR_THE_INPUTS_SAKE)
def test_what_does_not_suit_a_model_is_the_inputs_fault(code: Code, message: str) -> None:
    trial = verdict([Failure(code, message)])
    assert (trial.outcome, trial.code, trial.message) == (Outcome.REFUSED, code, message)


@pytest.mark.parametrize(("code", "message"), FOR_THE_SERVERS_SAKE)
def test_what_a_model_lacks_is_not_the_inputs_fault(code: Code, message: str) -> None:
    trial = verdict([Failure(code, message)])
    assert (trial.outcome, trial.code, trial.message) == (Outcome.FAILED, code, message)


@pytest.mark.parametrize("code", [Code.NOT_FOUND, Code.PERMISSION_DENIED])
def test_a_name_that_was_made_up_names_nothing(code: Code) -> None:
    texts = (b"", b"0", b"nosuchname")
    named = [Failure(code, f"Failed to find any matching files for {text.decode()}", text) for text in texts]
    assert verdict(named).outcome is Outcome.REFUSED
    assert verdict(named).message.endswith("nosuchname")


def test_a_file_that_is_missing_whatever_the_text_was_is_the_models_own() -> None:
    missing = [Failure(Code.NOT_FOUND, "/gone/vocab.txt; No such file or directory", text) for text in (b"", b"0")]
    assert verdict(missing).outcome is Outcome.FAILED


def test_tables_that_do_not_exist_are_nothing_that_a_text_names() -> None:
    message = "Resource localhost/t/N10tensorflow6lookup15LookupInterfaceE does not exist."
    assert verdict([Failure(Code.NOT_FOUND, message, b"")]).outcome is Outcome.FAILED


def test_one_refusal_for_the_inputs_sake_suffices_and_the_last_is_told() -> None:
    failures = [
        Failure(Code.INVALID_ARGUMENT, "too small"),
        Failure(Code.INVALID_ARGUMENT, "still too small\nat length"),
        Failure(Code.INTERNAL, "its process died"),
    ]
    trial = verdict(failures)
    assert (trial.outcome, trial.code, trial.message) == (
        Outcome.REFUSED,
        Code.INVALID_ARGUMENT,
        "still too small",
    )


def test_of_failures_for_the_servers_sake_the_last_is_told() -> None:
    trial = verdict([Failure(Code.INTERNAL, "first"), Failure(Code.UNIMPLEMENTED, "")])
    assert (trial.outcome, trial.code, trial.message) == (Outcome.FAILED, Code.UNIMPLEMENTED, "UNIMPLEMENTED")
