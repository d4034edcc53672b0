"""G.711 µ-law and A-law as tables over whole arrays.

Decoding follows ITU-T G.711 tables 1a–2b at 16-bit scale; encoding takes the nearest code word. Companded
bytes are stored as they travel (all bits of µ-law and the even bits of A-law inverted).
"""

from __future__ import annotations

from functools import cache

import numpy as np
from numpy.typing import NDArray

Bytes = NDArray[np.uint8]


def _ulaw_decode() -> NDArray[np.int16]:
    code = ~np.arange(256, dtype=np.uint8)
    exponent, mantissa = (code >> 4) & 7, code & 15
    magnitude = ((mantissa.astype(np.int32) * 2 + 33) << exponent) - 33
    return (np.where(code & 0x80, -magnitude, magnitude) * 4).astype(np.int16)


def _alaw_decode() -> NDArray[np.int16]:
    code = np.arange(256, dtype=np.uint8) ^ 0x55
    exponent, mantissa = ((code >> 4) & 7).astype(np.int32), (code & 15).astype(np.int32)
    small = mantissa * 2 + 1
    magnitude = np.where(exponent == 0, small, (small + 32) << np.maximum(exponent - 1, 0)) * 8
    return np.where(code & 0x80, magnitude, -magnitude).astype(np.int16)


DECODE: NDArray[np.int16] = np.stack([_ulaw_decode(), _alaw_decode()])
"""(2, 256) int16: row 0 µ-law, row 1 A-law."""


@cache
def encode_table(law: int) -> Bytes:
    """(65536,) code words, indexed by the int16 sample seen as uint16; law 0 is µ-law, 1 is A-law."""
    values = DECODE[law].astype(np.int32)
    order = np.argsort(values, kind="stable")
    ordered = values[order]
    limits = (ordered[1:] + ordered[:-1] + 1) // 2
    samples = np.arange(65_536, dtype=np.uint16).view(np.int16).astype(np.int32)
    return order[np.searchsorted(limits, samples, side="right")].astype(np.uint8)


def decode(codes: Bytes, law: int) -> NDArray[np.int16]:
    """Any shape of bytes to int16 of the same shape."""
    pcm: NDArray[np.int16] = DECODE[law][codes]
    return pcm


def encode(pcm: NDArray[np.int16], law: int) -> Bytes:
    """Any shape of int16 to bytes of the same shape."""
    return encode_table(law)[pcm.view(np.uint16)]


def to_int16(pcm: NDArray[np.float32]) -> NDArray[np.int16]:
    """Rounded and limited, ±1.0 being full scale."""
    scaled: NDArray[np.int16] = np.clip(np.rint(pcm * 32_768.0), -32_768, 32_767).astype(np.int16)
    return scaled
