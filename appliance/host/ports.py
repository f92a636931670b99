"""Ports and the folder for sockets that a server takes before it serves."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import logging
import os
import shutil
import socket
import stat
import tempfile

from appliance.core.errors import ConfigError

logger = logging.getLogger(__name__)

_MAX_SOCKET_PATH_BYTES = 107  # sun_path without its final zero byte


def listen(address: str, port: int) -> socket.socket:
    """Return REST's listening socket. Raise ConfigError if the port is taken."""
    try:
        family = socket.AF_INET6 if ":" in address else socket.AF_INET
        sock = socket.socket(family, socket.SOCK_STREAM)
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        sock.bind((address, port))
        sock.listen(2048)
    except OSError as error:
        raise _port_error("rest_api_port", address, port, error) from None
    return sock


def hold_port(address: str, port: int) -> socket.socket:
    """Return a socket that holds gRPC's port for our own processes. Raise ConfigError if the port is taken.

    The first bind is without SO_REUSEPORT: with it, two servers would silently share the port.
    """
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    try:
        with socket.socket(family, socket.SOCK_STREAM) as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            probe.bind((address, port))
            probe.listen(1)
            port = probe.getsockname()[1]
        holder = socket.socket(family, socket.SOCK_STREAM)
        holder.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        holder.bind((address, port))
    except OSError as error:
        raise _port_error("port", address, port, error) from None
    return holder


def check_socket_path(path: str) -> None:
    """Raise ConfigError unless gRPC can listen on a Unix socket at `path`: only a socket there may be replaced.

    Another server's socket is taken over, as gRPC and with it TensorFlow Serving do: its own end-to-end tests start
    several servers with one path. The other server keeps its open connections.
    """
    option = f"the grpc_socket_path {path}"
    if len(os.fsencode(path)) > _MAX_SOCKET_PATH_BYTES:
        raise ConfigError(f"{option} is longer than {_MAX_SOCKET_PATH_BYTES} bytes", "choose a shorter path")
    folder = os.path.dirname(path)
    if not os.path.isdir(folder):
        raise ConfigError(f"{option} is in {folder}, which is no folder", "make the folder, or choose another path")
    if not os.access(folder, os.W_OK | os.X_OK):
        raise ConfigError(f"{option} is in {folder}, where this user may not make files", "change its owner or mode")
    try:
        mode = os.lstat(path).st_mode
    except FileNotFoundError:
        return
    if not stat.S_ISSOCK(mode):
        raise ConfigError(f"{option} exists and is no socket", "remove it, or choose another path")
    if _is_listened_on(path):
        logger.warning("another process listens on %s: new connections come here from now on", option)


def remove_socket(path: str) -> None:
    """Remove the Unix socket at `path` if no process listens on it."""
    with contextlib.suppress(OSError):
        if stat.S_ISSOCK(os.lstat(path).st_mode) and not _is_listened_on(path):
            os.unlink(path)


def _is_listened_on(path: str) -> bool:
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
        probe.setblocking(False)  # EAGAIN means a full backlog, so a process listens
        try:
            probe.connect(path)
        except BlockingIOError:
            return True
        except OSError:
            return False
    return True


def _port_error(option: str, address: str, port: int, error: OSError) -> ConfigError:
    remedy = {
        errno.EADDRINUSE: (
            f"is another server running? Stop it, or choose another --{option}; dropserve doctor tells which it is"
        ),
        errno.EADDRNOTAVAIL: "no interface of this machine has that address: see --bind_address",
        errno.EACCES: f"ports below 1024 take root's rights: choose another --{option}",
    }.get(error.errno or 0, "")
    return ConfigError(f"cannot listen on {address} port {port} (--{option}): {error.strerror or error}", remedy)


def instance_directory(runtime_dir: str) -> tuple[str, int]:
    """Create this server's own folder for sockets; return its path and the descriptor of the lock that marks it in use.

    Folders of servers that were killed are removed. Raise ConfigError if the folder cannot be used.
    """
    base = runtime_dir or default_runtime_dir()
    try:
        os.makedirs(base, mode=0o700, exist_ok=True)
        status = os.lstat(base)
        if not stat.S_ISDIR(status.st_mode) or status.st_uid != os.geteuid() or status.st_mode & 0o077:
            raise ConfigError(
                f"{base} is not a folder that only this user may enter", "remove it, or set --runtime_dir to another"
            )
        for name in os.listdir(base):
            _remove_if_stale(os.path.join(base, name))
        directory = tempfile.mkdtemp(prefix="server-", dir=base)
        lock = os.open(os.path.join(directory, "lock"), os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        raise ConfigError(
            f"cannot use {base} for sockets: {error.strerror}",
            "set --runtime_dir, or see dropserve doctor for what this user may write",
        ) from None
    if len(directory) > 90:  # a Unix socket's path has at most 107 bytes
        shutil.rmtree(directory)
        raise ConfigError(f"{directory} is too long for Unix sockets", "set --runtime_dir to a shorter path")
    return directory, lock


def default_runtime_dir() -> str:
    """Return the default folder for sockets."""
    if os.environ.get("XDG_RUNTIME_DIR"):
        return os.path.join(os.environ["XDG_RUNTIME_DIR"], "dropserve")
    if os.geteuid() == 0:
        return "/run/dropserve"
    return os.path.join(tempfile.gettempdir(), f"dropserve-{os.geteuid()}")


def _remove_if_stale(directory: str) -> None:
    try:
        lock = os.open(os.path.join(directory, "lock"), os.O_RDWR | os.O_CLOEXEC)
    except OSError:
        return
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        shutil.rmtree(directory, ignore_errors=True)
    except OSError:
        pass  # in use
    finally:
        os.close(lock)
