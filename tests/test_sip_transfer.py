"""Transfers: ours by REFER, theirs declined or told, and calls that replace others (RFC 3515, 3891)."""

from urllib.parse import unquote

import pytest

from sip.agent import CallStateError
from sip.events import (
    CallEnded,
    CallOffered,
    TransferFailed,
    TransferProgressed,
    TransferRequested,
    TransferSucceeded,
)
from sip.message import Request
from sip.settings import AgentSettings
from tests.sip_wire import OFFER, OURS, PEER, THEIRS, US, Agent, Pair, Script, answered_call, request, respond


def referred(accept: bool = True) -> tuple[Script, str, str, Request]:
    peer, call, tag = answered_call()
    peer.agent.ua.transfer(call, "sip:+49301234@carrier.example", peer.now)
    refer = peer.request("REFER")
    if accept:
        peer.deliver(respond(refer, 202))
    return peer, call, tag, refer


ACTIVE = "active;expires=60"


def notify(tag: str, cseq: int, fragment: str, state: str = ACTIVE, event: str = "refer") -> bytes:
    body = fragment.encode()
    extra = f"Event: {event}\r\nSubscription-State: {state}\r\nContent-Type: message/sipfrag;version=2.0\r\n"
    head = request("NOTIFY", branch=f"z9hG4bK-n{cseq}", to_tag=tag, cseq=cseq, extra=extra)
    return head.replace(b"Content-Length: 0", b"Content-Length: %d" % len(body)) + body


def test_a_blind_transfer_is_followed_to_its_success() -> None:
    peer, call, tag, refer = referred()
    assert refer.headers.get("refer-to") == "<sip:+49301234@carrier.example>"
    assert refer.headers.get("referred-by") == "<sip:moshi@192.0.2.10>" and refer.headers.get("contact")
    for cseq, fragment in ((2, "SIP/2.0 100 Trying\r\n"), (3, "SIP/2.0 180 Ringing"), (4, "SIP/2.0 200 OK")):
        peer.deliver(notify(tag, cseq, fragment))
    assert [e.code for e in peer.agent.of(TransferProgressed)] == [100, 100, 180]
    assert peer.agent.one(TransferSucceeded).call == call
    assert any(isinstance(m, Request) and m.method == "BYE" for m in peer.take())
    assert peer.agent.kinds()[-2:] == ["TransferSucceeded", "CallEnded"]


@pytest.mark.parametrize("code", [403, 486, 603])
def test_a_refused_transfer_leaves_the_caller_with_us(code: int) -> None:
    peer, call, _, refer = referred(accept=False)
    peer.deliver(respond(refer, code))
    assert peer.agent.one(TransferFailed).code == code and not peer.agent.of(CallEnded)
    peer.agent.ua.transfer(call, "sip:x@y", peer.now)  # and may be tried again
    assert peer.request("REFER")


@pytest.mark.parametrize(
    ("fragment", "state", "code"),
    [
        ("SIP/2.0 486 Busy Here", "terminated;reason=noresource", 486),
        ("SIP/2.0 302 Moved", "active", 302),
        ("SIP/2.0 100 Trying", "terminated;reason=timeout", 408),
    ],
)
def test_a_transfer_that_fails_over_there_leaves_the_caller_with_us(
    fragment: str, state: str, code: int
) -> None:
    peer, _, tag, _ = referred()
    peer.deliver(notify(tag, 2, fragment, state))
    assert peer.response().code == 200
    assert peer.agent.one(TransferFailed).code == code and not peer.agent.of(CallEnded)
    peer.deliver(notify(tag, 3, "SIP/2.0 200 OK"))
    assert peer.response().code == 481 and not peer.agent.of(TransferSucceeded)


def test_silence_about_a_transfer_is_a_failure_in_the_end() -> None:
    peer, _, _, _ = referred()
    peer.wait(201)
    assert peer.agent.one(TransferFailed).code == 408 and not peer.agent.of(CallEnded)
    unanswered, _, _, _ = referred(accept=False)
    unanswered.wait(33)
    assert unanswered.agent.one(TransferFailed).code == 408


def test_a_peer_that_hangs_up_after_refer_ends_the_call_and_the_transfer() -> None:
    peer, _, tag, _ = referred()
    peer.deliver(request("BYE", branch="z9hG4bK-b", to_tag=tag, cseq=2))
    assert peer.agent.one(CallEnded).by == "peer" and not peer.agent.of(TransferFailed)
    peer.wait(300)
    assert not peer.agent.of(TransferFailed)


def test_notifies_that_say_nothing_get_their_answer() -> None:
    peer, _, tag, _ = referred()
    for cseq, fragment, event, code in ((2, "rubbish", "refer", 400), (3, "SIP/2.0 100 T", "presence", 489)):
        peer.take()
        peer.deliver(notify(tag, cseq, fragment, event=event))
        assert peer.response().code == code
    fresh, _, tag = answered_call()
    fresh.deliver(notify(tag, 2, "SIP/2.0 200 OK"))
    assert fresh.response().code == 481


def test_one_transfer_at_a_time_and_only_of_calls_that_are_up() -> None:
    peer, call, _, _ = referred()
    with pytest.raises(CallStateError):
        peer.agent.ua.transfer(call, "sip:x@y", peer.now)
    with pytest.raises(ValueError):
        peer.agent.ua.transfer(call, "nonsense", peer.now)


def test_a_peers_refer_is_declined_by_default() -> None:
    peer, _, tag = answered_call()
    peer.deliver(request("REFER", branch="z9hG4bK-r", to_tag=tag, cseq=2, extra="Refer-To: <sip:x@y>\r\n"))
    assert peer.response().code == 603 and not peer.agent.of(TransferRequested)


def test_where_refer_is_taken_the_owner_decides_and_reports() -> None:
    peer, call, tag = answered_call(AgentSettings(accept_refer=True))
    to = "<sip:x@y?Replaces=abc%40z%3Bto-tag%3D1%3Bfrom-tag%3D2&X=1>"
    peer.deliver(request("REFER", branch="z9hG4bK-r", to_tag=tag, cseq=2, extra=f"Refer-To: {to}\r\n"))
    sent = peer.take()
    assert sent[0].start_line() == "SIP/2.0 202 Accepted" and sent[0].headers.get("contact")
    trying = sent[1]
    assert (
        isinstance(trying, Request) and trying.method == "NOTIFY" and trying.body == b"SIP/2.0 100 Trying\r\n"
    )
    event = peer.agent.one(TransferRequested)
    assert (event.call, event.target, event.replaces) == (call, "sip:x@y", "abc@z;to-tag=1;from-tag=2")
    peer.agent.ua.report_transfer(call, 486, "Busy Here", peer.now)
    final = peer.request("NOTIFY")
    assert final.body == b"SIP/2.0 486 Busy Here\r\n"
    assert (final.headers.get("subscription-state") or "").startswith("terminated")


@pytest.mark.parametrize("extra", ["", "Refer-To: <sip:a@b>\r\nRefer-To: <sip:c@d>\r\n", "Refer-To: <<x\r\n"])
def test_a_refer_without_one_good_target_is_400(extra: str) -> None:
    peer, _, tag = answered_call(AgentSettings(accept_refer=True))
    peer.deliver(request("REFER", branch="z9hG4bK-r", to_tag=tag, cseq=2, extra=extra))
    assert peer.response().code == 400


def test_an_attended_transfer_names_the_other_call() -> None:
    peer, call, _ = answered_call()
    other = peer.agent.ua.invite("sip:desk@198.51.100.20:5070", OURS, peer.now)
    invite = peer.request("INVITE")
    peer.deliver(respond(invite, 200, tag="desk", body=OFFER))
    peer.take()
    peer.agent.ua.transfer_to_call(call, other, peer.now)
    refer = peer.request("REFER")
    target = (refer.headers.get("refer-to") or "")[1:-1]
    uri, _, headers = target.partition("?")
    assert uri == "sip:callee@198.51.100.20:5070"
    wanted = f"Replaces={invite.call_id};to-tag=desk;from-tag={invite.from_.tag}"
    assert unquote(headers) == wanted and ";" not in headers


def test_a_call_that_replaces_another_ends_it_once_it_is_up() -> None:
    """We call Bob; an INVITE with Replaces, as an attended transfer makes it, takes our place there."""
    us, bob = Agent(None, US, 1), Agent(None, PEER, 2)
    wire = Pair(us, bob)
    first = us.ua.invite("sip:bob@198.51.100.20:5070", OURS, 0.0)
    wire.run(0.5)
    theirs = bob.one(CallOffered).call
    bob.ua.accept(theirs, THEIRS, wire.now)
    wire.run(0.5)
    dialog = us.ua._calls.find(first).dialog
    assert dialog is not None
    replaces = f"{dialog.call_id};to-tag={dialog.remote_tag};from-tag={dialog.local_tag}"
    second = us.ua.invite("sip:bob@198.51.100.20:5070", OURS, wire.now, headers=(("Replaces", replaces),))
    wire.run(0.5)
    offer = bob.of(CallOffered)[1]
    assert offer.replaces == theirs
    bob.ua.accept(offer.call, THEIRS, wire.now)
    wire.run(1)
    assert [event.call for event in bob.of(CallEnded)] == [theirs]
    assert [event.call for event in us.of(CallEnded)] == [first] and us.ua._calls.find(second)


@pytest.mark.parametrize(
    ("replaces", "code"),
    [
        ("{id};to-tag={tag};from-tag=caller;early-only", 486),
        ("{id};to-tag={tag};from-tag=x", 481),
        ("{id};;", 400),
    ],
)
def test_what_may_not_be_replaced_is_not(replaces: str, code: int) -> None:
    peer, _, tag = answered_call()
    value = replaces.format(id="call-1@peer", tag=tag)
    peer.deliver(request(branch="z9hG4bK-2", call_id="second", extra=f"Replaces: {value}\r\n"))
    assert peer.response().code == code and not peer.agent.of(CallEnded)


def test_a_digit_goes_out_by_info() -> None:
    peer, call, _ = answered_call()
    peer.agent.ua.send_dtmf(call, "a", peer.now, 200)
    info = peer.request("INFO")
    assert info.body == b"Signal=A\r\nDuration=200\r\n"
    assert info.headers.get("content-type") == "application/dtmf-relay"
    with pytest.raises(ValueError):
        peer.agent.ua.send_dtmf(call, "x", peer.now)
