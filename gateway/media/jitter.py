"""JitterBuffer: one design for every leg, over rows; 20 ms out at every tick whatever comes in.

Samples lie in a ring by their timestamp, so packets may have any length, order or number. The delay between a
sample's timestamp and the tick that plays it is the only thing controlled. Its target is a percentile of the
arrival delays of the last 200 ticks with arrivals: below the 95th it grows, above the 98th it shrinks, by
whole pitch periods or freely in pauses. What is missing when it is due is invented, and the place is kept
for one tick more (longer while nothing newer came): a packet that is late then plays and the delay grows; a
packet that is lost costs its own length and leaves the delay as it was.
Functions are written for numba and run without it.
"""

from __future__ import annotations

import numpy as np

from gateway.media.plc import LONGEST, SHORTEST, best_lag, conceal, merge, squeeze, stretch
from gateway.media.rows import HISTORY_MS, I16, MISSING, NEEDS, NOTHING, RING, ReceiveRows

_MASK = RING - 1
SETTLED = 25
"""Arrivals before the delay may shrink."""
CALM = 60
"""Latest arrivals whose worst bounds the target (1.2 s), with CALM_MS to spare: a storm is soon forgotten."""
CALM_MS = 30
LIKE, LIKE_URGENT = 0.64, 0.25
"""Squares of the correlations (0.8, 0.5) at which a period may be cut or doubled."""
LESS_EACH_TRY = 0.06
"""What a cut asks is lowered by so much a try (60 ms): noise and music have no period but must not lag."""
URGENT_MS = 30


def store(r: ReceiveRows, row: int, start: int, pcm: I16) -> None:
    """Put decoded samples at their place; those already played are left out. Too much drops the oldest."""
    end = start + len(pcm)
    if r.high[row] <= r.next[row]:
        r.low[row] = start
    first = max(start, int(r.next[row]))
    for i in range(first, end):
        value = pcm[i - start]
        r.ring[row, i & _MASK] = value if value != MISSING else MISSING + 1
    note_stored(r, row, start, end)


def note_stored(r: ReceiveRows, row: int, start: int, end: int) -> None:
    """Move the marks after [start, end) came; drop the oldest when the buffer holds more than its limit."""
    if r.high[row] <= r.next[row]:
        r.low[row] = start
    r.low[row] = min(int(r.low[row]), start)
    r.high[row] = max(int(r.high[row]), end)
    oldest = max(int(r.next[row]), int(r.low[row]))
    if r.high[row] - oldest <= r.limit[row]:
        return
    keep = int(r.high[row]) - 3 * int(r.frame[row])
    for i in range(oldest, keep):
        r.ring[row, i & _MASK] = MISSING
    r.next[row], r.low[row], r.held[row] = keep, keep, 0
    r.resynced[row] += 1


def note_need(r: ReceiveRows, row: int) -> None:
    """Remember this tick's worst arrival delay and derive the target from the last ones."""
    need = int(r.need[row])
    if need == NOTHING:
        return
    r.need[row] = NOTHING
    count = int(r.need_count[row])
    r.needs[row, count % NEEDS] = need
    r.need_count[row] = count + 1
    kept = min(count + 1, NEEDS)
    ordered = np.sort(r.needs[row, :kept])
    calm = need
    for i in range(max(0, count - CALM + 1), count):
        calm = max(calm, int(r.needs[row, i % NEEDS]))
    calm += CALM_MS * int(r.rate[row]) // 1000
    r.up[row] = min(calm, int(ordered[kept - 1 - kept // 20])) + r.floor_need[row]
    r.down[row] = min(calm, int(ordered[kept - 1 - kept // 50])) + r.floor_need[row]


def first_stored(r: ReceiveRows, row: int) -> int:
    """Position of the first sample at or after `next`, or -1."""
    for i in range(max(int(r.next[row]), int(r.low[row])), int(r.high[row])):
        if r.ring[row, i & _MASK] != MISSING:
            return i
    return -1


def run_length(r: ReceiveRows, row: int, most: int) -> int:
    """Samples ready without a hole from `next` on, at most `most`."""
    start = int(r.next[row])
    most = min(most, int(r.high[row]) - start)
    for i in range(most):
        if r.ring[row, (start + i) & _MASK] == MISSING:
            return i
    return max(0, most)


def settle(r: ReceiveRows, row: int) -> None:
    """After inventing: go on where the missing piece came after all, else give it up and go to the next."""
    first = first_stored(r, row)
    if first >= 0:
        r.next[row] = min(first, int(r.next[row]) + int(r.held[row]))
        r.held[row] = 0


def take(r: ReceiveRows, row: int, at: int, count: int) -> None:
    """Move `count` samples from the ring to line[at:]."""
    start = int(r.next[row])
    for i in range(count):
        cell = (start + i) & _MASK
        r.line[row, at + i] = r.ring[row, cell]
        r.ring[row, cell] = MISSING
    r.next[row] = start + count


def scale_time(r: ReceiveRows, row: int, tick: int, at: int) -> int:
    """Lengthen or shorten the delay within this frame if it is time to; samples written (0 or a frame)."""
    n = int(r.frame[row])
    delay = tick * n - int(r.next[row])
    if delay > r.down[row] and r.need_count[row] >= SETTLED:
        return shrink(r, row, at, delay - int(r.down[row]))
    if delay < r.up[row]:
        return grow(r, row, at, int(r.up[row]) - delay)
    return 0


def peek(r: ReceiveRows, row: int, count: int) -> I16:
    """A copy of the next `count` samples of the ring."""
    start = int(r.next[row])
    x = np.zeros(count, np.int16)
    for i in range(count):
        x[i] = r.ring[row, (start + i) & _MASK]
    return x


def is_pause(r: ReceiveRows, row: int, x: I16) -> bool:
    """Whether the samples are no louder than the caller's background."""
    total = 0
    for i in range(len(x)):
        total += abs(int(x[i]))
    return total <= len(x) * (2 * int(r.quiet[row]) + 12)


def shrink(r: ReceiveRows, row: int, at: int, excess: int) -> int:
    """Play a frame out of more than a frame. 0 where no period fits or none is alike."""
    n, d = int(r.frame[row]), int(r.rate[row]) // 8_000
    longest = min(min(excess, LONGEST * d), run_length(r, row, n + LONGEST * d) - n)
    if longest < 1:
        return 0
    x = peek(r, row, n + longest)
    lag = longest
    urgent = excess > URGENT_MS * 8 * d
    if not is_pause(r, row, x):
        if longest < SHORTEST * d:
            return 0
        lag, alike = best_lag(x, 0, 1, (SHORTEST * d, longest), min(n, 100 * d), d)
        r.rest[row] = 2
        r.tried[row] += 1
        if alike < (LIKE_URGENT if urgent else LIKE) - LESS_EACH_TRY * int(r.tried[row]):
            return 0
    r.tried[row] = 0
    squeeze(x, r.line[row, at : at + n], lag)
    discard(r, row, n + lag)
    r.squeezed[row] += lag
    r.rest[row] = 1 if urgent else 3
    return n


def grow(r: ReceiveRows, row: int, at: int, lacking: int) -> int:
    """Play a frame out of less than a frame. 0 where none is whole or no period is alike."""
    n, d = int(r.frame[row]), int(r.rate[row]) // 8_000
    if run_length(r, row, n) < n:
        return 0
    x = peek(r, row, n)
    longest = 70 * d
    lag = min(lacking, longest)
    if not is_pause(r, row, x):
        lag, alike = best_lag(x, 0, 1, (SHORTEST * d, longest), n - longest, d)
        r.rest[row] = 2
        if alike < LIKE:
            return 0
    stretch(x, r.line[row, at : at + n], lag)
    discard(r, row, n - lag)
    r.stretched[row] += lag
    r.rest[row] = 3
    return n


def discard(r: ReceiveRows, row: int, count: int) -> None:
    """Move on over samples that were played scaled."""
    start = int(r.next[row])
    for i in range(count):
        r.ring[row, (start + i) & _MASK] = MISSING
    r.next[row] = start + count


def note_background(r: ReceiveRows, row: int, at: int) -> None:
    """Follow the caller's background level: down at once, up over seconds."""
    n = int(r.frame[row])
    total = 0
    for i in range(at, at + n):
        total += abs(int(r.line[row, i]))
    mean, quiet = total // n, int(r.quiet[row])
    if mean < quiet:
        r.quiet[row] = mean
    elif int(r.need_count[row]) % 16 == 0:
        r.quiet[row] = min(mean, quiet + quiet // 16 + 1, 200)


def pull(r: ReceiveRows, row: int, tick: int) -> int:
    """The next 20 ms into the end of `line`; how many of its samples are invented."""
    n = int(r.frame[row])
    at = HISTORY_MS * int(r.rate[row]) // 1000
    r.line[row, :at] = r.line[row, n : at + n].copy()
    note_need(r, row)
    if not r.playing[row]:
        r.line[row, at : at + n] = 0
        return 0
    done, invented = 0, 0
    if r.rest[row] > 0:
        r.rest[row] -= 1
    elif r.age[row] == 0 and r.held[row] == 0:
        done = scale_time(r, row, tick, at)
    while done < n:
        count, lost = piece(r, row, at + done, n - done)
        done += count
        invented += lost
    if invented == 0:
        note_background(r, row, at)
    if r.fresh[row]:
        return 0
    r.concealed[row] += invented
    return invented


def piece(r: ReceiveRows, row: int, at: int, most: int) -> tuple[int, int]:
    """One stretch of real or of invented audio: (samples, of these invented)."""
    if r.held[row] > 0:
        settle(r, row)
    ready = 0 if r.held[row] > 0 else run_length(r, row, most)
    if ready > 0:
        take(r, row, at, ready)
        if r.age[row] > 0 and not r.fresh[row] and r.spare_length[row] == 0:
            merge(r, row, at, ready)
        r.age[row], r.fresh[row], r.spare_length[row], r.spare_at[row] = 0, 0, 0, 0
        return ready, 0
    first = first_stored(r, row)
    gap = most if first < 0 else min(most, max(1, first - int(r.next[row]) - int(r.held[row])))
    conceal(r, row, at, gap)
    r.held[row] += gap
    return gap, gap
