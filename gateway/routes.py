"""HTTP routes: the page, browser calls, health, readiness and metrics. It decides who is let in by asking the
switchboard, and knows no audio. Bodies and answers of /api/ are JSON.
"""

from __future__ import annotations

import asyncio
import math
from collections.abc import AsyncIterator, Callable, Mapping
from dataclasses import dataclass
from json import JSONDecodeError
from typing import Any

from aiohttp import web
from aiohttp.typedefs import Handler
from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.exposition import CONTENT_TYPE_LATEST

from gateway.legs.webrtc import IceServer, WebRtcLine
from gateway.legs.webrtc_sdp import BadOffer
from gateway.origins import add_headers, origin_guard
from gateway.page import INDEX, Page
from gateway.page_events import CallFeed, CallFeeds
from gateway.switchboard import Refused, Switchboard

MAX_BODY = 128 * 1024
"""Bytes of the largest request body."""
STATS_S = 2.0
"""How often an event stream tells what the gateway measures; also its sign of life for proxies."""
MAX_READERS = 3
"""Event streams open at once for one call."""
MAX_NAME = 64


@dataclass(frozen=True, slots=True)
class HttpRules:
    """What the gateway's owner decides about pages."""

    origins: tuple[str, ...] = ()
    """Further origins that may call; `*` lets any."""
    ice_servers: tuple[IceServer, ...] = ()


def create_http(
    switchboard: Switchboard,
    line: WebRtcLine,
    rules: HttpRules,
    page: Page,
    not_ready: Callable[[], list[str]],
    metrics: CollectorRegistry,
) -> web.Application:
    """The application. `not_ready` gives the reasons why no call can be taken now; empty: ready."""
    app = web.Application(client_max_size=MAX_BODY, middlewares=[origin_guard(rules.origins)])
    app.on_response_prepare.append(add_headers)
    calls = CallRoutes(switchboard, line, not_ready)
    app.router.add_post("/api/call", calls.create)
    app.router.add_delete("/api/call/{key}", calls.hang_up)
    app.router.add_get("/api/call/{key}/events", calls.events)
    app.router.add_route("OPTIONS", "/api/{rest:.*}", _no_preflight)
    app.router.add_get("/api/config", _answering(lambda _: _no_store(_config(switchboard, rules))))
    app.router.add_get("/health", _answering(lambda _: _no_store({"status": "ok"})))
    app.router.add_get("/ready", _answering(lambda _: _readiness(not_ready())))
    app.router.add_get("/metrics", _answering(lambda _: _metrics(metrics)))
    app.router.add_get("/", _answering(lambda request: page.response(INDEX, request)))
    app.router.add_get("/{name}", _answering(lambda r: page.response(r.match_info["name"], r)))
    return app


class CallRoutes:
    """A browser's call: made, listened to, ended."""

    def __init__(
        self, switchboard: Switchboard, line: WebRtcLine, not_ready: Callable[[], list[str]]
    ) -> None:
        self.switchboard = switchboard
        self.line = line
        self.not_ready = not_ready
        self.feeds = CallFeeds()

    async def create(self, request: web.Request) -> web.Response:
        """{sdp, type: "offer", persona?} → 200 {id, call, sdp, type}; 400, 404, 413, 415, 503."""
        offer = await _read_offer(request)
        if isinstance(offer, web.Response):
            return offer
        if self.not_ready() and not self.switchboard.draining:
            return _refusal(503, "the gateway is starting", 2.0)
        try:
            call, sdp = await self.line.answer(*offer)
        except BadOffer as error:
            return _refusal(400, str(error))
        except Refused as refused:
            return _refusal(refused.code, str(refused), refused.retry_after_s)
        key = self.feeds.open(call)
        return _no_store({"id": key, "call": call.id, "sdp": sdp, "type": "answer"})

    async def hang_up(self, request: web.Request) -> web.Response:
        """204 when the call is over and its slot free; 404 for a call we do not know."""
        feed = self.feeds.get(request.match_info["key"])
        if feed is None:
            return _refusal(404, "no such call")
        await feed.call.end("caller", "hung up")
        return web.Response(status=204)

    async def events(self, request: web.Request) -> web.StreamResponse:
        """The call's messages as server-sent events, from Last-Event-ID on, until it is over."""
        feed = self.feeds.get(request.match_info["key"])
        if feed is None:
            return _refusal(404, "no such call")
        if feed.readers >= MAX_READERS:
            return _refusal(429, "too many listeners", 1.0)
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


async def _read_offer(request: web.Request) -> tuple[str, str | None] | web.Response:
    if request.content_type != "application/json":
        return _refusal(415, "the body must be application/json")
    try:
        body: Any = await request.json()
    except web.HTTPRequestEntityTooLarge:
        return _refusal(413, "the body is too large")
    except (JSONDecodeError, UnicodeDecodeError, LookupError, RecursionError):
        return _refusal(400, "the body is not JSON")
    if not isinstance(body, dict) or not isinstance(body.get("sdp"), str) or body.get("type") != "offer":
        return _refusal(400, 'the body must be {"sdp": text, "type": "offer"}')
    persona = body.get("persona")
    if persona is not None and not (isinstance(persona, str) and len(persona) <= MAX_NAME):
        return _refusal(400, "persona must be a name")
    return body["sdp"], persona


def _last_event(request: web.Request) -> int:
    text = request.headers.get("Last-Event-ID", "")
    return int(text) if text.isascii() and text.isdigit() and len(text) < 10 else 0


def _config(switchboard: Switchboard, rules: HttpRules) -> dict[str, object]:
    servers = [
        {"urls": list(server.urls)}
        | ({"username": server.username} if server.username is not None else {})
        | ({"credential": server.credential} if server.credential is not None else {})
        for server in rules.ice_servers
    ]
    return {"iceServers": servers, "personas": list(switchboard.personas)}


def _answering(answer: Callable[[web.Request], web.Response]) -> Handler:
    async def handler(request: web.Request) -> web.StreamResponse:
        return answer(request)

    return handler


def _no_store(body: Mapping[str, object], status: int = 200) -> web.Response:
    return web.json_response(body, status=status, headers={"Cache-Control": "no-store"})


def _readiness(reasons: list[str]) -> web.Response:
    return _no_store({"ready": not reasons, "reasons": reasons}, 503 if reasons else 200)


def _metrics(registry: CollectorRegistry) -> web.Response:
    return web.Response(body=generate_latest(registry), headers={"Content-Type": CONTENT_TYPE_LATEST})


async def _no_preflight(request: web.Request) -> web.Response:
    # A browser's preflight carries an Origin and was answered before it came here.
    return _refusal(405, "no such method")


def _refusal(status: int, message: str, retry_after_s: float | None = None) -> web.Response:
    """RFC 9110 §10.2.3 wants whole seconds in the header; the body has them exactly."""
    headers = {"Cache-Control": "no-store"}
    body: dict[str, object] = {"error": message}
    if retry_after_s is not None:
        headers["Retry-After"] = str(max(1, math.ceil(retry_after_s)))
        body["retry_after_s"] = retry_after_s
    return web.json_response(body, status=status, headers=headers)
