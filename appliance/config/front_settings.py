"""The settings of a front process, as the supervisor gives them to it."""

from __future__ import annotations

from dataclasses import dataclass

from appliance.config.options import Options

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
