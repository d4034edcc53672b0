"""Door: HTTP connections that ask for nothing, or take for ever to, are closed; there is a limit to all.

A connection waits until its first whole request has come and between two; it is busy while one is answered.
"""

from __future__ import annotations

import asyncio
import time
from dataclasses import dataclass

from aiohttp import web
from aiohttp.typedefs import Handler

MOST = 500
"""Connections at once; of more the longest waiting are closed, so that newcomers get in."""
FIRST_S = 10.0
"""How long the first request may take to come as a whole."""
NEXT_S = 90.0
"""The same for one after another; aiohttp itself closes after 75 s of silence."""
SWEEP_S = 0.5


@dataclass(slots=True)
class _Guest:
    """A connection as it was last seen."""

    since: float
    """When it came, or its last answer was complete."""
    asked: bool = False
    busy: int = 0


class Door:
    """Of one server. `now` is time.monotonic()."""

    def __init__(self) -> None:
        self.closed = 0
        """Connections closed by us since the start."""
        self._guests: dict[object, _Guest] = {}

    @web.middleware
    async def middleware(self, request: web.Request, handler: Handler) -> web.StreamResponse:
        """Notes who has asked for something."""
        guest = self._guests.setdefault(request.protocol, _Guest(time.monotonic()))
        guest.asked = True
        guest.busy += 1
        try:
            return await handler(request)
        finally:
            guest.busy -= 1
            guest.since = time.monotonic()

    async def run(self, server: web.Server) -> None:
        """Sweep until cancelled."""
        while True:
            await asyncio.sleep(SWEEP_S)
            self.sweep(server, time.monotonic())

    def sweep(self, server: web.Server, now: float) -> None:
        """Close whoever has waited for too long, and the longest waiting where there are too many."""
        connections = server.connections
        for gone in self._guests.keys() - set(connections):
            del self._guests[gone]
        waiting: list[tuple[float, web.RequestHandler]] = []
        for connection in connections:
            guest = self._guests.setdefault(connection, _Guest(now))
            if guest.busy:
                continue
            if now - guest.since > (NEXT_S if guest.asked else FIRST_S):
                self._close(connection)
            else:
                waiting.append((guest.since, connection))
        waiting.sort(key=lambda item: item[0])
        for _, connection in waiting[: max(0, len(connections) - MOST)]:
            self._close(connection)

    def _close(self, connection: web.RequestHandler) -> None:
        self.closed += 1
        if connection.transport is not None:
            connection.transport.abort()
