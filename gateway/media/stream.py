"""Following one RTP stream a row: whose packets count, in which order, and what was lost (RFC 3550).

A packet belongs to the row's stream when its SSRC is the stream's and its sequence number and timestamp are
near what the stream says now. Anything else is counted and not heard, unless two such packets follow each
other with none of the stream between: then they are the stream, begun anew. Functions are written for numba
and run without it.
"""

from __future__ import annotations

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
    if r.seen[row]:
        r.lost_before[row] += r.top[row] - r.base[row] + 1 - r.stream_received[row]
        r.resynced[row] += 1
        r.ring[row, :] = MISSING
    r.seen[row] = 1
    r.ssrc[row], r.reference[row] = ssrc, ts
    r.top[row], r.base[row], r.window[row] = seq - 1, seq, 0
    r.stream_received[row], r.playing[row], r.held[row] = 0, 0, 0
    r.other_ssrc[row], r.last_ts[row] = -1, -1
    r.need[row], r.need_count[row] = NOTHING, 0


def replaces(r: ReceiveRows, row: int, seq: int, ts: int, ssrc: int) -> bool:
    """Whether a packet outside the stream is the second of a new one; if not it is kept as the first."""
    step = wrapped(seq - r.other_seq[row], 16)
    advance = wrapped(ts - r.other_ts[row], 32)
    if ssrc == r.other_ssrc[row] and 0 < step <= 2 and 0 <= advance <= r.clock[row]:
        return True
    r.other_ssrc[row], r.other_seq[row], r.other_ts[row] = ssrc, seq, ts
    return False


def position(r: ReceiveRows, row: int, ts: int) -> int:
    """The sample (at the leg's rate) where a timestamp lies."""
    extended = int(r.reference[row]) + wrapped(ts - int(r.reference[row]), 32)
    return extended * int(r.rate[row]) // int(r.clock[row])


def strays(r: ReceiveRows, row: int, due: int, seq: int, ts: int, ssrc: int, audio: bool) -> bool:
    """Whether a packet's numbers are far from the stream's."""
    if ssrc != r.ssrc[row]:
        return True
    step = wrapped(seq - int(r.top[row]), 16)
    if step > FAR or step <= -WINDOW:
        return True
    if not audio or not r.playing[row]:
        return False
    frame = int(r.frame[row])
    delay = due * frame - position(r, row, ts)
    expected = due * frame - int(r.next[row]) - int(r.held[row])
    return delay < expected - 50 * frame or delay > expected + 100 * frame


def enter(r: ReceiveRows, row: int, seq: int) -> bool:
    """Count a packet of the stream; False when it had come before."""
    step = wrapped(seq - int(r.top[row]), 16)
    window = int(r.window[row])
    if step > 0:
        window = ((window << step) | 1) & _BITS if step < WINDOW else 1
        r.top[row] += step
    else:
        bit = 1 << -step
        if window & bit:
            r.duplicated[row] += 1
            return False
        window |= bit
        r.reordered[row] += 1
    r.window[row] = window
    r.stream_received[row] += 1
    r.received[row] += 1
    return True


def measure_jitter(r: ReceiveRows, row: int, ts: int, arrival: float) -> None:
    """Interarrival jitter, RFC 3550 §6.4.1 and appendix A.8."""
    if r.last_ts[row] >= 0:
        apart = wrapped(ts - int(r.last_ts[row]), 32)
        change = abs((arrival - r.last_arrival[row]) * r.clock[row] - apart)
        if change < r.clock[row]:
            r.jitter[row] += (change - r.jitter[row]) / 16.0
    r.last_ts[row], r.last_arrival[row] = ts, arrival


def accept(
    r: ReceiveRows, row: int, tick: int, due: int, arrival: float, header: tuple[int, int, int], samples: int
) -> tuple[int, int]:
    """Judge one packet of an agreed payload type: (verdict, position of its first sample).

    header: sequence number, timestamp, SSRC. samples: its length, 0 for anything but audio. due: the first
    tick that may rely on it (it must have come a few ms before). arrival: seconds, for the jitter alone.
    """
    seq, ts, ssrc = header
    audio = samples > 0
    if not r.seen[row]:
        begin(r, row, seq, ts, ssrc)
    elif strays(r, row, due, seq, ts, ssrc, audio):
        if not replaces(r, row, seq, ts, ssrc):
            r.rejected[row] += 1
            return FOREIGN, 0
        begin(r, row, seq, ts, ssrc)
    else:
        r.other_ssrc[row] = -1
    if not enter(r, row, seq):
        return DUPLICATE, 0
    if not audio:
        return PLAYABLE, 0
    measure_jitter(r, row, ts, arrival)
    start = position(r, row, ts)
    need = due * int(r.frame[row]) - start
    if not r.playing[row]:
        r.playing[row], r.fresh[row], r.age[row] = 1, 1, 0
        r.next[row] = (tick - due) * r.frame[row] + start - r.frame[row]
        r.high[row] = r.low[row] = r.next[row]
    r.need[row] = max(int(r.need[row]), need)
    r.reference[row] += max(0, wrapped(ts - int(r.reference[row]), 32))
    if start + samples <= r.next[row]:
        r.late[row] += 1
        return LATE, start
    return PLAYABLE, start
