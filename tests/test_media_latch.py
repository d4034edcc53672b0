"""Whose packets a leg hears: after a re-INVITE, after a NAT forgot the peer, and under attack."""

import numpy as np
import pytest

from gateway.media.latch import CONSISTENT, Latch
from gateway.media.messages import Latched, SrtpKeys
from gateway.media.receive import REBIND_S
from sip.sdes import SrtpKeys as SdesKeys
from sip.srtp import SrtpContext
from tests.audio import align, steady_noise
from tests.phone import Bench, Phone, speech

NAT, PRIVATE, OTHER = ("203.0.113.5", 4000), ("192.168.1.2", 5000), ("198.51.100.9", 6000)
PACKET = bytes(8) + b"ssrc" + bytes(160)


def test_a_latch_outlives_a_re_invite_that_names_the_same_private_address() -> None:
    latch = Latch(True, PRIVATE)
    for _ in range(CONSISTENT):
        latch.admit(NAT, PACKET)
    latch.point(PRIVATE)
    assert latch.latched and latch.remote == NAT


def test_a_new_address_must_be_earned_again() -> None:
    latch = Latch(True, PRIVATE)
    for _ in range(CONSISTENT):
        latch.admit(NAT, PACKET)
    latch.point(OTHER)
    assert not latch.latched and latch.remote == OTHER


def test_a_call_moved_to_another_phone_is_heard_from_there() -> None:
    bench = Bench(count=1)
    first, second = Phone(speech()), Phone(speech(), ssrc=0x9999)
    bench.call(0, first)
    bench.run(25)
    second.peer = first.peer
    bench.plane.change_rtp(0, bench.media(second))
    bench.phones = {0: second}
    bench.run(50)
    assert bench.plane.stats(0).remote == second.sock.getsockname()
    assert bench.plane.stats(0).packets_received > 60 and len(second.heard) > 40
    bench.close()


def packet(sequence: int, ssrc: bytes = b"ssrc") -> bytes:
    return b"\x80\x00" + (sequence & 0xFFFF).to_bytes(2, "big") + bytes(4) + ssrc + bytes(160)


def silent_latch(top: int = 100) -> Latch:
    """Latched to NAT, then reopened for the stream that ended with packet `top`."""
    latch = Latch(True, PRIVATE)
    for number in range(top - 2, top + 1):
        latch.admit(NAT, packet(number))
    latch.reopen(int.from_bytes(b"ssrc", "big"), top)
    return latch


def test_after_a_silence_the_same_stream_is_followed_to_its_new_address() -> None:
    latch = silent_latch(65_530)
    heard = [latch.admit(OTHER, packet(number)) for number in range(65_600, 65_603)]
    assert heard[:2] == [[], []] and len(heard[2] or []) == 3
    assert latch.latched and latch.remote == OTHER


def test_after_a_silence_no_other_stream_and_no_leap_is_followed() -> None:
    for wrong in (
        [packet(number, b"evil") for number in range(101, 111)],
        [packet(number) for number in range(9_000, 9_010)],
        [packet(number) for number in range(90, 100)],
        [packet(150)] * 10,
        [packet(number) for number in range(2_000, 100, -100)],
        [b"\x80\xc8" + packet(number)[2:] for number in range(101, 111)],
    ):
        latch = silent_latch()
        for datagram in wrong:
            assert not latch.admit(OTHER, datagram)
        assert latch.remote == NAT


def test_two_sources_that_take_turns_are_both_not_believed() -> None:
    latch = silent_latch()
    for number in range(101, 121):
        source = OTHER if number % 2 else ("198.51.100.9", 6_002)
        assert latch.admit(source, packet(number)) == []
    assert not latch.latched


def test_the_old_address_is_believed_at_once_when_it_speaks_again() -> None:
    latch = silent_latch()
    assert latch.admit(NAT, packet(500)) == [packet(500)]
    assert latch.latched and latch.remote == NAT
    assert latch.admit(OTHER, packet(501)) is None


def test_an_authentic_packet_needs_no_company() -> None:
    latch = silent_latch()
    assert latch.admit(OTHER, packet(40_000, b"new!"), authentic=True) is not None
    assert latch.latched and latch.remote == OTHER


def test_a_report_from_anywhere_moves_nothing() -> None:
    latch = Latch(True, PRIVATE)
    report = b"\x80\xc9\x00\x01" + bytes(24)
    for source in (NAT, PRIVATE, PRIVATE, PRIVATE, PRIVATE):
        latch.admit(source, report)
    assert not latch.latched
    for number in range(CONSISTENT):
        latch.admit(NAT, packet(number))
    assert latch.remote == NAT


def moved(phone: Phone) -> Phone:
    """The same phone behind a NAT that gave it a new port; the old one stays bound, and silent."""
    other = Phone(np.zeros(0, np.int16), phone.law, phone.ssrc)
    other.codes, other.sent, other.peer = phone.codes, phone.sent, phone.peer
    other.sequence, other.timestamp = phone.sequence, phone.timestamp
    return other


def lost_for(bench: Bench, phone: Phone, steps: int) -> None:
    """Time passes, the phone speaks, nothing arrives."""
    for _ in range(steps):
        phone.packet()
        bench.step(talk=False)


@pytest.mark.parametrize(
    "compiled", [False, pytest.param(True, marks=pytest.mark.slow)], ids=["plain", "compiled"]
)
def test_a_phone_whose_nat_forgets_it_is_heard_and_answered_at_its_new_port(compiled: bool) -> None:
    bench = Bench(count=1, compiled=compiled, kernel_times=compiled)
    said = (steady_noise(8.0) * 32_767).astype(np.int16)
    phone = Phone(said)
    bench.call(0, phone)
    bench.run(50)
    lost_for(bench, phone, round(REBIND_S / 0.02) + 5)
    before = bench.plane.stats(0)
    assert not before.latched and before.remote == phone.sock.getsockname()
    bench.phones = {0: (after := moved(phone))}
    bench.run(100)
    stats = bench.plane.stats(0)
    assert stats.latched and stats.remote == after.sock.getsockname()
    assert stats.packets_received == before.packets_received + 100 and stats.rejected == 0
    assert stats.resynced == 0 and len(after.heard) >= 97
    bench.run(50)
    assert align(after.heard_pcm()[-8_000:] / 32_768, said / 32_768).correlation > 0.95
    assert sum(isinstance(event, Latched) for event in bench.events) == 2
    bench.close()


@pytest.mark.parametrize(
    "compiled", [False, pytest.param(True, marks=pytest.mark.slow)], ids=["plain", "compiled"]
)
def test_a_second_socket_that_sprays_a_silent_call_is_neither_heard_nor_answered(compiled: bool) -> None:
    bench = Bench(count=1, compiled=compiled, kernel_times=compiled)
    phone, attacker = Phone(speech()), Phone(speech(), ssrc=0x6666)
    bench.call(0, phone)
    bench.run(50)
    attacker.peer = phone.peer
    loud = int(bench.rows.heard_end[0])
    lost_for(bench, phone, round(REBIND_S / 0.02) + 5)
    for spray in range(200):
        attacker.sequence = phone.sequence + spray * 331
        attacker.ssrc = 0x6666 if spray % 2 else phone.ssrc
        attacker.say()
        attacker.ssrc = 0x6666
        attacker.say()
        phone.packet()
        bench.step(talk=False)
        attacker.listen(spray)
    until = int(bench.rows.heard_end[0])
    pcm = bench.rows.read_heard(0, loud + 24_000, until - loud - 24_000)
    assert np.abs(pcm).max() < 0.01, "the model hears silence"
    assert attacker.heard == [] and bench.plane.stats(0).remote == phone.sock.getsockname()
    bench.run(50)
    assert bench.plane.stats(0).latched and len(phone.heard) > 200
    bench.close()


KEY, OTHER_KEY = bytes(range(30)), bytes(range(30, 60))


def test_with_keys_an_authentic_packet_is_followed_at_once_and_a_forged_stream_never() -> None:
    bench = Bench(count=1)
    phone, forger = Phone(speech()), Phone(speech())
    context = SrtpContext(SdesKeys("AES_CM_128_HMAC_SHA1_80", OTHER_KEY, KEY))
    bench.call(0, phone, srtp=SrtpKeys("AES_CM_128_HMAC_SHA1_80", KEY, OTHER_KEY))
    for _ in range(50):
        phone.sock.sendto(context.protect(phone.packet()), phone.peer)
        bench.step(talk=False)
    lost_for(bench, phone, round(REBIND_S / 0.02) + 5)
    forger.peer, forger.sequence, forger.timestamp = phone.peer, phone.sequence, phone.timestamp
    for _ in range(20):
        forger.say()
        bench.step(talk=False)
    assert bench.plane.stats(0).remote == phone.sock.getsockname()
    after = moved(phone)
    after.sock.sendto(context.protect(after.packet()), phone.peer)
    bench.step(talk=False)
    stats = bench.plane.stats(0)
    assert stats.latched and stats.remote == after.sock.getsockname() and stats.rejected == 20
    after.sock.close()
    bench.close()


def test_with_keys_a_stranger_who_speaks_first_does_not_take_the_call() -> None:
    bench = Bench(count=1)
    phone, stranger = Phone(speech()), Phone(speech(), ssrc=0x6666)
    context = SrtpContext(SdesKeys("AES_CM_128_HMAC_SHA1_80", OTHER_KEY, KEY))
    bench.call(0, phone, srtp=SrtpKeys("AES_CM_128_HMAC_SHA1_80", KEY, OTHER_KEY))
    stranger.peer = phone.peer
    for _ in range(10):
        stranger.say()
        bench.step(talk=False)
    phone.sock.sendto(context.protect(phone.packet()), phone.peer)
    bench.step(talk=False)
    stats = bench.plane.stats(0)
    assert stats.remote == phone.sock.getsockname() and stats.latched and stats.packets_received == 1
    stranger.sock.close()
    bench.close()


def test_who_pauses_and_goes_on_as_another_stream_is_believed_at_his_address() -> None:
    latch = silent_latch()
    assert latch.admit(NAT, packet(7, b"next")) == [packet(7, b"next")]
    assert latch.latched and latch.remote == NAT


def test_a_re_invite_after_a_silence_lets_another_stream_come_from_elsewhere() -> None:
    latch = silent_latch()
    latch.point(PRIVATE)
    heard = [latch.admit(OTHER, packet(number, b"next")) for number in range(7, 10)]
    assert heard[:2] == [[], []] and len(heard[2] or []) == 3
    assert latch.latched and latch.remote == OTHER


@pytest.mark.parametrize("asked", [False, True], ids=["unasked", "re-INVITE"])
def test_a_phone_that_is_silent_and_goes_on_with_a_new_stream_is_heard(asked: bool) -> None:
    bench = Bench(count=1)
    phone = Phone((steady_noise(4.0) * 32_767).astype(np.int16))
    bench.call(0, phone)
    bench.run(50)
    for _ in range(round(REBIND_S / 0.02) + 5):
        bench.step(talk=False)
    phone.ssrc, phone.sequence, phone.timestamp = 0x7777, 40_000, 5
    if asked:
        bench.plane.change_rtp(0, bench.media(phone))
    before = bench.plane.stats(0).packets_received
    bench.run(50)
    stats = bench.plane.stats(0)
    assert stats.packets_received >= before + 49 and stats.latched
    assert stats.remote == phone.sock.getsockname()
    bench.close()
