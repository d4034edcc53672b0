"""SessionTimer: proof that the far end still lives, asked for at intervals (RFC 4028)."""

from __future__ import annotations

import re
from collections.abc import Callable

from sip.alarms import Alarm
from sip.core import Core
from sip.errors import PeerError
from sip.headers import MalformedHeader
from sip.message import Request, Response

_EXPIRES = re.compile(r"(\d{1,9})\s*(?:;(.*))?\Z", re.S)


class IntervalTooSmall(PeerError):
    """The peer's session interval is below our minimum: 422 with Min-SE."""

    code = 422


def parse_session_expires(value: str) -> tuple[int, str | None]:
    """Seconds and who refreshes: uac, uas or None. Raises MalformedHeader."""
    match = _EXPIRES.match(value.strip())
    if match is None:
        raise MalformedHeader("bad Session-Expires")
    refresher = None
    for part in (match[2] or "").split(";"):
        name, _, who = part.strip().partition("=")
        if name.strip().lower() == "refresher" and who.strip().lower() in ("uac", "uas"):
            refresher = who.strip().lower()
    return int(match[1]), refresher


def _seconds(message: Request | Response, name: str, default: int) -> int:
    value = (message.headers.get(name) or "").partition(";")[0].strip()
    return int(value) if re.fullmatch(r"\d{1,9}", value) else default


class SessionTimer:
    """One dialog's timer. `refresh` sends a refresh of ours; `expired` ends the call."""

    def __init__(
        self, core: Core, refresh: Callable[[float], None], expired: Callable[[float], None]
    ) -> None:
        self._core = core
        self._refresh = refresh
        self._expired = expired
        self.interval_s = core.settings.session_expires_s
        self._min_se = core.settings.min_se_s
        self.running = False
        self._alarm: Alarm | None = None
        self._ours = False

    # As server

    def answer(self, request: Request, response: Response, now: float) -> None:
        """Agree with a request's Session-Expires, write it in its 2xx and (re)start.

        Raises MalformedHeader.
        """
        headers = request.headers
        able = "timer" in headers.tokens("supported")
        asked = headers.get("session-expires")
        interval, refresher = parse_session_expires(asked) if asked else (self.interval_s, None)
        if not interval or (not asked and not able and not self._core.settings.session_expires_s):
            return
        interval = max(interval, self._min_se, _seconds(request, "min-se", 0) if not asked else 0)
        refresher = (refresher or "uac") if able else "uas"
        response.headers.add("session-expires", f"{interval};refresher={refresher}")
        if refresher == "uac":
            response.headers.add("require", "timer")
        self._start(interval, refresher == "uas", now)

    def check(self, request: Request) -> None:
        """Raises IntervalTooSmall where a 422 is due (it needs a client that knows of timers), and
        MalformedHeader."""
        asked = request.headers.get("session-expires")
        if asked is None:
            return
        interval, _ = parse_session_expires(asked)
        if interval < self._core.settings.min_se_s and "timer" in request.headers.tokens("supported"):
            raise IntervalTooSmall("session interval too small")

    # As client

    def ask(self, request: Request) -> None:
        """Put our wish on an INVITE or UPDATE."""
        if not self.interval_s:
            return
        value = str(self.interval_s)
        if self.running:
            value += f";refresher={'uac' if self._ours else 'uas'}"
        request.headers.set("session-expires", value)
        request.headers.set("min-se", str(self._min_se))

    def raise_interval(self, response: Response) -> bool:
        """Take a 422's Min-SE. False: it asks for nothing that we did not offer already."""
        wanted = _seconds(response, "min-se", 0)
        if not self.interval_s or wanted <= self.interval_s:
            return False
        self.interval_s = self._min_se = wanted
        return True

    def take_answer(self, response: Response, now: float) -> None:
        """A 2xx to our INVITE or UPDATE: start, or stop where the peer wants no timer."""
        value = response.headers.get("session-expires")
        try:
            interval, refresher = parse_session_expires(value) if value else (0, None)
        except MalformedHeader:
            interval, refresher = 0, None
        if interval:
            self._start(max(interval, 32), refresher != "uas", now)
        else:
            self.stop()

    def _start(self, interval: int, ours: bool, now: float) -> None:
        self.stop()
        self.running, self.interval_s, self._ours = True, interval, ours
        if ours:
            self._alarm = self._core.alarms.set(now + interval / 2, self._on_refresh)
        else:
            self._alarm = self._core.alarms.set(now + interval - min(32, interval / 3), self._expired)

    def _on_refresh(self, now: float) -> None:
        # Should the refresh get no answer, the session still ends in time (§10).
        left = self.interval_s / 2 - min(32, self.interval_s / 3)
        self._alarm = self._core.alarms.set(now + max(left, 1.0), self._expired)
        self._refresh(now)

    def stop(self) -> None:
        self.running = False
        if self._alarm is not None:
            self._alarm.cancel()
            self._alarm = None
