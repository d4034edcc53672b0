"""Trunks: accounts kept registered, trunks kept watched, and what is known of each now.

It turns the configuration into the user agent's words and keeps the states that operators look at; when
to refresh and when to probe is the user agent's business. Servers that are domains are looked up here, again
and again: DNS may name others.
"""

from __future__ import annotations

import asyncio
import logging
import random
from collections.abc import Callable, Mapping
from dataclasses import dataclass

from gateway.config_phone import AccountSettings, TrunkSettings
from gateway.legs.dialling import Outbound
from sip.agent import UserAgent
from sip.dialog import is_ip
from sip.dns import Dns
from sip.events import Event, Registered, RegistrationLost, TrunkChanged
from sip.locate import Lookup, locate
from sip.settings import Access, Account, Credentials, Destination, Trunk
from sip.uri import parse_uri

log = logging.getLogger(__name__)

DEFAULT_PORTS = {"udp": 5060, "tcp": 5060, "tls": 5061}
LOOK_S = 60.0
"""Between two look-ups of a domain."""


UNKNOWN = 404
"""The code of a domain that DNS does not know."""


@dataclass(frozen=True, slots=True)
class LineState:
    """What is known of a trunk or an account."""

    up: bool
    code: int
    """The last answer; 0 before the first, 408 for none."""


class Trunks:
    """All trunks and accounts of one user agent. `transmit` is called after the agent was told something."""

    def __init__(
        self,
        trunks: Mapping[str, TrunkSettings],
        accounts: Mapping[str, AccountSettings],
        agent: UserAgent,
        transmit: Callable[[], None],
        lookup: Lookup | None = None,
    ) -> None:
        self.lookup: Lookup = lookup or Dns()
        """Where domains are looked up."""
        self._lots = random.SystemRandom()
        self._located: dict[tuple[str, str], frozenset[Destination]] = {}
        self._looking: asyncio.Task[None] | None = None
        self.trunks = dict(trunks)
        self.accounts = dict(accounts)
        self.agent = agent
        self.transmit = transmit
        self.states: dict[tuple[str, str], LineState] = {}
        """By (`trunk` or `account`, name)."""

    def start(self, now: float) -> None:
        """Begin to register and to probe. Raises ValueError for a URI that is none."""
        domains = []
        for name, account in self.accounts.items():
            self.states["account", name] = LineState(False, 0)
            if (uri := located(account.registrar)) is not None:
                domains.append(("account", name, uri))
            else:
                self.agent.register(_account(name, account), now)
        for name, trunk in self.trunks.items():
            if trunk.server is not None and trunk.keepalive_s > 0:
                self.states["trunk", name] = LineState(False, 0)
                if (uri := domain(trunk)) is not None:
                    domains.append(("trunk", name, uri))
                else:
                    self.agent.watch_trunk(name, destination(trunk), now=now, interval_s=trunk.keepalive_s)
        self.transmit()
        if domains:
            self._looking = asyncio.get_running_loop().create_task(self._look_on(domains), name="look up")

    async def _look_on(self, domains: list[tuple[str, str, str]]) -> None:
        while True:
            await asyncio.gather(*(self.look(*domain) for domain in domains))
            await asyncio.sleep(LOOK_S)

    async def look(self, kind: str, name: str, uri: str) -> None:
        """Look a domain up, and turn to its servers where they are others than before. A name that leads
        nowhere now leaves those that are known."""
        servers = await locate(parse_uri(uri), self.lookup, self._lots)
        if not servers and (kind, name) not in self._located:
            self._became(kind, name, False, UNKNOWN)
        if not servers or self._located.get((kind, name)) == frozenset(servers):
            return
        known = (kind, name) in self._located
        self._located[kind, name] = frozenset(servers)
        now = asyncio.get_running_loop().time()
        if kind == "account" and known:
            self.agent.move_account(name, tuple(servers))
        elif kind == "account":
            self.agent.register(_account(name, self.accounts[name], tuple(servers)), now)
        else:
            interval_s = self.trunks[name].keepalive_s
            self.agent.watch_trunk(name, *servers, now=now, interval_s=interval_s)
        self.transmit()

    def stop(self, now: float) -> None:
        """Unregister and cease probing; the goodbyes are sent, not waited for."""
        if self._looking is not None:
            self._looking.cancel()
        for name in self.accounts:
            self.agent.unregister(name, now)
        for name in self.trunks:
            self.agent.unwatch_trunk(name)
        self.transmit()

    def receive(self, event: Event) -> None:
        """Take an event of the user agent; others than of trunks and accounts pass by."""
        match event:
            case Registered(account=name):
                self._became("account", name, True, 200)
            case RegistrationLost(account=name, code=code):
                self._became("account", name, False, code)
            case TrunkChanged(trunk=name, up=up, code=code):
                self._became("trunk", name, up, code)

    def route(self, name: str, number: str) -> tuple[str, Outbound]:
        """The URI of a number behind a trunk's server or an account's registrar, and how to call it.
        Raises KeyError for a name that is neither, or a trunk that has no server."""
        trunk = self.trunks.get(name)
        if trunk is not None and trunk.server is not None:
            credentials = _credentials(trunk.username, trunk.secret())
            uri = domain(trunk)
            if uri is not None:
                way = Outbound(None, credentials, trunk.caller, alive=self.agent.answering(name))
                return uri.replace("sip:", f"sip:{number}@", 1), way
            to = destination(trunk)
            host = f"[{to.host}]" if ":" in to.host else to.host
            return f"sip:{number}@{host}:{to.port}", Outbound(to, credentials, trunk.caller)
        account = self.accounts[name]
        made = _account(name, account)
        return f"sip:{number}@{account.domain}", Outbound(None, made.credentials, made.aor)

    def _became(self, kind: str, name: str, up: bool, code: int) -> None:
        before = self.states.get((kind, name))
        self.states[kind, name] = LineState(up, code)
        if before is None or not before.code or before.up != up:
            level = logging.INFO if up else logging.WARNING
            log.log(level, "%s %s is %s (%d)", kind, name, "up" if up else "down", code)


def access(trunks: Mapping[str, TrunkSettings], opened: bool | None, unknown: str) -> Access:
    """Who may call: anybody while no trunk is configured, unless `opened` says otherwise."""
    known = tuple(
        Trunk(name, trunk.addresses, _credentials(trunk.username, trunk.secret()))
        for name, trunk in trunks.items()
    )
    is_open = opened if opened is not None else not known
    return Access(open=is_open, trunks=known, unknown="refuse" if unknown == "refuse" else "ignore")


def located(uri: str) -> str | None:
    """The URI if it is a domain's and DNS has to say where its servers are: no port, no address."""
    parsed = parse_uri(uri)
    is_domain = parsed.port is None and not is_ip(parsed.host) and "." in parsed.host.strip(".")
    return uri if is_domain else None


def domain(trunk: TrunkSettings) -> str | None:
    """The URI of a trunk's server if that is a domain."""
    transport = "" if trunk.transport is None else f";transport={trunk.transport}"
    return located(f"sip:{trunk.server}{transport}")


def destination(trunk: TrunkSettings) -> Destination:
    """Where a trunk's server is; the port is SIP's own unless it names one."""
    assert trunk.server is not None
    transport = trunk.transport or "udp"
    host, port = trunk.server, DEFAULT_PORTS[transport]
    if (not host.endswith("]") and host.count(":") == 1) or "]:" in host:
        host, _, digits = host.rpartition(":")
        port = int(digits)
    return Destination(host.strip("[]"), port, transport)


def _account(name: str, settings: AccountSettings, servers: tuple[Destination, ...] = ()) -> Account:
    credentials = _credentials(settings.username or settings.user, settings.secret())
    return Account(name, settings.registrar, settings.aor, credentials, settings.expires_s, servers)


def _credentials(username: str | None, password: str | None) -> Credentials | None:
    return None if username is None or password is None else Credentials(username, password)
