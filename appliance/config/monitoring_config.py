"""Reads the monitoring config file, the text proto `tensorflow.serving.MonitoringConfig`.

Format: https://github.com/tensorflow/serving/blob/master/tensorflow_serving/config/monitoring_config.proto; the default
path is that of `util/prometheus_exporter.cc`.
"""

from __future__ import annotations

from appliance.config.files import read_config_text
from appliance.config.text_protos import parse_text
from appliance.protocols import protos

__all__ = ["DEFAULT_PATH", "parse_monitoring_config", "read_monitoring_config"]

DEFAULT_PATH = "/monitoring/prometheus/metrics"


def parse_monitoring_config(text: str, source: str) -> str:
    """Return the path of TensorFlow Serving's metrics; "" if they are not served.

    Raise ConfigError; `source` is the file's name in the message.
    """
    remedy = f'write prometheus_config {{ enable: true path: "{DEFAULT_PATH}" }}'
    message = parse_text(text, protos.MonitoringConfig(), source, remedy)
    config = message.prometheus_config
    if not config.enable:
        return ""
    path = str(config.path) or DEFAULT_PATH
    # TensorFlow Serving also accepts a path without the slash, but then never answers at it.
    return path if path.startswith("/") else f"/{path}"


def read_monitoring_config(path: str) -> str:
    """Return the path that the file `path` configures; "" if none, or if `path` is "". Raise ConfigError."""
    if not path:
        return ""
    return parse_monitoring_config(read_config_text(path, "the monitoring_config_file"), path)
