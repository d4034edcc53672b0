"""RtpPorts: bound UDP sockets for media, from a configured range, each port rested after use.

A port that served a call stays unused for a while, so that a peer who still sends to the old call is
never heard in a new one (RFC 3550 §11 for even ports, and the odd one above for RTCP).
"""

from __future__ import annotations

import socket
from collections import deque

TRIES = 32
"""Ports of the system's choice looked at until one is even and the one above free."""


class NoFreePort(Exception):
    """Every RTP port of the range is in use, resting, or taken by another program."""


class RtpPorts:
    """Non-blocking UDP sockets bound to even ports of [first, last]; (0, 0) lets the system choose."""

    def __init__(self, host: str, first: int = 0, last: int = 0, rest_s: float = 30.0) -> None:
        if first and last < first:
            raise ValueError(f"RTP port range {first}-{last} is empty")
        self.host = host
        self.rest_s = rest_s
        self._any = first == 0
        self._last = last
        even = range(first + first % 2, last + 1, 2)
        self._free: deque[int] = deque(even)
        self._resting: deque[tuple[float, int]] = deque()
        self._used: set[int] = set()
        self.family = socket.AF_INET6 if ":" in host else socket.AF_INET

    def take(self, now: float) -> socket.socket:
        """A bound socket; its port is `getsockname()[1]`. `now` in seconds. Raises NoFreePort."""
        rtp, rtcp = self.take_pair(now)
        if rtcp is not None:
            rtcp.close()
        return rtp

    def take_pair(self, now: float) -> tuple[socket.socket, socket.socket | None]:
        """A bound socket for RTP, and one on the port above for RTCP; None where there is none above.
        Raises NoFreePort."""
        if self._any:
            return self._chosen_pair()
        while self._resting and self._resting[0][0] <= now:
            self._free.append(self._resting.popleft()[1])
        for _ in range(len(self._free)):
            port = self._free.popleft()
            try:
                pair = self._bind_pair(port)
            except OSError:
                self._free.append(port)  # another program holds it; it may let go later
                continue
            self._used.add(port)
            return pair
        raise NoFreePort(f"no free RTP port: {len(self._used)} in use, {len(self._resting)} resting")

    def give_back(self, port: int, now: float) -> None:
        """The call on this port is over and its socket closed: let the port rest."""
        if port in self._used:
            self._used.remove(port)
            self._resting.append((now + self.rest_s, port))

    def _chosen_pair(self) -> tuple[socket.socket, socket.socket | None]:
        for _ in range(TRIES):
            rtp = self._bind(0)
            port = rtp.getsockname()[1]
            try:
                if port % 2 == 0:
                    return rtp, self._bind(port + 1)
            except OSError:
                pass
            rtp.close()
        return self._bind(0), None

    def _bind_pair(self, port: int) -> tuple[socket.socket, socket.socket | None]:
        rtp = self._bind(port)
        if port == self._last:
            return rtp, None
        try:
            return rtp, self._bind(port + 1)
        except OSError:
            rtp.close()
            raise

    def _bind(self, port: int) -> socket.socket:
        sock = socket.socket(self.family, socket.SOCK_DGRAM)
        sock.setblocking(False)
        try:
            sock.bind((self.host, port))
        except OSError:
            sock.close()
            raise
        return sock
