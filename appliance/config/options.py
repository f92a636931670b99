"""Every option: the one table from which the flags, the TOML keys, `--help` and docs/options.md derive."""

from __future__ import annotations

import difflib
import math
import os
import re
import tomllib
import typing
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, fields
from typing import Any, TypeVar

from appliance.config.files import read_config_text
from appliance.config.version_policy import All, Latest, Specific, VersionPolicy
from appliance.core.errors import ConfigError
from appliance.core.gpu_devices import parse_gpu_devices

T = TypeVar("T")
M = TypeVar("M", bound="ModelOptions")

_GIB = 1024**3
_MIB = 1024**2
_MAX_DIGITS = 19  # of a version, which is at most 2**63 - 1
_INTEGER = re.compile(r"[+-]?[0-9]{1,18}")


@dataclass(frozen=True, slots=True)
class About:
    """What is said of an option, and what its value is checked against.

    `check` raises ConfigError; `normal` does too, and returns the value in the form that is kept. `file_only`: it is a
    key in the TOML file, and no flag.
    """

    help: str
    group: str
    minimum: float | None = None
    maximum: float | None = None
    choices: tuple[str, ...] = ()
    check: Callable[[Any], object] | None = None
    normal: Callable[[Any], Any] | None = None
    file_only: bool = False


def _option(
    default: T,
    group: str,
    text: str,
    *,
    minimum: float | None = None,
    maximum: float | None = None,
    choices: tuple[str, ...] = (),
    check: Callable[[Any], object] | None = None,
    normal: Callable[[Any], Any] | None = None,
    file_only: bool = False,
) -> T:
    about = About(text, group, minimum, maximum, choices, check, normal, file_only)
    return field(default=default, metadata={"about": about})


def parse_version_policy(text: str) -> VersionPolicy:
    """`latest`, `latest:N`, `all` or `specific:V,V` as a policy. Raises ConfigError."""
    kind, colon, rest = text.partition(":")
    numbers = [n.strip() for n in rest.split(",")] if colon else []
    if all(n.isascii() and n.isdigit() and len(n) <= _MAX_DIGITS for n in numbers):
        versions = [int(n) for n in numbers]
        if kind == "latest" and (not versions or (len(versions) == 1 and versions[0] >= 1)):
            return Latest(*versions)
        if kind == "all" and not versions:
            return All()
        if kind == "specific" and versions:
            return Specific(frozenset(versions))
    raise ConfigError(
        f"version_policy is {text!r}", "it is one of latest, latest:N (N at least 1), all, specific:V or specific:V,V"
    )


def format_version_policy(policy: VersionPolicy) -> str:
    """The text that `parse_version_policy` reads as `policy`."""
    match policy:
        case Latest(num_versions):
            return f"latest:{num_versions}"
        case Specific(versions):
            return f"specific:{','.join(map(str, sorted(versions)))}"
        case All():
            return "all"


def parse_channel_arguments(text: str) -> dict[str, int | str]:
    """gRPC's arguments in `name=value,name=value`; of two with one name the last counts. Raises ConfigError.

    As in TensorFlow Serving (`model_servers/server.cc`), a value that is a 32-bit number is one, any other a string.
    """
    arguments: dict[str, int | str] = {}
    for part in text.split(",") if text.strip() else ():
        name, equals, value = (piece.strip() for piece in part.partition("="))
        if not name or not equals:
            raise ConfigError(
                f"grpc_channel_arguments has {part!r}",
                "write name=value,name=value, such as grpc.max_concurrent_streams=100",
            )
        is_number = _INTEGER.fullmatch(value) is not None and -(2**31) <= int(value) < 2**31
        arguments[name] = int(value) if is_number else value
    return arguments


def local_path(written: str) -> str:
    """An absolute path without `file://` and without slashes at its end; `""` stays. Raises ConfigError."""
    path = written.removeprefix("file://")
    scheme, found, _ = path.partition("://")
    if found:
        raise ConfigError(f"{path!r} is on {scheme}", "only local folders are served; mount it, or copy it here")
    if path and not os.path.isabs(path):
        raise ConfigError(f"{path!r} is a relative path", f"give an absolute one, such as {os.path.abspath(path)}")
    return path.rstrip("/") or path[:1]


def local_paths(written: Sequence[str]) -> tuple[str, ...]:
    """Absolute paths, each as `local_path` has it. Raises ConfigError."""
    if "" in written:
        raise ConfigError("one of its paths is empty", "give absolute paths, or leave it out")
    return tuple(map(local_path, written))


def parse_precisions(text: str) -> tuple[str, ...]:
    """The precisions in `float32,int8`. Raises ConfigError."""
    found = tuple(part.strip() for part in text.split(",") if part.strip())
    if not found or not set(found) <= {"float32", "float16", "int8"}:
        raise ConfigError(
            f"acceleration_precisions is {text!r}", "it is one or more of float32, float16 and int8, with commas"
        )
    return found


def _is_model_name(name: str) -> object:
    if not name or "/" in name or ":" in name:
        raise ConfigError(f"{name!r} is no model's name", "a model's name is not empty and has no / and no :")
    return name


_MODEL, _MODELS, _NETWORK = "Options of a model", "Which models", "Network"
_LIMITS, _LIFE, _PROCESS, _LOG = "Limits", "Life of versions", "Processes", "Logs"
_BATCHING, _WARMUP, _SAFETY, _MONITORING = "Batching", "Warm-up", "Security", "Monitoring"
_ACCELERATION = "Acceleration"


@dataclass(frozen=True, slots=True)
class ModelOptions:
    """What can differ from model to model: in `[models.NAME]`, or for all models at the top level."""

    base_path: str = _option(
        "",
        _MODEL,
        "Folder that holds the version folders. Only in [models.NAME].",
        normal=local_path,
        file_only=True,
    )
    version_policy: str = _option(
        "latest",
        _MODEL,
        "Which versions are served: latest, latest:N, all, or specific:V,V.",
        check=parse_version_policy,
    )
    settle_seconds: float = _option(
        2.0, _MODEL, "A version folder is loaded once nothing in it has changed for so long.", minimum=0, maximum=86400
    )
    saved_model_tags: str = _option("serve", _MODEL, "Tags of the MetaGraph to load, separated by commas.")
    tensorflow_intra_op_parallelism: int = _option(
        0, _MODEL, "Threads inside one op of a model; 0: the framework's choice.", minimum=0, maximum=4096
    )
    tensorflow_inter_op_parallelism: int = _option(
        0, _MODEL, "Threads across TensorFlow ops; 0: TensorFlow's choice.", minimum=0, maximum=4096
    )
    max_concurrent_requests: int = _option(
        0, _MODEL, "Requests that a version runs at once; 0: the number of cores.", minimum=0, maximum=1024
    )
    max_queue_requests: int = _option(
        1000, _MODEL, "Requests that may wait for a version; more get 429 / RESOURCE_EXHAUSTED.", minimum=0
    )
    max_queue_bytes: int = _option(
        256 * _MIB, _MODEL, "Bytes of requests that may wait for a version; more get 429.", minimum=0
    )
    load_timeout_seconds: float = _option(
        600.0, _MODEL, "A version that is not loaded by then has failed.", minimum=1, maximum=86400
    )
    release_gate: str = _option(
        "strict",
        _MODEL,
        "Whether a version takes over only once its signatures have answered a request, or refused one for the "
        "input's sake: strict; only-replacing: if another version serves meanwhile; off.",
        choices=("strict", "only-replacing", "off"),
    )
    signature_changes: str = _option(
        "warn",
        _MODEL,
        "What to do with a new version that drops a signature, or changes an input's name, dtype or rank: warn, or "
        "refuse it.",
        choices=("warn", "refuse"),
    )
    incomplete_after_seconds: float = _option(
        30.0,
        _MODEL,
        "A version folder that looks incomplete and has not changed for so long is loaded as it is; what the loader "
        "says then is the reason.",
        minimum=0,
        maximum=86400,
    )
    crash_window_seconds: float = _option(
        60.0,
        _MODEL,
        "A version whose worker dies three times within so many seconds gives way to the version before it; 0: never.",
        minimum=0,
        maximum=86400,
    )
    tensorflow_session_config_file: str = _option(
        "", _MODEL, "File with a tensorflow.ConfigProto in protobuf's text format, for the session.", normal=local_path
    )
    op_libraries: tuple[str, ...] = _option(
        (),
        _MODEL,
        "Files of libraries with custom operators (.so), built for exactly this TensorFlow, that are loaded before a "
        "SavedModel: they run with the server's rights, so only root or the server's user may be able to write them. "
        "Only in the TOML file.",
        normal=local_paths,
        file_only=True,
    )
    prefer_tflite_model: bool = _option(
        False, _MODEL, "Serve model.tflite of a version folder, where there is one, instead of its SavedModel."
    )
    num_tflite_interpreters: int = _option(
        0,
        _MODEL,
        "Interpreters of a TF-Lite model, each with memory of its own; 0: the number of cores.",
        minimum=0,
        maximum=1024,
    )
    onnx_spinning: bool = _option(
        False,
        _MODEL,
        "Let ONNX Runtime's threads spin while they wait for each other: a little faster for small models on idle "
        "cores, much slower on busy ones.",
    )
    device: str = _option(
        "auto",
        _MODEL,
        "What a model runs on: auto (a GPU where there is one), cpu, or cuda; that a GPU cannot be used is logged.",
        choices=("auto", "cpu", "cuda"),
    )
    gpu_devices: str = _option(
        "",
        _MODEL,
        "The GPUs that may be used: numbers as nvidia-smi has them, or UUIDs, separated by commas; empty: all.",
        check=parse_gpu_devices,
    )
    gpu_memory_limit_bytes: int = _option(
        0, _MODEL, "Bytes that a version on ONNX Runtime may take of a GPU for its tensors; 0: no limit.", minimum=0
    )

    enable_batching: bool = _option(
        False, _BATCHING, "Let requests wait for others, as batching_parameters_file says, and run them together."
    )
    batching_parameters_file: str = _option(
        "", _BATCHING, "File with BatchingParameters in protobuf's text format.", normal=local_path
    )
    enable_per_model_batching_parameters: bool = _option(
        False,
        _BATCHING,
        "With enable_batching: take BatchingParameters from batching_params.pbtxt in the version folder, and only "
        "num_batch_threads from batching_parameters_file; a version without the file is not batched.",
    )
    merge_waiting_requests: bool = _option(
        True,
        _BATCHING,
        "Without enable_batching: run requests that wait anyway together, where warm-up has shown that the answers "
        "stay the same.",
    )
    max_merged_batch_size: int = _option(
        8, _BATCHING, "Rows that requests merged by merge_waiting_requests have at most.", minimum=1, maximum=65536
    )

    enable_model_warmup: bool = _option(
        True, _WARMUP, "Run requests before a version is available, so that no client pays for the first."
    )
    num_request_iterations_for_warmup: int = _option(
        0, _WARMUP, "How often each recorded warm-up request is run; 0: once.", minimum=0, maximum=1_000_000
    )
    warmup_timeout_seconds: float = _option(
        30.0, _WARMUP, "Warm-up with made-up inputs ends by then; 0: none.", minimum=0, maximum=86400
    )

    acceleration: str = _option(
        "auto",
        _ACCELERATION,
        "Convert SavedModels, prove the result equal, and serve what is fastest: of all forms (auto), or of ONNX or "
        "TF-Lite alone.",
        choices=("auto", "onnx", "tflite", "off"),
    )
    acceleration_min_speedup: float = _option(
        1.1,
        _ACCELERATION,
        "A converted form is served if it is so many times as fast as TensorFlow. Below 1, a slower one may be.",
        minimum=0,
        maximum=1000,
    )
    wait_for_acceleration: bool = _option(
        False, _ACCELERATION, "A version becomes available only once its form has been chosen."
    )
    acceleration_precisions: str = _option(
        "float32",
        _ACCELERATION,
        "What may be tried, separated by commas: float32, float16 and int8 (weights of TF-Lite models; answers differ "
        "more).",
        check=parse_precisions,
    )
    conversion_timeout_seconds: float = _option(
        600.0, _ACCELERATION, "A conversion that takes longer is ended.", minimum=1, maximum=86400
    )
    conversion_memory_bytes: int = _option(
        8 * _GIB,
        _ACCELERATION,
        "A conversion that takes more memory is ended. TensorFlow alone takes half a GiB, 100 MB of weights 4 GiB.",
        minimum=64 * _MIB,
    )
    proof_inputs: str = _option(
        "any",
        _ACCELERATION,
        "What clients send: any floats (a form is given only those that it was proven for, TensorFlow the others), or "
        "finite ones of a usual size alone, which is not checked then.",
        choices=("any", "finite"),
    )
    parity_tolerance: float = _option(
        1e-4,
        _ACCELERATION,
        "How far an output of a float32 form may be off, relative to its size. Whole numbers must be equal.",
        minimum=0,
        maximum=1,
    )
    parity_tolerance_tf32: float = _option(
        1e-2, _ACCELERATION, "The same on a GPU that multiplies in TF32.", minimum=0, maximum=1
    )
    parity_tolerance_float16: float = _option(1e-2, _ACCELERATION, "The same for float16.", minimum=0, maximum=1)
    parity_tolerance_int8: float = _option(1e-1, _ACCELERATION, "The same for int8.", minimum=0, maximum=1)
    parity_absolute_tolerance: float = _option(
        1e-7, _ACCELERATION, "How far any output may be off besides, absolutely.", minimum=0, maximum=1000
    )

    @property
    def precisions(self) -> tuple[str, ...]:
        return parse_precisions(self.acceleration_precisions)

    @property
    def tags(self) -> tuple[str, ...]:
        return tuple(tag.strip() for tag in self.saved_model_tags.split(",") if tag.strip())

    @property
    def policy(self) -> VersionPolicy:
        return parse_version_policy(self.version_policy)


@dataclass(frozen=True, slots=True)
class Options(ModelOptions):
    """The options of one server."""

    model_root: str = _option(
        "", _MODELS, "Folder of models: each sub-folder with numbered version folders is one.", normal=local_path
    )
    model_name: str = _option("default", _MODELS, "Name of the model at --model_base_path.", check=_is_model_name)
    model_base_path: str = _option(
        "", _MODELS, "Base path of one model, which holds its version folders.", normal=local_path
    )
    model_config_file: str = _option("", _MODELS, "File with a ModelServerConfig in protobuf's text format.")
    model_config_file_poll_wait_seconds: int = _option(
        0, _MODELS, "Seconds between looks at model_config_file for changes; 0: never.", minimum=0, maximum=86400
    )
    allow_version_labels_for_unavailable_models: bool = _option(
        False, _MODELS, "Let a new label point at a version that is not available yet."
    )
    reload_timeout_seconds: float = _option(
        60.0, _MODELS, "A reload by RPC answers by then, with the state of each model.", minimum=0.1, maximum=86400
    )

    bind_address: str = _option("0.0.0.0", _NETWORK, "Address that REST and gRPC listen on; :: for IPv6 and IPv4.")  # noqa: S104
    rest_api_port: int = _option(
        8501, _NETWORK, "Port of REST; 0: any free one; -1: no REST.", minimum=-1, maximum=65535
    )
    port: int = _option(
        8500, _NETWORK, "Port of gRPC; 0: any free one; -1: none, only grpc_socket_path.", minimum=-1, maximum=65535
    )
    listen_when_loaded: bool = _option(
        False,
        _NETWORK,
        "Take no requests before each model that is there at the start has been loaded or has failed, for "
        "ready_timeout_seconds at most.",
    )
    grpc_socket_path: str = _option(
        "", _NETWORK, "Unix socket that gRPC listens on too, with mode 0660 and without TLS.", normal=local_path
    )
    rest_api_timeout_in_ms: int = _option(
        30000, _NETWORK, "A REST request that has no answer by then gets 504.", minimum=1, maximum=86_400_000
    )

    rest_api_enable_cors_support: bool = _option(False, _NETWORK, "Let web pages of any origin call REST (CORS).")
    rest_compression_min_bytes: int = _option(
        1024,
        _NETWORK,
        "REST answers of this size and more are compressed for clients that accept it; 0: none.",
        minimum=0,
    )
    grpc_channel_arguments: str = _option(
        "",
        _NETWORK,
        "Arguments for gRPC's server, as name=value, separated by commas. They go before the server's own.",
        check=parse_channel_arguments,
    )
    grpc_max_threads: int = _option(
        0, _NETWORK, "Inference requests that one gRPC process works on at once; more wait; 0: no bound.", minimum=0
    )
    enable_grpc_healthcheck_service: bool = _option(True, _NETWORK, "Offer gRPC's health service.")
    enable_serialization_as_tensor_content: bool = _option(
        False, _NETWORK, "Send gRPC's output tensors as tensor_content instead of the typed fields."
    )
    enable_signature_method_name_check: bool = _option(
        False, _NETWORK, "Let classify and regress use only signatures that were exported for that method."
    )

    ssl_config_file: str = _option(
        "", _SAFETY, "File with an SSLConfig in protobuf's text format: gRPC's port speaks TLS.", normal=local_path
    )
    allow_remote_reload: str = _option(
        "never",
        _SAFETY,
        "Who may reload models by TCP without a client certificate: never, loopback or any. A reload can make the "
        "server read any folder.",
        choices=("never", "loopback", "any"),
    )
    enable_profiler: bool = _option(
        False, _SAFETY, "Let TensorBoard's profiler trace the workers, from this machine only."
    )

    monitoring_config_file: str = _option(
        "",
        _MONITORING,
        "File with a MonitoringConfig in protobuf's text format: TensorFlow Serving's metrics.",
        normal=local_path,
    )

    max_request_bytes: int = _option(_GIB, _LIMITS, "Size of a REST body, inflated.", minimum=1)
    max_grpc_message_bytes: int = _option(2**31 - 1, _LIMITS, "Size of a gRPC message.", minimum=1, maximum=2**31 - 1)
    max_inflight_bytes: int = _option(
        4 * _GIB, _LIMITS, "Bytes of all requests in flight, shared out evenly over the front processes.", minimum=1
    )
    max_connections: int = _option(4096, _LIMITS, "REST connections of one front process.", minimum=1)
    max_header_bytes: int = _option(65536, _LIMITS, "Size of a REST request's headers.", minimum=1024)
    header_timeout_seconds: float = _option(
        10.0, _LIMITS, "A REST request's headers must be there by then.", minimum=0.1, maximum=3600
    )
    min_body_bytes_per_second: int = _option(
        16384, _LIMITS, "A REST body must come at least this fast on average, after body_grace_seconds.", minimum=1
    )
    body_grace_seconds: float = _option(
        10.0, _LIMITS, "For so long a REST body may come at any pace.", minimum=0.1, maximum=3600
    )
    shared_memory_bytes: int = _option(
        256 * _MIB,
        _LIMITS,
        "Shared memory of one front with one version, each way; more goes by the socket.",
        minimum=0,
    )

    file_system_poll_wait_seconds: float = _option(
        1.0,
        _LIFE,
        "Seconds between looks at the model folders; 0: look once; -1: never look, for tests.",
        minimum=-1,
        maximum=86400,
    )
    max_num_load_retries: int = _option(5, _LIFE, "Further attempts after a version failed to load.", minimum=0)
    load_retry_interval_micros: int = _option(
        60_000_000, _LIFE, "Microseconds between attempts to load a version.", minimum=0
    )
    max_concurrent_loads: int = _option(
        0, _LIFE, "Versions that load at once; 0: two for each core, at least 4.", minimum=0
    )
    ready_timeout_seconds: float = _option(
        60.0, _LIFE, "/readyz says ready by then even if a model's folder is empty or missing.", minimum=0
    )
    drain_timeout_seconds: float = _option(
        60.0, _LIFE, "A version that is unloaded may end its requests for so long.", minimum=0
    )
    shutdown_delay_seconds: float = _option(
        0.0,
        _LIFE,
        "After SIGTERM, /readyz says no and requests are served for so long before the ports close: time for load "
        "balancers to look elsewhere.",
        minimum=0,
        maximum=3600,
    )
    shutdown_grace_seconds: float = _option(
        30.0, _LIFE, "After SIGTERM, requests in flight may end for so long.", minimum=0
    )

    rest_workers: int = _option(
        0, _PROCESS, "REST processes; 0: one for each core, from 2 to 4.", minimum=0, maximum=256
    )
    grpc_workers: int = _option(
        0, _PROCESS, "gRPC processes; 0: one for each core, from 2 to 4.", minimum=0, maximum=256
    )
    cache_dir: str = _option(
        "",
        _ACCELERATION,
        "Folder for converted models, which several servers may share; by default $CACHE_DIRECTORY (systemd's), "
        "/var/cache/dropserve for root, or dropserve in the user's cache.",
        normal=local_path,
    )
    cache_max_bytes: int = _option(
        10 * _GIB,
        _ACCELERATION,
        "Size of cache_dir; the least recently used goes first. 0: keep nothing.",
        minimum=0,
    )

    runtime_dir: str = _option(
        "",
        _PROCESS,
        "Folder for the server's sockets; by default dropserve under $XDG_RUNTIME_DIR, or in /run or /tmp.",
        normal=local_path,
    )

    log_format: str = _option("text", _LOG, "Lines for people (text) or for programs (json).", choices=("text", "json"))
    log_level: str = _option(
        "info", _LOG, "The least important messages to log.", choices=("debug", "info", "warning", "error")
    )
    access_log: bool = _option(False, _LOG, "Log every request.")


def about(name: str) -> About:
    """What is said of the option `name`."""
    found: About = Options.__dataclass_fields__[name].metadata["about"]
    return found


def option_types(cls: type[ModelOptions]) -> dict[str, type]:
    """The options of `cls` by name, with bool, int, float, str, or tuple where it is a list of strings."""
    hints = typing.get_type_hints(cls)
    return {f.name: typing.get_origin(hints[f.name]) or hints[f.name] for f in fields(cls)}


def type_name(kind: type) -> str:
    """What the type of an option is called where users read it."""
    return "list of str" if kind is tuple else kind.__name__


def shown_default(name: str) -> str:
    """The default of the option `name` as users read it: "" where it is empty."""
    default = getattr(Options(), name)
    if isinstance(default, tuple):
        return ", ".join(default)
    return str(default).lower() if isinstance(default, bool) else str(default)


def options_from_json(cls: type[M], values: Mapping[str, Any]) -> M:
    """The options that went through JSON as `dataclasses.asdict` gave them: it has no tuples."""
    found: dict[str, Any] = {name: tuple(v) if isinstance(v, list) else v for name, v in values.items()}
    return cls(**found)


def no_flag(name: str) -> ConfigError | None:
    """The error for an option that is given as a flag and is none, because it is a list; None for all others."""
    if option_types(Options).get(name) is not tuple:
        return None
    return ConfigError(f"--{name} is no flag", f'write it into the file of --config: {name} = ["...", "..."]')


def from_text(name: str, text: str) -> Any:
    """The value of the option `name` that `text` (of a flag) stands for. Raises ConfigError."""
    kind = option_types(Options)[name]
    try:
        if kind is bool:
            return {"true": True, "1": True, "false": False, "0": False}[text.lower()]
        return kind(text)
    except (KeyError, ValueError):
        allowed = {bool: "true or false", int: "a whole number", float: "a number"}[kind]
        raise ConfigError(f"--{name} is {text!r}", f"it must be {allowed}") from None


def _checked(name: str, value: Any, where: str) -> Any:
    kind = option_types(Options)[name]
    if kind is float and type(value) is int:
        value = float(value)
    if kind is tuple and type(value) is list and all(type(each) is str for each in value):
        value = tuple(value)
    if type(value) is not kind:
        word = {
            bool: "true or false",
            int: "a whole number",
            float: "a number",
            str: "a string",
            tuple: 'a list of strings, such as ["/path/one", "/path/two"]',
        }[kind]
        raise ConfigError(f"{where}{name} is {value!r}", f"it must be {word}")
    if isinstance(value, float) and not math.isfinite(value):
        raise ConfigError(f"{where}{name} is {value!r}", "it must be a finite number")
    rule = about(name)
    if rule.choices and value not in rule.choices:
        raise ConfigError(f"{where}{name} is {value!r}", f"it is one of {', '.join(rule.choices)}")
    low, high = rule.minimum, rule.maximum
    if isinstance(value, (int, float)) and not (low if low is not None else value) <= value <= (
        high if high is not None else value
    ):
        limits = f"at least {low:,.10g}" if high is None else f"from {low:,.10g} to {high:,.10g}"
        raise ConfigError(f"{where}{name} is {value!r}", f"it must be {limits}")
    if rule.check is not None:
        try:
            rule.check(value)
        except ConfigError as error:
            raise ConfigError(f"{where}{name}: {error.message}", error.remedy) from None
    return value if rule.normal is None else _normal(name, value, rule.normal, where)


def _normal(name: str, value: Any, normal: Callable[[Any], Any], where: str) -> Any:
    try:
        return normal(value)
    except ConfigError as error:
        raise ConfigError(f"{where}{name}: {error.message}", error.remedy) from None


def unknown_option(name: str, known: Sequence[str], where: str) -> ConfigError:
    """The error for a name that is no option, with the nearest one that is."""
    near = difflib.get_close_matches(name, known, 1)
    remedy = f"did you mean {near[0]}?" if near else "dropserve serve --help lists all options"
    return ConfigError(f"there is no option {where}{name}", remedy)


@dataclass(frozen=True, slots=True)
class Settings:
    """All that was configured: the server's options, and what `[models.NAME]` says of single models."""

    options: Options
    models: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)

    def of_model(self, name: str, **from_config: Any) -> ModelOptions:
        """The options of one model. Precedence: `[models.NAME]`, then `from_config` (what a model_config_file says),
        then the server's options."""
        values = {f.name: getattr(self.options, f.name) for f in fields(ModelOptions)}
        return ModelOptions(**{**values, **from_config, **self.models.get(name, {})})


def read_settings(
    flags: Mapping[str, Any], config_path: str = "", defaults: Mapping[str, Any] | None = None
) -> Settings:
    """The settings that flags (name → value) and a TOML file give; a flag goes before the file. `defaults` stand
    instead of the options' own.

    Raises ConfigError for what is unknown or not allowed.
    """
    values: dict[str, Any] = dict(defaults or {})
    models: dict[str, dict[str, Any]] = {}
    if config_path:
        document = _read_toml(config_path)
        tables = document.pop("models", {})
        if not isinstance(tables, dict):
            raise ConfigError(f"{config_path}: models is {tables!r}", "write a table [models.NAME] for each model")
        known = list(option_types(Options))
        for name, value in document.items():
            if name not in known:
                raise unknown_option(name, known, f"{config_path}: ")
            values[name] = _checked(name, value, f"{config_path}: ")
        for model, table in tables.items():
            models[model] = _model_table(model, table, f"{config_path}: [models.{model}] ")
    for name, value in flags.items():
        values[name] = _checked(name, value, "--")
    if values.get("base_path"):
        raise ConfigError(
            f"base_path is {values['base_path']!r} for all models",
            "set model_base_path, or base_path in a table [models.NAME]",
        )
    return Settings(Options(**values), models)


def _read_toml(path: str) -> dict[str, Any]:
    try:
        return tomllib.loads(read_config_text(path, "the configuration"))
    except tomllib.TOMLDecodeError as error:
        raise ConfigError(f"{path} is not TOML: {error}") from None


def _model_table(model: str, table: Any, where: str) -> dict[str, Any]:
    if not isinstance(table, dict):
        raise ConfigError(f"{where}is {table!r}", "write it as a table of options")
    try:
        _is_model_name(model)
    except ConfigError as error:
        raise ConfigError(f"{where}names no model", error.remedy) from None
    known = list(option_types(ModelOptions))
    for name in table:
        if name not in known:
            raise unknown_option(name, known, where)
    checked = {name: _checked(name, value, where) for name, value in table.items()}
    if checked.get("base_path") == "":
        raise ConfigError(f"{where}base_path is ''", "give the absolute path of the folder of its version folders")
    return checked


def effective(count: int, cores: int, low: int, high: int) -> int:
    """`count`, or where it is 0 the number of cores within `low` and `high`."""
    return count or max(low, min(cores, high))
