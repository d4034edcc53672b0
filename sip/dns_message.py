"""DNS messages, as far as a phone needs them: questions after NAPTR and SRV, and what comes back (RFC 1035,
2782, 3403)."""

from __future__ import annotations

import struct
from dataclasses import dataclass

from sip.errors import PeerError
from sip.locate import NaptrRecord, SrvRecord

SRV, NAPTR = 33, 35
MAX_RECORDS = 64
_HEADER = struct.Struct("!HHHHHH")
_RECORD = struct.Struct("!HHIH")
_SOA = 6
_GOOD = (0, 3)
"""NOERROR and NXDOMAIN; with any other code the server says that it cannot tell."""
Record = SrvRecord | NaptrRecord


class MalformedDns(PeerError):
    """Not an answer to our question."""


def build_query(number: int, name: str, kind: int) -> bytes:
    """Raises UnicodeError or ValueError for a name that DNS cannot hold."""
    labels = [label.encode("idna") for label in name.rstrip(".").split(".")]
    if any(not 0 < len(label) < 64 for label in labels):
        raise ValueError("not a domain name")
    encoded = b"".join(bytes([len(label)]) + label for label in labels) + b"\0"
    return _HEADER.pack(number, 0x0100, 1, 0, 0, 0) + encoded + struct.pack("!HH", kind, 1)


@dataclass(frozen=True, slots=True)
class Answer:
    """What a name server said."""

    records: tuple[Record, ...]
    """Empty: there are none, or `refused`."""
    keep_s: float
    """How long it holds: the least TTL of its records; if empty, what the zone says (RFC 2308 §5), or 0."""
    refused: bool = False
    """The server could not tell; another may."""


def parse_answer(data: bytes, number: int, kind: int) -> Answer:
    """Raises MalformedDns and nothing else."""
    try:
        got, flags, questions, answers, authorities, _ = _HEADER.unpack_from(data)
        if got != number or not flags & 0x8000 or questions > 1:
            raise MalformedDns("an answer to another question")
        if flags & 0x0F not in _GOOD:
            return Answer((), 0.0, refused=True)
        at = _HEADER.size
        for _ in range(questions):
            at = _name(data, at)[1] + 4
        found, keep_s, at = _answers(data, at, min(answers, MAX_RECORDS), kind)
        if not found:
            keep_s = _emptiness(data, at, min(authorities, MAX_RECORDS)) if answers <= MAX_RECORDS else 0
        return Answer(tuple(found), float(keep_s))
    except (struct.error, IndexError):
        raise MalformedDns("the answer is cut") from None


def _answers(data: bytes, at: int, count: int, kind: int) -> tuple[list[Record], int, int]:
    """(records of one kind, the least TTL of all, where they end)."""
    records: list[Record] = []
    ttls: list[int] = []
    for _ in range(count):
        at = _name(data, at)[1]
        found, _, ttl, length = _RECORD.unpack_from(data, at)
        at += _RECORD.size
        if found == kind:
            records.append(_srv(data, at) if kind == SRV else _naptr(data, at))
        ttls.append(ttl if ttl < 1 << 31 else 0)  # RFC 2181 §8
        at += length
    return records, min(ttls, default=0), at


def _emptiness(data: bytes, at: int, count: int) -> int:
    """How long it holds that there is nothing: the zone's SOA says (RFC 2308 §5); without one, not at all."""
    for _ in range(count):
        at = _name(data, at)[1]
        found, _, ttl, length = _RECORD.unpack_from(data, at)
        at += _RECORD.size
        if found == _SOA:
            numbers = _name(data, _name(data, at)[1])[1]
            (minimum,) = struct.unpack_from("!I", data, numbers + 16)
            return min(ttl, minimum) if max(ttl, minimum) < 1 << 31 else 0
        at += length
    return 0


def _name(data: bytes, at: int) -> tuple[str, int]:
    """(name, where it ends); compression is followed, but not in circles."""
    labels: list[str] = []
    end: int | None = None
    for _ in range(128):
        length = data[at]
        if length == 0:
            return ".".join(labels), at + 1 if end is None else end
        if length & 0xC0 == 0xC0:
            end = at + 2 if end is None else end
            at = (length & 0x3F) << 8 | data[at + 1]
            continue
        labels.append(data[at + 1 : at + 1 + length].decode("ascii", "replace"))
        at += 1 + length
    raise MalformedDns("a name without end")


def _srv(data: bytes, at: int) -> SrvRecord:
    priority, weight, port = struct.unpack_from("!HHH", data, at)
    return SrvRecord(priority, weight, port, _name(data, at + 6)[0])


def _naptr(data: bytes, at: int) -> NaptrRecord:
    order, preference = struct.unpack_from("!HH", data, at)
    texts: list[str] = []
    at += 4
    for _ in range(3):
        texts.append(data[at + 1 : at + 1 + data[at]].decode("ascii", "replace"))
        at += 1 + data[at]
    return NaptrRecord(order, preference, texts[0], texts[1], _name(data, at)[0])


def is_cut(data: bytes, number: int) -> bool:
    """There was more than a datagram holds: it must be asked for over TCP (RFC 1035 §4.2.1)."""
    return len(data) > 2 and data[:2] == number.to_bytes(2) and data[2] & 0x82 == 0x82
