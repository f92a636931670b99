"""Translates the command line of `tensorflow_model_server` to our options, and checks it as TensorFlow Serving does.

Pure. TensorFlow Serving's rules are in its `model_servers/main.cc` and TensorFlow's `tsl/util/command_line_flags.cc`:
it accepts `--name=value`, and `--name` for true; an unknown argument is reported and ignored, and the server starts.
We also accept `--name value` and every option of dropserve.
"""

from __future__ import annotations

import difflib
import logging
import math
import os.path
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from appliance.config.options import Options, about, effective, option_types
from appliance.config.serving_flags import DEFAULTS, FLAGS
from appliance.config.settings import Settings, from_text, no_flag
from appliance.core.errors import ConfigError

__all__ = ["CommandLine", "announcements", "check", "parse", "remarks", "translate", "usage"]

# Logging flags of absl and glog, which many command lines have: those that need no value, and those that do.
_LIBRARY_BOOLEANS = frozenset(
    {"logtostderr", "alsologtostderr", "colorlogtostderr", "log_prefix", "stop_logging_if_full_disk", "only_check_args"}
)
_LIBRARY_VALUES = frozenset(
    {
        *("v", "vmodule", "stderrthreshold", "minloglevel", "log_dir", "log_link", "logbuflevel", "logbufsecs"),
        *("max_log_size", "log_backtrace_at", "logmailer", "alsologtoemail", "undefok", "flagfile", "fromenv"),
        "tryfromenv",
    }
)
_LIBRARY_PREFIXES = ("tf_", "xla_", "tfrt_", "absl_")

_OPTIONS = {name: kind for name, kind in option_types(Options).items() if not about(name).file_only}
_BOOLEANS = {"true": True, "1": True, "false": False, "0": False}
_WHOLE = re.compile(r"[+-]?[0-9]{1,30}")
_BOUNDS = {"int32": 2**31, "int64": 2**63}
_DAY_SECONDS = 86400
# A smaller value means the same as the lower limit (no retry, no pause, once, never). A larger value would wait longer
# than is useful.
_LIMITS: Mapping[str, tuple[int, int]] = {
    "max_num_load_retries": (0, 2**31),
    "load_retry_interval_micros": (0, 2**63),
    "num_request_iterations_for_warmup": (0, 2**31),
    "model_config_file_poll_wait_seconds": (0, _DAY_SECONDS),
    "file_system_poll_wait_seconds": (-1, _DAY_SECONDS),
    "rest_api_timeout_in_ms": (1, _DAY_SECONDS * 1000),
    "grpc_max_threads": (0, 2**31),
}
_FILES = (
    "model_config_file",
    "batching_parameters_file",
    "ssl_config_file",
    "monitoring_config_file",
    "tensorflow_session_config_file",
    "grpc_socket_path",
)


@dataclass(slots=True)
class CommandLine:
    """A parsed command line."""

    flags: dict[str, Any] = field(default_factory=dict)  # TensorFlow Serving's flags, by name
    options: dict[str, Any] = field(default_factory=dict)  # options that only dropserve has, by name
    config: str = ""
    help: bool = False
    library: list[str] = field(default_factory=list)  # names of flags of other libraries
    unknown: list[str] = field(default_factory=list)  # unknown arguments

    @property
    def version(self) -> bool:
        """Whether `--version` was given."""
        return bool(self.flags.get("version"))


def parse(arguments: Sequence[str]) -> CommandLine:
    """Return the parsed command line (without the program's name). If a flag is given twice, the last one counts.

    Raise ConfigError for a value that does not have its flag's type.
    """
    found = CommandLine()
    rest = list(arguments)
    while rest:
        argument = rest.pop(0)
        if argument == "--":  # the rest are not flags, and no other arguments are known
            found.unknown += rest
            break
        name, equals, text = argument[2:].partition("=")
        if argument in ("-h", "--help", "--helpfull", "--helpshort"):
            found.help = True
        elif not argument.startswith("--") or not name:
            found.unknown.append(argument)
        elif name in FLAGS:
            kind = FLAGS[name].kind
            found.flags[name] = _value(name, kind, text if equals else _following(name, kind == "bool", rest))
        elif name == "config":
            found.config = text if equals else _following(name, False, rest)
        elif name in _OPTIONS:
            found.options[name] = from_text(name, text if equals else _following(name, _OPTIONS[name] is bool, rest))
        elif (error := no_flag(name)) is not None:
            raise error
        else:
            boolean = name.removeprefix("no") in _LIBRARY_BOOLEANS
            known = boolean or name in _LIBRARY_VALUES or name.startswith(_LIBRARY_PREFIXES)
            if known:
                found.library.append(name)
            else:
                found.unknown.append(argument)
            # A following argument that is not a flag is its value, because this command line has no other arguments.
            if not equals and rest and not rest[0].startswith("-") and (not boolean or rest[0].lower() in _BOOLEANS):
                rest.pop(0)
    return found


def _following(name: str, boolean: bool, rest: list[str]) -> str:
    """Remove and return the value of `--name value` from `rest`; a boolean needs none."""
    if boolean:
        return rest.pop(0) if rest and rest[0].lower() in _BOOLEANS else "true"
    if not rest or rest[0].startswith("--"):
        raise ConfigError(f"--{name} has no value", f"write --{name}=VALUE")
    return rest.pop(0)


def _value(name: str, kind: str, text: str) -> Any:
    value: Any = None
    if kind == "bool":
        value = _BOOLEANS.get(text.lower())
    elif kind == "string":
        value = text
    elif kind == "float":
        try:
            value = float(text)
        except ValueError:
            value = None
        if value is not None and not math.isfinite(value):
            value = None
    elif _WHOLE.fullmatch(text.strip()) and -_BOUNDS[kind] <= int(text) < _BOUNDS[kind]:
        value = int(text)
    if value is None:
        allowed = {
            "bool": "true or false",
            "float": "a number",
            "int32": "a whole number of 32 bits",
            "int64": "a whole number of 64 bits",
        }
        raise ConfigError(f"Couldn't interpret value {text!r} for flag {name}", f"it must be {allowed[kind]}")
    return value


def translate(line: CommandLine, cores: int) -> tuple[dict[str, Any], list[tuple[int, str]]]:
    """Return the options that a command line sets, and remarks to log at the start: level and text.

    Raise ConfigError if TensorFlow Serving refuses the combination of flags.
    """
    given = line.flags
    remarks = [(logging.WARNING, _about_unknown(argument)) for argument in line.unknown]
    if line.library:
        names = ", ".join(f"--{name}" for name in dict.fromkeys(line.library))
        remarks.append((logging.INFO, f"{names}: no effect; --log_level and --log_format say what is logged"))
    options: dict[str, Any] = {}
    for name, value in given.items():
        flag = FLAGS[name]
        if flag.no_effect and value != flag.default:
            remarks.append((logging.WARNING, f"--{name}: no effect, because {flag.no_effect.replace('`', '')}"))
        elif not flag.no_effect and name in _OPTIONS:
            options[name] = value
    for name in _FILES:
        if options.get(name) and "://" not in options[name]:
            options[name] = os.path.abspath(options[name])
    if given.get("use_alts_credentials") and given.get("ssl_config_file"):
        raise ConfigError(
            "INVALID_ARGUMENT: use_alts_credentials and ssl_config_file are both set", "leave use_alts_credentials out"
        )
    _place_ports(given, options, remarks)
    _size_pools(given, options, cores)
    if given.get("rest_api_timeout_in_ms", 1) <= 0:
        options["rest_api_timeout_in_ms"] = _DAY_SECONDS * 1000  # as in TensorFlow, whose runs then have no time limit
    for name, (low, high) in _LIMITS.items():
        if name in options:
            options[name] = min(max(options[name], low), high)
    if options.get("saved_model_tags") == "":
        del options["saved_model_tags"]
    if options.get("model_config_file"):
        ignored = [name for name in ("model_name", "model_base_path") if options.pop(name, "")]
        if ignored:
            names = " and ".join(f"--{name}" for name in ignored)
            remarks.append((logging.INFO, f"{names}: ignored, because --model_config_file is given"))
    return {**options, **line.options}, remarks


def _about_unknown(argument: str) -> str:
    name = argument.lstrip("-").partition("=")[0]
    near = difflib.get_close_matches(name.replace("-", "_"), [*FLAGS, *_OPTIONS, "config"], 1)
    meant = f"did you mean --{near[0]}?" if near else "tensorflow_model_server --help lists the flags"
    return f"unknown argument: {argument}; it is ignored; {meant}"


def _place_ports(given: Mapping[str, Any], options: dict[str, Any], remarks: list[tuple[int, str]]) -> None:
    """Translate port 0, which means no port here and any free port among our options."""
    for name in ("port", "rest_api_port"):
        if given.get(name) == 0:
            options[name] = -1
    if given.get("rest_api_port") and given["rest_api_port"] == given.get("port", FLAGS["port"].default):
        options["rest_api_port"] = -1
        remarks.append(
            (
                logging.ERROR,
                f"--rest_api_port={given['rest_api_port']} is gRPC's port too: no REST; give it another port",
            )
        )


def _size_pools(given: Mapping[str, Any], options: dict[str, Any], cores: int) -> None:
    """Translate flags for numbers of threads to our numbers of processes, loads or interpreters."""
    intra, inter, both = (
        given.get(f"tensorflow_{kind}_parallelism", 0) for kind in ("intra_op", "inter_op", "session")
    )
    if intra > 0 and inter > 0 and both > 0:
        raise ConfigError(
            "INVALID_ARGUMENT: Either configure server_options.tensorflow_session_parallelism or "
            "(server_options.tensorflow_intra_op_parallelism, server_options.tensorflow_inter_op_parallelism) "
            "separately. You cannot configure all."
        )
    if intra <= 0 and inter <= 0:
        intra = inter = both
    if "tensorflow_session_parallelism" in given or intra or inter:
        options["tensorflow_intra_op_parallelism"] = max(intra, 0)
        options["tensorflow_inter_op_parallelism"] = max(inter, 0)
    if given.get("rest_api_num_threads", 0) > 0:
        options["rest_workers"] = min(given["rest_api_num_threads"], effective(0, cores, 2, 4))
    if "num_load_threads" in given:
        options["max_concurrent_loads"] = max(given["num_load_threads"], 0)
    if "num_tflite_pools" in given or "num_tflite_interpreters_per_pool" in given:
        pools = given.get("num_tflite_pools", cores)
        options["num_tflite_interpreters"] = max(pools, 0) * max(given.get("num_tflite_interpreters_per_pool", 1), 0)


def check(settings: Settings) -> None:
    """Raise ConfigError, in TensorFlow Serving's words (`model_servers/server.cc`), if it would not start either."""
    options = settings.options
    if options.port < 0 and options.rest_api_port < 0 and not options.grpc_socket_path:
        raise ConfigError(
            "INVALID_ARGUMENT: At least one of server_options.grpc_port or server_options.grpc_socket_path must be "
            "set.",
            "give --port, --grpc_socket_path or --rest_api_port",
        )
    named = options.model_base_path or options.model_config_file or options.model_root
    if not named and not any("base_path" in table for table in settings.models.values()):
        raise ConfigError(
            "INVALID_ARGUMENT: Both server_options.model_base_path and server_options.model_config_file are empty!",
            "give --model_base_path=DIR (the folder of the version folders) or --model_config_file=FILE",
        )
    if options.batching_parameters_file and not options.enable_batching:
        raise ConfigError(
            "INVALID_ARGUMENT: server_options.batching_parameters_file is set without setting "
            "server_options.enable_batching to true.",
            "add --enable_batching",
        )


def remarks(options: Options) -> list[tuple[int, str]]:
    """Return remarks about this command's defaults that its user should know: level and text."""
    if options.allow_remote_reload != DEFAULTS["allow_remote_reload"]:
        return []
    text = (
        "HandleReloadConfigRequest is accepted from this machine (behind a local proxy that is every client); "
        "--allow_remote_reload=never refuses it by TCP"
    )
    return [(logging.INFO, text)]


def announcements(address: str, port: int | None, socket_path: str, rest_api_port: int | None) -> list[str]:
    """Return the lines that TensorFlow Serving logs once it serves (`model_servers/server.cc`).

    Scripts wait for them. There is one for gRPC on `address` and `port`, the Unix socket and REST's port, as far as
    each exists.
    """
    return [
        *([] if port is None else [f"Running gRPC ModelServer at {address}:{port} ..."]),
        *([f"Running gRPC ModelServer at UNIX socket {socket_path} ..."] if socket_path else []),
        # [sic]: it says localhost whatever address it listens on. The last line comes from its HTTP library.
        *([] if rest_api_port is None else [f"Exporting HTTP/REST API at:localhost:{rest_api_port} ..."]),
        *([] if rest_api_port is None else ["Entering the event loop ..."]),
    ]


def usage() -> str:
    """Return the text of `--help`, in the form of TensorFlow's flags."""
    lines = ["usage: tensorflow_model_server", "Flags:"]
    for flag in FLAGS.values():
        default = f'"{flag.default}"' if flag.kind == "string" else flag.shown_default
        lines.append(f"\t{f'--{flag.name}={default}':<33}\t{flag.kind}\t{flag.text.replace('`', '')}")
    lines += [
        "Every option of dropserve is a flag too (dropserve serve --help), among them:",
        f"\t{'--config=FILE':<33}\tstring\tTOML file with options, and tables [models.NAME]",
    ]
    for name in ("model_root", "allow_remote_reload", "bind_address", "settle_seconds", "log_format", "log_level"):
        default = DEFAULTS.get(name, getattr(Options(), name))
        shown = f'"{default}"' if isinstance(default, str) else default
        lines.append(f"\t{f'--{name}={shown}':<33}\t{_OPTIONS[name].__name__}\t{about(name).help}")
    return "\n".join(lines) + "\n"
