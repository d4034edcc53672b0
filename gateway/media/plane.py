"""MediaPlane: the audio of all calls on one 20 ms tick, one row a call.

Signalling opens, changes and closes rows from its own thread; what it asks is applied at the next tick. A
tick sends what was prepared, drains the sockets, decodes, resamples, hands 480 samples of every row to
the engine, takes 480 of the agent's, encodes and prepares. It knows no SIP, no asyncio and no model, and it
reads no clock: `tick(now)` is told the time.
"""

from __future__ import annotations

import logging
import socket
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass

import pylibsrtp

from engine.api import EngineError
from engine.opus import library
from engine.rows import AudioRows
from gateway.media import commands as ask
from gateway.media.messages import (
    MediaEvent,
    MediaStats,
    OpusMedia,
    Processing,
    RtpMedia,
    SendOpus,
    Untouched,
)
from gateway.media.opus_port import OpusPort
from gateway.media.receive import codec_of
from gateway.media.row_audio import TICK_S, RowAudio, srtp_context
from sip.dtmf import DIGITS

__all__ = ["TICK_S", "MediaError", "MediaPlane", "MediaSettings", "OpusPort"]

log = logging.getLogger(__name__)

MOST_EVENTS = 10_000
RATES = (8_000, 16_000, 24_000, 48_000)


@dataclass(frozen=True, slots=True)
class MediaSettings:
    """How the media path behaves; the same for all rows."""

    rtp_timeout_s: float = 20.0
    """RtpTimedOut after so long without a packet from a peer that should be sending."""
    max_delay_ms: int = 400
    """The jitter buffer never holds more."""
    min_delay_ms: int = 0
    """The jitter buffer aims to hold so much more than the network needs."""
    comfort_noise_dbfs: float = -65.0
    """Level of the noise sent when the engine has nothing ready."""
    opus_complexity: int = 5
    compiled: bool = True
    """Use numba where it is; without it the output is equal."""
    kernel_times: bool = True
    """Take arrival times from the kernel; without, a packet came when its tick was due (stepping by hand)."""


class MediaError(Exception):
    """The media path cannot do what was asked; the message says what and why."""


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
        self.processing: Processing = processing or Untouched()
        self.on_events: Callable[[], None] | None = None
        self._audio = RowAudio(rows, settings, self.processing, self._emit)
        self._taken: list[RtpMedia | OpusMedia | None] = [None] * rows.count
        self._commands: deque[tuple[ask.Command, object]] = deque()
        self._events: deque[MediaEvent] = deque(maxlen=MOST_EVENTS)
        self._calls = 0
        self._emitted = False

    def open_rtp(self, row: int, sock: socket.socket, media: RtpMedia) -> int:
        """Give a phone leg to a row: a bound, non-blocking UDP socket (the plane owns and closes it).

        The number returned stands in every event of this call. Packets are received, and comfort noise is
        sent, from the next tick; nothing is written to `rows.heard` before start().
        Raises MediaError for an unknown codec, a bad payload type or a row that is taken.
        """
        self._check_rtp(media)
        call = self._take(row, media)
        self._ask(ask.OpenRtp(row, call, media), sock)
        return call

    def change_rtp(self, row: int, media: RtpMedia) -> None:
        """Another codec, address, direction or key for an open phone leg (re-INVITE, hold, resume).

        Our timestamps go on; a new remote address opens the latch again. Raises MediaError as open_rtp.
        """
        self._check_rtp(media)
        if not isinstance(self._taken[row], RtpMedia):
            raise MediaError(f"row {row} holds no phone leg")
        self._taken[row] = media
        self._ask(ask.ChangeRtp(row, media))

    def open_opus(self, row: int, media: OpusMedia, send: SendOpus) -> OpusPort:
        """Give a WebRTC leg to a row. Encoded packets go to `send`, one call a tick with those of all rows
        that gave the same `send`. `OpusPort.call` stands in every event of this call.

        Raises MediaError when the row is taken or libopus is missing.
        """
        _check_opus()
        port = OpusPort(self._take(row, media))
        self._ask(ask.OpenOpus(row, port.call, media), (port, send))
        return port

    def start(self, row: int) -> None:
        """The engine's slot is open on this row: from the next frame boundary on write `rows.heard`, read
        `rows.spoken`. The row's rings were cleared by the engine."""
        self._ask(ask.Start(row))

    def close(self, row: int) -> None:
        """End the row. Returns at once; Closed with the final stats follows, then it may be opened again."""
        self._ask(ask.Close(row))

    def stats(self, row: int) -> MediaStats:
        """A reading of the row's counters now."""
        return self._audio.stats(row)

    def cut(self, row: int) -> None:
        """Drop what the agent has queued, with a 5 ms fade; audio written to `rows.spoken` later is heard."""
        self._ask(ask.Cut(row))

    def mute(self, row: int, muted: bool = True) -> None:
        """Send comfort noise instead of the agent (its audio is consumed as if sent)."""
        self._ask(ask.Mute(row, muted))

    def deafen(self, row: int, deaf: bool = True) -> None:
        """Let the engine hear silence instead of the caller."""
        self._ask(ask.Deafen(row, deaf))

    def send_dtmf(self, row: int, digits: str, duration_ms: int = 160) -> None:
        """Queue telephone-events (RFC 4733) to a phone leg. Raises MediaError for other characters than
        0-9*#A-D, or when the leg agreed on none."""
        media = self._taken[row]
        if not isinstance(media, RtpMedia) or media.dtmf_payload_type is None:
            raise MediaError(f"row {row} agreed on no telephone-event")
        if any(digit not in DIGITS for digit in digits):
            raise MediaError("digits are 0-9, *, # and A-D")
        self._ask(ask.SendDtmf(row, digits, duration_ms))

    def note_loss(self, row: int, fraction: float) -> None:
        """The peer of a WebRTC leg reports (RTCP) that it loses this share of our packets, 0..1."""
        self._ask(ask.NoteLoss(row, fraction))

    def sent_at(self, row: int, sample: int) -> float | None:
        """When sample n of `rows.spoken` went to the wire (seconds of the clock given to tick()), or None
        when it has not, or was cut, or is longer ago than 2 s."""
        return self._audio.sent_at(row, sample)

    def spoken_of(self, row: int, sent: int) -> int:
        """How many samples of `rows.spoken` were among the first `sent` that went out on the row: what the
        caller was sent of the agent, comfort noise left out."""
        return self._audio.spoken_of(row, sent)

    def take_events(self) -> list[MediaEvent]:
        """What happened since the last call, oldest first; at most 10,000 are kept (oldest dropped)."""
        taken: list[MediaEvent] = []
        while self._events:
            taken.append(self._events.popleft())
        return taken

    def tick(self, now: float) -> None:
        """20 ms of every call. `now` is time.monotonic() of the tick's due time."""
        self._emitted = False
        self._audio.begin(now)
        while self._commands:
            command, thing = self._commands.popleft()
            self._audio.apply(command, thing)
            if isinstance(command, ask.Close):
                self._taken[command.row] = None
        self._audio.run()
        if self._emitted and self.on_events is not None:
            self.on_events()

    def close_all(self) -> None:
        """Close every socket; the plane is of no use afterwards. Call when no thread ticks it."""
        self._audio.close_all()

    def _emit(self, event: MediaEvent) -> None:
        self._events.append(event)
        self._emitted = True

    def _ask(self, command: ask.Command, thing: object = None) -> None:
        if not 0 <= command.row < self.rows.count:
            raise MediaError(f"there is no row {command.row}: {self.rows.count} rows")
        self._commands.append((command, thing))

    def _take(self, row: int, media: RtpMedia | OpusMedia) -> int:
        if not 0 <= row < self.rows.count:
            raise MediaError(f"there is no row {row}: {self.rows.count} rows")
        if self._taken[row] is not None:
            raise MediaError(f"row {row} is taken")
        self._taken[row] = media
        self._calls += 1
        return self._calls

    def _check_rtp(self, media: RtpMedia) -> None:
        try:
            kind_rate = codec_of(media)
        except KeyError:
            raise MediaError(f"no codec {media.codec!r}") from None
        if kind_rate[1] not in RATES:
            raise MediaError(f"{media.codec} at {kind_rate[1]} Hz is not carried")
        for number in (media.payload_type, media.dtmf_payload_type):
            if number is not None and not 0 <= number <= 127:
                raise MediaError(f"payload type {number} is not 0..127")
        if media.codec.lower() == "opus":
            _check_opus()
        if media.srtp is not None:
            try:
                srtp_context(media.srtp)
            except (KeyError, ValueError, pylibsrtp.Error) as error:
                raise MediaError(f"SRTP with {media.srtp.profile} is not possible: {error}") from error


def _check_opus() -> None:
    try:
        library()
    except EngineError as error:
        raise MediaError(str(error)) from error
