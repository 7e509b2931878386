"""Who may connect to viewer and service: same-origin pages under a known host name.

A browser lets every web page open a WebSocket to every address, and tells the server only in the
header `Origin` which page asks (RFC 6455, section 10.2). viser looks at none of the headers.
"""

import functools
import ipaddress
import socket
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

if TYPE_CHECKING:
    import viser

_POLICY_VIOLATION = 1008  # RFC 6455, section 7.4.1


def guard(server: "viser.ViserServer", host: str, allowed_hosts: str = "") -> None:
    """Make a viser server refuse foreign pages and drop uploads.

    Args:
        server: one that has just started.
        host: address that it listens on.
        allowed_hosts: see `refusal`.
    """
    from viser import _messages

    connections: Any = server._websock_server
    uploads = (_messages.FileTransferStartUpload, _messages.FileTransferPart)

    async def check(client: Any) -> None:
        # viser gives every client an interface of its own, which takes uploads too
        for kind in uploads:
            client._incoming_handlers.pop(kind, None)
        connection = connections._live_connections[client.client_id]
        why = refusal(connection.request.headers, host, allowed_hosts)
        if why is not None:
            await connection.close(_POLICY_VIOLATION, why)

    for kind in uploads:
        connections.unregister_handler(kind)
    connections.on_client_connect(check)


def refusal(
    headers: Mapping[str, str],
    host: str,
    allowed_hosts: str = "",
    *,
    setting: str = "view.allowed_hosts",
    what: str = "viewer",
) -> str | None:
    """Returns why a connection is refused; None where it is allowed.

    A page of another origin is refused. So is a name that only a DNS server made up for this
    machine (DNS rebinding): where the server listens on loopback, `Host` has to be a name of
    loopback; elsewhere an IP address, a name of loopback or of this machine, or `host`. Programs
    that are no browsers send no `Origin`, and may connect.

    Args:
        headers: of the request; `Host` and `Origin` count. Names are as the mapping compares them.
        host: address that the server listens on.
        allowed_hosts: further names, with commas between.
        setting: that has the further names, for the message.
        what: what is reached, for the message.
    """
    asked = headers.get("Host", "")
    name = _name(asked)
    known = {"localhost", host.lower(), *(h.strip().lower() for h in allowed_hosts.split(","))}
    if not is_loopback(host):
        known |= _names_of_this_machine()
    if not name or not (name in known or is_loopback(name) or _is_address(name, host)):
        return f"Host {name[:60]!r} is not known here; see {setting}"
    origin = headers.get("Origin")
    if origin is not None and urlsplit(origin).netloc.lower() != asked.lower():
        return f"pages of {origin[:60]!r} may not use this {what}"
    return None


@functools.cache
def _names_of_this_machine() -> frozenset[str]:
    """Returns the host names of this machine; cached, since a name server may be asked."""
    return frozenset({socket.gethostname().lower(), socket.getfqdn().lower()})


def _name(netloc: str) -> str:
    try:
        return (urlsplit(f"//{netloc}").hostname or "").lower()
    except ValueError:
        return ""


def is_loopback(name: str) -> bool:
    """Returns whether a name or address can be reached from this machine only."""
    try:
        return ipaddress.ip_address(name).is_loopback
    except ValueError:
        return name == "localhost"


def _is_address(name: str, host: str) -> bool:
    """Returns whether a request names a server that is not on loopback by an IP address."""
    try:
        ipaddress.ip_address(name)
    except ValueError:
        return False
    return not is_loopback(host)
