"""Whatever a peer sends, in whatever state a call is: the agent answers or counts, and nothing escapes."""

import contextlib

from hypothesis import given, settings
from hypothesis import strategies as st

from sip.agent import CallStateError
from sip.events import CallEnded, CallOffered
from sip.message import Request, Response
from sip.sdp import SdpError
from tests.sip_wire import OFFER, OURS, Agent, Script, answered_call, placed_call, request, respond

METHODS = ("INVITE", "UPDATE", "BYE", "ACK", "CANCEL", "INFO", "PRACK", "REFER", "NOTIFY", "OPTIONS", "X")
EXTRAS = (
    "",
    "Require: 100rel\r\n",
    "Supported: timer, 100rel\r\nSession-Expires: 100;refresher=uas\r\n",
    "Session-Expires: x\r\n",
    "RAck: 1 1 INVITE\r\n",
    "Replaces: call-1@peer;to-tag=a;from-tag=b\r\n",
    "Record-Route: <sip:198.51.100.1;lr>, <sip:x>\r\n",
    "Content-Type: multipart/mixed;boundary=x\r\n",
    "Event: refer\r\nSubscription-State: active\r\n",
    "Refer-To: <sip:a@b?Replaces=x>\r\n",
    "Accept: text/plain\r\n",
    'Authorization: Digest username="a"\r\n',
)
BODIES = (None, OFFER, OFFER + b"a=sendonly\r\n", b"rubbish", OFFER.replace(b"0 8 101", b"18"))
codes = st.sampled_from(
    [100, 180, 183, 200, 200, 202, 302, 401, 407, 408, 422, 481, 486, 487, 491, 500, 503, 603]
)


@st.composite
def damaged(draw: st.DrawFn, data: bytes) -> bytes:
    """The message as it is, most of the time; else with some of its bytes replaced."""
    if draw(st.integers(0, 3)):
        return data
    copy = bytearray(data)
    for _ in range(draw(st.integers(1, 4))):
        at = draw(st.integers(0, len(copy) - 1))
        new = draw(
            st.sampled_from([b"\x00", b"<", b">", b'"', b";", b",", b"\r\n", b"\xff", b" ", b"9" * 30])
        )
        copy[at : at + draw(st.integers(0, 3))] = new
    return bytes(copy)


@st.composite
def peers_request(draw: st.DrawFn, tag: str) -> bytes:
    return draw(
        damaged(
            request(
                draw(st.sampled_from(METHODS)),
                branch=f"z9hG4bK-{draw(st.integers(0, 5))}",
                to_tag=draw(st.sampled_from([tag, tag, "", "other"])),
                cseq=draw(st.integers(0, 6)),
                body=draw(st.sampled_from(BODIES)),
                extra=draw(st.sampled_from(EXTRAS)),
            )
        )
    )


def act(data: st.DataObject, peer: Script, call: str) -> None:
    """The owner does something, at a moment that may be the wrong one."""
    agent, now = peer.agent.ua, peer.now
    actions = (
        lambda: agent.ring(call, now),
        lambda: agent.ring(call, now, OURS),
        lambda: agent.accept(call, OURS, now),
        lambda: agent.refuse(call, 486, now),
        lambda: agent.hang_up(call, now),
        lambda: agent.hold(call, now),
        lambda: agent.resume(call, now),
        lambda: agent.transfer(call, "sip:x@192.0.2.99", now),
        lambda: agent.send_dtmf(call, "5", now),
    )
    with contextlib.suppress(CallStateError, SdpError):
        data.draw(st.sampled_from(actions))()
    peer.collect()


def finish(peer: Script) -> None:
    """However it went, an hour later no transaction is left, and each call has ended at most once."""
    for call in list(peer.agent.ua._calls.by_id):
        peer.agent.ua.hang_up(call, peer.now)
    peer.collect()
    peer.wait(400)
    core = peer.agent.ua._core
    assert not core.servers and not core.clients and not core._merging
    assert not peer.agent.ua._calls.by_id and not peer.agent.ua._calls.by_dialog and len(core.alarms) == 0
    ended = [event.call for event in peer.agent.of(CallEnded)]
    assert len(ended) == len(set(ended))


@settings(max_examples=60, deadline=None)
@given(st.data())
def test_a_call_that_came_in_survives_any_peer(data: st.DataObject) -> None:
    peer, call, tag = answered_call()
    for _ in range(data.draw(st.integers(1, 10))):
        if data.draw(st.integers(0, 3)):
            peer.deliver(data.draw(peers_request(tag)))
        else:
            act(data, peer, call)
        for sent in [m for m in peer.take() if isinstance(m, Request)][:3]:
            if sent.method != "ACK":
                body = data.draw(st.sampled_from([b"", OFFER]))
                peer.deliver(data.draw(damaged(respond(sent, data.draw(codes), body=body))))
        peer.wait(data.draw(st.sampled_from([0, 0, 1, 40])))
    finish(peer)


@settings(max_examples=60, deadline=None)
@given(st.data())
def test_an_offered_call_survives_any_peer(data: st.DataObject) -> None:
    peer = Script(Agent())
    peer.deliver(request(body=data.draw(st.sampled_from(BODIES)), extra=data.draw(st.sampled_from(EXTRAS))))
    offered = peer.agent.of(CallOffered)
    tag = next((m.to.tag for m in peer.take() if m.to.tag), "") or "none"
    for _ in range(data.draw(st.integers(1, 8))):
        if offered and data.draw(st.booleans()):
            act(data, peer, offered[0].call)
        else:
            peer.deliver(data.draw(peers_request(tag)))
        for sent in peer.take():
            if not isinstance(sent, Response) or sent.code < 300:  # a 400 echoes what was broken
                tag = sent.to.tag or tag
        peer.wait(data.draw(st.sampled_from([0, 1, 40, 200])))
    finish(peer)


@settings(max_examples=60, deadline=None)
@given(st.data())
def test_a_call_we_placed_survives_any_peer(data: st.DataObject) -> None:
    if data.draw(st.booleans()):
        peer, call, invite = placed_call()
    else:
        peer = Script(Agent())
        call = peer.agent.ua.invite("sip:bob@198.51.100.20:5070", OURS, peer.now)
        invite = peer.request("INVITE")
    extras = (
        "", "Contact: <<x\r\n", "Contact: <sip:a@b>, <sip:c@d>\r\n", "Require: 100rel\r\nRSeq: 1\r\n",
        "Record-Route: <x>\r\n", "Session-Expires: 100;refresher=uac\r\n", "Min-SE: 4000\r\n",
        'WWW-Authenticate: Digest realm="x", nonce="y"\r\n',
    )  # fmt: skip
    pending: list[Request] = [invite]
    for _ in range(data.draw(st.integers(1, 10))):
        if data.draw(st.integers(0, 3)):
            target = data.draw(st.sampled_from(pending[-4:]))
            tag = data.draw(st.sampled_from(["callee", "fork"]))
            body = data.draw(st.sampled_from([b"", OFFER, b"rubbish"]))
            extra = data.draw(st.sampled_from(extras))
            reply = respond(target, data.draw(codes), tag=tag, body=body, extra=extra)
            peer.deliver(data.draw(damaged(reply)))
        else:
            act(data, peer, call)
        pending += [m for m in peer.take() if isinstance(m, Request) and m.method != "ACK"]
        peer.wait(data.draw(st.sampled_from([0, 0, 1, 40])))
    finish(peer)
