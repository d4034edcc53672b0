"""Names: host names become addresses off the loop, one look-up a name at a time, with a short memory."""

from __future__ import annotations

import asyncio
import logging
import socket
from collections.abc import Callable

from sip.dialog import is_ip

log = logging.getLogger(__name__)
KEEP_S = 60.0
MAX_NAMES = 1_024
MAX_WAITING = 64
"""Messages that wait for one name; more are dropped, their retransmissions come."""


class Names:
    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self._loop = loop
        self._known: dict[str, tuple[float, str]] = {}
        self._waiting: dict[str, list[Callable[[], None]]] = {}
        self._tasks: set[asyncio.Task[None]] = set()

    def lookup(self, name: str, then: Callable[[], None]) -> str | None:
        """The address, or None: then `then` is called once the name is known (never, if it is none)."""
        if is_ip(name):
            return name
        until, address = self._known.get(name, (0.0, ""))
        if until > self._loop.time():
            return address or None
        waiting = self._waiting.get(name)
        if waiting is not None:
            if len(waiting) < MAX_WAITING:
                waiting.append(then)
        elif len(self._waiting) < MAX_NAMES:
            self._waiting[name] = [then]
            task = self._loop.create_task(self._resolve(name), name="resolve")
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)
        return None

    async def _resolve(self, name: str) -> None:
        address = ""
        try:
            found = await self._loop.getaddrinfo(name, None, type=socket.SOCK_DGRAM)
            found.sort(key=lambda item: item[0] != socket.AF_INET)
            address = str(found[0][4][0])
        except (OSError, UnicodeError, IndexError):
            log.info("a host name has no address")
        if len(self._known) >= MAX_NAMES:
            self._known.clear()
        self._known[name] = (self._loop.time() + (KEEP_S if address else 5.0), address)
        for then in self._waiting.pop(name, []):
            then()

    def close(self) -> None:
        for task in self._tasks:
            task.cancel()


def reachable(host: str) -> str:
    """The bound address, or for a wildcard the one that faces the default route."""
    if host not in ("0.0.0.0", "::"):
        return host
    family, far = (socket.AF_INET6, "2001:db8::1") if host == "::" else (socket.AF_INET, "192.0.2.1")
    with socket.socket(family, socket.SOCK_DGRAM) as probe:
        try:
            probe.connect((far, 9))  # UDP: asks for a route and sends nothing
            return str(probe.getsockname()[0])
        except OSError:
            return "::1" if host == "::" else "127.0.0.1"
