"""gRPC's health service: whether the server is ready."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable
from typing import Any

from grpc_health.v1 import health, health_pb2, health_pb2_grpc

from appliance.core.routes import Snapshot
from appliance.inference.router import Router

__all__ = ["serve_health"]


def serve_health(server: Any, router: Router, services: Iterable[str]) -> None:
    """Add the health service, which reports for each of `services` and for "" whether the server is ready.

    TensorFlow Serving registers its services without their package, so both spellings are known.
    """
    servicer = health.aio.HealthServicer()
    health_pb2_grpc.add_HealthServicer_to_server(servicer, server)
    names = ["", *services, *(service.rpartition(".")[2] for service in services)]
    tasks: set[asyncio.Task[None]] = set()

    async def set_health(snapshot: Snapshot) -> None:
        serving = (
            health_pb2.HealthCheckResponse.SERVING if snapshot.ready else health_pb2.HealthCheckResponse.NOT_SERVING
        )
        for name in names:
            await servicer.set(name, serving)

    def on_snapshot(snapshot: Snapshot) -> None:
        task = asyncio.create_task(set_health(snapshot))
        tasks.add(task)
        task.add_done_callback(tasks.discard)

    router.on_snapshot = on_snapshot
