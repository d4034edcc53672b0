"""CallCaps: whether one more call may be placed. Pure: it is told the time and how many calls out there are.

Each cap alone bounds what a stolen key or a mad program can cost (toll fraud): where, how often, how many
at once; how long is the watch's business.
"""

from __future__ import annotations

import re
from collections import deque
from dataclasses import dataclass
from typing import Literal

from sip.uri import parse_uri

Cap = Literal["enabled", "prefixes", "hosts", "per_minute", "concurrent"]
MINUTE_S = 60.0
_SEPARATORS = re.compile(r"[ ().-]")
_NUMBER = re.compile(r"\+?[0-9*#]{1,32}")


class Capped(Exception):
    """The call may not be placed: `cap` names the setting of [outbound] that forbids it."""

    def __init__(self, cap: Cap, message: str, retry_after_s: float | None = None) -> None:
        super().__init__(message)
        self.cap = cap
        self.retry_after_s = retry_after_s


class BadNumber(ValueError):
    """Neither a number nor a sip: URI."""


@dataclass(frozen=True, slots=True)
class CapLimits:
    """The caps; the defaults let nothing through."""

    enabled: bool = False
    prefixes: tuple[str, ...] = ()
    hosts: tuple[str, ...] = ()
    per_minute: int = 10
    concurrent: int = 2


@dataclass(frozen=True, slots=True)
class Called:
    """Who is to be called."""

    user: str
    """A number without separators, or the user part of the URI."""
    uri: str | None = None
    """Where, when a URI was given; None: by a trunk."""


class CallCaps:
    """All calls out of one gateway."""

    def __init__(self, limits: CapLimits) -> None:
        self.limits = limits
        self._begun: deque[float] = deque()

    def check(self, to: str, now: float, live: int) -> Called:
        """Let one call through and count it. Raises Capped, BadNumber."""
        limits = self.limits
        if not limits.enabled:
            raise Capped("enabled", "calling out is switched off ([outbound] enabled)")
        called = parse_called(to)
        if called.uri is not None and parse_uri(called.uri).host.lower() not in limits.hosts:
            raise Capped("hosts", "this host may not be called ([outbound] hosts)")
        if not called.user.startswith(limits.prefixes):
            raise Capped("prefixes", "numbers with this beginning may not be called ([outbound] prefixes)")
        if live >= limits.concurrent:
            raise Capped("concurrent", f"{live} calls out at once are all there may be", 5.0)
        while self._begun and now - self._begun[0] >= MINUTE_S:
            self._begun.popleft()
        if len(self._begun) >= limits.per_minute:
            wait_s = MINUTE_S - (now - self._begun[0])
            raise Capped("per_minute", f"{limits.per_minute} calls a minute are all there may be", wait_s)
        self._begun.append(now)
        return called


def parse_called(to: str) -> Called:
    """A number in any usual spelling, or a sip: URI. Raises BadNumber."""
    if to.lower().startswith(("sip:", "sips:")):
        try:
            uri = parse_uri(to)
        except ValueError as error:
            raise BadNumber("not a SIP URI") from error
        if uri.user is None or uri.headers or any(name.lower() != "transport" for name, _ in uri.params):
            # maddr and Route headers would lead elsewhere than the host that was checked.
            raise BadNumber("a SIP URI needs a user, and may carry no parameter but transport")
        return Called(uri.user_text, to)
    number = _SEPARATORS.sub("", to)
    if not _NUMBER.fullmatch(number):
        raise BadNumber("neither a number nor a sip: URI")
    return Called(number)
