"""TrunkProbe: is the far end of a trunk alive? OPTIONS at intervals tell (RFC 3261 §11).

A trunk of several servers is asked in their order until one answers.
"""

from __future__ import annotations

from collections.abc import Sequence

from sip.alarms import Alarm
from sip.core import Core
from sip.events import TrunkChanged
from sip.headers import Headers
from sip.message import Request, Response
from sip.settings import Destination


class TrunkProbe:
    """Any answer but 503 means up; 503, silence and a broken connection mean down."""

    def __init__(
        self, core: Core, name: str, servers: Sequence[Destination], interval_s: float, now: float
    ) -> None:
        """`servers`: one at least."""
        self._core = core
        self._name = name
        self._servers = tuple(servers)
        self._asked = 0
        self.answering: Destination | None = None
        """The server that answered last, while the trunk is up."""
        self._interval_s = interval_s
        self.up: bool | None = None
        self._alarm: Alarm | None = None
        self._stopped = False
        self._send(now)

    def _send(self, now: float) -> None:
        self._asked = 0
        self._ask(now)

    def _ask(self, now: float) -> None:
        core, server = self._core, self._servers[self._asked]
        host, port, transport = server[:3]
        host = f"[{host}]" if ":" in host else host
        uri = f"sip:{host}:{port}" + ("" if transport == "udp" else f";transport={transport}")
        contact = core.contact(server)
        items = [
            ("max-forwards", "70"),
            ("from", f"{contact};tag={core.token()}"),
            ("to", f"<{uri}>"),
            ("call-id", core.token(128)),
            ("cseq", "1 OPTIONS"),
            ("contact", contact),
            ("accept", "application/sdp"),
        ]
        request = Request("OPTIONS", uri, Headers.of_canonical(items))
        core.own(request)
        core.start_client(request, server, self, now)

    def on_response(self, response: Response, now: float) -> None:
        if response.code >= 200:
            self._note(response.code != 503, response.code, now)

    def on_no_response(self, code: int, now: float) -> None:
        self._note(False, code, now)

    def _note(self, up: bool, code: int, now: float) -> None:
        if self._stopped:
            return
        if not up and self._asked + 1 < len(self._servers):
            self._asked += 1
            self._ask(now)
            return
        self.answering = self._servers[self._asked] if up else None
        if up is not self.up:
            self.up = up
            self._core.emit(TrunkChanged(self._name, up, code))
        self._alarm = self._core.alarms.set(now + self._interval_s, self._send)

    def stop(self) -> None:
        self._stopped = True
        if self._alarm is not None:
            self._alarm.cancel()
