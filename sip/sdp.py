"""Offer and answer for one audio stream (RFC 3264, 8866, 3551, 4733, 4568, 5761).

Pure functions: bytes and what we want in, bytes and what was agreed out. Nothing here knows SIP.
"""

from __future__ import annotations

import random
from dataclasses import dataclass, field
from typing import Literal

Direction = Literal["sendrecv", "sendonly", "recvonly", "inactive"]
SrtpPolicy = Literal["off", "accept", "require"]
"""off: SAVP is refused. accept: keyed when offered, plain otherwise. require: nothing but SAVP."""


class SdpError(ValueError):
    """The peer's SDP cannot be used; `code` is the SIP answer it calls for."""

    code = 488


class MalformedSdp(SdpError):
    """Not SDP at all, or a line of it breaks RFC 8866's grammar."""

    code = 400


class NoCommonCodec(SdpError):
    """No audio m-line holds a codec, profile or key that both sides take: 488 Not Acceptable Here."""


@dataclass(frozen=True, slots=True)
class LocalMedia:
    """What our side of one call's audio can do and where it listens."""

    host: str
    """The address to put in c=: the public one where there is NAT. IPv4 or IPv6 literal."""
    port: int
    """RTP port; even by custom."""
    codecs: tuple[str, ...] = ("PCMU", "PCMA")
    """In order of our preference; of PCMU, PCMA, G722, opus. An answer keeps the offerer's order."""
    dtmf: bool = True
    """Take telephone-event."""
    ptime_ms: int = 20
    rtcp_port: int | None = None
    """None: port + 1, or the RTP port where rtcp-mux is agreed."""
    rtcp_mux: bool = True
    """Take rtcp-mux when offered (RFC 5761)."""
    srtp: SrtpPolicy = "off"
    direction: Direction = "sendrecv"
    """sendonly or inactive here means that we hold the peer."""


@dataclass(frozen=True, slots=True)
class SrtpKeys:
    """The two keys of one SDES exchange (RFC 4568): master key followed by master salt."""

    suite: str
    """Such as AES_CM_128_HMAC_SHA1_80."""
    send: bytes = field(repr=False)
    receive: bytes = field(repr=False)


@dataclass(frozen=True, slots=True)
class AgreedMedia:
    """What an offer and its answer came to, seen from our side."""

    codec: str
    """PCMU, PCMA, G722 or opus: what we send, and what to expect first."""
    payload_type: int
    """The payload type to send."""
    clock_rate: int
    """Hz of the RTP timestamp (8000 for G722 by RFC 3551 §4.5.2, 48000 for opus)."""
    ptime_ms: int
    """Milliseconds of audio in a packet we send."""
    dtmf_payload_type: int | None
    """telephone-event to send; None when the peer did not take it."""
    remote_host: str
    """Where to send RTP, until a latch says otherwise; `0.0.0.0` on an old-style hold."""
    remote_port: int
    remote_rtcp: tuple[str, int]
    """Where to send RTCP; equals the RTP address under rtcp_mux."""
    rtcp_mux: bool
    direction: Direction
    """Ours: recvonly means that the peer sends and hears nothing from us."""
    srtp: SrtpKeys | None
    receive_types: tuple[tuple[int, str], ...] = ()
    """(payload type, codec) that may arrive, telephone-event included."""

    @property
    def held(self) -> bool:
        """True while the peer wants no audio of ours."""
        return self.direction in ("recvonly", "inactive")


@dataclass(frozen=True, slots=True)
class Negotiated:
    """An answer to send and what it agreed on."""

    answer: bytes
    media: AgreedMedia


@dataclass(frozen=True, slots=True)
class Origin:
    """The o= line of one call: the version grows with every changed description (RFC 3264 §8)."""

    id: int = 1
    version: int = 1


_SYSTEM = random.SystemRandom()


def answer(
    offer: bytes, local: LocalMedia, origin: Origin = Origin(), rng: random.Random = _SYSTEM
) -> Negotiated:
    """Answer an offer: the first audio line we can take is taken, every other line gets port 0.

    Raises MalformedSdp, NoCommonCodec. `rng` makes SRTP keys; let it be a SystemRandom.
    """
    raise NotImplementedError


def offer(local: LocalMedia, origin: Origin = Origin(), rng: random.Random = _SYSTEM) -> bytes:
    """An offer of one audio line with everything `local` can do."""
    raise NotImplementedError


def accept_answer(offered: bytes, answered: bytes, local: LocalMedia) -> AgreedMedia:
    """What the peer's answer to our offer agreed on. Raises MalformedSdp, NoCommonCodec."""
    raise NotImplementedError
