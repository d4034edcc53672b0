"""DNS messages and the client that exchanges them: it believes nobody who was not asked."""

import asyncio
import struct
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sip import inquiry
from sip.dns import Dns, nameservers
from sip.dns_message import NAPTR, SRV, Answer, MalformedDns, build_query, is_cut, parse_answer
from sip.locate import NaptrRecord, SrvRecord
from tests.dns_server import NAPTR_DATA, SRV_DATA, Server, answer_to, serving, soa

FOUND = SrvRecord(10, 20, 5070, "sip.example.com")


def test_records_are_read_through_compression() -> None:
    query = build_query(7, "example.com", SRV)
    data = answer_to(query, [(SRV, SRV_DATA), (5, b"\xc0\x0c")])
    assert parse_answer(data, 7, SRV) == Answer((FOUND,), 60)
    data = answer_to(build_query(7, "example.com", NAPTR), [(NAPTR, NAPTR_DATA)])
    assert parse_answer(data, 7, NAPTR).records == (NaptrRecord(50, 60, "s", "SIP+D2U", "_sip.example.com"),)


def test_an_answer_holds_as_long_as_its_shortest_record_and_emptiness_as_its_zone_says() -> None:
    query = build_query(7, "example.com", SRV)
    both = [(SRV, SRV_DATA, 300), (5, b"\xc0\x0c", 20)]
    assert parse_answer(answer_to(query, both), 7, SRV).keep_s == 20
    assert parse_answer(answer_to(query, [(SRV, SRV_DATA, 1 << 31)]), 7, SRV).keep_s == 0  # RFC 2181
    for ttl, minimum, keep_s in ((900, 120, 120), (60, 120, 60), (1 << 31, 9, 0)):
        for code in (0, 3):
            data = answer_to(query, [], [(6, soa(minimum), ttl)], code)
            assert parse_answer(data, 7, SRV) == Answer((), keep_s)
    assert parse_answer(answer_to(query, []), 7, SRV) == Answer((), 0)


@pytest.mark.parametrize("code", [1, 2, 4, 5, 9])
def test_a_server_that_cannot_tell_has_not_said_that_there_is_nothing(code: int) -> None:
    data = answer_to(build_query(7, "example.com", SRV), [], [], code)
    assert parse_answer(data, 7, SRV) == Answer((), 0, refused=True)


def test_cut_circular_and_foreign_answers_are_refused() -> None:
    query = build_query(7, "example.com", SRV)
    data = answer_to(query, [(SRV, SRV_DATA)])
    for end in range(len(data)):
        with pytest.raises(MalformedDns):
            parse_answer(data[:end], 7, SRV)
    empty = answer_to(query, [], [(6, soa(60), 60)])
    for end in range(len(empty)):
        with pytest.raises(MalformedDns):
            parse_answer(empty[:end], 7, SRV)
    with pytest.raises(MalformedDns):
        parse_answer(data, 8, SRV)
    with pytest.raises(MalformedDns):
        parse_answer(data[:12] + b"\xc0\x0c" + data[14:], 7, SRV)


@given(st.binary(max_size=200))
def test_garbage_is_no_answer(data: bytes) -> None:
    for candidate in (data, b"\0\7\x81\x80\0\1\0\3\0\0\0\0" + data):
        try:
            is_cut(candidate, 7)
            parse_answer(candidate, 7, SRV)
        except MalformedDns:
            continue


@pytest.fixture(autouse=True)
def nothing_is_late(monkeypatch: pytest.MonkeyPatch) -> None:
    """On a machine that stands still for a second, too."""
    monkeypatch.setattr(inquiry, "STEP_S", 30.0)
    monkeypatch.setattr(inquiry, "GIVE_UP_S", 60.0)


async def test_the_client_asks_the_next_server_when_one_is_silent(monkeypatch: pytest.MonkeyPatch) -> None:
    async with serving(Server(silent=True)) as silent, serving(Server()) as other:
        dns = Dns([silent.address, other.address])
        with monkeypatch.context() as hasty:
            hasty.setattr(inquiry, "STEP_S", 0.05)
            assert await dns.srv("example.com") == [FOUND]
        asked = len(silent.asked)
        assert asked and other.asked
        assert await dns.srv("example.net") and len(silent.asked) == asked, "it rests now"
        assert await dns.srv("bad..name") == [] and await Dns([]).naptr("example.com") == []


async def test_the_client_asks_the_next_server_when_one_is_not_there_or_cannot_tell() -> None:
    async with serving(Server()) as gone:
        pass
    async with serving(Server(code=2)) as failing, serving(Server()) as other:
        assert await Dns([gone.address, failing.address, other.address]).srv("example.com") == [FOUND]
        assert len(failing.asked) == len(other.asked) == 1


async def test_one_question_is_asked_once_by_many_and_its_answer_kept() -> None:
    async with serving(Server()) as server:
        dns = Dns([server.address])
        found = await asyncio.gather(*(dns.srv("example.com") for _ in range(20)))
        assert found == [[FOUND]] * 20 and await dns.srv("example.com") == [FOUND]
        assert len(server.asked) == 1


async def test_who_gives_up_leaves_the_others_their_answer() -> None:
    async with serving(Server()) as server:
        dns = Dns([server.address])
        impatient, patient = (asyncio.ensure_future(dns.srv("example.com")) for _ in range(2))
        await asyncio.sleep(0)
        impatient.cancel()
        assert await patient == [FOUND] and impatient.cancelled()


async def test_addresses_are_the_systems() -> None:
    dns = Dns([])
    assert await dns.addresses("192.0.2.1") == ["192.0.2.1"]
    assert "127.0.0.1" in await dns.addresses("localhost")


def test_the_systems_name_servers_are_found(tmp_path: Path) -> None:
    file = tmp_path / "resolv.conf"
    file.write_text("# x\nnameserver 192.0.2.53\nsearch x\nnameserver ::1\nnameserver not-an-ip\n")
    assert nameservers(file) == ["192.0.2.53", "::1"] and nameservers(file / "none") == []


async def test_a_cut_answer_is_asked_for_again_over_tcp() -> None:
    async def whole(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        (size,) = struct.unpack("!H", await reader.readexactly(2))
        answer = answer_to(await reader.readexactly(size), [(SRV, SRV_DATA)])
        writer.write(struct.pack("!H", len(answer)) + answer)
        writer.close()

    by_tcp = await asyncio.start_server(whole, "127.0.0.1", 0)
    port = by_tcp.sockets[0].getsockname()[1]
    async with serving(Server(flags=0x0200), port) as server:
        assert await Dns([server.address]).srv("example.com") == [FOUND]
    by_tcp.close()
