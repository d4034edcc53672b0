"""A JSON body, whatever a client makes of it: too long, too deep, cut, wrongly packed, never sent."""

from __future__ import annotations

import asyncio
from typing import Any

from aiohttp import web

BODY_S = 10.0
"""How long a body may take to come."""


class NotJson(Exception):
    """The body is not JSON; the message is for its sender."""


async def read_json(request: web.Request) -> Any:
    """Raises NotJson, web.HTTPRequestEntityTooLarge."""
    try:
        async with asyncio.timeout(BODY_S):
            return await request.json()
    except TimeoutError:
        raise NotJson("the body did not come") from None
    except (ValueError, LookupError, RecursionError, web.RequestPayloadError):
        # ValueError: no JSON, no text, or a number of more digits than Python takes.
        raise NotJson("the body is not JSON") from None
