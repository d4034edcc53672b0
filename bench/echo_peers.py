"""AEC3 and Speex for bench/echo.py: other people's cancellers over the same scenes."""

from __future__ import annotations

import ctypes
import ctypes.util
import importlib.util

import numpy as np
from numpy.typing import NDArray

from bench.echo_scenes import Scene

Pcm = NDArray[np.float32]

SET_RATE, SET_ECHO_STATE = 24, 24
SPEEX_ECHO_SET_SAMPLING_RATE = 24
SPEEX_PREPROCESS_SET_DENOISE = 0
SPEEX_PREPROCESS_SET_ECHO_SUPPRESS = 20
SPEEX_PREPROCESS_SET_ECHO_SUPPRESS_ACTIVE = 22
SPEEX_PREPROCESS_SET_ECHO_STATE = 24
SPEEX_PREPROCESS_SET_NOISE_SUPPRESS = 8
MARGIN_MS = 80.0
"""The reference is given this much before the echo, as a measured round trip allows."""


def has_aec3() -> bool:
    return importlib.util.find_spec("pywebrtc_audio") is not None


def has_speex() -> bool:
    return ctypes.util.find_library("speexdsp") is not None


def _delayed(scene: Scene) -> Pcm:
    shift = int(max(0.0, scene.round_trip_ms - MARGIN_MS) * scene.rate / 1000)
    return np.concatenate([np.zeros(shift, np.float32), scene.sent])[: len(scene.sent)]


def aec3(scene: Scene) -> Pcm:
    """WebRTC's canceller alone, its reference aligned to the round trip less 80 ms; 16 kHz inside."""
    import pywebrtc_audio
    from scipy.signal import resample_poly

    up, down = 2, scene.rate // 8_000
    far, near = _delayed(scene), scene.heard
    if scene.rate != 16_000:
        far, near = (resample_poly(pcm, up, down).astype(np.float32) for pcm in (far, near))
    canceller = pywebrtc_audio.EchoCanceller(16_000, 1, 0)
    whole = len(near) // 160 * 160
    out = np.zeros(len(near), np.float32)
    for at in range(0, whole, 160):
        out[at : at + 160] = canceller.process(near[at : at + 160], far[at : at + 160])
    if scene.rate == 16_000:
        return out
    back = resample_poly(out, down, up).astype(np.float32)
    return np.resize(np.append(back, np.zeros(up)), len(scene.heard)).astype(np.float32)


def speex(scene: Scene) -> Pcm:
    """libspeexdsp: MDF with a tail of 256 ms and its preprocessor at soft echo suppression."""
    library = ctypes.CDLL(ctypes.util.find_library("speexdsp"))
    library.speex_echo_state_init.restype = ctypes.c_void_p
    library.speex_preprocess_state_init.restype = ctypes.c_void_p
    frame = scene.rate // 100
    echo = ctypes.c_void_p(library.speex_echo_state_init(frame, scene.rate * 256 // 1000))
    shaper = ctypes.c_void_p(library.speex_preprocess_state_init(frame, scene.rate))
    rate = ctypes.c_int(scene.rate)
    library.speex_echo_ctl(echo, SPEEX_ECHO_SET_SAMPLING_RATE, ctypes.byref(rate))
    for request, value in (
        (SPEEX_PREPROCESS_SET_DENOISE, 1),  # 0 would bypass the echo suppression silently
        (SPEEX_PREPROCESS_SET_NOISE_SUPPRESS, 0),
        (SPEEX_PREPROCESS_SET_ECHO_SUPPRESS, -25),
        (SPEEX_PREPROCESS_SET_ECHO_SUPPRESS_ACTIVE, -5),
    ):
        library.speex_preprocess_ctl(shaper, request, ctypes.byref(ctypes.c_int(value)))
    library.speex_preprocess_ctl(shaper, SPEEX_PREPROCESS_SET_ECHO_STATE, echo)
    far, near = (
        np.round(np.clip(pcm, -1, 1) * 32767).astype(np.int16) for pcm in (_delayed(scene), scene.heard)
    )
    out = np.zeros(len(near), np.int16)
    for at in range(0, len(near) // frame * frame, frame):
        block = np.zeros(frame, np.int16)
        pair = [np.ascontiguousarray(pcm[at : at + frame]) for pcm in (near, far)]
        library.speex_echo_cancellation(echo, pair[0].ctypes, pair[1].ctypes, block.ctypes)
        library.speex_preprocess_run(shaper, block.ctypes)
        out[at : at + frame] = block
    library.speex_echo_state_destroy(echo)
    library.speex_preprocess_state_destroy(shaper)
    return out.astype(np.float32) / 32768
