"""Sounds: what happens to a caller's voice before the engine hears it, and what is heard when nobody speaks.

Everything is 8 kHz float32 in torch. Random choices come from the generators of `random` and torch.
"""

from __future__ import annotations

import math
import random

import torch
from torch import Tensor
from torch.nn import functional

RATE = 8_000


def moved(pcm: Tensor, factor: float) -> Tensor:
    """Pitch, formants and speed up by `factor`."""
    count = max(8, int(len(pcm) / factor))
    return functional.interpolate(pcm[None, None], size=count, mode="linear", align_corners=True)[0, 0]


def coloured_noise(shape: tuple[int, int], tilt: float) -> Tensor:
    """(B, n) Gaussian noise of unit power whose spectrum falls with frequency ** tilt."""
    spectrum = torch.fft.rfft(torch.randn(shape))
    curve = torch.arange(1, spectrum.shape[-1] + 1).float() ** -tilt
    noise = torch.fft.irfft(spectrum * curve, shape[1])
    return noise / (noise.std() + 1e-9)


def through_a_phone(pcm: Tensor) -> Tensor:
    """(B, n): a random smooth response and, for most rows, a random telephone band."""
    rows, count = pcm.shape
    spectrum = torch.fft.rfft(pcm)
    hz = torch.linspace(0, RATE / 2, spectrum.shape[-1])
    knots = torch.randn(rows, 1, 6) * 0.3
    curve = torch.exp(functional.interpolate(knots, size=len(hz), mode="linear", align_corners=True)[:, 0])
    low = torch.where(torch.rand(rows, 1) < 0.7, 80 + 270 * torch.rand(rows, 1), torch.zeros(rows, 1))
    high = 3_250 + 650 * torch.rand(rows, 1)
    band = torch.sigmoid((hz - low) / 15) * torch.sigmoid((high - hz) / 40)
    band = torch.where(low > 0, band, torch.sigmoid((high + 300 - hz) / 40))
    return torch.fft.irfft(spectrum * curve * band, count)


def companded(pcm: Tensor) -> Tensor:
    """G.711 µ-law and back (ITU-T G.711), as a curve with 255 levels."""
    squeezed = torch.sign(pcm) * torch.log1p(255 * pcm.abs().clamp(max=1)) / math.log(256)
    squeezed = torch.round(squeezed * 127) / 127
    return torch.sign(squeezed) * (torch.exp(squeezed.abs() * math.log(256)) - 1) / 255


def cough(rng: random.Random) -> Tensor:
    """A burst of filtered noise of 60 to 400 ms, or a tone or two: a sound with no word in it."""
    count = int(RATE * rng.uniform(0.06, 0.4))
    time = torch.arange(count) / RATE
    if rng.random() < 0.3:
        tones = [torch.sin(2 * math.pi * rng.uniform(300, 1800) * time) for _ in range(rng.randint(1, 2))]
        return torch.stack(tones).mean(0)
    burst = coloured_noise((1, count), rng.uniform(0, 0.8))[0] * torch.exp(-time * rng.uniform(4, 30))
    return burst / (burst.abs().max() + 1e-9)


def phone_line(pcm: Tensor, rng: random.Random) -> Tensor:
    """(B, n) clean speech -> what arrives: response, level, noise of 14 to 45 dB below speech, companding.

    A tenth of the rows keep exact zeros where nobody speaks (an IP phone's silence suppression).
    """
    silent = pcm.abs() < 1e-5
    rows = len(pcm)
    heard = through_a_phone(pcm)
    level = heard.square().sum(1, keepdim=True) / (~silent).sum(1, keepdim=True).clamp(min=800)
    snr = 10 ** (-(14 + 31 * torch.rand(rows, 1)) / 20)
    noise = torch.randn(pcm.shape)
    some = rows // 3
    noise[:some] = coloured_noise((some, pcm.shape[1]), rng.choice((0.3, 0.6)))
    heard = heard + noise * level.sqrt().clamp(min=1e-3) * snr
    gated = torch.rand(rows, 1) < 0.1
    heard = torch.where(gated & silent, torch.zeros(()), heard)
    heard = heard * 10 ** ((torch.rand(rows, 1) * 22 - 14) / 20)
    return torch.where(torch.rand(rows, 1) < 0.5, companded(heard), heard)
