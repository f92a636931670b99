"""Reads the model config file, the text proto `tensorflow.serving.ModelServerConfig`.

Format: https://github.com/tensorflow/serving/blob/master/tensorflow_serving/g3doc/serving_config.md. The checks and
their messages follow TensorFlow Serving's `model_servers/server_core.cc`; the remedies are ours.
"""

from __future__ import annotations

import logging
import os
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from appliance.config.text_protos import parse_text
from appliance.config.version_policy import All, Latest, Specific, VersionPolicy
from appliance.core.errors import ConfigError
from appliance.protocols import protos

__all__ = ["ModelConfig", "model_configs", "parse_model_config"]

logger = logging.getLogger(__name__)

# After comments and blanks, an entry without the list around it: the most common mistake in such a file.
_BARE_ENTRY = re.compile(r"(\s|#[^\n]*(\n|$))*(model_config|config|name)\s*[:{]")


@dataclass(frozen=True, slots=True)
class ModelConfig:
    """One model of the list: its base path (absolute), the versions to serve, and the version of each label."""

    name: str
    base_path: str
    policy: VersionPolicy
    labels: Mapping[str, int]


def parse_model_config(text: str, source: str) -> tuple[ModelConfig, ...]:
    """Return the models in the text of a model config file, in its order; an empty text has none.

    Raise ConfigError; `source` is the file's name in the message.
    """
    begin = 'begin it with model_config_list { config { name: "…" base_path: "…" } }, one config for each model'
    message = parse_text(text, protos.ModelServerConfig(), source, begin if _BARE_ENTRY.match(text) else "")
    return model_configs(message, source)


def model_configs(message: Any, source: str) -> tuple[ModelConfig, ...]:
    """Return the models of a `protos.ModelServerConfig`, from a file or a reload request. Raise ConfigError."""
    if message.HasField("custom_model_config"):
        raise ConfigError(f"{source}: custom_model_config is not supported", "list the models in model_config_list")
    models: dict[str, ModelConfig] = {}
    for entry in message.model_config_list.config:
        model = _model(entry, source)
        if model.name in models:
            raise ConfigError(
                f"{source}: Illegal to list model {model.name} multiple times in config list",
                "to serve several versions of a model, give it a model_version_policy",
            )
        models[model.name] = model
    return tuple(models.values())


def _model(entry: Any, source: str) -> ModelConfig:
    if not entry.name:
        raise ConfigError(f"{source}: a config has no name", "give each config a name and a base_path")
    where = f"{source}: model {entry.name}"
    if entry.model_platform not in ("", "tensorflow") or entry.model_type == protos.ModelType.Value("OTHER"):
        raise ConfigError(
            f"{source}: Model {entry.name} requests unsupported platform {entry.model_platform or 'OTHER'}",
            'write model_platform: "tensorflow"; faster formats are made from the SavedModel by themselves',
        )
    if entry.HasField("logging_config"):
        logger.warning("%s: logging_config: no effect, because requests are not recorded", where)
    labels = dict(entry.version_labels)
    return ModelConfig(entry.name, _base_path(entry, source), _policy(entry, where), labels)


def _base_path(entry: Any, source: str) -> str:
    where = f"{source}: model {entry.name}"
    path: str = entry.base_path.removeprefix("file://")
    if not path:
        raise ConfigError(f"{where}: has no base_path", "give the absolute path of the folder of its version folders")
    if "\0" in path:
        raise ConfigError(f"{where}: base_path {path!r} has a NUL character, which no path can have")
    scheme, found, _ = path.partition("://")
    if found:
        raise ConfigError(
            f"{where}: base_path {path!r} is remote ({scheme}://), which is not supported",
            "copy or mount the model on this machine, and give its local path",
        )
    if not os.path.isabs(path):
        raise ConfigError(
            f"{source}: Expected model {entry.name} to have an absolute path or URI; got base_path()={path}",
            f"did you mean {os.path.abspath(path)!r}?",
        )
    return path


def _policy(entry: Any, where: str) -> VersionPolicy:
    policy = entry.model_version_policy
    match policy.WhichOneof("policy_choice"):
        case "all":
            return All()
        case "specific":
            if not policy.specific.versions:
                raise ConfigError(
                    f"{where}: model_version_policy specific lists no versions",
                    "write specific { versions: 1 versions: 2 }, with the versions to serve",
                )
            return Specific(frozenset(policy.specific.versions))
        case _:
            # Unset means latest 1; so does latest { num_versions: 0 }, because an unset number reads as 0.
            return Latest(policy.latest.num_versions or 1)
