"""A phone, an echo engine and the media plane on one bench, stepped by hand over real loopback sockets.

One step is 20 ms of made-up time: the phones speak, the plane ticks, the engine ticks when it is due.
"""

from __future__ import annotations

import asyncio
import socket
import struct
from pathlib import Path

import av
import numpy as np

from engine.echo import EchoEngine
from engine.rows import AudioRows
from gateway.media import g711
from gateway.media.messages import MediaEvent, RtpMedia
from gateway.media.plane import MediaPlane, MediaSettings
from sip.srtp import SrtpContext

DATA = Path(__file__).parent / "data"
BLOCK = 160
HEADER = struct.Struct(">BBHII")


def speech(name: str = "ast_en_near2_8k") -> np.ndarray:
    """A recording of tests/data/speech as int16."""
    with av.open(str(DATA / "speech" / f"{name}.flac")) as file:
        return np.concatenate([f.to_ndarray().reshape(-1) for f in file.decode(audio=0)]).astype(np.int16)


def bound_socket() -> socket.socket:
    sock = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    sock.bind(("127.0.0.1", 0))
    sock.setblocking(False)
    return sock


class Phone:
    """One G.711 caller: says `pcm` (then silence) in 20 ms packets and keeps what it hears by timestamp.

    With a `context` it encrypts what it says and decrypts what it hears.
    """

    context: SrtpContext | None = None

    def __init__(self, pcm: np.ndarray, law: int = 0, ssrc: int = 0x1234) -> None:
        self.sock = bound_socket()
        self.law, self.ssrc = law, ssrc
        self.codes = g711.encode(pcm, law)
        self.sequence, self.timestamp, self.sent = 65_500, 0xFFFF_F000, 0
        self.peer: tuple[str, int] = ("127.0.0.1", 0)
        self.heard: list[tuple[int, int, int, bytes]] = []
        """(step, sequence, timestamp, payload)"""
        self.reports: list[bytes] = []

    def packet(self, payload: bytes | None = None, payload_type: int | None = None) -> bytes:
        """The next packet in the stream."""
        if payload is None:
            chunk = self.codes[self.sent * BLOCK : (self.sent + 1) * BLOCK]
            payload = bytes(chunk).ljust(BLOCK, b"\xff" if self.law == 0 else b"\xd5")
            self.sent += 1
        kind = self.law * 8 if payload_type is None else payload_type
        header = HEADER.pack(0x80, kind, self.sequence & 0xFFFF, self.timestamp & 0xFFFF_FFFF, self.ssrc)
        self.sequence += 1
        self.timestamp += BLOCK
        packet: bytes = header + payload
        return self.context.protect(packet) if self.context else packet

    def say(self, lost: bool = False) -> None:
        datagram = self.packet()
        if not lost:
            self.sock.sendto(datagram, self.peer)

    def listen(self, step: int) -> None:
        while True:
            try:
                data = self.sock.recv(2000)
            except BlockingIOError:
                return
            if 192 <= data[1] <= 223:
                self.reports.append(self.context.unprotect_rtcp(data) if self.context else data)
                continue
            data = self.context.unprotect(data) if self.context else data
            _, _, sequence, timestamp, _ = HEADER.unpack_from(data)
            self.heard.append((step, sequence, timestamp, data[12:]))

    def heard_pcm(self) -> np.ndarray:
        """All that was heard, laid out by timestamp, int16; holes are 0."""
        first = self.heard[0][2]
        end = max((t - first) & 0xFFFF_FFFF for _, _, t, _ in self.heard) + BLOCK
        out = np.zeros(end, np.int16)
        for _, _, timestamp, payload in self.heard:
            at = (timestamp - first) & 0xFFFF_FFFF
            out[at : at + len(payload)] = g711.decode(np.frombuffer(payload, np.uint8), self.law)
        return out


class Bench:
    """Rows, an EchoEngine without delay, and a MediaPlane whose steps are compiled, as a gateway's are."""

    def __init__(
        self, count: int = 4, processing: object = None, greeting: bool = False, **settings: object
    ) -> None:
        self.rows = AudioRows(count)
        self.engine = EchoEngine(slots=count, delay_s=0.0, greeting=greeting, phase=0.005, rows=self.rows)
        wanted = MediaSettings(**{"kernel_times": False, **settings})  # type: ignore[arg-type]
        self.plane = MediaPlane(self.rows, wanted, processing)  # type: ignore[arg-type]
        self.step_number = 1_000
        self.engine.begin(self.now + 0.005)
        self.events: list[MediaEvent] = []
        self.phones: dict[int, Phone] = {}

    @property
    def now(self) -> float:
        return self.step_number * 0.02

    @staticmethod
    def media(phone: Phone, **changes: object) -> RtpMedia:
        codec = ("PCMU", "PCMA")[phone.law]
        wanted = {"codec": codec, "payload_type": phone.law * 8, "ssrc": 77, "dtmf_payload_type": 101}
        wanted["remote"] = phone.sock.getsockname()
        return RtpMedia(**{**wanted, **changes})  # type: ignore[arg-type]

    def call(self, row: int, phone: Phone, **changes: object) -> int:
        """Open the row for this phone and the engine's slot with it."""
        return asyncio.run(self.answer(row, phone, **changes))

    async def answer(self, row: int, phone: Phone, **changes: object) -> int:
        """call(), in a test that has a loop of its own."""
        sock = bound_socket()
        phone.peer = sock.getsockname()
        self.phones[row] = phone
        await self.engine.open(row=row)
        number = self.plane.open_rtp(row, sock, self.media(phone, **changes))
        self.plane.start(row)
        return number

    def step(self, lost: bool = False, talk: bool = True) -> None:
        """20 ms: phones speak and listen, the plane ticks, then the engine if due."""
        if talk:
            for phone in self.phones.values():
                phone.say(lost)
        self.step_number += 1
        self.plane.tick(self.now)
        self.engine.run_due(self.now + 0.005)
        for phone in self.phones.values():
            phone.listen(self.step_number)
        self.events += self.plane.take_events()

    def run(self, steps: int) -> None:
        for _ in range(steps):
            self.step()

    def close(self) -> None:
        self.plane.close_all()
        for phone in self.phones.values():
            phone.sock.close()
