"""Provisional answers that must arrive (RFC 3262), on both sides; early media."""

import pytest

from sip.events import CallAnswered, CallConfirmed, CallEnded, CallOffered, CallRinging, EarlyMediaStarted
from sip.message import Request, Response
from tests.sip_wire import OFFER, OURS, THEIRS, Agent, Script, forgotten, pair, request, respond

BOB = "sip:bob@198.51.100.20:5070"


def offered(extra: str, body: bytes | None = OFFER) -> tuple[Script, str]:
    peer = Script(Agent())
    peer.deliver(request(extra=extra, body=body))
    peer.take()
    return peer, peer.agent.one(CallOffered).call


def prack(answer: Response, body: bytes | None = None, rseq: int | None = None, branch: str = "p") -> bytes:
    number = answer.headers.get("rseq") if rseq is None else rseq
    return request(
        "PRACK", branch=f"z9hG4bK-{branch}", to_tag=answer.to.tag or "", cseq=2, body=body,
        extra=f"RAck: {number} 1 INVITE\r\n",
    )  # fmt: skip


def test_a_required_reliable_180_is_resent_until_its_prack() -> None:
    peer, call = offered("Require: 100rel\r\n")
    peer.agent.ua.ring(call, peer.now)
    ringing = peer.response()
    assert ringing.code == 180 and ringing.headers.tokens("require") == {"100rel"}
    peer.wait(3.6)
    assert [code for code in peer.codes() if code == 180] == [180] * 3
    peer.deliver(prack(ringing))
    assert peer.response().code == 200
    peer.wait(20)
    assert peer.take() == []


def test_without_100rel_or_without_media_a_180_is_not_reliable() -> None:
    for extra, media in (("", OURS), ("", None), ("Supported: 100rel\r\n", None)):
        peer, call = offered(extra)
        peer.agent.ua.ring(call, peer.now, media)
        assert peer.response().headers.get("rseq") is None


def test_early_media_is_answered_in_a_183_and_the_200_repeats_it() -> None:
    peer, call = offered("Supported: 100rel\r\n")
    early = peer.agent.ua.ring(call, peer.now, OURS)
    progress = peer.response()
    assert progress.code == 183 and progress.headers.get("rseq") and early is not None
    assert peer.agent.ua.accept(call, OURS, peer.now) == early
    assert peer.codes() == []  # the 200 may not overtake what is not acknowledged (§3)
    peer.deliver(prack(progress))
    sent = [m for m in peer.take() if isinstance(m, Response)]
    assert [(m.code, m.cseq.method) for m in sent] == [(200, "INVITE"), (200, "PRACK")]
    assert sent[0].body == progress.body
    peer.deliver(request("ACK", branch="z9hG4bK-a", to_tag=progress.to.tag or "", body=None))
    assert peer.agent.one(CallConfirmed).media == early


def test_a_delayed_offer_may_be_settled_by_183_and_prack() -> None:
    peer, call = offered("Require: 100rel\r\n", body=None)
    assert peer.agent.ua.ring(call, peer.now, OURS) is None
    progress = peer.response()
    assert b"m=audio 40000" in progress.body
    peer.deliver(prack(progress, OFFER.replace(b" 0 8 101", b" 8")))
    assert peer.response().code == 200
    media = peer.agent.ua.accept(call, OURS, peer.now)
    assert media is not None and media.codec == "PCMA"


@pytest.mark.parametrize("rack", ["1 1 INVITE", "{rseq} 9 INVITE", "{rseq} 1 BYE", "rubbish", ""])
def test_a_prack_of_nothing_is_481(rack: str) -> None:
    peer, call = offered("Require: 100rel\r\n")
    peer.agent.ua.ring(call, peer.now)
    ringing = peer.response()
    wrong = rack.format(rseq=ringing.headers.get("rseq"))
    data = prack(ringing).replace(
        f"RAck: {ringing.headers.get('rseq')} 1 INVITE".encode(), b"RAck: " + wrong.encode()
    )
    peer.deliver(data)
    assert peer.response().code == 481


def test_the_second_reliable_answer_waits_for_the_first_prack() -> None:
    peer, call = offered("Require: 100rel\r\n")
    peer.agent.ua.ring(call, peer.now)
    first = peer.response()
    peer.agent.ua.ring(call, peer.now, OURS)
    assert peer.take() == []
    peer.deliver(prack(first))
    sent = [m for m in peer.take() if isinstance(m, Response)]
    second = next(m for m in sent if m.code == 183)
    assert int(second.headers.get("rseq") or 0) == int(first.headers.get("rseq") or 0) + 1


def test_without_a_prack_the_invite_fails() -> None:
    peer, call = offered("Require: 100rel\r\n")
    peer.agent.ua.ring(call, peer.now)
    peer.wait(33)
    assert 504 in peer.codes() and peer.agent.one(CallEnded).by == "timeout"
    peer.wait(70)
    assert forgotten(peer)


def test_a_cancel_stops_the_repeats() -> None:
    peer, call = offered("Require: 100rel\r\n")
    peer.agent.ua.ring(call, peer.now)
    peer.deliver(request("CANCEL"))
    peer.take()
    peer.wait(20)
    assert 180 not in peer.codes()


def test_we_prack_what_is_reliable_once_and_in_order() -> None:
    peer = Script(Agent())
    peer.agent.ua.invite(BOB, OURS, peer.now)
    invite = peer.request("INVITE")
    assert "100rel" in invite.headers.tokens("supported")

    def progress(rseq: int) -> list[Request]:
        peer.deliver(respond(invite, 183, body=OFFER, extra=f"Require: 100rel\r\nRSeq: {rseq}\r\n"))
        return [m for m in peer.take() if isinstance(m, Request)]

    first = progress(10)
    assert [m.method for m in first] == ["PRACK"] and first[0].headers.get("rack") == "10 1 INVITE"
    assert first[0].to.tag == "callee" and first[0].cseq.number == 2
    peer.deliver(respond(first[0], 200))
    assert progress(10) == [] and progress(12) == []
    assert progress(11)[0].headers.get("rack") == "11 1 INVITE"
    assert len(peer.agent.of(EarlyMediaStarted)) == 1
    peer.deliver(respond(invite, 200, body=OFFER))
    assert peer.request("ACK").cseq.number == 1
    peer.agent.ua.hang_up(peer.agent.one(CallAnswered).call, peer.now)
    assert peer.request("BYE").cseq.number == 4  # the PRACKs took 2 and 3


def test_two_agents_exchange_early_media_reliably_under_loss() -> None:
    wire, a, b = pair()
    wire.lose = lambda data, number: number in (2, 3, 4, 6)
    a.ua.invite(BOB, OURS, 0.0)
    wire.run(2)
    theirs = b.one(CallOffered).call
    b.ua.ring(theirs, wire.now, THEIRS)
    b.ua.accept(theirs, THEIRS, wire.now)
    wire.run(10)
    assert a.one(EarlyMediaStarted).media == a.one(CallAnswered).media
    assert a.one(CallRinging).code == 183 and b.one(CallConfirmed)


@pytest.mark.parametrize("ending", ["hang up", "cancel", "bye", "silence"])
def test_a_call_that_ends_while_its_200_waits_for_a_prack_is_answered_all_the_same(ending: str) -> None:
    """Found by a fuzzer: the INVITE had stayed unanswered for ever."""
    peer, call = offered("Require: 100rel\r\n")
    peer.agent.ua.ring(call, peer.now)
    tag = peer.response().to.tag or ""
    peer.agent.ua.accept(call, OURS, peer.now)
    if ending == "hang up":
        peer.agent.ua.hang_up(call, peer.now)
    elif ending == "cancel":
        peer.deliver(request("CANCEL"))
    elif ending == "bye":
        peer.deliver(request("BYE", branch="z9hG4bK-bye", to_tag=tag, cseq=2))
    peer.wait(33)
    finals = {m.code for m in peer.take() if isinstance(m, Response) and m.cseq.method == "INVITE"} - {180}
    assert finals == {{"hang up": 480, "cancel": 487, "bye": 487, "silence": 504}[ending]}
    assert peer.agent.one(CallEnded).call == call
    peer.wait(100)
    assert not peer.agent.ua._core.servers


def test_an_update_without_a_body_is_taken_before_there_is_any_media() -> None:
    """Found by a fuzzer: INVITE without an offer, ringing, and a bare UPDATE (RFC 3311 §5.2)."""
    peer, call = offered("", body=None)
    peer.agent.ua.ring(call, peer.now)
    tag = peer.response().to.tag or ""
    peer.deliver(request("UPDATE", branch="z9hG4bK-u", to_tag=tag, cseq=2, body=None))
    assert peer.response().code == 200
    assert peer.agent.ua.accept(call, OURS, peer.now) is None
    assert peer.response().body
