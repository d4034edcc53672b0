"""UdpWire: the sockets of all phone legs: everything that came goes into one block of arrays a tick.

Arrival times are the kernel's. It judges nothing: a row's socket is connected once the leg knows its
peer, and from then on the kernel lets no one else in.
"""

from __future__ import annotations

import logging
import select
import socket
import struct
import time
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from gateway.media.compiled_io import A_ROW, functions, slots
from gateway.media.messages import Address

log = logging.getLogger(__name__)

LARGEST = 1_500
"""Bytes of a datagram kept; the rest of a longer one is cut."""
BATCH = 1_024
"""Datagrams a tick takes at first; the arrays grow to MOST."""
MOST = 8_192
PER_ROW = 64
"""Datagrams a tick takes from one row, so that a flood on one call starves no other."""
_SO_TIMESTAMPNS = 35
_STAMP = struct.Struct("qq")


class Arrivals(NamedTuple):
    """Datagrams in the order they were read."""

    rows: NDArray[np.int64]  # (k,)
    data: NDArray[np.uint8]  # (k, LARGEST)
    sizes: NDArray[np.int64]  # (k,)
    arrivals: NDArray[np.float64]  # (k,) seconds of the monotonic clock
    sources: list[Address | None] | None
    """Each None where the socket is connected; None: all are."""


class UdpWire:
    """Sockets by row. One thread."""

    def __init__(self, count: int, kernel_times: bool = True, compiled: bool = True) -> None:
        """kernel_times: ask the kernel when a datagram came; without, it came when the tick was due.

        compiled: serve connected sockets in compiled loops where there are any.
        """
        self._io = functions() if compiled and kernel_times else None
        self._room = slots(BATCH if self._io else A_ROW, LARGEST)
        self._bulk: tuple[NDArray[np.int64], NDArray[np.int64]] | None = None
        self._fds = np.full(count, -1, np.int64)
        self._sockets: list[socket.socket | None] = [None] * count
        self._connected = [False] * count
        self._rows_by_fd: dict[int, int] = {}
        self._epoll = select.epoll()
        self._polled = 0
        """Sockets that it watches: all, or those that are not connected."""
        self._kernel_times = kernel_times
        self._data = np.zeros((BATCH, LARGEST), np.uint8)
        self._wall_offset = time.time() - time.monotonic()
        self.send_errors = 0

    def open(self, row: int, sock: socket.socket) -> None:
        """Take the row's socket over."""
        sock.setblocking(False)
        if self._kernel_times:
            sock.setsockopt(socket.SOL_SOCKET, _SO_TIMESTAMPNS, 1)
        self._sockets[row], self._connected[row] = sock, False
        self._fds[row] = sock.fileno()
        self._rows_by_fd[sock.fileno()] = row
        self._watch(sock)

    def close(self, row: int) -> None:
        sock = self._sockets[row]
        if sock is None:
            return
        if not (self._io and self._connected[row]):
            self._ignore(sock)
        self._connected[row], self._bulk, self._fds[row] = False, None, -1
        del self._rows_by_fd[sock.fileno()]
        self._sockets[row] = None
        sock.close()

    def close_all(self) -> None:
        for row in range(len(self._sockets)):
            self.close(row)
        self._epoll.close()

    def connect(self, row: int, remote: Address) -> bool:
        """From now on speak with this peer alone; False where the system refuses the address."""
        sock = self._sockets[row]
        if sock is None:
            return False
        try:
            sock.connect(remote)
        except OSError as error:
            log.warning("row %d: a peer's address cannot be used (%s)", row, error.strerror)
            return False
        if self._io and not self._connected[row]:
            self._ignore(sock)
        self._connected[row], self._bulk = True, None
        return True

    def disconnect(self, row: int) -> None:
        """Hear anyone again."""
        sock = self._sockets[row]
        if sock is not None and self._connected[row]:
            name = sock.getsockname()
            _dissolve(sock)
            if sock.getsockname()[1] != name[1]:
                sock.bind(name)  # the kernel takes back a port that it had chosen itself
            self._connected[row], self._bulk = False, None
            if self._io:
                self._watch(sock)

    def _watch(self, sock: socket.socket) -> None:
        self._epoll.register(sock.fileno(), select.EPOLLIN)
        self._polled += 1

    def _ignore(self, sock: socket.socket) -> None:
        self._epoll.unregister(sock.fileno())
        self._polled -= 1

    def send(self, row: int, data: bytes | memoryview, remote: Address | None = None) -> bool:
        """One datagram to the connected peer, or to `remote`. Never blocks; False if it was not sent."""
        sock = self._sockets[row]
        if sock is None:
            return False
        try:
            if remote is None:
                sock.send(data)
            else:
                sock.sendto(data, remote)
        except OSError:
            # Full buffer, or the peer's port unreachable: a lost packet, as any other.
            self.send_errors += 1
            return False
        return True

    def wall(self, now: float) -> float:
        """Unix time of a monotonic time."""
        return now + self._wall_offset

    def send_rows(
        self, rows: NDArray[np.int64], packets: NDArray[np.uint8], sizes: NDArray[np.int64]
    ) -> NDArray[np.bool_]:
        """One datagram each, packets[row, :size], on connected sockets; which of them went."""
        sent = np.zeros(len(rows), np.int64)
        if self._io is not None:
            addresses = packets.ctypes.data + rows * packets.strides[0]
            self._io.send(self._fds[rows], addresses, sizes, sent)
            self.send_errors += len(rows) - int(sent.sum())
        else:
            for k, row in enumerate(rows.tolist()):
                sent[k] = self.send(row, packets[row, : sizes[k]].data)
        return sent.astype(np.bool_)

    def receive(self, now: float) -> Arrivals:
        """All that came, at most MOST datagrams; `now` is the tick's time."""
        if self._io is not None and not self._polled:
            return self._receive_bulk()
        one_by_one = self._receive_each(now)
        if self._io is None:
            return one_by_one
        bulk = self._receive_bulk()
        if not len(one_by_one.rows):
            return bulk
        if not len(bulk.rows):
            return one_by_one
        arrays = [np.concatenate([bulk[i], one_by_one[i]]) for i in range(4)]
        sources = one_by_one.sources
        if sources is not None:
            sources = [*[None] * len(bulk.rows), *sources]
        return Arrivals(arrays[0], arrays[1], arrays[2], arrays[3], sources)

    def _receive_bulk(self) -> Arrivals:
        """All connected sockets, compiled."""
        assert self._io is not None
        if self._bulk is None:
            rows = np.flatnonzero(np.array(self._connected))
            self._bulk = (self._fds[rows], rows)
            if len(self._room.sizes) < len(rows) * A_ROW:
                self._room = slots(len(rows) * A_ROW, LARGEST)
        room = self._room
        offset = time.monotonic() - time.time()
        count = self._io.receive(*self._bulk, room)
        times = room.times[:count] + offset
        return Arrivals(room.rows[:count], room.data[:count], room.sizes[:count], times, None)

    def _receive_each(self, now: float) -> Arrivals:
        rows: list[int] = []
        sizes: list[int] = []
        arrivals: list[float] = []
        sources: list[Address | None] = []
        offset = time.monotonic() - time.time() if self._kernel_times else 0.0
        for fd, _ in self._epoll.poll(0, len(self._sockets) or 1):
            row = self._rows_by_fd[fd]
            sock = self._sockets[row]
            for _ in range(PER_ROW):
                if sock is None or len(rows) >= MOST:
                    break
                got = self._read(sock, len(rows))
                if got is None:
                    break
                size, stamp, source = got
                rows.append(row)
                sizes.append(size)
                arrivals.append(stamp + offset if self._kernel_times else now)
                sources.append(None if self._connected[row] else source)
        numbers, lengths = np.array(rows, np.int64), np.array(sizes, np.int64)
        strangers = sources if any(source is not None for source in sources) else None
        return Arrivals(numbers, self._data[: len(rows)], lengths, np.array(arrivals), strangers)

    def _read(self, sock: socket.socket, at: int) -> tuple[int, float, Address] | None:
        if at >= len(self._data):
            self._data = np.concatenate([self._data, np.zeros_like(self._data)])
        try:
            size, notes, _, source = sock.recvmsg_into([self._data[at]], 64)
        except OSError:
            # Nothing left, or an ICMP error of an earlier send: the socket stays good.
            return None
        stamp = 0.0
        for level, kind, value in notes:
            if level == socket.SOL_SOCKET and kind == _SO_TIMESTAMPNS:
                seconds, nanoseconds = _STAMP.unpack(value)
                stamp = seconds + nanoseconds * 1e-9
        return size, stamp or time.time(), (source[0], source[1]) if source else ("", 0)


def _dissolve(sock: socket.socket) -> None:
    """Undo connect(): AF_UNSPEC, which Python's connect() cannot say."""
    import ctypes

    libc = ctypes.CDLL(None, use_errno=True)
    unspecified = (ctypes.c_char * 16)()
    libc.connect(sock.fileno(), unspecified, 16)
