"""The caller of a gRPC call, and what it may do."""

from __future__ import annotations

import ipaddress
from dataclasses import dataclass
from typing import Any
from urllib.parse import unquote

from appliance.core.errors import Code, ServingError

__all__ = ["Peer", "check_may_reload", "peer_of"]


@dataclass(frozen=True, slots=True)
class Peer:
    """A caller: whether it came by the Unix socket, from this machine's loopback, or with a verified certificate."""

    name: str  # as gRPC writes it, such as "ipv4:127.0.0.1:51234"
    by_socket: bool = False
    by_loopback: bool = False
    verified: bool = False


def peer_of(context: Any) -> Peer:
    """Return the caller of a gRPC servicer context.

    gRPC keeps a client's certificate only if it has verified it (`require_client_auth`).
    """
    name = context.peer()
    return Peer(name, name.startswith("unix:"), _is_loopback(name), "x509_pem_cert" in context.auth_context())


def _is_loopback(peer: str) -> bool:
    """Return whether `peer` is 127.0.0.0/8, ::1 or an IPv4-mapped loopback address.

    `peer` is as gRPC writes it: "ipv4:127.0.0.1:51234", "ipv6:%5B::1%5D:51234".
    """
    family, _, rest = unquote(peer).partition(":")
    if family not in ("ipv4", "ipv6"):
        return False
    try:
        address = ipaddress.ip_address(rest.rpartition(":")[0].strip("[]").partition("%")[0])
    except ValueError:
        return False
    if isinstance(address, ipaddress.IPv6Address) and address.ipv4_mapped is not None:
        return address.ipv4_mapped.is_loopback
    return address.is_loopback


def check_may_reload(peer: Peer, allow_remote_reload: str) -> None:
    """Raise PERMISSION_DENIED if `peer` may not replace the list of models.

    A reload can make the server read any path. Permission comes from the socket's file mode or a client certificate,
    not from an address, because behind a local proxy every client is loopback.
    """
    if peer.by_socket or peer.verified or allow_remote_reload == "any":
        return
    if allow_remote_reload == "loopback" and peer.by_loopback:
        return
    raise ServingError(
        Code.PERMISSION_DENIED,
        f"{peer.name} may not reload the model config: a reload can make the server read any folder",
        "call on the Unix socket (--grpc_socket_path) or with a client certificate (--ssl_config_file), or start the "
        "server with --allow_remote_reload=loopback or =any",
    )
