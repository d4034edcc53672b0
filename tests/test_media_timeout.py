"""Who is gone and who is only quiet: the media time-out, reports without audio, and long holds."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator

import numpy as np
import pytest

from gateway.media.messages import RtpTimedOut, SrtpKeys
from sip.rtcp import Goodbye, ReceiverReport, SourceDescription, build_rtcp
from sip.sdes import SrtpKeys as SdesKeys
from sip.srtp import SrtpContext
from tests.phone import Bench, Phone, bound_socket, speech
from tests.sip_house import House, answered_call, open_house, reinvite
from tests.sip_wire import OFFER

REPORT_EVERY = 60
"""Steps of 20 ms between two reports: 1.2 s."""
LIMIT = 250
"""Steps until a silent caller is gone: 5 s."""


def short() -> Bench:
    """A quarter of the 20 s that a caller has otherwise (test_media_plane.py)."""
    return Bench(count=1, rtp_timeout_s=LIMIT * 0.02)


@pytest.fixture
def bench() -> Iterator[Bench]:
    bench = short()
    yield bench
    bench.close()


@pytest.fixture
async def house() -> AsyncIterator[House]:
    async with open_house() as made:
        yield made


def report(ssrc: int, *more: Goodbye) -> bytes:
    return build_rtcp([ReceiverReport(ssrc), SourceDescription(ssrc, "phone"), *more])


def talked(bench: Bench, **changes: object) -> Phone:
    """A phone that was heard for a second and is muted from now on."""
    phone = Phone(speech())
    bench.call(0, phone, cname="agent", **changes)
    bench.run(50)
    bench.events.clear()
    return phone


def muted(bench: Bench, phone: Phone, datagram: bytes | None, steps: int = LIMIT + 100) -> bool:
    """Whether he is gone after so long in which he sent this now and then."""
    for step in range(steps):
        if datagram is not None and step % REPORT_EVERY == 0:
            phone.sock.sendto(datagram, phone.peer)
        bench.step(talk=False)
    return any(isinstance(event, RtpTimedOut) for event in bench.events)


def test_a_muted_phone_whose_reports_still_come_is_not_gone(bench: Bench) -> None:
    phone = talked(bench)
    assert not muted(bench, phone, report(phone.ssrc))
    assert bench.plane.stats(0).last_packet_age_s > 6
    assert muted(bench, phone, None, LIMIT + 50)


@pytest.mark.parametrize("kind", ["nothing", "garbage", "a goodbye"])
def test_what_is_no_report_keeps_nobody(bench: Bench, kind: str) -> None:
    phone = talked(bench)
    datagram = {
        "nothing": None,
        "garbage": b"\x80\xc9\x00\x07" + phone.ssrc.to_bytes(4, "big"),
        "a goodbye": report(phone.ssrc, Goodbye((phone.ssrc,))),
    }[kind]
    assert muted(bench, phone, datagram, LIMIT + 50)


def test_a_stranger_s_reports_keep_nobody(bench: Bench) -> None:
    phone = talked(bench)
    stranger = Phone(speech())
    stranger.peer = phone.peer
    assert muted(bench, stranger, report(phone.ssrc), LIMIT + 50)
    stranger.sock.close()


def test_with_keys_only_authentic_reports_keep_a_call() -> None:
    ours, theirs = bytes(range(30)), bytes(range(30, 60))
    for plain in (False, True):
        context = SrtpContext(SdesKeys("AES_CM_128_HMAC_SHA1_80", theirs, ours))
        bench, phone = short(), Phone(speech())
        bench.call(0, phone, cname="agent", srtp=SrtpKeys("AES_CM_128_HMAC_SHA1_80", ours, theirs))
        for _ in range(50):
            phone.sock.sendto(context.protect(phone.packet()), phone.peer)
            bench.step(talk=False)
        for step in range(LIMIT + 50):
            if step % REPORT_EVERY == 0:
                sent = report(phone.ssrc)
                phone.sock.sendto(sent if plain else context.protect_rtcp(sent), phone.peer)
            bench.step(talk=False)
        gone = any(isinstance(event, RtpTimedOut) for event in bench.events)
        bench.close()
        assert gone is plain


def test_reports_on_their_own_port_keep_a_muted_phone_too(bench: Bench) -> None:
    phone, rtcp, ours, sock = Phone(speech()), bound_socket(), bound_socket(), bound_socket()
    phone.peer, above = sock.getsockname(), ours.getsockname()
    bench.phones[0] = phone
    media = bench.media(phone, cname="agent", rtcp_remote=rtcp.getsockname())
    bench.plane.open_rtp(0, sock, media, ours)
    bench.plane.start(0)
    bench.run(50)
    for step in range(LIMIT + 100):
        if step % REPORT_EVERY == 0:
            rtcp.sendto(report(phone.ssrc), above)
        bench.step(talk=False)
    rtcp.close()
    assert not any(isinstance(event, RtpTimedOut) for event in bench.events)


@pytest.mark.parametrize("direction", ["sendonly", "inactive"])
async def test_a_hold_of_three_hours_ends_nothing_and_the_resumed_caller_is_heard(
    house: House, direction: str
) -> None:
    call, answer = await answered_call(house)
    phone = Phone(speech())
    phone.peer = ("127.0.0.1", call.leg.port)  # type: ignore[union-attr]
    house.phone_says(reinvite(answer, OFFER + f"a={direction}\r\n".encode(), cseq=2))
    await house.settle()
    heard = []
    for _ in range(180):
        house.bench.step_number += 3_000 - 4  # a minute, of which four steps are made
        since = int(house.bench.rows.heard_end[call.row])
        for _ in range(4):
            phone.say()
            house.bench.step()
        house.switchboard.deliver_media_events()
        until = int(house.bench.rows.heard_end[call.row])
        heard.append(np.abs(house.bench.rows.read_heard(call.row, since, until - since)).max())
    assert call.ended_by == "" and max(heard) < 0.001
    house.script.sent.clear()
    house.phone_says(reinvite(answer, OFFER, cseq=3))
    await house.settle()
    phone.sent = 0  # his recording from its beginning
    since = int(house.bench.rows.heard_end[call.row])
    for _ in range(40):
        phone.say()
        house.bench.step()
    until = int(house.bench.rows.heard_end[call.row])
    assert np.abs(house.bench.rows.read_heard(call.row, since, until - since)).max() > 0.05
    phone.sock.close()
