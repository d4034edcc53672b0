"""Stopping: the first SIGINT or SIGTERM asks to stop, the second ends the process where it stands."""

from __future__ import annotations

import asyncio
import os
import signal
from typing import Any

INTERRUPTED = 130


class Stopping:
    """Made inside the loop whose process it stops."""

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self.event = asyncio.Event()
        self.signal: signal.Signals | None = None
        """The first one received."""
        for number in (signal.SIGINT, signal.SIGTERM):
            loop.add_signal_handler(number, self._signalled, number)

    @property
    def asked(self) -> bool:
        return self.event.is_set()

    @property
    def interrupted(self) -> bool:
        """By Ctrl-C, whose exit code is INTERRUPTED."""
        return self.signal == signal.SIGINT

    async def or_done(self, task: asyncio.Future[None]) -> None:
        """Wait for the task, or cancel it when asked to stop. Raises what the task raised."""
        await self.or_any(task)
        if task.done():
            task.result()
        else:
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)

    async def or_any(self, *awaited: asyncio.Future[Any], within: float | None = None) -> None:
        """Wait until one of these is done, stopping is asked, or the seconds are over. Cancels nothing."""
        asked: asyncio.Future[Any] = asyncio.ensure_future(self.event.wait())
        await asyncio.wait([asked, *awaited], timeout=within, return_when=asyncio.FIRST_COMPLETED)
        asked.cancel()

    def _signalled(self, number: signal.Signals) -> None:
        if self.asked:
            os._exit(128 + number)
        self.signal = number
        self.event.set()
