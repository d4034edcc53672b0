"""The operators' HTTP API: look at calls and trunks, transfer, hold, hang up, place. On a bind and a key of
its own, apart from the page. Bodies and answers are JSON; docs/admin-api.md describes them.
"""

from __future__ import annotations

import hashlib
import hmac
import math
from typing import Any

from aiohttp import web
from aiohttp.typedefs import Handler, Middleware

from gateway.admin_feed import AdminFeed, AdminFeeds
from gateway.admin_views import call_view, trunk_views
from gateway.call import Call
from gateway.caps import BadNumber, Capped
from gateway.control import CallControl, CannotControl, UnknownCall
from gateway.dial import CannotDial
from gateway.event_stream import stream_feed
from gateway.json_body import NotJson, read_json
from gateway.legs.sip_leg import ControlFailed
from gateway.switchboard import Refused

MAX_BODY = 8 * 1024
MAX_TEXT = 256
"""Characters of any text in a body."""

Body = dict[str, str]
Fields = dict[str, bool]
"""Name of a field → whether it must be there."""


class BadBody(CannotControl):
    """The request's body is not what this route takes."""


def create_admin(control: CallControl, feeds: AdminFeeds, key: str) -> web.Application:
    """The application; every route wants `Authorization: Bearer <key>`."""
    app = web.Application(client_max_size=MAX_BODY, middlewares=[_key_guard(key), _errors])
    routes = AdminRoutes(control, feeds)
    app.router.add_get("/v1/calls", routes.list_calls)
    app.router.add_post("/v1/calls", routes.place)
    app.router.add_get("/v1/calls/{id}", routes.show)
    app.router.add_get("/v1/calls/{id}/events", routes.events)
    app.router.add_post("/v1/calls/{id}/transfer", routes.transfer)
    app.router.add_post("/v1/calls/{id}/hangup", routes.hang_up)
    app.router.add_post("/v1/calls/{id}/hold", routes.hold)
    app.router.add_post("/v1/calls/{id}/resume", routes.resume)
    app.router.add_post("/v1/calls/{id}/dtmf", routes.dtmf)
    app.router.add_get("/v1/trunks", routes.list_trunks)
    return app


class AdminRoutes:
    """Each method answers one route; what cannot be done is raised and answered by `_errors`."""

    def __init__(self, control: CallControl, feeds: AdminFeeds) -> None:
        self.control = control
        self.feeds = feeds

    async def list_calls(self, request: web.Request) -> web.Response:
        """200 {calls: […]}: the live ones, oldest first."""
        return _json({"calls": [call_view(feed) for feed in self.feeds.live()]})

    async def show(self, request: web.Request) -> web.Response:
        """200, also for a while after the call's end."""
        return _json(call_view(self._feed(request)))

    async def events(self, request: web.Request) -> web.StreamResponse:
        """The call's messages as server-sent events, from Last-Event-ID on, until it is over."""
        return await stream_feed(request, self._feed(request))

    async def transfer(self, request: web.Request) -> web.Response:
        """{to} or {call}: 200 when the caller was answered there, 502 when not: he is still here."""
        body = await _body(request, {"to": False, "call": False})
        call = self._call(request)
        if ("to" in body) == ("call" in body):
            raise BadBody("give either to, a URI, or call, the id of another call")
        if "to" in body:
            await self.control.transfer(call, body["to"])
        else:
            await self.control.transfer_to_call(call, self.control.call(body["call"]))
        return _json({"transferred": True})

    async def hang_up(self, request: web.Request) -> web.Response:
        """{reason?}: 200 when the call is over."""
        body = await _body(request, {"reason": False})
        await self.control.hang_up(self._call(request), body.get("reason", ""))
        return _json({"ended": True})

    async def hold(self, request: web.Request) -> web.Response:
        await _body(request, {})
        await self.control.hold(self._call(request))
        return _json({"held": True})

    async def resume(self, request: web.Request) -> web.Response:
        await _body(request, {})
        await self.control.resume(self._call(request))
        return _json({"held": False})

    async def dtmf(self, request: web.Request) -> web.Response:
        """{digits}: 202, they are on their way."""
        body = await _body(request, {"digits": True})
        self.control.send_dtmf(self._call(request), body["digits"])
        return _json({"digits": len(body["digits"])}, 202)

    async def place(self, request: web.Request) -> web.Response:
        """{to, persona?, trunk?}: 202 with the call, which is not answered yet."""
        body = await _body(request, {"to": True, "persona": False, "trunk": False})
        call = await self.control.place(body["to"], body.get("persona"), body.get("trunk"))
        feed = self.feeds.get(call.id)
        return _json(call_view(feed) if feed is not None else {"id": call.id}, 202)

    async def list_trunks(self, request: web.Request) -> web.Response:
        """200 {trunks: […], accounts: […]}."""
        return _json(trunk_views(self.control.trunks))

    def _feed(self, request: web.Request) -> AdminFeed:
        feed = self.feeds.get(request.match_info["id"])
        if feed is None:
            raise UnknownCall("no such call")
        return feed

    def _call(self, request: web.Request) -> Call:
        return self.control.call(request.match_info["id"])


def _key_guard(key: str) -> Middleware:
    wanted = hashlib.sha256(f"Bearer {key}".encode()).digest()

    @web.middleware
    async def guard(request: web.Request, handler: Handler) -> web.StreamResponse:
        given = hashlib.sha256(request.headers.get("Authorization", "").encode("utf-8", "replace")).digest()
        # Equal-length digests: neither the key's length nor its beginning shows in the time.
        if not hmac.compare_digest(given, wanted):
            return _error(401, "the key is missing or wrong", headers={"WWW-Authenticate": "Bearer"})
        return await handler(request)

    return guard


@web.middleware
async def _errors(request: web.Request, handler: Handler) -> web.StreamResponse:
    try:
        return await handler(request)
    except CannotControl as error:
        return _error(error.status, str(error))
    except ControlFailed as failed:
        return _error(502, f"the other side refused: {failed}", sip_code=failed.code)
    except Capped as capped:
        status = 403 if capped.retry_after_s is None else 429
        return _error(status, str(capped), capped.retry_after_s, cap=capped.cap)
    except (BadNumber, CannotDial) as error:
        return _error(400, str(error))
    except Refused as refused:
        return _error(refused.code, str(refused), refused.retry_after_s)
    except web.HTTPException as error:
        if error.status < 400:
            raise
        allow = {name: value for name, value in error.headers.items() if name == "Allow"}
        return _error(error.status, error.reason, headers=allow)


async def _body(request: web.Request, fields: Fields) -> Body:
    """The body's texts. Raises BadBody; an absent body is an empty one."""
    if not request.can_read_body:
        body: Any = {}
    elif request.content_type != "application/json":
        raise BadBody("the body must be application/json")
    else:
        try:
            body = await read_json(request)
        except NotJson as error:
            raise BadBody(str(error)) from None
    if not isinstance(body, dict):
        raise BadBody("the body must be a JSON object")
    if unknown := sorted(body.keys() - fields.keys()):
        raise BadBody(f"unknown field {unknown[0][:40]!r}; allowed: {', '.join(fields) or 'none'}")
    for name, needed in fields.items():
        if name not in body and needed:
            raise BadBody(f"{name} is missing")
        if name in body and not (isinstance(body[name], str) and 0 < len(body[name]) <= MAX_TEXT):
            raise BadBody(f"{name} must be a text of 1 to {MAX_TEXT} characters")
    return body


def _json(body: dict[str, object], status: int = 200) -> web.Response:
    return web.json_response(body, status=status, headers={"Cache-Control": "no-store"})


def _error(
    status: int,
    message: str,
    retry_after_s: float | None = None,
    headers: dict[str, str] | None = None,
    **more: object,
) -> web.Response:
    told = {"Cache-Control": "no-store", **(headers or {})}
    if retry_after_s is not None:
        told["Retry-After"] = str(max(1, math.ceil(retry_after_s)))
    return web.json_response({"error": message, **more}, status=status, headers=told)
