"""Measuring audio: test signals, delay by cross-correlation, what is missing, WAV files."""

from __future__ import annotations

import wave
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

Signal = NDArray[np.float64]


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


def delay_of(heard: Signal, sent: Signal, longest: int | None = None) -> tuple[int, float]:
    """(samples by which `heard` trails `sent`, normalised correlation there). Negative: it leads.

    `longest` bounds the delay on both sides.
    """
    size = 1 << (len(heard) + len(sent) - 1).bit_length()
    products = np.fft.irfft(np.fft.rfft(heard, size) * np.conj(np.fft.rfft(sent, size)), size)
    lags = np.concatenate([np.arange(len(heard)), np.arange(-len(sent) + 1, 0)])
    values = np.concatenate([products[: len(heard)], products[size - len(sent) + 1 :]])
    if longest is not None:
        keep = np.abs(lags) <= longest
        lags, values = lags[keep], values[keep]
    lag = int(lags[np.argmax(values)])
    return lag, correlation_at(heard, sent, lag)


def correlation_at(heard: Signal, sent: Signal, lag: int) -> float:
    """Normalised correlation over what both share when `heard` trails `sent` by `lag` samples."""
    a, b = overlap(heard, sent, lag)
    energy = float(np.sqrt(np.dot(a, a) * np.dot(b, b)))
    return float(np.dot(a, b)) / energy if energy else 0.0


def overlap(heard: Signal, sent: Signal, lag: int) -> tuple[Signal, Signal]:
    """Both signals cut to the time they share."""
    a, b = (heard[lag:], sent) if lag >= 0 else (heard, sent[-lag:])
    count = min(len(a), len(b))
    return a[:count], b[:count]


@dataclass(frozen=True)
class Gap:
    """A stretch of the heard signal that does not hold what was sent."""

    at_s: float
    length_s: float


def gaps(heard: Signal, sent: Signal, lag: int, rate: int = 8_000, ms: int = 20) -> list[Gap]:
    """Runs of whole frames of `ms` in which `heard` is nothing like what was sent: lost, silent or invented.

    Only for a `sent` that is never silent. A frame counts as lost below a correlation of 0.5; a shift of a
    few samples by a clock that drifts is followed.
    """
    size = rate * ms // 1000
    a, b = overlap(heard, sent, lag)
    lost = [not _alike(a, b, start, size) for start in range(0, len(a) - size + 1, size)]
    found: list[Gap] = []
    run = 0
    for index, missing in enumerate([*lost, False]):
        if missing:
            run += 1
        elif run:
            found.append(Gap((index - run) * size / rate, run * size / rate))
            run = 0
    return found


def _alike(a: Signal, b: Signal, start: int, size: int, slack: int = 4) -> bool:
    frame = a[start : start + size]
    for shift in sorted(range(-slack, slack + 1), key=abs):
        first = max(0, start + shift)
        other = b[first : start + shift + size]
        if correlation_at(frame[first - start - shift :], other, 0) >= 0.5:
            return True
    return False


def level_dbfs(signal: Signal) -> float:
    """RMS level; -120 for silence."""
    return 20 * float(np.log10(max(1e-6, float(np.sqrt(np.mean(signal**2)))))) if len(signal) else -120.0
