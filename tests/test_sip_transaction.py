"""The four machines of RFC 3261 §17 and RFC 6026, checked as tables and on the clock."""

import pytest

from sip.alarms import ROOMY, Alarms
from sip.message import Request, Response, parse_message
from sip.replies import reply
from sip.settings import Destination
from sip.transaction import (
    CLIENT,
    INVITE_CLIENT,
    INVITE_SERVER,
    SERVER,
    ClientTransaction,
    Rules,
    ServerTransaction,
)
from tests.sip_wire import request

TABLES = {"INVITE_CLIENT": INVITE_CLIENT, "CLIENT": CLIENT, "INVITE_SERVER": INVITE_SERVER, "SERVER": SERVER}
FIRST = {"INVITE_CLIENT": "calling", "CLIENT": "trying", "INVITE_SERVER": "proceeding", "SERVER": "trying"}


class Line:
    """A wire that remembers when what was sent; and a user that remembers what it heard."""

    def __init__(self) -> None:
        self.alarms = Alarms()
        self.t1 = 0.5
        self.now = 0.0
        self.sent: list[tuple[float, str]] = []
        self.heard: list[int] = []
        self.forgotten = 0

    def send(self, data: bytes, destination: Destination) -> None:
        self.sent.append(
            (self.now, parse_message(data).start_line().split(" ")[0 if data[:3] != b"SIP" else 1])
        )

    def on_response(self, response: Response, now: float) -> None:
        self.heard.append(response.code)

    def on_no_response(self, code: int, now: float) -> None:
        self.heard.append(-code)

    def forget(self) -> None:
        self.forgotten += 1

    def wait(self, seconds: float) -> None:
        until = self.now + seconds
        while (at := self.alarms.next_at()) is not None and at <= until:
            self.now = at
            self.alarms.run_due(at)
        self.now = until

    def client(self, method: str, transport: str = "udp") -> ClientTransaction:
        message = parse_message(request(method))
        assert isinstance(message, Request)
        made = ClientTransaction(self, message, Destination("h", 1, transport), self, self.forget)  # type: ignore[arg-type]
        made.start(self.now)
        return made

    def server(self, method: str, transport: str = "udp") -> ServerTransaction:
        message = parse_message(request(method))
        assert isinstance(message, Request)
        return ServerTransaction(self, message, Destination("h", 1, transport), self.forget)  # type: ignore[arg-type]

    def times(self, word: str) -> list[float]:
        return [round(at, 3) for at, what in self.sent if what == word]


def answer(transaction: ClientTransaction | ServerTransaction, code: int) -> Response:
    return reply(transaction.request, code, "tag")


@pytest.mark.parametrize("name", TABLES)
def test_every_state_can_be_reached_and_left(name: str) -> None:
    rules: Rules = TABLES[name]
    reached, new = {FIRST[name]}, {FIRST[name]}
    while new:
        new = {state for (old, _), (state, _) in rules.items() if old in reached} - reached
        reached |= new
    states = {state for state, _ in rules} | {"terminated"}
    assert reached == states
    for state in states - {"terminated"}:
        assert any(old == state and target != state for (old, _), (target, _) in rules.items()), state
        assert any(old == state and event in ("deadline", "unsendable", "send_error") for old, event in rules)


@pytest.mark.parametrize("name", TABLES)
def test_every_action_of_a_table_exists_and_an_end_is_an_end(name: str) -> None:
    machine = ClientTransaction if "CLIENT" in name else ServerTransaction
    for (_, event), (target, actions) in TABLES[name].items():
        assert all(hasattr(machine, "_" + action) for action in actions), event
        assert (target == "terminated") is ("end" in actions)


def test_timer_a_and_b_of_an_invite() -> None:
    line = Line()
    line.client("INVITE")
    line.wait(100)
    assert line.times("INVITE") == [0, 0.5, 1.5, 3.5, 7.5, 15.5, 31.5]
    assert line.heard == [-408] and line.forgotten == 1 and len(line.alarms) == 0


def test_timer_e_and_f_of_another_request() -> None:
    line = Line()
    line.client("OPTIONS")
    line.wait(100)
    assert line.times("OPTIONS") == [0, 0.5, 1.5, 3.5, 7.5, 11.5, 15.5, 19.5, 23.5, 27.5, 31.5]
    assert line.heard == [-408] and line.forgotten == 1


def test_after_a_provisional_answer_a_request_is_resent_every_t2_and_an_invite_not_at_all() -> None:
    line = Line()
    other = line.client("OPTIONS")
    line.wait(0.6)
    other.receive(answer(other, 100), line.now)
    line.wait(10)
    assert line.times("OPTIONS") == [0, 0.5, 4.6, 8.6]
    line = Line()
    invite = line.client("INVITE")
    invite.receive(answer(invite, 180), line.now)
    line.wait(1_000)
    assert line.times("INVITE") == [0] and line.forgotten == 0 and line.heard == [180]


@pytest.mark.parametrize(("transport", "lasts"), [("udp", 32), ("tcp", 0)])
def test_timer_d_keeps_a_refused_invite_to_acknowledge_repeats(transport: str, lasts: float) -> None:
    line = Line()
    invite = line.client("INVITE", transport)
    for _ in range(3):
        invite.receive(answer(invite, 486), line.now)
    assert line.heard == [486] and line.times("ACK") == [0, 0, 0]
    line.wait(lasts - 0.1 if lasts else 0)
    assert line.forgotten == (0 if lasts else 1)
    line.wait(0.2)
    assert line.forgotten == 1


def test_timer_m_lets_every_2xx_of_a_fork_through_for_64_t1() -> None:
    line = Line()
    invite = line.client("INVITE")
    for _ in range(3):
        invite.receive(answer(invite, 200), line.now)
        line.wait(10)
    assert line.heard == [200, 200, 200] and line.times("ACK") == []
    line.wait(3)
    assert line.forgotten == 1


@pytest.mark.parametrize(("transport", "lasts"), [("udp", 5), ("tcp", 0)])
def test_timer_k_swallows_late_answers(transport: str, lasts: float) -> None:
    line = Line()
    other = line.client("OPTIONS", transport)
    for _ in range(2):
        other.receive(answer(other, 200), line.now)
    assert line.heard == [200]
    line.wait(lasts + 0.1)
    assert line.forgotten == 1


def test_timer_g_h_and_i_of_a_refused_invite() -> None:
    line = Line()
    server = line.server("INVITE")
    server.respond(answer(server, 486), 0.0)
    line.wait(4)
    server.step("ack", line.now)
    line.wait(4.9)
    assert line.times("486") == [0, 0.5, 1.5, 3.5] and line.forgotten == 0
    line.wait(0.2)
    assert line.forgotten == 1
    line = Line()
    server = line.server("INVITE", "tcp")
    server.respond(answer(server, 486), 0.0)
    line.wait(33)
    assert line.times("486") == [0] and line.forgotten == 1


def test_timer_j_answers_repeats_for_64_t1_and_a_stream_needs_none() -> None:
    for transport, lasts in (("udp", 32), ("tcp", 0)):
        line = Line()
        server = line.server("OPTIONS", transport)
        assert not server.step("request", 0.0)
        server.respond(answer(server, 200), 0.0)
        server.step("request", 0.0)
        line.wait(lasts + 0.1)
        assert line.times("200") == [0, 0] and line.forgotten == 1


def test_nothing_follows_a_final_answer() -> None:
    line = Line()
    server = line.server("INVITE")
    for code in (180, 200, 486, 180):
        server.respond(answer(server, code), 0.0)
    assert [what for _, what in line.sent] == ["180", "200"]
    server.step("request", 0.0)
    assert line.sent[-1][1] == "200"


def test_alarms_ring_in_order_and_cancelled_ones_never() -> None:
    alarms, rung = Alarms(), []
    for at in (3.0, 1.0, 2.0):
        alarms.set(at, rung.append)
    alarms.set(1.5, rung.append).cancel()
    assert alarms.next_at() == 1.0 and len(alarms) == 3
    alarms.run_due(2.0)
    assert rung == [2.0, 2.0] and alarms.next_at() == 3.0


def test_alarms_that_were_cancelled_do_not_pile_up_until_their_time() -> None:
    alarms, rung = Alarms(), []
    for number in range(5_000):
        alarms.set(1_800.0 + number, lambda now: rung.append(-1)).cancel()
        if number % 100 == 0:
            alarms.set(float(number), rung.append)
    assert len(alarms) == 50 and len(alarms._heap) <= 2 * ROOMY
    alarms.run_due(10_000.0)
    assert rung == [10_000.0] * 50 and len(alarms) == 0
