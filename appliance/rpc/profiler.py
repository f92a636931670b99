"""TensorFlow's ProfilerService, as TensorBoard's capture button and `tf.profiler.experimental.client` call it.

TensorFlow's own server writes the trace into the folder that the request names (`repository_root`). This one never
does: any process on this machine may call it, and would write as the server's user. It returns the data as "tools"
instead, which the client itself saves into that folder (SaveProfile in xla/tsl/profiler/rpc/client).
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import re
from collections.abc import Awaitable, Callable, Collection, Iterable, Mapping
from typing import Any

from appliance.core.errors import Code, ServingError
from appliance.inference.accounting import Exchange
from appliance.inference.reservation import Reservation
from appliance.inference.router import Router
from appliance.protocols import protos
from appliance.rpc.messages import parse
from appliance.rpc.peers import Peer

__all__ = ["SERVICE", "ProfilerFront", "check_may_profile", "file_names", "tracer_levels"]

SERVICE = "tensorflow.ProfilerService"
_MAX_SECONDS = 60.0
_COLLECT_SECONDS = 70.0  # for the workers' files; the supervisor answers earlier
_END_SECONDS = 15.0
_MAX_NAME_CHARACTERS = 100


class ProfilerFront:
    """The methods: each takes a serialized request and the remaining seconds, and returns a serialized response."""

    def __init__(self, router: Router) -> None:
        self._router = router
        self._ends: set[asyncio.Task[None]] = set()
        self.methods: dict[str, Callable[[Exchange, bytes, float], Awaitable[bytes]]] = {
            "Profile": self.profile,
            "Terminate": self.terminate,
            "Monitor": self.monitor,
        }

    async def profile(self, exchange: Exchange, data: bytes, seconds: float) -> bytes:
        """Trace all workers for the requested time. If the client hangs up, the trace ends."""
        request = parse(protos.ProfileRequest, data)
        duration = (request.opts.duration_ms or request.duration_ms) / 1000
        if not 0 < duration <= _MAX_SECONDS:
            raise ServingError(
                Code.INVALID_ARGUMENT,
                f"cannot trace for {duration:g} s",
                f"ask for a duration_ms from 1 to {_MAX_SECONDS * 1000:.0f}",
            )
        asked = {"session": request.session_id, "seconds": duration, "levels": tracer_levels(request.opts)}
        try:
            traces = await self._router.call("profile", asked, min(seconds, duration + _COLLECT_SECONDS))
        except BaseException:
            self._abandon(request.session_id)
            raise
        with Reservation(self._router) as reserved:
            try:
                reserved.add(sum(trace["bytes"] for trace in traces))
                spaces = await asyncio.to_thread(lambda: [_read(trace["path"]) for trace in traces])
            finally:
                for trace in traces:
                    with contextlib.suppress(OSError):
                        os.unlink(trace["path"])
            return _response(traces, spaces, request.emit_xspace)

    async def terminate(self, exchange: Exchange, data: bytes, seconds: float) -> bytes:
        """End a trace early; its call returns the data so far. As in TensorFlow, an unknown session is no error."""
        request = parse(protos.TerminateRequest, data)
        asked = {"session": request.session_id, "wanted": True}
        await self._router.call("end_profile", asked, min(seconds, _END_SECONDS))
        return bytes(protos.TerminateResponse().SerializeToString())

    async def monitor(self, exchange: Exchange, data: bytes, seconds: float) -> bytes:
        """Refuse: TensorFlow supports Monitor only on TPUs, and its own server refuses it elsewhere."""
        raise ServingError(Code.UNIMPLEMENTED, "Monitor is for TPUs", "call Profile, or read /metrics on the REST port")

    def _abandon(self, session: str) -> None:
        """End a trace whose client has gone."""

        async def end() -> None:
            with contextlib.suppress(ServingError):
                await self._router.call("end_profile", {"session": session, "wanted": False}, _END_SECONDS)

        task = asyncio.create_task(end())
        self._ends.add(task)
        task.add_done_callback(self._ends.discard)


def check_may_profile(peer: Peer) -> None:
    """Raise PERMISSION_DENIED for callers from other machines: a trace shows others' requests and costs speed."""
    if peer.by_socket or peer.by_loopback:
        return
    raise ServingError(
        Code.PERMISSION_DENIED,
        f"{peer.name} may not profile: that is for clients on this machine",
        "call from here, on localhost or on the Unix socket (--grpc_socket_path); an SSH tunnel to this machine's "
        "localhost works too",
    )


def file_names(traces: Iterable[Mapping[str, Any]]) -> list[str]:
    """Return the last parts of the names of the client's files, such as "MODEL-VERSION.xplane.pb".

    The client puts the server's address before them. TensorBoard takes the part before ".xplane.pb" for a host, so each
    worker appears as one. A model's name cannot lead out of the client's folder.
    """
    names: list[str] = []
    for trace in traces:
        version = f"-{trace['version']}"
        stem = re.sub(r"[^\w.-]", "_", trace["model"], flags=re.ASCII)[: _MAX_NAME_CHARACTERS - len(version)] + version
        name, number = stem, 2
        while f"{name}.xplane.pb" in names:
            name, number = f"{stem}_{number}", number + 1
        names.append(f"{name}.xplane.pb")
    return names


def tracer_levels(options: Any) -> dict[str, int]:
    """Return the tracer levels that the client asks for; {} leaves them to TensorFlow.

    Python's tracer is left out: it would trace the server's own code and slow it down.
    """
    if not options.version:
        return {}
    return {
        "host_tracer_level": min(options.host_tracer_level, 3),
        "device_tracer_level": min(options.device_tracer_level, 1),
    }


def _response(traces: Collection[Mapping[str, Any]], spaces: Collection[bytes], emit_xspace: bool) -> bytes:
    response = protos.ProfileResponse()
    response.empty_trace = not any(trace["has_events"] for trace in traces)
    if emit_xspace:
        # Concatenated protocol buffers merge: the result has all planes of all workers.
        response.xspace = b"".join(spaces)
    else:
        for trace, name, space in zip(traces, file_names(traces), spaces, strict=True):
            if trace["has_events"]:
                response.tool_data.add(name=name, data=space)
    return bytes(response.SerializeToString())


def _read(path: str) -> bytes:
    with open(path, "rb") as file:
        return file.read()
