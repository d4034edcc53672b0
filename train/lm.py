"""The language model: trained on calls spliced on the fly, exported in Kyutai's layout.

    python -m train.lm --state DIR --codec DIR/codec.pt --minutes 25

Text and codes are Moshi's two losses; a third, the caller's meaning read from the hidden state after her
last word, hangs on a head that is thrown away. Of the caller's eight streams two have a table that is
not zero: codebook 1, and the last, the codec's meaning.
"""

from __future__ import annotations

import argparse
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import sentencepiece
import torch
from torch import Tensor, nn
from torch.nn import functional

from engine.model.config import LMConfig
from engine.model.tiny_codec import TinyNet
from train import receptionist as script
from train.data import AgentStore, CallerStore, agent_texts
from train.dialogue import EPAD, PAD, Call, Scriptwriter
from train.loop import Loop, adamw, device_option, halves, here, log, prepare
from train.semantic import CONFIG
from train.strings import Ear, StringMaker, write_tokenizer
from train.transformer import TrainedLM

FRAMES = 256
CODE_WEIGHTS = (3.0, 1.0, 1.0, 1.0, 0.8, 0.7, 0.6, 0.6)
NEIGHBOURS, NEIGHBOUR_SHARE, RANDOM_SHARE = 6, 0.25, 0.05
CALLER, MEANING = 8, 15
"""Indices of the caller's first and last stream among the code streams."""


READ = (*range(CALLER + 1), MEANING)
"""The code streams that are read."""


def tiny_config(text_card: int) -> LMConfig:
    """The embedded model's shape: 4.9 M parameters. The caller's codebooks 2 to 7 have zero tables."""
    return LMConfig(
        dim=192, num_heads=4, num_layers=4, context=160, text_card=text_card, card=512, n_q=16, dep_q=8,
        depformer_dim=64, depformer_dim_feedforward=264, depformer_num_heads=4, depformer_num_layers=2,
        delays=(0,) * 17,
    )  # fmt: skip


@dataclass(frozen=True, slots=True)
class Calls:
    """A batch of calls as tensors."""

    text: Tensor
    """(B, T) int64, the answer at each frame."""
    agent: Tensor
    """(B, T, 8)"""
    past_text: Tensor
    past_agent: Tensor
    """The same as the agent remembers it (train/dialogue.py `Call`)."""
    caller: Tensor
    """(B, T) codebook 1"""
    meaning: Tensor
    """(B, T) the last code"""
    learn: Tensor
    intent: Tensor
    speaking: Tensor
    worth: Tensor
    fresh: Tensor
    """(B,) True where frame 0 is the call's first."""
    before_text: Tensor
    """(B,) what the agent said in the frame before, for calls that are not fresh."""
    before_agent: Tensor

    @classmethod
    def of(cls, calls: list[Call], starts: list[int], frames: int) -> Calls:
        def cut(name: str) -> Tensor:
            parts = [getattr(call, name)[at : at + frames] for call, at in zip(calls, starts, strict=True)]
            stacked = here(np.stack(parts))
            return stacked if stacked.dtype == torch.bool else stacked.long()

        pairs = list(zip(calls, starts, strict=True))
        return cls(
            cut("text"), cut("agent"), cut("past_text"), cut("past_agent"), cut("caller"), cut("meaning"),
            cut("learn"), cut("intent"), cut("speaking"), cut("worth"),
            torch.tensor([at == 0 for at in starts]),
            torch.tensor([int(call.past_text[max(0, at - 1)]) for call, at in pairs]),
            here(np.stack([call.past_agent[max(0, at - 1)] for call, at in pairs])).long(),
        )  # fmt: skip

    def inputs(self, config: LMConfig) -> tuple[Tensor, Tensor]:
        """What the engine reads at each frame: its own last tokens, the caller's present ones.

        In a call's first frame every token is the initial one (engine/generation.py). Text (B, T) and
        codes (B, T, 10): the agent's eight, the caller's first and last.
        """
        text = torch.cat([self.before_text[:, None], self.past_text[:, :-1]], 1)
        codes = torch.cat([self.before_agent[:, None], self.past_agent[:, :-1]], 1)
        codes = torch.cat([codes, self.caller[..., None], self.meaning[..., None]], -1)
        text[self.fresh, 0] = config.text_card
        codes[self.fresh, 0] = config.card
        return text, codes


class LmStage(nn.Module):
    """What is saved: the model and the intent head."""

    def __init__(self, config: LMConfig, codec: TinyNet) -> None:
        super().__init__()
        self.lm = TrainedLM(config)
        self.intent = nn.Linear(config.dim, len(script.INTENTS))
        self.neighbours: Tensor
        distances = torch.cdist(codec.codebook[0], codec.codebook[0])
        closest = distances.argsort(1)[:, 1 : NEIGHBOURS + 1]
        self.register_buffer("neighbours", closest, persistent=False)
        with torch.no_grad():
            book = codec.codebook[0]
            book = (book - book.mean(0)) / (book.std() + 1e-6)
            self.lm.emb[CALLER].weight[: config.card] = (
                book @ torch.randn(book.shape[1], config.dim) * (0.25 / 8)
            )
            for table in self.lm.emb[CALLER + 1 : MEANING]:
                table.weight.zero_()


def misheard(codes: Tensor, neighbours: Tensor) -> Tensor:
    """The caller's codes with a quarter replaced by close ones and a twentieth by any.

    Without it the model learns the training voices' code strings by heart.
    """
    draw = torch.rand(codes.shape)
    which = torch.randint(0, neighbours.shape[1], codes.shape)
    close = neighbours[codes.clamp(max=len(neighbours) - 1), which]
    anything = torch.randint(0, len(neighbours), codes.shape)
    known = codes < len(neighbours)
    out = torch.where(known & (draw < NEIGHBOUR_SHARE), close, codes)
    return torch.where(known & (draw > 1 - RANDOM_SHARE), anything, out)


def losses(stage: LmStage, calls: Calls, share: float) -> dict[str, Tensor]:
    """Text, codes (on `share` of the frames with speech) and intent."""
    config = stage.lm.config
    text, codes = calls.inputs(config)
    codes[..., CALLER] = misheard(codes[..., CALLER], stage.neighbours)
    hidden = stage.lm.hidden(stage.lm.embed(text, codes, READ))
    weight = torch.where(calls.text == PAD, torch.where(calls.speaking, 0.3, 0.4), 1.0) * calls.learn
    each = functional.cross_entropy(
        stage.lm.text_linear(hidden).transpose(1, 2), calls.text, reduction="none"
    )
    chosen = torch.rand(weight.shape) < torch.where(calls.worth, share, share * 0.15)
    logits = stage.lm.code_logits(hidden[chosen], calls.text[chosen], calls.agent[chosen])
    said = functional.cross_entropy(logits.transpose(1, 2), calls.agent[chosen], reduction="none")
    levels = torch.tensor(CODE_WEIGHTS)
    meant = functional.cross_entropy(
        stage.intent(hidden).flatten(0, 1), calls.intent.flatten(), ignore_index=-1
    )
    return {"text": 2 * (each * weight).sum() / weight.sum(),
            "codes": (said * levels).mean(0).sum() / levels.sum(),
            "intent": 0.5 * meant}  # fmt: skip


@torch.no_grad()
def scores(stage: LmStage, calls: Calls) -> dict[str, float]:
    """Teacher-forced shares: words right, onsets right (first word of a line), codes right, intents right."""
    stage.eval()
    config = stage.lm.config
    hidden = stage.lm.hidden(stage.lm.embed(*calls.inputs(config), READ))
    found = stage.lm.text_linear(hidden).argmax(-1)
    words = (calls.text != PAD) & (calls.text != EPAD) & calls.learn
    onset = words & ~functional.pad(calls.speaking, (1, 0))[:, :-1]
    logits = stage.lm.code_logits(
        hidden[calls.speaking][:400], calls.text[calls.speaking][:400], calls.agent[calls.speaking][:400]
    )
    heard = calls.intent >= 0
    stage.train()
    return {
        "words": float((found == calls.text)[words].float().mean()),
        "onsets": float((found == calls.text)[onset].float().mean()),
        "false": float((found[calls.text == PAD] > PAD).float().mean()),
        "codes": float((logits.argmax(-1) == calls.agent[calls.speaking][:400]).float().mean()),
        "meant": float((stage.intent(hidden).argmax(-1) == calls.intent)[heard].float().mean()),
    }


def batch(writer: Scriptwriter, rows: int) -> Calls:
    """Half the calls from their start, half from somewhere in the middle."""
    calls, starts = [], []
    for _ in range(rows):
        late = 0 if writer.rng.random() < 0.5 else writer.rng.randint(20, 400)
        calls.append(writer.call(late + FRAMES))
        starts.append(late)
    return Calls.of(calls, starts, FRAMES)


def load_codec(path: Path) -> TinyNet:
    net = TinyNet(CONFIG)
    net.load_state_dict(torch.load(path, map_location="cpu", weights_only=True))
    return net


def tokenizer(state: Path) -> sentencepiece.SentencePieceProcessor:
    """The sentencepiece model of the agent's words, made on first use."""
    path = state / "tokenizer.model"
    if not path.exists():
        path.write_bytes(write_tokenizer([text for text, _ in agent_texts().values()]))
    return sentencepiece.SentencePieceProcessor(model_file=str(path))


def train(state: Path, codec: Path, minutes: float, rows: int, utterances: int, rate: float) -> None:
    net, tokens = load_codec(codec), tokenizer(state)
    ear, agent = Ear(net), AgentStore(state)
    maker = StringMaker(ear, CallerStore(state, "train"), agent, tokens, 1)
    checker = StringMaker(ear, CallerStore(state, "test"), agent, tokens, 2)
    writer = Scriptwriter(maker.fill(utterances, 120, 300, 8), 1)
    held_out = batch(Scriptwriter(checker.fill(900, 12, 20, 2), 2), 24)
    stage = LmStage(tiny_config(len(tokens)), net)
    learnt = [p for name, p in stage.named_parameters() if not _zero_table(name)]
    loop = Loop(state / "lm.pt", stage, adamw(learnt, (0.9, 0.95), 0.03), minutes, rate, clip=1.0)
    writer.rng.seed(loop.steps + 1)
    log.info("ready: %d frames of calls a step", rows * FRAMES)
    while loop.running:
        if loop.steps % 3 == 0:
            maker.hear()
        calls = batch(writer, rows)
        with halves():
            parts = losses(stage, calls, 0.2)
        loop.step({name: part.float() for name, part in parts.items()})
        if loop.steps % 50 == 0 or loop.steps == 5:
            loop.report()
        if loop.steps % 150 == 0 or not loop.running:
            loop.report(**scores(stage, held_out))


def _zero_table(name: str) -> bool:
    return any(name == f"lm.emb.{k}.weight" for k in range(CALLER + 1, MEANING))


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--state", type=Path, required=True)
    parser.add_argument("--codec", type=Path, help="TinyNet state dict (default STATE/codec.pt)")
    parser.add_argument("--minutes", type=float, default=25.0)
    parser.add_argument("--rows", type=int, default=12)
    parser.add_argument("--utterances", type=int, default=12_000)
    parser.add_argument("--rate", type=float, default=2.5e-3, help="half of it after train.start")
    device_option(parser)
    chosen = parser.parse_args()
    prepare(3, chosen.device)
    train(
        chosen.state,
        chosen.codec or chosen.state / "codec.pt",
        chosen.minutes,
        chosen.rows,
        chosen.utterances,
        chosen.rate,
    )


if __name__ == "__main__":
    main()
