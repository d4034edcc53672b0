"""TinyCodec: the small streaming codec of the embedded demo model, 24 kHz <-> 8 codes a frame, on a CPU.

Log-mel front (window 960, hop 240) -> two causal ConvNeXt towers (Liu et al. 2022) with three stride-2
convolutions -> 12.5 Hz. The semantic tower sees 100 to 3,800 Hz only and gives codebook 1, which training
supervises with words and intents; the acoustic tower gives the residual codebooks 2 to 8 (split RVQ as in
Mimi, Défossez et al. 2024), from which alone the decoder speaks. It predicts magnitude and phase of an
inverse STFT (Vocos, Siuzdak 2023) and is 720 samples (30 ms) late. With `meanings`, a recurrent network over
the semantic tower says after each frame what the caller means, and that takes the place of the last code of
what is heard. A language model that reads no acoustic code of a caller, as the embedded one, says so
(`listen_for`), and that tower rests. Trained by train/codec.py and
train/semantic.py; it knows no language model.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor, nn
from torch.nn import functional

from engine.model.codec import SlotState, register_codec
from engine.model.streaming import Carry, SlotArena
from engine.weights import CheckpointError

RATE = 24_000
FRAME = 1_920
WINDOW = 960
HOP = 240
STEPS = FRAME // HOP
DELAY = WINDOW - HOP
"""Samples the decoder is late."""
FLOOR = 1e-4
"""Amplitude added to every mel band: -80 dBFS, so that exact zeros are a value like another."""


@dataclass(frozen=True, slots=True)
class TinyCodecConfig:
    """The `codec` section of config.json without its `type`."""

    card: int = 512
    code_dim: int = 64
    codebooks: int = 8
    semantic_bands: int = 40
    semantic_widths: tuple[int, int, int] = (128, 192, 256)
    semantic_depths: tuple[int, int, int] = (2, 3, 3)
    acoustic_bands: int = 64
    acoustic_widths: tuple[int, int, int] = (96, 128, 128)
    acoustic_depths: tuple[int, int, int] = (1, 1, 1)
    decoder_width: int = 192
    decoder_depths: tuple[int, int] = (2, 5)
    meanings: int = 0
    """Things a caller can mean, the last of which is `not understood`; 0: the codec has no such part."""
    meaning_width: int = 192

    @classmethod
    def read(cls, raw: dict[str, Any], label: str) -> TinyCodecConfig:
        """Raises CheckpointError for an unknown key."""
        raw = {
            key: tuple(value) if isinstance(value, list) else value
            for key, value in raw.items()
            if key != "type"
        }
        try:
            return cls(**raw)
        except TypeError as error:
            raise CheckpointError(f"{label}: not a tiny codec configuration ({error})") from error

    def to_json(self) -> dict[str, Any]:
        return {"type": "tiny", **asdict(self)}


class CausalConv(nn.Module):
    """Conv1d that sees no later sample; streaming carries the `kernel - stride` last inputs."""

    def __init__(self, inputs: int, outputs: int, kernel: int, stride: int = 1, groups: int = 1) -> None:
        super().__init__()
        self.conv = nn.Conv1d(inputs, outputs, kernel, stride, groups=groups)
        self.inputs, self.past = inputs, kernel - stride
        self.field = -1

    def forward(self, x: Tensor, carry: Carry | None = None) -> Tensor:  # (B, inputs, T)
        if carry is None:
            x = functional.pad(x, (self.past, 0))
        else:
            x = torch.cat([carry.get(self.field), x], -1)
            carry.put(self.field, x[..., x.shape[-1] - self.past :])
        out: Tensor = self.conv(x)
        return out


class Block(nn.Module):
    """Depthwise causal convolution, then a pointwise network, scaled and added."""

    def __init__(self, width: int, kernel: int, expansion: int) -> None:
        super().__init__()
        self.depthwise = CausalConv(width, width, kernel, groups=width)
        self.norm = nn.LayerNorm(width)
        self.up = nn.Linear(width, expansion * width)
        self.down = nn.Linear(expansion * width, width)
        self.scale = nn.Parameter(torch.full((width,), 0.1))

    def forward(self, x: Tensor, carry: Carry | None = None) -> Tensor:  # (B, width, T)
        y = self.norm(self.depthwise(x, carry).transpose(1, 2))
        y = self.down(functional.gelu(self.up(y))) * self.scale
        out: Tensor = x + y.transpose(1, 2)
        return out


class Tower(nn.Module):
    """Mel bands at 100 Hz -> `code_dim` at 12.5 Hz."""

    def __init__(self, bands: int, widths: tuple[int, ...], depths: tuple[int, ...], out: int) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        for inputs, width, depth in zip((bands, *widths), widths, depths, strict=False):
            layers.append(CausalConv(inputs, width, 4, 2))
            layers += [
                Block(width, 7 if width != widths[-1] or len(layers) < 3 else 5, 2) for _ in range(depth)
            ]
        self.layers = nn.ModuleList(layers)
        self.norm = nn.LayerNorm(widths[-1])
        self.out = nn.Linear(widths[-1], out)

    def forward(self, mel: Tensor, carry: Carry | None = None) -> Tensor:  # (B, T, bands) -> (B, T/8, out)
        out: Tensor = self.out(self.features(mel, carry))
        return out

    def features(self, mel: Tensor, carry: Carry | None = None) -> Tensor:
        """(B, T, bands) -> (B, T/8, last width), what `out` projects."""
        x = mel.transpose(1, 2)
        for layer in self.layers:
            x = layer(x, carry)
        normed: Tensor = self.norm(x.transpose(1, 2))
        return normed


class Meaning(nn.Module):
    """The semantic tower's features -> what the caller means: 0 nothing yet, k the k-th meaning."""

    floors: Tensor
    """(meanings + 1,) the least probability at which a meaning is believed (train/calibrate.py)."""

    def __init__(self, inputs: int, width: int, meanings: int) -> None:
        super().__init__()
        self.width, self.unsure = width, meanings
        self.recurrent = nn.GRU(inputs, width, batch_first=True)
        self.head = nn.Linear(width, meanings + 1)
        self.register_buffer("floors", torch.zeros(meanings + 1))
        self.field = -1

    def forward(self, features: Tensor, carry: Carry | None = None) -> Tensor:
        """(B, T, inputs) -> codes (B, T)."""
        past = None if carry is None else carry.get(self.field)[None].contiguous()  # as cuDNN wants it
        hidden, last = self.recurrent(features, past)
        if carry is not None:
            carry.put(self.field, last[0])
        return self.chosen(self.head(hidden))

    def chosen(self, logits: Tensor) -> Tensor:
        """(…, meanings + 1) -> the likeliest, or `not understood` where it is less likely than its floor."""
        sure, best = logits.softmax(-1).max(-1)
        return torch.where(sure < self.floors[best], self.unsure, best)


def mel_bank(
    bands: int, low: float, high: float, bins: int = WINDOW // 2 + 1, top: float = RATE / 2
) -> Tensor:
    """(bins, bands) triangles on the mel scale over `bins` from 0 to `top` Hz, each of unit sum."""
    low_mel, high_mel = (2595 * torch.log10(torch.tensor(1 + hz / 700)) for hz in (low, high))
    points = 700 * (10 ** (torch.linspace(float(low_mel), float(high_mel), bands + 2) / 2595) - 1)
    hz = torch.linspace(0, top, bins)[:, None]
    left, middle, right = points[:-2], points[1:-1], points[2:]
    bank = torch.minimum((hz - left) / (middle - left), (right - hz) / (right - middle)).clamp(min=0)
    return bank / bank.sum(0).clamp(min=1e-6)


def log_mel(magnitude: Tensor, bank: Tensor) -> Tensor:
    """Magnitudes in amplitude units -> log10, shifted so that speech lies around 0."""
    return torch.log10(magnitude @ bank + FLOOR) + 2.5


class TinyNet(nn.Module):
    """All tensors of the codec. Full passes have zero history; with a Carry they continue it."""

    window: Tensor
    semantic_bank: Tensor
    acoustic_bank: Tensor
    codebook: Tensor
    """(codebooks, card, code_dim): entry 0 the semantic one, 1… the residual ones."""

    def __init__(self, config: TinyCodecConfig = TinyCodecConfig()) -> None:
        super().__init__()
        self.config = c = config
        self.register_buffer("window", torch.hann_window(WINDOW), persistent=False)
        self.register_buffer("semantic_bank", mel_bank(c.semantic_bands, 100, 3_800), persistent=False)
        self.register_buffer("acoustic_bank", mel_bank(c.acoustic_bands, 0, 12_000), persistent=False)
        self.register_buffer("codebook", torch.randn(c.codebooks, c.card, c.code_dim) * 0.1)
        self.semantic = Tower(c.semantic_bands, c.semantic_widths, c.semantic_depths, c.code_dim)
        self.acoustic = Tower(c.acoustic_bands, c.acoustic_widths, c.acoustic_depths, c.code_dim)
        self.decoder = Decoder(c)
        self.meaning = Meaning(c.semantic_widths[-1], c.meaning_width, c.meanings) if c.meanings else None
        self.samples_field = -1

    def magnitudes(self, pcm: Tensor, carry: Carry | None = None) -> Tensor:
        """(B, n * 240) -> (B, n, 481): spectra of windows that end with each hop."""
        if carry is None:
            pcm = functional.pad(pcm, (DELAY, 0))
        else:
            pcm = torch.cat([carry.get(self.samples_field), pcm], -1)
            carry.put(self.samples_field, pcm[:, -DELAY:])
        spectra = torch.fft.rfft(pcm.unfold(-1, WINDOW, HOP) * self.window)
        out: Tensor = spectra.abs() * (4 / WINDOW)
        return out

    def encode(self, pcm: Tensor, carry: Carry | None = None, residual: bool = True) -> Tensor:
        """(B, n * 1920) -> codes (B, n, codebooks) of a caller, the last the meaning if it is known.

        residual: with the codes of the acoustic tower, which is not asked otherwise; they are 0 then.
        """
        magnitude = self.magnitudes(pcm, carry)
        features = self.semantic.features(log_mel(magnitude, self.semantic_bank), carry)
        if residual:
            codes = self._codes(magnitude, features, carry)
        else:
            first = nearest(self.semantic.out(features), self.codebook[0])
            codes = [first, *[torch.zeros_like(first)] * (self.config.codebooks - 1)]
        if self.meaning is not None:
            codes[-1] = self.meaning(features, carry)
        return torch.stack(codes, -1)

    def encode_agent(self, pcm: Tensor) -> Tensor:
        """(B, n * 1920) -> codes (B, n, codebooks) as `decode` speaks them."""
        magnitude = self.magnitudes(pcm)
        features = self.semantic.features(log_mel(magnitude, self.semantic_bank))
        return torch.stack(self._codes(magnitude, features, None), -1)

    def _codes(self, magnitude: Tensor, features: Tensor, carry: Carry | None) -> list[Tensor]:
        residual = self.acoustic(log_mel(magnitude, self.acoustic_bank), carry)
        codes = [nearest(self.semantic.out(features), self.codebook[0])]
        for level in range(1, self.config.codebooks):
            codes.append(nearest(residual, self.codebook[level]))
            residual = residual - self.codebook[level][codes[-1]]
        return codes

    def decode(self, codes: Tensor, carry: Carry | None = None) -> Tensor:
        """Codes (B, n, codebooks) -> (B, n * 1920), `DELAY` samples late."""
        levels = range(1, self.config.codebooks)
        vectors = torch.stack([self.codebook[level][codes[..., level]] for level in levels]).sum(0)
        out: Tensor = self.decoder(vectors, carry)
        return out


class Decoder(nn.Module):
    """Code vectors at 12.5 Hz -> magnitude and phase at 100 Hz -> overlap-added samples."""

    window: Tensor

    def __init__(self, config: TinyCodecConfig) -> None:
        super().__init__()
        width, (slow, fast) = config.decoder_width, config.decoder_depths
        self.register_buffer("window", torch.hann_window(WINDOW), persistent=False)
        self.inputs = nn.Linear(config.code_dim, width)
        self.first = CausalConv(width, width, 3)
        self.slow = nn.ModuleList([Block(width, 5, 3) for _ in range(slow)])
        self.up = nn.Linear(width, STEPS * width)
        self.fast = nn.ModuleList([Block(width, 7, 3) for _ in range(fast)])
        self.norm = nn.LayerNorm(width)
        self.head = nn.Linear(width, 2 * (WINDOW // 2 + 1))
        self.tail_field = -1

    def forward(self, vectors: Tensor, carry: Carry | None = None) -> Tensor:
        x = self.inputs(vectors).transpose(1, 2)
        x = self.first(x, carry)
        for block in self.slow:
            x = block(x, carry)
        batch, width, frames = x.shape
        x = self.up(x.transpose(1, 2)).reshape(batch, frames * STEPS, width).transpose(1, 2)
        for block in self.fast:
            x = block(x, carry)
        log_magnitude, phase = self.head(self.norm(x.transpose(1, 2))).float().chunk(2, -1)
        return self._overlap_add(torch.polar(torch.exp(log_magnitude.clamp(max=6)), phase), carry)

    def _overlap_add(self, spectra: Tensor, carry: Carry | None) -> Tensor:
        pieces = torch.fft.irfft(spectra, WINDOW) * (self.window * 0.5)  # (B, n, 960)
        count = pieces.shape[1]
        length = (count - 1) * HOP + WINDOW
        summed = functional.fold(pieces.transpose(1, 2), (1, length), (1, WINDOW), stride=(1, HOP))[:, 0, 0]
        if carry is not None:
            summed = torch.cat([summed[:, :DELAY] + carry.get(self.tail_field), summed[:, DELAY:]], -1)
            carry.put(self.tail_field, summed[:, -DELAY:])
        return summed[:, : count * HOP]


def nearest(x: Tensor, book: Tensor) -> Tensor:
    """Index of the closest row of book (card, dim) for each vector of x (..., dim)."""
    return (x @ book.T * 2 - (book * book).sum(-1)).argmax(-1)


class TinyCodec:
    """The Codec protocol over a TinyNet."""

    def __init__(self, net: TinyNet, device: torch.device) -> None:
        self.net = net.to(device).eval().requires_grad_(False)
        self.device = device
        self.codebooks, self.card = net.config.codebooks, net.config.card
        self._heard, self._spoken = SlotArena(), SlotArena()
        net.samples_field = self._heard.add(DELAY)
        if net.meaning is not None:
            net.meaning.field = self._heard.add(net.meaning.width)
        net.decoder.tail_field = self._spoken.add(DELAY)
        for arena, towers in ((self._heard, (net.semantic, net.acoustic)), (self._spoken, (net.decoder,))):
            for tower in towers:
                for module in tower.modules():
                    if isinstance(module, CausalConv):
                        module.field = arena.add(module.inputs, module.past)

        self._residual = True
        first = net.acoustic.layers[0]
        assert isinstance(first, CausalConv)
        self._acoustic_fields = first.field  # and all after it in that arena

    def listen_for(self, codes: Collection[int]) -> None:
        meaning = self.codebooks - 1 if self.net.meaning is not None else None
        self._residual = any(code not in (0, meaning) for code in codes)

    def allocate(self, slots: int, history: int = 0) -> None:
        self._heard.allocate(slots, history, self.device)
        self._spoken.allocate(slots, history, self.device)

    def reset(self, slots: list[int]) -> None:
        self._heard.reset(slots)
        self._spoken.reset(slots)

    @torch.inference_mode()
    def encode_step(self, pcm: Tensor, rows: Tensor) -> Tensor:
        carry = self._heard.take(rows)
        codes = self.net.encode(pcm, carry, self._residual)[:, 0]
        if not self._residual:
            carry.leave(self._acoustic_fields)
        self._heard.keep(rows, carry)
        return codes

    @torch.inference_mode()
    def decode_step(self, codes: Tensor, rows: Tensor) -> Tensor:
        carry = self._spoken.take(rows)
        pcm = self.net.decode(codes.clamp(min=0)[:, None], carry)
        self._spoken.keep(rows, carry)
        return pcm

    def snapshot(self, slot: int) -> SlotState:
        sides = {"heard": self._heard, "spoken": self._spoken}
        return {
            f"{side}.{name}": tensor
            for side, arena in sides.items()
            for name, tensor in arena.snapshot(slot).items()
        }

    def restore(self, slot: int, state: SlotState) -> None:
        for side, arena in (("heard", self._heard), ("spoken", self._spoken)):
            arena.restore(slot, {name: state[f"{side}.{name}"] for name in ("state", "steps")})

    def rewind(self, slot: int, encoder_steps: int, decoder_steps: int) -> None:
        self._heard.rewind(slot, encoder_steps)
        self._spoken.rewind(slot, decoder_steps)


def load_tiny_codec(path: Path, section: dict[str, Any], codebooks: int, device: torch.device) -> TinyCodec:
    """Read the weights file. Raises CheckpointError for tensors that are missing, extra or misshapen."""
    config = TinyCodecConfig.read(section, str(path))
    if codebooks > config.codebooks:
        raise CheckpointError(
            f"{path}: has {config.codebooks} codebooks, the language model uses {codebooks}"
        )
    net = TinyNet(config)
    tensors = {name: tensor.float() for name, tensor in load_file(path).items()}
    try:
        net.load_state_dict(tensors)
    except RuntimeError as error:
        raise CheckpointError(f"{path}: not the weights of this tiny codec: {error}") from error
    return TinyCodec(net, device)


def register() -> None:
    """Make `"codec": {"type": "tiny"}` loadable."""
    register_codec("tiny", load_tiny_codec)
