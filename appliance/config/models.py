"""Collects the configured models from every place that names them, and compares two configurations. Pure."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields

from appliance.config.model_config import ModelConfig
from appliance.config.model_options import ModelOptions
from appliance.config.options import Options
from appliance.config.settings import Settings
from appliance.config.version_policy import Specific, format_version_policy
from appliance.core.errors import ConfigError

__all__ = ["ConfiguredModel", "Difference", "configured_models", "difference", "needing_restart"]


@dataclass(frozen=True, slots=True)
class ConfiguredModel:
    """One model that flags, files or a reload name. `base_path` is absolute, without a slash at its end."""

    name: str
    base_path: str
    options: ModelOptions
    labels: Mapping[str, int] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Difference:
    """The changes from one set of models to another."""

    removed: tuple[str, ...]
    added: tuple[ConfiguredModel, ...]
    changed: tuple[ConfiguredModel, ...]

    def __bool__(self) -> bool:
        return bool(self.removed or self.added or self.changed)

    def __str__(self) -> str:
        parts = [
            f"{word} {', '.join(names)}"
            for word, names in (
                ("added", [model.name for model in self.added]),
                ("changed", [model.name for model in self.changed]),
                ("removed", list(self.removed)),
            )
            if names
        ]
        return "; ".join(parts) or "nothing changed"


def configured_models(settings: Settings, configs: Sequence[ModelConfig] | None) -> dict[str, ConfiguredModel]:
    """Return every configured model by name.

    `configs` is the list of a model_config_file or of a reload, and replaces model_name and model_base_path. Tables
    [models.NAME] with a base_path are added. Raise ConfigError for a label that is invalid, or that no version can
    satisfy (unless labels may point at unavailable versions).
    """
    options = settings.options
    found: dict[str, ConfiguredModel] = {}
    if configs is None and options.model_base_path:
        name = options.model_name
        found[name] = ConfiguredModel(name, _trimmed(options.model_base_path), settings.of_model(name))
    for config in configs or ():
        model_options = settings.of_model(config.name, version_policy=format_version_policy(config.policy))
        base_path = _trimmed(model_options.base_path or config.base_path)
        found[config.name] = ConfiguredModel(config.name, base_path, model_options, dict(config.labels))
    for name, table in settings.models.items():
        if "base_path" in table and name not in found:
            found[name] = ConfiguredModel(name, _trimmed(table["base_path"]), settings.of_model(name))
    for model in found.values():
        _check_labels(model, options.allow_version_labels_for_unavailable_models)
    return found


def _check_labels(model: ConfiguredModel, may_be_unavailable: bool = False) -> None:
    """Raise ConfigError for an invalid label, or one that points at a version that the policy excludes.

    With `may_be_unavailable` a label may point at an excluded version: requests for it get NOT_FOUND, as in TensorFlow
    Serving.
    """
    policy = model.options.policy
    for label, version in model.labels.items():
        if not label or "/" in label or ":" in label:
            raise ConfigError(
                f"model {model.name}: the label {label!r} cannot stand in a URL", "name it without / and :"
            )
        if version < 0:
            raise ConfigError(f"model {model.name}: label {label} points at version {version}", "versions begin at 0")
        if isinstance(policy, Specific) and version not in policy.versions and not may_be_unavailable:
            listed = ", ".join(map(str, sorted(policy.versions)))
            raise ConfigError(
                f"model {model.name}: label {label} points at version {version}, "
                f"which its model_version_policy does not serve (specific: {listed})",
                f"add versions: {version} to the policy, or point the label at one of those; "
                "--allow_version_labels_for_unavailable_models starts all the same, and such a label is not found",
            )


def difference(old: Mapping[str, ConfiguredModel], new: Mapping[str, ConfiguredModel]) -> Difference:
    """Return the changes that lead from `old` to `new`."""
    return Difference(
        tuple(name for name in old if name not in new),
        tuple(model for name, model in new.items() if name not in old),
        tuple(model for name, model in new.items() if name in old and model != old[name]),
    )


def needing_restart(old: Options, new: Options) -> list[str]:
    """Return the names of the options that differ and take effect only when the server is started again."""
    live = {f.name for f in fields(ModelOptions)} | {"model_name", "model_base_path", "model_config_file"}
    return [f.name for f in fields(Options) if f.name not in live and getattr(old, f.name) != getattr(new, f.name)]


def _trimmed(base_path: str) -> str:
    return base_path.rstrip("/") or "/"
