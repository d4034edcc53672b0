"""Where a URI leads: NAPTR, SRV, fail-over."""

import asyncio
import random
from collections import Counter

import pytest

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


async def test_what_is_asked_without_naptr_is_asked_at_once_and_dropped_if_it_is_not_needed() -> None:
    """A name server that is silent about NAPTR and SRV is waited for once, not three times."""
    asked: list[str] = []
    answered = asyncio.Event()

    class Slow(Zone):
        async def naptr(self, name: str) -> list[NaptrRecord]:
            asked.append(name)
            await answered.wait()
            return await super().naptr(name)

        async def srv(self, name: str) -> list[SrvRecord]:
            asked.append(name)
            await answered.wait()
            return await super().srv(name)

    zone = Slow({"b.x": ["192.0.2.2"]}, {"_sip._udp.x": [SrvRecord(20, 0, 5080, "b.x")]})
    locating = asyncio.ensure_future(locate(parse_uri("sip:x"), zone, random.Random(1)))
    while len(asked) < 3:
        await asyncio.sleep(0)
    assert sorted(asked) == ["_sip._tcp.x", "_sip._udp.x", "x"] and not locating.done()
    answered.set()
    assert await locating == [U2]


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
