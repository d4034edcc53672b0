"""Core: what every part of one UserAgent shares — the wire, the alarms, the events, the transactions,
and the names under which we are known. It decides nothing about calls."""

from __future__ import annotations

import random
from collections import deque
from dataclasses import dataclass, field

from sip.alarms import Alarms
from sip.events import Address, Event, Transport
from sip.headers import Headers
from sip.message import Request, Response
from sip.settings import AgentSettings, Destination
from sip.transaction import ClientTransaction, ClientUser, ServerTransaction
from sip.via import MAGIC_COOKIE, Via

ALLOW = "INVITE, ACK, CANCEL, BYE, OPTIONS, PRACK, UPDATE, INFO, REFER, NOTIFY"
_METHODS = frozenset({*ALLOW.split(", "), "REGISTER"})
SUPPORTED = "100rel, timer, replaces"
UNDERSTOOD = frozenset({"100rel", "timer", "replaces"})
"""Option tags a peer may Require."""


@dataclass(slots=True)
class Counters:
    """What happened on the wire, for metrics. Only numbers."""

    received: int = 0
    malformed: int = 0
    """Bytes that were no SIP message, or too big."""
    rejected: int = 0
    """Requests answered 4xx-6xx before they became a call or a transaction of one."""
    stray: int = 0
    """Responses and ACKs that belong to nothing."""
    retransmitted: int = 0
    """Requests that a transaction had seen before."""
    blocked: int = 0
    """Datagrams dropped by address, rate or ban."""
    send_failures: int = 0
    responses: dict[tuple[str, int], int] = field(default_factory=dict)
    """Ours, retransmissions aside, by (method, code); methods we do not know count as OTHER."""

    def responded(self, method: str, code: int) -> None:
        key = (method if method in _METHODS else "OTHER", code)
        self.responses[key] = self.responses.get(key, 0) + 1


class Core:
    """Shared by all parts of one UserAgent; see the module."""

    def __init__(self, settings: AgentSettings, rng: random.Random) -> None:
        self.settings = settings
        self.rng = rng
        self.t1 = settings.t1_s
        self.alarms = Alarms()
        self.counters = Counters()
        self.refusing = False
        self.listening: dict[tuple[Transport, bool], Address] = {}
        """By transport and `is IPv6`."""
        self.servers: dict[tuple[str, ...], ServerTransaction] = {}
        self.clients: dict[tuple[str, str], ClientTransaction] = {}
        self._merging: dict[tuple[str, str, int, str], ServerTransaction] = {}
        self._outbox: list[tuple[bytes, Destination]] = []
        self._events: deque[Event] = deque()

    def send(self, data: bytes, destination: Destination) -> None:
        self._outbox.append((data, destination))

    def take_outbox(self) -> list[tuple[bytes, Destination]]:
        outbox, self._outbox = self._outbox, []
        return outbox

    def emit(self, event: Event) -> None:
        self._events.append(event)

    def next_event(self) -> Event | None:
        return self._events.popleft() if self._events else None

    # Names

    def token(self, bits: int = 64) -> str:
        """A random word for tags, branches and Call-IDs (§19.3 wants at least 32 bits)."""
        return f"{self.rng.getrandbits(bits):0{bits // 4}x}"

    def address(self, towards: Destination) -> Address:
        """Where a peer reaches us, as Via and Contact say it: the address of its family, if we have one."""
        transport, six = towards.transport, ":" in towards.host
        default = ("127.0.0.1", 5061 if transport == "tls" else 5060)
        bound = self.listening.get((transport, six)) or self.listening.get((transport, not six), default)
        settings = self.settings
        if settings.public_host is None or six != (":" in settings.public_host):
            return bound
        port = settings.public_port if transport == "udp" else None
        return settings.public_host, bound[1] if port is None else port

    def contact(self, towards: Destination, user: str | None = None) -> str:
        """Our Contact for a peer, with the transport where it is not UDP."""
        host, port = self.address(towards)
        host = f"[{host}]" if ":" in host else host
        param = "" if towards.transport == "udp" else f";transport={towards.transport}"
        return f"<sip:{user or self.settings.user}@{host}:{port}{param}>"

    def new_via(self, towards: Destination) -> Via:
        host, port = self.address(towards)
        params: dict[str, str | None] = {"branch": MAGIC_COOKIE + self.token(), "rport": None}
        return Via(towards.transport.upper(), host, port, params)

    # Transactions

    def start_client(
        self, request: Request, destination: Destination, user: ClientUser, now: float
    ) -> ClientTransaction:
        """Put a new Via on a request, send it, and look after it."""
        via = self.new_via(destination)
        request.headers.insert_first("via", str(via))
        request.forget_via()
        key = (via.branch, request.method)
        transaction = ClientTransaction(
            self, request, destination, user, lambda: void(self.clients.pop(key, None))
        )
        self.clients[key] = transaction
        transaction.start(now)
        return transaction

    def send_direct(self, request: Request, destination: Destination) -> None:
        """An ACK of a 2xx: a branch of its own and no transaction (§13.2.2.4)."""
        request.headers.insert_first("via", str(self.new_via(destination)))
        self.send(request.to_bytes(), destination)

    def start_cancel(self, invite: ClientTransaction, headers: Headers, user: ClientUser, now: float) -> None:
        """CANCEL carries the branch of what it cancels, so it brings its own Via (§9.1)."""
        request = Request("CANCEL", invite.request.uri, headers)
        key = (invite.request.via.branch, "CANCEL")
        if key in self.clients:
            return
        transaction = ClientTransaction(
            self, request, invite.destination, user, lambda: void(self.clients.pop(key, None))
        )
        self.clients[key] = transaction
        transaction.start(now)

    def start_server(
        self, key: tuple[str, ...], request: Request, destination: Destination
    ) -> ServerTransaction:
        def forget() -> None:
            self.servers.pop(key, None)
            if self._merging.get(merge) is transaction:
                del self._merging[merge]

        transaction = ServerTransaction(self, request, destination, forget)
        transaction.on_respond = self.counters.responded
        merge = _merge_key(request)
        self.servers[key] = transaction
        self._merging.setdefault(merge, transaction)
        return transaction

    def merged(self, transaction: ServerTransaction) -> bool:
        """The same request came by another path first: 482 (§8.2.2.2)."""
        return self._merging.get(_merge_key(transaction.request)) is not transaction

    def own(self, message: Request | Response) -> None:
        """Say who we are (User-Agent or Server), where configured."""
        if self.settings.user_agent:
            name = "user-agent" if isinstance(message, Request) else "server"
            message.headers.add(name, self.settings.user_agent)


def _merge_key(request: Request) -> tuple[str, str, int, str]:
    return request.call_id, request.from_.tag or "", request.cseq.number, request.method


def void(_: object) -> None:
    """A transaction that ends has no use for itself."""


def own_headers(pairs: tuple[tuple[str, str], ...]) -> list[tuple[str, str]]:
    """Headers our owner wants on a message. Raises ValueError where one would break out of its line."""
    for name, value in pairs:
        if not Headers([(name, "")]) or any(char in name + value for char in "\r\n\0") or ":" in name:
            raise ValueError("a header holds a line break")
    return list(Headers(pairs))
