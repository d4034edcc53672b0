"""What bench/echo.py reads off a cancelled scene: false and missed barge-ins, cut frames, PESQ, ERLE."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from bench.echo_scenes import Scene
from gateway.media.vad import SpeechDetector

Pcm = NDArray[np.float32]

CONFIRM_MS = 160
"""Speech within a talkspurt that makes it a barge-in."""
TAIL_MS = 700
"""A talkspurt that is confirmed so soon after an utterance is still its own."""
EARLY_MS = 60


@dataclass(frozen=True, slots=True)
class Marks:
    """One scene, one canceller."""

    scene: str
    false: int
    missed: int
    turns: int
    far_only_s: float
    cut: float
    """Percent of the caller's frames that came out more than 10 dB lower."""
    pesq: float
    erle: float
    """dB, agent alone, after the first 3 s."""
    first: tuple[float, float]
    """The same in the first second, and from 1 to 3 s."""

    def line(self) -> str:
        early = f"{self.first[0]:5.1f}{self.first[1]:5.1f}"
        turns = f"{self.false:3d} {self.missed:2d}/{self.turns}"
        return f"{turns} {self.cut:5.1f} {self.pesq:5.2f} {self.erle:5.1f}{early}"


def measure(scenes: list[Scene], out: Pcm, left: Pcm, noise: Pcm) -> list[Marks]:
    """Marks of all scenes; out (scenes, samples), left and noise (scenes, blocks)."""
    confirmed = barge_ins(scenes, out, left, noise)
    return [_mark(scene, out[row], confirmed[row]) for row, scene in enumerate(scenes)]


def barge_ins(scenes: list[Scene], out: Pcm, left: Pcm, noise: Pcm) -> list[list[int]]:
    """Where the detector confirms speech, in samples of each scene."""
    decimate = scenes[0].rate // 8_000
    low = _decimated(out, decimate)
    detector, rows = SpeechDetector(len(scenes)), np.arange(len(scenes))
    for row in rows:
        detector.open(int(row))
    found: list[list[int]] = [[] for _ in scenes]
    was = np.zeros(len(scenes), bool)
    for tick in range(low.shape[1] // 160):
        detector.hear(rows, low[:, tick * 160 : tick * 160 + 160], left[:, tick], noise[:, tick])
        now = detector.speech * 1000 >= CONFIRM_MS * 8_000
        for row in np.flatnonzero(now & ~was):
            found[row].append((tick + 1) * 160 * decimate)
        was = now
    return found


def _decimated(pcm: Pcm, by: int) -> Pcm:
    if by == 1:
        return pcm
    from scipy.signal import resample_poly

    return np.asarray(resample_poly(pcm, 1, by, axis=1), dtype=np.float32)


def _mark(scene: Scene, out: Pcm, confirmed: list[int]) -> Marks:
    ms = scene.rate // 1000
    hit, false = set(), 0
    for at in confirmed:
        turn = next(
            (k for k, (a, b) in enumerate(scene.spans) if a - EARLY_MS * ms <= at <= b + TAIL_MS * ms), None
        )
        false += turn is None
        hit.add(turn)
    missed = sum(turn not in hit for turn in range(len(scene.spans)))
    aligned = _aligned(scene, out)
    alone = _agent_alone(scene)
    return Marks(
        scene.name,
        false,
        missed,
        len(scene.spans),
        float(alone.sum()) / 50,
        cut_share(scene, aligned),
        quality(scene, aligned),
        erle(scene, out, alone, 3.0, 1e9),
        (erle(scene, out, alone, 0.0, 1.0), erle(scene, out, alone, 1.0, 3.0)),
    )


def _aligned(scene: Scene, out: Pcm) -> Pcm:
    """The output moved by the canceller's own delay (up to 20 ms), found from the caller's voice."""
    most = scene.rate // 50
    size = 1 << int(np.ceil(np.log2(len(out) + most)))
    cross = np.fft.irfft(np.fft.rfft(out, size) * np.conj(np.fft.rfft(scene.near, size)), size)
    shift = int(np.argmax(cross[: most + 1]))
    return np.concatenate([out[shift:], np.zeros(shift, np.float32)])


def _agent_alone(scene: Scene) -> NDArray[np.bool_]:
    """Blocks (blocks,) in which the caller is silent."""
    block = scene.rate // 50
    alone = np.ones(len(scene.sent) // block, bool)
    for start, end in scene.spans:
        alone[max(0, start // block - 2) : end // block + 10] = False
    return alone


def erle(scene: Scene, out: Pcm, alone: NDArray[np.bool_], start: float, end: float) -> float:
    """Heard power over output power in dB while the agent talks alone."""
    block = scene.rate // 50
    seconds = np.arange(len(alone)) / 50
    chosen = alone & (seconds >= start) & (seconds < end)
    before = np.mean(scene.heard[: len(alone) * block].reshape(-1, block)[chosen] ** 2)
    after = np.mean(out[: len(alone) * block].reshape(-1, block)[chosen] ** 2)
    return float(10 * np.log10((before + 1e-12) / (after + 1e-12)))


def cut_share(scene: Scene, out: Pcm) -> float:
    """Percent of the caller's 20 ms frames (within 25 dB of his level) that lost more than 10 dB."""
    block = scene.rate // 50
    near = scene.near[: len(scene.near) // block * block].reshape(-1, block)
    got = out[: len(near) * block].reshape(-1, block)
    power = np.einsum("ij,ij->i", near, near)
    active = power > 10**-2.5 * np.mean(power[power > 0])
    active &= ~scene.concealed[: len(near) * block : block]
    gain = np.einsum("ij,ij->i", got, got)[active] / power[active]
    return float(100 * np.mean(gain < 0.1))


def quality(scene: Scene, out: Pcm) -> float:
    """Mean narrow-band PESQ of the caller's utterances."""
    from pesq import pesq
    from scipy.signal import resample_poly

    marks = []
    for start, end in scene.spans:
        clean, dirty = scene.near[start:end], out[start:end]
        if scene.rate != 8_000:
            clean, dirty = (resample_poly(pcm, 8_000, scene.rate) for pcm in (clean, dirty))
        marks.append(pesq(8_000, clean, dirty, "nb"))
    return float(np.mean(marks))


def total(marks: list[Marks]) -> dict[str, float]:
    """Sums and means over scenes."""
    echoing = [mark for mark in marks if mark.scene != "no echo"]
    return {
        "false": sum(mark.false for mark in marks),
        "missed": sum(mark.missed for mark in marks),
        "turns": sum(mark.turns for mark in marks),
        "agent_alone_s": round(sum(mark.far_only_s for mark in marks)),
        "cut_percent": round(float(np.mean([mark.cut for mark in marks])), 2),
        "pesq": round(float(np.mean([mark.pesq for mark in marks])), 3),
        "pesq_no_echo": round(float(np.mean([m.pesq for m in marks if m.scene == "no echo"] or [0])), 3),
        "erle_db": round(float(np.mean([mark.erle for mark in echoing])), 1),
        "erle_first_second_db": round(float(np.mean([mark.first[0] for mark in echoing])), 1),
        "erle_1_to_3_s_db": round(float(np.mean([mark.first[1] for mark in echoing])), 1),
    }
