"""What makes calls one-way elsewhere: a description whose address is not where the phone is."""

from __future__ import annotations

from collections.abc import AsyncIterator
from dataclasses import replace

import numpy as np
import pytest

from gateway.legs.sip_leg import SipLeg, rtp_media
from sip.sdp import LocalMedia, answer
from tests.phone import Phone, speech
from tests.sip_house import CONTACT, House, ack, answered_call, asked, open_house, reinvite
from tests.sip_wire import OFFER, request, respond

WHERE = b"c=IN IP4 198.51.100.20"
OURS = LocalMedia("192.0.2.1", 4000)


@pytest.fixture
async def house() -> AsyncIterator[House]:
    async with open_house() as made:
        yield made


def talk(house: House, phone: Phone) -> float:
    """A second of talk; the loudest that the model heard of its second half."""
    (call,) = house.switchboard.calls.values()
    phone.peer = ("127.0.0.1", call.leg.port)  # type: ignore[union-attr]
    for _ in range(50):
        phone.say()
        house.bench.step()
        phone.listen(house.bench.step_number)
    until = int(house.bench.rows.heard_end[call.row])
    return float(np.abs(house.bench.rows.read_heard(call.row, until - 12_000, 12_000)).max())


@pytest.mark.parametrize(
    "named", ["IN IP4 192.168.1.5", "IN IP4 10.0.0.9", "IN IP6 2001:db8::2", "IN IP4 phone.example"]
)
async def test_a_phone_that_is_not_where_it_says_hears_and_is_heard(house: House, named: str) -> None:
    house.phone_says(request(body=OFFER.replace(WHERE, b"c=" + named.encode())))
    await house.settle()
    answered = house.final()
    assert answered.code == 200 and b"c=IN IP4 192.0.2.10" in answered.body and b"a=sendrecv" in answered.body
    house.phone_says(ack(answered))
    phone = Phone(speech())
    assert talk(house, phone) > 0.05 and len(phone.heard) > 40
    phone.sock.close()


async def test_a_null_address_is_a_hold_and_its_end_brings_both_ways_back(house: House) -> None:
    call, answered = await answered_call(house)
    phone = Phone(speech())
    assert talk(house, phone) > 0.05
    house.phone_says(reinvite(answered, OFFER.replace(WHERE, b"c=IN IP4 0.0.0.0"), cseq=2))
    await house.settle()
    assert b"a=recvonly" in house.final().body
    phone.listen(0)
    phone.heard.clear()
    assert talk(house, phone) < 0.001 and phone.heard == []
    house.phone_says(reinvite(answered, OFFER, cseq=3))
    await house.settle()
    phone.sent = 0
    assert talk(house, phone) > 0.05 and len(phone.heard) > 40 and call.ended_by == ""
    phone.sock.close()


async def test_a_caller_who_holds_us_from_the_first_is_not_heard_until_he_takes_us_back(house: House) -> None:
    held = OFFER + b"a=sendonly\r\n"
    house.phone_says(request(body=held))
    await house.settle()
    answered = house.final()
    assert b"a=recvonly" in answered.body
    house.phone_says(ack(answered))
    await house.settle()
    phone = Phone(speech())
    assert talk(house, phone) < 0.001, "his music is not his voice"
    house.phone_says(reinvite(answered, OFFER, cseq=2))
    await house.settle()
    phone.sent = 0
    assert talk(house, phone) > 0.05
    phone.sock.close()


async def test_audio_on_port_0_is_no_audio_and_leaves_a_call_as_it_was(house: House) -> None:
    none = OFFER.replace(b"audio 50000", b"audio 0")
    house.phone_says(request(call_id="other", branch="z9hG4bK-0", body=none))
    await house.settle()
    assert house.final().code == 488 and not house.switchboard.calls
    call, answered = await answered_call(house)
    house.phone_says(reinvite(answered, none, cseq=2))
    await house.settle()
    assert house.final().code == 488
    phone = Phone(speech())
    assert talk(house, phone) > 0.05 and len(phone.heard) > 40 and call.ended_by == ""
    phone.sock.close()


@pytest.mark.parametrize(
    ("host", "port", "sendable"),
    [
        ("198.51.100.20", 50_000, True),
        ("2001:db8::2", 50_000, True),
        ("slow.example", 50_000, False),
        ("localhost", 50_000, False),
        ("0.0.0.0", 50_000, False),
        ("::", 50_000, False),
    ],
)
def test_nothing_is_sent_where_a_name_would_have_to_be_looked_up(
    host: str, port: int, sendable: bool
) -> None:
    agreed = replace(
        answer(OFFER, OURS).media, remote_host=host, remote_port=port, remote_rtcp=(host, port + 1)
    )
    media = rtp_media(agreed, 7)
    assert media.remote == ((host, port) if sendable else None)
    assert media.rtcp_remote == ((host, port + 1) if sendable else None)


async def test_a_held_agent_does_no_work_and_goes_on_where_it_was(house: House) -> None:
    call, answered = await answered_call(house)
    phone = Phone(speech())
    talk(house, phone)
    house.phone_says(reinvite(answered, OFFER + b"a=sendonly\r\n", cseq=2))
    await house.settle()
    before = call.slot.counters
    talk(house, phone)
    call.release_agent()  # as when an interruption from before the hold has ended
    talk(house, phone)
    assert call.parked and call.slot.counters == before and before.frames >= 12
    house.phone_says(reinvite(answered, OFFER, cseq=3))
    await house.settle()
    phone.sent = 0
    assert talk(house, phone) > 0.05 and not call.parked
    after = call.slot.counters
    assert 12 <= after.frames - before.frames <= 16
    assert (after.missed_ticks, after.dropped_samples) == (0, before.dropped_samples)
    phone.sock.close()


async def test_the_agent_of_a_call_that_both_sides_hold_waits_for_both(house: House) -> None:
    call, answered = await answered_call(house)
    assert isinstance(call.leg, SipLeg)
    doing, sent = await asked(house, call.leg.hold(call), "INVITE")
    theirs = OFFER + b"a=inactive\r\n"
    house.phone_says(respond(sent, 200, tag="caller", body=theirs, extra=CONTACT))
    await doing
    assert call.parked
    doing, sent = await asked(house, call.leg.resume(call), "INVITE")
    house.phone_says(respond(sent, 200, tag="caller", body=OFFER + b"a=sendonly\r\n", extra=CONTACT))
    await doing
    assert call.parked, "he still holds us"
    house.phone_says(reinvite(answered, OFFER, cseq=2))
    await house.settle()
    assert not call.parked


async def test_we_hold_a_caller_who_holds_us_already_although_it_changes_nothing(house: House) -> None:
    call, answered = await answered_call(house)
    assert isinstance(call.leg, SipLeg)
    theirs = OFFER + b"a=inactive\r\n"
    house.phone_says(reinvite(answered, theirs, cseq=2))
    await house.settle()
    house.phone_says(ack(answered, cseq=2))
    doing, sent = await asked(house, call.leg.hold(call), "INVITE")
    house.phone_says(respond(sent, 200, tag="caller", body=theirs, extra=CONTACT))
    await doing
    assert call.leg.held_by_us and call.parked


async def test_a_caller_who_holds_us_while_he_is_transferred_is_not_taken_for_transferred(
    house: House,
) -> None:
    call, answered = await answered_call(house)
    assert isinstance(call.leg, SipLeg)
    doing, sent = await asked(house, call.leg.transfer("sip:desk@198.51.100.30"), "REFER")
    house.phone_says(respond(sent, 202, tag="caller"))
    house.phone_says(reinvite(answered, OFFER.replace(b"50000", b"50002"), cseq=2))
    await house.settle()
    assert not doing.done()
    doing.cancel()


async def test_a_greeting_waits_for_a_caller_who_holds_us_from_the_first() -> None:
    async with open_house(greeting=True) as house:
        house.phone_says(request(body=OFFER + b"a=sendonly\r\n"))
        await house.settle()
        answered = house.final()
        house.phone_says(ack(answered))
        await house.settle()
        (call,) = house.switchboard.calls.values()
        phone = Phone(speech())
        talk(house, phone)
        spoken = call.slot.counters.frames
        assert call.answered_at is not None and spoken <= 2, "nothing beyond what came before the answer"
        house.phone_says(reinvite(answered, OFFER, cseq=2))
        await house.settle()
        talk(house, phone)
        assert call.slot.counters.frames >= spoken + 12
        phone.sock.close()
