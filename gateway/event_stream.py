"""Event streams: a call's feed as server-sent events over HTTP (HTML Living Standard §9.2)."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

from aiohttp import web

from gateway.page_events import CallFeed

STATS_S = 2.0
"""How often an event stream tells what the gateway measures; also its sign of life for proxies."""
MAX_READERS = 3
"""Event streams open at once for one call."""


async def stream_feed(request: web.Request, feed: CallFeed) -> web.StreamResponse:
    """The feed's messages from Last-Event-ID on, until the call is over or the reader goes; 429 for one
    reader too many."""
    if feed.readers >= MAX_READERS:
        busy = {"Cache-Control": "no-store", "Retry-After": "1"}
        told = {"error": "too many listeners", "retry_after_s": 1.0}
        return web.json_response(told, status=429, headers=busy)
    response = web.StreamResponse(headers={"Cache-Control": "no-store", "X-Accel-Buffering": "no"})
    response.content_type = "text/event-stream"
    await response.prepare(request)
    feed.readers += 1
    try:
        async for chunk in _stream(feed, _last_event(request)):
            await response.write(chunk)
    except ConnectionError:
        # The page went away, or reconnects; the call itself is watched by its packets.
        pass
    finally:
        feed.readers -= 1
    return response


async def _stream(feed: CallFeed, after: int) -> AsyncIterator[bytes]:
    """The feed's messages, and every STATS_S the gateway's figures (unnumbered: only the latest matter)."""
    yield b"retry: 1000\n\n"
    now = asyncio.get_running_loop().time
    messages = feed.read(after)
    waiting = asyncio.ensure_future(anext(messages, None))
    stats_at = now() + STATS_S
    try:
        while True:
            done, _ = await asyncio.wait({waiting}, timeout=max(0.0, stats_at - now()))
            if done:
                message = waiting.result()
                if message is None:
                    return
                yield f"id: {message[0]}\ndata: {message[1]}\n\n".encode()
                waiting = asyncio.ensure_future(anext(messages, None))
            if now() >= stats_at:
                stats_at = now() + STATS_S
                yield f"data: {feed.stats()}\n\n".encode()
    finally:
        waiting.cancel()


def _last_event(request: web.Request) -> int:
    text = request.headers.get("Last-Event-ID", "")
    return int(text) if text.isascii() and text.isdigit() and len(text) < 10 else 0
