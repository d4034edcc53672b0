"""The acoustic half of the tiny codec: residual codebooks and decoder, trained on the agent's voice.

    python -m train.codec --state DIR --stage acoustic --minutes 15 # tower, codebooks 2-8, decoder
    python -m train.codec --state DIR --stage decoder --minutes 20  # the decoder alone

The second stage changes no code, so it may run while a language model is in use.
Only the agent is ever decoded, so her voice is nearly all the decoder learns.
"""

from __future__ import annotations

import argparse
import math
import random
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional

from engine.model.tiny_codec import DELAY, FRAME, TinyNet, log_mel, mel_bank, nearest
from train.data import AgentStore
from train.loop import Loop, adamw, device_option, halves, here, log, prepare
from train.rvq import RvqTrainer

FRAMES = 26
"""Length of one training excerpt: 2.1 s."""
CONTEXT = 8
"""Frames before an excerpt that the decoder sees and the loss does not."""
LEAD = 25
"""Frames of silence a line is encoded behind."""
BATCH = 8
RESOLUTIONS = ((512, 128, 40), (1024, 256, 64), (2048, 512, 80))


class SpectralLoss(nn.Module):
    """Log-mel, log-magnitude and spectral convergence distances at three resolutions."""

    def __init__(self) -> None:
        super().__init__()
        for size, _, bands in RESOLUTIONS:
            self.register_buffer(f"bank{size}", mel_bank(bands, 0, 12_000, bins=size // 2 + 1))
            self.register_buffer(f"window{size}", torch.hann_window(size))

    def forward(self, made: Tensor, wanted: Tensor) -> Tensor:
        total = made.new_zeros(())
        for size, hop, _ in RESOLUTIONS:
            window, bank = getattr(self, f"window{size}"), getattr(self, f"bank{size}")
            a = self._magnitudes(made, size, hop, window)
            with torch.no_grad():
                b = self._magnitudes(wanted, size, hop, window)
            mels = [torch.log10(x.transpose(1, 2) @ bank + 2e-5) for x in (a, b)]
            logs = [torch.log10(x + 2e-5) for x in (a, b)]
            total = total + 3 * functional.l1_loss(*mels) + 0.5 * functional.l1_loss(*logs)
            total = total + 0.5 * ((a - b) ** 2).sum().sqrt() / ((b**2).sum().sqrt() + 1e-2)
        return total / len(RESOLUTIONS)

    @staticmethod
    def _magnitudes(pcm: Tensor, size: int, hop: int, window: Tensor) -> Tensor:
        """(B, bins, frames) in amplitude units."""
        parts = torch.view_as_real(torch.stft(pcm, size, hop, size, window, return_complex=True))
        power = parts.square().sum(-1)
        return torch.sqrt(power + 1e-8) * (2 / window.sum())


class EnvelopeLoss(nn.Module):
    """1 - the correlation of third-octave envelopes over 384 ms, in a telephone's band.

    The measure of STOI (Taal et al. 2011) without its clipping, on windows that end with each hop: the rise
    and fall of each band is what makes speech intelligible, and distances of levels do not weigh it enough.
    """

    def __init__(self, size: int = 614, hop: int = 307, span: int = 30) -> None:
        super().__init__()
        self.size, self.hop, self.span = size, hop, span
        centres = 150 * 2 ** (torch.arange(14) / 3)
        hz = torch.linspace(0, 12_000, 513)[:, None]
        inside = (hz >= centres * 2 ** (-1 / 6)) & (hz < centres * 2 ** (1 / 6)) & (hz < 3_700)
        self.register_buffer("bank", inside.float())
        self.register_buffer("window", torch.hann_window(size))

    def forward(self, made: Tensor, wanted: Tensor) -> Tensor:
        a = self._spans(made)
        with torch.no_grad():
            b = self._spans(wanted)
        energy = b.square().sum((1, 3))  # (B, spans)
        a, b = (x - x.mean(-1, keepdim=True) for x in (a, b))
        likeness = (a * b).sum(-1) / (a.norm(dim=-1) * b.norm(dim=-1) + 1e-4)
        weight = (energy > 1e-3 * energy.max()).float()[:, None]
        return ((1 - likeness) * weight).sum() / (weight.sum() * likeness.shape[1]).clamp(min=1)

    def _spans(self, pcm: Tensor) -> Tensor:
        """(B, n) -> envelopes (B, bands, spans, frames of a span)."""
        parts = torch.stft(pcm, 1_024, self.hop, self.size, self.window, return_complex=True)
        power = torch.view_as_real(parts).square().sum(-1)
        bands = torch.sqrt(power.transpose(1, 2) @ self.bank + 1e-6).transpose(1, 2)
        return bands.unfold(-1, self.span, 5)


class AgentExcerpts:
    """Excerpts of the agent's stream: lines with silences around them, as the call will have them."""

    def __init__(self, store: AgentStore, seed: int) -> None:
        self.rng = random.Random(seed)
        lines = [store.pcm(line) for line in store.lines.values()]
        others = [store.samples[at : at + length] for at, length in store.others]
        self.lines, self.others = ([here(x) for x in group] for group in (lines, others))

    def batch(self) -> Tensor:
        return torch.stack([self._excerpt() for _ in range(BATCH)])

    def _excerpt(self) -> Tensor:
        size = FRAMES * FRAME
        line = self.rng.choice(self.others if self.rng.random() < 0.15 else self.lines)
        start = self.rng.randint(-size // 3, max(1, len(line) - size // 2))
        start -= start % FRAME if self.rng.random() < 0.7 else 0
        out = torch.zeros(size)
        part = line[max(0, start) : start + size]
        out[max(0, -start) : max(0, -start) + len(part)] = part
        return out


def aligned_loss(loss: nn.Module, made: Tensor, wanted: Tensor) -> Tensor:
    """The decoder is DELAY samples late: compare what overlaps."""
    out: Tensor = loss(made[:, DELAY:], wanted[:, : wanted.shape[1] - DELAY])
    return out


class AcousticStage(nn.Module):
    """What is saved: the whole net and the averages of codebooks 2 to 8."""

    def __init__(self, net: TinyNet) -> None:
        super().__init__()
        self.net = net
        self.rvq = RvqTrainer(net.codebook[1:])

    def forward(self, pcm: Tensor) -> tuple[Tensor, Tensor]:
        """(B, n) -> decoded (B, n), commitment."""
        mel = log_mel(self.net.magnitudes(pcm), self.net.acoustic_bank)
        keep = torch.where(torch.rand(len(pcm)) < 0.8, 7, torch.randint(2, 8, (len(pcm),)))
        detail, _, commitment = self.rvq(self.net.acoustic(mel), keep if self.training else None)
        return self.net.decoder(detail), commitment


def train_acoustic(state: Path, minutes: float, seed: int = 1) -> None:
    stage, loss, excerpts = AcousticStage(TinyNet()), SpectralLoss(), AgentExcerpts(AgentStore(state), seed)
    learnt = [*stage.net.acoustic.parameters(), *stage.net.decoder.parameters()]
    loop = Loop(
        state / "acoustic.pt",
        stage,
        adamw(learnt, (0.8, 0.99), 1e-3),
        minutes,
        1.5e-3,
    )
    while loop.running:
        pcm = excerpts.batch()
        made, commitment = stage(pcm)
        loop.step({"spectral": aligned_loss(loss, made, pcm), "commitment": 0.2 * commitment})
        if loop.steps % 100 == 0 or loop.steps == 10:
            loop.report()


def load_acoustic(state: Path) -> TinyNet:
    """The net of the acoustic stage; its semantic half is random."""
    kept = torch.load(state / "acoustic.pt", map_location="cpu", weights_only=True)["modules"]
    net = TinyNet()
    net.load_state_dict({name[4:]: tensor for name, tensor in kept.items() if name.startswith("net.")})
    return net


def spoken_vectors(net: TinyNet, pcm: Tensor) -> Tensor:
    """What the decoder will be given for (B, n) of the agent's voice: (B, n / 1920, dim)."""
    left = net.acoustic(log_mel(net.magnitudes(pcm), net.acoustic_bank))
    total = torch.zeros_like(left)
    for book in net.codebook[1:]:
        chosen = book[nearest(left, book)]
        left, total = left - chosen, total + chosen
    return total


class CodedLines:
    """Excerpts of (vectors, samples) as a call has them: each line encoded whole, behind silence.

    A tenth is cut: the vectors turn to silence in the middle of a word and so do the samples, as when
    the agent yields.
    """

    def __init__(self, net: TinyNet, store: AgentStore, seed: int) -> None:
        self.rng = random.Random(seed)
        canned = [store.pcm(line) for line in store.lines.values()]
        others = [store.samples[at : at + length] for at, length in store.others]
        self.canned, self.others = ([self._coded(net, pcm) for pcm in group] for group in (canned, others))
        self.silence = self.canned[0][0][LEAD - CONTEXT - 1]

    @torch.no_grad()
    def _coded(self, net: TinyNet, pcm: NDArray[np.float32]) -> tuple[Tensor, Tensor]:
        frames = max(math.ceil(len(pcm) / FRAME) + 3, FRAMES)
        samples = torch.zeros(1, (LEAD + frames) * FRAME)
        samples[0, LEAD * FRAME : LEAD * FRAME + len(pcm)] = here(pcm)
        vectors = spoken_vectors(net, samples)
        return vectors[0, LEAD - CONTEXT :], samples[0, (LEAD - CONTEXT) * FRAME :]

    def batch(self) -> tuple[Tensor, Tensor]:
        """(B, CONTEXT + FRAMES, dim) and (B, the same * 1920)."""
        parts = [self._excerpt() for _ in range(BATCH)]
        return torch.stack([part[0] for part in parts]), torch.stack([part[1] for part in parts])

    def _excerpt(self) -> tuple[Tensor, Tensor]:
        vectors, samples = self.rng.choice(self.others if self.rng.random() < 0.05 else self.canned)
        start = self.rng.randint(0, len(vectors) - CONTEXT - FRAMES)
        stop = start + CONTEXT + FRAMES
        vectors, samples = vectors[start:stop], samples[start * FRAME : stop * FRAME]
        if self.rng.random() < 0.1:
            cut = self.rng.randint(CONTEXT, CONTEXT + FRAMES - 2)
            vectors, samples = vectors.clone(), samples.clone()
            vectors[cut:], samples[cut * FRAME :] = self.silence, 0.0
        return vectors, samples


def train_decoder(state: Path, minutes: float, seed: int = 2) -> None:
    """Refine the decoder on the codes the language model will give."""
    net = load_acoustic(state)
    loss, envelopes, lines = SpectralLoss(), EnvelopeLoss(), CodedLines(net, AgentStore(state), seed)
    loop = Loop(
        state / "decoder.pt", net.decoder, adamw(net.decoder.parameters(), (0.8, 0.99), 1e-3), minutes, 1e-3
    )
    heard = slice(CONTEXT * FRAME, None)
    while loop.running:
        vectors, samples = lines.batch()
        with halves():
            made, wanted = net.decoder(vectors)[:, heard], samples[:, heard]
        loop.step(
            {
                "spectral": aligned_loss(loss, made, wanted),
                "envelopes": aligned_loss(envelopes, made, wanted),
            }
        )
        if loop.steps % 100 == 0 or loop.steps == 10:
            loop.report()


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--state", type=Path, required=True)
    parser.add_argument("--stage", choices=("acoustic", "decoder"), required=True)
    parser.add_argument(
        "--codec", type=Path, help="TinyNet state dict for --stage decoder (default STATE/codec.pt)"
    )
    parser.add_argument("--minutes", type=float, default=15.0)
    device_option(parser)
    chosen = parser.parse_args()
    prepare(1, chosen.device)
    if chosen.stage == "acoustic":
        train_acoustic(chosen.state, chosen.minutes)
    else:
        train_decoder(chosen.state, chosen.minutes)
    log.info("done")


if __name__ == "__main__":
    main()
