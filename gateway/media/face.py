"""MediaFace: what signalling may ask of the media path, wherever that runs.

It checks what can be told at once, knows which rows are taken, and makes each wish a small command. Who
carries the command out is the subclass's business: a plane in this process, or one in a process of its own.
"""

from __future__ import annotations

import logging
import socket
from abc import ABC, abstractmethod
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

import pylibsrtp

from engine.api import SAMPLE_RATE, EngineError
from engine.opus import library
from engine.rows import AudioRows
from gateway.media import commands as ask
from gateway.media.ledger import Ledger
from gateway.media.messages import (
    LONGEST_ANNOUNCEMENT_S,
    MediaEvent,
    MediaStats,
    OpusMedia,
    RtpMedia,
    SendOpus,
    SrtpKeys,
)
from gateway.media.receive import codec_of
from sip.dtmf import DIGITS
from sip.sdes import SrtpKeys as SdesKeys
from sip.srtp import SrtpContext

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


class PacketPort(Protocol):
    """Where a WebRTC leg delivers its decrypted packets."""

    call: int
    """Stands in every event of this call."""

    def receive(self, sequence: int, timestamp: int, payload: bytes, marker: bool, now: float) -> None:
        """One RTP packet without its header; `now` is time.monotonic() of its arrival. Never blocks."""
        ...


class MediaFace(ABC):
    """All calls' media, as signalling sees it. Methods never block.

    `on_events` (if set) is called when there are events to take: on whichever thread found them.
    """

    def __init__(self, rows: AudioRows, ledger: Ledger) -> None:
        self.rows = rows
        self.on_events: Callable[[], None] | None = None
        self._ledger = ledger
        self._taken: list[RtpMedia | OpusMedia | None] = [None] * rows.count
        self._events: deque[MediaEvent] = deque(maxlen=MOST_EVENTS)
        self._calls = 0

    def open_rtp(
        self, row: int, sock: socket.socket, media: RtpMedia, rtcp: socket.socket | None = None
    ) -> int:
        """Give a phone leg to a row: a bound, non-blocking UDP socket (the media path owns and closes it),
        and a second one for its RTCP where that has a port of its own.

        The number returned stands in every event of this call. Packets are received, and comfort noise is
        sent, from the next tick; nothing is written to `rows.heard` before start().
        Raises MediaError for an unknown codec, a bad payload type or a row that is taken.
        """
        check_rtp(media)
        call = self._take(row, media)
        self._ask(ask.OpenRtp(row, call, media), sock)
        if rtcp is not None:
            self._ask(ask.OpenRtcp(row), rtcp)
        return call

    def change_rtp(self, row: int, media: RtpMedia) -> None:
        """Another codec, address, direction or key for an open phone leg (re-INVITE, hold, resume).

        Our timestamps go on; a new remote address opens the latch again. Raises MediaError as open_rtp.
        """
        check_rtp(media)
        if not isinstance(self._taken[row], RtpMedia):
            raise MediaError(f"row {row} holds no phone leg")
        self._taken[row] = media
        self._ask(ask.ChangeRtp(row, media))

    def open_opus(self, row: int, media: OpusMedia, send: SendOpus) -> PacketPort:
        """Give a WebRTC leg to a row. Encoded packets go to `send`, one call a tick with those of all rows
        that gave the same `send`. `PacketPort.call` stands in every event of this call.

        Raises MediaError when the row is taken or libopus is missing.
        """
        check_opus()
        return self._open_port(row, self._take(row, media), media, send)

    def start(self, row: int) -> None:
        """The engine's slot is open on this row: from the next frame boundary on write `rows.heard`, read
        `rows.spoken`. The row's rings were cleared by the engine."""
        self._ask(ask.Start(row))

    def announce(self, row: int, pcm: bytes, answered: bool = False) -> None:
        """Play a recording to a phone leg whose agent has not started: int16 at 24 kHz mono, 60 s at most.
        It waits while the leg may not send, nothing lowers or cuts it, and Announced follows.

        `answered`: the caller has our 200, so that he is missed when he sends nothing. Raises MediaError.
        """
        if not isinstance(self._taken[row], RtpMedia):
            raise MediaError(f"row {row} holds no phone leg")
        if not 0 < len(pcm) <= LONGEST_ANNOUNCEMENT_S * 2 * SAMPLE_RATE:
            raise MediaError(f"an announcement lasts {LONGEST_ANNOUNCEMENT_S} s at most")
        self._ask(ask.Announce(row, pcm, answered))

    def close(self, row: int) -> None:
        """End the row. Returns at once; Closed with the final stats follows, then it may be opened again."""
        self._ask(ask.Close(row))

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

    def note_report(self, row: int, remote_loss: float, round_trip_ms: float) -> None:
        """The peer of a WebRTC leg reports (RTCP) that it loses this share of our packets, 0..1, and how
        long the network's round trip is; 0: not known."""
        self._ask(ask.NoteReport(row, remote_loss, round_trip_ms))

    def available(self, row: int) -> bool:
        """Whether a call could be opened on this row now."""
        return True

    @abstractmethod
    def stats(self, row: int) -> MediaStats:
        """A reading of the row's counters, at most 0.1 s old."""
        ...

    @abstractmethod
    def number(self, row: int, name: str) -> float:
        """One of the numbers of stats(), by its name; cheaper, for those who look at all rows often."""
        ...

    def sent_at(self, row: int, sample: int) -> float | None:
        """When sample n of `rows.spoken` went to the wire (seconds of the clock of the ticks), or None when
        it has not, or was cut, or is longer ago than 2 s."""
        return self._ledger.sent_at(row, sample)

    def spoken_of(self, row: int, sent: int) -> int:
        """How many samples of `rows.spoken` were among the first `sent` that went out on the row: what the
        caller was sent of the agent, comfort noise left out."""
        return self._ledger.spoken_of(row, sent)

    def take_events(self) -> list[MediaEvent]:
        """What happened since the last call, oldest first; at most 10,000 are kept (oldest dropped)."""
        taken: list[MediaEvent] = []
        while self._events:
            taken.append(self._events.popleft())
        return taken

    @abstractmethod
    def _open_port(self, row: int, call: int, media: OpusMedia, send: SendOpus) -> PacketPort: ...

    @abstractmethod
    def _carry(self, command: ask.Command, thing: object) -> None:
        """Hand a command, and what cannot be told in words (a socket), to who carries it out."""
        ...

    def _ask(self, command: ask.Command, thing: object = None) -> None:
        self._check_row(command.row)
        self._carry(command, thing)

    def _take(self, row: int, media: RtpMedia | OpusMedia) -> int:
        self._check_row(row)
        if self._taken[row] is not None:
            raise MediaError(f"row {row} is taken")
        self._taken[row] = media
        self._calls += 1
        return self._calls

    def _check_row(self, row: int) -> None:
        if not 0 <= row < self.rows.count:
            raise MediaError(f"there is no row {row}: {self.rows.count} rows")


def check_rtp(media: RtpMedia) -> None:
    """Raises MediaError, saying what of it cannot be carried."""
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
        check_opus()
    if media.srtp is not None:
        try:
            srtp_context(media.srtp)
        except (KeyError, ValueError, pylibsrtp.Error) as error:
            raise MediaError(f"SRTP with {media.srtp.profile} is not possible: {error}") from error


def check_opus() -> None:
    """Raises MediaError where there is no libopus."""
    try:
        library()
    except EngineError as error:
        raise MediaError(str(error)) from error


def carried(codecs: tuple[str, ...]) -> tuple[str, ...]:
    """Those of the codecs that this machine has the libraries for."""
    try:
        check_opus()
    except MediaError as missing:
        log.warning("phones get no Opus: %s", missing)
        return tuple(codec for codec in codecs if codec != "opus")
    return codecs


def srtp_context(keys: SrtpKeys, before: SrtpContext | None = None) -> SrtpContext:
    """Both directions of a leg; `before`: its context until now.

    Raises KeyError for an unknown suite, pylibsrtp.Error, ValueError.
    """
    return SrtpContext(SdesKeys(keys.profile, keys.local, keys.remote), before)
