"""A caller made of two sockets: SIP written by hand, G.711 packets sent on time, some lost on purpose.

It shares no code with sip/ or gateway/media, so that both ends cannot be wrong alike.
"""

from __future__ import annotations

import re
import secrets
import select
import socket
import struct
import time
from collections.abc import Collection
from dataclasses import dataclass, field
from typing import Self

import numpy as np

from tests.audio import Signal, align

LOOPBACK = "127.0.0.1"
PACKET = 160
PACKET_S = 0.02
RATE = 8_000
PCMU_OFFER = "a=rtpmap:0 PCMU/8000\r\n"


def to_mulaw(signal: Signal) -> bytes:
    """ITU-T G.711 µ-law, by the standard's segments."""
    pcm = np.rint(np.clip(signal, -1, 1) * 32_767).astype(np.int32)
    magnitude = np.minimum(np.abs(pcm), 32_635) + 132
    exponent = np.floor(np.log2(magnitude)).astype(np.int32) - 7
    mantissa = (magnitude >> (exponent + 3)) & 0x0F
    sign = np.where(pcm < 0, 0x80, 0)
    return bytes((~(sign | (exponent << 4) | mantissa) & 0xFF).astype(np.uint8))


def from_mulaw(data: bytes) -> Signal:
    code = ~np.frombuffer(data, np.uint8) & 0xFF
    exponent, mantissa = (code >> 4) & 7, code & 0x0F
    magnitude = (((mantissa.astype(np.int32) << 3) + 132) << exponent) - 132
    return np.where(code & 0x80, -magnitude, magnitude) / 32_768


@dataclass(frozen=True)
class Arrival:
    """One RTP packet from the gateway."""

    at: float
    """Monotonic seconds."""
    sequence: int
    timestamp: int
    payload: bytes


@dataclass
class Exchange:
    """What was sent when, and what came back when."""

    sent: Signal
    began: float
    """Monotonic seconds at which sample 0 of `sent` went out."""
    arrivals: list[Arrival] = field(default_factory=list)

    def heard(self) -> Signal:
        """All that came back, in the order of its timestamps."""
        return self.joined(self.arrivals)[0]

    def round_trips_s(self, from_s: float, to_s: float, window_s: float = 0.25) -> list[float]:
        """The echo's delay in each window of the exchange in which it was found.

        Each window is found by itself, since a jitter buffer may change its delay from one to the next.
        """
        found = []
        for start in np.arange(from_s, to_s, window_s):
            window = [a for a in self.arrivals if start <= a.at - self.began < start + window_s]
            if len(window) * PACKET_S < window_s / 2:
                continue
            heard, began = self.joined(window)
            echo = align(heard, self.sent)
            if echo.correlation > 0.7:
                found.append(began - self.began + echo.lag / RATE)
        return found

    def round_trip_s(self, from_s: float, to_s: float, window_s: float = 0.25) -> float:
        """Their median."""
        found = self.round_trips_s(from_s, to_s, window_s)
        assert 2 * len(found) * window_s >= to_s - from_s, f"no echo from {from_s:.1f} s to {to_s:.1f} s"
        return float(np.median(found))

    def joined(self, arrivals: list[Arrival]) -> tuple[Signal, float]:
        """The packets by timestamp, and when their first sample arrived going by the median packet."""
        assert arrivals, "nothing came back"
        first = arrivals[0].timestamp
        offsets = [((a.timestamp - first + 2**31) % 2**32) - 2**31 for a in arrivals]
        start = min(offsets)
        heard = np.zeros(max(offsets) - start + PACKET)
        for offset, arrival in zip(offsets, arrivals, strict=True):
            samples = from_mulaw(arrival.payload)
            heard[offset - start : offset - start + len(samples)] = samples[: len(heard) - offset + start]
        began = np.median([a.at - (o - start) / RATE for o, a in zip(offsets, arrivals, strict=True)])
        return heard, float(began)


class RtpCaller:
    """One caller at a gateway's SIP port."""

    def __init__(self, port: int) -> None:
        self.gateway = (LOOPBACK, port)
        self.sip = self._socket()
        self.rtp = self._socket()
        self.call_id = secrets.token_hex(8)
        self.to_tag = ""
        self.contact = ""
        self.media: tuple[str, int] | None = None
        self._sequence = secrets.randbelow(60_000)
        self._timestamp = secrets.randbits(31)
        self._ssrc = secrets.randbits(32)
        self._cseq = 0

    @staticmethod
    def _socket() -> socket.socket:
        sock = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        sock.bind((LOOPBACK, 0))
        return sock

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.sip.close()
        self.rtp.close()

    # SIP

    def invite(self, payloads: str = "0", attributes: str = PCMU_OFFER, profile: str = "RTP/AVP") -> str:
        """Call; the final response as text. A 200 is acknowledged and its media remembered."""
        port = self.rtp.getsockname()[1]
        body = (
            f"v=0\r\no=- 1 1 IN IP4 {LOOPBACK}\r\ns=-\r\nc=IN IP4 {LOOPBACK}\r\nt=0 0\r\n"
            f"m=audio {port} {profile} {payloads}\r\n{attributes}"
        )
        branch = self._request("INVITE", f"sip:moshi@{LOOPBACK}:{self.gateway[1]}", body)
        while (response := self._receive(10.0)).startswith("SIP/2.0 1"):
            pass
        self.to_tag = _found(r"\nTo:[^\n]*;tag=([^;\s]+)", response)
        if response.startswith("SIP/2.0 200"):
            self.contact = _found(r"\nContact:[^\n]*<([^>]+)>", response)
            self.media = (_found(r"\nc=IN IP4 (\S+)", response), int(_found(r"\nm=audio (\d+)", response)))
            self._request("ACK", self.contact)
        else:
            self._request("ACK", f"sip:moshi@{LOOPBACK}:{self.gateway[1]}", branch=branch)
        return response

    def bye(self) -> str:
        """Hang up; the response as text."""
        self._request("BYE", self.contact)
        while (response := self._receive(5.0)).split()[0] != "SIP/2.0":
            pass
        return response

    def wait_for_bye(self, within_s: float) -> float:
        """Until the gateway hangs up, which is answered; the seconds it took."""
        began = time.monotonic()
        while (left := within_s - (time.monotonic() - began)) > 0:
            request = self._receive(left)
            if request.startswith("BYE "):
                kept = re.findall(r"^(?:Via|From|To|Call-ID|CSeq):[^\r\n]*", request, re.M)
                answer = "\r\n".join(["SIP/2.0 200 OK", *kept, "Content-Length: 0", "", ""])
                self.sip.sendto(answer.encode(), self.gateway)
                return time.monotonic() - began
        raise AssertionError(f"no BYE within {within_s} s")

    def _request(self, method: str, uri: str, body: str = "", branch: str = "") -> str:
        if method != "ACK":
            self._cseq += 1
        branch = branch or "z9hG4bK" + secrets.token_hex(8)
        host, port = self.sip.getsockname()
        to_tag = f";tag={self.to_tag}" if self.to_tag else ""
        lines = [
            f"{method} {uri} SIP/2.0",
            f"Via: SIP/2.0/UDP {host}:{port};branch={branch};rport",
            "Max-Forwards: 70",
            f"From: <sip:bare@{host}:{port}>;tag={self.call_id[:6]}",
            f"To: <sip:moshi@{host}:{self.gateway[1]}>{to_tag}",
            f"Call-ID: {self.call_id}",
            f"CSeq: {self._cseq} {method}",
            f"Contact: <sip:bare@{host}:{port}>",
            *(["Content-Type: application/sdp"] if body else []),
            f"Content-Length: {len(body)}",
        ]
        self.sip.sendto(("\r\n".join(lines) + "\r\n\r\n" + body).encode(), self.gateway)
        return branch

    def _receive(self, within_s: float) -> str:
        readable, _, _ = select.select([self.sip], [], [], within_s)
        assert readable, f"the gateway said nothing for {within_s:.1f} s"
        return self.sip.recv(65_535).decode()

    # RTP

    def stream(self, signal: Signal, lose: Collection[int] = ()) -> Exchange:
        """Send the signal in packets of 20 ms on time, but for those in `lose`, and take what comes."""
        assert self.media is not None, "call first"
        exchange = Exchange(signal, time.monotonic())
        payload = to_mulaw(signal)
        for number in range(len(payload) // PACKET):
            self._take_until(exchange.began + number * PACKET_S, exchange)
            if number not in lose:
                self.send(payload[number * PACKET : (number + 1) * PACKET])
            self._sequence = (self._sequence + 1) & 0xFFFF
            self._timestamp = (self._timestamp + PACKET) & 0xFFFFFFFF
        return exchange

    def send(self, payload: bytes, payload_type: int = 0) -> None:
        """One packet now, at the present sequence number and timestamp."""
        header = struct.pack("!BBHII", 0x80, payload_type, self._sequence, self._timestamp, self._ssrc)
        self.rtp.sendto(header + payload, self.media)

    def _take_until(self, deadline: float, exchange: Exchange) -> None:
        while (left := deadline - time.monotonic()) > 0:
            readable, _, _ = select.select([self.rtp], [], [], left)
            if readable:
                data, now = self.rtp.recv(2_048), time.monotonic()
                second, sequence, timestamp = struct.unpack_from("!xBHI", data)
                if not 64 <= second & 0x7F <= 95:  # not RTCP on the same port (RFC 5761 §4)
                    exchange.arrivals.append(Arrival(now, sequence, timestamp, data[12:]))


def _found(pattern: str, text: str) -> str:
    found = re.search(pattern, text)
    assert found, f"{pattern} is not in:\n{text}"
    return found[1].strip()
