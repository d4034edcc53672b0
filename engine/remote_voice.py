"""RemoteVoice: what a remote agent said, from packets as they come to one frame a tick.

Packets and text are put in by the loop, frames are taken by the tick thread. No socket, no clock.
"""

from __future__ import annotations

from collections import deque

import numpy as np

from engine.api import FRAME, Pcm
from engine.opus import OpusDecoder, OpusError

_MAX_WAITING = 3 * FRAME
"""Decoded samples beyond which the oldest are dropped: 240 ms."""
_KEPT = FRAME + FRAME // 2
_MAX_PACKETS = 100
_MAX_PIECES = 256
_MAX_CONCEALED = 3
"""Frames the decoder may invent in a row; then silence."""
_GRID = 60
"""Samples of 2.5 ms, the unit of concealment."""
_WATCH = 125
"""Ticks (10 s) over which a standing surplus is looked for."""
_QUIET = 0.01


class RemoteVoice:
    """A bounded buffer between a remote's bursts and our ticks.

    Shortage is concealed and lets the delay grow by what was invented; a surplus that stands for 10 s
    is given back in a quiet moment, and a burst over 240 ms loses its oldest.
    """

    def __init__(self) -> None:
        self.dropped_samples = 0
        self.concealed_frames = 0
        self.bad_packets = 0
        self._packets: deque[bytes] = deque(maxlen=_MAX_PACKETS)
        self._pieces: deque[str] = deque(maxlen=_MAX_PIECES)
        self._decoder = OpusDecoder()
        self._waiting: Pcm = np.zeros(0, np.float32)
        self._begun = False
        self._concealed_in_a_row = 0
        self._lowest, self._ticks, self._surplus = _MAX_WAITING, 0, False

    def put(self, packet: bytes) -> None:
        """An Opus packet, from the loop; over 100 the oldest go."""
        self._packets.append(packet)

    def put_text(self, piece: str) -> None:
        self._pieces.append(piece)

    def take_text(self) -> str:
        """What was said since the last call."""
        pieces = []
        while self._pieces:
            pieces.append(self._pieces.popleft())
        return "".join(pieces)

    @property
    def packets(self) -> int:
        """Packets that wait for the next tick."""
        return len(self._packets)

    @property
    def has_text(self) -> bool:
        return bool(self._pieces)

    def take(self) -> tuple[Pcm, bool] | None:
        """The frame for this tick and whether it is all the remote's; None before its first words."""
        self._decode()
        self._begun = self._begun or len(self._waiting) >= FRAME
        if not self._begun:
            return None
        self._drop_backlog()
        whole = len(self._waiting) >= FRAME
        if whole:
            self._concealed_in_a_row = 0
        else:
            self._conceal()
        frame, self._waiting = self._waiting[:FRAME], self._waiting[FRAME:]
        self._watch_level()
        return frame, whole

    def _decode(self) -> None:
        decoded = [self._waiting]
        while self._packets:
            try:
                decoded.append(self._decoder.decode(self._packets.popleft()))
            except OpusError:
                self.bad_packets += 1
        self._waiting = np.concatenate(decoded)

    def _drop_backlog(self) -> None:
        if len(self._waiting) > _MAX_WAITING:
            self._drop(len(self._waiting) - _KEPT)
        elif (
            self._surplus and len(self._waiting) >= 2 * FRAME and np.abs(self._waiting[:FRAME]).max() < _QUIET
        ):
            self._drop(FRAME)
            self._surplus = False

    def _drop(self, samples: int) -> None:
        self.dropped_samples += samples
        self._waiting = self._waiting[samples:]

    def _conceal(self) -> None:
        missing = FRAME - len(self._waiting)
        self.concealed_frames += 1
        self._concealed_in_a_row += 1
        if self._concealed_in_a_row > _MAX_CONCEALED:
            made = np.zeros(missing, np.float32)
        else:
            made = self._decoder.conceal(-(-missing // _GRID) * _GRID)[:missing]
        self._waiting = np.concatenate([self._waiting, made])

    def _watch_level(self) -> None:
        self._lowest = min(self._lowest, len(self._waiting))
        self._ticks += 1
        if self._ticks == _WATCH:
            self._surplus = self._lowest >= FRAME
            self._lowest, self._ticks = _MAX_WAITING, 0
