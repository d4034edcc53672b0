"""Who may speak to us: trunks by address, users by digest, strangers by setting; floods and guessers by
limits that work before anything is parsed (RFC 3261 §22, §26; RFC 8760)."""

from __future__ import annotations

import hashlib
import hmac
import ipaddress
from collections import OrderedDict
from dataclasses import dataclass
from typing import Literal

from sip.auth import ALGORITHMS, Challenge, digest_response, equal_digests, parse_digest
from sip.errors import PeerError
from sip.message import Request
from sip.settings import Access
from sip.uri import parse_uri

Network = ipaddress.IPv4Network | ipaddress.IPv6Network
MAX_SOURCES = 10_000
"""Addresses remembered at once; the one heard least recently goes."""
CHARGED_BYTES = 2_000
"""A longer message costs its sender more of his allowance, as it costs us more time."""
MAX_STREAMS_EACH = 50
"""TCP and TLS connections of one address that is no trunk's."""
MAX_NONCES = 10_000
NONCE_S = 120.0


class Blocked(PeerError):
    """The message is dropped without an answer."""


class Denied(PeerError):
    """The request is answered 401 (with `challenges`) or 403."""

    def __init__(self, code: int, challenges: tuple[str, ...] = ()) -> None:
        super().__init__("not let in", code)
        self.challenges = challenges


@dataclass(slots=True)
class _Source:
    """What is remembered of one address."""

    tokens: float
    strange: float
    at: float
    failures: int = 0


class Gate:
    """`secret` signs nonces; let it be 32 random bytes."""

    def __init__(self, access: Access, secret: bytes, registrar: bool = False) -> None:
        """Raises ValueError for an address that is none."""
        self._answered = {"INVITE", "REGISTER"} if registrar else {"INVITE"}
        self._access = access
        self._secret = secret
        self._serial = 0
        self._trunks: list[tuple[Network, str]] = [
            (ipaddress.ip_network(address, strict=False), trunk.name)
            for trunk in access.trunks
            for address in trunk.addresses
        ]
        self._users = {
            trunk.credentials.username: (trunk.credentials.password, trunk.name)
            for trunk in access.trunks
            if trunk.credentials is not None
        }
        self._sources: OrderedDict[str, _Source] = OrderedDict()
        self._banned: OrderedDict[str, float] = OrderedDict()
        """Until when; apart from the rest, so that a flood from many addresses lifts no ban."""
        self._by_address: OrderedDict[str, str | None] = OrderedDict()
        self._counts: OrderedDict[str, int] = OrderedDict()

    def trunk_of(self, host: str) -> str | None:
        """The trunk whose address list holds a source."""
        if not self._trunks:
            return None
        if host not in self._by_address:
            self._by_address[host] = self._look_up(host)
            if len(self._by_address) > MAX_SOURCES:
                self._by_address.popitem(last=False)
        return self._by_address[host]

    def _look_up(self, host: str) -> str | None:
        try:
            address = ipaddress.ip_address(host.partition("%")[0])
        except ValueError:
            return None
        mapped = getattr(address, "ipv4_mapped", None)
        address = mapped if mapped is not None else address
        return next((name for network, name in self._trunks if address in network), None)

    def admits(self, host: str, now: float, size: int = 0) -> bool:
        """Before parsing: False drops the bytes, `size` of them, which count as a message each CHARGED_BYTES.
        Trunks are never limited or banned."""
        if self.trunk_of(host) is not None:
            return True
        if self.bans(host, now):
            return False
        source = self._source(host, now)
        price = 1 + size // CHARGED_BYTES
        if source.tokens < price:
            return False
        source.tokens -= price
        return True

    def bans(self, host: str, now: float) -> bool:
        """Nothing of this address is looked at, for now."""
        return bool(self._banned) and self._banned.get(site_of(host), now) > now

    def streams_allowed(self, host: str, now: float) -> int | None:
        """How many connections an address may hold at once; None for as many as a trunk likes."""
        if self.trunk_of(host) is not None:
            return None
        return 0 if self.bans(host, now) else MAX_STREAMS_EACH

    def is_open_to(self, host: str) -> bool:
        """A source that is let in without a question: it may learn what was wrong with its bytes."""
        return self.trunk_of(host) is not None or (self._access.open and not self._users)

    def _source(self, host: str, now: float) -> _Source:
        access = self._access
        host = site_of(host)
        source = self._sources.pop(host, None)
        if source is None:
            source = _Source(access.flood_burst, access.stranger_burst, now)
            if len(self._sources) >= MAX_SOURCES:
                self._sources.popitem(last=False)
        past = max(0.0, now - source.at)
        source.tokens = min(access.flood_burst, source.tokens + past * access.flood_per_s)
        source.strange = min(access.stranger_burst, source.strange + past * access.stranger_per_s)
        source.at = now
        self._sources[host] = source
        return source

    def check(self, request: Request, host: str, now: float) -> str | None:
        """Let a request outside of any dialog in: the name of its trunk, or None for an open port.

        Raises Denied, Blocked. Whoever is not let in gets the same whatever user he names.
        """
        trunk = self.trunk_of(host)
        if trunk is not None:
            return trunk
        if not self._users:
            if self._access.open:
                return None
            self._spend(host, now)
            raise Denied(403) if self._access.unknown == "refuse" else Blocked("unknown source")
        self._spend(host, now)
        return self._authenticate(request, host, now)

    def _spend(self, host: str, now: float) -> None:
        """Strangers have a small allowance of their own."""
        source = self._source(host, now)
        if source.strange < 1:
            raise Blocked("too many requests before authentication")
        source.strange -= 1

    def _authenticate(self, request: Request, host: str, now: float) -> str:
        header = request.headers.get("authorization")
        if header is None:
            if request.method not in self._answered and self._access.unknown == "ignore":
                raise Blocked("a scanner's question")  # only who would call learns that we are here
            raise self._challenge(host, now)
        outcome, trunk = self._judge(header, request, host, now)
        if outcome == "wrong" and self._is_ours(nonce_in(header), host):
            # Who shows our nonce has got our answer: nobody is banned for what was sent in his name.
            self._note_failure(host, now)
        if outcome != "right":
            raise self._challenge(host, now, stale=outcome == "stale")
        source = self._source(host, now)
        source.failures = 0
        source.strange = min(self._access.stranger_burst, source.strange + 2)  # the challenged one and this
        return trunk

    def _judge(
        self, header: str, request: Request, host: str, now: float
    ) -> tuple[Literal["right", "wrong", "stale"], str]:
        try:
            digest = parse_digest(header)
            nonce, algorithm = digest["nonce"], digest.get("algorithm", "MD5")
            name, given, uri = digest["username"], digest["response"], digest["uri"]
            count = int(digest["nc"], 16)
        except (PeerError, KeyError, ValueError):
            return "wrong", ""
        offered = {name.lower() for name in self._access.algorithms} & ALGORITHMS.keys()
        if algorithm.lower() not in offered or digest.get("realm") != self._access.realm:
            return "wrong", ""
        password, trunk = self._users.get(name, ("no such user", ""))
        challenge = Challenge(self._access.realm, nonce, None, algorithm, digest.get("qop", "auth"))
        expected = digest_response(
            challenge, name, password, request.method, uri,
            body=request.body, nc=digest["nc"], cnonce=digest.get("cnonce", ""),
        )  # fmt: skip
        if not equal_digests(expected, given) or not trunk or not _same_host(uri, request.uri):
            return "wrong", ""
        if not self._nonce_is_good(nonce, host, now) or not self._count_is_new(nonce, count):
            return "stale", ""
        return "right", trunk

    def _note_failure(self, host: str, now: float) -> None:
        source = self._source(host, now)
        source.failures += 1
        if source.failures < self._access.failures_before_ban:
            return
        source.failures = 0
        self._banned.pop(site_of(host), None)
        self._banned[site_of(host)] = now + self._access.ban_s
        if len(self._banned) > MAX_SOURCES:
            self._banned.popitem(last=False)

    # Nonces carry their own time and need no memory; only their use is counted.

    def _challenge(self, host: str, now: float, stale: bool = False) -> Denied:
        self._serial += 1  # two phones behind one address must not share a nonce and its count
        nonce = self._sign(f"{int(now * 1_000):x}-{self._serial:x}", host)
        tail = ", stale=true" if stale else ""
        realm = self._access.realm.replace("\\", "").replace('"', "")
        return Denied(
            401,
            tuple(
                f'Digest realm="{realm}", nonce="{nonce}", qop="auth", algorithm={algorithm}{tail}'
                for algorithm in self._access.algorithms
            ),
        )

    def _sign(self, stamp: str, host: str) -> str:
        seal = hmac.new(
            self._secret, f"{stamp}|{host}".encode("utf-8", "surrogateescape"), hashlib.sha256
        ).hexdigest()[:32]
        return f"{stamp}.{seal}"

    def _is_ours(self, nonce: str, host: str) -> bool:
        """We gave this nonce to this address, however long ago."""
        return equal_digests(self._sign(nonce.partition(".")[0], host), nonce)

    def _nonce_is_good(self, nonce: str, host: str, now: float) -> bool:
        if not self._is_ours(nonce, host):
            return False
        stamp = nonce.partition(".")[0]
        return 0 <= now - int(stamp.partition("-")[0], 16) / 1_000 + 0.001 <= NONCE_S

    def _count_is_new(self, nonce: str, count: int) -> bool:
        """nc must grow: a request that was overheard cannot be sent again (RFC 7616 §3.4)."""
        if count <= self._counts.get(nonce, 0):
            return False
        self._counts[nonce] = count
        self._counts.move_to_end(nonce)
        if len(self._counts) > MAX_NONCES:
            self._counts.popitem(last=False)
        return True


def _same_host(claimed: str, asked: str) -> bool:
    """The digest's uri names this server. Its user part may differ: some clients leave it out, and a
    header that was overheard is refused for its nonce and count."""
    try:
        return parse_uri(claimed).host.lower() == parse_uri(asked).host.lower()
    except PeerError:
        return False


def nonce_in(header: str) -> str:
    """The nonce of an Authorization header; "" where it cannot be read."""
    try:
        return parse_digest(header).get("nonce", "")
    except PeerError:
        return ""


def site_of(host: str) -> str:
    """Who is counted as one: an IPv4 address, or an IPv6 network of 64 bits, which one attacker has whole."""
    if ":" not in host:
        return host
    try:
        address = ipaddress.IPv6Address(host.partition("%")[0])
    except ValueError:
        return host
    if address.ipv4_mapped is not None:
        return str(address.ipv4_mapped)
    return f"{address.packed[:8].hex()}/64"
