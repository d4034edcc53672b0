"""SRTP between two ends keyed by SDES: what one protects only the other can read, once."""

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sip.rtcp import ReceiverReport, build_rtcp
from sip.rtp import RtpPacket
from sip.sdes import KEY_BYTES, SrtpKeys
from sip.sdp import LocalMedia, accept_answer, answer, offer
from sip.srtp import BadSrtp, SrtpContext

SUITES = list(KEY_BYTES)


def two_ends(suite: str) -> tuple[SrtpContext, SrtpContext]:
    length = KEY_BYTES[suite]
    one, other = bytes(range(length)), bytes(range(100, 100 + length))
    return SrtpContext(SrtpKeys(suite, one, other)), SrtpContext(SrtpKeys(suite, other, one))


def packet(sequence: int) -> bytes:
    return RtpPacket(0, sequence % 65_536, sequence * 160 % 2**32, 9, b"speech" * 20).to_bytes()


@pytest.mark.parametrize("suite", SUITES)
def test_both_directions_are_read_by_the_other_end_alone(suite: str) -> None:
    a, b = two_ends(suite)
    for sender, receiver in ((a, b), (b, a)):
        for sequence in (65_534, 65_535, 65_536, 65_537):
            sealed = sender.protect(packet(sequence))
            assert b"speech" not in sealed and receiver.unprotect(sealed) == packet(sequence)
        report = build_rtcp([ReceiverReport(9)])
        assert receiver.unprotect_rtcp(sender.protect_rtcp(report)) == report


@pytest.mark.parametrize("suite", SUITES)
def test_a_replay_a_flipped_bit_and_a_stranger_are_refused(suite: str) -> None:
    a, b = two_ends(suite)
    sealed = a.protect(packet(1))
    assert b.unprotect(sealed) == packet(1)
    flipped = bytearray(a.protect(packet(2)))
    flipped[20] ^= 1
    stranger = SrtpContext(SrtpKeys(suite, b"x" * KEY_BYTES[suite], b"y" * KEY_BYTES[suite]))
    for bad in (sealed, bytes(flipped), packet(3), stranger.protect(packet(4))):
        with pytest.raises(BadSrtp):
            b.unprotect(bad)


@given(st.binary(max_size=60))
def test_garbage_is_refused(data: bytes) -> None:
    _, b = two_ends(SUITES[0])
    for unprotect in (b.unprotect, b.unprotect_rtcp):
        with pytest.raises(BadSrtp):
            unprotect(data)


def test_the_keys_of_an_offer_and_its_answer_fit() -> None:
    ours = replace(LocalMedia("192.0.2.1", 4000), srtp="require")
    body = offer(ours)
    outcome = answer(body, replace(LocalMedia("192.0.2.2", 5000), srtp="accept"))
    mine, theirs = accept_answer(body, outcome.answer, ours).srtp, outcome.media.srtp
    assert mine is not None and theirs is not None
    assert SrtpContext(theirs).unprotect(SrtpContext(mine).protect(packet(1))) == packet(1)
