"""TensorFlow Serving's flags: the table from which `tensorflow_model_server --help` and docs/conformance.md derive.

Names, types and defaults are those of `model_servers/main.cc` and `server.h` in TensorFlow Serving 2.21.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from appliance.config.options import about

__all__ = ["DEFAULTS", "FLAGS", "VERSION", "Flag"]

VERSION = "2.21.0"  # the version of TensorFlow Serving that is followed

# This command's defaults that differ from dropserve's: TensorFlow Serving's behaviour without the flag.
DEFAULTS: Mapping[str, Any] = {
    "rest_api_port": -1,
    "enable_profiler": True,
    "enable_grpc_healthcheck_service": False,
    "allow_remote_reload": "loopback",
    "listen_when_loaded": True,
    "release_gate": "only-replacing",  # TensorFlow Serving serves whatever loads
    "acceleration": "off",  # users of TensorFlow Serving did not ask for other numerics
}

_CPUS, _FOUR_PER_CPU = "CPUs", "4 * CPUs"


@dataclass(frozen=True, slots=True)
class Flag:
    """A flag of TensorFlow Serving.

    `default` is its own, or the rule in words for the two that it computes. `verdict` is the text in
    docs/conformance.md. `no_effect` is the reason why the flag has no effect here, if it has none.
    """

    name: str
    kind: str  # int32, int64, float, bool or string
    default: int | float | bool | str
    verdict: str = "same"
    no_effect: str = ""
    help: str = ""  # if it differs from the help of the option with that name

    @property
    def text(self) -> str:
        """The text of `--help`."""
        return self.help or (f"No effect: {self.no_effect}." if self.no_effect else about(self.name).help)

    @property
    def shown_default(self) -> str:
        """The default as `--help` and docs/conformance.md show it."""
        if self.kind == "bool":
            return str(self.default).lower()
        return f"{self.default:g}" if self.kind == "float" else str(self.default)


def _no_effect(name: str, kind: str, default: int | float | bool | str, reason: str) -> Flag:
    return Flag(name, kind, default, f"accepted, no effect, because {reason}", reason)


FLAGS: Mapping[str, Flag] = {
    flag.name: flag
    for flag in (
        Flag(
            "port", "int32", 8500, "better: 0 is allowed if there is only REST", help="Port of gRPC; 0: no gRPC port."
        ),
        Flag("grpc_socket_path", "string", "", "same; a relative path is relative to the working directory"),
        Flag(
            "rest_api_port",
            "int32",
            0,
            "same: no REST unless given; if it equals the port of gRPC, an error is logged and there is no REST",
            help="Port of REST; 0: no REST.",
        ),
        Flag(
            "rest_api_num_threads",
            "int32",
            _FOUR_PER_CPU,
            "better: one REST process handles any number of requests at once; a number below the number of REST "
            "processes starts fewer of them",
            help="The most REST processes; each handles any number of requests at once.",
        ),
        Flag("rest_api_timeout_in_ms", "int32", 30000),
        Flag("rest_api_enable_cors_support", "bool", False),
        Flag(
            "enable_batching", "bool", False, "same; if it is not set, `merge_waiting_requests` merges without a delay"
        ),
        Flag("allow_version_labels_for_unavailable_models", "bool", False),
        Flag("batching_parameters_file", "string", "", "same; refused without `enable_batching`, in the same words"),
        Flag("enable_per_model_batching_parameters", "bool", False),
        Flag("model_config_file", "string", "", "same: with it, `model_name` and `model_base_path` are ignored"),
        Flag("model_config_file_poll_wait_seconds", "int32", 0),
        Flag("model_name", "string", "default"),
        Flag(
            "model_base_path",
            "string",
            "",
            "same: a local folder, with `file://` or without; `s3://`, `gs://` and `hdfs://` are refused by name",
        ),
        Flag(
            "num_load_threads",
            "int32",
            0,
            "better: 0 loads several versions at once (see `max_concurrent_loads`) without delaying requests",
            help="Versions that load at once; 0: two for each core, at least 4.",
        ),
        _no_effect(
            "num_unload_threads",
            "int32",
            0,
            "each version is unloaded by ending its own process, in parallel with all others",
        ),
        Flag("max_num_load_retries", "int32", 5),
        Flag("load_retry_interval_micros", "int64", 60_000_000, "same: a value below 0 means no wait"),
        Flag("file_system_poll_wait_seconds", "int32", 1, "better: file events are noticed before the next scan"),
        _no_effect("flush_filesystem_caches", "bool", True, "only remote file systems have such a cache"),
        Flag(
            "tensorflow_session_parallelism",
            "int64",
            0,
            "same: sets `tensorflow_intra_op_parallelism` and `tensorflow_inter_op_parallelism`; refused if both are "
            "given",
            help="Sets tensorflow_intra_op_parallelism and tensorflow_inter_op_parallelism if neither is given.",
        ),
        Flag(
            "tensorflow_session_config_file",
            "string",
            "",
            "same; it is read when a version is loaded, and a version fails if the file has a mistake",
        ),
        Flag("tensorflow_intra_op_parallelism", "int64", 0),
        Flag("tensorflow_inter_op_parallelism", "int64", 0),
        _no_effect(
            "use_alts_credentials", "bool", False, "ALTS exists in Google's network only; `ssl_config_file` encrypts"
        ),
        Flag("ssl_config_file", "string", ""),
        _no_effect(
            "platform_config_file",
            "string",
            "",
            "there is one platform, TensorFlow; its options are flags of their own",
        ),
        _no_effect("per_process_gpu_memory_fraction", "float", 0.0, "TensorFlow runs on the CPU"),
        Flag("saved_model_tags", "string", "", "same: `serve` unless given"),
        Flag("grpc_channel_arguments", "string", ""),
        Flag(
            "grpc_max_threads",
            "int32",
            _FOUR_PER_CPU,
            "better: no limit unless given; then the requests that one gRPC process handles at once, while others wait",
        ),
        Flag("enable_model_warmup", "bool", True, "better: a model without recorded requests is warmed up too"),
        Flag("num_request_iterations_for_warmup", "int32", 0),
        Flag("version", "bool", False, help="Print the versions and exit."),
        Flag("monitoring_config_file", "string", ""),
        _no_effect(
            "remove_unused_fields_from_bundle_metagraph", "bool", True, "a loaded version keeps its signatures only"
        ),
        Flag("prefer_tflite_model", "bool", False),
        Flag(
            "num_tflite_pools",
            "int32",
            _CPUS,
            "same: multiplied by `num_tflite_interpreters_per_pool`, it is the number of interpreters",
            help="Multiplied by num_tflite_interpreters_per_pool, the number of interpreters of a TF-Lite model.",
        ),
        Flag(
            "num_tflite_interpreters_per_pool",
            "int32",
            1,
            "same: see `num_tflite_pools`",
            help="Multiplied by num_tflite_pools, the number of interpreters of a TF-Lite model.",
        ),
        Flag("enable_signature_method_name_check", "bool", False),
        _no_effect(
            "xla_cpu_compilation_enabled",
            "bool",
            False,
            "XLA compiles exactly the functions that were exported for it",
        ),
        _no_effect(
            "xla_gpu_compilation_enabled",
            "bool",
            False,
            "XLA compiles exactly the functions that were exported for it",
        ),
        Flag("enable_profiler", "bool", True, "better: only for clients on this machine"),
        _no_effect(
            "thread_pool_factory_config_file",
            "string",
            "",
            "TensorFlow has its own thread pools, of sizes that `tensorflow_intra_op_parallelism` and "
            "`tensorflow_inter_op_parallelism` set",
        ),
        _no_effect(
            "mixed_precision",
            "string",
            "",
            "graphs run as exported; set rewrite_options in `tensorflow_session_config_file` instead",
        ),
        _no_effect("skip_initialize_tpu", "bool", False, "there is no TPU"),
        Flag("enable_grpc_healthcheck_service", "bool", False),
        Flag("enable_serialization_as_tensor_content", "bool", False),
    )
}
