"""Reads the text proto `tensorflow.serving.BatchingParameters`, which says how requests are batched.

Format: `tensorflow_serving/servables/tensorflow/session_bundle_config.proto`. Defaults, checks and their messages
follow TensorFlow's `core/kernels/batching_util/shared_batch_scheduler.h` and TensorFlow Serving's `batching_session.cc`
and `bundle_factory_util.cc`; the remedies are ours.
"""

from __future__ import annotations

import itertools
import os
import re
from collections.abc import Iterable
from dataclasses import dataclass, replace
from typing import Any

from appliance.config.files import read_config_text
from appliance.config.model_options import ModelOptions
from appliance.config.text_protos import parse_text
from appliance.core.errors import ConfigError
from appliance.protocols import protos

__all__ = [
    "PER_MODEL_FILE",
    "BatchingParameters",
    "check_batching",
    "of_version",
    "parse_batching_parameters",
    "read_batching_parameters",
]

PER_MODEL_FILE = "batching_params.pbtxt"
"""The file with a version's own parameters, in its folder (TensorFlow Serving's `bundle_factory_util.cc`)."""

_MAX_BYTES = 1024 * 1024
_MAX_THREADS = 4096
# `max_batch_size: 32`, the most common mistake in such a file: the numbers are messages with one field.
_BARE_NUMBER = re.compile(
    r"\b(max_batch_size|batch_timeout_micros|max_enqueued_batches|num_batch_threads|max_execution_batch_size)\s*:\s*\d"
)


@dataclass(frozen=True, slots=True)
class BatchingParameters:
    """When a batch closes, how many may wait, and what is padded. Sizes are in rows: dimension 0 of the inputs.

    `num_batch_threads` 0 means the number of cores. `allowed_batch_sizes` is empty if any size may run. A batch has at
    most `max_execution_batch_size` rows and a request at most `max_batch_size`; they are equal unless
    `enable_large_batch_splitting` is set.
    """

    max_batch_size: int = 1000
    batch_timeout_micros: int = 0
    max_enqueued_batches: int = 10
    num_batch_threads: int = 0
    allowed_batch_sizes: tuple[int, ...] = ()
    pad_variable_length_inputs: bool = False
    enable_large_batch_splitting: bool = False
    max_execution_batch_size: int = 1000


def read_batching_parameters(path: str) -> BatchingParameters:
    """Return the parameters in the file `path`. Raise ConfigError."""
    return parse_batching_parameters(read_config_text(path, "the batching parameters", _MAX_BYTES), path)


def parse_batching_parameters(text: str, source: str) -> BatchingParameters:
    """Return the parameters that `text` states, with defaults for the others.

    Raise ConfigError, which names `source`.
    """
    bare = _BARE_NUMBER.search(text)
    remedy = (
        f"write the number as {bare[1]} {{ value: 32 }}"
        if bare
        else "it is text such as max_batch_size { value: 32 } batch_timeout_micros { value: 1000 }"
    )
    return _checked(parse_text(text, protos.BatchingParameters(), source, remedy), source)


def of_version(options: ModelOptions, path: str) -> BatchingParameters | None:
    """Return the batching parameters of the version in the folder `path`; None if its requests are not batched.

    With per-model parameters, a version without its own file is not batched, and only the number of threads comes from
    the common file, as in TensorFlow Serving. Raise ConfigError.
    """
    if not options.enable_batching:
        return None
    common = (
        read_batching_parameters(options.batching_parameters_file)
        if options.batching_parameters_file
        else BatchingParameters()
    )
    if not options.enable_per_model_batching_parameters:
        return common
    own = os.path.join(path, PER_MODEL_FILE)
    if not os.path.exists(own):
        return None
    return replace(read_batching_parameters(own), num_batch_threads=common.num_batch_threads)


def check_batching(options: ModelOptions, models: Iterable[ModelOptions]) -> None:
    """Read every parameters file that `options` (the server's) and `models` name, before anything is served.

    Raise ConfigError for the first file that cannot be used.
    """
    enabled = [each for each in (options, *models) if each.enable_batching]
    if options.batching_parameters_file and not enabled:
        raise ConfigError(
            "server_options.batching_parameters_file is set without setting server_options.enable_batching to true.",
            "set enable_batching, or leave batching_parameters_file out",
        )
    for path in sorted({each.batching_parameters_file for each in enabled} - {""}):
        read_batching_parameters(path)


def _checked(message: Any, source: str) -> BatchingParameters:
    defaults = BatchingParameters()

    def number(name: str, default: int, low: int, rule: str, high: int = 2**63 - 1) -> int:
        value: int = getattr(message, name).value if message.HasField(name) else default
        if value < low:
            raise ConfigError(f"{source}: {name} must be {rule}; was {value}", f"write {name} {{ value: {default} }}")
        if value > high:
            raise ConfigError(f"{source}: {name} is {value}", f"it is at most {high}")
        return value

    max_batch_size = number("max_batch_size", defaults.max_batch_size, 1, "positive")
    timeout = number("batch_timeout_micros", defaults.batch_timeout_micros, 0, "non-negative", 2**50)
    splitting = message.enable_large_batch_splitting.value
    # Without splitting, TensorFlow accepts 0 as 1, for old configurations.
    enqueued = number(
        "max_enqueued_batches", defaults.max_enqueued_batches, 1 if splitting else 0, "positive" if splitting else "≥ 0"
    )
    threads = 0
    if message.HasField("num_batch_threads"):
        threads = number("num_batch_threads", 1, 1, "positive", _MAX_THREADS)
    execution = max_batch_size
    if splitting:
        execution = number("max_execution_batch_size", max_batch_size, 1, "positive")
        if execution > max_batch_size:
            raise ConfigError(
                f"{source}: When enable_large_batch_splitting is true, input_batch_size_limit must be greater than or "
                f"equal to max_execution_batch_size. max_batch_size is {max_batch_size}, max_execution_batch_size "
                f"{execution}",
                "max_batch_size bounds a request, and max_execution_batch_size what runs at once",
            )
    allowed = tuple(message.allowed_batch_sizes)
    _check_allowed(allowed, execution if splitting else max_batch_size, splitting, source)
    return BatchingParameters(
        max_batch_size=max_batch_size,
        batch_timeout_micros=timeout,
        max_enqueued_batches=max(enqueued, 1),
        num_batch_threads=threads,
        allowed_batch_sizes=allowed,
        pad_variable_length_inputs=message.pad_variable_length_inputs,
        enable_large_batch_splitting=splitting,
        max_execution_batch_size=execution,
    )


def _check_allowed(sizes: tuple[int, ...], largest: int, splitting: bool, source: str) -> None:
    if not sizes:
        return
    if any(later <= earlier for earlier, later in itertools.pairwise(sizes)) or sizes[0] < 1:
        raise ConfigError(
            f"{source}: allowed_batch_sizes entries must be monotonically increasing; they are {list(sizes)}",
            "list positive sizes from the smallest to the largest, each once",
        )
    if sizes[-1] != largest:
        name = "max_execution_batch_size" if splitting else "max_batch_size"
        verb = "be equal to" if splitting else "match"
        raise ConfigError(
            f"{source}: Last entry in allowed_batch_sizes must {verb} {name}; last entry was {sizes[-1]}; expected "
            f"{largest}",
            f"add allowed_batch_sizes: {largest}, or write {name} {{ value: {sizes[-1]} }}",
        )
