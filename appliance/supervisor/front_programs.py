"""The programs that answer clients, as the supervisor starts them; and the lines that say where they listen."""

from __future__ import annotations

import asyncio
import logging
import os
import socket
from collections.abc import Callable

from appliance import __version__
from appliance.config.front_settings import GRPC_ENVIRONMENT, FrontSettings
from appliance.config.model_server import announcements
from appliance.config.options import Options, effective
from appliance.host.processes import spawn
from appliance.supervisor.programs import Program
from appliance.supervisor.watch import Watch, Watched

__all__ = ["front_programs", "log_serving"]

logger = logging.getLogger(__name__)

_PIPE_BYTES = 65536  # all that a pipe holds


def front_programs(
    options: Options,
    cores: int,
    listener: socket.socket | None,
    port: int | None,
    *,
    control_path: str,
    metrics_directory: str,
    monitoring_path: str,
    watch: Watch,
) -> list[Program]:
    """Return the programs of REST, which serves on `listener`, and of gRPC, which serves on TCP port `port`; None: not
    served."""
    rest = effective(options.rest_workers, cores, 2, 4)
    grpc = effective(options.grpc_workers, cores, 2, 4)

    def settings(index: int, workers: int) -> FrontSettings:
        return FrontSettings(
            options=options,
            control_path=control_path,
            metrics_directory=metrics_directory,
            monitoring_path=monitoring_path,
            workers=workers,
            index=index,
            port=port,
            max_inflight_bytes=options.max_inflight_bytes // (rest + grpc),
        )

    def start_rest() -> int:
        assert listener is not None
        descriptor = listener.fileno()

        def start(life: int) -> int:
            return spawn("appliance.rest.process", settings(0, rest), [descriptor, life])

        return _watched(watch, "gunicorn's master", "rest-master", start)

    def start_grpc(index: int) -> Callable[[], int]:
        def start(life: int) -> int:
            environment = GRPC_ENVIRONMENT | os.environ
            return spawn("appliance.rpc.server", settings(index, 1), [life], environment=environment)

        # Once it has connected, it is watched as a front.
        return lambda: _watched(watch, f"the grpc {index} process", "grpc", start)

    programs = [] if listener is None else [Program("rest", start_rest)]
    if port is None:
        grpc = 1 if options.grpc_socket_path else 0  # one process owns the Unix socket
    return [*programs, *(Program(f"grpc {index}", start_grpc(index)) for index in range(grpc))]


def _watched(watch: Watch, who: str, role: str, start: Callable[[int], int]) -> int:
    """Start a process, and watch it from its start to its end: one that hangs before its first sign of life would never
    be replaced.

    `start` is given the end of a pipe, which the process keeps open; it returns the process's number, and so does this.
    The process may write signs of life to the pipe: lines with the numbers of the processes that it has started, which
    are watched too, until they connect as fronts. Raise OSError.
    """
    life, theirs = os.pipe()
    try:
        os.set_blocking(theirs, False)
        pid = start(theirs)
    except OSError:
        os.close(life)
        raise
    finally:
        os.close(theirs)
    watched = Watched(who, role, pid)
    children: dict[int, Watched] = {}
    loop = asyncio.get_running_loop()

    def hear() -> None:
        said = os.read(life, _PIPE_BYTES)
        if not said:
            loop.remove_reader(life)
            os.close(life)
            watch.remove(watched)
            _watch_children(watch, children, set())
            return
        watch.heard(watched)
        _watch_children(watch, children, set(map(int, said.splitlines()[-1].split())))

    watch.add(watched)
    loop.add_reader(life, hear)
    return pid


def _watch_children(watch: Watch, children: dict[int, Watched], living: set[int]) -> None:
    """Watch those processes of gunicorn's master that live, until they connect as fronts. `children` are those that are
    watched so."""
    for pid in children.keys() - living:
        watch.remove(children.pop(pid))
    for pid in living - children.keys():
        if not watch.watches(pid):  # else it has connected
            children[pid] = Watched("a rest process that starts", "rest", pid)
            watch.add(children[pid])


def log_serving(options: Options, rest: int | None, grpc: int | None) -> None:
    """Log where requests are taken: by REST and gRPC on these TCP ports (None: not served)."""
    host = options.bind_address
    shown = {"0.0.0.0": "localhost", "::": "localhost"}.get(host, f"[{host}]" if ":" in host else host)  # noqa: S104
    places = [
        *([] if rest is None else [f"REST on http://{shown}:{rest}"]),
        *([] if grpc is None else [f"gRPC on {shown}:{grpc}"]),
        *([f"gRPC on unix:{options.grpc_socket_path}"] if options.grpc_socket_path else []),
    ]
    if options.listen_when_loaded:  # as the command tensorflow_model_server does
        for text in announcements(host, grpc, options.grpc_socket_path, rest):
            logger.info("%s", text)
    logger.info(
        "dropserve %s serves %s",
        __version__,
        " and ".join(places),
        extra={"fields": {"rest_api_port": rest, "port": grpc, "event": "serving"}},
    )
