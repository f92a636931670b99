"""All options: the one table from which the flags, the TOML keys, `--help` and docs/options.md derive.

Options of single models are in `model_options`, the server's are here.
"""

from __future__ import annotations

import typing
from dataclasses import dataclass, fields

from appliance.config.about import GIB, About, Group, option
from appliance.config.model_options import ModelOptions
from appliance.config.parsing import check_hang_seconds, check_model_name, local_path, parse_channel_arguments

__all__ = ["Options", "about", "effective", "option_types", "shown_default", "type_name"]


@dataclass(frozen=True, slots=True)
class Options(ModelOptions):
    """The options of one server."""

    model_root: str = option(
        "",
        Group.MODELS,
        "Folder of models: each sub-folder that holds numbered version folders is one model.",
        normal=local_path,
    )
    model_name: str = option("default", Group.MODELS, "Name of the model at model_base_path.", check=check_model_name)
    model_base_path: str = option(
        "", Group.MODELS, "Folder of one model, which holds its version folders.", normal=local_path
    )
    model_config_file: str = option(
        "", Group.MODELS, "File with a ModelServerConfig in protobuf's text format, which lists models."
    )
    model_config_file_poll_wait_seconds: int = option(
        0,
        Group.MODELS,
        "Seconds between checks of model_config_file for changes; 0: never check. SIGHUP reads it at any time.",
        minimum=0,
        maximum=86400,
    )
    allow_version_labels_for_unavailable_models: bool = option(
        False, Group.MODELS, "Let a new label point to a version that is not available yet."
    )

    bind_address: str = option(
        "0.0.0.0",  # noqa: S104
        Group.NETWORK,
        "Address that REST and gRPC listen on. Use :: for IPv6 and IPv4, 127.0.0.1 for this machine only.",
    )
    rest_api_port: int = option(
        8501, Group.NETWORK, "Port of REST; 0: any free port; -1: no REST.", minimum=-1, maximum=65535
    )
    port: int = option(
        8500,
        Group.NETWORK,
        "Port of gRPC; 0: any free port; -1: no port, only grpc_socket_path.",
        minimum=-1,
        maximum=65535,
    )
    listen_when_loaded: bool = option(
        False,
        Group.NETWORK,
        "Accept requests only after each model that exists at the start has loaded or failed, or after "
        "ready_timeout_seconds.",
    )
    grpc_socket_path: str = option(
        "",
        Group.NETWORK,
        "Path of a Unix socket that gRPC also listens on, with mode 0660 and without TLS.",
        normal=local_path,
    )
    rest_api_timeout_in_ms: int = option(
        30000,
        Group.NETWORK,
        "Milliseconds after which a REST request without an answer gets status 504.",
        minimum=1,
        maximum=86_400_000,
    )

    rest_api_enable_cors_support: bool = option(False, Group.NETWORK, "Let web pages of any origin call REST (CORS).")
    grpc_channel_arguments: str = option(
        "",
        Group.NETWORK,
        "Arguments for gRPC's server, as name=value, separated by commas. They take precedence over the server's own.",
        check=parse_channel_arguments,
    )
    grpc_max_threads: int = option(
        0,
        Group.NETWORK,
        "Inference requests that one gRPC process handles at once, while others wait; 0: no limit.",
        minimum=0,
    )
    enable_grpc_healthcheck_service: bool = option(True, Group.NETWORK, "Offer gRPC's standard health service.")
    enable_serialization_as_tensor_content: bool = option(
        False,
        Group.NETWORK,
        "In gRPC answers, put tensors into the field tensor_content instead of the typed fields. Use it if your "
        "clients decode that faster.",
    )
    enable_signature_method_name_check: bool = option(
        False, Group.NETWORK, "Let classify and regress use only signatures that were exported for that method."
    )

    ssl_config_file: str = option(
        "",
        Group.SAFETY,
        "File with an SSLConfig in protobuf's text format. With it, gRPC's port uses TLS.",
        normal=local_path,
    )
    allow_remote_reload: str = option(
        "never",
        Group.SAFETY,
        "Who may reload models over TCP without a client certificate: never (nobody), loopback (this machine) or "
        "any. A reload can make the server read any folder.",
        choices=("never", "loopback", "any"),
    )
    enable_profiler: bool = option(
        False, Group.SAFETY, "Let TensorBoard's profiler trace the workers, from this machine only."
    )

    monitoring_config_file: str = option(
        "",
        Group.MONITORING,
        "File with a MonitoringConfig in protobuf's text format, which enables TensorFlow Serving's metrics page.",
        normal=local_path,
    )

    max_request_bytes: int = option(
        GIB, Group.LIMITS, "The most bytes in the body of a REST request, after decompression.", minimum=1
    )
    max_json_bytes: int = option(
        64 * 1024**2,
        Group.LIMITS,
        "The most bytes in the body of a REST request, after decompression, that is parsed as JSON; 0: as many as "
        "max_request_bytes. What is parsed takes many times as much memory.",
        minimum=0,
    )
    max_grpc_message_bytes: int = option(
        2**31 - 1, Group.LIMITS, "The most bytes in a gRPC message.", minimum=1, maximum=2**31 - 1
    )
    max_inflight_bytes: int = option(
        4 * GIB,
        Group.LIMITS,
        "The most bytes of all requests and unread answers together, divided evenly among the front processes. What is "
        "parsed of one large JSON body at a time takes at most as much again.",
        minimum=1,
    )
    max_connections: int = option(4096, Group.LIMITS, "The most REST connections of one front process.", minimum=1)
    header_timeout_seconds: float = option(
        10.0, Group.LIMITS, "Seconds in which the headers of a REST request must arrive.", minimum=0.1, maximum=3600
    )
    body_grace_seconds: float = option(
        10.0,
        Group.LIMITS,
        "Seconds in which the body of a REST request may arrive, and its answer be read, at any speed; after that it "
        "must have been 16 KiB a second on average.",
        minimum=0.1,
        maximum=3600,
    )

    file_system_poll_wait_seconds: float = option(
        1.0,
        Group.LIFE,
        "Seconds between scans of the model folders; 0: scan once; -1: never scan (for tests). Changes on a local"
        " file system are noticed earlier, by events.",
        minimum=-1,
        maximum=86400,
    )
    max_num_load_retries: int = option(
        5, Group.LIFE, "How often loading a version is tried again after it has failed.", minimum=0
    )
    load_retry_interval_micros: int = option(
        60_000_000, Group.LIFE, "Microseconds between attempts to load a version.", minimum=0
    )
    max_concurrent_loads: int = option(
        0,
        Group.LIFE,
        "Versions that load at once; 0: two for each core, at least 4. Lower it if loading takes too much memory.",
        minimum=0,
    )
    slow_load_seconds: float = option(
        30.0,
        Group.LIFE,
        "Seconds after which a version that still loads does not count for max_concurrent_loads any more, so that a "
        "loader that hangs does not keep other models waiting. There are never more than twice as many loads.",
        minimum=1,
        maximum=86400,
    )
    ready_timeout_seconds: float = option(
        60.0,
        Group.LIFE,
        "Seconds after which /readyz says ready even if a model's folder is empty or missing.",
        minimum=0,
    )
    shutdown_delay_seconds: float = option(
        0.0,
        Group.LIFE,
        "Seconds after SIGTERM in which requests are still served while /readyz says not ready, so that load "
        "balancers stop sending requests before the ports close.",
        minimum=0,
        maximum=3600,
    )
    shutdown_grace_seconds: float = option(
        30.0, Group.LIFE, "Seconds that requests in progress have to end after SIGTERM.", minimum=0
    )

    rest_workers: int = option(
        0, Group.PROCESS, "REST processes; 0: one for each core, from 2 to 4.", minimum=0, maximum=256
    )
    grpc_workers: int = option(
        0, Group.PROCESS, "gRPC processes; 0: one for each core, from 2 to 4.", minimum=0, maximum=256
    )
    hang_seconds: float = option(
        10.0,
        Group.PROCESS,
        "Seconds without a sign of life after which a process is killed and started again; time in which it could not"
        " run does not count. 0: never.",
        minimum=0,
        maximum=86400,
        check=check_hang_seconds,
    )
    cache_dir: str = option(
        "",
        Group.ACCELERATION,
        "Folder for converted models, which several servers may share. Default: $CACHE_DIRECTORY (set by "
        "systemd), /var/cache/dropserve for root, or dropserve in the user's cache folder.",
        normal=local_path,
    )
    cache_key_file: str = option(
        "",
        Group.ACCELERATION,
        "File with the key that seals what is kept in cache_dir: at least 32 bytes, mode 0600. It is made if there is "
        "none; servers that share a cache need the same. Default: /var/lib/dropserve/keys/cache.key for root, or "
        "dropserve/cache.key in $XDG_STATE_HOME or ~/.local/state.",
        normal=local_path,
    )
    cache_max_bytes: int = option(
        10 * GIB,
        Group.ACCELERATION,
        "The most bytes in cache_dir; the least recently used models are deleted first. 0: keep nothing.",
        minimum=0,
    )

    runtime_dir: str = option(
        "",
        Group.PROCESS,
        "Folder for the server's sockets. Default: dropserve under $XDG_RUNTIME_DIR, or in /run or /tmp.",
        normal=local_path,
    )

    log_format: str = option(
        "text", Group.LOG, "Format of log lines: text (for people) or json (for programs).", choices=("text", "json")
    )
    log_level: str = option(
        "info", Group.LOG, "The least severe messages to log.", choices=("debug", "info", "warning", "error")
    )
    access_log: bool = option(False, Group.LOG, "Log every request.")


def about(name: str) -> About:
    """Return the description of the option `name`."""
    found: About = Options.__dataclass_fields__[name].metadata["about"]
    return found


def option_types(cls: type[ModelOptions]) -> dict[str, type]:
    """Return the types of the options of `cls` by name: bool, int, float, str, or tuple for a list of strings."""
    hints = typing.get_type_hints(cls)
    return {f.name: typing.get_origin(hints[f.name]) or hints[f.name] for f in fields(cls)}


def type_name(kind: type) -> str:
    """Return the name of an option's type for users."""
    return "list of str" if kind is tuple else kind.__name__


def shown_default(name: str) -> str:
    """Return the default of the option `name` as text for users; "" if it is empty."""
    default = getattr(Options(), name)
    if isinstance(default, tuple):
        return ", ".join(default)
    return str(default).lower() if isinstance(default, bool) else str(default)


def effective(count: int, cores: int, low: int, high: int) -> int:
    """Return `count`, or if it is 0 the number of cores limited to `low` to `high`."""
    return count or max(low, min(cores, high))
