"""Reads a server's settings from flags and a TOML file, and checks them against the table of options."""

from __future__ import annotations

import difflib
import math
import tomllib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, fields
from typing import Any

from appliance.config.files import read_config_text
from appliance.config.model_options import ModelOptions
from appliance.config.options import Options, about, option_types
from appliance.config.parsing import check_model_name
from appliance.config.removed import REMOVED, removed_warnings
from appliance.core.errors import ConfigError

__all__ = ["Settings", "from_text", "no_flag", "read_settings", "unknown_option"]


def no_flag(name: str) -> ConfigError | None:
    """Return the error for an option that cannot be a flag because it is a list; None for all others."""
    if option_types(Options).get(name) is not tuple:
        return None
    return ConfigError(f"--{name} is no flag", f'write it into the file of --config: {name} = ["...", "..."]')


def from_text(name: str, text: str) -> Any:
    """Return the value of the option `name` for the text of its flag. Raise ConfigError."""
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
    """Return the error for an unknown option, with the nearest known one."""
    near = difflib.get_close_matches(name, known, 1)
    remedy = f"did you mean {near[0]}?" if near else "dropserve serve --help lists all options"
    return ConfigError(f"there is no option {where}{name}", remedy)


@dataclass(frozen=True, slots=True)
class Settings:
    """The whole configuration: the server's options, and the tables `[models.NAME]` by name."""

    options: Options
    models: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    warnings: tuple[str, ...] = ()  # about settings without effect

    def of_model(self, name: str, **from_config: Any) -> ModelOptions:
        """Return the options of one model.

        Precedence: `[models.NAME]`, then `from_config` (from a model_config_file), then the server's options.
        """
        values = {f.name: getattr(self.options, f.name) for f in fields(ModelOptions)}
        return ModelOptions(**{**values, **from_config, **self.models.get(name, {})})


def read_settings(
    flags: Mapping[str, Any], config_path: str = "", defaults: Mapping[str, Any] | None = None
) -> Settings:
    """Return the settings from flags (name → value) and a TOML file. A flag overrides the file.

    `defaults` replace the options' own defaults. Raise ConfigError for an unknown option or a value that is not
    allowed.
    """
    values: dict[str, Any] = dict(defaults or {})
    models: dict[str, dict[str, Any]] = {}
    warnings = removed_warnings(flags, "--")
    if config_path:
        document = _read_toml(config_path)
        tables = document.pop("models", {})
        if not isinstance(tables, dict):
            raise ConfigError(f"{config_path}: models is {tables!r}", "write a table [models.NAME] for each model")
        known = list(option_types(Options))
        warnings += removed_warnings(document, f"{config_path}: ")
        for name, value in document.items():
            if name in REMOVED:
                continue
            if name not in known:
                raise unknown_option(name, known, f"{config_path}: ")
            values[name] = _checked(name, value, f"{config_path}: ")
        for model, table in tables.items():
            if isinstance(table, dict):
                warnings += removed_warnings(table, f"{config_path}: [models.{model}] ")
            models[model] = _model_table(model, table, f"{config_path}: [models.{model}] ")
    for name, value in flags.items():
        if name not in REMOVED:
            values[name] = _checked(name, value, "--")
    if values.get("base_path"):
        raise ConfigError(
            f"base_path is {values['base_path']!r} for all models",
            "set model_base_path, or base_path in a table [models.NAME]",
        )
    return Settings(Options(**values), models, tuple(warnings))


def _read_toml(path: str) -> dict[str, Any]:
    try:
        return tomllib.loads(read_config_text(path, "the configuration"))
    except tomllib.TOMLDecodeError as error:
        raise ConfigError(f"{path} is not TOML: {error}") from None


def _model_table(model: str, table: Any, where: str) -> dict[str, Any]:
    if not isinstance(table, dict):
        raise ConfigError(f"{where}is {table!r}", "write it as a table of options")
    try:
        check_model_name(model)
    except ConfigError as error:
        raise ConfigError(f"{where}names no model", error.remedy) from None
    known = list(option_types(ModelOptions))
    for name in table:
        if name not in known and name not in REMOVED:
            raise unknown_option(name, known, where)
    checked = {name: _checked(name, value, where) for name, value in table.items() if name not in REMOVED}
    if checked.get("base_path") == "":
        raise ConfigError(f"{where}base_path is ''", "give the absolute path of the folder of its version folders")
    return checked
