"""Changes in mid-call that we ask for: hold and resume, refusals, both sides at once; time as an argument."""

import pytest

from sip.events import CallEnded, CallHeld, CallOffered, ChangeRefused, MediaChanged
from sip.message import Request
from tests.sip_wire import (
    OFFER,
    OURS,
    THEIRS,
    Agent,
    Script,
    answered_call,
    pair,
    placed_call,
    request,
    requests,
    respond,
)

BOB = "sip:bob@198.51.100.20:5070"


def test_hold_and_resume_are_ours_too() -> None:
    peer, call, _ = placed_call()
    for action, line, back, expected in (
        (peer.agent.ua.hold, b"a=sendonly", b"a=recvonly\r\n", "sendonly"),
        (peer.agent.ua.resume, b"a=sendrecv", b"a=sendrecv\r\n", "sendrecv"),
    ):
        action(call, peer.now)
        offer = peer.request("INVITE")
        assert line in offer.body and offer.to.tag == "callee"
        peer.deliver(respond(offer, 200, body=OFFER + back))
        assert peer.request("ACK").cseq.number == offer.cseq.number
        assert peer.agent.of(MediaChanged)[-1].media.direction == expected
    assert not peer.agent.of(CallHeld)


def test_a_refused_change_leaves_the_call_as_it_was() -> None:
    peer, call, _ = placed_call()
    before = peer.agent.ua._calls.find(call).exchange.agreed
    peer.agent.ua.hold(call, peer.now)
    peer.deliver(respond(peer.request("INVITE"), 488))
    assert (peer.agent.one(ChangeRefused).code, peer.agent.of(CallEnded)) == (488, [])
    assert peer.agent.ua._calls.find(call).exchange.agreed == before
    peer.take()
    peer.agent.ua.resume(call, peer.now)
    assert b"a=sendrecv" in peer.request("INVITE").body


def test_after_491_the_change_is_tried_again_when_the_rfc_says() -> None:
    for peer, call, low, high in ((*placed_call()[:2], 2.1, 4.0), (*answered_call()[:2], 0.0, 2.0)):
        peer.agent.ua.hold(call, peer.now)
        peer.deliver(respond(peer.request("INVITE"), 491))
        peer.take()
        start = peer.now
        peer.wait(low - 0.01)
        assert requests(peer, "INVITE") == []
        peer.wait(high - low + 0.02)
        again = [m for m in peer.take() if isinstance(m, Request) and m.method == "INVITE"]
        assert again and b"a=sendonly" in again[0].body and peer.now - start <= high + 0.02


def test_two_agents_that_hold_each_other_at_once_both_succeed_in_the_end() -> None:
    wire, a, b = pair()
    ours = a.ua.invite(BOB, OURS, 0.0)
    wire.run(0.1)
    theirs = b.one(CallOffered).call
    b.ua.accept(theirs, THEIRS, wire.now)
    wire.run(0.1)
    a.ua.hold(ours, wire.now)
    b.ua.hold(theirs, wire.now)
    wire.run(10)
    assert wire.seen.count("SIP/2.0 491 Request Pending") == 2
    for agent, call in ((a, ours), (b, theirs)):
        agreed = agent.ua._calls.find(call).exchange.agreed
        assert agreed is not None and agreed.direction == "inactive"
        assert not agent.of(CallEnded) and not agent.of(ChangeRefused)


@pytest.mark.parametrize("code", [408, 481])
def test_a_dialog_that_is_dead_over_there_ends_here(code: int) -> None:
    peer, call, _ = placed_call()
    peer.agent.ua.hold(call, peer.now)
    peer.deliver(respond(peer.request("INVITE"), code))
    assert requests(peer, "BYE") and peer.agent.one(CallEnded).code == code


def test_a_wish_during_a_change_waits_its_turn() -> None:
    peer, call, _ = placed_call()
    peer.agent.ua.hold(call, peer.now)
    first = peer.request("INVITE")
    peer.agent.ua.resume(call, peer.now)
    assert peer.take() == []
    peer.deliver(respond(first, 200, body=OFFER + b"a=recvonly\r\n"))
    sent = [m for m in peer.take() if isinstance(m, Request)]
    assert [m.method for m in sent] == ["ACK", "INVITE"] and b"a=sendrecv" in sent[1].body


def test_an_offer_in_mid_call_keeps_every_line_in_its_place_and_every_number() -> None:
    """RFC 3264 §8: lines may not vanish, and a payload type may not come to mean something else."""
    body = OFFER.replace(b"m=audio", b"m=video 7000 RTP/AVP 96\r\na=rtpmap:96 H264/90000\r\nm=audio", 1)
    body = body.replace(b" 101", b" 97").replace(b":101 ", b":97 ")
    peer = Script(Agent())
    peer.deliver(request(body=body))
    call = peer.agent.one(CallOffered).call
    peer.agent.ua.accept(call, OURS, peer.now)
    tag = peer.response().to.tag or ""
    peer.deliver(request("ACK", branch="z9hG4bK-a", to_tag=tag, body=None))
    peer.agent.ua.hold(call, peer.now)
    offer = peer.request("INVITE")
    lines = [line for line in offer.body.split(b"\r\n") if line.startswith(b"m=")]
    assert lines == [b"m=video 0 RTP/AVP 96", b"m=audio 40000 RTP/AVP 0 8 97"]
    answer = body.replace(b"video 7000", b"video 0") + b"a=recvonly\r\n"
    peer.deliver(respond(offer, 200, body=answer))
    media = peer.agent.one(MediaChanged).media
    assert (media.direction, media.dtmf_payload_type, media.remote_port) == ("sendonly", 97, 50000)
