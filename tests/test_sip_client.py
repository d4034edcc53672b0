"""Calls we place: answers, challenges, CANCEL races, forks, lost messages; time as an argument."""

import pytest

from sip.agent import CallStateError
from sip.auth import parse_digest
from sip.events import CallAnswered, CallConfirmed, CallEnded, CallOffered, CallRinging, EarlyMediaStarted
from sip.message import Request, Response
from sip.settings import AgentSettings, Credentials, Destination
from tests.sip_wire import (
    OFFER,
    OURS,
    THEIRS,
    Agent,
    Script,
    forgotten,
    pair,
    placed_call,
    request,
    requests,
    respond,
)

BOB = "sip:bob@198.51.100.20:5070"


def placed(settings: AgentSettings | None = None, **options: object) -> tuple[Script, str, Request]:
    peer = Script(Agent(settings))
    call = peer.agent.ua.invite(BOB, OURS, peer.now, **options)  # type: ignore[arg-type]
    return peer, call, peer.request("INVITE")


def test_an_invite_says_who_calls_and_offers_audio() -> None:
    peer, _, invite = placed(caller="sip:me@ours", display_name='A "b"', headers=(("X-Id", "7"),))
    assert invite.uri == BOB and invite.headers.get("to") == f"<{BOB}>"
    assert (invite.from_.uri, invite.from_.display_name) == ("sip:me@ours", 'A "b"')
    assert invite.headers.get("contact") == "<sip:moshi@192.0.2.10:5060>"
    assert invite.headers.get("x-id") == "7" and b"m=audio 40000 RTP/AVP 0 8 101" in invite.body
    assert peer.raw[0][2] == Destination("198.51.100.20", 5070, "udp")


def test_a_bad_uri_or_header_is_refused_before_anything_is_sent() -> None:
    agent = Agent().ua
    for uri, headers in (("mailto:a@b", ()), ("nonsense", ()), (BOB, (("X", "a\r\nb: c"),))):
        with pytest.raises(ValueError):
            agent.invite(uri, OURS, 0.0, headers=headers)
    assert agent.datagrams_to_send(0.0) == [] and agent.call_count == 0


def test_an_unanswered_invite_is_resent_seven_times_in_32_s() -> None:
    peer, _, _ = placed()
    peer.wait(60)
    times = [at for at, data, _ in peer.raw if data.startswith(b"INVITE")]
    assert times == [0, 0.5, 1.5, 3.5, 7.5, 15.5, 31.5]
    ended = peer.agent.one(CallEnded)
    assert (ended.by, ended.code) == ("timeout", 408) and forgotten(peer)


def test_ringing_and_early_media_are_told_and_the_answer_acknowledged() -> None:
    peer, _, invite = placed()
    peer.deliver(respond(invite, 180))
    peer.deliver(respond(invite, 180))
    peer.deliver(respond(invite, 183, body=OFFER))
    peer.deliver(respond(invite, 200, body=OFFER))
    ack = peer.request("ACK")
    assert ack.uri == "sip:callee@198.51.100.20:5070" and ack.to.tag == "callee" and ack.cseq.number == 1
    assert ack.via.branch != invite.via.branch
    assert peer.agent.kinds() == ["CallRinging", "CallRinging", "EarlyMediaStarted", "CallAnswered"]
    assert peer.agent.one(EarlyMediaStarted).media == peer.agent.one(CallAnswered).media


def test_a_retransmitted_200_is_acknowledged_again_and_told_once() -> None:
    peer, _, invite = placed_call()
    for _ in range(3):
        peer.deliver(respond(invite, 200, body=OFFER))
    assert len(requests(peer, "ACK")) == 3 and len(peer.agent.of(CallAnswered)) == 1


def test_a_200_without_sdp_takes_the_early_answer() -> None:
    peer, _, invite = placed()
    peer.deliver(respond(invite, 183, body=OFFER))
    peer.deliver(respond(invite, 200))
    assert peer.agent.one(CallAnswered).media.remote_port == 50000


@pytest.mark.parametrize("body", [b"", b"rubbish", OFFER.replace(b" 0 8 101", b" 18")])
def test_a_200_that_does_not_answer_our_offer_is_acknowledged_and_hung_up(body: bytes) -> None:
    peer, _, invite = placed()
    peer.deliver(respond(invite, 200, body=body))
    assert [m.method for m in peer.take() if isinstance(m, Request)] == ["ACK", "BYE"]
    assert peer.agent.one(CallEnded).by == "error" and not peer.agent.of(CallAnswered)


@pytest.mark.parametrize("code", [302, 404, 480, 486, 500, 503, 600, 603])
def test_a_refusal_is_acknowledged_in_its_transaction_and_ends_the_call(code: int) -> None:
    peer, _, invite = placed()
    peer.deliver(respond(invite, code, extra="Contact: <sip:elsewhere@x>\r\nX-Why: y\r\n"))
    ack = peer.request("ACK")
    assert ack.via.branch == invite.via.branch and ack.uri == invite.uri
    ended = peer.agent.one(CallEnded)
    assert (ended.by, ended.code) == ("peer", code) and ("X-Why", "y") in ended.headers
    peer.deliver(respond(invite, code))  # our ACK was lost
    assert peer.request("ACK")
    peer.wait(40)
    assert forgotten(peer) and requests(peer, "INVITE") == []


def test_cancel_waits_for_a_provisional_answer() -> None:
    peer, call, invite = placed()
    peer.agent.ua.hang_up(call, peer.now, "Q.850;cause=16")
    assert peer.take() == [] and peer.agent.one(CallEnded).by == "us"
    peer.deliver(respond(invite, 100))
    cancel = peer.request("CANCEL")
    assert cancel.via == invite.via and cancel.cseq == (1, "CANCEL") and cancel.uri == invite.uri
    assert cancel.headers.get("reason") == "Q.850;cause=16" and cancel.to.tag is None
    peer.deliver(respond(cancel, 200))
    peer.deliver(respond(invite, 487))
    assert peer.request("ACK")
    peer.wait(40)
    assert forgotten(peer) and len(peer.agent.of(CallEnded)) == 1


def test_a_200_that_crosses_our_cancel_is_acknowledged_and_hung_up() -> None:
    peer, call, invite = placed()
    peer.deliver(respond(invite, 180))
    peer.agent.ua.hang_up(call, peer.now)
    cancel = peer.request("CANCEL")
    peer.deliver(respond(invite, 200, body=OFFER))
    sent = [m for m in peer.take() if isinstance(m, Request)]
    assert [m.method for m in sent] == ["ACK", "BYE"]
    peer.deliver(respond(cancel, 200))
    peer.deliver(respond(invite, 200, body=OFFER))
    assert [m.method for m in peer.take() if isinstance(m, Request)] == ["ACK"]
    peer.deliver(respond(sent[1], 200))
    peer.wait(40)
    assert forgotten(peer) and not peer.agent.of(CallAnswered)


def test_a_cancel_that_nobody_ends_is_given_up_after_64_t1() -> None:
    peer, call, invite = placed()
    peer.deliver(respond(invite, 180))
    peer.agent.ua.hang_up(call, peer.now)
    peer.deliver(respond(peer.request("CANCEL"), 200))
    peer.wait(40)
    assert forgotten(peer)


def test_a_phone_that_rings_for_ever_is_cancelled() -> None:
    peer, _, invite = placed(AgentSettings(ring_timeout_s=20))
    peer.deliver(respond(invite, 180))
    peer.wait(21)
    assert requests(peer, "CANCEL") and peer.agent.one(CallEnded).by == "timeout"


def test_of_two_forks_that_answer_the_second_is_hung_up() -> None:
    peer, _, invite = placed()
    for tag in ("one", "two"):
        peer.deliver(respond(invite, 180, tag=tag))
    peer.deliver(respond(invite, 200, tag="two", body=OFFER))
    assert peer.request("ACK").to.tag == "two"
    peer.deliver(respond(invite, 200, tag="one", body=OFFER))
    sent = [m for m in peer.take() if isinstance(m, Request)]
    assert [(m.method, m.to.tag) for m in sent] == [("ACK", "one"), ("BYE", "one")]
    assert len(peer.agent.of(CallAnswered)) == 1 and not peer.agent.of(CallEnded)
    peer.deliver(request("BYE", to_tag=invite.from_.tag or "", from_tag="two", call_id=invite.call_id))
    assert peer.response().code == 200 and peer.agent.one(CallEnded).by == "peer"


def test_the_route_set_of_an_answer_is_reversed() -> None:
    routes = "Record-Route: <sip:198.51.100.9;lr>, <sip:198.51.100.8;lr>\r\n"
    peer, call, _ = placed_call(extra=routes)
    peer.agent.ua.hang_up(call, peer.now)
    bye = peer.request("BYE")
    assert bye.headers.get_list("route") == ["<sip:198.51.100.8;lr>", "<sip:198.51.100.9;lr>"]
    assert peer.raw[-1][2][0] == "198.51.100.8" and bye.cseq.number == 2


CHALLENGE = 'Digest realm="pbx", nonce="n1", qop="auth", algorithm={}, opaque="o"'


@pytest.mark.parametrize("algorithm", ["MD5", "SHA-256"])
@pytest.mark.parametrize(("code", "header"), [(401, "WWW-Authenticate"), (407, "Proxy-Authenticate")])
def test_a_challenge_is_answered_once(code: int, header: str, algorithm: str) -> None:
    peer, _, invite = placed(credentials=Credentials("bob", "zanzibar"))
    challenge = f"{header}: {CHALLENGE.format(algorithm)}\r\n"
    peer.deliver(respond(invite, code, extra=challenge))
    sent = [m for m in peer.take() if isinstance(m, Request)]
    assert [m.method for m in sent] == ["ACK", "INVITE"]
    again = sent[1]
    assert again.cseq.number == 2 and again.call_id == invite.call_id and again.from_.tag == invite.from_.tag
    assert again.via.branch != invite.via.branch and again.body == invite.body
    name = "authorization" if code == 401 else "proxy-authorization"
    digest = parse_digest(again.headers.get(name) or "")
    assert (digest["username"], digest["uri"], digest["nc"]) == ("bob", BOB, "00000001")
    peer.deliver(respond(again, 200, body=OFFER))
    ack = peer.request("ACK")
    assert ack.cseq.number == 2 and ack.headers.get(name) == again.headers.get(name)


def test_wrong_credentials_are_not_tried_twice_but_a_stale_nonce_is() -> None:
    peer, _, invite = placed(credentials=Credentials("bob", "wrong"))
    challenge = f"WWW-Authenticate: {CHALLENGE.format('MD5')}"
    peer.deliver(respond(invite, 401, extra=challenge + "\r\n"))
    second = requests(peer, "INVITE")[0]
    peer.deliver(respond(second, 401, extra=challenge.replace("n1", "n2") + ", stale=true\r\n"))
    third = requests(peer, "INVITE")[0]
    assert parse_digest(third.headers.get("authorization") or "")["nonce"] == "n2"
    assert len(third.headers.get_all("authorization")) == 1
    peer.deliver(respond(third, 401, extra=challenge + "\r\n"))
    assert requests(peer, "INVITE") == [] and peer.agent.one(CallEnded).code == 401


def test_a_challenge_without_credentials_ends_the_call() -> None:
    peer, _, invite = placed()
    peer.deliver(respond(invite, 407, extra=f"Proxy-Authenticate: {CHALLENGE.format('MD5')}\r\n"))
    assert peer.agent.one(CallEnded).code == 407


@pytest.mark.parametrize(
    "challenge",
    [
        'Basic realm="x"',
        "Digest",
        'Digest realm="x", nonce="',
        'Digest realm="x"',
        'Digest realm="x", nonce="y", algorithm=ROT13',
    ],
)
def test_a_challenge_we_cannot_answer_ends_the_call(challenge: str) -> None:
    peer, _, invite = placed(credentials=Credentials("a", "b"))
    peer.deliver(respond(invite, 401, extra=f"WWW-Authenticate: {challenge}\r\n"))
    assert requests(peer, "INVITE") == [] and peer.agent.one(CallEnded).code == 401


def test_an_unsendable_invite_ends_the_call_at_once() -> None:
    peer, _, _ = placed()
    peer.agent.ua.send_failed(peer.raw[0][2], 0.1)
    peer.collect()
    assert (peer.agent.one(CallEnded).by, peer.agent.one(CallEnded).code) == ("error", 503)
    assert forgotten(peer)


@pytest.mark.parametrize("seed", range(12))
def test_a_whole_call_survives_any_quarter_of_its_datagrams_lost(seed: int) -> None:
    """RFC 3261's retransmissions in both directions: at 25 % loss every call still comes up and ends."""
    import random

    rng = random.Random(seed)
    wire, a, b = pair()
    wire.lose = lambda data, number: rng.random() < 0.25
    call = a.ua.invite(BOB, OURS, 0.0)
    wire.run(12)
    theirs = b.one(CallOffered).call
    b.ua.ring(theirs, wire.now)
    wire.run(1)
    b.ua.accept(theirs, THEIRS, wire.now)
    wire.run(20)
    assert a.one(CallAnswered).call == call and b.one(CallConfirmed)
    a.ua.hang_up(call, wire.now)
    wire.run(70)
    assert a.one(CallEnded).by == "us" and b.one(CallEnded).by == "peer"
    for agent in (a, b):
        core = agent.ua._core
        assert not (core.servers or core.clients or agent.ua._calls.by_dialog or len(core.alarms))


def test_one_call_each_message_of_it_lost_once() -> None:
    """RFC 3665's successful call with every single datagram dropped in turn."""
    for lost in range(1, 12):
        wire, a, b = pair()
        wire.lose = lambda data, number, lost=lost: number == lost  # type: ignore[misc]
        call = a.ua.invite(BOB, OURS, 0.0)
        wire.run(2)
        theirs = b.one(CallOffered).call
        b.ua.ring(theirs, wire.now)
        wire.run(1)
        b.ua.accept(theirs, THEIRS, wire.now)
        wire.run(5)
        b.ua.hang_up(theirs, wire.now)
        wire.run(70)
        assert a.one(CallAnswered).call == call and b.one(CallConfirmed), lost
        assert a.one(CallEnded).by == "peer" and b.one(CallEnded).by == "us", lost


def test_ringing_is_told_before_the_answer() -> None:
    peer, _, invite = placed()
    peer.deliver(respond(invite, 180, reason="Ringing"))
    event = peer.agent.one(CallRinging)
    assert (event.code, event.reason) == (180, "Ringing")
    peer.deliver(respond(invite, 200, body=OFFER))
    assert isinstance(peer.agent.events[-1], CallAnswered) and isinstance(peer.take()[-1], Request | Response)


def test_a_call_that_is_not_up_cannot_be_changed() -> None:
    peer, call, _ = placed()
    for action in (peer.agent.ua.hold, peer.agent.ua.resume):
        with pytest.raises(CallStateError):
            action(call, 0.0)
    with pytest.raises(CallStateError):
        peer.agent.ua.accept(call, OURS, 0.0)
