"""Messages out of a stream: Content-Length framing over TCP and TLS (RFC 3261 §18.3, RFC 5626 §4.4.1)."""

from __future__ import annotations

import re

from sip.errors import PeerError
from sip.message import MAX_HEAD_BYTES

_LENGTH = re.compile(rb"\r\n(?:content-length|l)[ \t]*:[ \t]*([^\r\n]*)", re.I)
_END = b"\r\n\r\n"


class BrokenStream(PeerError):
    """Where the next message begins can no longer be told: the connection must close."""


class StreamFramer:
    """Bytes in, as they come; whole messages out. `pings` counts keep-alives to be answered by CRLF."""

    def __init__(self, max_message_bytes: int) -> None:
        self._limit = max_message_bytes
        self._buffer = bytearray()
        self._searched = 0
        self._whole: int | None = None
        """How long the message at the front is, once its headers are all here: read once, not by the byte."""
        self.pings = 0

    @property
    def inside(self) -> bool:
        """A message has begun and is not complete."""
        return bool(self._buffer)

    def feed(self, data: bytes) -> list[bytes]:
        """Raises BrokenStream; the messages before the break are lost with it."""
        self._buffer += data
        messages: list[bytes] = []
        while (message := self._next()) is not None:
            messages.append(message)
        return messages

    def take_pings(self) -> int:
        pings, self.pings = self.pings, 0
        return pings

    def _next(self) -> bytes | None:
        if self._whole is None:
            self._skip_keepalives()
            self._whole = self._measure()
        if self._whole is None or len(self._buffer) < self._whole:
            return None
        message = bytes(self._buffer[: self._whole])
        del self._buffer[: self._whole]
        self._searched, self._whole = 0, None
        return message

    def _measure(self) -> int | None:
        end = self._buffer.find(_END, max(0, self._searched - 3))
        if end < 0:
            self._searched = len(self._buffer)
            if len(self._buffer) > MAX_HEAD_BYTES:
                raise BrokenStream("headers too long", 513)
            return None
        whole = end + 4 + self._body_length(bytes(self._buffer[: end + 2]))
        if whole > self._limit:
            raise BrokenStream("message too long", 513)
        return whole

    def _skip_keepalives(self) -> None:
        while self._buffer[:2] == b"\r\n":
            double = self._buffer[:4] == _END
            del self._buffer[: 4 if double else 2]
            self.pings += double
            self._searched = 0

    @staticmethod
    def _body_length(head: bytes) -> int:
        values = {value.strip() for value in _LENGTH.findall(head)}
        if not values:
            return 0
        value = values.pop()
        if values or not re.fullmatch(rb"[0-9]{1,9}", value):
            raise BrokenStream("bad Content-Length")
        return int(value)
