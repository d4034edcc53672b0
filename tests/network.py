"""A bad network in user space: a seeded UDP relay; delay, jitter, loss, doubles, reordering, rate, stalls.

`Link` decides, with time as an argument; `Relay` is the thread that carries datagrams between one or more
clients and one target, each client through a socket of its own, as a NAT does.
"""

from __future__ import annotations

import contextlib
import heapq
import random
import select
import socket
import threading
import time
from dataclasses import dataclass
from typing import Self

Address = tuple[str, int]
LARGE = 60
"""Bytes from which a datagram of a call is audio and no keep-alive."""
APART_S = 1e-6
"""Datagrams due at one time are kept in order by so much."""


@dataclass(frozen=True)
class Conditions:
    """Of one direction."""

    delay_ms: float = 0.0
    jitter_ms: float = 0.0
    """Standard deviation, Gaussian, of what is added to the delay."""
    loss: float = 0.0
    """Mean share lost."""
    burst: float = 1.0
    """Mean length of a run of losses: Gilbert–Elliott with a bad state that loses all."""
    duplicate: float = 0.0
    reorder: bool = False
    """Jitter may let a datagram overtake another; without, it waits for the one before."""
    rate_bps: float = 0.0
    """0: no limit."""
    queue_ms: float = 200.0
    """Most waiting for the rate; more is lost."""


class Link:
    """One direction: when each datagram comes out, if it does."""

    def __init__(self, conditions: Conditions = Conditions(), seed: int = 0) -> None:
        self.conditions = conditions
        self.random = random.Random(seed)
        self.sent = self.lost = 0
        self._bad = False
        self._doomed: int | None = None
        self._last = self._free = self._stalled_until = 0.0

    def stall(self, now: float, seconds: float) -> None:
        """Nothing comes out for so long; then all at once, in order."""
        self._stalled_until = now + seconds

    def lose_next(self, least: int = 0) -> None:
        """Lose the next datagram of at least so many bytes."""
        self._doomed = least

    def pass_through(self, now: float, size: int) -> list[float]:
        """The times at which a datagram of `size` bytes sent now comes out: none, one or two."""
        c = self.conditions
        self.sent += 1
        doomed = self._doomed is not None and size >= self._doomed
        if doomed:
            self._doomed = None
        if doomed or self._loses():
            self.lost += 1
            return []
        start = now
        if c.rate_bps:
            start = max(now, self._free)
            if start - now > c.queue_ms / 1000:
                self.lost += 1
                return []
            self._free = start = start + size * 8 / c.rate_bps
        due = start + c.delay_ms / 1000 + max(-c.delay_ms / 1000, self.random.gauss(0, c.jitter_ms / 1000))
        due = max(due, self._stalled_until)
        if not c.reorder:
            due = max(due, self._last + APART_S)
        self._last = max(due, self._last)
        return [due] if self.random.random() >= c.duplicate else [due, due + APART_S]

    def _loses(self) -> bool:
        c = self.conditions
        if c.loss <= 0:
            return False
        if self._bad:
            self._bad = self.random.random() >= 1 / c.burst
        else:
            self._bad = self.random.random() < c.loss / (c.burst * (1 - c.loss))
        return self._bad


class Relay:
    """client ↔ relay.address ↔ target. `up` is towards the target."""

    def __init__(self, target: Address, up: Link | None = None, down: Link | None = None) -> None:
        self.target = target
        self.up, self.down = up or Link(), down or Link(seed=1)
        self._front = _bound()
        self.address: Address = self._front.getsockname()
        self._uplinks: dict[Address, socket.socket] = {}
        self._due: list[tuple[float, int, socket.socket, bytes, Address]] = []
        self._count = 0
        self._lock = threading.Lock()
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)

    def stall(self, seconds: float) -> None:
        """Both directions stand still."""
        with self._lock:
            self.up.stall(time.monotonic(), seconds)
            self.down.stall(time.monotonic(), seconds)

    def set_conditions(self, up: Conditions, down: Conditions) -> None:
        """From the next datagram on."""
        with self._lock:
            self.up.conditions, self.down.conditions = up, down

    def lose_next(self) -> None:
        """The next datagram of each direction never arrives."""
        with self._lock:
            self.up.lose_next(LARGE)
            self.down.lose_next(LARGE)

    def rebind(self) -> None:
        """The NAT forgets: the clients go on from new ports."""
        with self._lock:
            for sock in self._uplinks.values():
                sock.close()
            self._uplinks.clear()

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join(5.0)
        self.rebind()
        self._front.close()

    def _run(self) -> None:
        while not self._stop.is_set():
            with self._lock:
                socks = [self._front, *self._uplinks.values()]
                wait = self._due[0][0] - time.monotonic() if self._due else 0.01
            ready: list[socket.socket] = []
            with contextlib.suppress(OSError, ValueError):  # rebind() may have closed one just now
                ready, _, _ = select.select(socks, [], [], min(0.01, max(0.0, wait)))
            with self._lock:
                for sock in ready:
                    self._take(sock)
                self._give(time.monotonic())

    def _take(self, sock: socket.socket) -> None:
        while True:
            try:
                data, source = sock.recvfrom(65_536)
            except OSError:
                return
            if sock is self._front:
                if source not in self._uplinks:
                    self._uplinks[source] = _bound()
                self._queue(self.up, self._uplinks[source], data, self.target)
            else:
                client = next((c for c, s in self._uplinks.items() if s is sock), None)
                if client is not None:
                    self._queue(self.down, self._front, data, client)

    def _queue(self, link: Link, sock: socket.socket, data: bytes, to: Address) -> None:
        for due in link.pass_through(time.monotonic(), len(data)):
            self._count += 1
            heapq.heappush(self._due, (due, self._count, sock, data, to))

    def _give(self, now: float) -> None:
        while self._due and self._due[0][0] <= now:
            _, _, sock, data, to = heapq.heappop(self._due)
            try:
                sock.sendto(data, to)
            except OSError:
                continue  # a socket that a rebind closed


def _bound() -> socket.socket:
    sock = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    sock.bind(("127.0.0.1", 0))
    sock.setblocking(False)
    return sock
