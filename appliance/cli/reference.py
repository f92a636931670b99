"""Writes the reference from the tables of options and flags.

These are docs/options.md, the flags in docs/conformance.md, both in the manual pages (docs/man), and the sample
configuration etc/dropserve.toml.
"""

from __future__ import annotations

import json
import textwrap
from collections.abc import Mapping

from appliance.config.model_options import ModelOptions
from appliance.config.options import Options, about, option_types, shown_default, type_name
from appliance.config.serving_flags import FLAGS

_HEAD = """# Options

`dropserve options` writes this page from the table in `appliance/config/options.py`.

An option is a flag (`--port 8500` or `--port=8500`) and a key in the TOML file that `--config` names (`port = 8500`).
Lists, and options that are marked so, are only keys in the file. If an option is set in several places, the first of
these applies:

1. a table `[models.NAME]` in the TOML file, for the options marked *per model*;
2. the entry of the model in `model_config_file`, for its base path and version policy;
3. a flag;
4. a key at the top level of the TOML file;
5. the default.

`[models.NAME]` applies to the model of that name, wherever it is listed: in `--model_root`, `--model_base_path`, a
`model_config_file`, or by `base_path` in the table itself. If an option is unknown or a value is not allowed, the
server does not start, and says what is wrong and what is allowed.
"""


def options_page() -> str:
    """Return docs/options.md."""
    per_model = option_types(ModelOptions)
    groups: dict[str, list[str]] = {}
    for name, kind in option_types(Options).items():
        said = about(name)
        shown = _code(shown_default(name))
        limits = _limits(said.minimum, said.maximum, said.choices)
        mark = " *Per model.*" if name in per_model else ""
        row = f"| `{name}` | {type_name(kind)} | {shown} | {said.help}{limits}{mark} |"
        groups.setdefault(said.group, []).append(row)
    parts = [_HEAD]
    for group, rows in groups.items():
        parts.append(
            f"\n## {group}\n\n| option | type | default | what it does |\n|---|---|---|---|\n" + "\n".join(rows) + "\n"
        )
    return "".join(parts)


def _limits(minimum: float | None, maximum: float | None, choices: tuple[str, ...]) -> str:
    if choices:
        return f" One of {', '.join(choices)}."
    if minimum is not None and maximum is not None:
        return f" From {minimum:,.10g} to {maximum:,.10g}."
    return f" At least {minimum:,.10g}." if minimum else ""


def flags_table() -> str:
    """Return TensorFlow Serving's flags and what each does here, as a table in Markdown."""
    rows = [f"| `{f.name}` | {f.kind} | {_code(f.shown_default)} | {f.verdict} |" for f in FLAGS.values()]
    return "| flag | type | default | here |\n|---|---|---|---|\n" + "\n".join(rows) + "\n"


def _code(text: str) -> str:
    return f"`{text}`" if text else ""


# -- manual pages: in mdoc(7), lines that start with a dot are macros ----------------------------------------------


def options_manual() -> str:
    """Return the options as mdoc lists, one for each group."""
    per_model = option_types(ModelOptions)
    groups: dict[str, list[str]] = {}
    for name, kind in option_types(Options).items():
        said, default = about(name), shown_default(name)
        text = said.help + _limits(said.minimum, said.maximum, said.choices)
        shown = f" The default is {default}." if default else ""
        mark = " Per model." if name in per_model and name != "base_path" else ""
        head = f".It Ic {name}" if said.file_only else f".It Fl -{name} Ar {kind.__name__}"
        groups.setdefault(said.group, []).append(f"{head}\n{_roff(text + shown + mark)}\n")
    return "".join(f".Ss {group}\n.Bl -tag -width Ds\n{''.join(entries)}.El\n" for group, entries in groups.items())


def flags_manual() -> str:
    """Return TensorFlow Serving's flags as an mdoc list."""
    entries = []
    for flag in FLAGS.values():
        default = f" The default is {flag.shown_default}." if flag.shown_default else ""
        text = flag.text.replace("`", "")
        entries.append(f".It Fl -{flag.name} Ns = Ns Ar {flag.kind}\n{_roff(text + default)}\n")
    return f".Bl -tag -width Ds\n{''.join(entries)}.El\n"


def _roff(text: str) -> str:
    """Return `text` wrapped and escaped for mdoc: backslashes, and dots or quotes at a line's start, are special."""
    lines = textwrap.wrap(text.replace("\\", "\\e"), 100, break_on_hyphens=False, break_long_words=False)
    return "\n".join("\\&" + line if line[0] in ".'" else line for line in lines)


# -- the sample configuration ------------------------------------------------------------------------------------------

_FILE_HEAD = """\
# The configuration of dropserve: each option with its default, commented out. A flag takes precedence over this file,
# and a table [models.NAME] at its end over both, for that model. `dropserve doctor` checks this file. `systemctl reload
# dropserve` applies what can change while the server runs, and the journal names what cannot.
"""
_FILE_TAIL = """
# Add a table for each model with settings of its own: any option that is marked "per model".
#
# [models.digits]
# version_policy = "latest:2"
# max_queue_requests = 100
"""
# The service's settings that differ from the defaults: the folders that its package makes.
_SERVICE = {
    "model_root": "/var/lib/dropserve/models",
    "model_config_file": "/etc/dropserve/models.config",
    "cache_dir": "/var/cache/dropserve",
    "cache_key_file": "/var/lib/dropserve/keys/cache.key",
    "runtime_dir": "/run/dropserve",
}


def sample() -> str:
    """Return etc/dropserve.toml, the configuration of the service."""
    return options_file(_SERVICE)


def options_file(settings: Mapping[str, bool | int | float | str | tuple[str, ...]]) -> str:
    """Return a TOML file with every option and its help: those in `settings` with their value, others commented out."""
    per_model = option_types(ModelOptions)
    groups: dict[str, list[str]] = {}
    # The server's own options come first: where the models are, and the ports.
    for name in sorted(option_types(Options), key=per_model.__contains__):
        if name == "base_path":
            continue  # it is set only in the table of a model
        said = about(name)
        mark = " Per model." if name in per_model else ""
        lines = textwrap.wrap(
            said.help + _limits(said.minimum, said.maximum, said.choices) + mark, 110, break_on_hyphens=False
        )
        value = json.dumps(settings.get(name, getattr(Options(), name)), ensure_ascii=False)
        entry = "".join(f"# {line}\n" for line in lines) + f"{'' if name in settings else '# '}{name} = {value}\n"
        groups.setdefault(said.group, []).append(entry)
    parts = [_heading(group) + "\n" + "\n".join(entries) for group, entries in groups.items()]
    return _FILE_HEAD + "".join(parts) + _heading("One model") + _FILE_TAIL


def _heading(text: str) -> str:
    return f"\n# -- {text} ".ljust(113, "-") + "\n"
