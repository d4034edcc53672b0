"""AdminServer: the shell around the operators' API: the listening socket and what its routes look at."""

from __future__ import annotations

import asyncio
import logging

from aiohttp import web

from gateway.admin import create_admin
from gateway.admin_feed import AdminFeeds
from gateway.config_phone import AdminSettings
from gateway.control import CallControl
from gateway.door import Door

log = logging.getLogger(__name__)

SHUTDOWN_S = 1.0


class AdminServer:
    """One TCP port of its own."""

    def __init__(self, control: CallControl, settings: AdminSettings) -> None:
        """Opens nothing. Raises ValueError without a key."""
        key = settings.secret()
        if not key:
            raise ValueError("the operators' API needs a key")
        self.settings = settings
        self.application = create_admin(control, AdminFeeds(control.switchboard), key)
        self.door = Door()
        self.application.middlewares.append(self.door.middleware)
        self._sweeping: asyncio.Task[None] | None = None
        self._runner: web.AppRunner | None = None

    @property
    def port(self) -> int:
        """The port in use, once open."""
        assert self._runner is not None
        return int(self._runner.addresses[0][1])

    async def open(self) -> None:
        """Listen. Raises OSError."""
        self._runner = web.AppRunner(self.application, access_log=None, shutdown_timeout=SHUTDOWN_S)
        await self._runner.setup()
        try:
            await web.TCPSite(
                self._runner, self.settings.host, self.settings.port or 0, reuse_address=True
            ).start()
        except OSError:
            await self._runner.cleanup()
            raise
        assert self._runner.server is not None
        self._sweeping = asyncio.create_task(self.door.run(self._runner.server), name="admin door")
        log.info("the operators' API listens on %s port %d", self.settings.host, self.port)

    async def stop(self) -> None:
        """Idempotent."""
        if self._sweeping is not None:
            self._sweeping.cancel()
        if self._runner is not None:
            await self._runner.cleanup()
