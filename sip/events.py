"""What a UserAgent tells its owner: one frozen dataclass an event, named in the past tense.

`call` is an opaque, stable id that the agent gives a call before its first event. Whatever happens,
**CallEnded is the last event of every call, and comes exactly once**; after it the id is unknown.
Every str that came from a peer is untrusted data: bounded in size, never logged, never a prompt.

Order for a call that came in:   CallOffered, EarlyMediaAccepted?, then CallConfirmed once accept() was
acknowledged, then any of the mid-call events, then CallEnded. (CallCancelled may stand before CallEnded.)
Order for a call that went out:  CallRinging*, EarlyMediaStarted*, CallAnswered, mid-call, CallEnded.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from sip.sdp import AgreedMedia

Address = tuple[str, int]
"""(host, port) of a peer's socket; host is an IP literal without brackets."""
Transport = Literal["udp", "tcp", "tls"]
Headers = tuple[tuple[str, str], ...]
"""(name, value) pairs in the order received, long header names, unfolded values."""
EndedBy = Literal["us", "peer", "timeout", "error"]
"""us: refuse() or hang_up(). peer: BYE, CANCEL or a final answer. timeout: no ACK, no answer, session
timer. error: the transport or the peer's protocol broke."""


@dataclass(frozen=True, slots=True)
class Party:
    """Who stands in a From, To or P-Asserted-Identity."""

    uri: str
    """As received, such as `sip:+4930123@example.com;user=phone`, without angle brackets."""
    user: str
    """The user part, unescaped; for a tel: URI the number; "" when there is none."""
    host: str
    display_name: str = ""


@dataclass(frozen=True, slots=True)
class CallOffered:
    """An INVITE for a new call. 100 Trying was sent; answer with ring(), accept() or refuse()."""

    call: str
    request_uri: str
    caller: Party
    """From."""
    called: Party
    """To."""
    headers: Headers
    """Every header of the INVITE, P-Asserted-Identity, Diversion and X- headers included."""
    offer: bytes | None
    """The SDP offer; None when the caller wants us to offer (accept() then sends the offer)."""
    source: Address
    transport: Transport
    trunk: str | None = None
    """Name of the trunk whose address list or credentials let the INVITE in; None: open port."""
    replaces: str | None = None
    """The call this one replaces (RFC 3891): accept() ends that one."""
    reliable: bool = False
    """The caller takes provisional answers that must not get lost (100rel), which may hold our offer."""

    def header(self, name: str) -> str | None:
        """The first value of a header, case-insensitive, or None."""
        wanted = name.lower()
        return next((value for key, value in self.headers if key.lower() == wanted), None)


@dataclass(frozen=True, slots=True)
class CallCancelled:
    """The caller gave up before accept() (RFC 3261 §9); CallEnded follows at once."""

    call: str
    reason: str
    """The CANCEL's Reason header, such as `SIP;cause=200;text="Call completed elsewhere"`, or ""."""


@dataclass(frozen=True, slots=True)
class EarlyMediaAccepted:
    """Our 183 with SDP reached the caller, as far as can be known: his PRACK came, or he asks for none."""

    call: str
    media: AgreedMedia


@dataclass(frozen=True, slots=True)
class CallConfirmed:
    """The ACK of our 200 arrived: the call that came in is up."""

    call: str
    media: AgreedMedia
    """What offer and answer gave; after a delayed offer, known only now."""


@dataclass(frozen=True, slots=True)
class CallRinging:
    """A provisional answer (180–199) to our INVITE."""

    call: str
    code: int
    reason: str


@dataclass(frozen=True, slots=True)
class EarlyMediaStarted:
    """A provisional answer carried an SDP answer: the called side may send audio before it answers."""

    call: str
    media: AgreedMedia


@dataclass(frozen=True, slots=True)
class CallAnswered:
    """Our INVITE got its 200, and the ACK went out."""

    call: str
    media: AgreedMedia


@dataclass(frozen=True, slots=True)
class MediaChanged:
    """Codec, address, port or keys changed in mid-call; `media` replaces what was agreed before."""

    call: str
    media: AgreedMedia


@dataclass(frozen=True, slots=True)
class CallHeld:
    """The peer put us on hold (sendonly, inactive or c=0.0.0.0): expect no audio, rest the time-out."""

    call: str
    media: AgreedMedia


@dataclass(frozen=True, slots=True)
class CallResumed:
    """The peer took us off hold."""

    call: str
    media: AgreedMedia


@dataclass(frozen=True, slots=True)
class ChangeAccepted:
    """Our hold(), resume() or reinvite() has its answer; what it changed, if anything, was told before."""

    call: str


@dataclass(frozen=True, slots=True)
class ChangeRefused:
    """Our hold(), resume() or reinvite() was refused; the call goes on as it was (RFC 3261 §14.1)."""

    call: str
    code: int
    reason: str


@dataclass(frozen=True, slots=True)
class DtmfReceived:
    """A digit by SIP INFO. (RFC 4733 digits come out of sip.dtmf, in-band ones out of the media.)"""

    call: str
    digit: str
    """One of 0-9 * # A-D, or ! for hook flash."""
    duration_ms: int


@dataclass(frozen=True, slots=True)
class TransferRequested:
    """The peer sent REFER. It was answered 603 unless settings.accept_refer; then answer_transfer()."""

    call: str
    target: str
    replaces: str | None
    """The Replaces value inside Refer-To, or None for a blind transfer."""


@dataclass(frozen=True, slots=True)
class TransferProgressed:
    """The peer reported on our transfer(): 202 accepted (code 100) or a NOTIFY sipfrag (RFC 3515)."""

    call: str
    code: int
    reason: str


@dataclass(frozen=True, slots=True)
class TransferSucceeded:
    """The transferred call was answered; we sent BYE, CallEnded follows."""

    call: str


@dataclass(frozen=True, slots=True)
class TransferFailed:
    """The transfer was refused, failed or timed out; the call goes on with us."""

    call: str
    code: int
    reason: str


@dataclass(frozen=True, slots=True)
class CallEnded:
    """The call is over and its id forgotten. The last event of every call, exactly once."""

    call: str
    by: EndedBy
    code: int
    """The final SIP code of the INVITE, 200 for a call that was answered and ended normally."""
    reason: str
    """Reason phrase or the peer's Reason header (Q.850 cause), untrusted."""
    headers: Headers = ()
    """Headers of the message that ended the call; empty when we ended it."""


@dataclass(frozen=True, slots=True)
class Registered:
    """A registrar accepted an account (RFC 3261 §10); the refresh is ours to send."""

    account: str
    expires_s: float


@dataclass(frozen=True, slots=True)
class RegistrationLost:
    """A registrar refused or did not answer; the next try is at `retry_after_s` from now."""

    account: str
    code: int
    reason: str
    retry_after_s: float


@dataclass(frozen=True, slots=True)
class TrunkChanged:
    """A trunk began or ceased to answer our OPTIONS."""

    trunk: str
    up: bool
    code: int
    """The last answer's code, 408 for none."""


Event = (
    CallOffered
    | CallCancelled
    | EarlyMediaAccepted
    | CallConfirmed
    | CallRinging
    | EarlyMediaStarted
    | CallAnswered
    | MediaChanged
    | CallHeld
    | CallResumed
    | ChangeAccepted
    | ChangeRefused
    | DtmfReceived
    | TransferRequested
    | TransferProgressed
    | TransferSucceeded
    | TransferFailed
    | CallEnded
    | Registered
    | RegistrationLost
    | TrunkChanged
)
