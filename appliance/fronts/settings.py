"""What a front process is told at its start, through one environment variable."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from dataclasses import asdict, dataclass

VARIABLE = "DROPSERVE_FRONT"


@dataclass(frozen=True, slots=True)
class FrontSettings:
    """Options as in `appliance.options`, with defaults worked out; `max_inflight_bytes` is this process's share."""

    supervisor: int  # its process number
    control_path: str
    workers: int
    index: int
    bind_address: str
    port: int
    grpc_socket_path: str
    timeout_seconds: float
    shutdown_grace_seconds: float
    max_request_bytes: int
    max_inflight_bytes: int
    max_connections: int
    max_header_bytes: int
    header_timeout_seconds: float
    min_body_bytes_per_second: int
    body_grace_seconds: float
    shared_memory_bytes: int
    access_log: bool
    log_format: str
    log_level: str

    def environment(self, base: Mapping[str, str]) -> dict[str, str]:
        return {**base, VARIABLE: json.dumps(asdict(self))}

    @classmethod
    def from_environment(cls) -> FrontSettings:
        return cls(**json.loads(os.environ[VARIABLE]))
