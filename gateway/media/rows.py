"""ReceiveRows: the receiving state of every call as arrays, one row a call.

A plain tuple of arrays, so that the same functions run over it in Python and compiled. Positions are counts
of samples at the leg's rate on the sender's RTP clock, extended beyond 32 bits; a `tick` is the number of a
20 ms step, and tick * frame is the same clock as we count it. The difference of the two is a delay.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

I16 = NDArray[np.int16]
I64 = NDArray[np.int64]
F64 = NDArray[np.float64]

RING = 16_384
"""Samples of a row's jitter buffer: 2 s at 8 kHz, 0.68 s at 24 kHz. A power of two."""
MISSING = -32_768
"""A ring cell that holds nothing; audio never has this value."""
NEEDS = 200
"""Arrival delays remembered for the target: 4 s of 20 ms packets."""
LARGEST_FRAME = 960
"""Samples of 20 ms at 48 kHz."""
HISTORY_MS = 60
"""Output kept for concealment: two longest pitch periods and the window of their search."""

PCMU, PCMA, L16, PACKETS = 0, 1, 2, 3
"""Kinds of `codec`: what a ring cell is made from. PACKETS are decoded in order outside."""


class ReceiveRows(NamedTuple):
    """(rows,) int64 unless said otherwise."""

    codec: I64
    rate: I64
    """Of the decoded audio, Hz."""
    clock: I64
    """Of the RTP timestamps, Hz."""
    frame: I64
    """Samples a tick: rate / 50."""
    limit: I64
    """Most samples the buffer may hold."""
    floor_need: I64
    """Least the buffer aims to hold, in samples more than the network needs."""
    payload_type: I64
    dtmf_type: I64
    """-1: none."""

    ring: I16
    """(rows, RING): decoded samples, MISSING elsewhere; valid cells lie in [next, high)."""
    next: I64
    """The sample played next."""
    high: I64
    """End of the newest sample stored; at or below `next` the buffer is empty."""
    low: I64
    """First sample stored since the buffer was empty."""
    held: I64
    """Samples invented since `next` last moved: how long a gap has been waited for."""
    playing: I64
    """0 until the first audio packet."""
    fresh: I64
    """1 until its first sample was played."""

    seen: I64
    ssrc: I64
    top: I64
    """Highest sequence number, extended."""
    base: I64
    window: I64
    """Bit n: sequence number top - n has come; 62 bits."""
    reference: I64
    """Timestamp of the newest packet, extended, in RTP units."""
    other_ssrc: I64
    """A stream that may replace this one: its last packet (-1: none)."""
    other_seq: I64
    other_ts: I64
    last_ts: I64
    last_arrival: F64
    jitter: F64
    """RFC 3550 §6.4.1, in RTP units."""

    need: I64
    """Largest delay among this tick's arrivals, or NOTHING."""
    needs: I64
    """(rows, NEEDS): the delays of the last ticks that had arrivals."""
    need_count: I64
    up: I64
    """Below this delay the buffer must grow."""
    down: I64
    """Above this delay it may shrink."""
    rest: I64
    """Ticks until time may be scaled again."""
    tried: I64
    """Searches for a period to cut since the delay was last right: the longer, the less it must be alike."""

    line: I16
    """(rows, history + frame): what was played last, at the leg's rate."""
    cycle: I16
    """(rows, ...): the pitch periods concealment repeats."""
    cycle_length: I64
    bend: I64
    """Step at the seam between what was played and its repetition, to be bent away."""
    age: I64
    """Samples invented since real audio stopped; 0: none."""
    quiet: I64
    """Mean magnitude of the caller's background."""
    seed: I64
    spare: I16
    """(rows, 2 * frame): concealment prepared by the codec itself."""
    spare_length: I64
    spare_at: I64

    stream_received: I64
    lost_before: I64
    """Lost in streams that ended."""
    received: I64
    octets: I64
    late: I64
    duplicated: I64
    reordered: I64
    unknown: I64
    malformed: I64
    rejected: I64
    resynced: I64
    concealed: I64
    recovered: I64
    squeezed: I64
    stretched: I64


NOTHING = -(1 << 62)
_WIDE: dict[str, tuple[int, type[np.generic]]] = {
    "ring": (RING, np.int16),
    "needs": (NEEDS, np.int64),
    "line": (LARGEST_FRAME * (HISTORY_MS + 20) // 20, np.int16),
    "cycle": (LARGEST_FRAME * 3, np.int16),
    "spare": (LARGEST_FRAME * 4, np.int16),
}


def receive_rows(count: int) -> ReceiveRows:
    """The state of `count` closed rows."""
    arrays: list[NDArray[np.generic]] = []
    for name in ReceiveRows._fields:
        if name in _WIDE:
            width, kind = _WIDE[name]
            arrays.append(np.zeros((count, width), kind))
        else:
            arrays.append(np.zeros(count, np.float64 if name in ("jitter", "last_arrival") else np.int64))
    rows = ReceiveRows(*arrays)  # type: ignore[arg-type]
    for row in range(count):
        forget(rows, row)
    return rows


def forget(r: ReceiveRows, row: int) -> None:
    """Make a row as new: no stream, no audio, all counts 0."""
    for array in r:
        array[row] = 0
    r.ring[row] = MISSING
    r.need[row] = NOTHING
    r.other_ssrc[row] = -1
    r.dtmf_type[row] = -1
    r.quiet[row] = 4
    r.seed[row] = row + 1


def configure(r: ReceiveRows, row: int, codec: int, rate: int, clock: int, limit_ms: int) -> None:
    """Give a row its codec; what was buffered is dropped, the stream's counts go on."""
    r.codec[row], r.rate[row], r.clock[row], r.frame[row] = codec, rate, clock, rate // 50
    r.limit[row] = min(limit_ms * rate // 1000, RING - rate // 10)
    r.ring[row] = MISSING
    r.line[row] = 0
    for array in (r.playing, r.next, r.high, r.low, r.held, r.age, r.need_count, r.spare_length, r.spare_at):
        array[row] = 0
    r.need[row] = NOTHING
