"""One RTP packet of a row: parsed, judged, and its samples stored (RFC 3550 §5.1, RFC 3551).

Whatever a peer sends ends here as a counter or as audio. What needs objects (Opus, G.722, key presses, RTCP)
is only recognised and left to the caller. Functions are written for numba and run without it.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from gateway.media import columns as c
from gateway.media.cells import copy
from gateway.media.jitter import pull, store
from gateway.media.rows import L16, PACKETS, ReceiveRows
from gateway.media.stream import PLAYABLE, accept

U8 = NDArray[np.uint8]
I16 = NDArray[np.int16]
I64 = NDArray[np.int64]
F64 = NDArray[np.float64]

DONE, TELEPHONE_EVENT, RTCP, ENCODED = 0, 1, 2, 3
"""What take_packet() leaves to do: nothing, a key press, a report, audio that needs a decoder."""
TO_DO, COUNTED = 7, 8
"""Of what take_packets() says: the bits of that, and whether the packet was counted as some peer's."""
COMFORT_NOISE = 13
"""Static payload type of RFC 3389: silence, which the buffer makes by itself."""


def payload_span(data: U8, size: int) -> tuple[int, int]:
    """(start, end) of the payload; (0, 0) for what is no RTP packet."""
    if size < 12 or data[0] >> 6 != 2:
        return 0, 0
    start, end = 12 + 4 * (int(data[0]) & 15), size
    if data[0] & 0x10:
        if start + 4 > size:
            return 0, 0
        start += 4 + 4 * (int(data[start + 2]) << 8 | int(data[start + 3]))
    if data[0] & 0x20:
        end -= max(1, int(data[size - 1]))
    return (start, end) if start <= end else (0, 0)


def header_of(data: U8) -> tuple[int, int, int]:
    """Sequence number, timestamp, SSRC."""
    seq = int(data[2]) << 8 | int(data[3])
    ts = int(data[4]) << 24 | int(data[5]) << 16 | int(data[6]) << 8 | int(data[7])
    ssrc = int(data[8]) << 24 | int(data[9]) << 16 | int(data[10]) << 8 | int(data[11])
    return seq, ts, ssrc


def samples_of(data: U8, start: int, end: int, codec: int, tables: I16) -> I16:
    """The audio of a payload whose samples stand alone: G.711 by table, L16 big-endian."""
    if codec == L16:
        count = (end - start) // 2
        high = data[start : start + 2 * count : 2].astype(np.int64)
        low = data[start + 1 : start + 2 * count : 2].astype(np.int64)
        return (high * 256 + low).astype(np.int16)
    pcm: I16 = tables[codec][data[start:end]]
    return pcm


def take_packet(
    r: ReceiveRows, row: int, data: U8, size: int, when: tuple[int, int, float], tables: I16
) -> int:
    """Take a packet in; what is left to do with it.

    when: this tick, the first tick that may rely on the packet, its arrival in seconds. tables: (2, 256).
    """
    if size >= 8 and data[0] >> 6 == 2 and 192 <= data[1] <= 223:
        return RTCP
    start, end = payload_span(data, size)
    if start == 0:
        r.n[row, c.MALFORMED] += 1
        return DONE
    kind = int(data[1]) & 127
    if kind == r.n[row, c.DTMF_TYPE]:
        return TELEPHONE_EVENT
    if kind != r.n[row, c.PAYLOAD_TYPE] and kind != COMFORT_NOISE:
        r.n[row, c.UNKNOWN] += 1
        return DONE
    if kind == r.n[row, c.PAYLOAD_TYPE] and r.n[row, c.CODEC] == PACKETS:
        return ENCODED
    samples = 0
    if kind != COMFORT_NOISE:
        samples = (end - start) // 2 if r.n[row, c.CODEC] == L16 else end - start
    verdict, at = accept(r, row, when[0], when[1], when[2], header_of(data), samples)
    if verdict == PLAYABLE and samples > 0:
        store(r, row, at, samples_of(data, start, end, int(r.n[row, c.CODEC]), tables))
    r.n[row, c.OCTETS] += end - start
    return DONE


def take_packets(
    r: ReceiveRows, rows: I64, data: U8, sizes: I64, times: tuple[int, F64, float], tables: I16, left: I64
) -> None:
    """Take all packets of a tick in; `left` says what remains to be done with each, and if it was counted.

    rows, sizes: (k,); data: (k, bytes); times: the tick, the arrivals (k,) in seconds, and the latest arrival
    that this tick may rely on.
    """
    tick, arrivals, reliable = times
    for k in range(len(rows)):
        due, n = tick if arrivals[k] <= reliable else tick + 1, r.n[rows[k]]
        known = n[c.RECEIVED] + n[c.REJECTED]
        left[k] = take_packet(r, rows[k], data[k], sizes[k], (tick, due, arrivals[k]), tables)
        if n[c.RECEIVED] + n[c.REJECTED] > known:
            left[k] += COUNTED


def pull_rows(r: ReceiveRows, rows: I64, tick: int, out: I16, invented: I64) -> None:
    """20 ms of each row: out (k, 960) from its left, invented (k,) samples."""
    for k in range(len(rows)):
        row = rows[k]
        invented[k] = pull(r, row, tick)
        n = r.n[row, c.FRAME]
        end = 4 * n
        copy(out[k, :n], r.line[row, end - n : end])
