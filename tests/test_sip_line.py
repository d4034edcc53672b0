"""A phone's call through user agent, switchboard, echo engine and media plane, stepped by hand."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import AsyncIterator

import numpy as np
import pytest

from engine.api import SlotEnded
from gateway.legs.rtp_ports import RtpPorts
from gateway.legs.sip_leg import ControlFailed, SipLeg
from gateway.media.messages import RtpTimedOut
from gateway.switchboard import Offer, Refused
from sip.message import Response
from tests.phone import Phone, bound_socket, speech
from tests.sip_house import CONTACT, House, ack, answered_call, asked, bye, open_house, reinvite, until_sent
from tests.sip_wire import OFFER, request, respond


def is_free(port: int) -> bool:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        try:
            probe.bind(("127.0.0.1", port))
        except OSError:
            return False
        return True


@pytest.fixture
async def house() -> AsyncIterator[House]:
    async with open_house() as made:
        yield made


async def test_an_offered_call_is_answered_and_its_row_starts_with_the_ack(house: House) -> None:
    house.phone_says(request())
    await house.settle()
    answer = house.final()
    assert answer.code == 200 and b"m=audio" in answer.body
    (call,) = house.switchboard.calls.values()
    assert call.leg_kind == "sip" and call.answered_at is None
    house.phone_says(ack(answer))
    assert call.answered_at is not None
    house.phone_says(bye(answer))
    await house.settle()
    assert house.final().code == 200
    assert call.ended.is_set() and call.ended_by == "caller" and not house.switchboard.calls
    assert call.final_stats is not None
    assert house.bench.engine.capacity().used == 0


async def test_a_caller_beyond_the_last_slot_hears_503_with_retry_after_at_once(house: House) -> None:
    for number in range(3):
        house.phone_says(request(call_id=f"call-{number}", branch=f"z9hG4bK-{number}"))
        await house.settle()
        answer = house.final()
        if number < 2:
            assert answer.code == 200
    assert answer.code == 503 and int(answer.headers.get("retry-after") or 0) >= 1
    assert house.switchboard.refused == {503: 1}


async def test_a_refused_description_gives_the_slot_back(house: House) -> None:
    house.phone_says(request(body=OFFER.replace(b"RTP/AVP 0 8 101", b"RTP/AVP 18")))
    await house.settle()
    assert house.final().code == 488
    assert not house.switchboard.calls and house.bench.engine.capacity().used == 0


async def test_a_caller_who_cancels_while_the_slot_opens_leaves_nothing_behind(house: House) -> None:
    house.phone_says(request())
    house.phone_says(request("CANCEL", body=None))
    await house.settle()
    codes = sorted(m.code for m in house.script.sent if isinstance(m, Response) and m.code >= 200)
    assert codes == [200, 487]
    assert not house.switchboard.calls and house.bench.engine.capacity().used == 0


async def test_a_caller_who_falls_silent_is_hung_up_and_his_slot_is_free(house: House) -> None:
    house.phone_says(request())
    await house.settle()
    house.phone_says(ack(house.final()))
    (call,) = house.switchboard.calls.values()
    assert call.media_number is not None
    call.deliver(RtpTimedOut(call.row, call.media_number, 0, 20.0))
    await house.settle()
    assert len(house.requests("BYE")) == 1
    assert call.ended_by == "gateway" and house.bench.engine.capacity().used == 0


async def test_an_engine_that_ends_the_slot_ends_the_call_with_a_bye(house: House) -> None:
    house.phone_says(request())
    await house.settle()
    house.phone_says(ack(house.final()))
    (call,) = house.switchboard.calls.values()
    call.deliver(SlotEnded("the remote is gone"))
    await house.settle()
    assert len(house.requests("BYE")) == 1 and call.ended_by == "engine"


async def test_a_held_call_goes_on_and_the_engine_hears_silence_instead_of_the_music(house: House) -> None:
    house.phone_says(request())
    await house.settle()
    answer = house.final()
    house.phone_says(ack(answer))
    (call,) = house.switchboard.calls.values()
    music = Phone(speech())
    music.peer = ("127.0.0.1", call.leg.port)  # type: ignore[union-attr]
    heard = {}
    for held, offer in ((True, OFFER + b"a=sendonly\r\n"), (False, OFFER)):
        house.script.sent.clear()
        house.phone_says(reinvite(answer, offer, cseq=3 - held))
        await house.settle()
        assert house.final().code == 200
        since = int(house.bench.rows.heard_end[call.row])
        for _ in range(40):
            music.say()
            house.bench.step()
        until = int(house.bench.rows.heard_end[call.row])
        pcm = house.bench.rows.read_heard(call.row, since, until - since)
        heard[held] = float(np.abs(pcm).max())
    assert call.ended_by == "" and heard[True] < 0.001 and heard[False] > 0.05


@pytest.mark.parametrize("direction", ["sendonly", "inactive", "sendrecv"])
async def test_a_phone_that_sends_nothing_while_it_holds_us_is_not_gone(house: House, direction: str) -> None:
    call, answer = await answered_call(house)
    house.phone_says(reinvite(answer, OFFER + f"a={direction}\r\n".encode(), cseq=2))
    await house.settle()
    house.bench.events.clear()
    for _ in range(1_100):  # 22 s
        house.bench.step()
    gone = [event for event in house.bench.events if isinstance(event, RtpTimedOut)]
    assert bool(gone) is (direction == "sendrecv") and call.ended_by == ""


@pytest.mark.parametrize(("attribute", "closed"), [(b"", False), (b"a=rtcp-mux\r\n", True)])
async def test_reports_have_the_port_above_where_they_are_not_multiplexed(
    house: House, attribute: bytes, closed: bool
) -> None:
    house.phone_says(request(body=OFFER + attribute))
    await house.settle()
    answer = house.final()
    assert (b"a=rtcp-mux" in answer.body) is closed and b"a=rtcp:" not in answer.body
    (call,) = house.switchboard.calls.values()
    port = call.leg.port  # type: ignore[union-attr]
    assert port % 2 == 0 and is_free(port + 1) is closed
    house.phone_says(ack(answer))
    house.phone_says(bye(answer))
    await house.settle()
    assert is_free(port) and is_free(port + 1)


async def test_a_call_out_has_both_ports_until_its_end(house: House) -> None:
    placing = asyncio.ensure_future(house.line.place("sip:ann@198.51.100.20:5070"))
    invite = await until_sent(house, "INVITE")
    port = int(invite.body.split(b"m=audio ")[1].split()[0])
    assert not is_free(port) and not is_free(port + 1)
    house.phone_says(respond(invite, 486))
    with pytest.raises(ControlFailed, match="486"):
        await placing
    await house.settle()
    assert is_free(port) and is_free(port + 1)


async def test_without_a_port_above_reports_come_to_the_audio_s(
    house: House, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(RtpPorts, "take_pair", lambda ports, now: (bound_socket(), None))
    house.phone_says(request())
    await house.settle()
    (call,) = house.switchboard.calls.values()
    assert f"a=rtcp:{call.leg.port}\r\n".encode() in house.final().body  # type: ignore[union-attr]


async def test_the_called_number_chooses_the_persona(house: House) -> None:
    house.phone_says(request().replace(b"To: <sip:moshi@", b"To: <sip:100@"))
    await house.settle()
    (call,) = house.switchboard.calls.values()
    assert call.persona.name == "anna"


async def test_a_slot_serves_the_next_caller_on_the_same_row(house: House) -> None:
    rows = []
    for number in range(4):
        house.phone_says(request(call_id=f"call-{number}", branch=f"z9hG4bK-{number}"))
        await house.settle()
        answer = house.final()
        assert answer.code == 200
        (call,) = house.switchboard.calls.values()
        rows.append(call.row)
        house.phone_says(ack(answer, call_id=f"call-{number}"))
        call.end_soon("agent", "done")
        await house.settle()
        house.script.sent.clear()
        assert call.ended.is_set()
    assert len(rows) == 4


async def test_draining_refuses_newcomers_and_ends_who_is_left(house: House) -> None:
    house.phone_says(request())
    await house.settle()
    house.phone_says(ack(house.final()))
    draining = asyncio.ensure_future(house.switchboard.drain(0.0))
    await house.settle()
    assert await draining == 1
    with pytest.raises(Refused) as refused:
        await house.switchboard.admit(Offer("sip"))
    assert refused.value.code == 503 and refused.value.retry_after_s
    await house.settle()


async def test_we_hold_a_caller_and_take_him_back(house: House) -> None:
    call, _ = await answered_call(house)
    assert isinstance(call.leg, SipLeg)
    for step, direction in ((call.leg.hold, b"a=sendonly"), (call.leg.resume, b"a=sendrecv")):
        doing, sent = await asked(house, step(call), "INVITE")
        assert direction in sent.body
        theirs = OFFER + (b"a=recvonly\r\n" if direction == b"a=sendonly" else b"")
        house.phone_says(respond(sent, 200, tag="caller", body=theirs, extra=CONTACT))
        await doing
        assert len(house.requests("ACK")) == 1
    assert not call.ended.is_set()


async def test_a_refused_transfer_leaves_the_caller_with_the_agent(house: House) -> None:
    call, _ = await answered_call(house)
    assert isinstance(call.leg, SipLeg)
    doing, sent = await asked(house, call.leg.transfer("sip:desk@198.51.100.30"), "REFER")
    assert "sip:desk@198.51.100.30" in str(sent.headers.get("refer-to"))
    house.phone_says(respond(sent, 603, tag="caller"))
    with pytest.raises(ControlFailed, match="603"):
        await doing
    assert not call.ended.is_set() and house.switchboard.calls


async def test_an_agent_calls_out_and_speaks_once_it_was_answered(house: House) -> None:
    placing = asyncio.ensure_future(house.line.place("sip:ann@198.51.100.20:5070", "anna"))
    invite = await until_sent(house, "INVITE")
    house.phone_says(respond(invite, 180, extra=CONTACT))
    (call,) = house.switchboard.calls.values()
    assert call.answered_at is None and call.direction == "outbound"
    house.phone_says(respond(invite, 200, body=OFFER, extra=CONTACT))
    assert await placing is call
    music = Phone(speech())
    music.peer = ("127.0.0.1", call.leg.port)  # type: ignore[union-attr]
    for _ in range(10):
        music.say()
        house.bench.step()
        house.switchboard.deliver_media_events()
    for event in house.bench.events:
        call.deliver(event)
    assert call.answered_at is not None


async def test_a_call_that_nobody_takes_frees_its_slot_and_says_the_code(house: House) -> None:
    placing = asyncio.ensure_future(house.line.place("sip:ann@198.51.100.20:5070"))
    invite = await until_sent(house, "INVITE")
    house.phone_says(respond(invite, 486))
    with pytest.raises(ControlFailed, match="486"):
        await placing
    await house.settle()
    assert not house.switchboard.calls and house.bench.engine.capacity().used == 0
