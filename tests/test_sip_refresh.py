"""Session timers, both sides and both roles (RFC 4028)."""

import pytest

from sip.events import CallConfirmed, CallEnded, CallOffered
from sip.message import Request, Response
from sip.refresh import parse_session_expires
from sip.settings import AgentSettings
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
    respond,
)

TIMER = "Supported: timer\r\n"


def accepted(extra: str, settings: AgentSettings | None = None) -> tuple[Script, Response]:
    peer = Script(Agent(settings))
    peer.deliver(request(extra=extra))
    peer.agent.ua.accept(peer.agent.one(CallOffered).call, OURS, peer.now)
    answer = peer.response()
    peer.deliver(request("ACK", branch="z9hG4bK-a", to_tag=answer.to.tag or "", body=None))
    return peer, answer


@pytest.mark.parametrize(
    ("extra", "agreed", "required"),
    [
        (TIMER + "Session-Expires: 600;refresher=uac\r\n", "600;refresher=uac", True),
        (TIMER + "x: 600 ; refresher=uas\r\n", "600;refresher=uas", False),
        (TIMER + "Session-Expires: 600\r\n", "600;refresher=uac", True),
        (TIMER, "1800;refresher=uac", True),
        ("Session-Expires: 600\r\n", "600;refresher=uas", False),
        ("", "1800;refresher=uas", False),
        (TIMER + "Min-SE: 3600\r\n", "3600;refresher=uac", True),
    ],
)
def test_the_interval_and_the_refresher_are_agreed(extra: str, agreed: str, required: bool) -> None:
    _, answer = accepted(extra)
    assert answer.headers.get("session-expires") == agreed
    assert ("timer" in answer.headers.tokens("require")) is required


def test_without_a_wish_on_either_side_there_is_no_timer() -> None:
    _, answer = accepted("", AgentSettings(session_expires_s=0))
    assert answer.headers.get("session-expires") is None


def test_an_interval_below_our_minimum_is_422_with_the_minimum() -> None:
    peer = Script(Agent())
    peer.deliver(request(extra=TIMER + "Session-Expires: 60\r\n"))
    answer = peer.response()
    assert (answer.code, answer.headers.get("min-se")) == (422, "90") and not peer.agent.kinds()
    for bad in ("x", "-5", "99999999999"):
        peer.deliver(request(branch=f"z9hG4bK{bad}", call_id=bad, extra=f"Session-Expires: {bad}\r\n"))
        assert peer.response().code == 400


def test_a_caller_who_should_refresh_and_does_not_is_hung_up() -> None:
    peer, _ = accepted(TIMER + "Session-Expires: 90;refresher=uac\r\n")
    peer.wait(59)
    assert not peer.agent.of(CallEnded)
    peer.wait(3)
    assert [m.method for m in peer.take() if isinstance(m, Request)] == ["BYE", "BYE", "BYE"]
    assert (peer.agent.one(CallEnded).by, peer.agent.one(CallEnded).code) == ("timeout", 408)


@pytest.mark.parametrize("method", ["INVITE", "UPDATE"])
def test_a_refresh_of_the_caller_keeps_the_call(method: str) -> None:
    peer, answer = accepted(TIMER + "Session-Expires: 90;refresher=uac\r\n")
    for number in range(2, 7):
        peer.wait(45)
        peer.deliver(
            request(method, branch=f"z9hG4bK-{number}", to_tag=answer.to.tag or "", cseq=number,
                    extra=TIMER + "Session-Expires: 90;refresher=uac\r\n")
        )  # fmt: skip
        assert peer.response().headers.get("session-expires") == "90;refresher=uac"
        if method == "INVITE":
            peer.deliver(
                request(
                    "ACK", branch=f"z9hG4bK-a{number}", to_tag=answer.to.tag or "", cseq=number, body=None
                )
            )
    assert not peer.agent.of(CallEnded) and peer.agent.kinds() == ["CallOffered", "CallConfirmed"]


@pytest.mark.parametrize(("allow", "method"), [("Allow: UPDATE, INVITE\r\n", "UPDATE"), ("", "INVITE")])
def test_we_refresh_at_half_time_by_update_where_the_peer_takes_it(allow: str, method: str) -> None:
    peer, call, tag = answered_call(extra=TIMER + allow + "Session-Expires: 200;refresher=uas\r\n")
    for _ in range(3):
        before = peer.now
        refresh = peer.wait_for(method, 101)
        assert peer.now - before == pytest.approx(100, abs=1)
        assert refresh.headers.get("session-expires") == "200;refresher=uac" and refresh.from_.tag == tag
        body = OFFER if method == "INVITE" else b""
        peer.deliver(respond(refresh, 200, body=body, extra="Session-Expires: 200;refresher=uac\r\n"))
        peer.take()
    assert peer.agent.kinds() == ["CallOffered", "CallConfirmed"]
    del call


def test_a_refresh_that_nobody_answers_ends_the_call() -> None:
    peer, _, _ = answered_call(extra=TIMER + "Allow: UPDATE\r\nSession-Expires: 200;refresher=uas\r\n")
    peer.wait(100 + 33)
    assert peer.agent.one(CallEnded).by == "timeout"
    assert any(isinstance(m, Request) and m.method == "BYE" for m in peer.take())


def test_our_own_call_asks_for_a_timer_and_refreshes() -> None:
    peer, _, invite = placed_call(
        extra="Session-Expires: 300;refresher=uac\r\nRequire: timer\r\nAllow: UPDATE\r\n"
    )
    assert invite.headers.get("session-expires") == "1800" and invite.headers.get("min-se") == "90"
    assert "timer" in invite.headers.tokens("supported")
    assert peer.wait_for("UPDATE", 151).headers.get("session-expires") == "300;refresher=uac"


def test_a_422_raises_our_interval_in_a_new_invite() -> None:
    peer = Script(Agent(AgentSettings(session_expires_s=100)))
    peer.agent.ua.invite("sip:bob@198.51.100.20:5070", OURS, peer.now)
    first = peer.request("INVITE")
    peer.deliver(respond(first, 422, extra="Min-SE: 500\r\n"))
    second = next(m for m in peer.take() if isinstance(m, Request) and m.method == "INVITE")
    assert (second.headers.get("session-expires"), second.headers.get("min-se")) == ("500", "500")
    assert second.call_id == first.call_id and second.cseq.number == 2
    peer.deliver(respond(second, 422, extra="Min-SE: 500\r\n"))
    assert peer.agent.one(CallEnded).code == 422


def test_two_agents_keep_a_call_for_hours() -> None:
    wire, a, b = pair(AgentSettings(session_expires_s=200), AgentSettings())
    call = a.ua.invite("sip:bob@198.51.100.20:5070", OURS, 0.0)
    wire.run(1)
    b.ua.accept(b.one(CallOffered).call, THEIRS, wire.now)
    wire.run(7_200)
    assert b.one(CallConfirmed) and not a.of(CallEnded) and not b.of(CallEnded)
    assert 60 < wire.seen.count("UPDATE") < 80
    a.ua.hang_up(call, wire.now)
    wire.run(60)
    assert b.one(CallEnded).by == "peer"


def test_session_expires_is_parsed_as_written() -> None:
    assert parse_session_expires("90;refresher=UAS;x=y") == (90, "uas")
    assert parse_session_expires(" 90 ") == (90, None)
