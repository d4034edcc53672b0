"""MediaPlane: the audio of all calls on one 20 ms tick, one row a call.

Signalling opens, changes and closes rows from its own thread; what it asks is applied at the next tick. A
tick sends what was prepared, drains the sockets, decodes, resamples, hands 480 samples of every row to
the engine, takes 480 of the agent's, encodes and prepares. It knows no SIP, no asyncio and no model, and it
reads no clock: `tick(now)` is told the time.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable

import numpy as np
from numpy.typing import NDArray

from engine.rows import AudioRows
from gateway.media import commands as ask
from gateway.media.face import MediaError, MediaFace, MediaSettings
from gateway.media.ledger import Ledger
from gateway.media.messages import MediaEvent, MediaStats, OpusMedia, Processing, SendOpus, Untouched
from gateway.media.opus_port import OpusPort
from gateway.media.readings import readings
from gateway.media.row_audio import TICK_S, RowAudio

__all__ = ["TICK_S", "Asked", "MediaError", "MediaPlane", "MediaSettings", "OpusPort"]

Asked = tuple[ask.Command, object]
"""A command, and what goes with it."""


class MediaPlane(MediaFace):
    """All calls' media in this process. Methods but tick() may be called from the signalling thread.

    `on_events` is called on the media thread at the end of a tick that left events: use it to wake the
    loop, as in `lambda: loop.call_soon_threadsafe(handle_media_events)`.
    """

    def __init__(
        self,
        rows: AudioRows,
        settings: MediaSettings = MediaSettings(),
        processing: Processing | None = None,
        ledger: Ledger | None = None,
    ) -> None:
        super().__init__(rows, ledger or Ledger(rows.count))
        self.settings = settings
        self.processing: Processing = processing or Untouched()
        self._audio = RowAudio(rows, settings, self.processing, self._emit, self._ledger)
        self._commands: deque[Asked] = deque()
        self._emitted = False

    def stats(self, row: int) -> MediaStats:
        """A reading of the row's counters now."""
        return self._audio.stats(row)

    def number(self, row: int, name: str) -> float:
        return float(getattr(self._audio.stats(row), name))

    def readings(self, rows: NDArray[np.intp]) -> NDArray[np.float64]:
        """The same of many rows as numbers, (n, len(readings.NUMBERS))."""
        return readings(self._audio, rows)

    def open_rows(self) -> NDArray[np.intp]:
        """The rows that hold a call."""
        return self._audio.open_rows()

    def tick(self, now: float) -> None:
        """20 ms of every call. `now` is time.monotonic() of the tick's due time."""
        self._emitted = False
        self._audio.begin(now)
        for command, thing in self._asked():
            self._audio.apply(command, thing)
            if isinstance(command, ask.Close):
                self._taken[command.row] = None
        self._audio.run()
        if self._emitted and self.on_events is not None:
            self.on_events()

    def close_all(self) -> None:
        """Close every socket; the plane is of no use afterwards. Call when no thread ticks it."""
        self._audio.close_all()

    def _asked(self) -> Iterable[Asked]:
        """What signalling asked since the last tick."""
        while self._commands:
            yield self._commands.popleft()

    def _open_port(self, row: int, call: int, media: OpusMedia, send: SendOpus) -> OpusPort:
        port = OpusPort(call)
        self._ask(ask.OpenOpus(row, call, media), (port, send))
        return port

    def _carry(self, command: ask.Command, thing: object) -> None:
        self._commands.append((command, thing))

    def _emit(self, event: MediaEvent) -> None:
        self._events.append(event)
        self._emitted = True
