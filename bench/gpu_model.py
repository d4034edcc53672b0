"""Random models for bench/engine_gpu.py: ours laid out without files, and Kyutai's with its own graphs."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from engine.build import Identity, RunnerOptions, assemble
from engine.model.config import LMConfig, MimiConfig
from engine.model.lm import LM
from engine.model.mimi import Mimi
from engine.runner import ModelRunner
from engine.seeded import TINY_LM, TINY_MIMI, Invented, lm_json, mimi_json, write_tokenizer
from engine.text import Vocabulary


@dataclass(frozen=True, slots=True)
class Model:
    lm: LMConfig
    mimi: MimiConfig


def model_for(tiny: bool) -> Model:
    return Model(TINY_LM, TINY_MIMI) if tiny else Model(LMConfig(), MimiConfig())


def build_runner(
    model: Model, device: torch.device, slots: int, kv_dtype: str | None, weight_dtype: str | None
) -> ModelRunner:
    """A ModelRunner over random weights made on the device."""
    dtype = torch.bfloat16 if device.type == "cuda" else torch.float32
    options = RunnerOptions(device=device.type, kv_dtype=kv_dtype, weight_dtype=weight_dtype)
    invented = Invented(0, device, dtype, remember=False)
    invented.float8 = weight_dtype == "float8"
    with torch.no_grad():
        lm = LM(invented, model.lm)
        mimi = Mimi(Invented(1, device, remember=False), model.mimi, model.lm.codebooks)
        identity = Identity("random", "random", {}, {}, vocabulary())
        runner = ModelRunner(assemble(identity, lm, mimi, slots, options))
    runner.warm_up()
    return runner


def vocabulary() -> Vocabulary:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "text.model"
        write_tokenizer(path, 200)
        return Vocabulary(path, 3, 0)


def kyutai_step(model: Model, device: torch.device, batch: int) -> Callable[[], None]:
    """One tick of PyPI's moshi, Mimi and host audio included. Raises ImportError without it."""
    os.environ.setdefault("NO_TORCH_COMPILE", "1")  # its graphs, without waiting for its compiler
    from moshi.models import loaders
    from moshi.models.lm import LMGen, LMModel

    dtype = torch.bfloat16 if device.type == "cuda" else torch.float32
    lm = LMModel(**lm_json(model.lm), device=device, dtype=dtype).eval()
    mimi: Any = loaders.get_mimi(None, mimi_json(model.mimi), device=device, num_codebooks=model.lm.codebooks)
    generator: Any = LMGen(lm, support_out_of_sync=True)
    generator.streaming_forever(batch)
    mimi.streaming_forever(batch)
    pcm = torch.randn(batch, 1, 1_920) * 0.1

    @torch.no_grad()
    def step() -> None:
        tokens = generator.step(mimi.encode(pcm.to(device)))
        mimi.decode(tokens[:, 1:].clamp(min=0)).cpu()

    return step
