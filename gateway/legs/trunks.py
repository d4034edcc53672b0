"""Trunks: accounts kept registered, trunks kept watched, and what is known of each now.

It turns the configuration into the user agent's words and keeps the states that operators look at; when
to refresh and when to probe is the user agent's business.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from dataclasses import dataclass

from gateway.config_phone import AccountSettings, TrunkSettings
from gateway.legs.dialling import Outbound
from sip.agent import UserAgent
from sip.events import Event, Registered, RegistrationLost, TrunkChanged
from sip.settings import Access, Account, Credentials, Destination, Trunk

log = logging.getLogger(__name__)

DEFAULT_PORTS = {"udp": 5060, "tcp": 5060, "tls": 5061}


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
    ) -> None:
        self.trunks = dict(trunks)
        self.accounts = dict(accounts)
        self.agent = agent
        self.transmit = transmit
        self.states: dict[tuple[str, str], LineState] = {}
        """By (`trunk` or `account`, name)."""

    def start(self, now: float) -> None:
        """Begin to register and to probe. Raises ValueError for a URI that is none."""
        for name, account in self.accounts.items():
            self.states["account", name] = LineState(False, 0)
            self.agent.register(_account(name, account), now)
        for name, trunk in self.trunks.items():
            if trunk.server is not None and trunk.keepalive_s > 0:
                self.states["trunk", name] = LineState(False, 0)
                self.agent.watch_trunk(name, destination(trunk), now, trunk.keepalive_s)
        self.transmit()

    def stop(self, now: float) -> None:
        """Unregister and cease probing; the goodbyes are sent, not waited for."""
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
            to = destination(trunk)
            host = f"[{to.host}]" if ":" in to.host else to.host
            credentials = _credentials(trunk.username, trunk.secret())
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


def destination(trunk: TrunkSettings) -> Destination:
    """Where a trunk's server is; the port is SIP's own unless it names one."""
    assert trunk.server is not None
    host, port = trunk.server, DEFAULT_PORTS[trunk.transport]
    if (not host.endswith("]") and host.count(":") == 1) or "]:" in host:
        host, _, digits = host.rpartition(":")
        port = int(digits)
    return Destination(host.strip("[]"), port, trunk.transport)


def _account(name: str, settings: AccountSettings) -> Account:
    credentials = _credentials(settings.username or settings.user, settings.secret())
    return Account(name, settings.registrar, settings.aor, credentials, settings.expires_s)


def _credentials(username: str | None, password: str | None) -> Credentials | None:
    return None if username is None or password is None else Credentials(username, password)
