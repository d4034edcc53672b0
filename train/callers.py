"""Callers: batches of training callers on noisy lines, and what there is to learn in them.

Everything is at 8 kHz. Used by train/semantic.py for its losses and by train/strings.py for its sounds.
"""

from __future__ import annotations

import json
import random
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from train import receptionist as script
from train import sounds
from train.data import AgentStore, CallerStore, Utterance
from train.loop import here
from train.voices import phones

HOP = 640
"""Samples of a frame at 8 kHz."""
WORD_DELAY = 2
"""Frames after a word's place at which it is asked for."""
SILENT_ROWS = 3
"""Rows of a batch without any speech: noise, coughs, tones, the agent's echo."""


@dataclass(frozen=True, slots=True)
class Batch:
    """One batch of callers."""

    pcm: Tensor
    """(B, n * 640) at 8 kHz, what arrives."""
    starts: list[int]
    ends: list[int]
    """Samples at which speech begins and ends."""
    said: list[Utterance | None]

    @property
    def frames(self) -> int:
        return self.pcm.shape[1] // HOP


class Callers:
    """Batches of training callers, balanced over intents and sorted by length."""

    def __init__(self, store: CallerStore, agent: AgentStore | None, rows: int, seed: int) -> None:
        self.store, self.rows = store, rows
        self.rng = random.Random(seed)
        self.by_intent: list[list[Utterance]] = [[] for _ in script.INTENTS]
        for said in store.utterances:
            self.by_intent[said.intent].append(said)
        sizes = [len(group) for group in self.by_intent]
        self.weights = [0.5 + 0.5 * size * len(sizes) / sum(sizes) for size in sizes]
        self.weights[-1] = 0.18 * sum(self.weights[:-1])
        self.agent = here(agent.samples[::3]) if agent else torch.zeros(RATE_MIN)

    def __iter__(self) -> Iterator[Batch]:
        while True:
            intents = self.rng.choices(range(len(self.by_intent)), self.weights, k=self.rows * 8)
            pool = sorted((self.rng.choice(self.by_intent[i]) for i in intents), key=lambda said: said.length)
            groups = [pool[i : i + self.rows] for i in range(0, len(pool), self.rows)]
            self.rng.shuffle(groups)
            yield from (self.batch(group) for group in groups)

    def batch(self, group: list[Utterance]) -> Batch:
        rng = self.rng
        voices = [sounds.moved(here(self.store.pcm(said)), rng.uniform(0.9, 1.12)) for said in group]
        starts = [rng.randint(800, 5_000) for _ in voices]
        ends = [start + len(voice) for start, voice in zip(starts, voices, strict=True)]
        frames = -(-(max(ends) + rng.randint(3, 8) * HOP) // HOP)
        clean = torch.zeros(len(group) + SILENT_ROWS, frames * HOP)
        for row, (start, voice) in enumerate(zip(starts, voices, strict=True)):
            clean[row, start : start + len(voice)] = voice * rng.uniform(0.5, 1.2)
        pcm = sounds.phone_line(clean, rng)
        self._disturb(pcm)
        return Batch(
            pcm, starts + [0] * SILENT_ROWS, ends + [0] * SILENT_ROWS, [*group, *[None] * SILENT_ROWS]
        )

    def _disturb(self, pcm: Tensor) -> None:
        """Coughs before speech or alone, and the agent's echo, in place."""
        count = pcm.shape[1]
        for row in range(len(pcm)):
            silent = row >= len(pcm) - SILENT_ROWS
            if silent or self.rng.random() < 0.08:
                burst = sounds.cough(self.rng) * self.rng.uniform(0.02, 0.3)
                at = self.rng.randint(0, count - len(burst) - 1) if silent else 0
                pcm[row, at : at + len(burst)] += burst
            if self.rng.random() < (0.5 if silent else 0.12):
                at = self.rng.randint(0, len(self.agent) - count)
                pcm[row] += self.agent[at : at + count] * 10 ** (-self.rng.uniform(14, 35) / 20)


RATE_MIN = 10 * sounds.RATE
SET_ASIDE = ("+Andy", "+victor", "+belinda", "+m4", "+sandro", "nyc")
"""Training voices that only calibration hears (train/calibrate.py)."""


def set_aside(utterances: list[Utterance]) -> tuple[list[Utterance], list[Utterance]]:
    """What training hears, and what calibration hears."""
    aside = [said for said in utterances if any(part in said.voice for part in SET_ASIDE)]
    left = set(aside)
    return [said for said in utterances if said not in left], aside


def vocabulary(utterances: list[Utterance]) -> dict[str, int]:
    """Words of the training callers -> 1…; 0 is the blank."""
    return {
        word: i + 1 for i, word in enumerate(sorted({w for said in utterances for w in said.words.split()}))
    }


def word_frames(batch: Batch, words: dict[str, int]) -> Tensor:
    """(B, frames): the word spoken WORD_DELAY frames ago, places by letters; 0 where nobody spoke."""
    labels = torch.zeros(len(batch.said), batch.frames, dtype=torch.int64, device="cpu")
    for row, said in enumerate(batch.said):
        if said is None:
            continue
        spoken = said.words.split()
        edges = torch.tensor([0.0, *(len(word) + 1.5 for word in spoken)], device="cpu").cumsum(0)
        edges = batch.starts[row] + (batch.ends[row] - batch.starts[row]) * edges / edges[-1]
        places = (edges / HOP).int() + WORD_DELAY
        for i, word in enumerate(spoken):
            labels[row, places[i] : max(int(places[i + 1]), int(places[i]) + 1)] = words.get(word, 0)
    return labels.to(batch.pcm.device)


def meaning_labels(batch: Batch, fresh: Tensor) -> Tensor:
    """(B, frames): 0 where nobody spoke yet in a fresh call, 1 + intent when an answer is chosen, else -1."""
    labels = torch.full((len(batch.said), batch.frames), -1, device="cpu")
    for row, (said, new) in enumerate(zip(batch.said, fresh.tolist(), strict=True)):
        if said is None:
            labels[row] = 0 if new else -1
            continue
        if new:
            labels[row, : batch.starts[row] // HOP] = 0
        last = (batch.ends[row] - HOP // 6) // HOP
        labels[row, last + 1 : last + 9] = 1 + said.intent
    return labels.to(batch.pcm.device)


class Lexicon:
    """Words of the training callers -> 1…, and their phones -> 1…; 0 is the blank."""

    def __init__(self, utterances: list[Utterance], path: Path) -> None:
        self.words = vocabulary(utterances)
        if not path.exists():
            path.write_text(json.dumps({word: phones(word) for word in self.words}))
        spoken = json.loads(path.read_text())
        names = {name: i + 1 for i, name in enumerate(sorted({p for word in spoken.values() for p in word}))}
        self.phones = {word: [names[p] for p in spoken[word]] for word in self.words}

    def __len__(self) -> int:
        return len(self.words)
