"""The call flows of RFC 3665 between two agents of ours: the messages on the wire, one by one."""

import pytest

from sip.events import CallAnswered, CallEnded, CallOffered, MediaChanged
from sip.sdp import LocalMedia
from sip.settings import AgentSettings
from tests.sip_wire import OURS, PEER, THEIRS, US, Agent, Pair, pair

BOB = "sip:bob@198.51.100.20:5070"


def ringing(settings: AgentSettings | None = None) -> tuple[Pair, Agent, Agent, str, str]:
    wire, alice, bob = pair(settings)
    call = alice.ua.invite(BOB, OURS, 0.0)
    wire.run(0.1)
    theirs = bob.one(CallOffered).call
    bob.ua.ring(theirs, wire.now)
    wire.run(0.1)
    return wire, alice, bob, call, theirs


def answered() -> tuple[Pair, Agent, Agent, str, str]:
    wire, alice, bob, call, theirs = ringing()
    bob.ua.accept(theirs, THEIRS, wire.now)
    wire.run(0.1)
    wire.seen.clear()
    return wire, alice, bob, call, theirs


def test_3_1_session_establishment() -> None:
    wire, alice, bob, _, theirs = ringing()
    bob.ua.accept(theirs, THEIRS, wire.now)
    wire.run(0.1)
    bob.ua.hang_up(theirs, wire.now)
    wire.run(40)
    opening = ["INVITE", "SIP/2.0 100 Trying", "SIP/2.0 180 Ringing", "SIP/2.0 200 OK", "ACK"]
    assert wire.seen == [*opening, "BYE", "SIP/2.0 200 OK"]
    assert alice.kinds() == ["CallRinging", "CallAnswered", "CallEnded"]
    assert bob.kinds() == ["CallOffered", "CallConfirmed", "CallEnded"]


def test_3_7_session_with_reinvite_and_a_new_address() -> None:
    wire, alice, bob, call, _ = answered()
    moved = LocalMedia("192.0.2.77", 41_000)
    alice.ua.reinvite(call, moved, wire.now)
    wire.run(1)
    assert wire.seen == ["INVITE", "SIP/2.0 200 OK", "ACK"]
    media = bob.one(MediaChanged).media
    assert (media.remote_host, media.remote_port) == ("192.0.2.77", 41_000)
    assert not alice.of(MediaChanged) or alice.one(MediaChanged).media.remote_host == "198.51.100.20"


def test_3_8_unsuccessful_no_answer() -> None:
    wire, alice, bob, call, _ = ringing()
    wire.seen.clear()
    alice.ua.hang_up(call, wire.now)
    wire.run(40)
    assert wire.seen == ["CANCEL", "SIP/2.0 200 OK", "SIP/2.0 487 Request Terminated", "ACK"]
    assert bob.kinds()[-2:] == ["CallCancelled", "CallEnded"] and alice.one(CallEnded).by == "us"


@pytest.mark.parametrize(
    ("code", "phrase"), [(486, "Busy Here"), (480, "Temporarily Unavailable"), (603, "Decline")]
)
def test_3_9_and_3_11_unsuccessful_busy_and_unavailable(code: int, phrase: str) -> None:
    wire, alice, bob, _, theirs = ringing()
    wire.seen.clear()
    bob.ua.refuse(theirs, code, wire.now)
    wire.run(40)
    assert wire.seen == [f"SIP/2.0 {code} {phrase}", "ACK"]
    assert (alice.one(CallEnded).by, alice.one(CallEnded).code) == ("peer", code)


def test_3_10_unsuccessful_no_response() -> None:
    wire, alice, bob = pair()
    wire.lose = lambda data, number: True
    alice.ua.invite(BOB, OURS, 0.0)
    wire.run(40)
    assert wire.seen == ["INVITE"] * 7 and alice.one(CallEnded).code == 408 and bob.kinds() == []


def test_a_call_between_two_ipv6_agents() -> None:
    six, seven = ("2001:db8::1", 5060), ("2001:db8::2", 5070)
    alice, bob = Agent(None, six, 1), Agent(None, seven, 2)
    alice.ua.listen("udp", *US)
    bob.ua.listen("udp", *PEER)
    wire = Pair(alice, bob)
    call = alice.ua.invite("sip:bob@[2001:db8::2]:5070", LocalMedia("2001:db8::1", 4_000), 0.0)
    wire.run(0.1)
    bob.ua.accept(bob.one(CallOffered).call, LocalMedia("2001:db8::2", 5_000), wire.now)
    wire.run(0.1)
    assert alice.one(CallAnswered).media.remote_host == "2001:db8::2"
    dialog = alice.ua._calls.find(call).dialog
    assert dialog is not None and dialog.target == "sip:moshi@[2001:db8::2]:5070"
    alice.ua.hang_up(call, wire.now)
    wire.run(40)
    assert bob.one(CallEnded).by == "peer"


def test_an_answer_crossing_a_hang_up_is_ended_by_bye() -> None:
    wire, alice, bob, call, theirs = ringing()
    wire.seen.clear()
    alice.ua.hang_up(call, wire.now)
    bob.ua.accept(theirs, THEIRS, wire.now)
    wire.run(60)
    assert wire.seen[:2] == ["CANCEL", "SIP/2.0 200 OK"] and "SIP/2.0 487 Request Terminated" not in wire.seen
    assert wire.seen.count("ACK") >= 1 and wire.seen.count("BYE") == 1
    assert bob.of(CallEnded)[-1].by == "peer" and len(alice.of(CallEnded)) == 1


@pytest.mark.slow
def test_five_thousand_calls_leave_nothing_behind() -> None:
    """Every kind of end in turn; an hour of quiet later the agents hold as much as on the first day."""
    wire, alice, bob = pair()
    for number in range(5_000):
        call = alice.ua.invite(BOB, OURS, wire.now)
        wire.run(0.05)
        theirs = bob.events[-1].call  # type: ignore[union-attr]
        kind = number % 5
        if kind == 0:
            alice.ua.hang_up(call, wire.now)
        elif kind == 1:
            bob.ua.refuse(theirs, 486, wire.now)
        else:
            bob.ua.accept(theirs, THEIRS, wire.now)
            wire.run(0.05)
            (alice if kind == 2 else bob).ua.hang_up(call if kind == 2 else theirs, wire.now)
        wire.run(0.05)
        alice.events.clear()
        bob.events.clear()
        wire.seen.clear()
    wire.run(3_600)
    for agent in (alice, bob):
        core, calls = agent.ua._core, agent.ua._calls
        assert not (core.servers or core.clients or core._merging or calls.by_id or calls.by_dialog)
        assert len(core.alarms) == 0 and len(core.alarms._heap) == 0
