"""Inquiry: one question to name servers, whom to ask when; and what is known of answers and servers since
(RFC 1035 §7, 2308). No sockets and no clock: `now` is an argument, in seconds."""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from typing import Generic, TypeVar

from sip.dns_message import Answer, MalformedDns, build_query, is_cut, parse_answer
from sip.events import Address

STEP_S = 0.7
"""After so long without an answer the next server is asked as well, or the same again: datagrams get lost."""
GIVE_UP_S = 2.0
"""All servers together; a caller waits for it."""
SILENCE_S = 30.0
"""How long a question that nobody answered is not asked again (RFC 2308 §7 allows five minutes)."""
REST_S = 60.0
"""How long a server that was silent while another answered is asked last."""
MAX_KEEP_S = 3_600.0
MAX_EMPTY_S = 300.0
MAX_KNOWN = 1_024
T = TypeVar("T")


class Inquiry:
    """Until `done`: ask server_to_ask() as long as it names one, hand over what comes, and come back at
    get_timer()."""

    def __init__(self, name: str, kind: int, number: int, servers: Sequence[Address], now: float) -> None:
        """`servers` in order. Raises UnicodeError or ValueError for a name that DNS cannot hold."""
        self.query = build_query(number, name, kind)
        self.answer: Answer | None = None
        """None when done: nobody could tell."""
        self.done = not servers
        self._number, self._kind = number, kind
        self._servers = list(servers)
        """Those that may still answer; the next to be asked comes first."""
        self._asked: dict[Address, float] = {}
        """When first."""
        self._next, self._ends = now, now + GIVE_UP_S

    def server_to_ask(self, now: float) -> Address | None:
        """Who is to be asked now, if anybody is."""
        self.done = self.done or now >= self._ends
        if self.done or now < self._next:
            return None
        server = self._servers.pop(0)
        self._servers.append(server)
        self._asked.setdefault(server, now)
        self._next = now + STEP_S
        return server

    def get_timer(self) -> float:
        """When server_to_ask() is to be called again at the latest."""
        return min(self._next, self._ends)

    def receive(self, data: bytes, server: Address, now: float) -> bool:
        """What a server said; True: it was cut short, the whole is to be asked for over TCP. What is no
        answer to our question changes nothing."""
        if is_cut(data, self._number):
            return not self.done
        try:
            answer = parse_answer(data, self._number, self._kind)
        except MalformedDns:
            return False
        if answer.refused:
            self.server_failed(server, now)
        elif not self.done:
            self.answer, self.done = answer, True
            self._asked.pop(server, None)
        return False

    def server_failed(self, server: Address, now: float) -> None:
        """It cannot be reached, or could not tell: the next one is asked at once."""
        if server in self._servers and not self.done:
            self._servers.remove(server)
            self._next = now
            self.done = not self._servers

    def silent(self, now: float) -> list[Address]:
        """Servers that another had to stand in for."""
        if self.answer is None:
            return []
        return [server for server, asked in self._asked.items() if now - asked >= STEP_S]


class Servers:
    """Name servers in the order in which to ask them."""

    def __init__(self, servers: Sequence[Address]) -> None:
        self._servers = list(servers)
        self._resting: dict[Address, float] = {}

    def in_order(self, now: float) -> list[Address]:
        return sorted(self._servers, key=lambda server: self._resting.get(server, now) > now)

    def rest(self, silent: Sequence[Address], now: float) -> None:
        """Ask these last for a while."""
        self._resting |= dict.fromkeys(silent, now + REST_S)


class Known(Generic[T]):
    """What was answered, for as long as it holds."""

    def __init__(self) -> None:
        self._kept: dict[Hashable, tuple[float, T]] = {}

    def get(self, question: Hashable, now: float) -> T | None:
        until, answer = self._kept.get(question, (now, None))
        return answer if until > now else None

    def keep(self, question: Hashable, answer: T, keep_s: float, now: float) -> None:
        if keep_s <= 0:
            return
        if len(self._kept) >= MAX_KNOWN:
            self._kept.clear()
        self._kept[question] = (now + keep_s, answer)


def kept_s(answer: Answer | None) -> float:
    """How long an answer, or None for silence, is believed here."""
    if answer is None:
        return SILENCE_S
    return min(answer.keep_s, MAX_KEEP_S if answer.records else MAX_EMPTY_S)
