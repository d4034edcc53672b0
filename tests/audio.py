"""Measuring audio: test signals, delay by cross-correlation, what is missing, WAV files."""

from __future__ import annotations

import wave
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

Signal = NDArray[np.float64]
ALIKE = 0.4
"""Correlation from which on two windows hold the same sound. The best of other noise within reach gives up to
0.3; the crossfade of a time-scaling leaves 0.6."""
SURE = 0.8
"""Correlation from which on the delay found is followed."""
FINER = 8
"""Steps of a delay within a sample."""


def steady_noise(seconds: float, rate: int = 8_000, level_dbfs: float = -20.0, seed: int = 1) -> Signal:
    """Noise of the telephone band (300–3,000 Hz): never silent, and unlike itself at every other delay."""
    count = int(seconds * rate)
    spectrum = np.fft.rfft(np.random.default_rng(seed).standard_normal(count))
    frequency = np.fft.rfftfreq(count, 1 / rate)
    spectrum[(frequency < 300) | (frequency > 3_000)] = 0
    noise = np.fft.irfft(spectrum, count)
    return np.clip(noise * 10 ** (level_dbfs / 20) / np.sqrt(np.mean(noise**2)), -1, 1)


def write_wav(path: Path, signal: Signal, rate: int = 8_000) -> Path:
    """16 bits, mono."""
    with wave.open(str(path), "wb") as file:
        file.setnchannels(1)
        file.setsampwidth(2)
        file.setframerate(rate)
        file.writeframes((np.clip(signal, -1, 1) * 32_767).astype("<i2").tobytes())
    return path


def read_wav(path: Path) -> tuple[NDArray[np.float64], int]:
    """(samples, channels) or (samples,) when mono, and the rate. A header that was never closed is borne."""
    with wave.open(str(path), "rb") as file:
        channels, rate = file.getnchannels(), file.getframerate()
        raw = file.readframes(file.getnframes())
    samples = np.frombuffer(raw[: len(raw) // (2 * channels) * 2 * channels], "<i2") / 32_768
    return (samples.reshape(-1, channels) if channels > 1 else samples), rate


@dataclass(frozen=True)
class Alignment:
    """What was heard beside what was sent, moved under it and cut to the time they share."""

    lag: float
    """Samples by which `heard` trails `sent`, to an eighth of a sample; negative: it leads."""
    heard: Signal
    sent: Signal

    @property
    def correlation(self) -> float:
        """Normalised, over all of it."""
        return correlation(self.heard, self.sent)

    def gaps(self, rate: int = 8_000) -> list[Gap]:
        """See gaps()."""
        return gaps(self.heard, self.sent, rate)

    def after(self, sample: int) -> Alignment:
        """Without the first samples."""
        return Alignment(self.lag, self.heard[sample:], self.sent[sample:])


def align(heard: Signal, sent: Signal, longest: int | None = None) -> Alignment:
    """Find the delay by cross-correlation; `longest` bounds it on both sides.

    Fractions of a sample count: half a sample off, telephone speech correlates with itself by 0.89.
    """
    size = 1 << (len(heard) + len(sent) - 1).bit_length()
    product = np.fft.rfft(heard, size) * np.conj(np.fft.rfft(sent, size))
    values = np.fft.irfft(product, size * FINER)
    first, last = -(len(sent) - 1), len(heard) - 1
    if longest is not None:
        first, last = max(first, -longest), min(last, longest)
    lags = np.arange(first * FINER, last * FINER + 1)
    lag = float(lags[np.argmax(values[lags])]) / FINER  # a negative lag indexes from the end
    whole = int(np.floor(lag))
    a, b = overlap(heard, sent, whole)
    return Alignment(lag, a, _later(b, lag - whole))


def delay_of(heard: Signal, sent: Signal, longest: int | None = None) -> tuple[int, float]:
    """(whole samples by which `heard` trails `sent`, normalised correlation there). Negative: it leads."""
    lag = round(align(heard, sent, longest).lag)
    return lag, correlation(*overlap(heard, sent, lag))


def overlap(heard: Signal, sent: Signal, lag: int) -> tuple[Signal, Signal]:
    """Both signals cut to the time they share when `heard` trails `sent` by `lag` samples."""
    a, b = (heard[lag:], sent) if lag >= 0 else (heard, sent[-lag:])
    count = min(len(a), len(b))
    return a[:count], b[:count]


def likeness(heard: Signal, sent: Signal, rate: int = 8_000, window_s: float = 0.1) -> float:
    """Median correlation of windows of what was heard, each with what was sent at the delay it has itself.

    So a jitter buffer that changes its delay in mid-call is not taken for distortion. Windows are short
    because it may do so four times a second when a call begins: of windows of 0.25 s, half would hold a seam.
    """
    size = int(rate * window_s)
    lag = align(heard, sent).lag
    found = []
    for start in range(0, len(heard) - size + 1, size):
        first = max(0, int(start - lag) - rate // 2)
        near = sent[first : first + size + rate]
        if len(near) >= size:
            found.append(align(heard[start : start + size], near).correlation)
    return float(np.median(found))


def correlation(a: Signal, b: Signal) -> float:
    """Normalised correlation of two signals without any delay, over what both have."""
    count = min(len(a), len(b))
    a, b = a[:count], b[:count]
    energy = float(np.sqrt(np.dot(a, a) * np.dot(b, b)))
    return float(np.dot(a, b)) / energy if energy else 0.0


def _later(signal: Signal, fraction: float) -> Signal:
    """The signal a fraction of a sample later."""
    if not fraction:
        return signal
    size = 1 << (len(signal) + 64).bit_length()
    turn = np.exp(-2j * np.pi * np.fft.rfftfreq(size) * fraction)
    return np.fft.irfft(np.fft.rfft(signal, size) * turn, size)[: len(signal)]


@dataclass(frozen=True)
class Gap:
    """A stretch of the heard signal that does not hold what was sent."""

    at_s: float
    """From the start of what was heard."""
    length_s: float


def gaps(heard: Signal, sent: Signal, rate: int = 8_000, ms: int = 20) -> list[Gap]:
    """Stretches of `ms` or more in which `heard` is not what was sent: lost, silent, invented or repeated.

    Only for a `sent` that is never silent, and for a `heard` cut to where the echo has begun. A window moves
    in quarters of its length, so a gap is found wherever it lies. Time-scaling, which changes the delay for
    good by less than a window at a time, is no gap; a greater jump is one of 100 ms at least.
    """
    size = rate * ms // 1000
    hop = size // 4
    places = _with_splices(_without_excursions(_places(heard, sent, size, hop, rate)))
    found: list[Gap] = []
    run = 0
    for index, place in enumerate([*places, 0]):
        if place is None:
            run += 1
        elif run:
            found.append(Gap((index - run) * hop / rate, (size + (run - 1) * hop) / rate))
            run = 0
    return found


def _places(heard: Signal, sent: Signal, size: int, hop: int, rate: int) -> list[int | None]:
    """For each window of `heard`: how many samples later in `sent` it is found, None where nowhere near."""
    begin = align(heard[: rate // 2], sent)
    moved = -round(begin.lag if begin.correlation > 0.5 else align(heard, sent).lag)
    places: list[int | None] = []
    start = lost = 0
    while start + size <= min(len(heard), len(sent) - moved):
        place, likeness = _place_of(
            heard[start : start + size], sent, start + moved, size * max(1, lost // 4 - 3) + hop
        )
        if likeness >= SURE:
            moved = place - start
        lost = 0 if likeness >= ALIKE else lost + 1
        places.append(place - start if likeness >= ALIKE else None)
        start += hop
    return places


def _without_excursions(places: list[int | None], longest: int = 12) -> list[int | None]:
    """A delay that comes back to what it was within 60 ms was no other delay, but sound said twice."""
    kept = list(places)
    home: int | None = None
    for index, place in enumerate(places):
        if place is None:
            continue
        ahead = [later for later in places[index + 1 : index + longest] if later is not None]
        if home is None or abs(place - home) <= 3:
            home = place
        elif any(abs(later - home) <= 3 for later in ahead):
            kept[index] = None
        else:
            home = place
    return kept


def _with_splices(places: list[int | None], longest: int = 2) -> list[int | None]:
    """A window or two that are like nothing, between two lasting delays, are the seam of a time-scaling."""
    kept = list(places)
    for index in range(1, len(places)):
        before = places[index - 1]
        after = next((at for at in range(index, len(places)) if places[at] is not None), index)
        later = places[after]
        if before is None or later is None or not 0 < after - index <= longest:
            continue
        if abs(later - before) > 3:
            kept[index:after] = [later] * (after - index)
    return kept


def _place_of(frame: Signal, sent: Signal, expected: int, reach: int) -> tuple[int, float]:
    """Where in `sent` the frame comes from, and how like it is: the expected place, or the best in reach."""
    best, likeness = expected, 0.0
    for place in (
        *(expected + near for near in (0, 1, -1, 2, -2, 3, -3)),
        *range(expected - reach, expected + reach),
    ):
        found = _likeness(frame, sent, place)
        if found > likeness:
            best, likeness = place, found
        if likeness >= ALIKE and abs(best - expected) <= 3 and abs(place - expected) == 3:
            break
    return best, likeness


def _likeness(frame: Signal, sent: Signal, place: int) -> float:
    """Correlation of the frame with what was sent at a place; at the ends, of the half that both have."""
    first = max(0, place)
    part = sent[first : place + len(frame)]
    return correlation(frame[first - place :], part) if 2 * len(part) >= len(frame) else 0.0


def level_dbfs(signal: Signal) -> float:
    """RMS level; -120 for silence."""
    return 20 * float(np.log10(max(1e-6, float(np.sqrt(np.mean(signal**2)))))) if len(signal) else -120.0
