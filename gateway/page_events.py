"""CallFeed: what a page is told of its call while it lasts, numbered, so that a page that lost its stream
takes it up where it was. One server-sent event a message (HTML Living Standard §9.2).
"""

from __future__ import annotations

import asyncio
import json
import secrets
from collections import deque
from collections.abc import AsyncIterator

from engine.api import TextSpoken
from gateway.call import Call, CallEvent
from gateway.duplex import DuplexEvent
from gateway.turn_messages import turn_message

KEPT = 500
"""Messages kept for a page that reconnects: at 12.5 a second, 40 s of uninterrupted text."""
KEPT_AFTER_END_S = 30.0
"""How long a page may still ask why its call ended."""


class CallFeed:
    """The messages of one call, oldest first; the oldest are dropped when KEPT are waiting."""

    def __init__(self, call: Call) -> None:
        self.call = call
        self.readers = 0
        self.over = False
        self._messages: deque[tuple[int, str]] = deque(maxlen=KEPT)
        self._count = 0
        self._changed = asyncio.Event()
        call.on_event(self._take)
        call.on_ended(self._end)

    def add(self, kind: str, **fields: object) -> None:
        """Append a message: `{"type": kind, …fields}`."""
        self._count += 1
        self._messages.append((self._count, json.dumps({"type": kind, **fields}, separators=(",", ":"))))
        self._changed.set()

    async def read(self, after: int = 0) -> AsyncIterator[tuple[int, str]]:
        """(number, JSON) of every message after the given number, as they come, until the call is over."""
        while True:
            for number, message in [m for m in self._messages if m[0] > after]:
                after = number
                yield number, message
            if self._messages and self._messages[-1][0] > after:
                continue
            if self.over:
                return
            self._changed.clear()
            await self._changed.wait()

    def stats(self) -> str:
        """What the gateway measures of the call now, as a message."""
        stats = self.call.final_stats or self.call.plane.stats(self.call.row)
        expected = stats.packets_received + stats.lost
        fields = {
            "type": "stats",
            "received": stats.packets_received,
            "lost": round(max(0, stats.lost) / expected, 4) if expected > 0 else 0.0,
            "jitter_ms": round(stats.jitter_ms, 1),
            "buffer_ms": round(stats.delay_ms, 1),
        }
        return json.dumps(fields, separators=(",", ":"))

    def _take(self, event: CallEvent) -> None:
        if isinstance(event, TextSpoken):
            self.add("text", text=event.text, frame=event.frame)
        elif isinstance(event, DuplexEvent) and (message := turn_message(event)):
            self.add(message[0], **message[1])

    def _end(self, call: Call) -> None:
        self.over = True
        self.add("ended", by=call.ended_by, reason=call.end_reason)


class CallFeeds:
    """The feeds of browser calls by key. The key is the page's own: who has it may hear and end the call, so
    it is not the call's id, which stands in logs."""

    def __init__(self) -> None:
        self._feeds: dict[str, CallFeed] = {}

    def open(self, call: Call) -> str:
        """A feed for a fresh call; its key."""
        key = secrets.token_urlsafe(16)
        self._feeds[key] = CallFeed(call)
        call.on_ended(lambda _: self._forget_later(key))
        return key

    def get(self, key: str) -> CallFeed | None:
        return self._feeds.get(key)

    def _forget_later(self, key: str) -> None:
        asyncio.get_running_loop().call_later(KEPT_AFTER_END_S, self._feeds.pop, key, None)
