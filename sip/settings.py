"""What the owner of a UserAgent decides: plain values, no I/O."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal, NamedTuple

from sip.events import Address, Transport


class Destination(NamedTuple):
    """Where bytes go: a socket address and the transport to use."""

    host: str
    """An IP literal without brackets, or a name that the shell resolves."""
    port: int
    transport: Transport = "udp"
    flow: Address | None = None
    """The far end of an open stream to use instead of a new one, if it still stands (RFC 5626)."""
    domain: str | None = None
    """Whose certificate the far end of a new TLS connection must show (RFC 5922); None: the host's."""


@dataclass(frozen=True, slots=True)
class Credentials:
    """A user name and password for digest authentication (RFC 3261 §22, RFC 8760)."""

    username: str
    password: str = field(repr=False)
    realm: str | None = None
    """None: any realm that asks."""


@dataclass(frozen=True, slots=True)
class Trunk:
    """A carrier or PBX that may call us: known by its addresses, or by the digest it presents."""

    name: str
    addresses: tuple[str, ...] = ()
    """IP addresses or networks, such as 203.0.113.0/24."""
    credentials: Credentials | None = None
    """What it must present when it comes from elsewhere."""


@dataclass(frozen=True, slots=True)
class Access:
    """Who is let in. A trunk's address always is; where any trunk has credentials, everybody else must
    show some; where none has, `open` decides."""

    open: bool = True
    """Anybody may call (as long as no trunk has credentials)."""
    trunks: tuple[Trunk, ...] = ()
    unknown: Literal["ignore", "refuse"] = "ignore"
    """What strangers get while not open: nothing at all (where digest lets callers in, an INVITE still
    gets its 401), or 403 (401)."""
    realm: str = "moshi-gateway"
    algorithms: tuple[str, ...] = ("SHA-256", "MD5")
    """Digests we ask for, best first (RFC 8760)."""
    flood_per_s: float = 1_000.0
    """Messages a second that one address may send before any is parsed; twice that in a burst."""
    stranger_per_s: float = 5.0
    """Requests a second of one address that is not let in, or not yet; four times that in a burst."""
    failures_before_ban: int = 10
    ban_s: float = 600.0

    @property
    def flood_burst(self) -> float:
        return 2 * self.flood_per_s

    @property
    def stranger_burst(self) -> float:
        return 4 * self.stranger_per_s


@dataclass(frozen=True, slots=True)
class Account:
    """An extension of a PBX, or a subscription of a carrier, that we register (RFC 3261 §10)."""

    name: str
    registrar: str
    """Request-URI, such as sip:pbx.example."""
    aor: str
    """Address of record, such as sip:1000@pbx.example."""
    credentials: Credentials | None = None
    expires_s: int = 3_600
    servers: tuple[Destination, ...] = ()
    """Tried in turn; empty: where the registrar's URI leads without DNS records."""


@dataclass(frozen=True, slots=True)
class AgentSettings:
    """Everything a UserAgent may be told before it starts."""

    user: str = "moshi"
    """The user part of our Contact and From."""
    user_agent: str = "moshi-gateway"
    """User-Agent and Server header; "" leaves them out."""
    public_host: str | None = None
    """Goes into Via and Contact instead of the bound address (1:1 NAT, cloud)."""
    public_port: int | None = None
    max_calls: int = 1_000
    """Dialogs at once, in any state; one more gets 503 + Retry-After."""
    retry_after_s: int = 5
    """Retry-After of a 503."""
    max_message_bytes: int = 65_535
    ring_timeout_s: float = 180.0
    """An offered call that nobody answers gets 480; one we place is cancelled (RFC 3261 §13.3.1.1)."""
    t1_s: float = 0.5
    """Round-trip estimate: every transaction timer follows from it (RFC 3261 §17)."""
    session_expires_s: int = 1_800
    """Session interval we ask for (RFC 4028); 0 asks for none."""
    min_se_s: int = 90
    """Shortest session interval we take; less gets 422."""
    outbound_proxy: Destination | None = None
    """Requests outside a dialog go here instead of to the URI's host."""
    access: Access = Access()
    max_transactions: int = 20_000
    """Requests of peers remembered at once; beyond that new ones outside of dialogs are dropped."""
    registrar: bool = False
    """Take REGISTER from phones that the access rules let in."""
    accept_refer: bool = False
    """False: REFER from a peer gets 603 and TransferRequested is not emitted."""
