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

from gateway.media import columns as c
from gateway.media.cells import copy, fill, filled, lay
from gateway.media.plc import LONGEST, SHORTEST, best_lag, conceal, merge, squeeze, stretch
from gateway.media.rows import HISTORY_MS, I16, I64, MISSING, NEEDS, NOTHING, RING, ReceiveRows

_MASK = RING - 1
SETTLED = 25
"""Arrivals before the delay may shrink."""
RECKONED = 5
"""Arrivals between two reckonings of the target."""
CALM = 60
"""Latest arrivals whose worst bounds the target (1.2 s), with CALM_MS to spare: a storm is soon forgotten."""
CALM_MS = 20
LIKE, LIKE_URGENT = 0.64, 0.25
"""Squares of the correlations (0.8, 0.5) at which a period may be cut or doubled."""
LESS_EACH_TRY = 0.06
"""What a cut asks is lowered by so much a try (60 ms): noise and music have no period but must not lag."""
URGENT_MS = 30


def store(r: ReceiveRows, row: int, start: int, pcm: I16) -> None:
    """Put decoded samples at their place; those already played are left out. Too much drops the oldest."""
    end = start + len(pcm)
    if r.n[row, c.HIGH] <= r.n[row, c.NEXT]:
        r.n[row, c.LOW] = start
    i = max(start, int(r.n[row, c.NEXT]))
    while i < end:
        cell = i & _MASK
        part = min(end - i, RING - cell)
        lay(r.ring[row, cell : cell + part], pcm[i - start : i - start + part])
        i += part
    note_stored(r, row, start, end)


def note_stored(r: ReceiveRows, row: int, start: int, end: int) -> None:
    """Move the marks after [start, end) came; drop the oldest when the buffer holds more than its limit."""
    if r.n[row, c.HIGH] <= r.n[row, c.NEXT]:
        r.n[row, c.LOW] = start
    r.n[row, c.LOW] = min(int(r.n[row, c.LOW]), start)
    r.n[row, c.HIGH] = max(int(r.n[row, c.HIGH]), end)
    oldest = max(int(r.n[row, c.NEXT]), int(r.n[row, c.LOW]))
    if r.n[row, c.HIGH] - oldest <= r.n[row, c.LIMIT]:
        return
    keep = int(r.n[row, c.HIGH]) - 3 * int(r.n[row, c.FRAME])
    empty(r, row, oldest, keep)
    r.n[row, c.NEXT], r.n[row, c.LOW], r.n[row, c.HELD] = keep, keep, 0
    r.n[row, c.RESYNCED] += 1


def note_need(r: ReceiveRows, row: int) -> None:
    """Remember this tick's worst arrival delay and derive the target from the last ones."""
    need = int(r.n[row, c.NEED])
    if need == NOTHING:
        return
    r.n[row, c.NEED] = NOTHING
    count = int(r.n[row, c.NEED_COUNT])
    r.needs[row, count % NEEDS] = need
    r.n[row, c.NEED_COUNT] = count + 1
    if count >= SETTLED and count % RECKONED != 0:
        return
    kept = min(count + 1, NEEDS)
    calm = need
    for i in range(max(0, count - CALM + 1), count):
        calm = max(calm, int(r.needs[row, i % NEEDS]))
    calm += CALM_MS * int(r.n[row, c.RATE]) // 1000
    top = largest(r.needs[row, :kept], kept // 20 + 1)
    r.n[row, c.UP] = min(calm, int(top[kept // 20])) + r.n[row, c.FLOOR_NEED]
    r.n[row, c.DOWN] = min(calm, int(top[kept // 50])) + r.n[row, c.FLOOR_NEED]


def largest(values: I64, count: int) -> I64:
    """The `count` largest values, the largest first. Few of many: quicker than sorting them all."""
    top = np.full(count, NOTHING, np.int64)
    for i in range(len(values)):
        value = values[i]
        if value <= top[count - 1]:
            continue
        at = count - 1
        while at > 0 and top[at - 1] < value:
            top[at] = top[at - 1]
            at -= 1
        top[at] = value
    return top


def first_stored(r: ReceiveRows, row: int) -> int:
    """Position of the first sample at or after `next`, or -1."""
    for i in range(max(int(r.n[row, c.NEXT]), int(r.n[row, c.LOW])), int(r.n[row, c.HIGH])):
        if r.ring[row, i & _MASK] != MISSING:
            return i
    return -1


def run_length(r: ReceiveRows, row: int, most: int) -> int:
    """Samples ready without a hole from `next` on, at most `most`."""
    start = int(r.n[row, c.NEXT])
    most = max(0, min(most, int(r.n[row, c.HIGH]) - start))
    cell = start & _MASK
    part = min(most, RING - cell)
    ready = filled(r.ring[row, cell : cell + part])
    if ready < part or part == most:
        return ready
    return part + filled(r.ring[row, : most - part])


def settle(r: ReceiveRows, row: int) -> None:
    """After inventing: go on where the missing piece came after all, else give it up and go to the next."""
    first = first_stored(r, row)
    if first >= 0:
        r.n[row, c.NEXT] = min(first, int(r.n[row, c.NEXT]) + int(r.n[row, c.HELD]))
        r.n[row, c.HELD] = 0


def take(r: ReceiveRows, row: int, at: int, count: int) -> None:
    """Move `count` samples from the ring to line[at:]."""
    start = int(r.n[row, c.NEXT])
    first = min(count, RING - (start & _MASK))
    cell = start & _MASK
    copy(r.line[row, at : at + first], r.ring[row, cell : cell + first])
    copy(r.line[row, at + first : at + count], r.ring[row, : count - first])
    discard(r, row, count)


def empty(r: ReceiveRows, row: int, start: int, end: int) -> None:
    """Leave the cells of the positions [start, end) empty; at most the whole ring."""
    count = min(end - start, RING)
    if count <= 0:
        return
    cell = start & _MASK
    first = min(count, RING - cell)
    fill(r.ring[row, cell : cell + first])
    fill(r.ring[row, : count - first])


def discard(r: ReceiveRows, row: int, count: int) -> None:
    """Move on over samples that were played."""
    start = int(r.n[row, c.NEXT])
    empty(r, row, start, start + count)
    r.n[row, c.NEXT] = start + count


def scale_time(r: ReceiveRows, row: int, tick: int, at: int) -> int:
    """Lengthen or shorten the delay within this frame if it is time to; samples written (0 or a frame)."""
    n = int(r.n[row, c.FRAME])
    delay = tick * n - int(r.n[row, c.NEXT])
    if delay > r.n[row, c.DOWN] and r.n[row, c.NEED_COUNT] >= SETTLED:
        return shrink(r, row, at, delay - int(r.n[row, c.DOWN]))
    if delay < r.n[row, c.UP]:
        return grow(r, row, at, int(r.n[row, c.UP]) - delay)
    return 0


def peek(r: ReceiveRows, row: int, count: int) -> I16:
    """A copy of the next `count` samples of the ring."""
    start = int(r.n[row, c.NEXT])
    x = np.zeros(count, np.int16)
    for i in range(count):
        x[i] = r.ring[row, (start + i) & _MASK]
    return x


def is_pause(r: ReceiveRows, row: int, x: I16) -> bool:
    """Whether the samples are no louder than the caller's background."""
    total = 0
    for i in range(len(x)):
        total += abs(int(x[i]))
    return total <= len(x) * (2 * int(r.n[row, c.QUIET]) + 12)


def shrink(r: ReceiveRows, row: int, at: int, excess: int) -> int:
    """Play a frame out of more than a frame. 0 where no period fits or none is alike."""
    n, d = int(r.n[row, c.FRAME]), int(r.n[row, c.RATE]) // 8_000
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
        r.n[row, c.REST] = 2
        r.n[row, c.TRIED] += 1
        if alike < (LIKE_URGENT if urgent else LIKE) - LESS_EACH_TRY * int(r.n[row, c.TRIED]):
            return 0
    r.n[row, c.TRIED] = 0
    squeeze(x, r.line[row, at : at + n], lag)
    discard(r, row, n + lag)
    r.n[row, c.SQUEEZED] += lag
    r.n[row, c.REST] = 1 if urgent else 3
    return n


def grow(r: ReceiveRows, row: int, at: int, lacking: int) -> int:
    """Play a frame out of less than a frame. 0 where none is whole or no period is alike."""
    n, d = int(r.n[row, c.FRAME]), int(r.n[row, c.RATE]) // 8_000
    if run_length(r, row, n) < n:
        return 0
    x = peek(r, row, n)
    longest = 70 * d
    lag = min(lacking, longest)
    if not is_pause(r, row, x):
        lag, alike = best_lag(x, 0, 1, (SHORTEST * d, longest), n - longest, d)
        r.n[row, c.REST] = 2
        if alike < LIKE:
            return 0
    stretch(x, r.line[row, at : at + n], lag)
    discard(r, row, n - lag)
    r.n[row, c.STRETCHED] += lag
    r.n[row, c.REST] = 3
    return n


def note_background(r: ReceiveRows, row: int, at: int) -> None:
    """Follow the caller's background level: down at once, up over seconds."""
    n = int(r.n[row, c.FRAME])
    total = 0
    for i in range(at, at + n):
        total += abs(int(r.line[row, i]))
    mean, quiet = total // n, int(r.n[row, c.QUIET])
    if mean < quiet:
        r.n[row, c.QUIET] = mean
    elif int(r.n[row, c.NEED_COUNT]) % 16 == 0:
        r.n[row, c.QUIET] = min(mean, quiet + quiet // 16 + 1, 200)


def pull(r: ReceiveRows, row: int, tick: int) -> int:
    """The next 20 ms into the end of `line`; how many of its samples are invented."""
    n = int(r.n[row, c.FRAME])
    at = HISTORY_MS * int(r.n[row, c.RATE]) // 1000
    for i in range(0, at, n):
        copy(r.line[row, i : i + n], r.line[row, i + n : i + 2 * n])
    note_need(r, row)
    if not r.n[row, c.PLAYING]:
        r.line[row, at : at + n] = 0
        return 0
    done, invented = 0, 0
    if r.n[row, c.REST] > 0:
        r.n[row, c.REST] -= 1
    elif r.n[row, c.AGE] == 0 and r.n[row, c.HELD] == 0:
        done = scale_time(r, row, tick, at)
    while done < n:
        count, lost = piece(r, row, at + done, n - done)
        done += count
        invented += lost
    if invented == 0:
        note_background(r, row, at)
    if r.n[row, c.FRESH]:
        return 0
    r.n[row, c.CONCEALED] += invented
    return invented


def piece(r: ReceiveRows, row: int, at: int, most: int) -> tuple[int, int]:
    """One stretch of real or of invented audio: (samples, of these invented)."""
    if r.n[row, c.HELD] > 0:
        settle(r, row)
    ready = 0 if r.n[row, c.HELD] > 0 else run_length(r, row, most)
    if ready > 0:
        take(r, row, at, ready)
        if r.n[row, c.AGE] > 0 and not r.n[row, c.FRESH] and r.n[row, c.SPARE_LENGTH] == 0:
            merge(r, row, at, ready)
        r.n[row, c.AGE], r.n[row, c.FRESH], r.n[row, c.SPARE_LENGTH], r.n[row, c.SPARE_AT] = 0, 0, 0, 0
        return ready, 0
    first = first_stored(r, row)
    gap = most if first < 0 else min(most, max(1, first - int(r.n[row, c.NEXT]) - int(r.n[row, c.HELD])))
    conceal(r, row, at, gap)
    r.n[row, c.HELD] += gap
    return gap, gap
