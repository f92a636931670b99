"""docs/options.md and the flags in docs/conformance.md, written from the tables of options and flags."""

from __future__ import annotations

from appliance.options import ModelOptions, Options, about, option_types
from appliance.serving_flags import FLAGS

_HEAD = """# Options

`dropserve options` writes this page from the table in `appliance/options.py`.

An option is a flag (`--port 8500` or `--port=8500`) and a key in the TOML file that `--config` names (`port = 8500`).
What is said more closely goes first:

1. a table `[models.NAME]` in the TOML file, for the options marked *per model*;
2. what a `model_config_file` says of a model (its base path and version policy);
3. a flag;
4. a key at the top level of the TOML file;
5. the default.

`[models.NAME]` applies by name, wherever the model comes from: `--model_root`, `--model_base_path`, a
`model_config_file`, or `base_path` in the table itself. An unknown option or a value that is not allowed stops the
start with what was wrong and what is allowed.
"""


def options_page() -> str:
    """The page, in Markdown."""
    defaults = Options()
    per_model = option_types(ModelOptions)
    groups: dict[str, list[str]] = {}
    for name, kind in option_types(Options).items():
        said = about(name)
        default = getattr(defaults, name)
        shown = "" if default == "" else f"`{str(default).lower() if kind is bool else default}`"
        limits = _limits(said.minimum, said.maximum, said.choices)
        mark = " *Per model.*" if name in per_model else ""
        row = f"| `{name}` | {kind.__name__} | {shown} | {said.help}{limits}{mark} |"
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
    """TensorFlow Serving's flags, each with what becomes of it, in Markdown."""
    rows = [f"| `{f.name}` | {f.kind} | {_code(f.shown_default)} | {f.verdict} |" for f in FLAGS.values()]
    return "| flag | type | default | here |\n|---|---|---|---|\n" + "\n".join(rows) + "\n"


def _code(text: str) -> str:
    return f"`{text}`" if text else ""
