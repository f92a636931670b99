"""The REST processes: gunicorn's master, and its workers with uvicorn.

`main()` is the master, started by the supervisor with the listening socket as descriptor 3. The socket outlives the
master, so connections wait instead of being refused while a master is replaced. Descriptor 4 is a pipe that does not
block: the master's main loop gives a sign of life there each second, a line with the numbers of the processes that it
has started.
"""

from __future__ import annotations

import contextlib
import logging
import os
from typing import Any

from gunicorn.app.base import BaseApplication
from gunicorn.arbiter import Arbiter
from gunicorn.glogging import Logger
from uvicorn_worker import UvicornWorker

from appliance.config.front_settings import FrontSettings
from appliance.host import logs
from appliance.host.confinement import close_to_others
from appliance.host.descriptors import connections_within, raise_descriptor_limit
from appliance.host.processes import die_with_parent, set_name, take_argument
from appliance.rest.app import App
from appliance.rest.bounds import BoundedProtocol
from appliance.rest.lanes import RestProtocol

_LIFE_DESCRIPTOR = 4


class _Arbiter(Arbiter):  # type: ignore[misc]  # the base has no types
    """gunicorn's master, which shows the supervisor that it lives, and what it has started."""

    def murder_workers(self) -> None:
        """Give a sign of life, too: the main loop calls this in each of its rounds, which take a second at most."""
        line = " ".join(map(str, self.WORKERS)).encode() + b"\n"
        with contextlib.suppress(OSError):  # the supervisor has not read the last ones
            os.write(_LIFE_DESCRIPTOR, line)  # whole or not at all: it is shorter than PIPE_BUF
        super().murder_workers()


class _RestWorker(UvicornWorker):  # type: ignore[misc]  # the base has no types
    """A uvicorn worker, with the bounds that gunicorn does not enforce for it."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        server_log = logging.getLogger("uvicorn.error")
        server_log.propagate = True
        server_log.setLevel(logging.ERROR)  # lower levels log a line for each mistake of a client


class _GunicornLogger(Logger):  # type: ignore[misc]  # the base has no types
    """Sends gunicorn's messages through our logging."""

    def setup(self, cfg: Any) -> None:
        self.error_log.handlers[:] = []
        self.error_log.propagate = True
        self.error_log.setLevel(logging.WARNING)


class _Application(BaseApplication):  # type: ignore[misc]  # the base has no types
    def __init__(self, settings: FrontSettings) -> None:
        self._settings = settings
        super().__init__()

    def load_config(self) -> None:
        settings = self._settings
        options = settings.options

        def post_fork(arbiter: Any, worker: Any) -> None:
            os.close(_LIFE_DESCRIPTOR)
            set_name("ds-rest")
            die_with_parent(arbiter.pid)  # uvicorn's worker does not notice that its master is gone

        values: dict[str, Any] = {
            "bind": "fd://3",
            "workers": settings.workers,
            "worker_class": _RestWorker,
            "logger_class": _GunicornLogger,
            "graceful_timeout": max(int(options.shutdown_grace_seconds), 1),
            "timeout": 120,
            "keepalive": 75,
            "backlog": 2048,
            "post_fork": post_fork,
            "control_socket_disable": True,
            "proc_name": "dropserve-rest",
        }
        for name, value in values.items():
            self.cfg.set(name, value)

    def run(self) -> None:
        _Arbiter(self).run()

    def load(self) -> App:
        return App(self._settings)


def main() -> None:
    """Run gunicorn's master."""
    settings = take_argument(FrontSettings)
    options = settings.options
    set_name("ds-rest-master")
    if options.sandbox != "off":
        close_to_others()  # and so are the processes that it forks
    logs.configure(options.log_format, options.log_level)
    BoundedProtocol.header_timeout_seconds = options.header_timeout_seconds
    BoundedProtocol.max_connections = min(options.max_connections, connections_within(raise_descriptor_limit()))
    BoundedProtocol.grace_seconds = options.body_grace_seconds
    _RestWorker.CONFIG_KWARGS = {
        "loop": "uvloop",
        "http": RestProtocol,
        "ws": "none",
        "lifespan": "on",
        "access_log": False,
        "server_header": False,
        "proxy_headers": False,  # the access log reads them itself
        "timeout_graceful_shutdown": max(int(options.shutdown_grace_seconds), 1),
    }
    _Application(settings).run()


if __name__ == "__main__":
    main()
