"""Whom to ask when nobody answers, and how long an answer holds: by hand, second by second."""

import pytest

from sip.dns_message import SRV, Answer
from sip.events import Address
from sip.inquiry import (
    GIVE_UP_S,
    MAX_EMPTY_S,
    MAX_KEEP_S,
    MAX_KNOWN,
    REST_S,
    SILENCE_S,
    STEP_S,
    Inquiry,
    Known,
    Servers,
    kept_s,
)
from tests.dns_server import SRV_DATA, answer_to

A, B, C = ("192.0.2.1", 53), ("192.0.2.2", 53), ("192.0.2.3", 53)


def inquiry(*servers: Address, now: float = 0.0) -> Inquiry:
    return Inquiry("example.com", SRV, 7, servers, now)


def asked_until_done(asking: Inquiry) -> list[tuple[float, Address]]:
    """Everything that is sent while nobody answers, each with its time."""
    sent, now = [], 0.0
    while not asking.done:
        while (server := asking.server_to_ask(now)) is not None:
            sent.append((round(now, 3), server))
        now = asking.get_timer()
    return sent


def good(asking: Inquiry) -> bytes:
    return answer_to(asking.query, [(SRV, SRV_DATA)])


def test_silence_ends_after_the_same_time_with_one_server_or_three() -> None:
    one, three = inquiry(A), inquiry(A, B, C)
    assert asked_until_done(one) == [(0, A), (0.7, A), (1.4, A)]
    assert asked_until_done(three) == [(0, A), (0.7, B), (1.4, C)]
    for asking in (one, three):
        assert asking.answer is None and asking.get_timer() == GIVE_UP_S and asking.silent(2.0) == []
    assert inquiry().done and inquiry().answer is None


def test_the_first_answer_counts_whoever_gives_it() -> None:
    asking = inquiry(A, B)
    assert asking.server_to_ask(0) == A and asking.server_to_ask(0.1) is None
    assert asking.server_to_ask(STEP_S) == B
    assert asking.receive(good(asking), A, 0.8) is False
    assert asking.done and asking.answer is not None and len(asking.answer.records) == 1
    assert asking.silent(0.8) == [] and asking.server_to_ask(1.5) is None
    late = inquiry(A, B)
    assert (late.server_to_ask(0), late.server_to_ask(STEP_S)) == (A, B)
    late.receive(good(late), B, 0.8)
    assert late.silent(0.8) == [A]


def test_a_server_that_cannot_tell_or_be_reached_makes_way_at_once_and_is_not_asked_again() -> None:
    asking = inquiry(A, B, C)
    assert asking.server_to_ask(0) == A
    asking.receive(answer_to(asking.query, [], [], 2), A, 0.01)
    assert asking.server_to_ask(0.01) == B
    asking.server_failed(B, 0.02)
    assert [asking.server_to_ask(now) for now in (0.02, 0.72, 1.42)] == [C, C, C]
    asking.server_failed(C, 1.5)
    assert asking.done and asking.answer is None


def test_what_is_no_answer_to_the_question_changes_nothing() -> None:
    asking = inquiry(A)
    assert asking.server_to_ask(0) == A
    foreign = b"\0\x08" + good(asking)[2:]
    for data in (b"", foreign, good(asking)[:20], asking.query):
        assert asking.receive(data, A, 0.1) is False and not asking.done
    assert asking.get_timer() == STEP_S
    asking.receive(good(asking), A, 0.2)
    assert asking.answer is not None


def test_a_cut_answer_is_wanted_whole_however_little_of_it_came() -> None:
    asking = inquiry(A)
    asking.server_to_ask(0)
    cut = answer_to(asking.query, [(SRV, SRV_DATA)], (), 0x0200)
    for data in (cut, cut[:40], cut[:12]):
        assert asking.receive(data, A, 0.1) is True and not asking.done
    assert asking.receive(b"\0\x08" + cut[2:], A, 0.1) is False
    asking.receive(good(asking), A, 0.2)
    assert asking.done and asking.receive(cut, A, 0.3) is False


def test_a_server_that_was_silent_is_asked_last_for_a_while() -> None:
    servers = Servers([A, B, C])
    assert servers.in_order(0) == [A, B, C]
    servers.rest([A], 10.0)
    assert servers.in_order(10) == [B, C, A] == servers.in_order(9.9 + REST_S)
    assert servers.in_order(10 + REST_S) == [A, B, C]


@pytest.mark.parametrize(
    ("answer", "expected_s"),
    [
        (None, SILENCE_S),
        (Answer((), 0.0), 0.0),
        (Answer((), 20.0), 20.0),
        (Answer((), 86_400.0), MAX_EMPTY_S),
        (Answer(("a record",), 86_400.0), MAX_KEEP_S),  # type: ignore[arg-type]
    ],
)
def test_an_answer_is_believed_as_long_as_it_says_within_limits(
    answer: Answer | None, expected_s: float
) -> None:
    assert kept_s(answer) == expected_s
    known: Known[str] = Known()
    known.keep("question", "answer", kept_s(answer), 5.0)
    assert known.get("question", 5.0 + expected_s) is None
    assert (known.get("question", 4.9 + expected_s) == "answer") == (expected_s > 0)
    assert known.get("another", 5.0) is None


def test_what_is_known_is_bounded() -> None:
    known: Known[int] = Known()
    for number in range(3 * MAX_KNOWN):
        known.keep(number, number, 60.0, 0.0)
    found = sum(known.get(number, 1.0) == number for number in range(3 * MAX_KNOWN))
    assert 0 < found <= MAX_KNOWN and known.get(3 * MAX_KNOWN - 1, 1.0) is not None
