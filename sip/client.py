"""ClientRequest: one request of ours seen through to its answer, challenges answered on the way.

A 401 or 407 is answered once for each realm (again where the nonce is stale), with the next CSeq and a
new transaction (RFC 3261 §22.2); what remains goes to the user.
"""

from __future__ import annotations

from collections.abc import Callable

from sip.auth import Challenge, authorization, parse_challenge
from sip.core import Core
from sip.dialog import Dialog
from sip.errors import PeerError
from sip.message import Request, Response
from sip.settings import Credentials, Destination
from sip.transaction import ClientTransaction, ClientUser

_CHALLENGES = {401: ("www-authenticate", "authorization"), 407: ("proxy-authenticate", "proxy-authorization")}
MAX_ROUNDS = 4


class ClientRequest:
    """See the module. `next_seq` gives the CSeq of a second try."""

    def __init__(
        self,
        core: Core,
        request: Request,
        destination: Destination,
        user: ClientUser,
        next_seq: Callable[[], int],
        credentials: Credentials | None = None,
    ) -> None:
        self.core = core
        self.request = request
        self.destination = destination
        self.transaction: ClientTransaction | None = None
        self._user = user
        self._next_seq = next_seq
        self._credentials = credentials
        self._rounds = 0
        self._tried: set[str] = set()

    def start(self, now: float) -> ClientRequest:
        self.transaction = self.core.start_client(self.request, self.destination, self, now)
        return self

    def give_up(self, now: float) -> None:
        """Wait no longer for a final answer: the user hears 408."""
        if self.transaction is not None:
            self.transaction.give_up(now)

    def on_response(self, response: Response, now: float) -> None:
        if response.code in _CHALLENGES and self._authorize(response):
            self.start(now)
            return
        self._user.on_response(response, now)

    def on_no_response(self, code: int, now: float) -> None:
        self._user.on_no_response(code, now)

    def _authorize(self, response: Response) -> bool:
        asked, answered = _CHALLENGES[response.code]
        challenge = self._pick(response.headers.get_all(asked))
        if challenge is None or self._credentials is None:
            return False
        self._rounds += 1
        self._tried.add(challenge.realm)
        request = Request(
            self.request.method, self.request.uri, self.request.headers.copy(), self.request.body
        )
        request.headers.remove("via")
        request.headers.remove(answered)
        request.headers.set("cseq", f"{self._next_seq()} {request.method}")
        value = authorization(
            challenge, self._credentials, request.method, request.uri,
            body=request.body, nc=1, cnonce=self.core.token(),
        )  # fmt: skip
        request.headers.add(answered, value)
        self.request = request
        return True

    def _pick(self, values: list[str]) -> Challenge | None:
        """The first challenge we can answer (RFC 8760 §2.4), unless its realm has refused us already."""
        if self._credentials is None or self._rounds >= MAX_ROUNDS:
            return None
        for value in values:
            try:
                challenge = parse_challenge(value)
            except PeerError:
                continue
            if challenge is None or self._credentials.realm not in (None, challenge.realm):
                continue
            if challenge.realm not in self._tried or challenge.stale:
                return challenge
        return None


class Unheard:
    """A user for requests whose answer changes nothing, but `then` when it is over."""

    def __init__(self, then: Callable[[], None] | None = None) -> None:
        self._then = then

    def on_response(self, response: Response, now: float) -> None:
        if response.code >= 200 and self._then is not None:
            self._then()

    def on_no_response(self, code: int, now: float) -> None:
        if self._then is not None:
            self._then()


def acknowledge(core: Core, dialog: Dialog, response: Response, invite: Request | None) -> None:
    """Send the ACK of a 2xx, once more for each of its retransmissions, with the credentials of its
    INVITE (§13.2.2.4)."""
    ack = dialog.request(core, "ACK", seq=response.cseq.number)
    for name in ("authorization", "proxy-authorization"):
        for value in invite.headers.get_all(name) if invite is not None else []:
            ack.headers.add(name, value)
    core.send_direct(ack, dialog.next_hop())
