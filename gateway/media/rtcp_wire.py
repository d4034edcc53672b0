"""RtcpWire: the sockets of phone legs whose RTCP has a port of its own (no rtcp-mux), a few octets a second.

It judges nothing: whose reports count is the row's business.
"""

from __future__ import annotations

import select
import socket

from gateway.media.messages import Address

LARGEST = 1_500
PER_ROW = 4
"""Datagrams taken from one row a tick."""


class RtcpWire:
    """Sockets by row. One thread."""

    def __init__(self) -> None:
        self._sockets: dict[int, socket.socket] = {}
        self._rows: dict[int, int] = {}
        self._epoll = select.epoll()

    def open(self, row: int, sock: socket.socket) -> None:
        """Take over the row's second socket."""
        self.close(row)
        sock.setblocking(False)
        self._sockets[row] = sock
        self._rows[sock.fileno()] = row
        self._epoll.register(sock.fileno(), select.EPOLLIN)

    def has(self, row: int) -> bool:
        return row in self._sockets

    def close(self, row: int) -> None:
        sock = self._sockets.pop(row, None)
        if sock is not None:
            del self._rows[sock.fileno()]
            self._epoll.unregister(sock.fileno())
            sock.close()

    def close_all(self) -> None:
        for row in list(self._sockets):
            self.close(row)
        self._epoll.close()

    def send(self, row: int, datagram: bytes, remote: Address) -> None:
        """Never blocks; a report that cannot go is a lost one."""
        try:
            self._sockets[row].sendto(datagram, remote)
        except OSError:
            return

    def receive(self) -> list[tuple[int, bytes, Address]]:
        """(row, datagram, source) of what came, PER_ROW a row at most."""
        if not self._sockets:
            return []
        came: list[tuple[int, bytes, Address]] = []
        for fd, _ in self._epoll.poll(0, len(self._sockets)):
            row = self._rows[fd]
            for _ in range(PER_ROW):
                try:
                    data, source = self._sockets[row].recvfrom(LARGEST)
                except OSError:
                    break
                came.append((row, data, (source[0], source[1])))
        return came
