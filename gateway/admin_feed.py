"""AdminFeed: what operators are told of a call while it lasts: the agent's text, keys, states, its end."""

from __future__ import annotations

import asyncio

from gateway.call import Call, CallEvent
from gateway.call_events import KeyPressed, OrderGiven, StateChanged
from gateway.page_events import KEPT_AFTER_END_S, CallFeed
from gateway.switchboard import Switchboard


class AdminFeed(CallFeed):
    """The messages of one call. Keys are told here, and nowhere is a digit logged."""

    state = "new"

    def _take(self, event: CallEvent) -> None:
        match event:
            case StateChanged(state=state):
                self.state = "answered" if state in ("resumed", "transfer failed") else state
                self.add("state", state=state)
            case KeyPressed(digit=digit, duration_ms=duration_ms, source=source):
                self.add("dtmf", digit=digit, duration_ms=duration_ms, source=source)
            case OrderGiven(order=order):
                self.add("order", order=order)
            case _:
                super()._take(event)

    def _end(self, call: Call) -> None:
        self.state = "ended"
        super()._end(call)


class AdminFeeds:
    """The feeds of all calls by call id, kept a while after their end."""

    def __init__(self, switchboard: Switchboard) -> None:
        self._feeds: dict[str, AdminFeed] = {}
        switchboard.on_admitted(self._open)

    def get(self, call_id: str) -> AdminFeed | None:
        return self._feeds.get(call_id)

    def live(self) -> list[AdminFeed]:
        """Of the calls that are not over, oldest first."""
        return [feed for feed in self._feeds.values() if not feed.over]

    def _open(self, call: Call) -> None:
        self._feeds[call.id] = AdminFeed(call)
        call.on_ended(lambda _: self._forget_later(call.id))

    def _forget_later(self, call_id: str) -> None:
        asyncio.get_running_loop().call_later(KEPT_AFTER_END_S, self._feeds.pop, call_id, None)
