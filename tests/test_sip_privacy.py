"""What a phone says of itself reaches operators and no log."""

from __future__ import annotations

import asyncio
import json
import logging
from collections.abc import AsyncIterator

import pytest

from gateway.admin_feed import AdminFeed
from gateway.admin_views import call_view
from gateway.legs.said import LONGEST, MOST
from gateway.legs.sip_leg import ControlFailed
from tests.sip_house import House, answered_call, bye, open_house, until_sent
from tests.sip_wire import request, respond

SAID = (
    'P-Asserted-Identity: "Ann" <sip:+4930123@c.example;verstat=TN-Validation-Failed>\r\n'
    "Diversion: <sip:+4930777@c.example>;reason=no-answer\r\n"
    "Privacy: id\r\nUser-to-User: 48692c;encoding=hex\r\nReason: Q.850;cause=16\r\nIdentity: eyJ.secret\r\n"
)


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


async def test_what_an_invite_says_of_its_caller_reaches_operators_and_no_log(
    house: House, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG)
    house.phone_says(request(extra=SAID))
    await house.settle()
    (call,) = house.switchboard.calls.values()
    said = call_view(AdminFeed(call))["said"]
    assert said == {
        "asserted": {
            "uri": "sip:+4930123@c.example;verstat=TN-Validation-Failed", "user": "+4930123", "name": "Ann"
        },
        "privacy": True,
        "diverted": [
            {"uri": "sip:+4930777@c.example", "user": "+4930777", "name": "", "reason": "no-answer"}
        ],
        "user_to_user": [{"hex": "48692c"}],
        "reason": ["Q.850;cause=16"],
        "signed": True,
        "verdict": "failed",
    }  # fmt: skip
    call.end_soon("gateway", "done")
    await house.settle()
    assert not any(word in caplog.text for word in ("4930", "Ann", "c.example", "48692c", "eyJ", "Hi,"))


async def test_history_info_stands_in_for_diversion(house: House) -> None:
    steps = "<sip:a@x>;index=1, <sip:b@x>;index=1.1, <sip:us@x>;index=1.1.1"
    house.phone_says(request(extra=f"History-Info: {steps}\r\n"))
    await house.settle()
    (call,) = house.switchboard.calls.values()
    assert [step["user"] for step in call.said["diverted"]] == ["b", "a"]  # type: ignore[attr-defined]


async def test_what_is_said_is_bounded_and_is_text(house: House) -> None:
    many = f"User-to-User: {'x' * 400}\r\n" * 12
    house.phone_says(request(extra=many + "Reason: @@\r\n").replace(b"@@", b"\xff\xfe"))
    await house.settle()
    (call,) = house.switchboard.calls.values()
    assert call.said["user_to_user"] == ["x" * LONGEST] * MOST
    assert json.dumps(call.said, ensure_ascii=False).encode()


async def test_a_caller_who_says_nothing_of_himself_is_shown_so(house: House) -> None:
    call, _ = await answered_call(house)
    assert call.said == {}
