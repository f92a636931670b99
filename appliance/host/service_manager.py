"""Notifications to the service manager: systemd's protocol, sd_notify(3), without its library.

A notification is one datagram of lines `NAME=value` to the Unix socket that $NOTIFY_SOCKET names; a leading `@` stands
for the zero byte of an abstract socket. There may be no manager, or one that does not read: a notification waits for at
most a second, and a failure is only logged.
"""

from __future__ import annotations

import logging
import socket
from collections.abc import MutableMapping

__all__ = ["MAX_STATUS_CHARACTERS", "Notifier"]

logger = logging.getLogger(__name__)

MAX_STATUS_CHARACTERS = 1000  # of a status line: a datagram is bounded, and `systemctl status` shows one line
_SEND_SECONDS = 1.0  # the manager's queue holds as few as ten datagrams (net.unix.max_dgram_qlen)


class Notifier:
    """Sends notifications to one address.

    `watchdog_seconds` is the longest time that the manager waits for a sign of life before it ends the service; None if
    it does not watch.
    """

    def __init__(self, address: str = "", watchdog_seconds: float | None = None) -> None:
        self._address = "\0" + address[1:] if address.startswith("@") else address
        self.watchdog_seconds = watchdog_seconds if address else None
        self._status = ""
        self._failed = False

    @classmethod
    def from_environment(cls, environment: MutableMapping[str, str], pid: int) -> Notifier:
        """Return the notifier that `environment` describes for process `pid`, and remove its variables.

        Child processes must not inherit them: gunicorn would report the service ready once its own processes run. An
        address that is neither a path nor an abstract name is ignored with a warning (systemd 253 also knows vsock:,
        for virtual machines).
        """
        address = environment.pop("NOTIFY_SOCKET", "")
        microseconds = environment.pop("WATCHDOG_USEC", "")
        watched = environment.pop("WATCHDOG_PID", str(pid))
        if address and address[0] not in "/@":
            logger.warning("the service manager is not notified: NOTIFY_SOCKET is %r, which is no Unix socket", address)
            address = ""
        is_number = microseconds.isascii() and microseconds.isdigit() and len(microseconds) < 20
        seconds = int(microseconds) / 1e6 if is_number and watched == str(pid) else 0.0
        return cls(address, seconds or None)

    def say(self, *lines: str) -> None:
        """Send `lines`, such as "READY=1", in one datagram."""
        if not self._address:
            return
        try:
            with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sender:
                sender.settimeout(_SEND_SECONDS)
                sender.connect(self._address)
                sender.send("\n".join(lines).encode(errors="replace"))
            self._failed = False
        except OSError as error:
            if not self._failed:
                logger.warning("the service manager was not told %s: %s", lines[0], error.strerror or error)
            self._failed = True

    def status(self, text: str) -> None:
        """Send one line for `systemctl status`, unless it is the line sent last."""
        if text != self._status:
            self._status = text
            self.say("STATUS=" + " ".join(text.split())[:MAX_STATUS_CHARACTERS])
