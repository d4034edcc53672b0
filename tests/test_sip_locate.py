"""Where a URI leads: NAPTR, SRV, fail-over, and a DNS client that believes nobody else."""

import asyncio
import random
import struct
from collections import Counter
from pathlib import Path
from typing import cast

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sip.dns import NAPTR, SRV, Dns, MalformedDns, build_query, nameservers, parse_answer
from sip.events import CallAnswered, CallEnded
from sip.locate import NaptrRecord, SrvRecord, in_turn, locate
from sip.message import Request
from sip.settings import Destination
from sip.uri import parse_uri
from tests.sip_wire import OFFER, OURS, Agent, Script, respond
from tests.zone import Zone

ZONE = Zone(
    {"a.x": ["192.0.2.1", "2001:db8::1"], "b.x": ["192.0.2.2"], "x": ["192.0.2.9"], "plain.y": ["192.0.2.5"]},
    {
        "_sip._udp.x": [SrvRecord(20, 0, 5080, "b.x"), SrvRecord(10, 0, 5070, "a.x")],
        "_sips._tcp.x": [SrvRecord(0, 0, 5061, "b.x")],
        "_sip._tcp.gone": [SrvRecord(0, 0, 0, ".")],
    },
    {
        "n": [
            NaptrRecord(90, 50, "s", "SIP+D2U", "_sip._udp.x"),
            NaptrRecord(50, 50, "S", "SIPS+D2T", "_sips._tcp.x"),
            NaptrRecord(10, 1, "u", "E2U+sip", "z"),
        ]
    },
)
U1, U1_6 = Destination("192.0.2.1", 5070, "udp"), Destination("2001:db8::1", 5070, "udp")
U2, T2 = Destination("192.0.2.2", 5080, "udp"), Destination("192.0.2.2", 5061, "tls")


@pytest.mark.parametrize(
    ("uri", "expected"),
    [
        ("sip:192.0.2.7", [Destination("192.0.2.7", 5060, "udp")]),
        ("sip:[2001:db8::7]:5070;transport=tcp", [Destination("2001:db8::7", 5070, "tcp")]),
        ("sip:plain.y", [Destination("192.0.2.5", 5060, "udp")]),
        ("sip:x:5099", [Destination("192.0.2.9", 5099, "udp")]),
        ("sip:x", [U1, U1_6, U2]),
        ("sips:x", [T2._replace(domain="x")]),
        ("sip:x;transport=tls", [T2._replace(domain="x")]),
        ("sip:n", [T2._replace(domain="n"), U1, U1_6, U2]),
        ("sip:gone", []),
        ("sip:nowhere.at.all", []),
    ],
)
async def test_a_uri_leads_where_rfc_3263_says(uri: str, expected: list[Destination]) -> None:
    assert await locate(parse_uri(uri), ZONE, random.Random(1)) == expected


async def test_a_transport_we_lack_is_not_chosen() -> None:
    assert await locate(parse_uri("sip:n"), ZONE, random.Random(1), ("udp", "tcp")) == [U1, U1_6, U2]


def test_equal_priorities_share_by_weight() -> None:
    rng = random.Random(4)
    records = [SrvRecord(1, 10, 1, "light"), SrvRecord(1, 90, 2, "heavy"), SrvRecord(0, 0, 3, "first")]
    turns = [in_turn(records, rng) for _ in range(2_000)]
    assert all(turn[0].target == "first" and len(turn) == 3 for turn in turns)
    second = Counter(turn[1].target for turn in turns)
    assert 0.86 < second["heavy"] / 2_000 < 0.94


def placed() -> tuple[Script, Request]:
    peer = Script(Agent())
    peer.agent.ua.invite(
        "sip:bob@x", OURS, 0.0, destination=Destination("198.51.100.1", 5060), alternatives=(U1, U2)
    )
    return peer, peer.request("INVITE")


def invites(peer: Script) -> list[Request]:
    return [m for m in peer.take() if isinstance(m, Request) and m.method == "INVITE"]


def test_a_dead_and_an_overloaded_server_make_way_for_the_next() -> None:
    peer, first = placed()
    peer.deliver(respond(first, 503))
    second = invites(peer)[0]
    assert second.via.branch != first.via.branch and second.call_id == first.call_id
    assert peer.raw[-1][2] == U1
    peer.wait(33)  # the second says nothing
    assert peer.raw[-1][2] == U2
    third = [m for m in peer.take() if isinstance(m, Request)][-1]
    peer.deliver(respond(third, 200, body=OFFER))
    assert peer.agent.one(CallAnswered) and not peer.agent.of(CallEnded)


@pytest.mark.parametrize("code", [480, 486, 500, 603])
def test_an_answer_of_the_called_is_final(code: int) -> None:
    peer, first = placed()
    peer.deliver(respond(first, code))
    assert invites(peer) == [] and peer.agent.one(CallEnded).code == code


def test_a_server_that_rang_is_not_left_and_the_last_failure_is_told() -> None:
    peer, first = placed()
    peer.deliver(respond(first, 180))
    peer.deliver(respond(first, 503))
    assert invites(peer) == [] and peer.agent.one(CallEnded).code == 503
    peer, first = placed()
    for _ in range(3):
        peer.agent.ua.send_failed(peer.raw[-1][2], peer.now)
        peer.collect()
    assert (peer.agent.one(CallEnded).by, peer.agent.one(CallEnded).code) == ("error", 503)


def answer_to(query: bytes, records: list[tuple[int, bytes]]) -> bytes:
    """A DNS answer whose names point back at the question."""
    head = struct.pack("!HHHHHH", struct.unpack("!H", query[:2])[0], 0x8180, 1, len(records), 0, 0)
    body = b"".join(
        b"\xc0\x0c" + struct.pack("!HHIH", kind, 1, 60, len(data)) + data for kind, data in records
    )
    return head + query[12:] + body


SRV_DATA = struct.pack("!HHH", 10, 20, 5070) + b"\x03sip\xc0\x0c"
NAPTR_DATA = struct.pack("!HH", 50, 60) + b"\x01s\x07SIP+D2U\x00" + b"\x04_sip\xc0\x0c"


def test_records_are_read_through_compression() -> None:
    query = build_query(7, "example.com", SRV)
    data = answer_to(query, [(SRV, SRV_DATA), (5, b"\xc0\x0c")])
    assert parse_answer(data, 7, SRV) == [SrvRecord(10, 20, 5070, "sip.example.com")]
    data = answer_to(build_query(7, "example.com", NAPTR), [(NAPTR, NAPTR_DATA)])
    assert parse_answer(data, 7, NAPTR) == [NaptrRecord(50, 60, "s", "SIP+D2U", "_sip.example.com")]


def test_cut_circular_and_foreign_answers_are_refused() -> None:
    query = build_query(7, "example.com", SRV)
    data = answer_to(query, [(SRV, SRV_DATA)])
    for end in range(len(data)):
        with pytest.raises(MalformedDns):
            parse_answer(data[:end], 7, SRV)
    with pytest.raises(MalformedDns):
        parse_answer(data, 8, SRV)
    with pytest.raises(MalformedDns):
        parse_answer(data[:12] + b"\xc0\x0c" + data[14:], 7, SRV)


@given(st.binary(max_size=200))
def test_garbage_is_no_answer(data: bytes) -> None:
    for candidate in (data, b"\0\7\x81\x80\0\1\0\3\0\0\0\0" + data):
        try:
            parse_answer(candidate, 7, SRV)
        except MalformedDns:
            continue


class Server(asyncio.DatagramProtocol):
    """A name server that knows one SRV record."""

    transport: asyncio.DatagramTransport

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = cast(asyncio.DatagramTransport, transport)

    def datagram_received(self, data: bytes, addr: tuple[str, int]) -> None:
        self.transport.sendto(answer_to(data, [(SRV, SRV_DATA)]), addr)


async def test_the_client_asks_the_next_server_when_one_is_dead() -> None:
    transport, _ = await asyncio.get_running_loop().create_datagram_endpoint(
        Server, local_addr=("127.0.0.1", 0)
    )
    dead, _ = await asyncio.get_running_loop().create_datagram_endpoint(
        asyncio.DatagramProtocol, local_addr=("127.0.0.1", 0)
    )
    servers = [link.get_extra_info("sockname") for link in (dead, transport)]
    dns = Dns(servers, timeout_s=0.1)
    assert await dns.srv("example.com") == [SrvRecord(10, 20, 5070, "sip.example.com")]
    assert await dns.srv("bad..name") == [] and await Dns([]).naptr("example.com") == []
    assert await dns.addresses("192.0.2.1") == ["192.0.2.1"] and "127.0.0.1" in await dns.addresses(
        "localhost"
    )
    transport.close()
    dead.close()


def test_the_systems_name_servers_are_found(tmp_path: Path) -> None:
    file = tmp_path / "resolv.conf"
    file.write_text("# x\nnameserver 192.0.2.53\nsearch x\nnameserver ::1\nnameserver not-an-ip\n")
    assert nameservers(file) == ["192.0.2.53", "::1"] and nameservers(file / "none") == []


async def test_a_cut_answer_is_asked_for_again_over_tcp() -> None:
    class Cutting(Server):
        def datagram_received(self, data: bytes, addr: tuple[str, int]) -> None:
            head = struct.pack("!HHHHHH", struct.unpack("!H", data[:2])[0], 0x8380, 1, 0, 0, 0)
            self.transport.sendto(head + data[12:], addr)

    async def whole(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        (size,) = struct.unpack("!H", await reader.readexactly(2))
        answer = answer_to(await reader.readexactly(size), [(SRV, SRV_DATA)])
        writer.write(struct.pack("!H", len(answer)) + answer)
        writer.close()

    loop = asyncio.get_running_loop()
    by_tcp = await asyncio.start_server(whole, "127.0.0.1", 0)
    port = by_tcp.sockets[0].getsockname()[1]
    transport, _ = await loop.create_datagram_endpoint(Cutting, local_addr=("127.0.0.1", port))
    assert await Dns([("127.0.0.1", port)]).srv("x.example") == [SrvRecord(10, 20, 5070, "sip.x.example")]
    transport.close()
    by_tcp.close()
