"""Changes in mid-call that the peer asks for, hold, codec, address; and keys that he presses by INFO."""

import pytest

from sip.events import CallConfirmed, CallEnded, CallHeld, CallResumed, DtmfReceived, MediaChanged
from sip.message import Request, Response
from tests.sip_wire import OFFER, answered_call, offered, request, requests


def reinvite(tag: str, cseq: int, body: bytes | None, method: str = "INVITE", extra: str = "") -> bytes:
    return request(method, branch=f"z9hG4bK-r{cseq}", to_tag=tag, cseq=cseq, body=body, extra=extra)


def ack(tag: str, cseq: int, body: bytes | None = None) -> bytes:
    return request("ACK", branch=f"z9hG4bK-a{cseq}", to_tag=tag, cseq=cseq, body=body)


HOLDS = [
    (OFFER + b"a=sendonly\r\n", b"a=recvonly"),
    (OFFER + b"a=inactive\r\n", b"a=inactive"),
    (OFFER.replace(b"c=IN IP4 198.51.100.20", b"c=IN IP4 0.0.0.0"), b"a=recvonly"),
]


@pytest.mark.parametrize(("hold", "direction"), HOLDS)
@pytest.mark.parametrize("method", ["INVITE", "UPDATE"])
def test_hold_and_resume_five_times(hold: bytes, direction: bytes, method: str) -> None:
    peer, _, tag = answered_call()
    cseq = 1
    for _ in range(5):
        for body, line in ((hold, direction), (OFFER, b"a=sendrecv")):
            cseq += 1
            peer.deliver(reinvite(tag, cseq, body, method))
            answer = peer.response()
            assert answer.code == 200 and line in answer.body
            if method == "INVITE":
                peer.deliver(ack(tag, cseq))
    assert len(peer.agent.of(CallHeld)) == len(peer.agent.of(CallResumed)) == 5
    assert not peer.agent.of(MediaChanged) and not peer.agent.of(CallEnded)


def test_codec_and_address_may_change_in_mid_call() -> None:
    peer, _, tag = answered_call()
    peer.deliver(
        reinvite(tag, 2, OFFER.replace(b" 0 8 101", b" 8").replace(b"198.51.100.20", b"203.0.113.77"))
    )
    assert b"m=audio 40000 RTP/AVP 8\r\n" in peer.response().body
    media = peer.agent.one(MediaChanged).media
    assert (media.codec, media.remote_host, media.dtmf_payload_type) == ("PCMA", "203.0.113.77", None)


def test_our_sdp_version_grows_only_with_a_change() -> None:
    peer, _, tag = answered_call()

    def origin(cseq: int, body: bytes) -> list[str]:
        peer.deliver(reinvite(tag, cseq, body))
        answer = peer.response()
        peer.deliver(ack(tag, cseq))
        return answer.body.split(b"\r\n")[1].decode().split()[1:3]

    first, same, changed = origin(2, OFFER), origin(3, OFFER), origin(4, OFFER + b"a=sendonly\r\n")
    assert first == same and changed[0] == same[0] and int(changed[1]) == int(same[1]) + 1


def test_a_reinvite_that_does_not_fit_is_488_and_leaves_the_call_as_it_was() -> None:
    peer, call, tag = answered_call()
    for cseq, body in ((2, OFFER.replace(b" 0 8 101", b" 18")), (3, OFFER.replace(b"RTP/AVP", b"RTP/SAVP"))):
        peer.deliver(reinvite(tag, cseq, body))
        assert peer.response().code == 488
        peer.deliver(request("ACK", branch=f"z9hG4bK-r{cseq}", to_tag=tag, cseq=cseq, body=None))
    peer.deliver(reinvite(tag, 4, b"v=0\r\nrubbish"))
    assert peer.response().code == 400
    assert peer.agent.ua._calls.find(call).exchange.agreed == peer.agent.one(CallConfirmed).media
    assert not peer.agent.of(MediaChanged) and not peer.agent.of(CallEnded)


def test_a_reinvite_without_sdp_gets_our_offer_and_the_answer_comes_with_the_ack() -> None:
    peer, _, tag = answered_call()
    peer.deliver(reinvite(tag, 2, None))
    answer = peer.response()
    assert answer.code == 200 and b"m=audio 40000 RTP/AVP 0 8 101" in answer.body
    peer.deliver(ack(tag, 2, OFFER.replace(b" 0 8 101", b" 8 101")))
    assert peer.agent.one(MediaChanged).media.codec == "PCMA"


def test_an_update_without_sdp_is_a_refresh() -> None:
    peer, _, tag = answered_call()
    peer.deliver(reinvite(tag, 2, None, "UPDATE"))
    answer = peer.response()
    assert answer.code == 200 and answer.body == b""


def test_an_old_cseq_is_500() -> None:
    peer, _, tag = answered_call()
    peer.deliver(reinvite(tag, 5, OFFER, "UPDATE"))
    peer.deliver(reinvite(tag, 4, OFFER, "UPDATE"))
    assert peer.codes() == [200, 500]


def test_a_reinvite_while_ours_is_open_is_491() -> None:
    peer, call, tag = answered_call()
    peer.agent.ua.hold(call, peer.now)
    ours = peer.request("INVITE")
    for cseq, method in ((2, "INVITE"), (3, "UPDATE")):
        peer.deliver(reinvite(tag, cseq, OFFER, method))
        assert peer.response().code == 491
    assert ours.headers.get(
        "to",
    ) and not peer.agent.of(CallEnded)


def test_a_request_before_our_final_answer_is_500_with_retry_after() -> None:
    peer, call = offered()
    peer.agent.ua.ring(call, peer.now)
    tag = next(m.to.tag for m in peer.take() if isinstance(m, Response) and m.code == 180) or ""
    for cseq, method in ((2, "INVITE"), (3, "UPDATE")):
        peer.deliver(reinvite(tag, cseq, OFFER, method))
        answer = peer.response()
        assert answer.code == 500 and 0 <= int(answer.headers.get("retry-after") or -1) <= 10


@pytest.mark.parametrize("offer", [OFFER, None])
def test_our_change_waits_for_the_ack_of_theirs(offer: bytes | None) -> None:
    peer, call, tag = answered_call()
    peer.deliver(reinvite(tag, 2, offer))
    peer.agent.ua.hold(call, peer.now)
    peer.wait(0.4)
    assert not requests(peer, "INVITE"), "an INVITE is under way in the other direction (RFC 3261 14.1)"
    peer.deliver(ack(tag, 2, None if offer else OFFER))
    assert b"a=sendonly" in peer.request("INVITE").body


def test_a_reinvite_moves_the_remote_target() -> None:
    peer, call, tag = answered_call()
    moved = reinvite(tag, 2, OFFER).replace(b"<sip:ann@198.51.100.20:5070>", b"<sip:ann@198.51.100.20:5099>")
    peer.deliver(moved)
    peer.deliver(ack(tag, 2))
    peer.take()
    peer.agent.ua.hang_up(call, peer.now)
    assert peer.request("BYE").uri == "sip:ann@198.51.100.20:5099"


def test_a_lost_ack_of_a_reinvite_ends_the_call() -> None:
    peer, _, tag = answered_call()
    peer.deliver(reinvite(tag, 2, OFFER))
    peer.take()
    peer.wait(33)
    assert any(isinstance(m, Request) and m.method == "BYE" for m in peer.take())
    assert peer.agent.one(CallEnded).by == "timeout"


@pytest.mark.parametrize(
    ("kind", "body", "digit", "duration"),
    [
        ("application/dtmf-relay", b"Signal=5\r\nDuration=250\r\n", "5", 250),
        ("application/dtmf-relay", b"Signal= #\nDuration= 100", "#", 100),
        ("application/dtmf-relay", b"Signal=11\r\n", "#", 160),
        ("application/dtmf", b"*", "*", 160),
        ("application/dtmf", b"d\r\n", "D", 160),
    ],
)
def test_a_digit_by_info_is_heard_once(kind: str, body: bytes, digit: str, duration: int) -> None:
    peer, _, tag = answered_call()
    info = request(
        "INFO", branch="z9hG4bK-i", to_tag=tag, cseq=2, body=body, extra=f"Content-Type: {kind}\r\n"
    )
    peer.deliver(info)
    peer.deliver(info)
    assert peer.codes() == [200, 200]
    event = peer.agent.one(DtmfReceived)
    assert (event.digit, event.duration_ms) == (digit, duration)


@pytest.mark.parametrize(
    ("extra", "body", "code"),
    [
        ("Content-Type: application/dtmf-relay\r\n", b"Duration=5", 400),
        ("Content-Type: application/dtmf\r\n", b"55", 400),
        ("Content-Type: text/plain\r\n", b"5", 415),
        ("Info-Package: foo\r\nContent-Type: application/dtmf\r\n", b"5", 469),
        ("", None, 200),
    ],
)
def test_an_info_without_a_digit_gets_its_answer(extra: str, body: bytes | None, code: int) -> None:
    peer, _, tag = answered_call()
    peer.deliver(request("INFO", branch="z9hG4bK-i", to_tag=tag, cseq=2, body=body, extra=extra))
    assert peer.response().code == code and not peer.agent.of(DtmfReceived)
