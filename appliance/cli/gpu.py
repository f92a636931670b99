"""`dropserve gpu`: the table of GPUs, from a running server, or from the driver if no server answers."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import sys
import time
import urllib.error
import urllib.parse
import urllib.request
from typing import NoReturn

import msgspec

from appliance.core.errors import ConfigError
from appliance.gpu.client import driver_status
from appliance.gpu.values import GpuStatus, table

__all__ = ["show", "watch"]

_ANSWER_SECONDS = 10.0
_DRIVER_SECONDS = 30.0  # without a server that keeps it awake, the driver may first wake each GPU
_THIS_MACHINE = ("localhost", "127.0.0.1", "::1")
_CLEAR = "\x1b[H\x1b[J"


def show(url: str) -> int:
    """Print the table. Return 0 if there are GPUs and all their values could be read, else 1.

    Raise ConfigError if neither the server nor this machine's driver can be asked.
    """
    status = _status(url)
    print(table(status), end="")
    return 0 if status.is_healthy else 1


def watch(url: str, seconds: float) -> NoReturn:
    """Print the table every `seconds` until Ctrl-C. If the server does not answer, print that and go on."""
    # Not by KeyboardInterrupt: Python drops one that comes while it runs a finalizer, and the loop would go on.
    signal.signal(signal.SIGINT, lambda *_: os._exit(0))
    while True:
        try:
            page = table(_status(url))
        except ConfigError as error:
            page = f"{error}\n"
        print(f"{_CLEAR if sys.stdout.isatty() else ''}{time.strftime('%H:%M:%S')}  {page}", flush=True)
        time.sleep(seconds)


def _status(url: str) -> GpuStatus:
    address = url.rstrip("/") + "/v1/gpu"
    try:
        with urllib.request.urlopen(address, timeout=_ANSWER_SECONDS) as response:  # noqa: S310 - the user's own URL
            return msgspec.convert(json.load(response), GpuStatus)
    except urllib.error.HTTPError as error:
        raise ConfigError(f"{address} answers {error.code} {error.reason}", "is that dropserve's REST port?") from None
    except urllib.error.URLError as error:
        if isinstance(error.reason, ConnectionRefusedError) and urllib.parse.urlsplit(url).hostname in _THIS_MACHINE:
            print(f"no server answers at {url}: this is what the driver says, without models", file=sys.stderr)
            return asyncio.run(driver_status(_DRIVER_SECONDS))
        failure: object = error.reason
    except (OSError, ValueError) as error:
        failure = error
    raise ConfigError(f"no answer from {address}: {failure}", "is the server running? Give its address as --url")
