"""How many calls an engine may hold: by the time a tick takes, and by the pages calls will need.

Pure arithmetic over figures others measured. Calls are taken to be of exponential length, so what a call
will still last does not depend on how long it has lasted (moshi.md's capacity table assumes the same).
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from engine.api import TICK_S

BUDGET_MS = 60.0
"""p99 of a tick up to which calls are admitted; 80 ms is the clock's period."""
MEAN_CALL_S = 180.0
_HORIZONS_S = (0.0, 5.0, 15.0, 30.0, 60.0, 120.0, 240.0)
_SPREAD = 1.0
"""Standard deviations kept free: a full engine shrinks its longest windows 16 % of the time."""


def slots_within(curve: Mapping[int, float], count: int, budget_ms: float = BUDGET_MS) -> int:
    """The most calls, up to `count`, whose tick stays within the budget; 0 where not even one does.

    curve: calls at once -> measured p99 in ms. Between measurements it is a straight line; beyond the
    last it goes on as between the last two.
    """
    sizes = sorted(curve)
    if not sizes or curve[sizes[0]] > budget_ms:
        return 0
    within = sizes[0]
    for small, large in itertools.pairwise(sizes):
        slope = (curve[large] - curve[small]) / (large - small)
        if curve[large] > budget_ms:
            return min(count, small + math.floor((budget_ms - curve[small]) / slope))
        within = large
    if len(sizes) > 1 and slope > 0:
        within += math.floor((budget_ms - curve[within]) / slope)
    return min(count, within)


@dataclass(frozen=True, slots=True)
class PageForecast:
    """Whether the KV cache will hold one more call for as long as calls are likely to last."""

    total: int
    """Pages there are."""
    window: int
    """Pages one call holds at most."""
    page_frames: int = 64
    mean_call_s: float = MEAN_CALL_S

    def peak(self, held: Sequence[int]) -> float:
        """Pages that calls holding so many now need at the worst moment, a deviation to spare."""
        pages = np.asarray(held, float)
        worst = 0.0
        for horizon in _HORIZONS_S:
            alive = math.exp(-horizon / self.mean_call_s)
            then = np.minimum(pages + horizon / TICK_S / self.page_frames, self.window)
            spread = math.sqrt(alive * (1 - alive) * float((then**2).sum()))
            worst = max(worst, alive * float(then.sum()) + _SPREAD * spread)
        return min(worst, float(self.window * len(pages)))

    def admits(self, held: Sequence[int], prompt_pages: int) -> bool:
        """Whether a further call that begins with its prompt's pages fits beside the present ones."""
        return self.peak([*held, max(1, prompt_pages)]) <= self.total

    def retry_after_s(self, calls: int) -> float:
        """The mean time until one of so many calls ends, between 1 and 60 s."""
        return min(60.0, max(1.0, self.mean_call_s / max(1, calls)))


def relief(held: Mapping[int, int], needed: int, least: int = 2) -> dict[int, int]:
    """Pages each of the longest calls may keep so that `needed` pages come free: {slot: pages}.

    The longest are cut to one level, none below `least`; gives what there is when that is not enough.
    """
    level = max(held.values(), default=0)
    while level > least and sum(max(0, pages - level) for pages in held.values()) < needed:
        level -= 1
    return {slot: level for slot, pages in held.items() if pages > level}
