"""DuplexProcessing: what stands between the decoder and the engine, and between the engine and the encoder.

It joins the echo canceller, the speech detector and each call's Duplex over all rows of the media plane.
Its hooks run on the media thread; set_policy() and yielded() may come from any thread and take effect at
the row's next block; events are taken by any one thread.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from engine.api import Pcm
from gateway.duplex import Duplex, DuplexEvent, DuplexSettings, Give, Policy
from gateway.media.echo import EchoCanceller, EchoReport, warm
from gateway.media.echo_rows import ALL
from gateway.media.holdback import AUDIBLE, Holdback
from gateway.media.power import energy_of
from gateway.media.resample import Resampler
from gateway.media.suspects import Suspects
from gateway.media.vad import RATE as DETECTOR_RATE
from gateway.media.vad import Silero, SpeechDetector, SpeechSettings

Rows = NDArray[np.intp]
Flags = NDArray[np.bool_]

WIDE = 24_000
BLOCK = 480
LEAST_STEP = np.float32(8 / 32_768)
"""Of µ-law and A-law around zero: -72 dBFS."""
UNMEASURED = np.float32(1e-12)
"""Echo power of a row that may have any."""
MS = DETECTOR_RATE / 1_000
MOST_EVENTS = 10_000
"""Events kept until they are taken; of more the oldest are dropped."""


@dataclass(frozen=True, slots=True)
class ProcessingSettings:
    """The same for all rows."""

    cancel_echo: bool = True
    speech: SpeechSettings = field(default_factory=SpeechSettings)
    duplex: DuplexSettings = field(default_factory=DuplexSettings)


class DuplexProcessing:
    """A `messages.Processing` for `count` rows."""

    def __init__(
        self, count: int, settings: ProcessingSettings = ProcessingSettings(), silero: Silero | None = None
    ) -> None:
        """Raises vad.ModelMissing when Silero is not installed."""
        self.settings = settings
        self._count = count
        self._cancellers: dict[int, EchoCanceller] = {}
        self._detector = SpeechDetector(count, settings.speech, silero)
        self._suspects = Suspects(count)
        self._narrow = Resampler(count, WIDE, DETECTOR_RATE)
        self._holdback = Holdback(count)
        self._rate = np.zeros(count, np.int64)
        self._low = np.zeros((count, DETECTOR_RATE // 50), np.float32)  # heard at 8 kHz
        self._left, self._hiss = np.zeros(count, np.float32), np.zeros(count, np.float32)
        self._sure = np.ones(count, np.bool_)  # how much echo the row holds is known
        self._at = np.zeros(count, np.int64)
        self._duplex: dict[int, Duplex] = {}
        self._policies: dict[int, Policy] = {}
        self._live = np.zeros(count, np.bool_)  # rows whose Duplex has something on its mind
        self._yielded: deque[int] = deque(maxlen=MOST_EVENTS)
        self._events: deque[tuple[int, DuplexEvent]] = deque(maxlen=MOST_EVENTS)

    def warm(self) -> None:
        """Do before the first call what takes seconds: compile the loops, run Silero once. Blocks."""
        if self.settings.cancel_echo:
            warm()
        self._detector.warm()

    def set_policy(self, row: int, policy: Policy) -> None:
        """Who gives way on this row, from its next block on; of a row not open yet, from its opening."""
        self._policies[row] = policy
        duplex = self._duplex.get(row)
        if duplex is not None:
            duplex.policy = policy

    def yielded(self, row: int) -> None:
        """After Interrupted: the engine was told and the playout cleared; what comes now is new."""
        self._yielded.append(row)

    def take_events(self) -> list[tuple[int, DuplexEvent]]:
        """(row, event) since the last call, oldest first."""
        return [self._events.popleft() for _ in range(len(self._events))]

    def echo(self, row: int) -> EchoReport | None:
        """What was measured of a row's echo; None for a row that is not open or not cancelled."""
        canceller = self._cancellers.get(int(self._rate[row]))
        return canceller.report(row) if canceller is not None else None

    def expect_echo(self, row: int, round_trip_ms: float) -> None:
        """A measured round trip (RTCP), after which an echo may be expected."""
        canceller = self._cancellers.get(int(self._rate[row]))
        if canceller is not None:
            canceller.expect(row, round_trip_ms)

    # -- Processing

    def opened(self, row: int, rate: int) -> None:
        self._rate[row] = rate
        if self.settings.cancel_echo:
            if rate not in self._cancellers:
                self._cancellers[rate] = EchoCanceller(self._count, rate)
            self._cancellers[rate].open(row)
        self._detector.open(row)
        self._suspects.open(row)
        self._narrow.clear(row)
        self._holdback.clear(row)
        self._low[row] = self._left[row] = self._hiss[row] = self._at[row] = 0
        self._live[row] = False
        self._sure[row] = True
        self._duplex[row] = Duplex(self._policies.get(row, Policy.MODEL), self.settings.duplex)

    def closed(self, row: int) -> None:
        self._duplex.pop(row, None)
        self._holdback.clear(row)
        self._rate[row] = 0
        self._live[row] = False

    def hear(self, rows: Rows, pcm: Pcm, rate: int, concealed: NDArray[np.int32]) -> Pcm:
        canceller = self._cancellers.get(rate)
        if canceller is not None:
            pcm = canceller.hear(rows, pcm, concealed)
            self._left[rows], self._hiss[rows] = canceller.left(rows), canceller.noise(rows)
            self._sure[rows] = canceller.sure(rows)
            self._left[rows[canceller.doubt(rows) == ALL]] = (
                UNMEASURED  # of these the suspects tell, not the level
            )
        if rate == DETECTOR_RATE:
            self._low[rows] = pcm
        return pcm

    def heard(self, rows: Rows, pcm: Pcm, at: NDArray[np.int64]) -> Pcm:
        wide = rows[self._rate[rows] != DETECTOR_RATE]
        if len(wide) == len(rows):
            self._low[rows] = self._narrow.run(rows, pcm)
        self._at[rows] = at + BLOCK
        self._detector.hear(rows, self._low[rows], self._left[rows], self._hiss[rows])
        self._take_yielded()
        hidden = self._question(rows)
        busy = rows[(self._detector.speech[rows] > 0) | self._detector.loud[rows] | self._live[rows]]
        told = ~hidden[busy]
        speech, silence = told * self._detector.speech[busy] / MS, told * self._detector.silence[busy] / MS
        sure = self._sure[busy] | self._suspects.plain(busy)
        loud, sure = self._detector.loud[busy].tolist(), sure.tolist()
        said = zip(speech.tolist(), silence.tolist(), loud, sure, strict=True)
        for row, until, caller in zip(busy.tolist(), self._at[busy].tolist(), said, strict=True):
            duplex = self._duplex[row]
            duplex.hear(until, *caller)
            self._collect(row, duplex)
        return self._floored(rows, pcm)

    def speak(self, rows: Rows, pcm: Pcm, at: NDArray[np.int64]) -> Pcm:
        loud = energy_of(pcm) > AUDIBLE * pcm.shape[1]
        busy = np.flatnonzero(loud | self._live[rows])
        now, sent = self._at[rows[busy]].tolist(), at[busy].tolist()
        for index, row, heard, before in zip(busy.tolist(), rows[busy].tolist(), now, sent, strict=True):
            duplex = self._duplex[row]
            duplex.speak(heard, bool(loud[index]), before - self._holdback.held(row))
            if duplex.give is not Give.WHOLE or self._holdback.touches(row):
                pcm[index] = self._holdback.pass_on(row, duplex.give, pcm[index])
            self._collect(row, duplex)
        return pcm

    def sent(self, rows: Rows, pcm: Pcm, rate: int) -> None:
        canceller = self._cancellers.get(rate)
        if canceller is not None:
            canceller.sent(rows, pcm)

    def _floored(self, rows: Rows, pcm: Pcm) -> Pcm:
        """What is left of an echo, below the least step of the line's code, becomes the silence that it was:
        a model tells -84 dBFS of its own voice from none."""
        quiet = energy_of(pcm) < LEAST_STEP**2 * pcm.shape[1]
        pcm[quiet & (self._left[rows] > 0)] = 0.0
        return pcm

    def _question(self, rows: Rows) -> Flags:
        """Rows (count,) whose speech may be the agent's: it is not told yet."""
        hidden = np.zeros(self._count, np.bool_)
        canceller = self._cancellers.get(int(self._rate[rows[0]])) if len(rows) else None
        if canceller is not None:
            hidden[self._suspects.question(rows, canceller, self._detector)] = True
        return hidden

    # -- one row

    def _take_yielded(self) -> None:
        while self._yielded:
            row = self._yielded.popleft()
            duplex = self._duplex.get(row)
            if duplex is not None:
                duplex.yielded(int(self._at[row]))
                self._collect(row, duplex)

    def _collect(self, row: int, duplex: Duplex) -> None:
        if duplex.has_events:
            self._events.extend((row, event) for event in duplex.take_events())
        self._live[row] = duplex.busy or self._holdback.touches(row)
