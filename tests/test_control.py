"""What agents and operators do with live calls: transfer, hold, keys, hang up, and placing one."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

import numpy as np
import pytest

from engine.rows import AudioRows
from gateway.call import Call
from gateway.call_events import KeyPressed, OrderGiven, StateChanged
from gateway.caps import BadNumber, CallCaps, CapLimits, Capped, parse_called
from gateway.config_phone import AccountSettings, TrunkSettings
from gateway.control import CallControl, CannotControl, UnknownCall, WrongCall, agent_silent
from gateway.keys import KeyPad
from gateway.legs.sip_leg import ControlFailed, SipLeg, reason_header
from gateway.legs.trunks import Trunks
from gateway.orders import OrderReader
from gateway.switchboard import Offer
from tests.sip_house import CONTACT, House, ack, answered_call, open_house, until, until_sent
from tests.sip_wire import OFFER, request, respond

DESK = "sip:desk@198.51.100.30"


@pytest.fixture
async def house() -> AsyncIterator[House]:
    async with open_house() as made:
        yield made


def control_of(house: House, **limits: object) -> CallControl:
    trunk = TrunkSettings(server="198.51.100.20:5070", username="u", password="p", caller="sip:shop@carrier")
    account = AccountSettings(registrar="sip:198.51.100.20:5070", user="1000")
    trunks = Trunks({"carrier": trunk}, {"pbx": account}, house.script.agent.ua, house.shell.transmit)
    caps = CallCaps(CapLimits(**{"enabled": True, "prefixes": ("+49", "ann")} | limits))
    return CallControl(house.switchboard, house.line, trunks, caps, "carrier")


async def test_a_transfer_ends_our_call_when_the_target_answered(house: House) -> None:
    call, answer = await answered_call(house)
    seen: list[object] = []
    call.on_event(seen.append)
    doing = asyncio.ensure_future(control_of(house).transfer(call, DESK))
    sent = await until_sent(house, "REFER")
    assert DESK in str(sent.headers.get("refer-to"))
    house.phone_says(respond(sent, 202, tag="caller"))
    tag = str(answer.to).split("tag=")[1]
    extra = "Event: refer\r\nSubscription-State: terminated\r\n"
    head = request("NOTIFY", branch="z9hG4bK-n", to_tag=tag, cseq=5, extra=extra, body=None)
    fragment = b"SIP/2.0 200 OK\r\n"
    length = f"Content-Type: message/sipfrag\r\nContent-Length: {len(fragment)}".encode()
    notify = head.replace(b"Content-Length: 0", length) + fragment
    house.phone_says(notify)
    await asyncio.wait_for(doing, 5.0)
    await house.settle()
    assert StateChanged("transferring") in seen
    assert call.ended.is_set() and len(house.requests("BYE")) == 1


async def test_a_refused_transfer_gives_the_caller_back_to_the_agent_who_hears_him(house: House) -> None:
    call, _ = await answered_call(house)
    seen: list[object] = []
    call.on_event(seen.append)
    doing = asyncio.ensure_future(control_of(house).transfer(call, DESK))
    sent = await until_sent(house, "REFER")
    house.phone_says(respond(sent, 603, tag="caller"))
    with pytest.raises(ControlFailed, match="603"):
        await doing
    assert not call.ended.is_set()
    assert seen[-2:] == [StateChanged("transferring"), StateChanged("transfer failed")]


async def test_the_agent_s_sentence_is_over_before_the_caller_goes(house: House) -> None:
    call, _ = await answered_call(house)
    rows = house.bench.rows
    rows.write_spoken(call.row, np.full(9_600, 0.2, np.float32))
    doing = asyncio.ensure_future(control_of(house).transfer(call, DESK))
    for _ in range(5):
        await asyncio.sleep(0.02)  # of real time: the control looks every 40 ms
        house.shell.transmit()
        assert not house.requests("REFER"), "the agent is still speaking"
    rows.write_spoken(call.row, np.zeros(9_600, np.float32))
    sent = await until_sent(house, "REFER")
    house.phone_says(respond(sent, 603, tag="caller"))
    with pytest.raises(ControlFailed):
        await doing


def test_silence_is_told_from_speech_in_the_last_four_hundred_milliseconds() -> None:
    rows = AudioRows(1)
    assert agent_silent(rows, 0)
    rows.write_spoken(0, np.full(4_800, 0.1, np.float32))
    assert not agent_silent(rows, 0)
    rows.write_spoken(0, np.full(9_600, 0.001, np.float32))
    assert agent_silent(rows, 0)


async def two_calls(house: House) -> list[Call]:
    calls = []
    for number in range(2):
        house.phone_says(request(call_id=f"call-{number}", branch=f"z9hG4bK-{number}"))
        await house.settle()
        house.phone_says(ack(house.final(), call_id=f"call-{number}"))
        calls.append(list(house.switchboard.calls.values())[number])
    return calls


async def test_a_call_that_its_phone_does_not_replace_is_ended_once_the_transfer_is_done(
    house: House, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("gateway.control.REPLACED_S", 0.05)
    calls = await two_calls(house)
    doing = asyncio.ensure_future(control_of(house).transfer_to_call(*calls))
    sent = await until_sent(house, "REFER")
    house.phone_says(respond(sent, 202, tag="caller"))
    state = "Event: refer\r\nSubscription-State: terminated;reason=noresource\r\n"
    notify = request(
        "NOTIFY", branch="z9hG4bK-n", call_id="call-0", to_tag=sent.from_.tag or "", cseq=2, extra=state
    )
    fragment = b"SIP/2.0 200 OK\r\n"
    notify = notify.replace(b"Content-Length: 0", b"Content-Type: message/sipfrag\r\nContent-Length: 16")
    house.phone_says(notify + fragment)
    await until(doing.done)
    assert doing.exception() is None
    assert all(call.ended.is_set() for call in calls) and calls[1].end_reason == "transferred"


async def test_two_live_calls_are_joined_by_an_attended_transfer(house: House) -> None:
    calls = await two_calls(house)
    control = control_of(house)
    doing = asyncio.ensure_future(control.transfer_to_call(*calls))
    sent = await until_sent(house, "REFER")
    assert "Replaces=call-1" in str(sent.headers.get("refer-to"))
    house.phone_says(respond(sent, 202, tag="caller"))
    calls[0].end_soon("gateway", "given up")
    await until(doing.done)
    assert isinstance(doing.exception(), ControlFailed)
    with pytest.raises(WrongCall, match="itself"):
        await control.transfer_to_call(calls[1], calls[1])


async def test_what_only_a_phone_can_do_is_refused_elsewhere_and_before_the_answer(house: House) -> None:
    control = control_of(house)
    browser = await house.switchboard.admit(Offer("webrtc"))
    for step in (control.hold(browser), control.resume(browser), control.transfer(browser, DESK)):
        with pytest.raises(WrongCall, match="phone"):
            await step
    house.phone_says(request())
    await house.settle()
    unanswered = next(call for call in house.switchboard.calls.values() if call is not browser)
    with pytest.raises(WrongCall, match="not answered"):
        control.send_dtmf(unanswered, "1")
    with pytest.raises(UnknownCall):
        control.call("nobody")


async def test_a_bad_target_or_digit_is_named_and_nothing_is_sent(house: House) -> None:
    call, _ = await answered_call(house)
    control = control_of(house)
    house.script.sent.clear()
    for target in ("desk", "mailto:a@b", "sip:a b@c", "sip:x@y\r\nEvil: 1"):
        with pytest.raises(CannotControl, match="target"):
            await control.transfer(call, target)
    for digits in ("", "12x", "1" * 65):
        with pytest.raises(CannotControl):
            control.send_dtmf(call, digits)
    assert house.script.sent == []


async def test_hanging_up_tells_the_phone_why(house: House) -> None:
    call, _ = await answered_call(house)
    hanging_up = asyncio.ensure_future(control_of(house).hang_up(call, 'closed "now"\r\nEvil: 1'))
    await until(lambda: house.requests("BYE"))
    (bye,) = house.requests("BYE")
    assert bye.headers.get("reason") == 'Q.850;cause=16;text="closed  now   Evil: 1"'
    assert bye.headers.get("evil") is None
    await house.settle()
    await hanging_up
    assert call.end_reason.startswith("closed")


def test_a_reason_is_quoted_and_bounded() -> None:
    assert len(reason_header("x" * 500)) < 120
    assert reason_header("") == 'Q.850;cause=16;text="Normal call clearing"'


async def test_a_number_goes_out_by_the_trunk_with_its_name_and_digest(house: House) -> None:
    control = control_of(house)
    call = await control.place("+49 (30) 123-45", "anna")
    (invite,) = house.requests("INVITE")
    assert str(invite.uri) == "sip:+493012345@198.51.100.20:5070"
    assert "sip:shop@carrier" in str(invite.headers.get("from"))
    assert call.direction == "outbound" and call.persona.name == "anna" and call.answered_at is None
    house.script.sent.clear()
    challenge = 'WWW-Authenticate: Digest realm="c", nonce="n", qop="auth"\r\n'
    house.phone_says(respond(invite, 401, extra=challenge))
    (again,) = house.requests("INVITE")
    assert 'username="u"' in str(again.headers.get("authorization"))
    house.script.sent.clear()
    house.phone_says(respond(again, 486))
    await until(lambda: call.ended.is_set() or not house.switchboard.calls)
    assert call.final_code == 486 and call.ended_by == "caller"


async def test_an_account_calls_by_its_registrar_as_itself(house: House) -> None:
    control = control_of(house)
    await control.place("+4911", trunk="pbx")
    (invite,) = house.requests("INVITE")
    assert str(invite.uri) == "sip:+4911@198.51.100.20:5070"
    assert "sip:1000@198.51.100.20:5070" in str(invite.headers.get("from"))
    with pytest.raises(CannotControl, match="no such trunk"):
        await control.place("+4911", trunk="nobody")
    control.stop()
    await until(lambda: not house.switchboard.calls)
    assert house.bench.engine.capacity().used == 0, "a call given up leaves no slot behind"


@pytest.mark.parametrize(
    ("limits", "to", "cap"),
    [
        ({"enabled": False}, "+4930", "enabled"),
        ({"prefixes": ()}, "+4930", "prefixes"),
        ({}, "+1900123", "prefixes"),
        ({}, "sip:+4930@evil.example", "hosts"),
        ({"hosts": ("pbx.example",)}, "sip:+1900@pbx.example", "prefixes"),
        ({"hosts": ("pbx.example",)}, "sip:%2B1900@pbx.example", "prefixes"),
        ({"hosts": ("pbx.example",)}, "sip:+4930@pbx.example.evil", "hosts"),
        ({"concurrent": 3}, "+4930", "concurrent"),
    ],
)
def test_each_cap_refuses_by_its_name(limits: dict[str, object], to: str, cap: str) -> None:
    caps = CallCaps(CapLimits(**{"enabled": True, "prefixes": ("+49",)} | limits))  # type: ignore[arg-type]
    with pytest.raises(Capped) as refused:
        caps.check(to, 0.0, live=3)
    assert refused.value.cap == cap


def test_so_many_calls_a_minute_and_no_more() -> None:
    caps = CallCaps(CapLimits(True, ("+49",), per_minute=2, concurrent=9))
    caps.check("+491", 0.0, 0)
    caps.check("+492", 30.0, 0)
    with pytest.raises(Capped) as refused:
        caps.check("+493", 59.0, 0)
    assert refused.value.cap == "per_minute" and refused.value.retry_after_s == pytest.approx(1.0)
    caps.check("+493", 60.0, 0)


@pytest.mark.parametrize(
    "to", ["", "ann", "+49x", "sip:pbx.example", "sip:a@b;maddr=192.0.2.1", "sip:a@b?Route=x", "sip:a b@c",
           "tel:+49", "+" * 40, "1\r\n2"],
)  # fmt: skip
def test_what_is_no_number_is_none(to: str) -> None:
    with pytest.raises(BadNumber):
        parse_called(to)


def test_one_press_sent_in_three_ways_is_one_key_and_two_presses_are_two() -> None:
    pad = KeyPad()
    assert pad.is_new("5", "rtp", 0.0)
    assert not pad.is_new("5", "info", 0.2) and not pad.is_new("5", "inband", 0.3)
    assert pad.is_new("5", "rtp", 0.5)
    assert not pad.is_new("5", "info", 0.6)
    assert pad.is_new("6", "info", 0.7) and pad.is_new("5", "info", 9.0)


async def test_a_key_by_info_is_an_event_of_the_call(house: House) -> None:
    call, answer = await answered_call(house)
    seen: list[object] = []
    call.on_event(seen.append)
    tag = str(answer.to).split("tag=")[1]
    info = request("INFO", branch="z9hG4bK-i", to_tag=tag, cseq=7, body=b"Signal=5\r\nDuration=160\r\n",
                   extra="Content-Type: application/dtmf-relay\r\n")  # fmt: skip
    house.phone_says(info)
    assert seen == [KeyPressed("5", 160, "info")]


@pytest.mark.parametrize(
    ("pieces", "text", "orders"),
    [
        ([" Goodbye.", "<hangup>"], " Goodbye.", ["hangup"]),
        ([" One", " moment", " <trans", "fer>", " ok"], " One moment ok", ["transfer"]),
        (["a < b", " and <b>"], "a < b and <b>", []),
        (["<hang", "ing>"], "<hanging>", []),
        (["<", "<", "hangup>"], "<", ["hangup"]),
        (["<transfer><hangup>"], "", ["transfer", "hangup"]),
    ],
)
def test_orders_are_taken_out_of_the_text(pieces: list[str], text: str, orders: list[str]) -> None:
    reader = OrderReader()
    taken = [reader.take(piece) for piece in pieces]
    assert "".join(shown for shown, _ in taken) == text
    assert [order for _, found in taken for order in found] == orders


async def test_a_held_caller_is_not_heard_although_he_offers_again(house: House) -> None:
    call, _ = await answered_call(house)
    assert isinstance(call.leg, SipLeg)
    control = control_of(house)
    doing = asyncio.ensure_future(control.hold(call))
    sent = await until_sent(house, "INVITE")
    theirs = OFFER + b"a=recvonly\r\n"
    house.phone_says(respond(sent, 200, tag="caller", body=theirs, extra=CONTACT))
    await doing
    assert call.leg.held
    await control.hold(call)  # again: nothing to do
    assert not house.requests("INVITE")


def test_the_order_tokens_are_those_the_embedded_model_learns() -> None:
    from gateway.orders import TOKENS
    from train.receptionist import HANGUP_TOKEN, TRANSFER_TOKEN

    assert dict(TOKENS) == {TRANSFER_TOKEN: "transfer", HANGUP_TOKEN: "hangup"}
    assert OrderGiven("hangup").order == TOKENS[HANGUP_TOKEN]
