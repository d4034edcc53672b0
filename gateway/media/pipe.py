"""Pipe: one end of a pair of sockets over which two of our own processes tell each other things.

A thing is anything that can be pickled; an open file or socket may go with it. Sending never blocks: what
the other end has no room for waits here, in order, and is sent at a later flush(). Both ends are ours, so
what is received is trusted.
"""

from __future__ import annotations

import array
import os
import pickle
import socket
from collections import deque
from typing import NamedTuple, Protocol

LARGEST = 64 * 1024
"""Octets of a message; a longer one goes through a file in memory."""
TOGETHER = 64
"""Things in one message at most."""
_FILES = 4
_ROOM = LARGEST + 1
_INLINE, _IN_FILE = b"i", b"f"


class OpenFile(Protocol):
    """A socket or any other file."""

    def fileno(self) -> int: ...

    def close(self) -> None: ...


class Item(NamedTuple):
    """What came."""

    thing: object
    files: tuple[int, ...]
    """Open file descriptors; whoever takes the item owns them."""


class Pipe:
    """Not for several threads at once."""

    def __init__(self, sock: socket.socket) -> None:
        """A connected, SOCK_SEQPACKET Unix socket; the pipe owns it."""
        sock.setblocking(False)
        self._sock = sock
        self._waiting: deque[tuple[object, OpenFile | None]] = deque()

    @staticmethod
    def pair() -> tuple[socket.socket, socket.socket]:
        """Two connected sockets to make the two ends of."""
        return socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)

    @property
    def waiting(self) -> int:
        """Things not sent yet."""
        return len(self._waiting)

    def fileno(self) -> int:
        return self._sock.fileno()

    def put(self, thing: object, file: OpenFile | None = None) -> None:
        """Queue a thing. The pipe owns `file` from now on and closes it here once it has gone."""
        self._waiting.append((thing, file))

    def flush(self) -> bool:
        """Send what waits; False when the other end has no room now. Raises EOFError when it is gone."""
        while self._waiting:
            if not self._send_some():
                return False
        return True

    def take(self) -> list[Item]:
        """Everything that has come. Raises EOFError when the other end is gone and all it sent was taken."""
        items: list[Item] = []
        while True:
            try:
                data, files, _, _ = socket.recv_fds(self._sock, _ROOM, _FILES)
            except BlockingIOError:
                return items
            except ConnectionError as error:
                raise EOFError from error
            if not data:
                if items:
                    return items
                raise EOFError
            things = pickle.loads(_read(data, files))
            items += [Item(thing, tuple(files)) for thing in things]

    def close(self) -> None:
        """Both ends are of no use afterwards. Idempotent."""
        self._sock.close()
        for _, file in self._waiting:
            if file is not None:
                file.close()
        self._waiting.clear()

    def _send_some(self) -> bool:
        things, file = self._next()
        data, kept = _INLINE + pickle.dumps(things, pickle.HIGHEST_PROTOCOL), -1
        if len(data) > LARGEST:
            data, kept = _IN_FILE, _file_of(data[1:])
        files = [file.fileno()] if file is not None else []
        rights = array.array("i", files + ([kept] if kept >= 0 else []))
        try:
            self._sock.sendmsg([data], [(socket.SOL_SOCKET, socket.SCM_RIGHTS, rights)] if rights else [])
        except BlockingIOError:
            return False
        except ConnectionError as error:
            raise EOFError from error
        finally:
            if kept >= 0:
                os.close(kept)
        for _ in things:
            self._waiting.popleft()
        if file is not None:
            file.close()
        return True

    def _next(self) -> tuple[list[object], OpenFile | None]:
        """A thing with its file, or as many without as go together."""
        first, file = self._waiting[0]
        if file is not None:
            return [first], file
        together: list[object] = []
        for thing, file in self._waiting:
            if file is not None or len(together) == TOGETHER:
                break
            together.append(thing)
        return together, None


def _read(data: bytes, files: list[int]) -> bytes:
    """The pickled things of a message; a file that only carried them is closed and taken off the list."""
    if data[:1] == _INLINE:
        return data[1:]
    with open(files.pop(), "rb", closefd=True) as kept:
        return kept.read()


def _file_of(data: bytes) -> int:
    kept = os.memfd_create("moshi-gateway-message")
    with open(kept, "wb", closefd=False) as file:
        file.write(data)
    os.lseek(kept, 0, os.SEEK_SET)
    return kept
