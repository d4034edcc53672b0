"""Audio files: any WAV or FLAC in as 24 kHz mono, a stereo WAV out that grows with the call."""

from __future__ import annotations

import math
import os
import wave
from pathlib import Path

import numpy as np

from engine.api import SAMPLE_RATE, Pcm

LONGEST_S = 3_600
"""A longer input is refused: it is read as a whole."""


class AudioFileError(Exception):
    """The file cannot be read as audio; the message says which and why."""


def read_audio(path: Path) -> Pcm:
    """The file as (n,) float32 at 24 kHz, channels averaged; any format and rate that FFmpeg reads.

    Raises AudioFileError.
    """
    import av  # 60 ms: only who reads a file pays

    try:
        with av.open(str(path), format=_format_of(path)) as container:
            if not container.streams.audio:
                raise AudioFileError(f"{path} holds no audio")
            resampler = av.AudioResampler(format="fltp")
            parts: list[Pcm] = []
            rate = samples = 0
            for decoded in container.decode(audio=0):
                for frame in resampler.resample(decoded):
                    parts.append(frame.to_ndarray().mean(axis=0, dtype=np.float32))
                    rate, samples = frame.sample_rate, samples + frame.samples
                if rate and samples > LONGEST_S * rate:
                    raise AudioFileError(f"{path} is longer than {LONGEST_S // 60} minutes")
    except (OSError, av.error.FFmpegError) as error:
        raise AudioFileError(f"{path}: {error.strerror or error}") from error
    if not parts:
        raise AudioFileError(f"{path} holds no audio")
    return resampled(np.concatenate(parts), rate, SAMPLE_RATE)


def _format_of(path: Path) -> str | None:
    """`wav` or `flac` by the file's first bytes, else None. FFmpeg's own guess weighs the samples too, and
    FFmpeg 9 takes some tones in a WAV for another format."""
    with path.open("rb") as file:
        head = file.read(12)
    if head[:4] in (b"RIFF", b"RF64") and head[8:] == b"WAVE":
        return "wav"
    return "flac" if head[:4] == b"fLaC" else None


def resampled(pcm: Pcm, rate: int, to: int) -> Pcm:
    """The whole signal at another rate, exact up to the lower Nyquist frequency; (n,) → (round(n·to/rate),).

    The spectrum is cut or padded, so there is no filter to choose and nothing streams.
    """
    if rate == to or not len(pcm):
        return pcm.astype(np.float32)
    common = math.gcd(rate, to)
    block, out_block = rate // common, to // common
    # Whole blocks on both sides, a power of two of them for the transform; silence behind keeps the
    # end of the signal from leaking into its start.
    blocks = 1 << math.ceil(math.log2((len(pcm) + rate // 50) / block + 1))
    spectrum = np.fft.rfft(pcm, blocks * block)
    wanted = np.zeros(blocks * out_block // 2 + 1, np.complex128)
    kept = min(len(spectrum), len(wanted))
    wanted[:kept] = spectrum[:kept]
    signal = np.fft.irfft(wanted, blocks * out_block) * (to / rate)
    return signal[: round(len(pcm) * to / rate)].astype(np.float32)


class StereoWav:
    """A 16-bit stereo WAV written while the call goes on; it takes its name when it is complete."""

    def __init__(self, path: Path, rate: int = SAMPLE_RATE) -> None:
        """Raises OSError where the folder cannot be written."""
        self.path = path
        self.rate = rate
        self.samples = 0
        self._part = path.with_name(path.name + ".part")
        # Given a name, `wave` would complain by itself of what cannot be opened.
        self._disk = self._part.open("wb")
        self._file = wave.open(self._disk, "wb")  # noqa: SIM115
        self._file.setnchannels(2)
        self._file.setsampwidth(2)
        self._file.setframerate(rate)

    def write(self, left: Pcm, right: Pcm) -> None:
        """Append (n,) and (n,) float32; samples beyond ±1 are clipped."""
        both = np.stack([left, right], axis=1)
        self._file.writeframesraw(np.rint(np.clip(both, -1.0, 1.0) * 32_767).astype("<i2").tobytes())
        self.samples += len(both)

    def close(self) -> None:
        """Complete the header and give the file its name."""
        self._file.close()
        self._disk.close()
        os.replace(self._part, self.path)

    def discard(self) -> None:
        """Leave no file behind."""
        self._file.close()
        self._disk.close()
        self._part.unlink(missing_ok=True)
