"""Simulated phone calls with echo, for bench/echo.py: what was sent, what came back, who spoke when.

A scene is made of an agent's recording, a caller's utterances laid over it and an echo path: delay,
hybrid or room, loudspeaker, clock drift, jumps, loss, µ-law (or the codec of a wide-band leg) both ways.
Everything is seeded.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path

import av
import numpy as np
from numpy.typing import NDArray

from engine.opus import OpusDecoder, OpusEncoder
from gateway.media.g722 import G722Decoder, G722Encoder

Pcm = NDArray[np.float32]
Code = Callable[[Pcm], Pcm]
"""There and back again through a codec."""
MU = 255.0


@dataclass(frozen=True, slots=True)
class EchoPath:
    """How the agent's voice comes back."""

    delay_ms: float = 80.0
    erl_db: float | None = 16.0
    """Echo return loss; None: no echo at all."""
    room_s: float = 0.0
    """Reverberation time; 0: a hybrid of 4-32 ms dispersion."""
    clip: float = 0.0
    """Loudspeaker limit as a fraction of the agent's peak; 0: linear."""
    drift_ppm: float = 0.0
    jumps: tuple[tuple[float, float], ...] = ()
    """(second, change of the delay in ms)."""
    loss: float = 0.0
    """Share of 20 ms packets lost, each way."""


@dataclass(frozen=True, slots=True)
class Recipe:
    """One row of the bench."""

    name: str
    path: EchoPath = field(default_factory=EchoPath)
    caller_dbfs: float = -22.0
    noise_dbfs: float = -62.0
    double_talk: bool = False


@dataclass(frozen=True, slots=True)
class Scene:
    """One simulated call; all arrays are (samples,) at `rate`."""

    name: str
    rate: int
    sent: Pcm
    heard: Pcm
    near: Pcm
    """The caller alone, as the line would bring it without echo, noise or loss."""
    concealed: NDArray[np.bool_]
    spans: tuple[tuple[int, int], ...]
    """Where the caller's utterances lie, in samples."""
    round_trip_ms: float


def default_folder() -> Path:
    """shared/speech beside the checkout, or what the tests keep."""
    root = Path(__file__).resolve().parent.parent
    shared = root.parent / "shared" / "speech"
    return shared if shared.is_dir() else root / "tests" / "data" / "speech"


RECIPES = (
    Recipe("line 20 ms, ERL 12", EchoPath(20, 12)),
    Recipe("line 80 ms, ERL 14", EchoPath(80, 14)),
    Recipe("line 200 ms, ERL 16", EchoPath(200, 16)),
    Recipe("line 400 ms, ERL 18", EchoPath(400, 18)),
    Recipe("line 700 ms, ERL 20", EchoPath(700, 20)),
    Recipe("speakerphone", EchoPath(120, 8, room_s=0.2), noise_dbfs=-58),
    Recipe("room, clipping speaker", EchoPath(140, 6, room_s=0.35, clip=0.35), noise_dbfs=-58),
    Recipe("drift 20 ppm", EchoPath(80, 14, drift_ppm=20)),
    Recipe("drift 100 ppm", EchoPath(80, 14, drift_ppm=100)),
    Recipe("jumps of 60 ms", EchoPath(120, 14, jumps=((10.0, 60.0), (18.0, -60.0), (26.0, 60.0)))),
    Recipe("3 % loss", EchoPath(80, 14, loss=0.03)),
    Recipe("no echo", EchoPath(80, None)),
    Recipe("caller at -32 dBFS", EchoPath(80, 16), caller_dbfs=-32),
    Recipe("caller at -40 dBFS", EchoPath(80, 16), caller_dbfs=-40),
    Recipe("double talk", EchoPath(80, 14), double_talk=True),
)


def read_flac(path: Path) -> tuple[Pcm, int]:
    """A recording's first channel as float32, and its rate."""
    with av.open(str(path)) as container:
        frames = [frame.to_ndarray() for frame in container.decode(audio=0)]
        rate = container.streams.audio[0].rate
    pcm = np.concatenate(frames, axis=1)[0]
    return (pcm.astype(np.float32) / 32768.0 if pcm.dtype == np.int16 else pcm.astype(np.float32)), rate


def mu_law(pcm: Pcm) -> Pcm:
    """Through the 8-bit companding of G.711 (continuous law, 256 steps)."""
    companded = np.sign(pcm) * np.log1p(MU * np.minimum(np.abs(pcm), 1.0)) / np.log1p(MU)
    steps = np.round(companded * 127.5 - 0.5) + 0.5
    y = np.abs(steps) / 127.5
    return (np.sign(steps) * (np.expm1(y * np.log1p(MU)) / MU)).astype(np.float32)


def g722(pcm: Pcm) -> Pcm:
    """Through G.722 at 64 kbit/s, 16 kHz."""
    encoder, decoder = G722Encoder(), G722Decoder()
    return _by_blocks(pcm, 320, lambda block: decoder.decode(encoder.encode(block)))


def opus(pcm: Pcm) -> Pcm:
    """Through Opus as browsers speak it, 24 kHz; some milliseconds later."""
    encoder, decoder = OpusEncoder(), OpusDecoder()
    return _by_blocks(pcm, 480, lambda block: decoder.decode(encoder.encode(block)))


def l16(pcm: Pcm) -> Pcm:
    """As 16-bit samples."""
    return (np.round(np.clip(pcm, -1, 32_767 / 32_768) * 32_768) / 32_768).astype(np.float32)


def _by_blocks(pcm: Pcm, block: int, code: Code) -> Pcm:
    return np.concatenate([code(pcm[at : at + block]) for at in range(0, len(pcm), block)])


WIDE: dict[str, tuple[int, Code]] = {
    "G.722": (16_000, g722),
    "Opus": (24_000, opus),
    "L16 at 16 kHz": (16_000, l16),
    "L16 at 24 kHz": (24_000, l16),
}
"""Wide-band legs: the rate at which they are cancelled, and their codec."""


def impulse_response(path: EchoPath, rate: int, rng: np.random.Generator) -> Pcm:
    """A hybrid's or a room's response of unit energy."""
    if path.room_s:
        n = int(rate * path.room_s)
        decay = np.exp(-6.9 * np.arange(n) / n)
        response = rng.standard_normal(n) * decay * 0.5
        response[0] += 2.0
    else:
        n = int(rate * rng.uniform(0.004, 0.032))
        response = rng.standard_normal(n) * np.exp(-4.0 * np.arange(n) / n)
    return (response / np.sqrt(np.sum(response**2))).astype(np.float32)


def _at(pcm: Pcm, position: NDArray[np.float64]) -> Pcm:
    """pcm at fractional positions, 32-tap windowed sinc; zeros outside."""
    base = np.floor(position).astype(np.int64)
    fraction = position - base
    out = np.zeros(len(position))
    for tap in range(-15, 17):
        index = base + tap
        value = np.where((index >= 0) & (index < len(pcm)), pcm[np.clip(index, 0, len(pcm) - 1)], 0.0)
        x = fraction - tap
        out += value * np.sinc(x) * (0.5 + 0.5 * np.cos(np.pi * x / 16.5))
    return out.astype(np.float32)


def _lose(pcm: Pcm, share: float, block: int, rng: np.random.Generator) -> tuple[Pcm, NDArray[np.bool_]]:
    """Lose blocks and conceal each by the last one, fading."""
    out = pcm.copy()
    lost = rng.random(len(pcm) // block) < share
    for index in np.flatnonzero(lost):
        if index:
            at = index * block
            out[at : at + block] = 0.7 * out[at - block : at]
    mask = np.zeros(len(pcm), bool)
    mask[: len(lost) * block] = np.repeat(lost, block)
    return out, mask


def echo_of(sent: Pcm, path: EchoPath, rate: int, rng: np.random.Generator, code: Code | None = None) -> Pcm:
    """The agent's voice as it comes back, before the caller's own voice is added."""
    if path.erl_db is None:
        return np.zeros_like(sent)
    code = code or (mu_law if rate == 8000 else np.asarray)
    played = code(sent)
    played, _ = _lose(played, path.loss, rate // 50, rng)
    if path.clip:
        limit = path.clip * float(np.max(np.abs(played)))
        played = (np.clip(played, -limit, limit) * 0.8 + 0.2 * limit * np.tanh(played / limit)).astype(
            np.float32
        )
    delay = np.full(len(sent), path.delay_ms * rate / 1000)
    for second, change in path.jumps:
        delay[int(second * rate) :] += change * rate / 1000
    position = np.arange(len(sent)) * (1 + path.drift_ppm * 1e-6) - delay
    arrived = _at(played, position)
    response = impulse_response(path, rate, rng)
    size = 1 << int(np.ceil(np.log2(len(arrived) + len(response))))
    echo = np.fft.irfft(np.fft.rfft(arrived, size) * np.fft.rfft(response, size), size)[: len(sent)]
    return (echo * 10 ** (-path.erl_db / 20)).astype(np.float32)


def make(
    recipe: Recipe, far: Pcm, callers: list[Pcm], rate: int, seed: int, code: Code | None = None
) -> Scene:
    """Lay the callers' utterances over the agent's recording and send it through the path.

    code: of the leg; without, µ-law at 8 kHz and none at other rates.
    """
    rng = np.random.default_rng(seed)
    sent = mu_law(far) if rate == 8000 else far
    near = np.zeros_like(far)
    spans = []
    starts = np.linspace(0.27 if not recipe.double_talk else 0.12, 0.82, 4) * len(far)
    for start, utterance in zip(starts.astype(int), callers, strict=False):
        end = min(start + len(utterance), len(far))
        near[start:end] = utterance[: end - start] * 10 ** ((recipe.caller_dbfs + 22) / 20)
        spans.append((int(start), int(end)))
    if recipe.double_talk:
        spans = _fill(near, callers, len(far), rate)
    echo = echo_of(sent, recipe.path, rate, rng, code)
    noise = rng.standard_normal(len(far)).astype(np.float32) * 10 ** (recipe.noise_dbfs / 20)
    line = near + echo + noise
    line = mu_law(line) if rate == 8000 else np.clip(line, -1, 1)
    if code is not None:
        line, near = code(line), code(near)  # a codec's delay is the line's
    heard, concealed = _lose(line, recipe.path.loss, rate // 50, rng)
    return Scene(recipe.name, rate, sent, heard, near, concealed, tuple(spans), recipe.path.delay_ms)


def _fill(near: Pcm, callers: list[Pcm], total: int, rate: int) -> list[tuple[int, int]]:
    """One utterance after another from 8 s on, with pauses of 1.2 s."""
    near[:] = 0
    spans, at, turn = [], 8 * rate, 0
    while at + len(callers[turn % len(callers)]) < total:
        utterance = callers[turn % len(callers)]
        near[at : at + len(utterance)] = utterance
        spans.append((at, at + len(utterance)))
        at += len(utterance) + int(1.2 * rate)
        turn += 1
    return spans


def load(folder: Path, voice: str) -> tuple[Pcm, list[Pcm], int]:
    """The agent's recording and four or more utterances of callers, of one voice (ast_en, ast_it, …)."""
    far_path = next(iter(sorted(folder.glob(f"{voice}_far_*.flac"))), None)
    if far_path is None:
        raise FileNotFoundError(f"{folder} holds no {voice}_far_*.flac")
    far, rate = read_flac(far_path)
    callers = [read_flac(path)[0] for path in sorted(folder.glob(f"{voice}_*near*.flac"))]
    return far, (callers * 4)[: max(4, len(callers))], rate


def scenes_of(folder: Path, voice: str, recipes: tuple[Recipe, ...] = RECIPES) -> list[Scene]:
    """Every recipe with one voice. The seeds depend on the recipe's place only."""
    far, callers, rate = load(folder, voice)
    whole = len(far) // (rate // 50) * (rate // 50)
    out = []
    for index, recipe in enumerate(recipes):
        turned = callers[index % len(callers) :] + callers[: index % len(callers)]
        out.append(make(recipe, far[:whole], turned, rate, seed=1000 + index))
    return out


def wide_scenes_of(folder: Path, voice: str, leg: str, recipes: tuple[Recipe, ...] = RECIPES) -> list[Scene]:
    """The same over a wide-band leg (see WIDE); the voice's recordings must be wide-band themselves."""
    rate, code = WIDE[leg]
    far, callers, recorded = load(folder, voice)
    if recorded < 16_000:
        raise ValueError(f"{voice} was recorded at {recorded} Hz: no voice for a wide-band leg")
    far, callers = _at_rate(far, recorded, rate), [_at_rate(pcm, recorded, rate) for pcm in callers]
    whole = len(far) // (rate // 50) * (rate // 50)
    out = []
    for index, recipe in enumerate(recipes):
        turned = callers[index % len(callers) :] + callers[: index % len(callers)]
        out.append(make(recipe, far[:whole], turned, rate, seed=2000 + index, code=code))
    return out


def _at_rate(pcm: Pcm, rate: int, wanted: int) -> Pcm:
    if rate == wanted:
        return pcm
    from scipy.signal import resample_poly

    return np.asarray(resample_poly(pcm, wanted // 8_000, rate // 8_000), dtype=np.float32)


def quick(recipes: tuple[Recipe, ...] = RECIPES) -> tuple[Recipe, ...]:
    """A third of the scenes, one of each kind."""
    names = {
        "line 80 ms, ERL 14",
        "speakerphone",
        "drift 100 ppm",
        "3 % loss",
        "no echo",
        "caller at -40 dBFS",
    }
    return tuple(replace(recipe) for recipe in recipes if recipe.name in names)
