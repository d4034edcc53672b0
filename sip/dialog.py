"""Dialog: the lasting relation of two user agents (RFC 3261 §12): tags, sequence numbers, route, target."""

from __future__ import annotations

import ipaddress
import re
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

from sip.core import Core
from sip.errors import PeerError
from sip.events import Address, Transport
from sip.headers import Headers, MalformedHeader, parse_name_addr
from sip.message import Request, Response
from sip.settings import Destination
from sip.uri import Uri, parse_uri
from sip.via import MAGIC_COOKIE

_PRIVATE = [
    ipaddress.ip_network(text)
    for text in (
        "10.0.0.0/8",
        "172.16.0.0/12",
        "192.168.0.0/16",
        "100.64.0.0/10",
        "169.254.0.0/16",
        "127.0.0.0/8",
        "fc00::/7",
        "fe80::/10",
        "::1/128",
    )
]
_IP = re.compile(r"\d{1,3}(\.\d{1,3}){3}\Z|[0-9A-Fa-f:.]*:[0-9A-Fa-f:.]*\Z")


def is_ip(host: str) -> bool:
    return _IP.match(host) is not None


@lru_cache(maxsize=1_024)
def is_inside(host: str) -> bool:
    """An address of a private network, which nobody outside of it can send to (RFC 1918, 6598, 4193)."""
    try:
        address = ipaddress.ip_address(host)
    except ValueError:
        return False
    return any(address in network for network in _PRIVATE if network.version == address.version)


def destination_of(uri: Uri, transport: Transport = "udp", flow: Address | None = None) -> Destination:
    """Where a URI sends to (RFC 3263 §4 without DNS): sips and transport= decide, else `transport`.

    `flow` is the far end of a stream already open; it is reused for the same host (RFC 5626).
    """
    named = uri.param("transport")
    if uri.scheme == "sips" or named == "tls":
        transport = "tls"
    elif named in ("udp", "tcp"):
        transport = named  # type: ignore[assignment]
    elif flow is not None and flow[0] != uri.host:
        transport = "udp"
    if transport == "udp" or (flow is not None and flow[0] != uri.host):
        flow = None
    return Destination(uri.host, uri.port or (5061 if transport == "tls" else 5060), transport, flow)


@dataclass(slots=True)
class Dialog:
    call_id: str
    local: str
    """Our From or To value, tag included."""
    local_tag: str
    remote: str
    """The peer's, as it came."""
    remote_tag: str | None
    target: str
    """The remote target: the URI of the peer's last Contact."""
    routes: tuple[str, ...]
    """Route header values, nearest first."""
    transport: Transport
    flow: Address | None
    origin: Destination
    """Where the INVITE went or came from: the way to a target that names no host."""
    local_seq: int
    remote_seq: int | None = None

    @classmethod
    def of_invite(cls, request: Request, local_tag: str, source: Destination) -> Dialog:
        """The server's side, out of the INVITE it answers (§12.1.1). Raises MalformedHeader."""
        return cls._checked(
            call_id=request.call_id,
            local=f"{request.headers.get('to')};tag={local_tag}",
            local_tag=local_tag,
            remote=request.headers.get("from") or "",
            remote_tag=request.from_.tag,
            target=contact_uri(request) if not _is_rfc2543(request) else _sender_uri(request),
            routes=tuple(request.headers.get_list("record-route")),
            transport=source.transport,
            flow=source.flow,
            origin=source,
            local_seq=0,
            remote_seq=request.cseq.number,
        )

    @classmethod
    def of_response(cls, invite: Request, response: Response, destination: Destination) -> Dialog:
        """The client's side, out of a response that makes one (§12.1.2). Raises MalformedHeader."""
        return cls._checked(
            call_id=invite.call_id,
            local=invite.headers.get("from") or "",
            local_tag=invite.from_.tag or "",
            remote=response.headers.get("to") or "",
            remote_tag=response.to.tag,
            target=contact_uri(response) if response.headers.get("contact") else invite.uri,
            routes=tuple(reversed(response.headers.get_list("record-route"))),
            transport=destination.transport,
            flow=None if destination.transport == "udp" else destination.flow or destination[:2],
            origin=destination,
            local_seq=invite.cseq.number,
        )

    @classmethod
    def _checked(cls, **fields: Any) -> Dialog:
        """A dialog whose route can be gone: better refused now than a BYE that cannot be sent."""
        made = cls(**fields)
        made.next_hop()
        return made

    def next_seq(self) -> int:
        self.local_seq += 1
        return self.local_seq

    def take_seq(self, number: int) -> bool:
        """Note a request's CSeq. False: it is older than one seen, answer 500 (§12.2.2)."""
        if self.remote_seq is not None and number <= self.remote_seq:
            return False
        self.remote_seq = number
        return True

    def refresh_target(self, message: Request | Response) -> None:
        """INVITE and UPDATE, and their 2xx, move the remote target (§12.2)."""
        try:
            self.target = contact_uri(message)
        except PeerError:
            return  # a target refresh without a Contact keeps the target

    def request(self, core: Core, method: str, seq: int | None = None) -> Request:
        """A request inside the dialog, complete but for Via, Contact and body."""
        uri, routes = self.target, self.routes
        if routes and not parse_uri(parse_name_addr(routes[0]).uri).loose:
            uri, routes = parse_name_addr(routes[0]).uri, (*routes[1:], f"<{self.target}>")
        items = [("route", route) for route in routes]
        items += [
            ("max-forwards", "70"),
            ("from", self.local),
            ("to", self.remote),
            ("call-id", self.call_id),
            ("cseq", f"{self.next_seq() if seq is None else seq} {method}"),
        ]
        request = Request(method, uri, Headers.of_canonical(items))
        core.own(request)
        return request

    def next_hop(self) -> Destination:
        """The first route, or the target (§12.2.1.1)."""
        text = parse_name_addr(self.routes[0]).uri if self.routes else self.target
        uri = parse_uri(text)
        if not self.routes and is_inside(uri.host) and not is_inside(self.origin.host):
            return self.origin  # a phone behind NAT names an address that leads nowhere from here
        return destination_of(uri, self.transport, self.flow) if uri.host else self.origin


def _is_rfc2543(request: Request) -> bool:
    """An old INVITE may do without Contact: its From is the way back."""
    return "contact" not in request.headers and not request.via.branch.startswith(MAGIC_COOKIE)


def _sender_uri(request: Request) -> str:
    uri = request.from_.uri
    if not parse_uri(uri).host:
        raise MalformedHeader("a caller without Contact wants a host in From")
    return uri


def contact_uri(message: Request | Response) -> str:
    """The URI of the one Contact that makes a dialog. Raises MalformedHeader, MalformedUri."""
    contacts = message.headers.get_list("contact")
    if len(contacts) != 1:
        raise MalformedHeader("a dialog wants one Contact")
    uri = parse_name_addr(contacts[0]).uri
    if not parse_uri(uri).host:
        raise MalformedHeader("a Contact wants a host")
    return uri
