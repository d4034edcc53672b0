"""Loop: what every training stage shares — resumable checkpoints, a clock that only work moves, rates."""

from __future__ import annotations

import ctypes
import logging
import math
import os
import signal
import sys
import time
from collections import deque
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

log = logging.getLogger(__name__)


def keep_memory() -> None:
    """Let glibc's malloc keep what it has: the page faults of fresh tensors cost a fifth of a step."""
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is not None:
        mallopt(-4, 0)  # M_MMAP_MAX: no block of its own mapping
        mallopt(-1, 2**31 - 1)  # M_TRIM_THRESHOLD: give nothing back


def prepare(seed: int) -> None:
    """Seeds, log lines, one thread unless OMP_NUM_THREADS says otherwise, bf16 products on a CPU."""
    keep_memory()
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s", datefmt="%H:%M:%S")
    torch.manual_seed(seed)
    torch.set_num_threads(int(os.environ.get("OMP_NUM_THREADS", "1")))
    backends: Any = torch.backends
    backends.mkldnn.matmul.fp32_precision = "bf16"
    backends.mkldnn.conv.fp32_precision = "bf16"
    torch.backends.cuda.matmul.allow_tf32 = True


@dataclass
class Loop:
    """Steps of one stage until `minutes` of processor time are spent; the rate is a cosine over them.

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
        self._last = time.process_time()
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
        self._losses.append({name: float(loss.detach()) for name, loss in losses.items()})
        self.steps += 1
        now = time.process_time()
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
        self._last = time.process_time()
