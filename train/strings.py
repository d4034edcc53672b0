"""Strings: sounds turned into the codec's codes, the material that train/dialogue.py splices calls from."""

from __future__ import annotations

import io
import math
import random
from collections.abc import Iterator

import numpy as np
import sentencepiece
import torch
from torch import Tensor

from engine.model.tiny_codec import FRAME, TinyNet, nearest
from train import receptionist as script
from train import sounds
from train.callers import HOP, Callers
from train.data import AgentStore, CallerStore, Line
from train.dialogue import EPAD, PAD, AgentLine, Codes, Heard, Strings
from train.loop import here
from train.semantic import Features

LEAD_FRAMES = 25
"""Silence the agent's lines are encoded behind: longer than the encoder's memory."""
BACKGROUND_FRAMES = 160
WORD_SEPARATOR = "▁"


def write_tokenizer(texts: list[str]) -> bytes:
    """A sentencepiece model whose pieces are whole words of the agent's lines and the two event tokens.

    Ids as in Kyutai's: 0 end of padding (unknown), 1, 2, 3 padding.
    """
    words = sorted({word for text in texts for word in text.split()})
    model = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(words * 2), model_writer=model, model_type="word", vocab_size=len(words) + 6,
        user_defined_symbols=[script.TRANSFER_TOKEN, script.HANGUP_TOKEN], use_all_vocab=True,
        unk_id=0, bos_id=1, eos_id=2, pad_id=3, character_coverage=1.0, normalization_rule_name="identity",
        minloglevel=2, num_threads=1,
    )  # fmt: skip
    return model.getvalue()


class Ear:
    """The semantic half of a codec over 8 kHz audio, and the whole of it over the agent's lines."""

    def __init__(self, net: TinyNet) -> None:
        self.net = net.eval().requires_grad_(False)
        self.features = Features(net.config.semantic_bands)

    @torch.no_grad()
    def caller(self, pcm: Tensor) -> Codes:
        """(B, n * 640) at 8 kHz -> codebook 1 (B, n)."""
        vectors = self.net.semantic(self.features(pcm))
        return nearest(vectors, self.net.codebook[0]).cpu().numpy().astype(np.int16)

    @torch.no_grad()
    def agent(self, pcm: Tensor) -> Codes:
        """(n,) at 24 kHz behind LEAD_FRAMES of silence -> (frames + 1, 8)."""
        frames = math.ceil(len(pcm) / FRAME) + 1
        padded = torch.zeros(1, (LEAD_FRAMES + frames) * FRAME)
        padded[0, LEAD_FRAMES * FRAME :][: len(pcm)] = pcm
        return self.net.encode_agent(padded)[0, LEAD_FRAMES:].cpu().numpy().astype(np.int16)


def agent_line(
    ear: Ear, store: AgentStore, line: Line, tokens: sentencepiece.SentencePieceProcessor
) -> AgentLine:
    """Codes of a line and its words on the frames they begin in."""
    codes = ear.agent(here(store.pcm(line)))
    text = np.full(len(codes), PAD, np.int16)
    free = 0
    for word, start in zip(line.text.split(), line.starts, strict=True):
        frame = min(max(int(start / 0.08), free), len(codes) - 1)
        if frame > free and text[frame - 1] == PAD:
            text[frame - 1] = EPAD
        text[frame] = tokens.PieceToId(WORD_SEPARATOR + word)
        free = frame + 1
    event = script.EVENTS.get(line.name)
    return AgentLine(line.name, codes, text, tokens.PieceToId(event) if event else None)


class StringMaker:
    """Makes and refreshes Strings."""

    def __init__(
        self,
        ear: Ear,
        callers: CallerStore,
        agent: AgentStore,
        tokens: sentencepiece.SentencePieceProcessor,
        seed: int,
    ) -> None:
        self.ear, self.rng = ear, random.Random(seed)
        self.agent = agent
        self.batches = iter(Callers(callers, agent, 48, seed))
        silence = ear.agent(torch.zeros(FRAME * 4))[2]
        lines = {name: agent_line(ear, agent, line, tokens) for name, line in agent.lines.items()}
        self.strings = Strings(
            lines, silence, [[] for _ in script.INTENTS], [], [], {name: [] for name in lines}
        )

    def fill(self, utterances: int, backgrounds: int, coughs: int, echoes: int) -> Strings:
        """Add that many of each (echoes: of each line); returns the strings."""
        for _ in range(math.ceil(utterances / 48)):
            self.hear()
        self.strings.backgrounds += self._backgrounds(backgrounds)
        self.strings.coughs += self._coughs(coughs)
        for name, line in self.agent.lines.items():
            pcm = here(self.agent.pcm(line)[::3])
            self.strings.echoes[name] += self._echoes(pcm, echoes)
        return self.strings

    def hear(self, keep: int = 1500) -> None:
        """Encode a fresh batch of callers; past `keep` strings an intent forgets one for each new."""
        for heard in self._heard():
            group = self.strings.utterances[heard.intent]
            if len(group) < keep:
                group.append(heard)
            else:
                group[self.rng.randrange(keep)] = heard

    def _heard(self) -> Iterator[Heard]:
        batch = next(self.batches)
        codes = self.ear.caller(batch.pcm)
        for row, said in enumerate(batch.said):
            if said is not None:
                start, end = batch.starts[row] // HOP, (batch.ends[row] - HOP // 6) // HOP
                yield Heard(codes[row], start, end, said.intent)

    def _backgrounds(self, count: int) -> list[Codes]:
        levels = [
            0.0 if self.rng.random() < 0.25 else 10 ** (self.rng.uniform(-75, -28) / 20) for _ in range(count)
        ]
        tilts = [self.rng.choice((0.0, 0.3, 0.6)) for _ in range(count)]
        shape = (1, BACKGROUND_FRAMES * HOP)
        pcm = torch.cat(
            [level * sounds.coloured_noise(shape, tilt) for level, tilt in zip(levels, tilts, strict=True)]
        )
        pcm[::2] = sounds.companded(pcm[::2])
        pcm[::3] = sounds.through_a_phone(pcm[::3])
        return list(self.ear.caller(pcm))

    def _coughs(self, count: int) -> list[Codes]:
        pcm = torch.randn(count, 14 * HOP) * 10 ** (-self.rng.uniform(35, 70) / 20)
        for row in pcm:
            burst = sounds.cough(self.rng) * self.rng.uniform(0.02, 0.4)
            at = self.rng.randint(0, 6 * HOP)
            row[at : at + len(burst)] += burst
        return list(self.ear.caller(pcm))

    def _echoes(self, line: Tensor, count: int) -> list[Codes]:
        pcm = torch.zeros(count, (math.ceil(len(line) / HOP) + 2) * HOP)
        for row in pcm:
            at = self.rng.randint(0, HOP)
            row[at : at + len(line)] = line * 10 ** (-self.rng.uniform(12, 35) / 20)
        noise = 10 ** (-(40 + 35 * torch.rand(count, 1)) / 20)
        return list(self.ear.caller(sounds.through_a_phone(pcm) + noise * torch.randn_like(pcm)))
