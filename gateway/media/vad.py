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

from gateway.media import gate
from gateway.media.gate import BLOCK, CONTEXT, FRAME
from gateway.media.silero import NotUnderstood, SileroNet

log = logging.getLogger(__name__)

F32 = NDArray[np.float32]
Rows = NDArray[np.intp]

RATE = 8_000
GROUPS = 8
"""Rows begin their first frame at one of 8 offsets, so that a tick judges about as many as any other."""


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
        self._heard = heard = gate.heard(count)
        self._limits = _limits(settings)
        self._state = np.zeros((2, count, 128), np.float32)
        self._ready = np.zeros(count, np.intp)
        self._power = np.zeros(count, np.float32)
        self._asked = np.zeros(count, np.bool_)
        self.probability = np.zeros(count, np.float32)
        """Of each row's last frame; 0 where the gate was shut."""
        self.noise = heard.noise
        """Power of the noise behind the caller."""
        self.voice = heard.voice
        """Power of the caller's own voice; 0 until heard."""
        self.loud = heard.loud
        """The last block stood far over noise and echo, whatever it was."""
        self.speech = heard.speech
        """Samples at 8 kHz of speech in the present talkspurt; 0 outside."""
        self.silence = heard.silence
        """Samples since the talkspurt's last frame of speech."""

    def open(self, row: int) -> None:
        """A new call on this row."""
        for array in self._heard:
            array[row] = 0
        self._heard.filled[row] = row % GROUPS * (FRAME // GROUPS)
        self._heard.least[row] = 1
        self._state[:, row] = 0
        self.probability[row] = 0
        self.noise[row] = 1e-6

    def forget(self, row: int, voice: float) -> None:
        """What was said was not the caller's, whose voice is as it was before (0: unheard).

        The model has to forget it too, or it would take his next cough for more of it.
        """
        self.speech[row] = self.silence[row] = 0
        self._state[:, row] = 0
        self.voice[row] = voice

    def warm(self) -> None:
        """Run the model once, on silence, and compile; for no row."""
        self._silero(np.zeros((1, CONTEXT + FRAME), np.float32), np.zeros((2, 1, 128), np.float32))
        self.hear(np.zeros(0, np.intp), np.zeros((0, BLOCK), np.float32), np.zeros(0, np.float32))

    def hear(self, rows: Rows, pcm: F32, echo: F32, hiss: F32 | None = None) -> Rows:
        """Take a block (n, 160) of each row; echo (n,): power per sample that may be the agent's.

        hiss (n,): of the line's noise before it was turned down with the echo: it comes back with a pause.
        Returns the rows that completed a frame, whose values are new.
        """
        if hiss is not None:
            self._heard.hiss[rows] = hiss
        blocks = np.ascontiguousarray(pcm, np.float32), np.ascontiguousarray(echo, np.float32)
        found = self._ready, self._power, self._asked
        count = gate.pass_on(rows, *blocks, self._heard, self._limits, *found)
        ready, power, asked = self._ready[:count].copy(), self._power[:count], self._asked[:count]
        if count:
            self._judge(ready[asked])
            self.probability[ready[~asked]] = 0
            self._count(ready, power, asked)
        return ready

    def _running(self, rows: Rows) -> NDArray[np.bool_]:
        """Rows (n,) within a talkspurt, where less will do."""
        return np.asarray((self.speech[rows] > 0) & (self.silence[rows] <= self._limits.stay))

    def _judge(self, rows: Rows) -> None:
        if not len(rows):
            return
        frames = self._heard.waiting[rows, : CONTEXT + FRAME]
        probability, state = self._silero(frames, np.ascontiguousarray(self._state[:, rows]))
        self.probability[rows] = probability
        self._state[:, rows] = state

    def _count(self, rows: Rows, power: F32, loud: NDArray[np.bool_]) -> None:
        set_, running = self.settings, self._running(rows)
        least = np.where(running, np.float32(set_.stay), np.float32(set_.start))
        clear = power > np.maximum(self.noise[rows] * self._limits.over_noise, self._heard.hiss[rows])
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


def _limits(set_: SpeechSettings) -> gate.Limits:
    # the quantile's stochastic approximation: other people's talk in the room counts as noise too
    up, down = (share * set_.noise_step_db for share in (set_.noise_quantile, set_.noise_quantile - 1))
    return gate.Limits(
        10 ** (up / 10),
        10 ** (down / 10),
        _ratio(set_.over_noise_db),
        _ratio(set_.stay_over_noise_db),
        _ratio(set_.over_echo_db),
        _ratio(set_.loud_over_noise_db),
        _ratio(set_.loud_over_echo_db),
        _ratio(-set_.below_caller_db),
        _ratio(set_.least_dbfs),
        int(set_.stay_ms * RATE / 1_000),
    )
