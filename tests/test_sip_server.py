"""Calls that come in: every answer, retransmission and race from INVITE to BYE; time as an argument."""

import itertools

import pytest

from sip.agent import CallStateError
from sip.errors import PeerError
from sip.events import CallCancelled, CallConfirmed, CallEnded, CallOffered
from sip.message import Response
from sip.sdp import NoCommonCodec
from sip.settings import AgentSettings
from tests.sip_wire import OFFER, OURS, Agent, Script, answered_call, forgotten, offered, request


def test_an_invite_is_trying_at_once_and_offered_with_everything_it_says() -> None:
    peer, call = offered(data=request(extra="Diversion: <sip:x@y>;reason=no-answer\r\nX-Id: 7\r\n"))
    assert peer.codes() == [100]
    event = peer.agent.one(CallOffered)
    assert (event.call, event.request_uri) == (call, "sip:moshi@192.0.2.10:5060")
    assert (event.caller.user, event.caller.host, event.caller.display_name) == (
        "ann",
        "198.51.100.20",
        "Ann",
    )
    assert event.offer == OFFER and event.source == peer.address and event.transport == "udp"
    assert event.header("diversion") == "<sip:x@y>;reason=no-answer" and event.header("x-id") == "7"


def test_a_retransmitted_invite_gets_the_same_answer_and_makes_no_second_call() -> None:
    peer, call = offered()
    peer.take()
    peer.deliver(request())
    assert peer.codes() == [100]
    peer.agent.ua.ring(call, peer.now)
    peer.take()
    peer.deliver(request())
    assert peer.codes() == [180]
    peer.agent.ua.accept(call, OURS, peer.now)
    first = peer.response()
    peer.deliver(request())
    assert peer.response().to_bytes() == first.to_bytes()
    assert len(peer.agent.of(CallOffered)) == 1


def test_an_invite_sent_again_over_a_new_connection_is_answered_there() -> None:
    peer = Script(Agent())
    first, second, elsewhere = ("192.0.2.10", 4_001), ("192.0.2.10", 4_002), ("192.0.2.66", 4_003)
    for address in (first, second, elsewhere):
        peer.address = address
        peer.deliver(request(), "tcp")
    ports = [destination.port for _, _, destination in peer.raw]
    assert ports == [4_001, 4_002, 4_002], "nobody else gets what is not his"


def test_a_2xx_is_resent_until_its_ack() -> None:
    peer, call = offered()
    peer.agent.ua.accept(call, OURS, peer.now)
    peer.take()
    peer.wait(3.6)  # T1 doubling: 0.5, 1.5, 3.5 s
    sent = peer.take()
    assert [m.code for m in sent if isinstance(m, Response)] == [200, 200, 200]
    peer.deliver(request("ACK", branch="z9hG4bK-a", to_tag=sent[0].to.tag or "", body=None))
    peer.wait(30)
    assert peer.take() == []
    assert peer.agent.one(CallConfirmed).media.codec == "PCMU"


def test_a_call_whose_ack_is_lost_gets_bye_after_64_t1() -> None:
    peer, call = offered()
    peer.agent.ua.accept(call, OURS, peer.now)
    peer.wait(31.9)
    assert not peer.agent.of(CallEnded)
    peer.take()
    peer.wait(0.2)
    assert peer.request("BYE").call_id == "call-1@peer"
    assert (peer.agent.one(CallEnded).by, peer.agent.one(CallEnded).code) == ("timeout", 408)
    peer.wait(40)
    assert forgotten(peer)


def test_cancel_gets_200_and_the_invite_487() -> None:
    peer, call = offered()
    peer.take()
    peer.deliver(request("CANCEL", extra="Reason: SIP;cause=200\r\n"))
    answers = [m for m in peer.take() if isinstance(m, Response)]
    assert [(m.code, m.cseq.method) for m in answers] == [(200, "CANCEL"), (487, "INVITE")]
    assert answers[0].to.tag == answers[1].to.tag != None  # noqa: E711
    assert peer.agent.one(CallCancelled).reason == "SIP;cause=200"
    assert peer.agent.kinds() == ["CallOffered", "CallCancelled", "CallEnded"]
    with pytest.raises(CallStateError):
        peer.agent.ua.accept(call, OURS, peer.now)
    peer.deliver(request("ACK", to_tag=answers[1].to.tag or "", body=None))
    peer.wait(60)
    assert forgotten(peer)


def test_the_487_is_resent_until_its_ack_and_no_longer_than_64_t1() -> None:
    peer, _ = offered()
    peer.deliver(request("CANCEL"))
    peer.take()
    peer.wait(100)
    times = [at for at, data, _ in peer.raw if b" 487 " in data[:20]]
    assert [round(b - a, 1) for a, b in itertools.pairwise(times)] == [0.5, 1, 2] + [4] * 7
    assert forgotten(peer)


def test_cancel_after_the_200_gets_200_and_has_no_effect() -> None:
    peer, _call, tag = answered_call()
    peer.deliver(request("CANCEL"))
    assert [(m.code, m.cseq.method) for m in peer.take() if isinstance(m, Response)] == [(200, "CANCEL")]
    assert not peer.agent.of(CallCancelled)
    peer.deliver(request("BYE", branch="z9hG4bK-b", to_tag=tag, cseq=2))
    assert peer.response().code == 200


def test_cancel_of_nothing_is_481() -> None:
    peer = Script(Agent())
    peer.deliver(request("CANCEL"))
    assert peer.response().code == 481


def test_cancel_on_the_heels_of_its_invite_ends_the_call_before_the_owner_looks() -> None:
    peer = Script(Agent())
    peer.agent.ua.receive_datagram(request(), peer.address, 0.0)
    peer.agent.ua.receive_datagram(request("CANCEL"), peer.address, 0.0)
    peer.collect()
    assert peer.agent.kinds() == ["CallOffered", "CallCancelled", "CallEnded"]
    peer.agent.ua.hang_up(peer.agent.events[0].call, 0.0)  # type: ignore[union-attr]


def test_bye_ends_the_call_once_and_its_retransmission_is_answered() -> None:
    peer, _, tag = answered_call()
    bye = request("BYE", branch="z9hG4bK-b", to_tag=tag, cseq=2, extra="Reason: Q.850;cause=16\r\n")
    peer.deliver(bye)
    peer.deliver(bye)
    assert peer.codes() == [200, 200]
    ended = peer.agent.one(CallEnded)
    assert (ended.by, ended.code, ended.reason) == ("peer", 200, "Q.850;cause=16")
    peer.wait(60)
    assert forgotten(peer)


def test_bye_before_the_ack_ends_an_accepted_call() -> None:
    peer, call = offered()
    peer.agent.ua.accept(call, OURS, peer.now)
    tag = peer.response().to.tag or ""
    peer.deliver(request("BYE", branch="z9hG4bK-b", to_tag=tag, cseq=2))
    assert peer.response().code == 200
    peer.wait(60)
    assert peer.take() == [] and peer.agent.one(CallEnded).by == "peer" and forgotten(peer)


def test_bye_in_an_early_dialog_ends_the_invite_with_487() -> None:
    peer, call = offered()
    peer.agent.ua.ring(call, peer.now)
    tag = next(m.to.tag for m in peer.take() if isinstance(m, Response) and m.code == 180) or ""
    peer.deliver(request("BYE", branch="z9hG4bK-b", to_tag=tag, cseq=2))
    assert sorted(peer.codes()) == [200, 487]
    assert peer.agent.one(CallEnded).by == "peer"


def test_hang_up_before_the_ack_waits_for_it() -> None:
    peer, call = offered()
    peer.agent.ua.accept(call, OURS, peer.now)
    tag = peer.response().to.tag or ""
    peer.agent.ua.hang_up(call, peer.now, "Q.850;cause=16")
    assert peer.take() == [] and peer.agent.one(CallEnded).by == "us"
    peer.deliver(request("ACK", branch="z9hG4bK-a", to_tag=tag, body=None))
    assert peer.request("BYE").headers.get("reason") == "Q.850;cause=16"


def test_a_lost_bye_is_resent_and_given_up() -> None:
    peer, call, _ = answered_call()
    peer.agent.ua.hang_up(call, peer.now)
    peer.wait(80)
    byes = [at for at, data, _ in peer.raw if data.startswith(b"BYE")]
    assert len(byes) == 11 and byes[-1] - byes[0] < 32
    assert forgotten(peer)


def test_crossing_byes_are_both_answered() -> None:
    peer, call, tag = answered_call()
    peer.agent.ua.hang_up(call, peer.now)
    peer.request("BYE")
    peer.deliver(request("BYE", branch="z9hG4bK-b", to_tag=tag, cseq=2))
    assert peer.response().code == 200
    assert len(peer.agent.of(CallEnded)) == 1


@pytest.mark.parametrize("code", [480, 486, 488, 503, 603])
def test_a_refusal_is_sent_with_its_headers_and_ends_the_call(code: int) -> None:
    peer, call = offered()
    peer.agent.ua.refuse(call, code, peer.now, headers=(("X-Why", "because"),))
    answer = peer.response()
    assert answer.code == code and answer.headers.get("x-why") == "because"
    assert (answer.headers.get("retry-after") == "5") is (code == 503)
    ended = peer.agent.one(CallEnded)
    assert (ended.by, ended.code) == ("us", code)


def test_a_header_of_the_owner_cannot_break_out_of_its_line() -> None:
    peer, call = offered()
    for headers in ((("X", "a\r\nVia: b"),), (("X: y\r\nVia", "b"),)):
        with pytest.raises(ValueError):
            peer.agent.ua.refuse(call, 486, peer.now, headers=headers)
    with pytest.raises(ValueError):
        peer.agent.ua.refuse(call, 486, peer.now, reason="a\r\nb: c")


def test_an_unanswered_call_is_480_after_the_ring_time() -> None:
    peer, _ = offered(AgentSettings(ring_timeout_s=30))
    peer.wait(31)
    assert 480 in peer.codes() and peer.agent.one(CallEnded).by == "timeout"


def test_no_codec_in_common_leaves_the_owner_to_refuse_with_488() -> None:
    peer, call = offered(data=request(body=OFFER.replace(b" 0 8 101", b" 18 101")))
    with pytest.raises(NoCommonCodec) as caught:
        peer.agent.ua.accept(call, OURS, peer.now)
    peer.agent.ua.refuse(call, caught.value.code, peer.now)
    assert peer.response().code == 488


def test_a_delayed_offer_is_ours_in_the_200_and_answered_in_the_ack() -> None:
    peer, call = offered(data=request(body=None))
    assert peer.agent.one(CallOffered).offer is None
    assert peer.agent.ua.accept(call, OURS, peer.now) is None
    answer = peer.response()
    assert b"m=audio 40000 RTP/AVP 0 8 101" in answer.body
    ack = request("ACK", branch="z9hG4bK-a", to_tag=answer.to.tag or "", body=OFFER.replace(b" 0 8", b" 8"))
    peer.deliver(ack)
    media = peer.agent.one(CallConfirmed).media
    assert (media.codec, media.remote_host, media.remote_port) == ("PCMA", "198.51.100.20", 50000)


@pytest.mark.parametrize("body", [None, b"rubbish", OFFER.replace(b"audio 50000", b"audio 0")])
def test_a_delayed_offer_without_a_usable_answer_ends_the_call(body: bytes | None) -> None:
    peer, call = offered(data=request(body=None))
    peer.agent.ua.accept(call, OURS, peer.now)
    tag = peer.response().to.tag or ""
    peer.deliver(request("ACK", branch="z9hG4bK-a", to_tag=tag, body=body))
    assert peer.request("BYE") and peer.agent.one(CallEnded).by == "error"
    assert not peer.agent.of(CallConfirmed)


def test_sdp_inside_multipart_is_found() -> None:
    body = (b"--b\r\nContent-Type: application/isup;version=itu\r\n\r\n\x01\x02\r\n--b\r\n"
            b"Content-Type: application/sdp\r\n\r\n" + OFFER + b"\r\n--b--\r\n")  # fmt: skip
    peer, call = offered(data=request(body=body, extra="Content-Type: multipart/mixed;boundary=b\r\n"))
    assert peer.agent.one(CallOffered).offer == OFFER
    media = peer.agent.ua.accept(call, OURS, peer.now)
    assert media is not None and media.remote_port == 50000


def test_every_action_on_an_ended_call_says_so() -> None:
    peer, call, tag = answered_call()
    peer.deliver(request("BYE", branch="z9hG4bK-b", to_tag=tag, cseq=2))
    agent = peer.agent.ua
    for action in (
        lambda: agent.ring(call, 0.0),
        lambda: agent.accept(call, OURS, 0.0),
        lambda: agent.refuse(call, 486, 0.0),
        lambda: agent.hold(call, 0.0),
        lambda: agent.reinvite(call, OURS, 0.0),
    ):
        with pytest.raises(CallStateError):
            action()
    agent.hang_up(call, 0.0)


def test_the_owner_learns_of_a_broken_body_before_the_call_exists() -> None:
    peer, call = offered(data=request(body=b"v=0\r\nnot sdp"))
    with pytest.raises(PeerError) as caught:
        peer.agent.ua.accept(call, OURS, peer.now)
    assert caught.value.code == 400
