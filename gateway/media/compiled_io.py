"""CompiledSockets: one system call a connected socket and tick, in a loop that numba compiled (Linux).

What it does, UdpWire does without it, call by call. recvmmsg(2) takes all that waits on a socket together
with the kernel's arrival times; send(2) takes a packet out of the transmitter's array.
"""

from __future__ import annotations

import sys
from functools import cache
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from gateway.media.linked import compiler

I64 = NDArray[np.int64]
U8 = NDArray[np.uint8]

DONT_WAIT = 0x40
A_ROW = 8
"""Datagrams one call takes from one socket; a burst of more waits for the next tick."""
_CONTROL = 8
"""Words of room for the arrival time."""
_HEADER = 8
"""Words of a struct mmsghdr: name, namelen, iov, iovlen, control, controllen, flags, length."""


class Functions(NamedTuple):
    """The compiled loops."""

    receive: Any
    send: Any


class Slots(NamedTuple):
    """Where datagrams land: arrays that the kernel writes through the addresses in `headers`."""

    data: U8  # (slots, bytes)
    headers: I64  # (slots, 8)
    vectors: I64  # (slots, 2)
    control: I64  # (slots, 8)
    rows: I64  # (slots,)
    sizes: I64  # (slots,)
    times: NDArray[np.float64]  # (slots,) Unix seconds


def slots(count: int, size: int) -> Slots:
    """Room for `count` datagrams of `size` bytes."""
    data = np.zeros((count, size), np.uint8)
    headers = np.zeros((count, _HEADER), np.int64)
    vectors = np.zeros((count, 2), np.int64)
    control = np.zeros((count, _CONTROL), np.int64)
    each = np.arange(count)
    vectors[:, 0] = data.ctypes.data + each * size
    vectors[:, 1] = size
    headers[:, 2], headers[:, 3] = vectors.ctypes.data + each * 16, 1
    headers[:, 4] = control.ctypes.data + each * 8 * _CONTROL
    numbers = (np.zeros(count, np.int64), np.zeros(count, np.int64), np.zeros(count))
    return Slots(data, headers, vectors, control, *numbers)


def receive_loop(fds: I64, rows: I64, room: Slots) -> int:
    """Read every socket once into `room`; how many datagrams came."""
    address = room.headers.ctypes.data
    count = 0
    for k in range(len(fds)):
        if count + A_ROW > len(room.sizes):
            break
        for slot in range(count, count + A_ROW):
            room.headers[slot, 5] = 8 * _CONTROL
        got = recvmmsg(fds[k], address + count * 8 * _HEADER, A_ROW, DONT_WAIT, 0)
        for slot in range(count, count + max(0, got)):
            room.rows[slot], room.sizes[slot] = rows[k], room.headers[slot, 7] & 0xFFFF_FFFF
            room.times[slot] = room.control[slot, 2] + room.control[slot, 3] * 1e-9
        count += max(0, got)
    return count


def send_loop(fds: I64, addresses: I64, sizes: I64, sent: I64) -> None:
    """Send one datagram a socket; sent[k] is 1 where the system took it."""
    for k in range(len(fds)):
        sent[k] = 1 if send(fds[k], addresses[k], sizes[k], DONT_WAIT) == sizes[k] else 0


@cache
def functions() -> Functions | None:
    """The loops, compiled or out of the cache; None where numba or Linux is missing."""
    if not sys.platform.startswith("linux"):
        return None
    with compiler(__file__) as njit:
        if njit is None:
            return None
        from numba import types

        number, wide = types.int32, types.int64
        calls = {
            "recvmmsg": types.ExternalFunction("recvmmsg", number(number, wide, types.uint32, number, wide)),
            "send": types.ExternalFunction("send", wide(number, wide, wide, number)),
        }
        found = Functions(njit(receive_loop, calls), njit(send_loop, calls))
    _warm(found)
    return found


def _warm(found: Functions) -> None:
    nothing = np.zeros(0, np.int64)
    found.receive(nothing, nothing, slots(A_ROW, 64))
    found.send(nothing, nothing, nothing, nothing)


recvmmsg: Any = None
send: Any = None
"""Stand for the system calls; bound when compiled."""
