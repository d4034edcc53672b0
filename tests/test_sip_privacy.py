"""What a phone says of itself reaches operators and no log."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator

import pytest

from gateway.legs.sip_leg import ControlFailed
from tests.sip_house import House, answered_call, bye, open_house, until_sent
from tests.sip_wire import respond


@pytest.fixture
async def house() -> AsyncIterator[House]:
    async with open_house() as made:
        yield made


async def test_a_hang_up_s_reason_is_told_and_not_logged(
    house: House, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG)
    call, answer = await answered_call(house)
    reason = 'Q.850;cause=16;text="ask Ann on +4930123"'
    house.phone_says(bye(answer).replace(b"\r\n\r\n", f"\r\nReason: {reason}\r\n\r\n".encode(), 1))
    await house.settle()
    assert call.ended.is_set() and call.end_reason == reason
    assert f"call {call.id} ended by caller: SIP 200" in caplog.text
    assert "Ann" not in caplog.text and "4930123" not in caplog.text


async def test_a_refusal_s_words_are_told_and_not_logged(
    house: House, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG)
    placing = asyncio.ensure_future(house.line.place("sip:ann@198.51.100.20:5070"))
    invite = await until_sent(house, "INVITE")
    (call,) = house.switchboard.calls.values()
    house.phone_says(respond(invite, 486).replace(b" 486 ", b" 486 Ann is on +4930123 ", 1))
    with pytest.raises(ControlFailed, match="486"):
        await placing
    await house.settle()
    assert f"call {call.id} ended by caller: SIP 486" in caplog.text
    assert "Ann" not in caplog.text and "4930123" not in caplog.text


async def test_our_own_reason_is_logged(house: House, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    call, _ = await answered_call(house)
    call.end_soon("gateway", "the call has lasted as long as it may")
    await house.settle()
    assert "ended by gateway: the call has lasted as long as it may" in caplog.text
