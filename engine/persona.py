"""Casting: what a persona means to one model: its sampling, its seed and its prompt, or a refusal."""

from __future__ import annotations

import math
import secrets
from dataclasses import dataclass

import torch

from engine.api import EngineRefused, Persona
from engine.model.config import LMConfig
from engine.prefix import Key, prompt_key
from engine.prompt import Carrier, Prompt, build_prompt, wrap_text
from engine.text import Vocabulary
from engine.voices import Voice

DEFAULTS = {"temp": 0.8, "top_k": 250, "temp_text": 0.7, "top_k_text": 25}
"""Kyutai `LMGen`'s."""
MAX_TEMPERATURE = 5.0
MAX_PROMPT = 1_000
"""Text tokens of a prompt: each is a frame of context."""


@dataclass(frozen=True, slots=True)
class Cast:
    seed: int
    text: tuple[float, int]
    audio: tuple[float, int]
    """(temperature, top-k); temperature 0 is greedy."""
    key: Key | None


class Casting:
    """Voices are names of an allow-list; a caller never names a file."""

    def __init__(
        self,
        config: LMConfig,
        sampling: dict[str, float],
        voices: dict[str, Voice],
        vocabulary: Vocabulary,
        carrier: Carrier,
    ) -> None:
        self._config, self._voices, self._vocabulary, self.carrier = config, voices, vocabulary, carrier
        self._sampling = DEFAULTS | sampling
        self._prompts: dict[Key, Prompt] = {}

    def check(self, persona: Persona) -> None:
        """Raises EngineRefused saying what this model does not have or take."""
        if persona.voice is not None and persona.voice not in self._voices:
            known = ", ".join(sorted(self._voices)) or "none"
            raise EngineRefused(f"no voice of that name; this model has: {known}")
        for temperature in (persona.temperature, persona.text_temperature):
            if temperature is not None and not (
                math.isfinite(temperature) and 0 <= temperature <= MAX_TEMPERATURE
            ):
                raise EngineRefused(f"a temperature must be between 0 and {MAX_TEMPERATURE}")
        for top_k in (persona.top_k, persona.text_top_k):
            if top_k is not None and top_k < 0:
                raise EngineRefused("top-k must be 0 (all) or more")
        text = persona.text_prompt or ""
        if len(text) > 16 * MAX_PROMPT or len(self._vocabulary.encode(text)) > MAX_PROMPT:
            raise EngineRefused(f"the text prompt is longer than {MAX_PROMPT} tokens")

    def cast(self, persona: Persona) -> Cast:
        """Raises EngineRefused as `check`."""
        self.check(persona)
        given = self._sampling
        text = self._pair(
            persona.text_temperature, persona.text_top_k, given["temp_text"], given["top_k_text"]
        )
        audio = self._pair(persona.temperature, persona.top_k, given["temp"], given["top_k"])
        limits = (self._config.text_card_out or self._config.text_card, self._config.card)
        seed = secrets.randbits(62) if persona.seed is None else persona.seed % 2**62
        return Cast(seed, _limit(text, limits[0]), _limit(audio, limits[1]), self.key(persona))

    def key(self, persona: Persona) -> Key | None:
        return prompt_key(persona)

    def prompt(self, persona: Persona) -> Prompt:
        """The persona's prompt; it must have one."""
        key = self.key(persona)
        assert key is not None
        voice, text = key
        if key not in self._prompts:
            tokens = self._vocabulary.encode(wrap_text(text)) if text else []
            if len(self._prompts) >= 256:
                self._prompts.clear()
            self._prompts[key] = build_prompt(
                self._config, self.carrier, self._voices.get(voice or ""), tokens
            )
        return self._prompts[key]

    @staticmethod
    def _pair(
        temperature: float | None, top_k: int | None, usual: float, usual_k: float
    ) -> tuple[float, int]:
        return (usual if temperature is None else temperature, int(usual_k if top_k is None else top_k))


def _limit(pair: tuple[float, int], size: int) -> tuple[float, int]:
    temperature, top_k = pair
    return temperature, min(top_k, size) if top_k > 0 else size


def default_carrier(silence: torch.Tensor, tone: torch.Tensor, config: LMConfig) -> Carrier:
    """Codes (codebooks,) of silence and of a tone, as many as each stream has."""
    return Carrier(silence[: config.dep_q].clone(), tone[: config.n_q - config.dep_q].clone())
