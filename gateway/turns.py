"""Turns: who spoke when, by level alone, and how long the agent took to answer.

For measuring clean recordings after a call; the live speech detection is another matter.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np

from engine.api import SAMPLE_RATE, Pcm

FRAME_S = 0.02
BELOW_PEAK_DB = 30.0
"""A frame is speech when it is no more than this below the channel's loud frames …"""
FLOOR_DBFS = -50.0
"""… and above this."""
PAUSE_S = 0.5
"""A shorter silence belongs to the utterance."""
SHORTEST_S = 0.1


@dataclass(slots=True)
class Levels:
    """The level of a channel, one value per 20 ms: all that is kept of a long call."""

    dbfs: list[float] = field(default_factory=list)

    def add(self, pcm: Pcm) -> None:
        """(n,) float32 at 24 kHz, n a multiple of 480."""
        blocks = pcm.reshape(-1, int(SAMPLE_RATE * FRAME_S))
        power = np.maximum(np.mean(np.square(blocks, dtype=np.float64), axis=1), 1e-12)
        self.dbfs += (10 * np.log10(power)).tolist()


def utterances(levels: Levels) -> list[tuple[float, float]]:
    """(start, end) in seconds of each stretch of speech."""
    dbfs = np.asarray(levels.dbfs)
    audible = dbfs[dbfs > FLOOR_DBFS]
    if not len(audible):
        return []
    threshold = max(FLOOR_DBFS, float(np.percentile(audible, 90)) - BELOW_PEAK_DB)
    found: list[tuple[float, float]] = []
    for frame in np.flatnonzero(dbfs > threshold):
        start, end = float(frame) * FRAME_S, float(frame + 1) * FRAME_S
        if found and start - found[-1][1] < PAUSE_S:
            start = found.pop()[0]
        found.append((start, end))
    return [(start, end) for start, end in found if end - start >= SHORTEST_S]


def answer_latencies(caller: Levels, agent: Levels) -> list[float]:
    """Seconds from the end of each utterance of the caller to the agent's next onset.

    Turns that the agent talked over, or did not answer before the caller went on, give none.
    """
    turns, answers = utterances(caller), utterances(agent)
    found = []
    for at, (_, end) in enumerate(turns):
        next_start = turns[at + 1][0] if at + 1 < len(turns) else float("inf")
        if any(start <= end < stop for start, stop in answers):
            continue
        onset = next((start for start, _ in answers if start > end), None)
        if onset is not None and onset < next_start:
            found.append(onset - end)
    return found


def median(values: Sequence[float]) -> float | None:
    """None of nothing."""
    return float(np.median(values)) if values else None
