"""Registration: one account kept registered (RFC 3261 §10.2), with refresh and back-off (RFC 5626 §4.5)."""

from __future__ import annotations

import re

from sip.alarms import Alarm
from sip.client import ClientRequest
from sip.core import Core
from sip.dialog import destination_of
from sip.errors import PeerError
from sip.events import Registered, RegistrationLost
from sip.headers import Headers, parse_name_addr
from sip.message import Request, Response
from sip.settings import Account, Destination
from sip.uri import parse_uri, same_uri

FIRST_PAUSE_S = 30.0
LONGEST_PAUSE_S = 1_800.0
SHORTEST_EXPIRES_S = 30


class Registration:
    """Registers at once and goes on until stop()."""

    def __init__(self, core: Core, account: Account, now: float) -> None:
        """Raises MalformedUri, UnknownScheme."""
        self._core = core
        self._account = account
        uri = parse_uri(account.registrar)
        parse_uri(account.aor)
        self._servers = account.servers or (core.settings.outbound_proxy or destination_of(uri),)
        self._at = 0
        self._silent = 0
        """Servers that gave no answer, one after another."""
        self._call_id = core.token(128)
        self._tag = core.token()
        self._seq = 0
        self._expires = account.expires_s
        self._failures = 0
        self._alarm: Alarm | None = None
        self._stopped = False
        self.registered = False
        self._send(now)

    def _send(self, now: float) -> None:
        self._alarm = None
        items = [
            ("max-forwards", "70"),
            ("from", f"<{self._account.aor}>;tag={self._tag}"),
            ("to", f"<{self._account.aor}>"),
            ("call-id", self._call_id),
            ("cseq", f"{self._next_seq()} REGISTER"),
            ("contact", self._contact()),
            ("expires", "0" if self._stopped else str(self._expires)),
        ]
        request = Request("REGISTER", self._account.registrar, Headers.of_canonical(items))
        self._core.own(request)
        ClientRequest(
            self._core, request, self._server, self, self._next_seq, self._account.credentials
        ).start(now)

    def _next_seq(self) -> int:
        self._seq += 1
        return self._seq

    def _contact(self) -> str:
        user = parse_uri(self._account.aor).user
        return self._core.contact(self._server, user)

    @property
    def _server(self) -> Destination:
        return self._servers[self._at]

    def _try_next(self, now: float) -> bool:
        """Another server of the registrar's, until all have been tried (RFC 3263 §4.3)."""
        self._silent += 1
        self._at = (self._at + 1) % len(self._servers)
        if self._silent < len(self._servers):
            self._send(now)
            return True
        self._silent = 0
        return False

    def on_response(self, response: Response, now: float) -> None:
        if response.code < 200 or self._stopped:
            return
        if response.code < 300:
            self._on_success(response, now)
        elif response.code == 423 and self._raise_expires(response):
            self._send(now)
        elif response.code != 503 or not self._try_next(now):
            self._fail(response.code, response.reason, now, _retry_after(response))

    def on_no_response(self, code: int, now: float) -> None:
        if not self._stopped and not self._try_next(now):
            self._fail(code, "no answer" if code == 408 else "unreachable", now, 0.0)

    def _on_success(self, response: Response, now: float) -> None:
        self._failures = self._silent = 0
        self.registered = True
        granted = self._granted(response)
        self._core.emit(Registered(self._account.name, granted))
        # Well before the end, and not all accounts at once.
        after = max(5.0, granted * self._core.rng.uniform(0.8, 0.9))
        self._alarm = self._core.alarms.set(now + after, self._send)

    def _granted(self, response: Response) -> float:
        """Our Contact's own expires, else the Expires header, else what we asked (§10.2.4)."""
        ours = parse_uri(parse_name_addr(self._contact()).uri)
        try:
            for value in response.headers.get_list("contact"):
                contact = parse_name_addr(value)
                expires = contact.params.get("expires") or ""
                if same_uri(parse_uri(contact.uri), ours) and re.fullmatch(r"\d{1,9}", expires):
                    return float(max(SHORTEST_EXPIRES_S, int(expires)))
        except PeerError:
            pass  # the list tells us nothing; the header may
        expires = (response.headers.get("expires") or "").strip()
        if re.fullmatch(r"\d{1,9}", expires):
            return float(max(SHORTEST_EXPIRES_S, int(expires)))
        return float(self._expires)

    def _raise_expires(self, response: Response) -> bool:
        value = (response.headers.get("min-expires") or "").strip()
        if not re.fullmatch(r"\d{1,9}", value) or int(value) <= self._expires:
            return False
        self._expires = int(value)
        return True

    def _fail(self, code: int, reason: str, now: float, at_least_s: float) -> None:
        self.registered = False
        longest = min(LONGEST_PAUSE_S, FIRST_PAUSE_S * 2**self._failures)
        pause = max(at_least_s, longest * self._core.rng.uniform(0.5, 1.0))
        self._failures = min(self._failures + 1, 16)
        self._core.emit(RegistrationLost(self._account.name, code, reason, pause))
        self._alarm = self._core.alarms.set(now + pause, self._send)

    def move(self, servers: tuple[Destination, ...]) -> None:
        """From the next REGISTER on these servers are tried."""
        self._servers, self._at, self._silent = servers, 0, 0

    def stop(self, now: float) -> None:
        """Unregister, and try no more. Idempotent."""
        if self._stopped:
            return
        self._stopped = True
        if self._alarm is not None:
            self._alarm.cancel()
        if self.registered:
            self.registered = False
            self._send(now)


def _retry_after(response: Response) -> float:
    match = re.match(r"\s*(\d{1,6})", response.headers.get("retry-after") or "")
    return float(match[1]) if match else 0.0
