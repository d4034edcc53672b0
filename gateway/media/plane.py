"""MediaPlane: the audio of all calls on one 20 ms tick, one row a call.

Signalling opens, changes and closes rows from its own thread; what it asks is applied at the next tick. A
tick sends what was prepared, drains the sockets, decodes, resamples, hands 480 samples of every row to
the engine, takes 480 of the agent's, encodes and prepares. It knows no SIP, no asyncio and no model, and it
reads no clock: `tick(now)` is told the time.
"""

from __future__ import annotations

import socket
from collections.abc import Callable
from dataclasses import dataclass

from engine.rows import AudioRows
from gateway.media.messages import (
    MediaEvent,
    MediaStats,
    OpusMedia,
    Processing,
    RtpMedia,
    SendOpus,
)

TICK = 480
"""Samples of the 24 kHz side a tick: 20 ms."""
TICK_S = 0.02


@dataclass(frozen=True, slots=True)
class MediaSettings:
    """How the media path behaves; the same for all rows."""

    rtp_timeout_s: float = 20.0
    """RtpTimedOut after so long without a packet from a peer that should be sending."""
    max_delay_ms: int = 400
    """The jitter buffer never holds more."""
    min_delay_ms: int = 0
    """The jitter buffer never aims for less."""
    playout_ms: int = 60
    """Most agent audio queued for sending."""
    comfort_noise_dbfs: float = -65.0
    """Level of the noise sent when the engine has nothing ready."""
    opus_complexity: int = 5
    compiled: bool = True
    """Use numba's step where numba is there; the numpy step gives equal output."""


class MediaError(Exception):
    """The media path cannot do what was asked; the message says what and why."""


class OpusPort:
    """Where a WebRTC leg delivers its decrypted packets; thread-safe, bounded, drops the oldest."""

    def receive(self, sequence: int, timestamp: int, payload: bytes, marker: bool, now: float) -> None:
        """One RTP packet without its header; `now` is time.monotonic() of its arrival."""
        raise NotImplementedError


class MediaPlane:
    """All calls' media. Methods but tick() may be called from the signalling thread and never block.

    `on_events` (if set) is called on the media thread at the end of a tick that left events: use it to wake
    the loop, as in `lambda: loop.call_soon_threadsafe(handle_media_events)`.
    """

    def __init__(
        self, rows: AudioRows, settings: MediaSettings = MediaSettings(), processing: Processing | None = None
    ) -> None:
        self.rows = rows
        self.settings = settings
        self.processing = processing
        self.on_events: Callable[[], None] | None = None

    def open_rtp(self, row: int, sock: socket.socket, media: RtpMedia) -> int:
        """Give a phone leg to a row: a bound, non-blocking UDP socket (the plane owns and closes it).

        The number returned stands in every event of this call. Packets are received, and comfort noise is
        sent, from the next tick; nothing is written to `rows.heard` before start().
        Raises MediaError for an unknown codec, a bad payload type or a row that is taken.
        """
        raise NotImplementedError

    def change_rtp(self, row: int, media: RtpMedia) -> None:
        """Another codec, address, direction or key for an open phone leg (re-INVITE, hold, resume).

        Our timestamps go on; a new remote address opens the latch again. Raises MediaError as open_rtp.
        """
        raise NotImplementedError

    def open_opus(self, row: int, media: OpusMedia, send: SendOpus) -> OpusPort:
        """Give a WebRTC leg to a row. Encoded packets go to `send`, one call a tick with those of all rows
        that gave the same `send`. `OpusPort.call` stands in every event of this call.

        Raises MediaError when the row is taken or libopus is missing.
        """
        raise NotImplementedError

    def start(self, row: int) -> None:
        """The engine's slot is open on this row: from the next frame boundary on write `rows.heard`, read
        `rows.spoken`. The row's rings were cleared by the engine."""
        raise NotImplementedError

    def close(self, row: int) -> None:
        """End the row. Returns at once; Closed with the final stats follows, then it may be opened again."""
        raise NotImplementedError

    def stats(self, row: int) -> MediaStats:
        """A reading of the row's counters now."""
        raise NotImplementedError

    def cut(self, row: int) -> None:
        """Drop what the agent has queued, with a 5 ms fade; audio written to `rows.spoken` later is heard."""
        raise NotImplementedError

    def mute(self, row: int, muted: bool = True) -> None:
        """Send comfort noise instead of the agent (its audio is consumed as if sent)."""
        raise NotImplementedError

    def deafen(self, row: int, deaf: bool = True) -> None:
        """Let the engine hear silence instead of the caller."""
        raise NotImplementedError

    def send_dtmf(self, row: int, digits: str, duration_ms: int = 160) -> None:
        """Queue telephone-events (RFC 4733) to a phone leg. Raises MediaError for other characters than
        0-9*#A-D, or when the leg agreed on none."""
        raise NotImplementedError

    def sent_at(self, row: int, sample: int) -> float | None:
        """When sample n of `rows.spoken` went to the wire (seconds of the clock given to tick()), or None
        when it has not, or was cut, or is longer ago than 2 s."""
        raise NotImplementedError

    def take_events(self) -> list[MediaEvent]:
        """What happened since the last call, oldest first; at most 10,000 are kept (oldest dropped)."""
        raise NotImplementedError

    def tick(self, now: float) -> None:
        """20 ms of every call. `now` is time.monotonic() of the tick's due time."""
        raise NotImplementedError
