"""Offer and answer for one audio stream (RFC 3264, 3551, 4733, 4568, 5761, 7587).

Pure functions: bytes and what we want in, bytes and what was agreed out. Nothing here knows SIP.
"""

from __future__ import annotations

import os
from dataclasses import dataclass, replace
from typing import Literal

from sip import sdes
from sip.description import (
    Description,
    MalformedSdp,
    MediaLine,
    SdpError,
    address_line,
    parse_description,
)
from sip.formats import DTMF, MIN_PTIME, PAYLOADS, Format, offered_formats, read_formats
from sip.sdes import SrtpKeys

__all__ = [
    "AgreedMedia", "Direction", "LocalMedia", "MalformedSdp", "Negotiated", "NoCommonCodec", "Origin",
    "SdpError", "SrtpKeys", "SrtpPolicy", "accept_answer", "answer", "offer",
]  # fmt: skip

Direction = Literal["sendrecv", "sendonly", "recvonly", "inactive"]
SrtpPolicy = Literal["off", "accept", "require"]
"""off: SAVP is refused. accept: keyed when offered, plain otherwise. require: nothing but SAVP."""
_PLAIN = ("RTP/AVP", "RTP/AVPF")
_SECURE = ("RTP/SAVP", "RTP/SAVPF")
_SENDS = ("sendrecv", "sendonly")
_HEARS = ("sendrecv", "recvonly")
G711 = ("PCMU", "PCMA")


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
    """In order of our preference; of PCMU, PCMA, G722, opus. An answer takes the first that was offered; of
    the two G.711 laws, which are one to us, the offerer's first."""
    dtmf: bool = True
    """Take telephone-event."""
    ptime_ms: int = 20
    rtcp_port: int | None = None
    """None: port + 1, or the RTP port where rtcp-mux is agreed."""
    rtcp_mux: bool = True
    """Take rtcp-mux when offered, and offer it (RFC 5761)."""
    srtp: SrtpPolicy = "off"
    """What we take; offers of ours are SAVP with `require` only."""
    direction: Direction = "sendrecv"
    """sendonly or inactive here means that we hold the peer."""


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
    dtmf_rate: int
    """Hz in which telephone-events tell durations: the codec's clock, or 8000 where the peer has no other."""
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


def answer(offer: bytes, local: LocalMedia, origin: Origin = Origin(), seed: bytes = b"") -> Negotiated:
    """Answer an offer: the first audio line we can take is taken, every other line gets port 0.

    `seed`: 32 random bytes that our SRTP keys are drawn from; empty takes them from the system.
    Raises MalformedSdp, NoCommonCodec.
    """
    description = parse_description(offer)
    at, codec = _choose_line(description, local)
    line = description.media[at]
    crypto = _crypto_for(line)
    direction = _narrow(_mirror(_remote_direction(line)), local.direction)
    events = _dtmf_format(read_formats(line), codec) if local.dtmf else None
    mux = local.rtcp_mux and line.attribute("rtcp-mux") is not None
    keys = None
    body: list[str] = []
    for index, other in enumerate(description.media):
        if index != at:
            body.append(f"m={other.kind} 0 {other.protocol} {other.formats[0]}")
            continue
        chosen = [codec] if events is None else [codec, events]
        body += _media_text(local, line.protocol, chosen, direction)
        if mux:
            body.append("a=rtcp-mux")
        if crypto is not None:
            ours = sdes.own_key(seed or os.urandom(32), crypto.suite)
            keys = SrtpKeys(crypto.suite, ours, crypto.key)
            body.append(f"a=crypto:{sdes.CryptoLine(crypto.tag, crypto.suite, ours)}")
    text = _session_text(local, origin, description.times) + body
    media = _agreed(line, codec, events, direction, mux, keys)
    return Negotiated(_joined(text), media)


def offer(
    local: LocalMedia, origin: Origin = Origin(), seed: bytes = b"", previous: bytes | None = None
) -> bytes:
    """An offer of one audio line with everything `local` can do; SAVP where srtp is required.

    `previous` is our description in force, for an offer in mid-call: its lines keep their places, its
    payload types their numbers, its profile its keys (RFC 3264 §8).
    """
    lines = list(parse_description(previous).media) if previous is not None else []
    at = _active_line(lines)
    active = lines[at] if lines else None
    secure = local.srtp == "require" or (active is not None and _is_secure(active))
    formats = offered_formats(local.codecs, local.dtmf, read_formats(active) if active else [])
    text = _session_text(local, origin, "0 0")
    for index, line in enumerate(lines or [None]):
        if index != at and line is not None:
            text.append(f"m={line.kind} 0 {line.protocol} {line.formats[0]}")
            continue
        text += _media_text(local, "RTP/SAVP" if secure else "RTP/AVP", formats, local.direction)
        if local.rtcp_mux:
            text.append("a=rtcp-mux")
        if secure:
            text += [f"a=crypto:{item}" for item in sdes.offer_lines(seed or os.urandom(32))]
    return _joined(text)


def _active_line(lines: list[MediaLine]) -> int:
    """Which line of our own description is the one in use."""
    return next((at for at, line in enumerate(lines) if line.port), 0)


def accept_answer(offered: bytes, answered: bytes, local: LocalMedia) -> AgreedMedia:
    """What the peer's answer to our offer agreed on. Raises MalformedSdp, NoCommonCodec."""
    offered_lines = list(parse_description(offered).media)
    at = _active_line(offered_lines)
    ours, media = offered_lines[at], parse_description(answered).media
    if len(media) <= at or media[at].port == 0 or media[at].kind != ours.kind:
        raise NoCommonCodec("the answer refuses our audio line")
    line = media[at]
    if _is_secure(line) != _is_secure(ours):
        raise NoCommonCodec("the answer changes the profile")
    known = {(item.name, item.rate): item.payload_type for item in read_formats(ours)}
    usable = [item for item in read_formats(line) if (item.name, item.rate) in known]
    codec = next((item for item in usable if item.name != DTMF), None)
    if codec is None:
        raise NoCommonCodec("the answer holds no codec of our offer")
    keys = _answered_keys(ours, line) if _is_secure(line) else None
    direction = _narrow(_mirror(_remote_direction(line)), local.direction)
    mux = ours.attribute("rtcp-mux") is not None and line.attribute("rtcp-mux") is not None
    events = _dtmf_format(usable, codec) if local.dtmf else None
    agreed = _agreed(line, codec, events, direction, mux, keys)
    # What arrives bears the numbers of our offer, which the peer's own may differ from (§5.1).
    return replace(agreed, receive_types=tuple((known[item.name, item.rate], item.name) for item in usable))


def _choose_line(description: Description, local: LocalMedia) -> tuple[int, Format]:
    found: list[tuple[bool, int, Format]] = []
    for at, line in enumerate(description.media):
        if line.kind != "audio" or line.port == 0 or not _profile_fits(line, local):
            continue
        taken = [item for item in read_formats(line) if item.name in local.codecs]
        if taken:
            codec = min(taken, key=lambda item: _preference(item.name, local.codecs))
            found.append((not _is_secure(line), at, codec))
    if not found:
        raise NoCommonCodec("no audio line fits")
    _, at, codec = min(found, key=lambda item: item[:2])  # a keyed line before a plain one
    return at, codec


def _preference(name: str, codecs: tuple[str, ...]) -> int:
    alike = G711 if name in G711 else (name,)
    return min(codecs.index(other) for other in alike if other in codecs)


def _profile_fits(line: MediaLine, local: LocalMedia) -> bool:
    if _is_secure(line):
        return local.srtp != "off" and _crypto_for(line) is not None
    return line.protocol.upper() in _PLAIN and local.srtp != "require"


def _is_secure(line: MediaLine) -> bool:
    return line.protocol.upper() in _SECURE


def _crypto_for(line: MediaLine) -> sdes.CryptoLine | None:
    return sdes.choose(line.attribute_values("crypto")) if _is_secure(line) else None


def _answered_keys(ours: MediaLine, theirs: MediaLine) -> SrtpKeys:
    chosen = sdes.choose(theirs.attribute_values("crypto"))
    for line in map(sdes.parse_crypto, ours.attribute_values("crypto")):
        if chosen is not None and line is not None and (line.tag, line.suite) == (chosen.tag, chosen.suite):
            return SrtpKeys(line.suite, line.key, chosen.key)
    raise NoCommonCodec("the answer is SAVP without a key that fits")


def _remote_direction(line: MediaLine) -> Direction:
    """The peer's direction; a null address is the hold of RFC 2543: it hears nothing (RFC 3264 §8.4)."""
    direction: Direction = "sendrecv"
    for name, _ in line.attributes:
        if name in ("sendrecv", "sendonly", "recvonly", "inactive"):
            direction = name  # type: ignore[assignment]
            break
    if line.host in ("0.0.0.0", "::"):
        direction = "sendonly" if direction in _SENDS else "inactive"
    return direction


def _mirror(direction: Direction) -> Direction:
    swapped: dict[Direction, Direction] = {"sendonly": "recvonly", "recvonly": "sendonly"}
    return swapped.get(direction, direction)


def _narrow(a: Direction, b: Direction) -> Direction:
    sends, hears = a in _SENDS and b in _SENDS, a in _HEARS and b in _HEARS
    return "sendrecv" if sends and hears else "sendonly" if sends else "recvonly" if hears else "inactive"


def _dtmf_format(formats: list[Format], codec: Format) -> Format | None:
    """telephone-event at the codec's clock, else at 8000 (RFC 4733 §2.1 asks for the same clock)."""
    events = [item for item in formats if item.name == DTMF and item.rate in (codec.rate, 8_000)]
    return min(events, key=lambda item: item.rate != codec.rate, default=None)


def _agreed(
    line: MediaLine,
    codec: Format,
    events: Format | None,
    direction: Direction,
    mux: bool,
    keys: SrtpKeys | None,
) -> AgreedMedia:
    arriving = [(codec.payload_type, codec.name)]
    if events is not None:
        arriving.append((events.payload_type, DTMF))
    return AgreedMedia(
        codec=codec.name,
        payload_type=codec.payload_type,
        clock_rate=codec.rate,
        ptime_ms=_ptime(line),
        dtmf_payload_type=events.payload_type if events else None,
        dtmf_rate=events.rate if events else codec.rate,
        remote_host=line.host,
        remote_port=line.port,
        remote_rtcp=(line.host, line.port) if mux else _rtcp_address(line),
        rtcp_mux=mux,
        direction=direction,
        srtp=keys,
        receive_types=tuple(arriving),
    )


def _ptime(line: MediaLine) -> int:
    """What the peer asks us to send, in whole 10 ms up to 60 and within its maxptime; 20 by default."""
    asked, longest = (line.attribute(name) or "" for name in ("ptime", "maxptime"))
    ptime = int(asked) if asked.isdigit() and len(asked) < 5 else 20
    if longest.isdigit() and len(longest) < 5:
        ptime = min(ptime, int(longest))
    return min(60, max(MIN_PTIME, ptime // 10 * 10))


def _rtcp_address(line: MediaLine) -> tuple[str, int]:
    """a=rtcp (RFC 3605), else the port above."""
    words = (line.attribute("rtcp") or "").split()
    if not words or not words[0].isdigit() or not 0 < int(words[0][:6]) <= 65_535:
        return line.host, min(line.port + 1, 65_535)
    return (words[3] if len(words) == 4 else line.host), int(words[0])


def _session_text(local: LocalMedia, origin: Origin, times: str) -> list[str]:
    address = address_line(local.host)
    return ["v=0", f"o=- {origin.id} {origin.version} {address}", "s=-", f"c={address}", f"t={times}"]


def _media_text(local: LocalMedia, protocol: str, formats: list[Format], direction: Direction) -> list[str]:
    numbers = " ".join(str(item.payload_type) for item in formats)
    lines = [f"m=audio {local.port} {protocol} {numbers}"]
    for item in formats:
        lines.append(f"a=rtpmap:{item.payload_type} {PAYLOADS[item.name].encoding(item.rate)}")
        parameters = PAYLOADS[item.name].fmtp
        if parameters:
            lines.append(f"a=fmtp:{item.payload_type} {parameters}")
    if local.rtcp_port is not None and local.rtcp_port != local.port + 1:
        lines.append(f"a=rtcp:{local.rtcp_port}")
    return [*lines, f"a=ptime:{local.ptime_ms}", f"a={direction}"]


def _joined(lines: list[str]) -> bytes:
    return ("\r\n".join(lines) + "\r\n").encode()
