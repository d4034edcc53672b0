"""Prompts: what a persona's call has lived through before its first frame (PersonaPlex).

Voice frames, half a second of silence, the text prompt one token a frame, silence again; all the while the
caller is a steady tone. Every token is given, so a prompt is run through the temporal transformer in
chunks, without logits or depth steps. The layout of tokens follows NVIDIA personaplex
moshi/models/lm.py `prepare_step_input`: what step n is given stands at n + delay of its stream.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from engine.model.config import LMConfig
from engine.voices import Voice

SILENCE_FRAMES = 6
SILENCE = (948, 243, 1178, 546, 1736, 1030, 1978, 2008)
SINE = (430, 1268, 381, 1611, 1095, 1495, 56, 472)
"""Mimi's tokens of silence and of a 440 Hz tone (NVIDIA's constants)."""


@dataclass(frozen=True, slots=True)
class Carrier:
    """The codec's tokens a prompt is spoken over."""

    silence: Tensor
    """(dep_q,) int64: the agent's stream."""
    tone: Tensor
    """(n_q - dep_q,) int64: the caller's stream."""


@dataclass(frozen=True, slots=True)
class Prompt:
    """A prompt ready to run: `frames` positions are prefilled, the one after is the slot's first step.

    That first step hears `tone` still and gives the agent's first free tokens; then the caller is heard.
    """

    tokens: Tensor
    """(n_q + 1, frames + 1 + max_delay) int64 by position, on the CPU; column p is read at frame p."""
    frames: int
    embeddings: Tensor | None
    """(T, dim): the model's inputs of the first T frames, in place of those of their tokens."""


def wrap_text(text: str) -> str:
    """`<system> … <system>`, as PersonaPlex was trained (its server.py `wrap_with_system_tags`)."""
    cleaned = text.strip()
    if cleaned.startswith("<system>") and cleaned.endswith("<system>"):
        return cleaned
    return f"<system> {cleaned} <system>"


def build_prompt(config: LMConfig, carrier: Carrier, voice: Voice | None, text: list[int]) -> Prompt:
    """The prompt of a voice (or none) and text tokens (or none)."""
    start, embeddings = 0, None
    spoken: list[tuple[int, Tensor]] = []
    padding = config.existing_text_padding_id
    if voice is not None and voice.codes is not None:
        spoken += [(padding, codes) for codes in voice.codes]
    elif voice is not None and voice.embeddings is not None:
        embeddings = voice.embeddings
        start = embeddings.shape[0] + 1
    silence = [(padding, carrier.silence)] * SILENCE_FRAMES
    spoken += silence
    if text:
        spoken += [(token, carrier.silence) for token in text] + silence
    tokens = _lay_out(config, carrier, spoken, start)
    if voice is not None and voice.cache is not None:
        _lay_ring(config, voice.cache, tokens, start)
    return Prompt(tokens, start + len(spoken) - 1, embeddings)


def _lay_out(config: LMConfig, carrier: Carrier, spoken: list[tuple[int, Tensor]], start: int) -> Tensor:
    length = start + len(spoken) + config.max_delay
    tokens = torch.full((config.n_q + 1, length), config.card)
    tokens[0] = config.text_card
    for n, (text, codes) in enumerate(spoken, start):
        given = torch.cat((torch.tensor([text]), codes, carrier.tone))
        for stream, delay in enumerate(config.delays):
            if n + delay > delay:  # position 0 and the delayed streams' first are the initial tokens
                tokens[stream, n + delay] = given[stream]
    return tokens


def _lay_ring(config: LMConfig, cache: Tensor, tokens: Tensor, start: int) -> None:
    """What the voice's last frames left for the positions that are read after them."""
    ring = cache.shape[1]
    for stream, delay in enumerate(config.delays):
        for position in range(max(1, start - 1), start + delay):
            tokens[stream, position] = cache[stream, position % ring]
