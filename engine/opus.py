"""Opus through ctypes: one binding of libopus for every room that needs it.

Encodes and decodes 24 kHz mono float32 directly (PyAV's own codec always gives 48 kHz and conceals
nothing). The library is the one inside PyAV's wheel, else the system's. It knows no transport.
RFC 6716 (codec), RFC 7587 §4 (packets); control numbers from libopus opus_defines.h.
"""

from __future__ import annotations

import ctypes
import ctypes.util
import importlib.util
from functools import cache
from pathlib import Path
from typing import Literal, cast

import numpy as np
from numpy.typing import NDArray

from engine.api import SAMPLE_RATE, EngineError, Pcm

MAX_PACKET = 1_275
"""Bytes of the largest Opus frame (RFC 6716 §3.4)."""
MAX_DURATION_S = 0.12
"""Longest audio one packet may hold (RFC 6716 §3.4)."""

Application = Literal["voip", "audio", "lowdelay"]

_APPLICATIONS: dict[Application, int] = {"voip": 2048, "audio": 2049, "lowdelay": 2051}
_SET_BITRATE, _SET_COMPLEXITY, _SET_FEC, _SET_LOSS, _SET_DTX = 4002, 4010, 4012, 4014, 4016
_GET_LOOKAHEAD, _RESET = 4027, 4028


class OpusMissing(EngineError):
    """No libopus could be opened; the message names what to install."""


class OpusError(EngineError, ValueError):
    """libopus refused a packet or an argument. `code` is its number (−4: corrupt packet)."""

    def __init__(self, message: str, code: int) -> None:
        super().__init__(message)
        self.code = code


def _candidates() -> list[str]:
    found: list[str] = []
    spec = importlib.util.find_spec("av")
    if spec is not None and spec.origin is not None:
        wheel = Path(spec.origin).parent
        folders = (wheel.parent / "av.libs", wheel / ".dylibs")
        found += [str(p) for folder in folders for p in sorted(folder.glob("libopus*"))]
    system = ctypes.util.find_library("opus")
    return [*found, *([system] if system else []), "libopus.so.0"]


@cache
def library() -> ctypes.PyDLL:
    """libopus, opened once. Raises OpusMissing.

    PyDLL keeps the GIL over a call: releasing it for 24 µs would let a busy thread keep it for 5 ms.
    """
    for name in _candidates():
        try:
            return _typed(ctypes.PyDLL(name))
        except (OSError, AttributeError):
            continue
    raise OpusMissing("libopus was not found: `pip install av` brings it, or `apt-get install libopus0`")


def _typed(lib: ctypes.PyDLL) -> ctypes.PyDLL:
    """Declare what we call; a library that lacks one of these raises AttributeError."""
    pointer, number, size = ctypes.c_void_p, ctypes.c_int, ctypes.c_int32
    signatures: dict[str, tuple[object, list[object]]] = {
        "opus_encoder_create": (pointer, [size, number, number, pointer]),
        "opus_encoder_destroy": (None, [pointer]),
        "opus_encoder_ctl": (number, [pointer, number]),
        "opus_encode_float": (size, [pointer, pointer, number, pointer, size]),
        "opus_decoder_create": (pointer, [size, number, pointer]),
        "opus_decoder_destroy": (None, [pointer]),
        "opus_decoder_ctl": (number, [pointer, number]),
        "opus_decode_float": (number, [pointer, ctypes.c_char_p, size, pointer, number, number]),
        "opus_packet_get_nb_samples": (number, [ctypes.c_char_p, size, size]),
        "opus_get_version_string": (ctypes.c_char_p, []),
        "opus_strerror": (ctypes.c_char_p, [number]),
    }
    for name, (result, arguments) in signatures.items():
        function = getattr(lib, name)
        function.restype, function.argtypes = result, arguments
    return lib


def version() -> str:
    """Such as `libopus 1.6.1`. Raises OpusMissing."""
    return cast(bytes, library().opus_get_version_string()).decode()


def packet_samples(packet: bytes, rate: int = SAMPLE_RATE) -> int:
    """Samples at `rate` that the packet holds, from its first bytes. Raises OpusError."""
    samples = _checked(library().opus_packet_get_nb_samples(packet, len(packet), rate), "packet")
    if samples > rate * MAX_DURATION_S:
        raise OpusError("packet: longer than 120 ms", -4)
    return samples


def _checked(code: int, what: str) -> int:
    if code < 0:
        reason = cast(bytes, library().opus_strerror(code)).decode()
        raise OpusError(f"{what}: {reason}", code)
    return code


def _created(pointer: int | None, error: ctypes.c_int, what: str) -> int:
    _checked(error.value, what)
    if not pointer:
        raise OpusError(f"{what}: no memory", -7)
    return pointer


class OpusEncoder:
    """Mono encoder for one stream; used by one thread at a time."""

    def __init__(
        self,
        rate: int = SAMPLE_RATE,
        application: Application = "voip",
        bitrate: int = 24_000,
        complexity: int = 5,
    ) -> None:
        """rate is 8, 12, 16, 24 or 48 kHz. Raises OpusMissing, OpusError.

        `voip` high-passes speech and turns its phase: a waveform correlation of 0.84 where `audio` and
        `lowdelay` (less look-ahead, no SILK, no FEC) give 0.99.
        """
        self._lib = library()
        error = ctypes.c_int()
        state = self._lib.opus_encoder_create(rate, 1, _APPLICATIONS[application], ctypes.byref(error))
        self._state = _created(state, error, "opus encoder")
        self._packet = ctypes.create_string_buffer(MAX_PACKET)
        self._set(_SET_BITRATE, bitrate)
        self._set(_SET_COMPLEXITY, complexity)

    def _set(self, request: int, value: int) -> None:
        _checked(self._lib.opus_encoder_ctl(self._state, request, ctypes.c_int(value)), f"opus ctl {request}")

    def set_bitrate(self, bits_per_second: int) -> None:
        self._set(_SET_BITRATE, bits_per_second)

    def set_loss(self, percent: int, fec: bool) -> None:
        """Tell the encoder the loss measured at the far end; fec adds a copy of the frame before."""
        self._set(_SET_LOSS, percent)
        self._set(_SET_FEC, int(fec))

    def set_dtx(self, on: bool) -> None:
        """In silence emit packets of 1–2 bytes, which need not be sent."""
        self._set(_SET_DTX, int(on))

    @property
    def lookahead(self) -> int:
        """Samples by which the decoded signal lags (OpusHead's pre-skip, in 48 kHz units there)."""
        value = ctypes.c_int32()
        _checked(self._lib.opus_encoder_ctl(self._state, _GET_LOOKAHEAD, ctypes.byref(value)), "lookahead")
        return value.value

    def encode(self, pcm: Pcm) -> bytes:
        """One packet from (n,) float32 where n is 2.5, 5, 10, 20, 40 or 60 ms. Raises OpusError."""
        samples = np.ascontiguousarray(pcm, dtype=np.float32)
        length = self._lib.opus_encode_float(
            self._state, samples.ctypes.data, len(samples), self._packet, MAX_PACKET
        )
        return ctypes.string_at(self._packet, _checked(length, f"encode {len(samples)} samples"))

    def reset(self) -> None:
        self._lib.opus_encoder_ctl(self._state, _RESET)

    def __del__(self) -> None:
        if hasattr(self, "_state"):
            self._lib.opus_encoder_destroy(self._state)


class OpusDecoder:
    """Mono decoder for one stream, with concealment; used by one thread at a time."""

    def __init__(self, rate: int = SAMPLE_RATE) -> None:
        """rate is 8, 12, 16, 24 or 48 kHz. Raises OpusMissing, OpusError."""
        self._lib = library()
        self.rate = rate
        error = ctypes.c_int()
        self._state = _created(
            self._lib.opus_decoder_create(rate, 1, ctypes.byref(error)), error, "opus decoder"
        )
        self._pcm: NDArray[np.float32] = np.zeros(int(rate * MAX_DURATION_S), np.float32)
        self._at = self._pcm.ctypes.data

    def decode(self, packet: bytes) -> Pcm:
        """All samples of a packet, (n,) float32 in [-1, 1], a fresh array. Raises OpusError."""
        if not packet:
            raise OpusError("decode: empty packet", -4)
        return self._run(packet, len(self._pcm), 0)

    def conceal(self, samples: int) -> Pcm:
        """What the decoder makes of a lost packet; samples is a multiple of 2.5 ms, up to 120 ms."""
        return self._run(None, min(samples, len(self._pcm)), 0)

    def recover(self, next_packet: bytes, samples: int) -> Pcm:
        """The lost packet out of its successor's FEC (concealment where it carries none).

        Call decode(next_packet) afterwards. samples: length of the lost packet. Raises OpusError.
        """
        return self._run(next_packet, min(samples, len(self._pcm)), 1)

    def _run(self, packet: bytes | None, samples: int, fec: int) -> Pcm:
        size = len(packet) if packet is not None else 0
        count = self._lib.opus_decode_float(self._state, packet, size, self._at, samples, fec)
        return np.clip(self._pcm[: _checked(count, "decode")], -1.0, 1.0)

    def reset(self) -> None:
        self._lib.opus_decoder_ctl(self._state, _RESET)

    def __del__(self) -> None:
        if hasattr(self, "_state"):
            self._lib.opus_decoder_destroy(self._state)
