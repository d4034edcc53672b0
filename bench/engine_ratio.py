"""Kyutai's generator, ours, and the matrix products alone, on one CPU thread: `python bench/engine_ratio.py`.

The three run interleaved in one process on the same random weights, sampling as a call does, timed by
`thread_time`; the medians and their ratios are the table.
Needs PyPI's moshi beside us: `pip install --no-deps moshi==0.2.13 einops`.
"""

from __future__ import annotations

import os
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

os.environ.update(NO_TORCH_COMPILE="1", NO_CUDA_GRAPH="1", OMP_NUM_THREADS="1")

import numpy as np
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from bench.report import Report, arguments
from engine import cpu_kernels
from engine.generation import Generator
from engine.kv import PAGE, PagedCache
from engine.model.config import LMConfig
from engine.model.lm import LM
from engine.seeded import invent_lm, lm_json
from engine.weights import Weights

TEXT, AUDIO = (0.7, 25), (0.8, 250)

XS = LMConfig(
    dim=128, num_heads=4, num_layers=4, context=250, text_card=4000, card=2048,
    depformer_dim=64, depformer_dim_feedforward=264, depformer_num_heads=4, depformer_num_layers=4,
)  # fmt: skip
S = replace(
    XS,
    dim=512,
    num_heads=8,
    num_layers=6,
    depformer_dim=256,
    depformer_dim_feedforward=1056,
    depformer_num_heads=4,
)
C = replace(S, num_layers=4, context=3000)
P = replace(XS, dep_q=16)
COUNTED = replace(XS, num_layers=32, depformer_num_layers=6)


@dataclass(frozen=True, slots=True)
class Case:
    name: str
    config: LMConfig
    batch: int
    live: int = 0
    """Frames in the window when timing starts."""


CASES = [
    *(Case("XS", XS, batch) for batch in (1, 4, 16, 32)),
    *(Case("S", S, batch) for batch in (1, 4, 16, 32)),
    *(Case("P", P, batch) for batch in (1, 4, 16)),
    *(Case("C-375", C, batch, 375) for batch in (1, 8)),
    *(Case("C-2990", C, batch, 2990) for batch in (1, 8)),
]


QUICK_CASES = {("XS", 1), ("XS", 32), ("S", 1), ("C-375", 8), ("P", 1)}
QUICK_ROUNDS = 7


class Ours:
    """Our generator with its pages, all slots in step."""

    def __init__(self, config: LMConfig, tensors: dict[str, Tensor], batch: int, live: int) -> None:
        self.cache = PagedCache(batch * 64, batch, config.context, 25, torch.device("cpu"))
        lm = LM(Weights.of(tensors), config, 8 if config.dep_q > 8 else None)
        self.generator = Generator(lm, batch, 25, batch * 64)
        self.rows = np.arange(batch)
        for slot in range(batch):
            self.generator.sampler.set(slot, slot, TEXT, AUDIO)
        for _ in range(live):
            self.cache.reserve(self.rows)
            self.cache.advance(self.rows)
        self.generator.ring.frames[:] = live

    def __call__(self, codes: Tensor) -> None:
        self.cache.reserve(self.rows)
        self.cache.push()
        columns = min(self.cache.columns, int(self.cache.frames.max()) // PAGE + 1)
        rows, forced = torch.from_numpy(self.rows), torch.full((len(self.rows),), -1)
        self.generator.step(codes, rows, self.cache.tables[:, :columns], forced)
        self.cache.advance(self.rows)


class Kyutai:
    """PyPI's moshi: LMModel and LMGen as its server runs them."""

    def __init__(self, config: LMConfig, tensors: dict[str, Tensor], batch: int, live: int) -> None:
        from moshi.models.lm import LMGen, LMModel

        model = LMModel(**lm_json(config), device="cpu", dtype=torch.float32).eval()
        model.load_state_dict({name: tensor.clone() for name, tensor in tensors.items()})
        self.generator: Any = LMGen(
            model, temp=0.8, temp_text=0.7, top_k=250, top_k_text=25, support_out_of_sync=True
        )
        self.generator.streaming_forever(batch)
        self.user = config.n_q - config.dep_q
        self.generator._streaming_state.offsets[:] = live
        for module in model.transformer.modules():
            state = getattr(module, "_streaming_state", None)
            for holder in (state, getattr(state, "kv_cache", None)):
                for name in ("offset", "offsets", "end_offset"):
                    if isinstance(getattr(holder, name, None), Tensor):
                        getattr(holder, name)[:] = live

    def __call__(self, codes: Tensor) -> None:
        self.generator.step(codes[:, : self.user, None])


class Products:
    """Every weight matrix once on a batch, and nothing else: what no engine can save."""

    def __init__(self, tensors: dict[str, Tensor], batch: int, steps: int) -> None:
        names = [name for name in tensors if tensors[name].dim() == 2 and "emb" not in name]
        self.pairs = []
        for name in names:
            parts = steps if "depformer.layers" in name and "self_attn" in name else 1
            for weight in tensors[name].chunk(parts):
                self.pairs.append((torch.randn(batch, weight.shape[1]), weight.t().contiguous()))

    def __call__(self, codes: Tensor) -> None:
        for x, weight in self.pairs:
            torch.mm(x, weight)


class Counter(TorchDispatchMode):
    """Operations that do work: dispatched and not views."""

    def __init__(self) -> None:
        super().__init__()
        self.count = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.count += not func.is_view and "aten.detach" not in str(func) and "_unsafe_view" not in str(func)
        return func(*args, **(kwargs or {}))


def operations(step: Callable[[Tensor], None], codes: Tensor) -> int:
    with torch.no_grad():
        step(codes)
        with Counter() as counter:
            step(codes)
    return counter.count


def measure(case: Case, rounds: int) -> dict[str, Any]:
    _, tensors = invent_lm(case.config, 1)
    runners: dict[str, Callable[[Tensor], None]] = {
        "kyutai": Kyutai(case.config, tensors, case.batch, case.live),
        "ours": Ours(case.config, tensors, case.batch, case.live),
        "products": Products(tensors, case.batch, case.config.dep_q),
    }
    codes = torch.randint(0, 2048, (case.batch, 8))
    times: dict[str, list[float]] = {name: [] for name in runners}
    with torch.inference_mode():
        for turn in range(rounds + 3):
            for name, run in runners.items():
                begin = time.thread_time()
                run(codes)
                if turn >= 3:
                    times[name].append(time.thread_time() - begin)
    ms = {name: statistics.median(values) * 1e3 for name, values in times.items()}
    return {
        "case": case.name,
        "batch": case.batch,
        "live": case.live,
        "ms": {name: round(value, 3) for name, value in ms.items()},
        "ratio": round(ms["kyutai"] / ms["ours"], 2),
        "over_products": round(ms["ours"] / ms["products"], 2),
    }


def count_operations() -> dict[str, int]:
    """At Moshi 7B's layer counts; the width does not change the count. Ours: torch's and compiled kernels."""
    _, tensors = invent_lm(COUNTED, 1)
    codes = torch.randint(0, 2048, (1, 8))
    theirs, ours = Kyutai(COUNTED, tensors, 1, 0), Ours(COUNTED, tensors, 1, 0)
    kernel, calls = cpu_kernels.kernel, []

    def counted(name: str) -> Callable[..., None]:
        def run(*parts: Any) -> None:
            calls.append(name)
            kernel(name)(*parts)

        return run

    cpu_kernels.kernel = counted
    try:
        torch_operations = operations(ours, codes)
    finally:
        cpu_kernels.kernel = kernel
    compiled = len(calls) // 2  # `operations` steps twice
    return {
        "kyutai": operations(theirs, codes),
        "ours": torch_operations + compiled,
        "ours_torch": torch_operations,
        "ours_compiled": compiled,
    }


def cache_bytes() -> list[dict[str, float]]:
    """Bytes of keys and values of one 7B call in bf16 against its live frames, paged and as a full ring."""
    frame = 32 * 2 * 4096 * 2
    pages = PagedCache(64, 1, 3000, 25, torch.device("cpu"))
    rows, lines = np.array([0]), []
    for frames in (375, 1656, 2990, 6000):
        while pages.frames[0] < frames:
            pages.reserve(rows)
            pages.advance(rows)
        held = pages.slot_pages(0) * PAGE * frame
        lines.append({"frames": frames, "paged_MiB": held / 2**20, "ring_MiB": 3000 * frame / 2**20})
    return lines


def main() -> None:
    options = arguments(
        __doc__,
        rounds={"type": int, "default": 15, "help": "timed steps of each, interleaved"},
        only={"default": "", "help": "cases whose name starts with this"},
    )
    torch.set_num_threads(1)
    report = Report("engine_ratio", options)
    rounds = min(options.rounds, QUICK_ROUNDS) if options.quick else options.rounds
    for case in CASES:
        chosen = (case.name, case.batch) in QUICK_CASES or not options.quick
        if case.name.startswith(options.only) and chosen:
            line = measure(case, rounds)
            times = {f"{name}_ms": value for name, value in line.pop("ms").items()}
            report.row(**line, **times)
    report.finish(rounds=rounds, operations_at_7b_layers=count_operations(), kv_of_one_7b_call=cache_bytes())


if __name__ == "__main__":
    main()
