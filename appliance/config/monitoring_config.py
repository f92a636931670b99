"""The monitoring config file: text proto `tensorflow.serving.MonitoringConfig`.

Format: https://github.com/tensorflow/serving/blob/master/tensorflow_serving/config/monitoring_config.proto; the default
path is that of `util/prometheus_exporter.cc`.
"""

from __future__ import annotations

from appliance.config.files import read_config_text
from appliance.config.text_protos import TextProtoError, parse_text
from appliance.core.errors import ConfigError
from appliance.protocols import protos

__all__ = ["DEFAULT_PATH", "parse_monitoring_config", "read_monitoring_config"]

DEFAULT_PATH = "/monitoring/prometheus/metrics"


def parse_monitoring_config(text: str, source: str) -> str:
    """The path at which TensorFlow Serving's metrics are asked for, "" where they are not.

    Raises ConfigError; `source` is the file's name in its message.
    """
    try:
        message = parse_text(text, protos.MonitoringConfig())
    except TextProtoError as error:
        raise ConfigError(
            f"{source}: Error parsing text-format tensorflow.serving.MonitoringConfig: {error}",
            f'write prometheus_config {{ enable: true path: "{DEFAULT_PATH}" }}',
        ) from None
    config = message.prometheus_config
    if not config.enable:
        return ""
    path = str(config.path) or DEFAULT_PATH
    # TensorFlow Serving takes a path without the slash too, and then answers nowhere.
    return path if path.startswith("/") else f"/{path}"


def read_monitoring_config(path: str) -> str:
    """The path that the file `path` asks for; "" where it asks for none, and where `path` is "". Raises ConfigError."""
    if not path:
        return ""
    return parse_monitoring_config(read_config_text(path, "the monitoring_config_file"), path)
