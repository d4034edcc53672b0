"""Reception: what every message meets first — parsing, transactions, and the refusals of RFC 3261 §8.2.

A request that survives goes to its dialog, or becomes a new call.
"""

from __future__ import annotations

import hashlib

from sip.access import Blocked, Denied, Gate
from sip.bodies import SDP
from sip.call import SipCall
from sip.calls import Calls
from sip.core import ALLOW, SUPPORTED, UNDERSTOOD, Core
from sip.errors import PeerError
from sip.events import Address, CallOffered, Transport
from sip.headers import parse_params
from sip.identity import party_of
from sip.incoming import IncomingCall
from sip.message import MalformedMessage, Request, Response, check_message, parse_message
from sip.registrar import Registrar
from sip.replies import reply
from sip.settings import Destination
from sip.transaction import ServerTransaction
from sip.uri import parse_uri
from sip.via import MAGIC_COOKIE, stamp_received

KNOWN = frozenset(ALLOW.split(", "))
RECOGNISED = frozenset({"REGISTER", "SUBSCRIBE", "MESSAGE", "PUBLISH"})
"""Methods we know of and do not serve: 405; any other is 501."""
_CAPABILITIES = (
    ("Allow", ALLOW),
    ("Accept", "application/sdp, application/dtmf-relay, message/sipfrag"),
    ("Accept-Encoding", "identity"),
    ("Accept-Language", "en"),
    ("Supported", SUPPORTED),
)


class Refusal(PeerError):
    """A request is answered with `code` and these headers."""

    def __init__(self, code: int, *headers: tuple[str, str]) -> None:
        super().__init__("refused", code)
        self.headers = headers


class Reception:
    def __init__(self, core: Core, calls: Calls) -> None:
        self.core = core
        self.calls = calls
        self.registrar = Registrar(core)
        self._secret = core.rng.getrandbits(256).to_bytes(32, "big")
        self._gate = Gate(core.settings.access, self._secret, core.settings.registrar)

    def streams_allowed(self, host: str, now: float) -> int | None:
        return self._gate.streams_allowed(host, now)

    def receive(self, data: bytes, addr: Address, now: float, transport: Transport) -> None:
        """Never raises for what `data` holds."""
        counters = self.core.counters
        counters.received += 1
        if not self._gate.admits(addr[0], now, len(data)):
            counters.blocked += 1
            return
        if not data.strip(b"\r\n\0"):
            return  # keep-alives (RFC 5626 §3.5.1, and the zeros some phones send)
        if len(data) > self.core.settings.max_message_bytes:
            counters.malformed += 1
            return
        try:
            message = parse_message(data)
            check_message(message)
        except MalformedMessage as error:
            self._answer_malformed(error.request, error, addr, transport)
            return
        except PeerError as error:
            broken = message if isinstance(message, Request) else None
            self._answer_malformed(broken, error, addr, transport)
            return
        try:
            if isinstance(message, Response):
                self._on_response(message, now)
            else:
                self._on_request(message, addr, now, transport)
        except PeerError:
            counters.malformed += 1  # a part that only its reader looks at was broken

    def _answer_malformed(
        self, request: Request | None, error: PeerError, addr: Address, transport: Transport
    ) -> None:
        """A 400 without a transaction, where the request says enough to be answered at all."""
        self.core.counters.malformed += 1
        if request is None or request.method == "ACK" or not self._gate.is_open_to(addr[0]):
            return
        if "via" not in request.headers:
            return
        try:
            request.via = stamp_received(request.via, *addr)
            destination = self._response_destination(request, addr, transport)
        except PeerError:
            destination = Destination(*addr, transport, None if transport == "udp" else addr)
        self.core.send(reply(request, error.code, self.core.token()).to_bytes(), destination)

    def _response_destination(self, request: Request, addr: Address, transport: Transport) -> Destination:
        if transport == "udp":
            return Destination(addr[0], request.via.response_port(), "udp")
        return Destination(addr[0], addr[1], transport, addr)

    def _on_response(self, response: Response, now: float) -> None:
        via = response.via
        transaction = self.core.clients.get((via.branch, response.cseq.method))
        if transaction is None or len(response.headers.get_list("via")) != 1:
            self.core.counters.stray += 1
            return
        transaction.receive(response, now)

    # Requests

    def _on_request(self, request: Request, addr: Address, now: float, transport: Transport) -> None:
        request.via = stamp_received(request.via, *addr)
        destination = self._response_destination(request, addr, transport)
        key = transaction_key(request, request.method)
        if request.method == "ACK":
            self._on_ack(request, now)
            return
        known = self.core.servers.get(key)
        if known is not None:
            self.core.counters.retransmitted += 1
            if transport != "udp" and destination.host == known.destination.host:
                known.destination = destination  # the connection it came on first may be gone (§18.2.2)
            known.step("request", now)
            return
        if request.method == "CANCEL":
            self._on_cancel(key, request, destination, now)
            return
        call = self.calls.in_dialog(request.call_id, request.to.tag) if request.to.tag else None
        if call is None:
            self._on_outside(key, request, destination, addr, now)
            return
        transaction = self.core.start_server(key, request, destination)
        if self._passes(transaction, request, now):
            call.on_request(transaction, request, now)

    def _on_ack(self, request: Request, now: float) -> None:
        transaction = self.core.servers.get(transaction_key(request, "INVITE"))
        if transaction is not None and transaction.step("ack", now):
            return
        call = self.calls.in_dialog(request.call_id, request.to.tag or "")
        if call is None or not call.on_ack(request, now):
            self.core.counters.stray += 1

    def _on_cancel(
        self, key: tuple[str, ...], request: Request, destination: Destination, now: float
    ) -> None:
        invite = self.core.servers.get(transaction_key(request, "INVITE"))
        if invite is None:
            self._on_outside(key, request, destination, (destination.host, destination.port), now)
            return
        transaction = self.core.start_server(key, request, destination)
        transaction.respond(reply(request, 200, invite.tag or self.core.token()), now)
        if invite.on_cancel is not None and not invite.answered:
            invite.on_cancel(request, now)

    def _on_outside(
        self, key: tuple[str, ...], request: Request, destination: Destination, addr: Address, now: float
    ) -> None:
        """A request outside of any dialog: first of all, may its sender speak to us?"""
        if len(self.core.servers) >= self.core.settings.max_transactions:
            self.core.counters.blocked += 1
            return
        try:
            trunk = self._gate.check(request, addr[0], now)
        except Blocked:
            self.core.counters.blocked += 1
            return
        except Denied as denied:
            self._turn_away(request, denied, destination)
            return
        transaction = self.core.start_server(key, request, destination)
        if not self._passes(transaction, request, now):
            return
        if request.to.tag is not None:
            self._refuse(transaction, 481, now)
        elif request.method == "INVITE":
            self._on_invite(transaction, request, addr, trunk, now)
        elif request.method == "OPTIONS":
            self._on_options(transaction, now)
        elif request.method == "REGISTER":
            response = self.registrar.answer(request, destination, now)
            self.core.own(response)
            transaction.respond(response, now)
        else:
            self._refuse(transaction, 603 if request.method == "REFER" else 481, now)

    def _turn_away(self, request: Request, denied: Denied, destination: Destination) -> None:
        """Refuse a stranger without a transaction (§8.2.7): a flood from made-up addresses fills no memory,
        and what bears somebody else's address is answered to him once, not eleven times."""
        words = f"{request.call_id}|{request.via.branch}".encode("utf-8", "surrogateescape")
        tag = hashlib.blake2b(words, digest_size=8, key=self._secret).hexdigest()
        response = reply(request, denied.code, tag)  # unnamed: strangers need not know whose software this is
        for value in denied.challenges:
            response.headers.add("WWW-Authenticate", value)
        self.core.counters.rejected += 1
        self.core.counters.responded(request.method, denied.code)
        self.core.send(response.to_bytes(), destination)

    def _passes(self, transaction: ServerTransaction, request: Request, now: float) -> bool:
        try:
            self._check_target(request)
        except Refusal as refusal:
            self._refuse(transaction, refusal.code, now, refusal.headers)
            return False
        except PeerError as error:
            self._refuse(transaction, error.code, now)
            return False
        return True

    def _check_target(self, request: Request) -> None:
        """Method, Request-URI and Require (§8.2.1-8.2.2). Raises PeerError, Refusal among them."""
        if request.method == "CANCEL":
            return  # what it cancels is gone, and Require is not looked at (§9.2)
        if request.method not in KNOWN and not self._registers(request):
            raise Refusal(405 if request.method in RECOGNISED else 501, ("Allow", ALLOW))
        if parse_uri(request.uri).headers:
            raise Refusal(400)  # header parts have no place in a Request-URI (§19.1.1)
        unknown = request.headers.tokens("require") - UNDERSTOOD
        if unknown:
            raise Refusal(420, ("Unsupported", ", ".join(sorted(unknown))))

    def _registers(self, request: Request) -> bool:
        return request.method == "REGISTER" and self.core.settings.registrar

    def _on_options(self, transaction: ServerTransaction, now: float) -> None:
        if self._full():
            self._refuse_busy(transaction, now)
            return
        response = reply(transaction.request, 200, self.core.token())
        for name, value in _CAPABILITIES:
            response.headers.add(name, value)
        response.headers.add("contact", self.core.contact(transaction.destination))
        self.core.own(response)
        transaction.respond(response, now)

    def _full(self) -> bool:
        return self.core.refusing or len(self.calls.by_id) >= self.core.settings.max_calls

    def _on_invite(
        self, transaction: ServerTransaction, request: Request, addr: Address, trunk: str | None, now: float
    ) -> None:
        try:
            _check_accept(request)
            replaces = self._replaced(request)
            if self.core.merged(transaction):
                raise Refusal(482)
            if self._full():
                self._refuse_busy(transaction, now)
                return
            call = IncomingCall(self.core, self.calls, transaction, transaction.destination, now)
        except Refusal as refusal:
            self._refuse(transaction, refusal.code, now, refusal.headers)
            return
        except PeerError as error:
            self._refuse(transaction, error.code, now, _explained(error.code, self.core.settings.min_se_s))
            return
        call.replaces = replaces
        self.core.emit(
            CallOffered(
                call=call.id,
                request_uri=request.uri,
                caller=party_of(request.from_),
                called=party_of(request.to),
                headers=request.headers.public(),
                offer=call.offer,
                source=addr,
                transport=transaction.destination.transport,
                trunk=trunk,
                replaces=replaces.id if replaces is not None else None,
                reliable=call.reliable,
            )
        )

    def _replaced(self, request: Request) -> SipCall | None:
        """The call that a Replaces names (RFC 3891 §3). Raises Refusal where it may not be replaced."""
        values = request.headers.get_all("replaces")
        if not values:
            return None
        if len(values) > 1:
            raise Refusal(400)
        sip_call_id, *rest = [part.strip() for part in values[0].split(";")]
        params = parse_params(rest)
        call = self.calls.in_dialog(sip_call_id, params.get("to-tag") or "")
        if call is None or call.dialog_with(params.get("from-tag") or None) is None:
            raise Refusal(481)
        if call.state == "ended":
            raise Refusal(603)
        if call.state != "up":
            raise Refusal(481)
        if "early-only" in params:
            raise Refusal(486)
        return call

    def _refuse_busy(self, transaction: ServerTransaction, now: float) -> None:
        retry = str(self.core.settings.retry_after_s)
        self._refuse(transaction, 503, now, (("Retry-After", retry),))

    def _refuse(
        self,
        transaction: ServerTransaction,
        code: int,
        now: float,
        headers: tuple[tuple[str, str], ...] = (),
    ) -> None:
        self.core.counters.rejected += 1
        response = reply(transaction.request, code, self.core.token())
        for name, value in headers:
            response.headers.add(name, value)
        self.core.own(response)
        transaction.respond(response, now)


def transaction_key(request: Request, method: str) -> tuple[str, ...]:
    """What a request and its retransmissions share (§17.2.3); `method` is INVITE for its ACK or CANCEL."""
    via = request.via
    branch = via.branch
    if branch.startswith(MAGIC_COOKIE) and len(branch) > len(MAGIC_COOKIE):
        return branch, via.sent_by, method
    # The old matching: everything that made a request unique in RFC 2543.
    return request.call_id, request.from_.tag or "", str(request.cseq.number), method, str(via)


def _check_accept(request: Request) -> None:
    """§20.1: no Accept means SDP; one without SDP wants something we cannot say. Raises Refusal."""
    if "accept" not in request.headers:
        return
    kinds = {value.partition(";")[0].strip() for value in request.headers.tokens("accept")}
    if not kinds & {SDP, "application/*", "*/*"}:
        raise Refusal(406, ("Accept", SDP))


def _explained(code: int, min_se_s: int) -> tuple[tuple[str, str], ...]:
    if code == 415:
        return ("Accept", SDP), ("Accept-Encoding", "identity")
    return (("Min-SE", str(min_se_s)),) if code == 422 else ()
