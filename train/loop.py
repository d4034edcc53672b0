"""Loop: what every training stage shares — the device, resumable checkpoints, a clock of work, rates.

With CUDA everything lives on the GPU, the making of batches included: tensors are born on torch's default
device, which `prepare` sets, and `here` brings what comes from numpy.
"""

from __future__ import annotations

import ctypes
import logging
import math
import os
import signal
import sys
import time
from argparse import ArgumentParser
from collections import deque
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

log = logging.getLogger(__name__)


def keep_memory() -> None:
    """Let glibc's malloc keep what it has: the page faults of fresh tensors cost a fifth of a step."""
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is not None:
        mallopt(-4, 0)  # M_MMAP_MAX: no block of its own mapping
        mallopt(-1, 2**31 - 1)  # M_TRIM_THRESHOLD: give nothing back


def device_option(parser: ArgumentParser) -> None:
    """--device auto, cpu or cuda."""
    parser.add_argument("--device", choices=("auto", "cpu", "cuda"), default="auto")


def prepare(seed: int, device: str = "cpu") -> None:
    """Seeds, log lines, one thread unless OMP_NUM_THREADS says otherwise, bf16 products on a CPU.

    `auto` takes CUDA where there is one. Without a GPU the default device is left alone: setting it costs
    every operation a little.
    """
    if device == "cuda" or (device == "auto" and torch.cuda.is_available()):
        torch.set_default_device("cuda")
    keep_memory()
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s", datefmt="%H:%M:%S")
    torch.manual_seed(seed)
    torch.set_num_threads(int(os.environ.get("OMP_NUM_THREADS", "1")))
    backends: Any = torch.backends
    backends.mkldnn.matmul.fp32_precision = "bf16"
    backends.mkldnn.conv.fp32_precision = "bf16"
    torch.backends.cuda.matmul.allow_tf32 = True


def on() -> str:
    """The kind of device that tensors are born on: "cpu" or "cuda"."""
    return torch.get_default_device().type


def here(samples: NDArray[Any]) -> Tensor:
    """numpy -> a tensor of its own on the default device."""
    return torch.tensor(samples)


def halves() -> torch.autocast:
    """Products in bf16: a step takes two thirds of the time on a CPU."""
    return torch.autocast(on(), torch.bfloat16)


def whole() -> torch.autocast:
    """Inside of `halves`, on a GPU: not so. cudnn's recurrent networks would take fp16: gradients vanish."""
    return torch.autocast(on(), torch.bfloat16, enabled=on() == "cpu")


def adamw(learnt: Iterable[nn.Parameter], betas: tuple[float, float], decay: float) -> torch.optim.AdamW:
    """AdamW; on a GPU in one kernel, so that nothing waits for its step count."""
    return torch.optim.AdamW(learnt, betas=betas, weight_decay=decay, fused=on() != "cpu")


@dataclass
class Loop:
    """Steps of one stage until `minutes` of processor time are spent; the rate is a cosine over them.

    On a GPU the minutes are those of a clock on the wall.

    `modules` are saved and restored with the optimiser. A pause (SIGSTOP) moves no schedule,
    SIGTERM saves first, and a crash loses at most `save_every_s` of work.
    """

    path: Path
    modules: nn.Module
    optimiser: torch.optim.Optimizer
    minutes: float
    peak_rate: float
    clip: float = 2.0
    warm_steps: int = 60
    save_every_s: float = 60.0

    def __post_init__(self) -> None:
        self.active_s = 0.0
        self.steps = 0
        self._saved_at = 0.0
        self._losses: deque[dict[str, float]] = deque(maxlen=100)
        self._clock = time.process_time if on() == "cpu" else time.monotonic
        self._last = self._clock()
        self._asked_to_stop = False
        signal.signal(signal.SIGTERM, self._stop)
        if self.path.exists():
            self._resume()

    def _stop(self, *_: object) -> None:
        self._asked_to_stop = True

    def _resume(self) -> None:
        kept = torch.load(self.path, map_location="cpu", weights_only=True)
        if "optimiser" not in kept:  # train/start.py: weights alone
            self.modules.load_state_dict(kept["modules"], strict=False)
            log.info("started from given weights")
            return
        self.modules.load_state_dict(kept["modules"])
        self.optimiser.load_state_dict(kept["optimiser"])
        self.active_s, self.steps = kept["active_s"], kept["steps"]
        self._saved_at = self.active_s
        log.info("resumed at step %d, %.0f s of processor time", self.steps, self.active_s)

    @property
    def done(self) -> float:
        """Fraction of the budget spent, 0 to 1."""
        return min(1.0, self.active_s / (60 * self.minutes))

    @property
    def running(self) -> bool:
        return self.active_s < 60 * self.minutes

    def step(self, losses: dict[str, torch.Tensor]) -> None:
        """Descend the sum of the losses, advance the clock, save when due."""
        for group in self.optimiser.param_groups:
            group["lr"] = self._rate() * group.get("scale", 1.0)
        self.optimiser.zero_grad()
        torch.stack(list(losses.values())).sum().backward()
        parameters = [p for group in self.optimiser.param_groups for p in group["params"]]
        torch.nn.utils.clip_grad_norm_(parameters, self.clip)
        self.optimiser.step()
        values = torch.stack([loss.detach() for loss in losses.values()]).tolist()
        self._losses.append(dict(zip(losses, values, strict=True)))
        self.steps += 1
        now = self._clock()
        self.active_s += now - self._last
        self._last = now
        if self.active_s - self._saved_at > self.save_every_s or not self.running or self._asked_to_stop:
            self.save()
        if self._asked_to_stop:
            log.info("stopped at step %d", self.steps)
            sys.exit(0)

    def _rate(self) -> float:
        warm = min(1.0, (self.steps + 1) / self.warm_steps)
        return self.peak_rate * warm * (0.02 + 0.98 * 0.5 * (1 + math.cos(math.pi * self.done)))

    def save(self) -> None:
        """Write the checkpoint beside itself first, so that a crash leaves a whole one."""
        kept = {
            "modules": self.modules.state_dict(),
            "optimiser": self.optimiser.state_dict(),
            "active_s": self.active_s,
            "steps": self.steps,
        }
        fresh = self.path.with_suffix(".new")
        torch.save(kept, fresh)
        fresh.replace(self.path)
        self._saved_at = self.active_s

    def report(self, **more: float) -> None:
        """One log line: the mean losses of the last 100 steps and what the stage adds."""
        means = {name: float(np.mean([row[name] for row in self._losses])) for name in self._losses[-1]}
        line = " ".join(f"{name} {value:.3f}" for name, value in (means | more).items())
        log.info(
            "step %d %.0fs (%.2f s/step) %s",
            self.steps,
            self.active_s,
            self.active_s / max(1, self.steps),
            line,
        )
        self._last = self._clock()
