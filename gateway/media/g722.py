"""G.722 at 64 kbit/s: 16 kHz audio, one octet for two samples, by FFmpeg's codec through PyAV (ITU-T G.722).

The RTP clock runs at 8 kHz although the audio is 16 kHz: an error of RFC 1890 that stayed (RFC 3551 §4.5.2).
"""

from __future__ import annotations

import av
import numpy as np

from engine.api import Pcm

RATE = 16_000


class G722Decoder:
    """One stream's; has no concealment of its own: the row repeats pitch periods."""

    def __init__(self) -> None:
        self._codec = av.CodecContext.create("g722", "r")
        self._codec.sample_rate, self._codec.layout = RATE, "mono"

    def samples(self, payload: bytes) -> int:
        return 2 * len(payload)

    def decode(self, payload: bytes) -> Pcm:
        """(2 * octets,) float32 at 16 kHz."""
        frames = [frame.to_ndarray().reshape(-1) for frame in self._codec.decode(av.Packet(payload))]
        pcm: Pcm = np.concatenate(frames).astype(np.float32) * np.float32(1 / 32_768)
        return pcm

    def recover(self, payload: bytes, samples: int) -> Pcm | None:
        return None

    def conceal(self, samples: int) -> Pcm | None:
        return None


class G722Encoder:
    """One stream's."""

    def __init__(self) -> None:
        self._codec = av.CodecContext.create("g722", "w")
        self._codec.sample_rate, self._codec.layout, self._codec.format = RATE, "mono", "s16"

    def encode(self, pcm: Pcm) -> bytes:
        """(n,) float32 at 16 kHz to n / 2 octets; n even."""
        samples = np.clip(np.rint(pcm * 32_768.0), -32_768, 32_767).astype(np.int16)
        frame = av.AudioFrame.from_ndarray(samples[None], format="s16", layout="mono")
        frame.sample_rate = RATE
        return b"".join(bytes(packet) for packet in self._codec.encode(frame))
