"""The commands `dropserve` and `tensorflow_model_server`: the only reader of argv."""

from __future__ import annotations

import argparse
import asyncio
import importlib.metadata
import json
import logging
import os
import sys
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Callable
from typing import Any, NoReturn

import msgspec

from appliance import __version__
from appliance.cli.reference import flags_manual, flags_table, options_manual, options_page, sample
from appliance.config import model_server
from appliance.config.op_libraries import check_op_libraries
from appliance.config.options import Options, about, option_types, shown_default
from appliance.config.removed import REMOVED
from appliance.config.serving_flags import DEFAULTS, VERSION
from appliance.config.settings import Settings, from_text, no_flag, read_settings, unknown_option
from appliance.core.errors import ConfigError
from appliance.host import logs

logger = logging.getLogger(__name__)

_OPTIONS_IN: dict[str, Callable[[], str]] = {"markdown": options_page, "mdoc": options_manual, "toml": sample}
_FLAGS_IN: dict[str, Callable[[], str]] = {"markdown": flags_table, "mdoc": flags_manual}


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        raise ConfigError(message, f"see {self.prog} --help")


def _parser() -> argparse.ArgumentParser:
    parser = _Parser(prog="dropserve", description="Serves TensorFlow models: drop a folder, get an endpoint.")
    parser.add_argument("--version", action="version", version=f"dropserve {__version__}")
    commands = parser.add_subparsers(dest="command", metavar="COMMAND")
    serve = commands.add_parser(
        "serve",
        help="serve models",
        allow_abbrev=False,
        description="Serves models until SIGTERM. Flags go before the file of --config.",
    )
    serve.add_argument("--config", default="", metavar="FILE", help="TOML file with options, and tables [models.NAME]")
    groups: dict[str, Any] = {}
    for name, kind in option_types(Options).items():
        said = about(name)
        if said.file_only:
            continue
        group = groups.setdefault(said.group, None) or serve.add_argument_group(said.group)
        groups[said.group] = group
        default = shown_default(name)
        shown = f" [{default}]" if default else ""
        extra: dict[str, Any] = {"nargs": "?", "const": "true"} if kind is bool else {}
        group.add_argument(
            f"--{name}",
            metavar=kind.__name__.upper(),
            help=(said.help + shown).replace("%", "%%"),
            default=argparse.SUPPRESS,
            **extra,
        )
    for name in REMOVED:  # `read_settings` warns about them
        serve.add_argument(f"--{name}", nargs="?", default=argparse.SUPPRESS, help=argparse.SUPPRESS)
    models = commands.add_parser("models", help="list the models of a running server, with their states and reasons")
    models.add_argument("--detail", action="store_true", help="tell of each version what accelerates it, and why")
    models.add_argument("--url", default="http://localhost:8501", help="where its REST API is [%(default)s]")
    models.add_argument("--json", action="store_true", help="print JSON")
    gpu = commands.add_parser("gpu", help="show the GPUs, and which model each of their processes serves")
    gpu.add_argument("--url", default="http://localhost:8501", help="where a server's REST API is [%(default)s]")
    gpu.add_argument(
        "--watch", nargs="?", type=float, const=2.0, metavar="SECONDS", help="again every SECONDS (2), until Ctrl-C"
    )
    accelerated = commands.add_parser(
        "accelerate", help="convert a SavedModel, prove and measure the result, and print what would be served"
    )
    accelerated.add_argument("path", metavar="VERSION_FOLDER", help="folder that holds saved_model.pb")
    accelerated.add_argument("--config", default="", metavar="FILE", help="TOML file with options")
    accelerated.add_argument("--model", default="", metavar="NAME", help="take the options of its [models.NAME]")
    accelerated.add_argument("--cache_dir", default="", metavar="DIR", help="as the option of serve")
    accelerated.add_argument("--json", action="store_true", help="print the report as JSON")
    signed = commands.add_parser("sign", help="sign a version folder, so that servers with model_signing load it")
    signed.add_argument("path", metavar="VERSION_FOLDER", help="its files are signed, and it gets model.sig")
    signed.add_argument("--key", required=True, metavar="FILE", help="private key of an elliptic curve, in PEM")
    verified = commands.add_parser("verify", help="say whether a version folder is what somebody has signed")
    verified.add_argument("path", metavar="VERSION_FOLDER", help="folder that holds model.sig")
    verified.add_argument(
        "--key",
        required=True,
        action="append",
        metavar="FILE",
        help="public key, or certificates of an authority, in PEM; give it again for more",
    )
    doctor = commands.add_parser("doctor", help="say whether this machine can serve as configured, and what to do")
    doctor.add_argument(
        "--config", metavar="FILE", help="as for serve [/etc/dropserve/dropserve.toml, where there is one]"
    )
    doctor.add_argument("--json", action="store_true", help="print JSON")
    options = commands.add_parser("options", help="print the reference of all options")
    options.add_argument("--format", choices=tuple(_OPTIONS_IN), default="markdown", help="[%(default)s]")
    flags = commands.add_parser("flags", help="print the reference of tensorflow_model_server's flags")
    flags.add_argument("--format", choices=tuple(_FLAGS_IN), default="markdown", help="[%(default)s]")
    return parser


def main(arguments: list[str] | None = None) -> int:
    """Run the command.

    Return the exit status: 0, 1 if the result is not healthy, or 2 for a wrong command or setting.
    """
    try:
        return _main(sys.argv[1:] if arguments is None else arguments)
    except ConfigError as error:
        print(f"dropserve: {error}", file=sys.stderr)
        return 2
    except BrokenPipeError:
        return _without_reader()


def _without_reader() -> int:
    """Return the exit status for a reader such as `head` that has closed the pipe."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    return 1


def _main(arguments: list[str]) -> int:
    parser = _parser()
    parsed, unknown = parser.parse_known_args(arguments)
    if unknown:
        name = unknown[0].lstrip("-").partition("=")[0]
        if not unknown[0].startswith("--") or parsed.command != "serve":
            raise ConfigError(f"{unknown[0]!r} is not understood", "see dropserve --help")
        raise no_flag(name) or unknown_option(name, ["config", *option_types(Options)], "--")
    if parsed.command == "serve":
        return _serve(vars(parsed))
    if parsed.command == "models":
        return _models(parsed.url, parsed.json, parsed.detail)
    if parsed.command == "gpu":
        return _gpu(parsed.url, parsed.watch)
    if parsed.command == "accelerate":
        return _accelerate(parsed)
    if parsed.command in ("sign", "verify"):
        from appliance.cli import signatures  # noqa: PLC0415 - the other commands need none of it

        return (signatures.sign if parsed.command == "sign" else signatures.verify)(parsed.path, parsed.key)
    if parsed.command == "doctor":
        return _doctor(parsed.config, parsed.json)
    if parsed.command in ("options", "flags"):
        pages = _OPTIONS_IN if parsed.command == "options" else _FLAGS_IN
        print(pages[parsed.format](), end="")
        return 0
    parser.print_help()
    return 2


def _doctor(config: str | None, as_json: bool) -> int:
    from appliance.doctor import report as doctor  # noqa: PLC0415 - the other commands need none of it
    from appliance.supervisor import check_start  # noqa: PLC0415

    logging.disable()  # the findings say it
    text, status = doctor.examine(config, check_start, as_json)
    print(text, end="")
    sys.stdout.flush()
    os._exit(status)  # a thread that hangs in a dead file system must not keep the process alive


def _serve(parsed: dict[str, Any]) -> int:
    given = {name: text for name, text in parsed.items() if name not in ("command", "config")}
    flags = {name: text if name in REMOVED else from_text(name, text) for name, text in given.items()}

    def read() -> Settings:
        return read_settings(flags, parsed["config"])

    settings = read()
    logs.configure(settings.options.log_format, settings.options.log_level)
    return _run(settings, read)


def _run(settings: Settings, reread: Callable[[], Settings]) -> int:
    """Serve until the end, and exit."""
    from appliance.supervisor import Supervisor  # noqa: PLC0415 - the other commands need none of it

    async def run() -> int:
        return await Supervisor(settings, reread=reread).run()

    status = asyncio.run(run())
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(status)  # a scan that hangs in a dead file system must not keep the process alive


def model_server_main(arguments: list[str] | None = None) -> int:
    """Run `tensorflow_model_server`. Return the exit status: 0, or 255 if it does not start, as TensorFlow Serving."""
    try:
        line = model_server.parse(sys.argv[1:] if arguments is None else arguments)
    except ConfigError as error:
        print(f"tensorflow_model_server: {error}; see tensorflow_model_server --help", file=sys.stderr)
        return 255
    try:
        return _model_server(line)
    except ConfigError as error:
        print(f"Failed to start server. Error: {error}", file=sys.stderr)
        return 255
    except BrokenPipeError:
        return _without_reader()


def _model_server(line: model_server.CommandLine) -> int:
    if line.help:
        print(model_server.usage(), end="")
        return 0
    if line.version:
        print(f"TensorFlow ModelServer: {VERSION}")
        print(f"TensorFlow Library: {importlib.metadata.version('tensorflow')}")
        print(f"dropserve: {__version__}")
        return 0
    flags, remarks = model_server.translate(line, len(os.sched_getaffinity(0)))

    def read() -> Settings:
        settings = read_settings(flags, line.config, DEFAULTS)
        model_server.check(settings)
        return settings

    settings = read()
    logs.configure(settings.options.log_format, settings.options.log_level)
    for level, remark in [*remarks, *model_server.remarks(settings.options)]:
        logger.log(level, "%s", remark)
    return _run(settings, read)


def _gpu(url: str, watch_seconds: float | None) -> int:
    from appliance.cli import gpu as gpu_command  # noqa: PLC0415 - the other commands need none of it

    if watch_seconds is None:
        return gpu_command.show(url)
    if not 0.1 <= watch_seconds <= 86400:
        raise ConfigError(f"--watch is {watch_seconds:g}", "it is from 0.1 to 86,400 seconds")
    return gpu_command.watch(url, watch_seconds)


def _accelerate(parsed: argparse.Namespace) -> int:
    from appliance.conversion.form_cache import form_cache  # noqa: PLC0415
    from appliance.conversion.job import accelerate  # noqa: PLC0415
    from appliance.conversion.text import report_text  # noqa: PLC0415 - only this command needs it

    settings = read_settings({"cache_dir": parsed.cache_dir} if parsed.cache_dir else {}, parsed.config)
    options = settings.options
    model = settings.of_model(parsed.model) if parsed.model else options
    check_op_libraries([model])

    def say(text: str) -> None:
        print(text, file=sys.stderr, flush=True)

    try:
        report = accelerate(model, parsed.path, form_cache(options), say)
    except KeyboardInterrupt:
        say("dropserve: interrupted; nothing was kept")
        return 130
    print(json.dumps(msgspec.to_builtins(report), indent=2) + "\n" if parsed.json else report_text(report), end="")
    return 0


def _get(address: str) -> Any:
    try:
        with urllib.request.urlopen(address, timeout=10) as response:  # noqa: S310 - the user's own URL
            return json.load(response)
    except (OSError, ValueError, urllib.error.URLError) as error:
        raise ConfigError(
            f"no answer from {address}: {error}", "is the server running? Give its address as --url"
        ) from None


def _models(url: str, as_json: bool, detail: bool) -> int:
    address = url.rstrip("/") + "/v1/models"
    document = _get(address)
    details: list[tuple[str, dict[str, Any]]] = []
    if detail:
        for model in document["models"]:
            name = urllib.parse.quote(model["name"], safe="")
            for version in model["versions"]:
                try:
                    known = _get(f"{address}/{name}/versions/{version['version']}/acceleration")
                except ConfigError:
                    continue  # it was unloaded after the list was made
                version["acceleration"] = known
                details.append((f"{model['name']}/{version['version']}", version))
    if as_json:
        print(json.dumps(document, indent=2))
        return 0
    rows = [("MODEL", "VERSION", "STATE", "REASON")]
    for model in document["models"]:
        rows += [
            (
                model["name"],
                v["version"],
                v["phase"],
                "; ".join([*filter(None, [v["reason"]]), *v["remarks"], *v["refused"]]),
            )
            for v in model["versions"]
        ]
        if model["reason"] or not model["versions"]:
            rows.append((model["name"], "-", "-", model["reason"] or "no versions"))
    widths = [max(len(row[column]) for row in rows) for column in range(3)]
    for row in rows:
        print("  ".join([*(cell.ljust(width) for cell, width in zip(row, widths, strict=False)), row[3]]).rstrip())
    for servable, version in details:
        _print_acceleration(servable, version["acceleration"])
        for name, reason in version.get("unsupported", {}).items():
            print(f"signature {name!r} is not served: {reason}")
    return 0


def _print_acceleration(servable: str, known: dict[str, Any]) -> None:
    from appliance.conversion.text import Live, live_text, report_text  # noqa: PLC0415 - only this needs it
    from converters.report import Report  # noqa: PLC0415

    print(f"\n{servable}: served by {known['serving']}")
    if known["state"] in ("queued", "running", "failed"):
        print(f"conversion {known['state']}{': ' if known['progress'] else ''}{known['progress']}")
    elif known["state"] == "none":
        print("it is not accelerated: acceleration is off for it, or it is no SavedModel")
    if "chosen" in known:
        report = msgspec.convert(known, Report)
        print(report_text(report), end="")
        if "live" in known:
            print(live_text(report, msgspec.convert(known["live"], Live)))
        if report.form and known.get("proof_inputs") == "finite":
            print("proof_inputs is finite: nothing looks for NaN, infinity and floats out of the usual")
