"""What the owner of a UserAgent decides: plain values, no I/O."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import NamedTuple

from sip.events import Address, Transport


class Destination(NamedTuple):
    """Where bytes go: a socket address and the transport to use."""

    host: str
    """An IP literal without brackets, or a name that the shell resolves."""
    port: int
    transport: Transport = "udp"
    flow: Address | None = None
    """The far end of an open stream to use instead of a new one, if it still stands (RFC 5626)."""


@dataclass(frozen=True, slots=True)
class Credentials:
    """A user name and password for digest authentication (RFC 3261 §22, RFC 8760)."""

    username: str
    password: str = field(repr=False)
    realm: str | None = None
    """None: any realm that asks."""


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
    accept_refer: bool = False
    """False: REFER from a peer gets 603 and TransferRequested is not emitted."""
