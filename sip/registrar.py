"""Registrar: phones that register with us, in memory (RFC 3261 §10.3). Off unless settings.registrar.

Who may register is the gate's affair (sip.access). Behind digest a phone may bind its own user alone; on an
open port, or from a trunk's address, anybody may bind anybody.
"""

from __future__ import annotations

import re
from collections import OrderedDict
from dataclasses import dataclass

from sip.auth import parse_digest
from sip.core import Core
from sip.dialog import destination_of
from sip.errors import PeerError
from sip.headers import NameAddr, parse_name_addr
from sip.message import Request, Response
from sip.replies import reply
from sip.settings import Destination
from sip.uri import Uri, parse_uri, same_uri

MAX_USERS = 10_000
MAX_CONTACTS = 8
SHORTEST_S, USUAL_S, LONGEST_S = 60, 3_600, 86_400


class Rejected(PeerError):
    """The REGISTER changes nothing and is answered `code`."""


@dataclass(frozen=True, slots=True)
class Binding:
    """One phone of a user."""

    contact: str
    """Its Contact URI."""
    until: float
    call_id: str
    seq: int
    source: Destination

    @property
    def destination(self) -> Destination:
        """Where a call to it goes: over the stream it registered on, if that stands."""
        return destination_of(parse_uri(self.contact), self.source.transport, self.source.flow)


class Registrar:
    def __init__(self, core: Core) -> None:
        self._core = core
        self._users: OrderedDict[str, list[Binding]] = OrderedDict()

    def bindings(self, user: str, now: float) -> list[Binding]:
        """The phones of a user that are still registered, the newest first."""
        live = [binding for binding in self._users.get(user, []) if binding.until > now]
        if live:
            self._users[user] = live
        else:
            self._users.pop(user, None)
        return sorted(live, key=lambda binding: -binding.until)

    def answer(self, request: Request, source: Destination, now: float) -> Response:
        """Take a REGISTER. All of it takes effect or none (§10.3 step 7)."""
        try:
            user = _registered_user(request)
            if _credential_user(request) not in (None, user):
                raise Rejected("another user's credentials", 403)
            kept = self._updated(user, request, source, now)
        except PeerError as error:
            response = reply(request, error.code, self._core.token())
            if error.code == 423:
                response.headers.add("min-expires", str(SHORTEST_S))
            return response
        self._keep(user, kept)
        response = reply(request, 200, self._core.token())
        for binding in kept:
            left = max(0, round(binding.until - now))
            response.headers.add("contact", f"<{binding.contact}>;expires={left}")
        return response

    def _keep(self, user: str, kept: list[Binding]) -> None:
        self._users.pop(user, None)
        if kept:
            self._users[user] = kept
            if len(self._users) > MAX_USERS:
                self._users.popitem(last=False)

    def _updated(self, user: str, request: Request, source: Destination, now: float) -> list[Binding]:
        """The user's bindings after this request. Raises PeerError, Rejected among them."""
        kept = self.bindings(user, now)
        values = request.headers.get_list("contact")
        default = _seconds(request.headers.get("expires"))
        if "*" in values:
            if len(values) > 1 or default != 0:
                raise Rejected("* wants Expires: 0 and nothing beside it", 400)
            return [binding for binding in kept if not _is_older(binding, request)]
        for value in values:
            contact = parse_name_addr(value)
            uri = parse_uri(contact.uri)
            old = next((binding for binding in kept if same_uri(parse_uri(binding.contact), uri)), None)
            if old is not None and not _is_older(old, request):
                raise Rejected("an old CSeq", 500)
            kept = [binding for binding in kept if binding is not old]
            expires = _expires_of(contact, default)
            if expires:
                kept.insert(0, _bound(uri, request, source, now + expires))
        return kept[:MAX_CONTACTS]


def _registered_user(request: Request) -> str:
    """Raises Rejected: To must hold a SIP address (RFC 4475 §3.3.4), and one with a user."""
    try:
        user = parse_uri(request.to.uri).user_text
    except PeerError as error:
        raise Rejected("To is no SIP address", 400) from error
    if not user:
        raise Rejected("no user", 404)
    return user


def _credential_user(request: Request) -> str | None:
    """Whose digest the gate has accepted; None where it asked for none."""
    header = request.headers.get("authorization")
    try:
        return parse_digest(header).get("username") if header is not None else None
    except PeerError:
        return None


def _bound(uri: Uri, request: Request, source: Destination, until: float) -> Binding:
    if not uri.host:
        raise Rejected("a Contact wants a host", 400)
    return Binding(str(uri), until, request.call_id, request.cseq.number, source)


def _is_older(binding: Binding, request: Request) -> bool:
    return binding.call_id != request.call_id or binding.seq < request.cseq.number


def _expires_of(contact: NameAddr, default: int | None) -> int:
    asked = _seconds(contact.params.get("expires"))
    seconds = asked if asked is not None else default if default is not None else USUAL_S
    if 0 < seconds < SHORTEST_S:
        raise Rejected("too brief", 423)
    return min(seconds, LONGEST_S)


def _seconds(text: str | None) -> int | None:
    """A number of seconds; None for none, or for what is no number (§20.19)."""
    return int(text) if text is not None and re.fullmatch(r"\d{1,9}", text.strip()) else None
