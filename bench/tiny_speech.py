"""Speech for bench/tiny.py: what held-out callers say on a telephone, and how the agent's voice is judged."""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import soxr
from numpy.typing import NDArray

from train import receptionist as script
from train.data import AgentStore, Amounts, CallerStore, Utterance, render_agent, render_callers

Pcm = NDArray[np.float32]
RATE, PHONE_RATE, FRAME = 24_000, 8_000, 1_920


@dataclass(frozen=True, slots=True)
class Speech:
    """The rendered material: callers of held-out voices and the agent's lines."""

    callers: CallerStore
    agent: AgentStore

    @classmethod
    def at(cls, folder: Path) -> Speech:
        """Rendered (flite and espeak-ng must be installed) unless `folder` holds it."""
        folder.mkdir(parents=True, exist_ok=True)
        if not (folder / "agent.json").exists():
            render_agent(folder, others=0)
        if not (folder / "callers-test.json").exists():
            render_callers(folder, Amounts(0, 0), 1)
        return cls(CallerStore(folder, "test"), AgentStore(folder))

    def utterances(self, count: int | None, seed: int = 0) -> list[Utterance]:
        """All, or a balanced choice of `count`, in a fixed random order."""
        order = np.random.default_rng(seed).permutation(len(self.callers.utterances))
        return [self.callers.utterances[i] for i in order[:count]]

    def line(self, name: str) -> Pcm:
        return np.asarray(self.agent.pcm(self.agent.lines[name]), np.float32)


def telephone(pcm: Pcm, rng: np.random.Generator, snr_db: float = 20.0) -> Pcm:
    """8 kHz speech -> 300 to 3,400 Hz, white noise, G.711 µ-law, 24 kHz. The noise covers all of it."""
    spectrum = np.fft.rfft(pcm)
    hz = np.linspace(0, PHONE_RATE / 2, len(spectrum))
    band = np.fft.irfft(np.where((hz > 300) & (hz < 3_400), spectrum, 0), len(pcm))
    voiced = band[np.abs(pcm) > 1e-3]
    level = float(np.sqrt(np.mean(voiced**2))) if len(voiced) else 0.05
    noisy = band + rng.normal(0, level * 10 ** (-snr_db / 20), len(band))
    return np.asarray(soxr.resample(companded(noisy), PHONE_RATE, RATE), np.float32)


def companded(pcm: NDArray[np.floating]) -> Pcm:
    """G.711 µ-law there and back."""
    squeezed = np.sign(pcm) * np.log1p(255 * np.minimum(np.abs(pcm), 1)) / np.log(256)
    squeezed = np.round(squeezed * 127) / 127
    return (np.sign(squeezed) * np.expm1(np.abs(squeezed) * np.log(256)) / 255).astype(np.float32)


def aligned(reference: Pcm, heard: Pcm) -> Pcm:
    """`heard` shifted to where it correlates best with `reference`, cut to its length."""
    size = len(reference) + len(heard)
    product = np.fft.irfft(np.fft.rfft(heard, size) * np.conj(np.fft.rfft(reference, size)), size)
    shift = int(np.argmax(product[: max(1, len(heard) - len(reference) // 2)]))
    part = heard[shift : shift + len(reference)]
    return np.pad(part, (0, len(reference) - len(part)))


def words(text: str) -> list[str]:
    return re.sub(r"[^a-z' ]", " ", text.lower().replace("-", " ")).split()


def edits(reference: list[str], heard: list[str]) -> int:
    """Word edit distance."""
    row = np.arange(len(heard) + 1)
    for i, wanted in enumerate(reference):
        before, row = row, np.empty_like(row)
        row[0] = i + 1
        for j, got in enumerate(heard):
            row[j + 1] = min(before[j] + (wanted != got), before[j + 1] + 1, row[j] + 1)
    return int(row[-1])


class Transcriber:
    """pocketsphinx's general English model over 8 kHz speech."""

    def __init__(self) -> None:
        from pocketsphinx import Decoder

        self._decoder = Decoder(samprate=16_000, loglevel="FATAL")

    def __call__(self, pcm: Pcm) -> list[str]:
        quiet = np.random.default_rng(0).normal(0, 3e-4, 2 * PHONE_RATE // 3 + len(pcm))
        quiet[PHONE_RATE // 3 : PHONE_RATE // 3 + len(pcm)] += pcm
        wide = soxr.resample(quiet, PHONE_RATE, 16_000)
        self._decoder.start_utt()
        self._decoder.process_raw((np.clip(wide, -1, 1) * 32_000).astype(np.int16).tobytes(), full_utt=True)
        self._decoder.end_utt()
        found = self._decoder.hyp()
        return words(found.hypstr) if found else []


def voice_quality(pairs: Iterable[tuple[str, Pcm, Pcm]]) -> dict[str, float]:
    """(text, reference at 24 kHz, what a telephone heard at 8 kHz) -> WER of both, STOI and PESQ-nb."""
    from pesq import NoUtterancesError, pesq
    from pystoi import stoi

    hear = Transcriber()
    wrong = wrong_original = total = 0
    stois, pesqs = [], []
    for text, reference, heard in pairs:
        clean = soxr.resample(reference, RATE, PHONE_RATE)
        phone = aligned(clean, heard)
        spoken = words(text)
        wrong, total = wrong + edits(spoken, hear(phone)), total + len(spoken)
        wrong_original += edits(spoken, hear(companded(clean)))
        stois.append(float(stoi(clean, phone, PHONE_RATE)))
        try:
            pesqs.append(float(pesq(PHONE_RATE, clean, phone, "nb")))
        except NoUtterancesError:
            continue
    return {
        "wer": wrong / max(1, total),
        "wer_of_the_original": wrong_original / max(1, total),
        "stoi": float(np.mean(stois)),
        "pesq_nb": float(np.mean(pesqs)) if pesqs else 0.0,
        "lines": len(stois),
    }


def line_said(pieces: list[str], lines: dict[str, str]) -> str | None:
    """Which canned line a stretch of text tokens is: the one it shares most with; None for no words."""
    said = words(" ".join(pieces))
    if not said:
        return None
    costs = {name: edits(words(text)[: len(said)], said) / len(said) for name, text in lines.items()}
    return min(costs, key=lambda name: costs[name])


ALL_LINES = script.SENTENCES
