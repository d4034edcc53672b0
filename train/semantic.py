"""The semantic half of the tiny codec: a tower, codebook 1 that carries a caller's words, and the meaning.

    python -m train.semantic --state DIR --minutes 35 [--keep-book]

At 8 kHz, where the features are those of 24 kHz (test_tiny_codec.py), with the frequency axis warped a
little from caller to caller, bands and moments of it hidden. Learnt from the tower: the phones in order (CTC,
Graves 2006) halfway up, the word of each frame and the meaning at the end. From scratch, a small listener
that is thrown away asks for words and meaning in the quantised vectors too. With --keep-book codebook 1 stays
as it was: the tower is held to the vectors of the tower it began as, and a language model goes on hearing the
same.
"""

from __future__ import annotations

import argparse
import copy
import random
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn import functional

from engine.model.tiny_codec import CausalConv, TinyCodecConfig, TinyNet, log_mel, mel_bank, nearest
from train import receptionist as script
from train import sounds
from train.callers import HOP, Batch, Lexicon, meaning_labels, set_aside, word_frames
from train.data import CallerStore, Utterance
from train.feeders import Feeders
from train.loop import Loop, adamw, device_option, halves, here, log, prepare, whole
from train.rvq import RvqTrainer

CONFIG = TinyCodecConfig(meanings=len(script.INTENTS))
HALFWAY = 2 + sum(CONFIG.semantic_depths[:2])
"""Layers of the tower up to 25 Hz."""
PHONES = 48
"""Room for flite's phones and the blank."""
WARPS = (0.88, 0.92, 0.96, 1.0, 1.0, 1.04, 1.09)
HIDDEN_SHARE = 0.35
"""Of the rows. For ten epochs or so more of it only slows training down; who trains longer wants more."""
QUANTISED_FROM = 0.5
"""Fraction of the training after which the vectors begin to be quantised."""


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


def hidden_parts(mel: Tensor) -> Tensor:
    """mel (B, n, bands) with stripes of bands and moments set to their row's mean (Park et al. 2019)."""
    rows, count, bands = mel.shape
    index, time = torch.arange(bands), torch.arange(count)
    hide = torch.zeros(rows, count, bands, dtype=torch.bool)
    for _ in range(2):
        low, width = torch.randint(0, bands, (rows, 1)), torch.randint(0, 8, (rows, 1))
        hide |= ((index >= low) & (index < low + width))[:, None]
        first, length = torch.randint(0, count, (rows, 1)), torch.randint(0, 9, (rows, 1))
        hide |= ((time >= first) & (time < first + length))[:, :, None]
    hide &= torch.rand(rows, 1, 1) < HIDDEN_SHARE
    return torch.where(hide, mel.mean((1, 2), keepdim=True), mel)


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
    """What is saved: tower, meaning, codebook 1, its averages and what helps training."""

    def __init__(self, words: int) -> None:
        super().__init__()
        net = TinyNet(CONFIG)
        assert net.meaning is not None
        self.tower, self.meaning = net.semantic, net.meaning
        self.register_buffer("book", net.codebook[:1].clone())
        self.rvq = RvqTrainer(self.book)
        self.features = Features(CONFIG.semantic_bands)
        width = CONFIG.semantic_widths[-1]
        self.listener = Listener(CONFIG.code_dim, words, len(script.INTENTS))
        self.straight = WordHeads(width, CONFIG.semantic_widths[1], words)
        self.teacher = copy.deepcopy(net.semantic).requires_grad_(False)

    def vectors(self, pcm: Tensor, warp: Tensor | None = None) -> Tensor:
        out: Tensor = self.tower(self.features(pcm, warp))
        return out

    def climbed(self, mel: Tensor) -> tuple[Tensor, Tensor]:
        """(B, n, bands) -> the tower's features (B, n / 8, width) and, halfway, (B, middle width, n / 4)."""
        x = middle = mel.transpose(1, 2)
        for place, layer in enumerate(self.tower.layers, 1):
            x = layer(x)
            if place == HALFWAY:
                middle = x
        return self.tower.norm(x.transpose(1, 2)), middle

    def codes(self, pcm: Tensor) -> Tensor:
        """(B, n * 640) at 8 kHz -> codebook 1 (B, n)."""
        return nearest(self.vectors(pcm), self.book[0])

    def meant(self, pcm: Tensor) -> Tensor:
        """(B, n * 640) at 8 kHz -> logits of the meaning (B, n, meanings + 1)."""
        hidden, _ = self.meaning.recurrent(self.tower.features(self.features(pcm)))
        out: Tensor = self.meaning.head(hidden)
        return out


class WordHeads(nn.Module):
    """The word of each frame and, halfway up the tower at 25 Hz, the phones in order; thrown away."""

    def __init__(self, width: int, middle: int, words: int) -> None:
        super().__init__()
        self.conv = CausalConv(width, 192, 3)
        self.frame_words = nn.Linear(192, words + 1)
        self.phones = nn.Linear(middle, PHONES)

    def forward(self, features: Tensor, middle: Tensor) -> tuple[Tensor, Tensor]:
        h = functional.gelu(self.conv(features.transpose(1, 2))).transpose(1, 2)
        return self.frame_words(h), self.phones(middle.transpose(1, 2))


class Memory:
    """States of the recurrent network after earlier callers: a call does not begin with every utterance."""

    def __init__(self, width: int, keep: int = 256) -> None:
        self.states = torch.zeros(keep, width)

    def begin(self, rows: int) -> tuple[Tensor, Tensor]:
        """States (1, rows, width) to begin with, and which of them are fresh."""
        fresh = torch.rand(rows) < 0.4
        old = self.states[torch.randint(0, len(self.states), (rows,))]
        return torch.where(fresh[:, None], torch.zeros(()), old)[None], fresh

    def keep(self, last: Tensor) -> None:
        self.states[torch.randint(0, len(self.states), (len(last),))] = last.detach().float()


def frame_loss(frame_words: Tensor, batch: Batch, lexicon: Lexicon) -> Tensor:
    weight = torch.ones(frame_words.shape[-1])
    weight[0] = 0.3
    labels = word_frames(batch, lexicon.words).flatten()
    return functional.cross_entropy(frame_words.flatten(0, 1), labels, weight=weight)


def order_loss(logits: Tensor, targets: list[list[int]]) -> Tensor:
    """CTC of logits (B, T, classes); its lengths are numbers for the processor."""
    lengths = torch.tensor([len(target) for target in targets], device="cpu")
    flat = torch.tensor([code for target in targets for code in target])
    everywhere = torch.full((len(targets),), logits.shape[1], device="cpu")
    return functional.ctc_loss(
        logits.log_softmax(-1).transpose(0, 1), flat, everywhere, lengths, zero_infinity=True
    )


def losses(
    stage: SemanticStage, batch: Batch, lexicon: Lexicon, memory: Memory
) -> tuple[dict[str, Tensor], Tensor, Tensor]:
    """The losses on the tower's features; with them the features and the mel bands they come from."""
    mel = stage.features(batch.pcm, torch.randint(0, len(WARPS), (len(batch.pcm),)))
    features, middle = stage.climbed(hidden_parts(mel))
    frame_words, sounded = stage.straight(features, middle)
    frames = frame_loss(frame_words, batch, lexicon)
    spoken = [
        [p for word in said.words.split() for p in lexicon.phones[word]] if said else []
        for said in batch.said
    ]
    order = order_loss(sounded, spoken)
    state, fresh = memory.begin(len(batch.said))
    with whole():
        hidden, last = stage.meaning.recurrent(functional.dropout(features.float(), 0.05), state)
    memory.keep(last[0])
    logits = stage.meaning.head(functional.dropout(hidden, 0.1))
    meant = functional.cross_entropy(
        logits.flatten(0, 1), meaning_labels(batch, fresh).flatten(), ignore_index=-1
    )
    return {"frames": 0.7 * frames, "phones": 0.7 * order, "meant": 1.5 * meant}, features, mel


def held(stage: SemanticStage, features: Tensor, mel: Tensor, rows: int = 5) -> dict[str, Tensor]:
    """How far the vectors of some rows are from those of the tower that codebook 1 was made for."""
    which = torch.randperm(len(mel))[:rows]
    with torch.no_grad():
        wanted = stage.teacher(mel[which])
    given = stage.tower.out(features[which])
    return {"held": 0.5 * (given - wanted).square().mean() / wanted.var()}


def quantised_losses(
    stage: SemanticStage, features: Tensor, batch: Batch, lexicon: Lexicon, continuous: float
) -> dict[str, Tensor]:
    """From scratch: the same asked of codebook 1; `continuous` is the share of rows not quantised."""
    vectors = stage.tower.out(features)
    quantised, _, commitment = (
        stage.rvq(vectors) if continuous < 1 else (vectors, None, vectors.square().mean() * 0.02)
    )
    raw = (torch.rand(len(vectors), 1, 1) < continuous).float()
    heard = (raw * vectors + (1 - raw) * quantised) * (torch.rand(*vectors.shape[:2], 1) > 0.05)
    frame_words, ordered, intents = stage.listener(heard)
    frames = frame_loss(frame_words, batch, lexicon)
    order = order_loss(
        ordered, [[lexicon.words[w] for w in said.words.split()] if said else [] for said in batch.said]
    )
    labels = meaning_labels(batch, torch.zeros(len(batch.said), dtype=torch.bool))
    meant = functional.cross_entropy(
        intents.flatten(0, 1), (labels - 1).clamp(min=-1).flatten(), ignore_index=-1
    )
    return {"book": frames + 0.5 * order + meant, "commitment": 0.25 * commitment}


Trial = tuple[Utterance, Tensor]
"""An utterance and the probabilities (meanings + 1,) of its meaning when an answer is due."""


@torch.no_grad()
def trials(
    stage: SemanticStage,
    store: CallerStore,
    utterances: list[Utterance],
    after: int = 5,
    line: random.Random | None = None,
) -> list[Trial]:
    """Utterances in noise or over a telephone `line`; what is thought `after` frames past their last."""
    stage.eval()
    found: list[Trial] = []
    ordered = sorted(utterances, key=lambda said: said.length)
    with torch.random.fork_rng():
        torch.manual_seed(5)
        for at in range(0, len(ordered), 48):
            group = ordered[at : at + 48]
            pcm = torch.zeros(len(group), (-(-max(said.length for said in group) // HOP) + 11) * HOP)
            for row, said in enumerate(group):
                pcm[row, 2_400 : 2_400 + said.length] = here(store.pcm(said))
            pcm = sounds.phone_line(pcm, line) if line else pcm + 0.008 * torch.randn_like(pcm)
            last = torch.tensor([(2_400 + said.length - HOP // 6) // HOP + after for said in group])
            sure = stage.meant(pcm)[torch.arange(len(group)), last].softmax(-1).cpu()
            found += zip(group, sure, strict=True)
    stage.train()
    return found


def accuracy(stage: SemanticStage, store: CallerStore) -> dict[str, float]:
    """Meanings of held-out voices in noise, over phrasings seen and not seen in training."""
    hits: dict[bool, list[bool]] = {True: [], False: []}
    for said, sure in trials(stage, store, store.utterances):
        hits[said.seen_phrasing].append(int(sure.argmax()) == 1 + said.intent)
    return {"seen": sum(hits[True]) / len(hits[True]), "unseen": sum(hits[False]) / len(hits[False])}


def train(
    state: Path, minutes: float, rows: int, check_every: int, keep_book: bool, feeders: int = 0
) -> None:
    store, held_out = CallerStore(state, "train"), CallerStore(state, "test")
    kept, aside = set_aside(store.utterances)
    lexicon = Lexicon(kept, state / "phones.json")
    stage = SemanticStage(len(lexicon))
    learnt = [p for name, p in stage.named_parameters() if not name.startswith("teacher.")]
    loop = Loop(
        state / "semantic.pt",
        stage,
        adamw(learnt, (0.9, 0.98), 0.02),
        minutes,
        2e-3 if keep_book else 2.5e-3,
    )
    log.info("%d utterances, %d aside, %d words", len(kept), len(aside), len(lexicon))
    memory = Memory(CONFIG.meaning_width)
    with Feeders(state, rows, loop.steps + 1, feeders) as callers:
        batches = iter(callers)
        while loop.running:
            _learn(stage, loop, next(batches), lexicon, memory, keep_book)
            if loop.steps % 100 == 0 or loop.steps in (5, 20):
                loop.report()
            if loop.steps % check_every == 0 or not loop.running:
                loop.report(**accuracy(stage, held_out))


def _learn(
    stage: SemanticStage, loop: Loop, batch: Batch, lexicon: Lexicon, memory: Memory, keep_book: bool
) -> None:
    continuous = min(1.0, max(0.0, 1 - (loop.done - QUANTISED_FROM) / 0.15))
    if continuous == 1 and not keep_book:
        stage.rvq.started.zero_()
    with halves():
        parts, features, mel = losses(stage, batch, lexicon, memory)
        if keep_book:
            parts |= held(stage, features, mel)
    if not keep_book:
        parts |= quantised_losses(stage, features.float(), batch, lexicon, continuous)
    loop.step({name: part.float() for name, part in parts.items()})


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--state", type=Path, required=True)
    parser.add_argument("--minutes", type=float, default=35.0)
    parser.add_argument("--rows", type=int, default=32)
    parser.add_argument("--check-every", type=int, default=500)
    parser.add_argument("--keep-book", action="store_true", help="after train.start: codebook 1 stays")
    device_option(parser)
    parser.add_argument("--feeders", type=int, default=0, help="processes that make batches; 0: none")
    chosen = parser.parse_args()
    prepare(2, chosen.device)
    train(chosen.state, chosen.minutes, chosen.rows, chosen.check_every, chosen.keep_book, chosen.feeders)


if __name__ == "__main__":
    main()
