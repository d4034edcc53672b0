"""Listening: the phone's port, and what is said of a port that is not to be had."""

from __future__ import annotations

import errno

from gateway.config_sources import variable
from sip.endpoint import Endpoint

PORT_TRIES = 16
"""Ports tried for UDP and TCP together where the system chooses: it knows only that UDP's is free."""


class CannotListen(Exception):
    """A port or a certificate this gateway was told to use is not to be had; the message says which."""


async def open_phone_port(endpoint: Endpoint, host: str, port: int, tcp: bool) -> int:
    """The port on which UDP, and TCP if wanted, are open; 0 lets the system choose. Raises CannotListen."""
    for _ in range(1 if port else PORT_TRIES):
        try:
            number = (await endpoint.open_udp(host, port))[1]
        except OSError as error:
            raise CannotListen(taken("sip.port", "UDP", host, port, error)) from error
        if not tcp:
            return number
        try:
            await endpoint.open_tcp(host, number)
            return number
        except OSError as error:
            if error.errno != errno.EADDRINUSE or port:
                raise CannotListen(taken("sip.port", "TCP", host, number, error)) from error
    key = variable(("sip", "port"))
    raise CannotListen(
        f"none of {PORT_TRIES} ports on {host} was free for UDP and for TCP; set sip.port ({key}) to one "
        "that is, or sip.tcp to false"
    )


def taken(key: str, protocol: str, host: str, port: int, error: OSError) -> str:
    """One line: which port, why not, and which key to set."""
    in_use = error.errno == errno.EADDRINUSE
    reason = "is taken by another program" if in_use else f"cannot be had: {error.strerror}"
    name = variable(tuple(key.split(".")))
    return f"{protocol} port {port} on {host} {reason}; stop that, or set {key} ({name})"
