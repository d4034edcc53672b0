"""LossyPath: a relay between a real phone and the gateway, which loses an RTP packet when told to.

It forwards SIP datagrams, puts its own ports into the SDP of both sides, and notes when each RTP packet
passed: so the echo's round trip is measured outside both programs.
"""

from __future__ import annotations

import re
import select
import socket
import struct
import threading
import time
from typing import Self

import numpy as np

from tests.rtp_caller import LOOPBACK, Arrival, Exchange


class LossyPath:
    """Between one phone, which dials `port`, and a gateway. One call."""

    def __init__(self, gateway_port: int) -> None:
        self.gateway = (LOOPBACK, gateway_port)
        names = ("sip", "phone", "line")
        self._sockets = {name: socket.socket(socket.AF_INET, socket.SOCK_DGRAM) for name in names}
        for sock in self._sockets.values():
            sock.bind((LOOPBACK, 0))
        self.port = int(self._sockets["sip"].getsockname()[1])
        self.sent: list[Arrival] = []
        """What the phone sent, the lost ones included."""
        self.returned: list[Arrival] = []
        """What the gateway sent."""
        self.lost_at: float | None = None
        """When the packet asked for was lost."""
        self._losing = False
        self._phone_sip: tuple[str, int] | None = None
        self._phone_rtp: tuple[str, int] | None = None
        self._gateway_rtp: tuple[str, int] | None = None
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)

    def lose_one(self) -> None:
        """Lose the next packet of the phone."""
        self._losing = True

    def exchange(self) -> Exchange:
        """Both directions as an exchange of the phone's signal."""
        sent, began = Exchange(np.zeros(0), 0.0).joined(self.sent)
        return Exchange(sent, began, [a for a in self.returned if a.at >= began])

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join(5.0)
        for sock in self._sockets.values():
            sock.close()

    def _run(self) -> None:
        by_socket = {sock: name for name, sock in self._sockets.items()}
        while not self._stop.is_set():
            for sock in select.select(list(by_socket), [], [], 0.1)[0]:
                data, source = sock.recvfrom(65_535)
                getattr(self, "_" + by_socket[sock])(data, source)

    def _sip(self, data: bytes, source: tuple[str, int]) -> None:
        if source == self.gateway:
            data, self._gateway_rtp = self._through(data, "phone", self._gateway_rtp)
            if self._phone_sip:
                self._sockets["sip"].sendto(data, self._phone_sip)
        else:
            self._phone_sip = source
            data, self._phone_rtp = self._through(data, "line", self._phone_rtp)
            self._sockets["sip"].sendto(data, self.gateway)

    def _through(
        self, data: bytes, to: str, known: tuple[str, int] | None
    ) -> tuple[bytes, tuple[str, int] | None]:
        """The message with our own port for the receiver `to`, and whose port that replaced."""
        head, _, body = data.partition(b"\r\n\r\n")
        media = re.search(rb"m=audio (\d+)", body)
        if media is None:
            return data, known
        port = self._sockets[to].getsockname()[1]
        body = re.sub(rb"m=audio \d+", b"m=audio %d" % port, body)
        body = re.sub(rb"a=rtcp:\d+[^\r\n]*\r\n", b"", body)
        head = re.sub(rb"(?im)^(Content-Length|l):[^\r\n]*", b"Content-Length: %d" % len(body), head)
        return head + b"\r\n\r\n" + body, (LOOPBACK, int(media[1]))

    def _line(self, data: bytes, _: tuple[str, int]) -> None:
        """From the gateway, to the phone."""
        self._note(data, self.returned)
        if self._phone_rtp:
            self._sockets["phone"].sendto(data, self._phone_rtp)

    def _phone(self, data: bytes, _: tuple[str, int]) -> None:
        """From the phone, to the gateway."""
        self._note(data, self.sent)
        if self._losing:
            self._losing, self.lost_at = False, time.monotonic()
        elif self._gateway_rtp:
            self._sockets["line"].sendto(data, self._gateway_rtp)

    @staticmethod
    def _note(data: bytes, packets: list[Arrival]) -> None:
        if len(data) >= 12 and data[1] & 0x7F == 0:
            _, sequence, timestamp = struct.unpack_from("!xBHI", data)
            packets.append(Arrival(time.monotonic(), sequence, timestamp, data[12:]))
