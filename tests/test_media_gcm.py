"""A call keyed by AES-GCM (RFC 7714): two stacks agree in SDP, and each hears the other."""

from __future__ import annotations

import base64
import re

import numpy as np
import pytest

from gateway.legs.sip_leg import rtp_media
from gateway.media import g711
from sip.sdes import KEY_BYTES, SrtpKeys
from sip.sdp import LocalMedia, NoCommonCodec, accept_answer, answer, offer
from sip.srtp import SrtpContext
from tests.audio import align, steady_noise
from tests.phone import Bench, Phone, speech

GCM = ["AEAD_AES_128_GCM", "AEAD_AES_256_GCM"]


def keyed_by(suite: str) -> tuple[bytes, LocalMedia]:
    """An offer of this suite alone."""
    key = base64.b64encode(bytes(range(KEY_BYTES[suite]))).decode()
    plain = offer(LocalMedia("127.0.0.1", 5_000)).replace(b"RTP/AVP", b"RTP/SAVP")
    return plain + f"a=crypto:1 {suite} inline:{key}\r\n".encode(), LocalMedia(
        "127.0.0.1", 4_000, srtp="accept"
    )


@pytest.mark.parametrize("suite", GCM)
def test_a_gcm_call_is_agreed_and_heard_both_ways(suite: str) -> None:
    offered, ours = keyed_by(suite)
    outcome = answer(offered, ours)
    agreed = outcome.media.srtp
    assert agreed is not None and agreed.suite == suite and f"a=crypto:1 {suite} ".encode() in outcome.answer
    bench, phone = Bench(count=1), Phone((steady_noise(8.0) * 32_767).astype(np.int16))
    phone.context = SrtpContext(SrtpKeys(suite, agreed.receive, agreed.send))
    media = rtp_media(outcome.media, 77)
    bench.call(0, phone, srtp=media.srtp, payload_type=0)
    bench.run(300)
    stats = bench.plane.stats(0)
    assert stats.rejected == 0 and stats.lost == 0 and len(phone.heard) > 290
    second = slice(24_000, 40_000)
    came, said = phone.heard_pcm()[second], g711.decode(phone.codes, 0)[second]
    assert align(came.astype(np.float64), said.astype(np.float64), 4_000).correlation > 0.99
    forged = Phone(speech())
    forged.peer = phone.peer
    phone.sock.sendto(forged.packet(), phone.peer)
    bench.step()
    assert bench.plane.stats(0).rejected == 1
    bench.close()
    forged.sock.close()


@pytest.mark.parametrize("suite", GCM)
def test_a_gcm_key_that_is_too_short_or_a_suite_that_was_not_offered_is_refused(suite: str) -> None:
    offered, ours = keyed_by(suite)
    with pytest.raises(NoCommonCodec):
        answer(re.sub(rb"inline:\S{8}", b"inline:", offered), ours)
    mine = LocalMedia("127.0.0.1", 4_000, srtp="require")
    answered = answer(offer(mine), ours).answer
    assert accept_answer(offer(mine), answered, mine).srtp is not None
    with pytest.raises(NoCommonCodec):
        accept_answer(
            offer(mine),
            answered.replace(b"crypto:1 AES_CM_128_HMAC_SHA1_80", b"crypto:1 " + suite.encode()),
            mine,
        )
