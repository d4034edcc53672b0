"""HTTP routes: the page, browser calls, health, readiness and metrics. It decides who is let in by asking the
switchboard, and knows no audio. Bodies and answers of /api/ are JSON.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass

from aiohttp import web
from aiohttp.typedefs import Handler
from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.exposition import CONTENT_TYPE_LATEST

from gateway.event_stream import stream_feed
from gateway.json_body import NotJson, read_json
from gateway.legs.webrtc import IceServer, WebRtcLine
from gateway.legs.webrtc_sdp import BadOffer
from gateway.origins import add_headers, origin_guard
from gateway.page import INDEX, Page
from gateway.page_events import CallFeeds
from gateway.switchboard import Refused, Switchboard

MAX_BODY = 128 * 1024
"""Bytes of the largest request body."""
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
        return await stream_feed(request, feed)


async def _read_offer(request: web.Request) -> tuple[str, str | None] | web.Response:
    if request.content_type != "application/json":
        return _refusal(415, "the body must be application/json")
    try:
        body = await read_json(request)
    except web.HTTPRequestEntityTooLarge:
        return _refusal(413, "the body is too large")
    except NotJson as error:
        return _refusal(400, str(error))
    if not isinstance(body, dict) or not isinstance(body.get("sdp"), str) or body.get("type") != "offer":
        return _refusal(400, 'the body must be {"sdp": text, "type": "offer"}')
    persona = body.get("persona")
    if persona is not None and not (isinstance(persona, str) and len(persona) <= MAX_NAME):
        return _refusal(400, "persona must be a name")
    return body["sdp"], persona


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


def _refusal(status: int, message: str, retry_after_s: float | None = None) -> web.Response:
    """RFC 9110 §10.2.3 wants whole seconds in the header; the body has them exactly."""
    headers = {"Cache-Control": "no-store"}
    body: dict[str, object] = {"error": message}
    if retry_after_s is not None:
        headers["Retry-After"] = str(max(1, math.ceil(retry_after_s)))
        body["retry_after_s"] = retry_after_s
    return web.json_response(body, status=status, headers=headers)
