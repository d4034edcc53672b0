"""The semantic half of the tiny codec: a tower and codebook 1 that carry a caller's words.

    python -m train.semantic --state DIR --minutes 35

At 8 kHz, where the features are those of 24 kHz (test_tiny_codec.py), with the frequency axis warped a
little from caller to caller. Three losses hang on the quantised vectors through a small listener that is
thrown away: the word of each frame, the words in order (CTC, Graves 2006), and the intent at the end.
"""

from __future__ import annotations

import argparse
import random
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn import functional

from engine.model.tiny_codec import CausalConv, TinyNet, log_mel, mel_bank, nearest
from train import receptionist as script
from train import sounds
from train.data import AgentStore, CallerStore, Utterance
from train.loop import Loop, log, prepare
from train.rvq import RvqTrainer

HOP = 640
"""Samples of a frame at 8 kHz."""
WORD_DELAY = 2
"""Frames after a word's place at which it is asked for."""
WARPS = (0.88, 0.92, 0.96, 1.0, 1.0, 1.04, 1.09)
QUANTISED_FROM = 0.5
"""Fraction of the training after which the vectors begin to be quantised."""
SILENT_ROWS = 3
"""Rows of a batch without any speech: noise, coughs, tones, the agent's echo."""


class Features(nn.Module):
    """8 kHz samples -> the semantic tower's log-mel bands, each row with its own frequency warp."""

    def __init__(self, bands: int) -> None:
        super().__init__()
        self.register_buffer("window", torch.hann_window(320), persistent=False)
        banks = [mel_bank(bands, 100 * w, min(3_800 * w, 3_990), bins=161, top=4_000) for w in WARPS]
        self.register_buffer("banks", torch.stack(banks), persistent=False)

    def forward(self, pcm: Tensor, warp: Tensor | None = None) -> Tensor:
        """pcm (B, n * 80), warp (B,) index into WARPS or None for 1.0 -> (B, n, bands)."""
        spectra = torch.fft.rfft(functional.pad(pcm, (240, 0)).unfold(-1, 320, 80) * self.window)
        which = torch.full((len(pcm),), WARPS.index(1.0)) if warp is None else warp
        return log_mel(spectra.abs() * (4 / 320), self.banks[which])


class Listener(nn.Module):
    """What training hears in the code vectors; not part of the product."""

    def __init__(self, dim: int, words: int, intents: int) -> None:
        super().__init__()
        self.conv = CausalConv(dim, 192, 3)
        self.frame_words = nn.Linear(192, words + 1)
        self.ordered_words = nn.Linear(192, words + 1)
        self.recurrent = nn.GRU(dim, 192, batch_first=True)
        self.intent = nn.Linear(192, intents)

    def forward(self, vectors: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """(B, T, dim) -> frame words, ordered words (B, T, words + 1), intents (B, T, intents)."""
        h = functional.gelu(self.conv(vectors.transpose(1, 2))).transpose(1, 2)
        return (
            self.frame_words(h),
            self.ordered_words(h),
            self.intent(functional.dropout(self.recurrent(vectors)[0], 0.1, self.training)),
        )


class SemanticStage(nn.Module):
    """What is saved: tower, codebook 1, its averages and the listener."""

    def __init__(self, words: int) -> None:
        super().__init__()
        net = TinyNet()
        self.tower = net.semantic
        self.register_buffer("book", net.codebook[:1].clone())
        self.rvq = RvqTrainer(self.book)
        self.features = Features(net.config.semantic_bands)
        self.listener = Listener(net.config.code_dim, words, len(script.INTENTS))
        self.straight = nn.Linear(net.config.code_dim, words + 1)

    def vectors(self, pcm: Tensor, warp: Tensor | None = None) -> Tensor:
        out: Tensor = self.tower(self.features(pcm, warp))
        return out

    def codes(self, pcm: Tensor) -> Tensor:
        """(B, n * 640) at 8 kHz -> codebook 1 (B, n)."""
        return nearest(self.vectors(pcm), self.book[0])


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
        self.agent = torch.from_numpy(agent.samples[::3].copy()) if agent else torch.zeros(RATE_MIN)

    def __iter__(self) -> Iterator[Batch]:
        while True:
            intents = self.rng.choices(range(len(self.by_intent)), self.weights, k=self.rows * 8)
            pool = sorted((self.rng.choice(self.by_intent[i]) for i in intents), key=lambda said: said.length)
            groups = [pool[i : i + self.rows] for i in range(0, len(pool), self.rows)]
            self.rng.shuffle(groups)
            yield from (self.batch(group) for group in groups)

    def batch(self, group: list[Utterance]) -> Batch:
        rng = self.rng
        voices = [
            sounds.moved(torch.from_numpy(self.store.pcm(said)), rng.uniform(0.9, 1.12)) for said in group
        ]
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


def vocabulary(utterances: list[Utterance]) -> dict[str, int]:
    """Words of the training callers -> 1…; 0 is the blank."""
    return {
        word: i + 1 for i, word in enumerate(sorted({w for said in utterances for w in said.words.split()}))
    }


def word_frames(batch: Batch, words: dict[str, int]) -> Tensor:
    """(B, frames): the word spoken WORD_DELAY frames ago, places by letters; 0 where nobody spoke."""
    labels = torch.zeros(len(batch.said), batch.frames, dtype=torch.int64)
    for row, said in enumerate(batch.said):
        if said is None:
            continue
        spoken = said.words.split()
        edges = torch.tensor([0.0, *(len(word) + 1.5 for word in spoken)]).cumsum(0)
        edges = batch.starts[row] + (batch.ends[row] - batch.starts[row]) * edges / edges[-1]
        places = (edges / HOP).int() + WORD_DELAY
        for i, word in enumerate(spoken):
            labels[row, places[i] : max(int(places[i + 1]), int(places[i]) + 1)] = words.get(word, 0)
    return labels


def losses(stage: SemanticStage, batch: Batch, words: dict[str, int], continuous: float) -> dict[str, Tensor]:
    """The losses of one batch; `continuous` is the share of rows whose vectors are not quantised."""
    vectors = stage.vectors(batch.pcm, torch.randint(0, len(WARPS), (len(batch.pcm),)))
    quantised, _, commitment = (
        stage.rvq(vectors) if continuous < 1 else (vectors, None, vectors.square().mean() * 0.02)
    )
    raw = (torch.rand(len(vectors), 1, 1) < continuous).float()
    heard = (raw * vectors + (1 - raw) * quantised) * (torch.rand(*vectors.shape[:2], 1) > 0.05)
    frame_words, ordered, intents = stage.listener(heard)
    weight = torch.ones(frame_words.shape[-1])
    weight[0] = 0.3
    frames = functional.cross_entropy(
        frame_words.flatten(0, 1), word_frames(batch, words).flatten(), weight=weight
    )
    targets = [
        torch.tensor([words[w] for w in said.words.split()]) if said else torch.zeros(0, dtype=torch.int64)
        for said in batch.said
    ]
    lengths = torch.tensor([len(t) for t in targets])
    everywhere = torch.full((len(targets),), batch.frames)
    straight = [stage.straight(vectors)] if continuous == 1 else []
    order = [
        functional.ctc_loss(
            x.log_softmax(-1).transpose(0, 1), torch.cat(targets), everywhere, lengths, zero_infinity=True
        )
        for x in (ordered, *straight)
    ]
    rows = torch.arange(len(batch.said) - SILENT_ROWS)
    meant = torch.tensor([said.intent for said in batch.said if said])
    last = torch.tensor([-(-end // HOP) for said, end in zip(batch.said, batch.ends, strict=True) if said])
    ends = [
        functional.cross_entropy(intents[rows, (last + d).clamp(max=batch.frames - 1)], meant)
        for d in (0, 1, 2)
    ]
    return {"frames": frames, "ordered": 0.5 * order[0], "straight": 0.25 * sum(order[1:], torch.zeros(())),
            "intent": torch.stack(ends).mean(), "commitment": 0.25 * commitment}  # fmt: skip


@torch.no_grad()
def accuracy(stage: SemanticStage, store: CallerStore, quantised: bool = True) -> dict[str, float]:
    """Intents of held-out voices in noise, over phrasings seen and not seen in training."""
    stage.eval()
    generator = torch.random.get_rng_state()
    torch.manual_seed(5)
    hits: dict[bool, list[bool]] = {True: [], False: []}
    ordered = sorted(store.utterances, key=lambda said: said.length)
    for at in range(0, len(ordered), 48):
        group = ordered[at : at + 48]
        pcm = torch.zeros(len(group), (-(-max(said.length for said in group) // HOP) + 8) * HOP)
        for row, said in enumerate(group):
            pcm[row, 2_400 : 2_400 + said.length] = torch.from_numpy(store.pcm(said))
        pcm = pcm + 0.008 * torch.randn_like(pcm)
        vectors = stage.vectors(pcm)
        if quantised:
            vectors = stage.rvq(vectors)[0]
        last = torch.tensor([-(-(2_400 + said.length) // HOP) + 2 for said in group])
        found = stage.listener(vectors)[2][torch.arange(len(group)), last].argmax(-1)
        for said, intent in zip(group, found.tolist(), strict=True):
            hits[said.seen_phrasing].append(intent == said.intent)
    torch.random.set_rng_state(generator)
    stage.train()
    return {"seen": sum(hits[True]) / len(hits[True]), "unseen": sum(hits[False]) / len(hits[False])}


def train(state: Path, minutes: float, rows: int, check_every: int) -> None:
    store, held_out = CallerStore(state, "train"), CallerStore(state, "test")
    words = vocabulary(store.utterances)
    stage = SemanticStage(len(words))
    learnt = [*stage.tower.parameters(), *stage.listener.parameters(), *stage.straight.parameters()]
    loop = Loop(
        state / "semantic.pt",
        stage,
        torch.optim.AdamW(learnt, betas=(0.9, 0.98), weight_decay=0.02),
        minutes,
        2.5e-3,
    )
    callers = iter(Callers(store, AgentStore(state), rows, loop.steps + 1))
    log.info("%d utterances, %d words", len(store.utterances), len(words))
    while loop.running:
        continuous = min(1.0, max(0.0, 1 - (loop.done - QUANTISED_FROM) / 0.15))
        if continuous == 1:
            stage.rvq.started.zero_()
        loop.step(losses(stage, next(callers), words, continuous))
        if loop.steps % 100 == 0 or loop.steps in (5, 20):
            loop.report(continuous=continuous)
        if loop.steps % check_every == 0 or not loop.running:
            loop.report(**accuracy(stage, held_out, continuous < 0.5))


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--state", type=Path, required=True)
    parser.add_argument("--minutes", type=float, default=35.0)
    parser.add_argument("--rows", type=int, default=32)
    parser.add_argument("--check-every", type=int, default=500)
    chosen = parser.parse_args()
    prepare(2)
    train(chosen.state, chosen.minutes, chosen.rows, chosen.check_every)


if __name__ == "__main__":
    main()
