"""packing: G.711 blocks of 20 ms into RTP packets (RFC 3550 §5.1, RFC 3551 §4.5.14), all rows in one loop."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from engine.api import Pcm
from gateway.media import g711
from gateway.media.compiled import kernel

I64 = NDArray[np.int64]
Bytes = NDArray[np.uint8]
Rows = NDArray[np.intp]

HEADER = 12


class Packets(NamedTuple):
    """What is being sent, by row."""

    data: Bytes  # (count, bytes)
    sequence: I64
    origin: I64  # timestamp of tick 0
    clock: I64  # of the timestamps, Hz
    filled: I64  # blocks in the packet so far
    ptime: I64  # blocks that make it whole
    octets: I64  # of payload in the last whole packet
    sends: NDArray[np.bool_]  # whole packets go out; a number is given to no other


def packets(count: int, size: int) -> Packets:
    """Room for a packet of `size` octets on each of `count` rows, a block each."""
    sequence, origin, clock, filled, octets = (np.zeros(count, np.int64) for _ in range(5))
    return Packets(
        np.zeros((count, size), np.uint8),
        sequence,
        origin,
        clock,
        filled,
        np.ones(count, np.int64),
        octets,
        np.zeros(count, np.bool_),
    )


def _pack(rows: Any, pcm: Any, table: Any, p: Any, tick: int, whole: Any) -> None:
    """One more block (n, L) to each row's packet; whole[q]: now it is ready to send."""
    width = pcm.shape[1]
    for q in range(len(rows)):
        row = rows[q]
        if p.filled[row] == 0:
            stamp = p.origin[row] + tick * (p.clock[row] // 50)
            for k in range(4):
                p.data[row, 4 + k] = (stamp >> (24 - 8 * k)) & 255
        at = HEADER + p.filled[row] * width
        for i in range(width):
            scaled = np.rint(pcm[q, i] * np.float32(32_768))
            value = int(min(max(scaled, np.float32(-32_768)), np.float32(32_767)))
            p.data[row, at + i] = table[value & 0xFFFF]
        p.filled[row] += 1
        whole[q] = p.filled[row] >= p.ptime[row]
        if whole[q]:
            p.octets[row], p.filled[row] = p.filled[row] * width, 0
        if whole[q] and p.sends[row]:
            p.sequence[row] += 1
            for k in range(2):
                p.data[row, 2 + k] = (p.sequence[row] >> (8 - 8 * k)) & 255


def _pack_numpy(rows: Rows, pcm: Pcm, table: Bytes, p: Packets, tick: int, whole: NDArray[np.bool_]) -> None:
    width, filled = pcm.shape[1], p.filled[rows]
    stamp(rows[filled == 0], p, tick)
    codes = table[g711.to_int16(pcm).view(np.uint16)]
    p.data[rows[:, None], HEADER + filled[:, None] * width + np.arange(width)] = codes
    whole[:] = advance(rows, p, width)


pack = kernel(_pack, _pack_numpy)


def stamp(rows: Rows, p: Packets, tick: int) -> None:
    """The time of packets that begin at this tick."""
    stamps = (p.origin[rows] + tick * (p.clock[rows] // 50)) & 0xFFFF_FFFF
    p.data[rows, 4:8] = stamps.astype(">u4").view(np.uint8).reshape(-1, 4)


def number(rows: Rows, p: Packets) -> None:
    """Give packets that will be sent their sequence numbers."""
    p.sequence[rows] += 1
    p.data[rows, 2:4] = (p.sequence[rows] & 0xFFFF).astype(">u2").view(np.uint8).reshape(-1, 2)


def advance(rows: Rows, p: Packets, width: int) -> NDArray[np.bool_]:
    """One more block of `width` octets lies in each row's packet: which are whole (n,); those to be sent are
    numbered."""
    filled = p.filled[rows] + 1
    whole = filled >= p.ptime[rows]
    p.filled[rows] = np.where(whole, 0, filled)
    p.octets[rows[whole]] = filled[whole] * width
    number(rows[whole & p.sends[rows]], p)
    return np.asarray(whole, np.bool_)
