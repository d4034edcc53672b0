"""SrtpRows: libsrtp over all encrypted rows of a tick in one compiled loop, packet by packet without it.

Packets are encrypted and decrypted where they lie, so what is sent needs ROOM octets more than the longest.
What is authentic is libsrtp's judgement alone; both ways give equal octets.
"""

from __future__ import annotations

import logging
from functools import cache
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from gateway.media.linked import compiler
from sip.srtp import BadSrtp, Functions, SrtpContext, functions

log = logging.getLogger(__name__)

I64 = NDArray[np.int64]
U8 = NDArray[np.uint8]

ROOM = 144
"""Octets that encryption may add (SRTP_MAX_TRAILER_LEN)."""
BAD = -1
_PREFIX = "moshi_gateway_"


class Loops(NamedTuple):
    """The compiled loops."""

    protect: Any
    unprotect: Any


class SrtpRows:
    """The contexts of `count` rows."""

    def __init__(self, count: int, compiled: bool = True) -> None:
        self._contexts: dict[int, SrtpContext] = {}
        self._loops = loops() if compiled else None
        self._out, self._in = np.zeros(count, np.int64), np.zeros(count, np.int64)
        self.encrypted = np.zeros(count, np.bool_)
        """Rows whose packets are."""

    def __len__(self) -> int:
        return len(self._contexts)

    def __getitem__(self, row: int) -> SrtpContext:
        return self._contexts[row]

    def get(self, row: int) -> SrtpContext | None:
        return self._contexts.get(row)

    def set(self, row: int, context: SrtpContext | None) -> None:
        """Encrypt a row's packets from now on, or no longer."""
        self._contexts.pop(row, None)
        self.encrypted[row] = context is not None
        if context is not None:
            self._contexts[row] = context
            self._out[row], self._in[row] = context.handles

    def protect(self, rows: I64, packets: U8, sizes: I64) -> I64:
        """Encrypt packets[row, :size] of each row where it lies; the new sizes (n,), BAD where it failed."""
        sizes = sizes.copy()
        if self._loops is not None:
            self._loops.protect(self._out[rows], packets.ctypes.data + rows * packets.strides[0], sizes)
            return sizes
        for k, row in enumerate(rows.tolist()):
            done = self._contexts[row].protect(packets[row, : sizes[k]].tobytes())
            packets[row, : len(done)] = np.frombuffer(done, np.uint8)
            sizes[k] = len(done)
        return sizes

    def unprotect(self, rows: I64, data: U8, sizes: I64) -> I64:
        """Decrypt datagrams, data[k, :size] of rows[k], RTP and RTCP alike, where they lie; the new sizes
        (n,), BAD for what is not authentic. Those of rows that are not encrypted are left as they are."""
        sizes = sizes.copy()
        secret = np.flatnonzero(self.encrypted[rows])
        if self._loops is not None:
            whose = rows[secret]
            addresses = data.ctypes.data + secret * data.strides[0]
            found = sizes[secret]
            self._loops.unprotect(self._in[whose], addresses, data[secret, 1].astype(np.int64), found)
            sizes[secret] = found
            return sizes
        for k in secret.tolist():
            sizes[k] = self._unprotect(self._contexts[int(rows[k])], data[k], int(sizes[k]))
        return sizes

    @staticmethod
    def _unprotect(context: SrtpContext, data: U8, size: int) -> int:
        datagram = data[:size].tobytes()
        report = size > 1 and 192 <= datagram[1] <= 223
        try:
            plain = context.unprotect_rtcp(datagram) if report else context.unprotect(datagram)
        except BadSrtp:
            return BAD
        data[: len(plain)] = np.frombuffer(plain, np.uint8)
        return len(plain)


def protect_loop(sessions: I64, addresses: I64, sizes: I64) -> None:
    """RTP packets at these addresses."""
    length = np.zeros(1, np.int32)
    for k in range(len(sessions)):
        length[0] = sizes[k]
        failed = srtp_protect(sessions[k], addresses[k], length.ctypes.data)
        sizes[k] = -1 if failed != 0 else length[0]


def unprotect_loop(sessions: I64, addresses: I64, seconds: I64, sizes: I64) -> None:
    """Datagrams at these addresses; `seconds`: their second octets, which tell RTCP (RFC 5761 §4)."""
    length = np.zeros(1, np.int32)
    for k in range(len(sessions)):
        length[0] = sizes[k]
        if sizes[k] < 8:
            failed = 1
        elif 192 <= seconds[k] <= 223:
            failed = srtp_unprotect_rtcp(sessions[k], addresses[k], length.ctypes.data)
        else:
            failed = srtp_unprotect(sessions[k], addresses[k], length.ctypes.data)
        sizes[k] = -1 if failed != 0 else length[0]


@cache
def loops() -> Loops | None:
    """The loops, compiled or out of the cache; None without numba, or where libsrtp cannot be reached."""
    found = functions()
    if found is None:
        log.warning("pylibsrtp is not as expected: encrypted calls take several times the processor time")
        return None
    with compiler(__file__) as njit:
        if njit is None:
            return None
        calls = _named(found)
        made = Loops(njit(protect_loop, calls), njit(unprotect_loop, calls))
    nothing = np.zeros(0, np.int64)
    made.protect(nothing, nothing, nothing)
    made.unprotect(nothing, nothing, nothing, nothing)
    return made


def _named(found: Functions) -> dict[str, Any]:
    """By name and not by address, so that what was compiled is good in another process."""
    import llvmlite.binding
    from numba import types

    calls = {}
    for name, address in found._asdict().items():
        llvmlite.binding.add_symbol(_PREFIX + name, address)
        signature = types.int32(types.int64, types.int64, types.int64)
        calls[name] = types.ExternalFunction(_PREFIX + name, signature)
    return calls


srtp_protect: Any = None
srtp_unprotect: Any = None
srtp_unprotect_rtcp: Any = None
"""Stand for libsrtp's functions; bound when compiled."""
