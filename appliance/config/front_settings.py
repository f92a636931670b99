"""The settings of a front process, as the supervisor gives them to it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

from appliance.config.options import Options, options_from_json

# ERROR, because gRPC would log a line for each connection that is not TLS on a TLS port: a port scan would fill the
# log. Its older listener takes 10 % less CPU a request (395-400 against 430-445 µs in gRPC's process; 2026-11, grpcio
# 1.85, medians of three alternated runs beside other load). gRPC reads them when it is imported.
GRPC_ENVIRONMENT = {"GRPC_VERBOSITY": "ERROR", "GRPC_EXPERIMENTS": "-event_engine_listener"}


@dataclass(frozen=True, slots=True)
class FrontSettings:
    """The server's options, and the settings of this process.

    `max_inflight_bytes` is the share of this process; `port` is gRPC's actual port, None without TCP.
    """

    options: Options
    control_path: str
    metrics_directory: str
    workers: int
    index: int
    port: int | None
    max_inflight_bytes: int
    monitoring_path: str = ""  # the path of TensorFlow Serving's metrics; "": not served

    def to_json(self) -> dict[str, Any]:
        """Return these settings as JSON values."""
        return asdict(self)

    @classmethod
    def from_json(cls, value: Mapping[str, Any]) -> FrontSettings:
        """Return the settings that `to_json` gave as `value`."""
        return cls(**{**value, "options": options_from_json(Options, value["options"])})
