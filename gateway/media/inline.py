"""InlineMedia: the media path on a thread of the gateway's own process, for tests and for single calls."""

from __future__ import annotations

import asyncio

from engine.rows import AudioRows
from gateway.media.clock import Lateness, MediaClock
from gateway.media.face import MediaSettings
from gateway.media.plane import MediaPlane
from gateway.media.processing import DuplexProcessing, ProcessingSettings


class InlineMedia:
    """A plane, what stands between line and engine, and the clock that ticks them."""

    def __init__(self, rows: AudioRows, settings: MediaSettings, processing: ProcessingSettings) -> None:
        self.rows = rows
        self.processing = DuplexProcessing(rows.count, processing)
        self.plane = MediaPlane(rows, settings, self.processing)
        self.clock = MediaClock(self.plane)
        self.restarts = 0

    async def launch(self) -> None:
        """Compile what is to be compiled, and tick."""
        await asyncio.to_thread(self.processing.warm)
        self.clock.start()

    async def shut_down(self) -> None:
        """Idempotent."""
        self.clock.stop()

    def missing(self) -> list[str]:
        """Why calls may be refused now: never."""
        return []

    def lateness(self) -> list[Lateness]:
        """Of the one clock, of the last 10 s."""
        return [self.clock.lateness()]
