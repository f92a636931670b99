"""Checks the libraries of custom operators in the configuration."""

from __future__ import annotations

from collections.abc import Iterable

from appliance.config.model_options import ModelOptions
from appliance.core.errors import ConfigError
from backends.op_libraries import OpLibraryError, check

__all__ = ["check_op_libraries"]


def check_op_libraries(models: Iterable[ModelOptions]) -> None:
    """Check every library that the options of `models` name, before anything is served. Raise ConfigError."""
    for path in sorted({path for options in models for path in options.op_libraries}):
        try:
            check(path)
        except OpLibraryError as error:
            raise ConfigError(f"op_libraries: {error.message}", error.remedy) from None
