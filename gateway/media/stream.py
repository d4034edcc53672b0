"""Following one RTP stream a row: whose packets count, in which order, and what was lost (RFC 3550).

A packet belongs to the row's stream when its SSRC is the stream's and its sequence number and timestamp are
near what the stream says now. Anything else is counted and not heard, unless two such packets follow each
other with none of the stream between: then they are the stream, begun anew. Functions are written for numba
and run without it.
"""

from __future__ import annotations

from gateway.media import columns as c
from gateway.media.rows import MISSING, NOTHING, ReceiveRows

PLAYABLE, LATE, DUPLICATE, FOREIGN = 0, 1, 2, 3
"""What accept() makes of a packet: to be stored, too late, had already, not of this stream."""

WINDOW = 62
"""Sequence numbers remembered for duplicates."""
FAR = 3_000
"""A sequence number may leap so far ahead within a stream (MAX_DROPOUT of RFC 3550 appendix A.1)."""
_BITS = (1 << WINDOW) - 1


def wrapped(difference: int, bits: int) -> int:
    """A difference of two `bits`-wide counters as the nearest signed number."""
    half = 1 << (bits - 1)
    return ((difference + half) & ((1 << bits) - 1)) - half


def begin(r: ReceiveRows, row: int, seq: int, ts: int, ssrc: int) -> None:
    """A stream starts (again) with this packet."""
    if r.n[row, c.SEEN]:
        r.n[row, c.LOST_BEFORE] += r.n[row, c.TOP] - r.n[row, c.BASE] + 1 - r.n[row, c.STREAM_RECEIVED]
        r.n[row, c.RESYNCED] += 1
        r.ring[row, :] = MISSING
    r.n[row, c.SEEN] = 1
    r.n[row, c.SSRC], r.n[row, c.REFERENCE] = ssrc, ts
    r.n[row, c.TOP], r.n[row, c.BASE], r.n[row, c.WINDOW] = seq - 1, seq, 0
    r.n[row, c.STREAM_RECEIVED], r.n[row, c.PLAYING], r.n[row, c.HELD] = 0, 0, 0
    r.n[row, c.OTHER_SSRC], r.n[row, c.LAST_TS] = -1, -1
    r.n[row, c.NEED], r.n[row, c.NEED_COUNT] = NOTHING, 0


def replaces(r: ReceiveRows, row: int, seq: int, ts: int, ssrc: int) -> bool:
    """Whether a packet outside the stream is the second of a new one; if not it is kept as the first."""
    step = wrapped(seq - r.n[row, c.OTHER_SEQ], 16)
    advance = wrapped(ts - r.n[row, c.OTHER_TS], 32)
    if ssrc == r.n[row, c.OTHER_SSRC] and 0 < step <= 2 and 0 <= advance <= r.n[row, c.CLOCK]:
        return True
    r.n[row, c.OTHER_SSRC], r.n[row, c.OTHER_SEQ], r.n[row, c.OTHER_TS] = ssrc, seq, ts
    return False


def position(r: ReceiveRows, row: int, ts: int) -> int:
    """The sample (at the leg's rate) where a timestamp lies."""
    extended = int(r.n[row, c.REFERENCE]) + wrapped(ts - int(r.n[row, c.REFERENCE]), 32)
    return extended * int(r.n[row, c.RATE]) // int(r.n[row, c.CLOCK])


def strays(r: ReceiveRows, row: int, due: int, seq: int, ts: int, ssrc: int, audio: bool) -> bool:
    """Whether a packet's numbers are far from the stream's."""
    if ssrc != r.n[row, c.SSRC]:
        return True
    step = wrapped(seq - int(r.n[row, c.TOP]), 16)
    if step > FAR or step <= -WINDOW:
        return True
    if not audio or not r.n[row, c.PLAYING]:
        return False
    frame = int(r.n[row, c.FRAME])
    delay = due * frame - position(r, row, ts)
    expected = due * frame - int(r.n[row, c.NEXT]) - int(r.n[row, c.HELD])
    return delay < expected - 50 * frame or delay > expected + 100 * frame


def enter(r: ReceiveRows, row: int, seq: int) -> bool:
    """Count a packet of the stream; False when it had come before."""
    step = wrapped(seq - int(r.n[row, c.TOP]), 16)
    window = int(r.n[row, c.WINDOW])
    if step > 0:
        window = ((window << step) | 1) & _BITS if step < WINDOW else 1
        r.n[row, c.TOP] += step
    else:
        bit = 1 << -step
        if window & bit:
            r.n[row, c.DUPLICATED] += 1
            return False
        window |= bit
        r.n[row, c.REORDERED] += 1
    r.n[row, c.WINDOW] = window
    r.n[row, c.STREAM_RECEIVED] += 1
    r.n[row, c.RECEIVED] += 1
    return True


def measure_jitter(r: ReceiveRows, row: int, ts: int, arrival: float) -> None:
    """Interarrival jitter, RFC 3550 §6.4.1 and appendix A.8."""
    if r.n[row, c.LAST_TS] >= 0:
        apart = wrapped(ts - int(r.n[row, c.LAST_TS]), 32)
        change = abs((arrival - r.f[row, c.LAST_ARRIVAL]) * r.n[row, c.CLOCK] - apart)
        if change < r.n[row, c.CLOCK]:
            r.f[row, c.JITTER] += (change - r.f[row, c.JITTER]) / 16.0
    r.n[row, c.LAST_TS], r.f[row, c.LAST_ARRIVAL] = ts, arrival


def accept(
    r: ReceiveRows, row: int, tick: int, due: int, arrival: float, header: tuple[int, int, int], samples: int
) -> tuple[int, int]:
    """Judge one packet of an agreed payload type: (verdict, position of its first sample).

    header: sequence number, timestamp, SSRC. samples: its length, 0 for anything but audio. due: the first
    tick that may rely on it (it must have come a few ms before). arrival: seconds, for the jitter alone.
    """
    seq, ts, ssrc = header
    audio = samples > 0
    if not r.n[row, c.SEEN]:
        begin(r, row, seq, ts, ssrc)
    elif strays(r, row, due, seq, ts, ssrc, audio):
        if not replaces(r, row, seq, ts, ssrc):
            r.n[row, c.REJECTED] += 1
            return FOREIGN, 0
        begin(r, row, seq, ts, ssrc)
    else:
        r.n[row, c.OTHER_SSRC] = -1
    if not enter(r, row, seq):
        return DUPLICATE, 0
    if not audio:
        return PLAYABLE, 0
    measure_jitter(r, row, ts, arrival)
    start = position(r, row, ts)
    need = due * int(r.n[row, c.FRAME]) - start
    if not r.n[row, c.PLAYING]:
        r.n[row, c.PLAYING], r.n[row, c.FRESH], r.n[row, c.AGE] = 1, 1, 0
        r.n[row, c.NEXT] = (tick - due) * r.n[row, c.FRAME] + start - r.n[row, c.FRAME]
        r.n[row, c.HIGH] = r.n[row, c.LOW] = r.n[row, c.NEXT]
    r.n[row, c.NEED] = max(int(r.n[row, c.NEED]), need)
    r.n[row, c.REFERENCE] += max(0, wrapped(ts - int(r.n[row, c.REFERENCE]), 32))
    if start + samples <= r.n[row, c.NEXT]:
        r.n[row, c.LATE] += 1
        return LATE, start
    return PLAYABLE, start
