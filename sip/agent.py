"""UserAgent: SIP calls without I/O. Datagrams and the time in, datagrams and events out.

    agent.receive_datagram(data, addr, now)      # then, after this and every other call:
    while event := agent.next_event(): ...
    for data, destination in agent.datagrams_to_send(now): ...
    timer = agent.get_timer()                    # call handle_timer(now) at that time

It opens no socket, reads no clock and sleeps nowhere; `now` is seconds on any monotonic clock.
A peer's bytes raise nothing: they are answered, or counted in `counters` and dropped.
An action on a call that has ended, or at the wrong moment, raises CallStateError: our own bug or a race
that the owner must expect, since a peer may end a call while an event waits in its queue.
"""

from __future__ import annotations

import random

from sip.call import SipCall
from sip.calls import Calls
from sip.client import Unheard
from sip.core import Core, Counters, own_headers
from sip.dtmf import DIGITS
from sip.errors import CallStateError
from sip.events import Address, Event, Transport
from sip.incoming import IncomingCall
from sip.info import digit_body
from sip.outgoing import Invitation, OutgoingCall
from sip.probe import TrunkProbe
from sip.reception import Reception
from sip.refer import Referral, attended_target, report
from sip.registration import Registration
from sip.sdp import AgreedMedia, LocalMedia
from sip.settings import Account, AgentSettings, Credentials, Destination
from sip.uri import parse_uri

__all__ = ["CallStateError", "UserAgent"]


class UserAgent:
    """One SIP user agent, client and server, for any number of calls.

    `rng` makes tags, branches, Call-IDs and SRTP keys: random.SystemRandom() outside of tests.
    """

    def __init__(self, settings: AgentSettings, rng: random.Random) -> None:
        self._core = Core(settings, rng)
        self._calls = Calls()
        self._reception = Reception(self._core, self._calls)
        self._registrations: dict[str, Registration] = {}
        self._probes: dict[str, TrunkProbe] = {}

    @property
    def counters(self) -> Counters:
        """What happened on the wire so far."""
        return self._core.counters

    @property
    def max_message_bytes(self) -> int:
        return self._core.settings.max_message_bytes

    @property
    def call_count(self) -> int:
        """Calls that have not ended, in any state."""
        return len(self._calls.by_id)

    # The wire

    @property
    def awaits_answers(self) -> bool:
        """A request of ours, such as a BYE or a last REGISTER, is not answered yet."""
        open_states = ("calling", "trying", "proceeding")
        return any(transaction.state in open_states for transaction in self._core.clients.values())

    def listen(self, transport: Transport, host: str, port: int) -> None:
        """Say where a socket was bound; the shell calls it. It stands in Via and Contact unless
        settings.public_host and public_port say otherwise."""
        self._core.listening[transport, ":" in host] = (host, port)

    def receive_datagram(self, data: bytes, addr: Address, now: float, transport: Transport = "udp") -> None:
        """One datagram, or one framed message of a stream. Never raises for what `data` holds."""
        self._reception.receive(data, addr, now, transport)

    def streams_allowed(self, host: str, now: float) -> int | None:
        """How many TCP and TLS connections an address may hold open to us; None: any number."""
        return self._reception.streams_allowed(host, now)

    def send_failed(self, destination: Destination, now: float) -> None:
        """The shell could not send to, or lost its connection with, a destination (RFC 3261 §18.4)."""
        self._core.counters.send_failures += 1
        transactions = [*self._core.clients.values(), *self._core.servers.values()]
        for transaction in transactions:
            if transaction.destination == destination:
                transaction.step("unsendable", now)

    def datagrams_to_send(self, now: float) -> list[tuple[bytes, Destination]]:
        """What to send now, in order; each is returned once."""
        del now  # everything due was put in the outbox by handle_timer()
        return self._core.take_outbox()

    def get_timer(self) -> float | None:
        """When handle_timer() wants to be called; None: not at all. A time passed means at once."""
        return self._core.alarms.next_at()

    def handle_timer(self, now: float) -> None:
        """Run everything due at `now`."""
        self._core.alarms.run_due(now)

    def next_event(self) -> Event | None:
        """The oldest event not yet taken."""
        return self._core.next_event()

    # Calls that came in

    def ring(self, call: str, now: float, media: LocalMedia | None = None) -> AgreedMedia | None:
        """Send 180, or 183 with early media where `media` is given (the offer is answered then, and
        accept() repeats that answer); EarlyMediaAccepted follows. A caller who sent no offer gets ours, and
        only where he takes 100rel. Raises CallStateError, SdpError."""
        return self._offered(call).ring(media, now)

    def accept(self, call: str, media: LocalMedia, now: float) -> AgreedMedia | None:
        """Send 200 with the answer to the caller's offer, and return what was agreed. From then on the
        agent answers re-INVITE and UPDATE by itself out of `media`.

        None when the caller sent no offer: ours goes out, and CallConfirmed brings the outcome.
        Raises CallStateError; SdpError when nothing fits (then refuse(call, error.code, now)).
        """
        return self._offered(call).accept(media, now)

    def refuse(
        self, call: str, code: int, now: float, reason: str = "", headers: tuple[tuple[str, str], ...] = ()
    ) -> None:
        """Send a final answer 300–699 to an offered call; 503 gets Retry-After unless in `headers`.

        Raises CallStateError; ValueError for a code or header that cannot be sent.
        """
        if not 300 <= code <= 699:
            raise ValueError("a refusal is 300 to 699")
        extra = tuple(own_headers((*headers, ("Reason", reason))))[: len(headers)]
        self._offered(call).refuse(code, now, reason, extra)

    def refuse_new_calls(self, refusing: bool) -> None:
        """Drain or fill: while True, INVITE and OPTIONS outside a dialog get 503 + Retry-After."""
        self._core.refusing = refusing

    # Calls that go out

    def invite(
        self,
        uri: str,
        media: LocalMedia,
        now: float,
        *,
        caller: str | None = None,
        display_name: str = "",
        credentials: Credentials | None = None,
        destination: Destination | None = None,
        alternatives: tuple[Destination, ...] = (),
        headers: tuple[tuple[str, str], ...] = (),
    ) -> str:
        """Place a call and return its id. `caller` is our From URI; `destination` overrides where the
        URI (or settings.outbound_proxy) would send it; `alternatives` are tried in turn where that one is
        silent, unreachable or answers 503 (sip.locate finds both). Raises ValueError for a URI that is
        none."""
        invitation = Invitation(
            uri, media, caller, display_name, credentials, destination, headers, alternatives
        )
        return OutgoingCall(self._core, self._calls, invitation, now).id

    # Any call

    def hang_up(self, call: str, now: float, reason: str = "") -> None:
        """End a call in whatever state: BYE when it is up, CANCEL when ours rings, 480 when theirs does.
        `reason` is a Reason header such as `Q.850;cause=16;text="Normal call clearing"`.
        Silent when the call has already ended."""
        found = self._calls.by_id.get(call)
        if found is not None:
            own_headers((("Reason", reason),))
            found.hang_up(now, reason)

    def hold(self, call: str, now: float) -> None:
        """re-INVITE with sendonly; ChangeAccepted or ChangeRefused follows."""
        self._up(call).change.turn("sendonly", now)

    def resume(self, call: str, now: float) -> None:
        """re-INVITE with sendrecv; ChangeAccepted or ChangeRefused follows."""
        self._up(call).change.turn("sendrecv", now)

    def reinvite(self, call: str, media: LocalMedia, now: float) -> None:
        """Offer new media (address, port, codecs) in mid-call."""
        self._up(call).change.start(media, now)

    def transfer(self, call: str, target: str, now: float) -> None:
        """Blind transfer: REFER to a URI. TransferProgressed follows, and TransferSucceeded (then we send
        BYE) or TransferFailed (the call stays with us). Raises CallStateError, ValueError for no URI."""
        parse_uri(target)
        self._refer(self._up(call), target, now)

    def transfer_to_call(self, call: str, other: str, now: float) -> None:
        """Attended transfer: `call`'s peer takes our place in `other`, which is up too (Replaces)."""
        self._refer(self._up(call), attended_target(self._up(other).established()), now)

    def _refer(self, call: SipCall, target: str, now: float) -> None:
        if call.referral is not None and call.referral.open:
            raise CallStateError("a transfer is under way")
        call.referral = Referral(call, target, now)

    def report_transfer(self, call: str, code: int, reason: str, now: float) -> None:
        """Tell the peer whose REFER came as TransferRequested how it goes: 100, 180, then a final code."""
        own_headers((("Reason", reason),))
        report(self._up(call), code, reason, now)

    def send_dtmf(self, call: str, digit: str, now: float, duration_ms: int = 160) -> None:
        """A digit by SIP INFO, for peers that took no telephone-event. Raises CallStateError, ValueError."""
        if len(digit) != 1 or digit.upper() not in DIGITS:
            raise ValueError("not a DTMF digit")
        self._up(call).send("INFO", Unheard(), now, (), digit_body(digit.upper(), duration_ms))

    # Registrations and trunks

    def register(self, account: Account, now: float) -> None:
        """Keep an account registered: Registered and RegistrationLost tell how it goes. One that is known
        by that name already is replaced. Raises ValueError for a URI that is none."""
        made = Registration(self._core, account, now)
        self.unregister(account.name, now)
        self._registrations[account.name] = made

    def move_account(self, account: str, servers: tuple[Destination, ...]) -> None:
        """DNS names other servers of its registrar now: the next REGISTER goes there."""
        self._registrations[account].move(servers)

    def unregister(self, account: str, now: float) -> None:
        """Give an account up; silent where there is none."""
        registration = self._registrations.pop(account, None)
        if registration is not None:
            registration.stop(now)

    def phones_of(self, user: str, now: float) -> list[tuple[str, Destination]]:
        """(Contact URI, destination) of a user's phones that registered with us, the newest first: for
        invite(). Empty without settings.registrar."""
        return [(item.contact, item.destination) for item in self._reception.registrar.bindings(user, now)]

    def watch_trunk(self, trunk: str, *servers: Destination, now: float, interval_s: float = 30.0) -> None:
        """Send OPTIONS at intervals, to the next server where one is dead; TrunkChanged tells of the first
        answer and of each change."""
        self.unwatch_trunk(trunk)
        self._probes[trunk] = TrunkProbe(self._core, trunk, servers, interval_s, now)

    def answering(self, trunk: str) -> Destination | None:
        """The server of a watched trunk that answered last; None while it is down or not known."""
        probe = self._probes.get(trunk)
        return None if probe is None else probe.answering

    def unwatch_trunk(self, trunk: str) -> None:
        probe = self._probes.pop(trunk, None)
        if probe is not None:
            probe.stop()

    def _offered(self, call: str) -> IncomingCall:
        found = self._calls.find(call)
        if not isinstance(found, IncomingCall):
            raise CallStateError("the call is one that we placed")
        return found

    def _up(self, call: str) -> SipCall:
        found = self._calls.find(call)
        found.established()
        return found
