"""Processes that make training batches: what they give, and that they are gone when nobody wants more."""

import json
import multiprocessing
import os
import signal
from dataclasses import asdict
from pathlib import Path

import numpy as np
import pytest
import torch

from train.callers import SILENT_ROWS, Batch
from train.data import Utterance
from train.feeders import Feeders
from train.receptionist import INTENTS

ROWS, LENGTH = 3, 4_000


@pytest.fixture
def state(tmp_path: Path) -> Path:
    """Two utterances of noise an intent, and an agent who hums."""
    rng = np.random.default_rng(1)
    said = [Utterance(at * LENGTH, LENGTH, at % len(INTENTS), "a word", "v", True) for at in range(48)]
    np.save(tmp_path / "callers-train.npy", rng.normal(0, 3_000, LENGTH * len(said)).astype(np.int16))
    (tmp_path / "callers-train.json").write_text(json.dumps([asdict(one) for one in said]))
    np.save(tmp_path / "agent.npy", rng.normal(0, 0.1, 240_000).astype(np.float32))
    (tmp_path / "agent.json").write_text(json.dumps({"lines": [], "others": []}))
    return tmp_path


def is_good(batch: Batch) -> bool:
    shaped = batch.pcm.shape[0] == ROWS + SILENT_ROWS == len(batch.said) and batch.pcm.shape[1] % 640 == 0
    return shaped and bool(torch.isfinite(batch.pcm).all()) and batch.said[ROWS:] == [None] * SILENT_ROWS


def test_without_processes_batches_are_made_here(state: Path) -> None:
    with Feeders(state, ROWS, 1, 0) as feeders:
        batches = iter(feeders)
        assert is_good(next(batches)) and is_good(next(batches)) and not multiprocessing.active_children()


@pytest.mark.slow
def test_feeders_take_turns_bear_a_groups_stop_and_end_with_the_block(state: Path) -> None:
    with pytest.raises(SystemExit), Feeders(state, ROWS, 1, 2) as feeders:
        batches = iter(feeders)
        first, second = next(batches), next(batches)
        assert is_good(first) and is_good(second) and not torch.equal(first.pcm, second.pcm)
        for process in feeders.processes:
            assert process.pid is not None
            os.kill(process.pid, signal.SIGTERM)  # as a service manager does, to trainer and feeders
            os.kill(process.pid, signal.SIGINT)
        assert all(is_good(next(batches)) for _ in range(6))
        raise SystemExit  # as the trainer does, once it has saved
    assert [process.exitcode for process in feeders.processes] == [-signal.SIGKILL] * 2
    assert not multiprocessing.active_children()


@pytest.mark.slow
def test_a_feeder_that_cannot_feed_is_no_endless_wait(tmp_path: Path) -> None:
    with Feeders(tmp_path, ROWS, 1, 1) as feeders, pytest.raises(EOFError):
        next(iter(feeders))
    assert feeders.processes[0].exitcode is not None
