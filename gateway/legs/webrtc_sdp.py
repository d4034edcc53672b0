"""The text of a WebRTC offer and its answer: what is taken, what is refused, what is asked of Opus.

One audio stream is taken; every other m-line is answered with port 0 (RFC 8829 §5.3.1, RFC 3264 §6).
Text in, text out: it knows no connection and no library.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import pairwise

MAX_OFFER = 65_536
"""Characters of the longest offer read."""
MAX_SECTIONS = 16
MAX_CANDIDATES = 32
"""Remote candidates kept: each costs connectivity checks."""

_OPUS = re.compile(r"a=rtpmap:(\d{1,3}) opus/48000(?:/2)?$", re.IGNORECASE)
_MEDIA = re.compile(r"m=([a-z]+) (\d{1,5}) ([A-Z/]+) (\S.*)$")
_HOST_CANDIDATE = re.compile(r"a=candidate:(\S+) 1 udp (\d+) (\S+) (\d+) typ host$")


class BadOffer(ValueError):
    """The offer is not one we can read or answer; the message says why, in words for its sender."""


class NoUsableCodec(BadOffer):
    """The offer has no audio line with Opus."""


@dataclass(frozen=True, slots=True)
class OfferedAudio:
    """What is left of an offer once all but its audio is put aside."""

    sdp: str
    """The offer with its one audio line: what the connection is given."""
    sections: tuple[tuple[str, ...], ...]
    """Lines of every m-section as offered."""
    index: int
    """Which of them is the audio."""
    payload_type: int
    """Opus's."""
    fec: bool
    """The peer decodes in-band FEC (RFC 7587 §6.1)."""
    bundled: bool


@dataclass(frozen=True, slots=True)
class OpusTerms:
    """What our answer asks the peer's encoder for (RFC 7587 §6.1)."""

    max_average_bitrate: int = 32_000
    max_playback_rate: int = 24_000
    """We decode to 24 kHz: anything above it would be thrown away."""

    def __str__(self) -> str:
        return (
            "minptime=10;useinbandfec=1;usedtx=0;stereo=0;sprop-stereo=0"
            f";maxaveragebitrate={self.max_average_bitrate};maxplaybackrate={self.max_playback_rate}"
        )


def read_offer(sdp: str) -> OfferedAudio:
    """Find the audio line with Opus and put everything else aside. Raises BadOffer, NoUsableCodec."""
    if len(sdp) > MAX_OFFER:
        raise BadOffer("the offer is too long")
    if not sdp.startswith("v=0"):
        raise BadOffer("the offer is not SDP")
    session, sections = _split([line.strip() for line in sdp.splitlines() if line.strip()])
    if not 0 < len(sections) <= MAX_SECTIONS:
        raise BadOffer("the offer has no media line, or too many")
    index, payload_type = _find_opus(sections)
    _check_secure(session, sections[index])
    mid = _value(sections[index], "a=mid:")
    bundled = any(line.startswith("a=group:BUNDLE") for line in session)
    kept = [line for line in session if not line.startswith(("a=group:", "a=end-of-candidates"))]
    if bundled and mid is not None:
        kept.append(f"a=group:BUNDLE {mid}")
    return OfferedAudio(
        sdp=_joined([*kept, *_without_extras(sections[index])]),
        sections=tuple(tuple(section) for section in sections),
        index=index,
        payload_type=payload_type,
        fec="useinbandfec=1" in (_value(sections[index], f"a=fmtp:{payload_type} ") or ""),
        bundled=bundled,
    )


def write_answer(sdp: str, offered: OfferedAudio, terms: OpusTerms, public_address: str | None) -> str:
    """Our answer's text out of the connection's own: Opus's terms, refused lines, the public address.

    `public_address` is announced beside every host candidate of its family, with the same port (1:1 NAT).
    """
    session, sections = _split(sdp.splitlines())
    if len(sections) != 1:
        raise ValueError("an answer to one audio line has one audio line")
    if not offered.bundled:
        session = [line for line in session if not line.startswith("a=group:")]
    audio = list(_with_terms(sections[0], offered.payload_type, terms))
    if public_address:
        audio = list(_with_public(audio, public_address))
    lines = list(session)
    for index, section in enumerate(offered.sections):
        lines += audio if index == offered.index else _refused(section)
    return _joined(lines)


def _split(lines: list[str]) -> tuple[list[str], list[list[str]]]:
    starts = [n for n, line in enumerate(lines) if line.startswith("m=")]
    borders = [*starts, len(lines)]
    return lines[: borders[0]], [lines[a:b] for a, b in pairwise(borders)]


def _find_opus(sections: list[list[str]]) -> tuple[int, int]:
    for index, section in enumerate(sections):
        media = _MEDIA.match(section[0])
        if media is None:
            raise BadOffer("the offer has a media line that cannot be read")
        if media[1] != "audio" or media[2] == "0" or "SAVPF" not in media[3]:
            continue
        formats = media[4].split()
        for line in section:
            opus = _OPUS.match(line)
            if opus and opus[1] in formats:
                return index, int(opus[1])
    raise NoUsableCodec("the offer has no audio line with Opus")


def _check_secure(session: list[str], audio: list[str]) -> None:
    lines = session + audio
    for prefix, name in (
        ("a=ice-ufrag:", "ICE user name"),
        ("a=ice-pwd:", "ICE password"),
        ("a=fingerprint:", "DTLS fingerprint"),
        ("a=setup:", "DTLS role"),
        ("a=mid:", "media id"),
    ):
        if _value(lines, prefix) is None:
            raise BadOffer(f"the offer lacks its {name}")
    if "a=rtcp-mux" not in audio:
        raise BadOffer("the offer does not multiplex RTCP")
    if _value(lines, "a=setup:") not in ("actpass", "active", "passive"):
        raise BadOffer("the offer's DTLS role is unknown")


def _without_extras(section: list[str]) -> Iterator[str]:
    """Without header extensions, which nobody here reads, and with the candidates worth a check.

    A name in .local is left out: to resolve it costs seconds, and its owner reaches us anyway. So is the end
    of the candidates: a connection that knows there are no more gives up where all were such names (Firefox).
    """
    candidates = 0
    for line in section:
        if line.startswith(("a=extmap", "a=end-of-candidates")):
            continue
        if line.startswith("a=candidate:"):
            candidates += 1
            fields = line.split()
            udp = len(fields) >= 8 and fields[2].lower() == "udp" and not fields[4].endswith(".local")
            if not udp or candidates > MAX_CANDIDATES:
                continue
        yield line


def _with_terms(section: list[str], payload_type: int, terms: OpusTerms) -> Iterator[str]:
    for line in section:
        if line.startswith(f"a=fmtp:{payload_type} "):
            continue
        yield line
        if line.startswith(f"a=rtpmap:{payload_type} "):
            yield f"a=fmtp:{payload_type} {terms}"
            yield "a=ptime:20"


def _with_public(section: list[str], address: str) -> Iterator[str]:
    for line in section:
        yield line
        host = _HOST_CANDIDATE.match(line)
        if host and host[3] != address and (":" in host[3]) == (":" in address):
            # Type preference 100, as for every server-reflexive candidate (RFC 8445 §5.1.2.1).
            priority = (100 << 24) | (int(host[2]) & 0xFFFFFF)
            yield (
                f"a=candidate:{host[1]}p 1 udp {priority} {address} {host[4]} typ srflx"
                f" raddr {host[3]} rport {host[4]}"
            )


def _refused(section: tuple[str, ...]) -> list[str]:
    media = _MEDIA.match(section[0])
    assert media is not None  # read_offer() has seen it
    lines = [f"m={media[1]} 0 {media[3]} {media[4]}", "c=IN IP4 0.0.0.0", "a=inactive"]
    mid = _value(section, "a=mid:")
    return lines if mid is None else [*lines, f"a=mid:{mid}"]


def _value(lines: list[str] | tuple[str, ...], prefix: str) -> str | None:
    return next((line[len(prefix) :] for line in lines if line.startswith(prefix)), None)


def _joined(lines: list[str]) -> str:
    return "\r\n".join(lines) + "\r\n"
