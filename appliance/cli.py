"""The command `dropserve`: the only reader of argv."""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import sys
import urllib.error
import urllib.request
from typing import Any, NoReturn

from appliance import __version__, logs
from appliance.errors import ConfigError
from appliance.options import Options, about, from_text, option_types, read_settings, unknown_option
from appliance.reference import options_page


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
    defaults = Options()
    for name, kind in option_types(Options).items():
        if name == "base_path":
            continue  # of one model, in the file only
        said = about(name)
        group = groups.setdefault(said.group, None) or serve.add_argument_group(said.group)
        groups[said.group] = group
        default = getattr(defaults, name)
        shown = f" [{str(default).lower() if kind is bool else default}]" if default != "" else ""
        extra: dict[str, Any] = {"nargs": "?", "const": "true"} if kind is bool else {}
        group.add_argument(
            f"--{name}",
            metavar=kind.__name__.upper(),
            help=(said.help + shown).replace("%", "%%"),
            default=argparse.SUPPRESS,
            **extra,
        )
    models = commands.add_parser("models", help="list the models of a running server, with their states and reasons")
    models.add_argument("--url", default="http://localhost:8501", help="where its REST API is [%(default)s]")
    models.add_argument("--json", action="store_true", help="print JSON")
    commands.add_parser("options", help="print the reference of all options, in Markdown")
    return parser


def main(arguments: list[str] | None = None) -> int:
    """Runs the command; the exit status: 0, or 2 for what was asked wrongly."""
    try:
        return _main(sys.argv[1:] if arguments is None else arguments)
    except ConfigError as error:
        print(f"dropserve: {error}", file=sys.stderr)
        return 2
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # a reader such as `head` has had enough
        return 1


def _main(arguments: list[str]) -> int:
    parser = _parser()
    parsed, unknown = parser.parse_known_args(arguments)
    if unknown:
        name = unknown[0].lstrip("-").partition("=")[0]
        if not unknown[0].startswith("--") or parsed.command != "serve":
            raise ConfigError(f"{unknown[0]!r} is not understood", "see dropserve --help")
        raise unknown_option(name, ["config", *option_types(Options)], "--")
    if parsed.command == "serve":
        return _serve(vars(parsed))
    if parsed.command == "models":
        return _models(parsed.url, parsed.json)
    if parsed.command == "options":
        print(options_page(), end="")
        return 0
    parser.print_help()
    return 2


def _serve(parsed: dict[str, Any]) -> int:
    from appliance.supervisor import Supervisor  # noqa: PLC0415 - the other commands need none of it

    flags = {name: from_text(name, text) for name, text in parsed.items() if name not in ("command", "config")}
    settings = read_settings(flags, parsed["config"])
    logs.configure(settings.options.log_format, settings.options.log_level)

    async def run() -> int:
        return await Supervisor(settings).run()

    status = asyncio.run(run())
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(status)  # a scan that hangs in a dead file system must not keep the process


def _models(url: str, as_json: bool) -> int:
    address = url.rstrip("/") + "/v1/models"
    try:
        with urllib.request.urlopen(address, timeout=10) as response:  # noqa: S310 - the user's own URL
            document = json.load(response)
    except (OSError, ValueError, urllib.error.URLError) as error:
        raise ConfigError(
            f"no answer from {address}: {error}", "is the server running? Give its address as --url"
        ) from None
    if as_json:
        print(json.dumps(document, indent=2))
        return 0
    rows = [("MODEL", "VERSION", "STATE", "REASON")]
    for model in document["models"]:
        rows += [(model["name"], v["version"], v["phase"], v["reason"]) for v in model["versions"]]
        if model["reason"] or not model["versions"]:
            rows.append((model["name"], "-", "-", model["reason"] or "no versions"))
    widths = [max(len(row[column]) for row in rows) for column in range(3)]
    for row in rows:
        print("  ".join([*(cell.ljust(width) for cell, width in zip(row, widths, strict=False)), row[3]]).rstrip())
    return 0
