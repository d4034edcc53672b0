"""HttpServer: the shell around the routes: the listening socket, TLS, and what runs while it is open."""

from __future__ import annotations

import asyncio
import ssl
from collections.abc import Callable

from aiohttp import web

from gateway import page
from gateway.config import HttpSettings
from gateway.door import Door
from gateway.legs.webrtc import IceServer, WebRtcLine, WebRtcSettings
from gateway.metrics import GatewayMetrics
from gateway.routes import HttpRules, create_http
from gateway.switchboard import Switchboard

SHUTDOWN_S = 1.0
"""How long open event streams may take to end when the server stops."""


class HttpServer:
    """The page, browser calls, health and metrics on one TCP port."""

    def __init__(self, switchboard: Switchboard, settings: HttpSettings) -> None:
        """Opens nothing. Raises page.PageMissing, aiortc_hooks.UnsupportedAiortc."""
        self.switchboard = switchboard
        self.settings = settings
        self.loading: str | None = "the engine is loading"
        """Why no call can be taken yet; whoever starts the engine sets it to None."""
        self.missing: Callable[[], list[str]] = list
        """What else keeps calls from being taken: parts that are being started again."""
        servers = tuple(IceServer(s.urls, s.username, s.secret()) for s in settings.ice_servers)
        self.line = WebRtcLine(switchboard, WebRtcSettings(settings.public_address, servers))
        self.metrics = GatewayMetrics(switchboard, self.not_ready)
        rules = HttpRules(settings.origins, servers)
        self.application = create_http(
            switchboard, self.line, rules, page.Page(page.folder()), self.not_ready, self.metrics.registry
        )
        self.door = Door()
        self.application.middlewares.append(self.door.middleware)
        self._runner: web.AppRunner | None = None
        self._tasks: list[asyncio.Task[None]] = []

    @property
    def port(self) -> int:
        """The port in use, once open."""
        assert self._runner is not None
        return int(self._runner.addresses[0][1])

    def not_ready(self) -> list[str]:
        """Why calls are not taken now; empty: they are."""
        reasons = [self.loading] if self.loading else self.missing()
        return [*reasons, "draining"] if self.switchboard.draining else reasons

    async def open(self) -> None:
        """Listen. Raises OSError (port taken, address not ours) and ssl.SSLError (certificate)."""
        # A page that goes away while its call is being set up takes the call with it.
        self._runner = web.AppRunner(
            self.application, access_log=None, handler_cancellation=True, shutdown_timeout=SHUTDOWN_S
        )
        await self._runner.setup()
        site = web.TCPSite(
            self._runner, self.settings.host, self.settings.port, ssl_context=self._tls(), reuse_address=True
        )
        try:
            await site.start()
        except OSError:
            await self._runner.cleanup()
            raise
        await self.line.start()
        assert self._runner.server is not None
        self._tasks = [
            asyncio.create_task(self.metrics.lag.run(), name="event loop lag"),
            asyncio.create_task(self.door.run(self._runner.server), name="http door"),
        ]

    async def stop(self) -> None:
        """Stop listening and close every connection. Idempotent."""
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        await self.line.stop()
        if self._runner is not None:
            await self._runner.cleanup()

    def _tls(self) -> ssl.SSLContext | None:
        if self.settings.tls_cert is None or self.settings.tls_key is None:
            return None
        context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
        context.load_cert_chain(self.settings.tls_cert, self.settings.tls_key)
        return context
