"""The training pipeline end to end, small: render, train every stage, resume, export, hold a call."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from engine.api import Persona
from engine.checkpoint import Checkpoint
from engine.runner import ModelRunner, RunnerOptions

ROOT = Path(__file__).resolve().parent.parent
needs_voices = pytest.mark.skipif(
    not (shutil.which("flite") and shutil.which("espeak-ng")), reason="flite and espeak-ng are not installed"
)


def run(module: str, *arguments: str) -> str:
    """One stage as the user runs it; its log."""
    command = [sys.executable, "-m", module, *arguments]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    return done.stdout + done.stderr


@pytest.mark.slow
@pytest.mark.timeout(400)
@needs_voices
def test_every_stage_runs_resumes_and_leaves_a_checkpoint_that_holds_a_call(tmp_path: Path) -> None:
    state, folder = tmp_path / "state", tmp_path / "checkpoint"
    at = ("--state", str(state))
    run("train.data", *at, "--per-phrase", "0.08", "--fallback", "20", "--test-each", "1")
    first = run("train.codec", *at, "--stage", "acoustic", "--minutes", "0.1")
    again = run("train.codec", *at, "--stage", "acoustic", "--minutes", "0.2")
    assert "resumed" not in first and "resumed at step" in again
    run("train.codec", *at, "--stage", "decoder", "--minutes", "0.08")
    run("train.semantic", *at, "--minutes", "0.15", "--rows", "12", "--check-every", "100000")
    assert "floor" in run("train.calibrate", *at)
    run("train.export", *at, "--codec-only")
    log = run("train.lm", *at, "--minutes", "0.15", "--rows", "3", "--utterances", "48")
    assert "codes" in log
    run("train.export", *at, "--folder", str(folder))
    further = ("--state", str(tmp_path / "further"))
    run("train.start", *further, "--folder", str(folder))
    for name in ("callers-train", "callers-test", "agent"):
        for kind in ("npy", "json"):
            shutil.copy(state / f"{name}.{kind}", tmp_path / "further")
    log = run("train.semantic", *further, "--minutes", "0.05", "--rows", "8", "--keep-book", "--feeders", "2")
    assert "started from given weights" in log and "held" in log and "terminate" not in log
    kept = torch.load(state / "acoustic.pt", weights_only=True)
    assert kept["steps"] > 2 and kept["active_s"] >= 0.2 * 60
    runner = ModelRunner.load(Checkpoint.find(folder), 1, RunnerOptions(device="cpu"))
    runner.open(0, Persona())
    results = [runner.step(np.zeros((1, 1920), np.float32), np.ones(1, bool)) for _ in range(5)]
    assert all(result.valid[0] and np.isfinite(result.pcm).all() for result in results)
