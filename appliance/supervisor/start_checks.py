"""Checks the configuration and the files that it names, before anything is started."""

from __future__ import annotations

import logging

from appliance.config.batching_parameters import check_batching
from appliance.config.models import ConfiguredModel
from appliance.config.monitoring_config import read_monitoring_config
from appliance.config.op_libraries import check_op_libraries
from appliance.config.settings import Settings
from appliance.config.tls import load_ssl_config
from appliance.conversion.form_cache import check_key_file
from appliance.host.confinement import supported
from appliance.supervisor.load_checks import check_signing
from appliance.supervisor.models import first_models

__all__ = ["check_files", "check_start", "log_sandbox", "may_accelerate"]

logger = logging.getLogger(__name__)


def check_start(settings: Settings) -> dict[str, ConfiguredModel]:
    """Return the models that a server with `settings` would start with.

    Raise ConfigError if it would not start, as far as the configuration and its files tell.
    """
    models, _, _ = first_models(settings)
    check_files(settings)
    return models


def may_accelerate(settings: Settings) -> bool:
    """Return whether any model with `settings` may be converted."""
    return any(
        options.acceleration != "off" for options in (settings.options, *map(settings.of_model, settings.models))
    )


def check_files(settings: Settings) -> str:
    """Read the files that options name and other processes read later, so that a mistake in one stops the start.

    Return the path of TensorFlow Serving's metrics, "" if they are not served. Raise ConfigError.
    """
    options = settings.options
    check_batching(options, map(settings.of_model, settings.models))
    check_op_libraries([options, *map(settings.of_model, settings.models)])
    check_signing([options, *map(settings.of_model, settings.models)])
    if may_accelerate(settings):
        check_key_file(options)
    if options.ssl_config_file:
        load_ssl_config(options.ssl_config_file)
    # As in TensorFlow Serving, the file is not read without REST, which alone serves these metrics.
    return read_monitoring_config("" if options.rest_api_port < 0 else options.monitoring_config_file)


def log_sandbox(mode: str) -> None:
    """Log what will confine the processes that run models; `mode` is the server's option `sandbox`."""
    if mode == "off":
        logger.warning("models are not confined (sandbox = off): each can read and change what this user can")
    else:
        logger.info("models are confined by %s", supported())
