"""Whose packets a leg hears after a re-INVITE."""

from gateway.media.latch import CONSISTENT, Latch
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
