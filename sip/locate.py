"""Where a SIP URI leads, by RFC 3263: NAPTR chooses the transport, SRV the servers, A and AAAA their
addresses. The look-ups themselves are somebody else's (sip.dns, or a test's)."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

from sip.dialog import destination_of, is_ip
from sip.events import Transport
from sip.settings import Destination
from sip.uri import Uri

MAX_DESTINATIONS = 16
_SERVICES: dict[str, Transport] = {"sips+d2t": "tls", "sip+d2t": "tcp", "sip+d2u": "udp"}
_USUAL: tuple[Transport, ...] = ("udp", "tcp")
_PREFIX: dict[Transport, str] = {"udp": "_sip._udp", "tcp": "_sip._tcp", "tls": "_sips._tcp"}


@dataclass(frozen=True, slots=True)
class NaptrRecord:
    order: int
    preference: int
    flags: str
    service: str
    replacement: str


@dataclass(frozen=True, slots=True)
class SrvRecord:
    priority: int
    weight: int
    port: int
    target: str


class Lookup(Protocol):
    """DNS. A name that is not there gives an empty list; nothing is raised."""

    async def naptr(self, name: str) -> list[NaptrRecord]: ...

    async def srv(self, name: str) -> list[SrvRecord]: ...

    async def addresses(self, name: str) -> list[str]: ...


def in_turn(records: Sequence[SrvRecord], rng: random.Random) -> list[SrvRecord]:
    """Records in the order to try them: by priority, and among equals by lot after weight (RFC 2782)."""
    ordered: list[SrvRecord] = []
    left = sorted(records, key=lambda record: (record.priority, record.weight))
    while left:
        equals = [record for record in left if record.priority == left[0].priority]
        drawn = rng.uniform(0, sum(record.weight for record in equals))
        for record in equals:
            drawn -= record.weight
            if drawn <= 0:
                break
        ordered.append(record)
        left.remove(record)
    return ordered


async def locate(
    uri: Uri, lookup: Lookup, rng: random.Random, able: Sequence[Transport] = ("udp", "tcp", "tls")
) -> list[Destination]:
    """Destinations to try in turn; empty for a name that leads nowhere. `able`: transports we have."""
    if is_ip(uri.host):
        return [destination_of(uri)]
    if uri.port is not None:
        fixed = destination_of(uri)
        fixed = fixed._replace(domain=_certified(uri, fixed.transport))
        return [fixed._replace(host=address) for address in await lookup.addresses(uri.host)]
    wanted = [
        (transport, record)
        for transport, records in await _services(uri, lookup, able)
        for record in in_turn(records, rng)
        if record.target not in ("", ".")  # the service is decidedly not there (RFC 2782)
    ][:MAX_DESTINATIONS]
    there = await asyncio.gather(*(lookup.addresses(record.target) for _, record in wanted))
    found = [
        Destination(address, record.port, transport, domain=_certified(uri, transport))
        for (transport, record), addresses in zip(wanted, there, strict=True)
        for address in addresses
    ]
    if not found:
        plain = destination_of(uri)
        plain = plain._replace(domain=_certified(uri, plain.transport))
        found = [plain._replace(host=address) for address in await lookup.addresses(uri.host)]
    return found[:MAX_DESTINATIONS]


def _certified(uri: Uri, transport: Transport) -> str | None:
    """A server proves by its certificate that it speaks for the domain, whatever its own name is."""
    return uri.host if transport == "tls" else None


async def _services(
    uri: Uri, lookup: Lookup, able: Sequence[Transport]
) -> list[tuple[Transport, list[SrvRecord]]]:
    """(transport, its servers) in order of preference (§4.1)."""
    if uri.param("transport") is not None or uri.scheme == "sips":
        only = destination_of(uri).transport
        return [(only, await lookup.srv(f"{_PREFIX[only]}.{uri.host}"))]
    usual: list[Transport] = [transport for transport in _USUAL if transport in able]
    # Few domains have NAPTR records: what is asked without them is asked at once, a caller waits for it.
    asked = asyncio.gather(*(lookup.srv(f"{_PREFIX[transport]}.{uri.host}") for transport in usual))
    try:
        named = await _named(uri, lookup, able)
        if not named:
            return list(zip(usual, await asked, strict=True))
    finally:
        asked.cancel()
    servers = await asyncio.gather(*(lookup.srv(name) for _, name in named))
    return [(transport, found) for (transport, _), found in zip(named, servers, strict=True)]


async def _named(uri: Uri, lookup: Lookup, able: Sequence[Transport]) -> list[tuple[Transport, str]]:
    """(transport, SRV name) of the domain's NAPTR records, in order of preference."""
    records = [
        record
        for record in await lookup.naptr(uri.host)
        if record.flags.lower() == "s" and _SERVICES.get(record.service.lower()) in able
    ]
    records.sort(key=lambda record: (record.order, record.preference))
    return [(_SERVICES[record.service.lower()], record.replacement) for record in records]
