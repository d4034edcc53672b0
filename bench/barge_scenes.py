"""Who speaks when, for bench/barge_in.py: an agent who never pauses, callers, coughs, an office, far ends.

Everything is seeded. Levels are dBFS of mean power; callers are clear at -22. Speech: see echo_scenes.py.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from bench.echo_scenes import EchoPath, Pcm, impulse_response, read_flac
from engine.api import FRAME
from engine.echo import EchoStep, EchoStepper

RATE = 8_000
CALLER_DBFS = -22.0
AGENT_DBFS = -22.0
SNR_DB = 5.0
"""Of the office: so far below a clear caller."""
_THROAT_HZ = (520, 1500, 2600)
ONSET_DBFS = -40.0
"""A caller's utterance begins with the first 5 ms at that level."""


@dataclass(frozen=True, slots=True)
class Said:
    """One sound of the caller in a script, in samples."""

    start: int
    end: int


@dataclass(frozen=True, slots=True)
class Script:
    """What a caller says in a call, at 8 kHz, and where in it the sounds lie."""

    pcm: Pcm
    said: tuple[Said, ...] = ()


@dataclass(frozen=True, slots=True)
class Voices:
    """All at 8 kHz."""

    agent: Pcm
    callers: tuple[Pcm, ...]
    """Utterances of at least 1.2 s without a pause, at CALLER_DBFS."""


def load(folder: Path) -> Voices:
    """The 8 kHz recordings of a folder. Raises FileNotFoundError."""
    far = sorted(folder.glob("*_far_8k.flac"))
    near = sorted(folder.glob("*_near*_8k.flac"))
    if not far or not near:
        raise FileNotFoundError(f"{folder} holds no *_far_8k.flac or no *_near*_8k.flac")
    agent = without_pauses(read_flac(far[0])[0])
    spoken = [without_pauses(read_flac(path)[0]) for path in near]
    long = [pcm for pcm in spoken if len(pcm) >= 1.2 * RATE]
    return Voices(at_level(agent, AGENT_DBFS), tuple(at_level(pcm, CALLER_DBFS) for pcm in long))


def at_level(pcm: Pcm, dbfs: float) -> Pcm:
    """Scaled to a mean power."""
    return np.asarray(pcm * 10 ** (dbfs / 20) / np.sqrt(np.mean(pcm**2) + 1e-12), np.float32)


def without_pauses(pcm: Pcm, longest_ms: int = 60) -> Pcm:
    """Frames of 20 ms that lie 26 dB below the loud ones are dropped when more than so many stand in a row;
    begins at its onset."""
    size = RATE // 50
    frames = pcm[: len(pcm) // size * size].reshape(-1, size)
    power = np.mean(frames**2, axis=1)
    quiet = power < np.quantile(power, 0.9) * 10**-2.6
    kept, run = [], 0
    for frame, still in zip(frames, quiet, strict=True):
        run = run + 1 if still else 0
        if run * 20 <= longest_ms and (kept or not still):
            kept.append(frame)
    whole = np.concatenate(kept)
    return whole[onset(whole) :]


def onset(pcm: Pcm) -> int:
    """First sample of the first 5 ms that reach ONSET_DBFS, the recording taken at CALLER_DBFS."""
    size = RATE // 200
    level = at_level(pcm, CALLER_DBFS)
    power = np.mean(level[: len(level) // size * size].reshape(-1, size) ** 2, axis=1)
    return int(np.argmax(power >= 10 ** (ONSET_DBFS / 10))) * size


def upsampled(pcm: Pcm, times: int) -> Pcm:
    """At `times` the rate, by its spectrum."""
    spectrum = np.fft.rfft(pcm)
    return np.asarray(np.fft.irfft(spectrum, len(pcm) * times) * times, np.float32)


# -- scripts


def silence(seconds: float) -> Script:
    """A caller who only listens."""
    return Script(np.zeros(int(seconds * RATE), np.float32))


def sequence(sounds: list[Pcm], lead_s: float, gap_s: float) -> Script:
    """One sound after the other, each after a gap that is no whole number of blocks or frames."""
    parts, said, at = [np.zeros(int(lead_s * RATE), np.float32)], [], int(lead_s * RATE)
    for number, sound in enumerate(sounds):
        gap = int(gap_s * RATE) + number * 37 % 640
        parts += [sound, np.zeros(gap, np.float32)]
        said.append(Said(at, at + len(sound)))
        at += len(sound) + gap
    return Script(np.concatenate(parts), tuple(said))


def interruptions(voices: Voices, count: int, first: int, lead_s: float = 4.0) -> Script:
    """`count` clear utterances of 1.2-2.5 s; the agent has 3 s of his own between them."""
    longest = int(2.5 * RATE)
    turned = [voices.callers[(first + n) % len(voices.callers)][:longest] for n in range(count)]
    return sequence(turned, lead_s, 3.0)


def backchannels(voices: Voices, count: int, seed: int, level_db: float = 0.0) -> Script:
    """Short utterances: the first 200-480 ms of what callers say, faded out."""
    rng = np.random.default_rng(seed)
    sounds = []
    for n in range(count):
        length = int(rng.uniform(0.20, 0.48) * RATE)
        sound = voices.callers[(seed + n) % len(voices.callers)][:length].copy()
        sound[-240:] *= np.linspace(1, 0, 240, dtype=np.float32)
        sounds.append(sound * np.float32(10 ** (level_db / 20)))
    return sequence(sounds, 4.0, 2.2)


def coughs(count: int, seed: int) -> Script:
    """Bursts of 60-90 ms through a throat's resonances, a breathy tail behind, one to three in a row."""
    rng = np.random.default_rng(seed)
    return sequence([at_level(_cough(rng), CALLER_DBFS + 4) for _ in range(count)], 4.0, 2.6)


def _cough(rng: np.random.Generator) -> Pcm:
    bursts = []
    for _ in range(rng.integers(1, 4)):
        count = int(rng.uniform(0.16, 0.26) * RATE)
        t = np.arange(count) / RATE
        burst = np.exp(-t / 0.04) + 0.25 * np.exp(-(((t - 0.10) / 0.05) ** 2))
        burst *= np.minimum(1, t / 0.004)
        spectrum = np.fft.rfft(rng.standard_normal(count) * burst)
        frequency = np.fft.rfftfreq(count, 1 / RATE)
        throat = [
            1 / (1 + ((frequency - f) / 180) ** 2) for f in rng.uniform(0.85, 1.15, 3) * (520, 1500, 2600)
        ]
        bursts += [np.fft.irfft(spectrum * (throat[0] + 0.7 * throat[1] + 0.4 * throat[2]), count)]
        bursts += [np.zeros(int(0.05 * RATE))]
    return np.concatenate(bursts).astype(np.float32)


def office(voices: Voices, seconds: float, seed: int) -> Pcm:
    """A room of eight talkers in reverberation, a fan and keys: SNR_DB below a clear caller."""
    rng = np.random.default_rng(seed)
    count = int(seconds * RATE)
    talk = np.concatenate(voices.callers)
    room = impulse_response(EchoPath(room_s=0.4), RATE, rng)
    babble = sum(np.roll(talk, int(rng.integers(len(talk)))) for _ in range(8))
    babble = np.convolve(babble, room)[: len(talk)]
    spectrum = np.fft.rfft(rng.standard_normal(count))
    fan = np.fft.irfft(spectrum / np.sqrt(1 + (np.arange(len(spectrum)) / seconds / 200) ** 2), count)
    keys = np.zeros(count)
    for at in rng.integers(0, count - 200, int(seconds * 4)):
        keys[at : at + 160] += rng.standard_normal(160) * np.exp(-np.arange(160) / 25)
    noise = at_level(np.resize(babble, count), 0) + 0.7 * at_level(fan, 0) + 0.3 * at_level(keys, 0)
    return at_level(noise.astype(np.float32), CALLER_DBFS - SNR_DB)


# -- the far end and the agent


class FarEnd:
    """A phone whose loudspeaker is heard by its own microphone. One block of 20 ms in, one out."""

    def __init__(self, rate: int, path: EchoPath, voice: Pcm, seed: int, wait: int = 0) -> None:
        """voice: at `rate`, comes back at exactly the path's loss; wait: blocks of its jitter buffer."""
        self._rng = np.random.default_rng(seed)
        self._path, self._wait = path, wait
        self._block = rate // 50
        self._queue: deque[Pcm] = deque(maxlen=50)
        self._begun = False
        response = impulse_response(path, rate, self._rng)
        back = np.convolve(voice[: 10 * rate], response)
        level = np.sqrt(np.sum(voice[: 10 * rate] ** 2) / np.sum(back**2))
        self._response = response * level * 10 ** (-(path.erl_db or 0.0) / 20)
        length = int(path.delay_ms * rate / 1000) + len(response) - 1 + self._block
        self._past = np.zeros(length, np.float32)
        self._last = np.zeros(self._block, np.float32)

    def lost(self) -> bool:
        """Whether the next packet is lost, either way."""
        return bool(self._rng.random() < self._path.loss)

    def play(self, pcm: Pcm) -> None:
        """A packet came; a lost one is concealed by the one before."""
        self._last = 0.7 * self._last if self.lost() else pcm
        self._queue.append(self._last)

    def next(self) -> Pcm:
        """What the microphone takes of it in the next 20 ms."""
        if self._path.erl_db is None:
            self._queue.clear()
            return np.zeros(self._block, np.float32)
        self._begun = self._begun or len(self._queue) > self._wait
        if len(self._queue) > 2 * self._wait + 4:
            self._queue.popleft()
        new = self._queue.popleft() if self._begun and self._queue else np.zeros(self._block, np.float32)
        self._past = np.concatenate([self._past[self._block :], new])
        oldest = self._past[: len(self._response) - 1 + self._block]
        return np.convolve(oldest, self._response, "valid").astype(np.float32)


class TalkingStepper(EchoStepper):
    """An agent who reads a recording without end, each slot from another place, until told to be silent."""

    def __init__(self, slots: int, voice: NDArray[np.float32]) -> None:
        """voice: (samples,) at 24 kHz."""
        super().__init__(slots, 0.0, greeting=False)
        self._frames = voice[: len(voice) // FRAME * FRAME].reshape(-1, FRAME)
        self._place = np.arange(slots) * 41 % len(self._frames)
        self.interrupted = self.released = 0

    def interrupt(self, slot: int, unheard_frames: int) -> None:
        super().interrupt(slot, unheard_frames)
        self.interrupted += 1

    def release(self, slot: int) -> None:
        super().release(slot)
        self.released += 1

    def step(self, pcm: NDArray[np.float32], active: NDArray[np.bool_]) -> EchoStep:
        out = self._frames[self._place] * ~self._silent[:, None]
        self._place = (self._place + active) % len(self._frames)
        return EchoStep(out.astype(np.float32), np.full(len(active), -1, np.int64), active)
