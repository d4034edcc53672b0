"""Calls that we place: the first words wait for the other side's audio, and a redirection is an end."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

import pytest

from gateway.legs.sip_leg import ControlFailed
from gateway.media.messages import FirstPacket
from tests.sip_house import CONTACT, House, open_house, until_sent
from tests.sip_wire import OFFER, respond


@pytest.fixture
async def house() -> AsyncIterator[House]:
    async with open_house() as made:
        yield made


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
