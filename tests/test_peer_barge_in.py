"""A real phone interrupts: baresip listens to the agent, speaks over it, and hears it fall silent."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from bench.barge_scenes import at_level, onset, without_pauses
from tests.audio import Signal
from tests.peers import ROOT, Baresip, Gateway
from tests.phone import speech

pytestmark = pytest.mark.peer
RATE = 8_000
SILENT_S, SPEAKS_S, AFTER_S = 3.0, 4.0, 6.0
STOPS_S = 0.6
"""400 ms of the policy, and 200 ms of the two recordings, which do not begin at the same sample."""


def talker(folder: Path) -> dict[str, str]:
    """A gateway's settings: a random Moshi, which babbles without a pause, and gives way."""
    subprocess.run([sys.executable, "-m", "engine.seeded", str(folder / "seeded")], cwd=ROOT, check=True)
    (folder / "duck.toml").write_text('[personas.default]\nduplex = "duck"\n')
    return {
        "MG_CONFIG": str(folder / "duck.toml"),
        "MG_ENGINE__KIND": "moshi",
        "MG_ENGINE__MODEL": str(folder / "seeded"),
        "MG_ENGINE__SLOTS": "1",
    }


def words(seconds: float) -> Signal:
    """Clear speech without a pause."""
    said = at_level(without_pauses((speech() / 32_768).astype(np.float32)), -22.0)
    return np.resize(said, int(seconds * RATE)).astype(np.float64)


def levels(heard: Signal) -> Signal:
    """dBFS of every 20 ms."""
    frames = heard[: len(heard) // 160 * 160].reshape(-1, 160)
    return 10 * np.log10(np.mean(frames**2, axis=1) + 1e-12)


def seconds(level: Signal, first_s: float, last_s: float) -> Signal:
    return level[round(50 * first_s) : round(50 * last_s)]


def test_the_agent_on_a_real_phone_falls_silent_and_nothing_stale_follows(tmp_path: Path) -> None:
    quiet = [np.zeros(int(length * RATE)) for length in (SILENT_S, AFTER_S + 10)]
    with Gateway(tmp_path, **talker(tmp_path)) as gateway:
        phone = Baresip(
            tmp_path / "phone", gateway.uri, np.concatenate([quiet[0], words(SPEAKS_S), quiet[1]])
        )
        sent, heard = phone.established().talk_for(SILENT_S + SPEAKS_S + AFTER_S).hang_up()
        gateway.wait_for_slots(0, 5.0)
    began = onset(sent.astype(np.float32)) / RATE
    level = levels(heard)
    usual = float(np.median(seconds(level, 1.0, began)))
    assert usual > -35 and np.mean(seconds(level, 1.0, began) > usual - 12) > 0.95, "it talks till then"
    over = seconds(level, began, began + SPEAKS_S)
    stopped = int(np.flatnonzero(over > usual - 30)[-1]) / 50
    assert 0.02 < stopped < STOPS_S, f"the agent was heard for {stopped:.2f} s of the caller's words"
    after = seconds(level, began + SPEAKS_S + 2.0, began + SPEAKS_S + AFTER_S - 1.0)
    assert np.median(after) > usual - 12, "it speaks again when the caller has finished"
