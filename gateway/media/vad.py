"""SpeechDetector: who of the callers is speaking, by Silero over all rows at once behind an energy gate.

It takes 8 kHz blocks of 20 ms that have gone through the echo canceller. A row's frame is judged only when
it stands over the row's noise, over what echo may remain in it and not far below the caller's own voice;
all else is silence at no cost. It knows no policy: how long speech must last to matter is the Duplex's.

Model: Silero VAD v5, `silero_vad.onnx` as shipped inside pipecat-ai; 256 samples a frame at 8 kHz after 32
samples of context, state (2, n, 128).
"""

from __future__ import annotations

import importlib.util
import logging
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from gateway.media.compiled import kernel
from gateway.media.silero import NotUnderstood, SileroNet

log = logging.getLogger(__name__)

F32 = NDArray[np.float32]
Rows = NDArray[np.intp]

RATE = 8_000
BLOCK = 160
FRAME = 256
"""Samples judged at once: 32 ms."""
CONTEXT = 32
FIRST = 10
"""Frames of a call whose quietest is its noise: 0.3 s."""
GROUPS = 8
"""Rows begin their first frame at one of 8 offsets, so that a tick judges about as many as any other."""


def _append(waiting: Any, filled: Any, rows: Any, pcm: Any) -> None:
    """A block (n, 160) behind what waits; a judged frame makes room, but for the next one's context."""
    for q in range(len(rows)):
        i = rows[q]
        if filled[i] >= FRAME:
            for k in range(CONTEXT + BLOCK):
                waiting[i, k] = waiting[i, FRAME + k]
            filled[i] -= FRAME
        at = CONTEXT + filled[i]
        for k in range(BLOCK):
            waiting[i, at + k] = pcm[q, k]
        filled[i] += BLOCK


def _append_numpy(waiting: F32, filled: Rows, rows: Rows, pcm: F32) -> None:
    full = rows[filled[rows] >= FRAME]
    waiting[full, : CONTEXT + BLOCK] = waiting[full, FRAME:]
    filled[full] -= FRAME
    columns = CONTEXT + filled[rows][:, None] + np.arange(BLOCK)
    waiting[rows[:, None], columns] = pcm
    filled[rows] += BLOCK


append = kernel(_append, _append_numpy)


@dataclass(frozen=True, slots=True)
class SpeechSettings:
    """When a frame counts as the caller's speech."""

    start: float = 0.5
    """Probability from which silence turns to speech."""
    stay: float = 0.35
    """Probability down to which speech goes on."""
    sure: float = 0.9
    """Probability for a frame no louder than the noise's own louder parts."""
    over_noise_db: float = 6.0
    stay_over_noise_db: float = -2.0
    """In a room of talkers the ends of words lie in their talk: there the model tells, not the level."""
    stay_ms: float = 130.0
    """Silence within a talkspurt after which more of it must be as clear as its beginning."""
    noise_quantile: float = 0.3
    """What share of frames lies under the level called noise; callers pause for more than that."""
    noise_step_db: float = 0.6
    """How far that level moves a frame, at most."""
    over_echo_db: float = 10.0
    """Above what the canceller says may remain of the agent's voice."""
    loud_over_noise_db: float = 15.0
    loud_over_echo_db: float = 15.0
    """From where a block of 20 ms is loud: it may be speech, long before the model can say so."""
    below_caller_db: float = 22.0
    """How far below the caller's usual voice a frame may be."""
    least_dbfs: float = -58.0
    hangover_ms: float = 320.0
    """Speech has stopped after so long without a frame of it."""


class ModelMissing(Exception):
    """Silero's model file, or an onnxruntime that it needs, is not installed; the message says what to do."""


class Silero:
    """The model, one thread, any number of rows a call: by SileroNet, or by onnxruntime where that does not
    understand the file."""

    def __init__(self, path: Path | None = None) -> None:
        path = path or model_path()
        self._session: Any = None
        try:
            self._net: SileroNet | None = SileroNet.load(path)
        except NotUnderstood as error:
            log.warning("%s: %s; onnxruntime runs it, in several times the processor time", path.name, error)
            self._net, self._session = None, _session(path)
        self._rate = np.array(RATE, np.int64)

    def __call__(self, frames: F32, state: F32) -> tuple[F32, F32]:
        """Probabilities (n,) and new state (2, n, 128) from frames (n, 288) and state."""
        if self._net is not None:
            return self._net(frames, state)
        feeds: dict[str, Any] = {"input": frames, "state": state, "sr": self._rate}
        probability, after = self._session.run(None, feeds)
        return probability[:, 0], after


def _session(path: Path) -> Any:
    try:
        import onnxruntime
    except ImportError as error:
        raise ModelMissing("speech detection needs onnxruntime: pip install onnxruntime") from error
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    options.inter_op_num_threads = 1
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    options.log_severity_level = 3
    return onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])


def model_path() -> Path:
    """Where pipecat-ai keeps silero_vad.onnx; nothing of pipecat is imported."""
    spec = importlib.util.find_spec("pipecat")
    for place in (spec.submodule_search_locations or []) if spec else []:
        path = Path(place) / "audio" / "vad" / "data" / "silero_vad.onnx"
        if path.is_file():
            return path
    raise ModelMissing(
        "speech detection needs silero_vad.onnx from pipecat-ai: pip install 'pipecat-ai>=1.14'"
    )


class SpeechDetector:
    """Probabilities, levels and talkspurts of `count` rows."""

    def __init__(
        self, count: int, settings: SpeechSettings = SpeechSettings(), silero: Silero | None = None
    ) -> None:
        self.settings = settings
        self._silero = silero or Silero()
        self._waiting = np.zeros((count, CONTEXT + FRAME + BLOCK), np.float32)
        self._filled = np.zeros(count, np.intp)  # samples waiting after the context
        self._echo = np.zeros(count, np.float32)  # most that may remain in the frame being filled
        self._hiss = np.zeros(count, np.float32)  # noise of the line before a canceller turned it down
        self._state = np.zeros((2, count, 128), np.float32)
        self._judged = np.zeros(count, np.int64)  # frames since the call began, up to FIRST
        self._least = np.zeros(count, np.float32)  # power of the quietest of them
        self.probability = np.zeros(count, np.float32)
        """Of each row's last frame; 0 where the gate was shut."""
        self.noise = np.full(count, 1e-6, np.float32)
        """Power of the noise behind the caller."""
        self.voice = np.zeros(count, np.float32)
        """Power of the caller's own voice; 0 until heard."""
        self.loud = np.zeros(count, np.bool_)
        """The last block stood far over noise and echo, whatever it was."""
        self.speech = np.zeros(count, np.int64)
        """Samples at 8 kHz of speech in the present talkspurt; 0 outside."""
        self.silence = np.zeros(count, np.int64)
        """Samples since the talkspurt's last frame of speech."""

    def open(self, row: int) -> None:
        """A new call on this row."""
        self._waiting[row] = 0
        self._filled[row] = row % GROUPS * (FRAME // GROUPS)
        self._state[:, row] = 0
        self._judged[row] = 0
        self._least[row] = 1
        self.probability[row] = self.voice[row] = self._echo[row] = self._hiss[row] = 0
        self.noise[row] = 1e-6
        self.speech[row] = self.silence[row] = 0
        self.loud[row] = False

    def warm(self) -> None:
        """Run the model once, on silence, and compile; for no row."""
        self._silero(np.zeros((1, CONTEXT + FRAME), np.float32), np.zeros((2, 1, 128), np.float32))
        append(self._waiting, self._filled, np.zeros(0, np.intp), np.zeros((0, BLOCK), np.float32))

    def hear(self, rows: Rows, pcm: F32, echo: F32, hiss: F32 | None = None) -> Rows:
        """Take a block (n, 160) of each row; echo (n,): power per sample that may be the agent's.

        hiss (n,): of the line's noise before it was turned down with the echo: it comes back with a pause.
        Returns the rows that completed a frame, whose values are new.
        """
        append(self._waiting, self._filled, rows, pcm)
        if hiss is not None:
            self._hiss[rows] = hiss
        self.loud[rows] = self._is_loud(rows, pcm, echo)
        self._echo[rows] = np.maximum(self._echo[rows], echo)
        ready = rows[self._filled[rows] >= FRAME]
        if not len(ready):
            return ready
        frames = self._waiting[ready, : CONTEXT + FRAME]
        power = np.einsum("ij,ij->i", frames[:, CONTEXT:], frames[:, CONTEXT:]) / FRAME
        loud = self._gate(ready, power)
        self._judge(ready[loud], frames[loud])
        self.probability[ready[~loud]] = 0
        self._count(ready, power, loud)
        self._echo[ready] = 0
        return ready

    def _gate(self, rows: Rows, power: F32) -> NDArray[np.bool_]:
        """Frames worth asking about."""
        set_, noise = self.settings, self.noise[rows]
        # the quantile's stochastic approximation: other people's talk in the room counts as noise too
        step = np.where(power > noise, set_.noise_quantile, set_.noise_quantile - 1) * set_.noise_step_db
        self.noise[rows] = np.maximum(noise * 10 ** (step / 10), 1e-10)
        self._measure_first(rows, power)
        running = self._running(rows)
        over = np.where(running, _ratio(set_.stay_over_noise_db), _ratio(set_.over_noise_db))
        bar = np.maximum(noise * over, self._hiss[rows] * _ratio(set_.stay_over_noise_db))
        bar = np.maximum(bar, _ratio(set_.least_dbfs))
        bar = np.maximum(bar, self._echo[rows] * _ratio(set_.over_echo_db))
        bar = np.maximum(bar, self.voice[rows] * _ratio(-set_.below_caller_db))
        return np.asarray(power > bar)

    def _running(self, rows: Rows) -> NDArray[np.bool_]:
        """Rows (n,) within a talkspurt, where less will do."""
        lately = self.silence[rows] * 1000 <= self.settings.stay_ms * RATE
        return np.asarray((self.speech[rows] > 0) & lately)

    def _measure_first(self, rows: Rows, power: F32) -> None:
        """A call begins in the noise of the quietest of its first frames."""
        which = self._judged[rows] < FIRST
        if which.any():
            new = rows[which]
            self._judged[new] += 1
            self._least[new] = np.minimum(self._least[new], power[which])
            known = new[self._judged[new] == FIRST]
            self.noise[known] = np.maximum(self.noise[known], self._least[known])

    def _is_loud(self, rows: Rows, pcm: F32, echo: F32) -> NDArray[np.bool_]:
        set_, power = self.settings, np.einsum("ij,ij->i", pcm, pcm) / pcm.shape[1]
        noise = np.maximum(self.noise[rows], self._hiss[rows])
        bar = np.maximum(noise * _ratio(set_.loud_over_noise_db), echo * _ratio(set_.loud_over_echo_db))
        bar = np.maximum(bar, self.voice[rows] * _ratio(-set_.below_caller_db))
        return np.asarray(power > np.maximum(bar, _ratio(set_.least_dbfs)))

    def _judge(self, rows: Rows, frames: F32) -> None:
        if not len(rows):
            return
        probability, state = self._silero(frames, np.ascontiguousarray(self._state[:, rows]))
        self.probability[rows] = probability
        self._state[:, rows] = state

    def _count(self, rows: Rows, power: F32, loud: NDArray[np.bool_]) -> None:
        set_, running = self.settings, self._running(rows)
        least = np.where(running, np.float32(set_.stay), np.float32(set_.start))
        clear = power > np.maximum(self.noise[rows] * _ratio(set_.over_noise_db), self._hiss[rows])
        spoken = loud & (self.probability[rows] >= np.where(clear, least, np.float32(set_.sure)))
        self.silence[rows] = np.where(spoken, 0, self.silence[rows] + FRAME)
        over = ~spoken & (self.silence[rows] * 1000 >= set_.hangover_ms * RATE)
        self.speech[rows] = np.where(over, 0, self.speech[rows] + FRAME * spoken)
        sure = spoken & (self.probability[rows] > 0.8)
        voice = self.voice[rows]
        pace = np.where(voice > 0, 0.05, 1.0) * sure
        self.voice[rows] = voice + pace * (power - voice)


def _ratio(decibels: float) -> np.float32:
    return np.float32(10 ** (decibels / 10))
