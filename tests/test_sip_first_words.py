"""Calls that we place: the first words wait for the other side's audio, and a redirection is an end."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

import pytest

from gateway.legs.sip_leg import ControlFailed
from gateway.media.messages import FirstPacket
from sip.locate import NaptrRecord, SrvRecord
from tests.sip_house import CONTACT, House, open_house, until_sent
from tests.sip_wire import OFFER, respond


@pytest.fixture
async def house() -> AsyncIterator[House]:
    async with open_house() as made:
        yield made


class Zone:
    """A domain with two servers, of which the second is for when the first is silent."""

    async def naptr(self, name: str) -> list[NaptrRecord]:
        return []

    async def srv(self, name: str) -> list[SrvRecord]:
        servers = [SrvRecord(20, 0, 5_080, "b.example.net"), SrvRecord(10, 0, 5_070, "a.example.net")]
        return servers if name == "_sip._udp.example.net" else []

    async def addresses(self, name: str) -> list[str]:
        return {"a.example.net": ["198.51.100.21"], "b.example.net": ["198.51.100.22"]}.get(name, [])


async def test_a_domain_is_called_where_its_srv_records_say_and_the_next_server_if_one_is_full(
    house: House,
) -> None:
    house.line.dialling.lookup = Zone()
    placing = asyncio.ensure_future(house.line.place("sip:ann@example.net"))
    invite = await until_sent(house, "INVITE")
    assert house.script.raw[-1][2][:2] == ("198.51.100.21", 5_070)
    assert invite.uri == "sip:ann@example.net", "who is called is not where it is sent"
    house.script.sent.clear()
    house.phone_says(respond(invite, 503))
    again = await until_sent(house, "INVITE")
    assert house.script.raw[-1][2][:2] == ("198.51.100.22", 5_080)
    house.phone_says(respond(again, 200, body=OFFER, extra=CONTACT))
    assert (await placing).media_number is not None


async def test_the_agent_says_nothing_before_the_called_is_heard(house: House) -> None:
    placing = asyncio.ensure_future(house.line.place("sip:ann@198.51.100.20:5070"))
    invite = await until_sent(house, "INVITE")
    house.phone_says(respond(invite, 200, body=OFFER, extra=CONTACT))
    call = await placing
    assert call.answered_at is None and call.media_number is not None
    call.deliver(FirstPacket(call.row, call.media_number, 0))
    assert call.answered_at is not None


async def test_early_media_is_no_answer_and_starts_nobody(house: House) -> None:
    placing = asyncio.ensure_future(house.line.place("sip:ann@198.51.100.20:5070"))
    invite = await until_sent(house, "INVITE")
    house.phone_says(respond(invite, 183, body=OFFER, extra=CONTACT))
    (call,) = house.switchboard.calls.values()
    assert call.media_number is not None
    call.deliver(FirstPacket(call.row, call.media_number, 0))
    assert call.answered_at is None and not placing.done()
    house.phone_says(respond(invite, 200, body=OFFER, extra=CONTACT))
    assert (await placing).answered_at is not None


@pytest.mark.parametrize("code", [302, 480, 486, 603])
async def test_a_refusal_is_not_tried_elsewhere_and_frees_the_slot(house: House, code: int) -> None:
    placing = asyncio.ensure_future(house.line.place("sip:ann@198.51.100.20:5070"))
    invite = await until_sent(house, "INVITE")
    house.phone_says(respond(invite, code, extra="Contact: <sip:elsewhere@203.0.113.1>\r\n"))
    with pytest.raises(ControlFailed, match=str(code)):
        await placing
    await house.settle()
    assert house.requests("INVITE") == [] and not house.switchboard.calls
    assert house.bench.engine.capacity().used == 0
