"""BatchingParameters in protobuf's text format: what is taken, and what is refused with which words."""

from __future__ import annotations

from pathlib import Path

import pytest

from appliance.config.batching_parameters import (
    PER_MODEL_FILE,
    BatchingParameters,
    check_batching,
    of_version,
    parse_batching_parameters,
    read_batching_parameters,
)
from appliance.config.model_options import ModelOptions
from appliance.core.errors import ConfigError


def refusal(text: str) -> str:
    with pytest.raises(ConfigError) as caught:
        parse_batching_parameters(text, "params.txt")
    return str(caught.value)


def test_an_empty_file_has_the_defaults_of_tensorflow_serving() -> None:
    assert parse_batching_parameters("", "params.txt") == BatchingParameters(
        max_batch_size=1000,
        batch_timeout_micros=0,
        max_enqueued_batches=10,
        num_batch_threads=0,
        allowed_batch_sizes=(),
        pad_variable_length_inputs=False,
        enable_large_batch_splitting=False,
        max_execution_batch_size=1000,
    )


def test_every_field_is_read() -> None:
    text = """
        # comments, as people write them
        max_batch_size { value: 32 }
        batch_timeout_micros { value: 5000 }
        max_enqueued_batches { value: 1000000 }
        num_batch_threads { value: 8 }
        thread_pool_name { value: "model_server_batch_threads" }
        allowed_batch_sizes: 8
        allowed_batch_sizes: 16
        pad_variable_length_inputs: true
        enable_large_batch_splitting { value: true }
        max_execution_batch_size { value: 16 }
    """
    assert parse_batching_parameters(text, "params.txt") == BatchingParameters(
        32, 5000, 1_000_000, 8, (8, 16), True, True, 16
    )


def test_with_splitting_a_batch_may_be_as_large_as_a_request_unless_said_otherwise() -> None:
    split = parse_batching_parameters("max_batch_size{value:64} enable_large_batch_splitting{value:true}", "params.txt")
    assert (split.max_batch_size, split.max_execution_batch_size) == (64, 64)


def test_without_splitting_the_size_of_an_execution_is_the_largest_request() -> None:
    plain = parse_batching_parameters("max_batch_size{value:64} max_execution_batch_size{value:8}", "params.txt")
    assert plain.max_execution_batch_size == 64


def test_no_enqueued_batches_are_one_as_in_tensorflow_serving() -> None:
    assert parse_batching_parameters("max_enqueued_batches { value: 0 }", "params.txt").max_enqueued_batches == 1


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("max_batch_size { value: 0 }", "max_batch_size must be positive; was 0"),
        ("max_batch_size { value: -3 }", "max_batch_size must be positive; was -3"),
        ("batch_timeout_micros { value: -1 }", "batch_timeout_micros must be non-negative; was -1"),
        ("num_batch_threads { value: 0 }", "num_batch_threads must be positive; was 0"),
        ("num_batch_threads { value: 5000 }", "num_batch_threads is 5000; it is at most 4096"),
        ("max_enqueued_batches { value: -1 }", "max_enqueued_batches must be ≥ 0; was -1"),
        (
            "max_enqueued_batches { value: 0 } enable_large_batch_splitting { value: true }",
            "max_enqueued_batches must be positive; was 0",
        ),
        (
            "max_batch_size { value: 4 } allowed_batch_sizes: 2 allowed_batch_sizes: 8",
            "Last entry in allowed_batch_sizes must match max_batch_size; last entry was 8; expected 4",
        ),
        (
            "allowed_batch_sizes: 2",
            "Last entry in allowed_batch_sizes must match max_batch_size; last entry was 2; expected 1000",
        ),
        (
            "max_batch_size { value: 4 } allowed_batch_sizes: 4 allowed_batch_sizes: 2",
            "allowed_batch_sizes entries must be monotonically increasing",
        ),
        (
            "max_batch_size { value: 4 } allowed_batch_sizes: 4 allowed_batch_sizes: 4",
            "allowed_batch_sizes entries must be monotonically increasing",
        ),
        (
            "max_batch_size { value: 4 } allowed_batch_sizes: 0 allowed_batch_sizes: 4",
            "allowed_batch_sizes entries must be monotonically increasing",
        ),
        (
            (
                "max_batch_size{value:8} enable_large_batch_splitting{value:true} max_execution_batch_size{value:4} "
                "allowed_batch_sizes: 8"
            ),
            "Last entry in allowed_batch_sizes must be equal to max_execution_batch_size; last entry was 8; expected 4",
        ),
        (
            "max_batch_size{value:4} enable_large_batch_splitting{value:true} max_execution_batch_size{value:8}",
            "input_batch_size_limit must be greater than or equal to max_execution_batch_size",
        ),
    ],
)
def test_what_cannot_be_is_refused_with_the_value(text: str, expected: str) -> None:
    message = refusal(text)
    assert message.startswith("params.txt: ")
    assert expected in message


@pytest.mark.parametrize("text", ["max_batch_size {", "max_batch { value: 3 }", "max_batch_size { value: true }", "{}"])
def test_what_is_no_such_message_is_refused_with_the_file_and_the_place(text: str) -> None:
    message = refusal(text)
    assert message.startswith("params.txt: Error parsing text-format tensorflow.serving.BatchingParameters: 1:")
    assert "max_batch_size { value: 32 }" in message


def test_a_bare_number_is_refused_with_how_to_write_it() -> None:
    assert refusal("batch_timeout_micros: 500").endswith("write the number as batch_timeout_micros { value: 32 }")


def test_a_file_that_is_not_there_not_text_or_huge_is_refused(tmp_path: Path) -> None:
    binary, huge = tmp_path / "binary", tmp_path / "huge"
    binary.write_bytes(b"\xff\xfe")
    huge.write_bytes(b"#" * 1_048_577)
    for path, words in [(tmp_path / "none", "No such file"), (binary, "not UTF-8"), (huge, "more than 1,048,576")]:
        with pytest.raises(ConfigError, match=words) as caught:
            read_batching_parameters(str(path))
        assert str(path) in str(caught.value)


def write(path: Path, text: str) -> str:
    path.write_text(text)
    return str(path)


def test_without_enable_batching_no_version_is_batched(tmp_path: Path) -> None:
    write(tmp_path / PER_MODEL_FILE, "max_batch_size { value: 4 }")
    assert of_version(ModelOptions(enable_per_model_batching_parameters=True), str(tmp_path)) is None


def test_the_common_file_is_for_every_version(tmp_path: Path) -> None:
    common = write(tmp_path / "common.txt", "max_batch_size { value: 4 }")
    write(tmp_path / PER_MODEL_FILE, "max_batch_size { value: 16 }")
    found = of_version(ModelOptions(enable_batching=True, batching_parameters_file=common), str(tmp_path))
    assert found == BatchingParameters(max_batch_size=4, max_execution_batch_size=4)


def test_a_versions_own_file_replaces_all_but_the_threads_of_the_common_one(tmp_path: Path) -> None:
    common = write(tmp_path / "common.txt", "batch_timeout_micros { value: 7 } num_batch_threads { value: 3 }")
    write(tmp_path / PER_MODEL_FILE, "max_batch_size { value: 16 } num_batch_threads { value: 9 }")
    options = ModelOptions(
        enable_batching=True, batching_parameters_file=common, enable_per_model_batching_parameters=True
    )
    expected = BatchingParameters(max_batch_size=16, max_execution_batch_size=16, num_batch_threads=3)
    assert of_version(options, str(tmp_path)) == expected


def test_with_per_model_parameters_a_version_without_a_file_is_not_batched(tmp_path: Path) -> None:
    options = ModelOptions(enable_batching=True, enable_per_model_batching_parameters=True)
    assert of_version(options, str(tmp_path)) is None


def test_a_file_that_nothing_uses_is_refused_in_tensorflow_servings_words(tmp_path: Path) -> None:
    options = ModelOptions(batching_parameters_file=write(tmp_path / "p", ""))
    with pytest.raises(ConfigError, match="is set without setting server_options"):
        check_batching(options, [])
    check_batching(options, [ModelOptions(enable_batching=True)])


def test_a_bad_file_of_one_model_is_found_before_the_start(tmp_path: Path) -> None:
    bad = write(tmp_path / "bad", "max_batch_size { value: 0 }")
    check_batching(ModelOptions(), [ModelOptions(batching_parameters_file=bad)])
    with pytest.raises(ConfigError, match="must be positive"):
        check_batching(ModelOptions(), [ModelOptions(enable_batching=True, batching_parameters_file=bad)])
