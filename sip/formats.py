"""RTP payload formats by name: what a number in an m= line stands for (RFC 3551, 4733, 7587)."""

from __future__ import annotations

import re
from dataclasses import dataclass

from sip.description import MediaLine

DTMF = "telephone-event"
MIN_PTIME = 10


@dataclass(frozen=True, slots=True)
class Payload:
    """A format we know."""

    rate: int
    number: int
    """Static, or the dynamic one we offer."""
    channels: str = ""
    fmtp: str = ""

    def encoding(self, rate: int) -> str:
        name = next(key for key, value in PAYLOADS.items() if value is self)
        return f"{name}/{rate}{self.channels}"


PAYLOADS = {
    "PCMU": Payload(8_000, 0),
    "PCMA": Payload(8_000, 8),
    "G722": Payload(8_000, 9),
    "opus": Payload(48_000, 111, "/2", "minptime=10;useinbandfec=1"),
    DTMF: Payload(8_000, 101, "", "0-15"),
}
_BY_LOWER = {name.lower(): name for name in PAYLOADS}
_STATIC = {payload.number: name for name, payload in PAYLOADS.items() if payload.number < 96}
_RTPMAP = re.compile(r"(\d{1,3})\s+([A-Za-z0-9\-]+)/(\d{1,6})(?:/\d+)?\s*\Z")


@dataclass(frozen=True, slots=True)
class Format:
    payload_type: int
    name: str
    """As in PAYLOADS."""
    rate: int


def read_formats(line: MediaLine) -> list[Format]:
    """The formats of an m= line that we know, in its order."""
    maps: dict[int, tuple[str, int]] = {}
    for value in line.attribute_values("rtpmap"):
        match = _RTPMAP.match(value)
        if match is not None:
            maps[int(match[1])] = (match[2].lower(), int(match[3]))
    formats: list[Format] = []
    for text in line.formats:
        if not text.isdigit() or int(text[:4]) > 127:
            continue
        number = int(text)
        name, rate = maps.get(number, (_STATIC.get(number, "").lower(), 8_000))
        known = _BY_LOWER.get(name)
        if known is not None and (known == DTMF or rate == PAYLOADS[known].rate):
            formats.append(Format(number, known, rate))
    return formats


def offered_formats(codecs: tuple[str, ...], dtmf: bool, known: list[Format]) -> list[Format]:
    """What an offer of ours lists; a number once given to a format stays its own (RFC 3264 §8.3.2).

    Raises KeyError for a codec that is none of ours.
    """
    wanted = [(name, PAYLOADS[name].rate, PAYLOADS[name].number) for name in codecs]
    if dtmf:
        wanted += [(DTMF, 8_000, PAYLOADS[DTMF].number)]
        wanted += [(DTMF, 48_000, 110)] if "opus" in codecs else []
    numbers = {(item.name, item.rate): item.payload_type for item in reversed(known)}
    taken = set(numbers.values())
    formats: list[Format] = []
    for name, rate, usual in wanted:
        number = numbers.get((name, rate))
        if number is None:
            number = usual if usual not in taken else next(n for n in range(96, 128) if n not in taken)
            taken.add(number)
        formats.append(Format(number, name, rate))
    return formats
