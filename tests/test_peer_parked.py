"""Two phones and one slot: baresip holds, another call takes its slot, and it goes on when that is free.

The model is a seeded small one that babbles without a pause.
"""

from __future__ import annotations

import threading
from pathlib import Path

import numpy as np
import pytest

from engine.seeded import write_checkpoint
from tests.peers import Gateway
from tests.softphone import Desk, Softphone, operated
from tests.test_model_runner import SMALL_LM, SMALL_MIMI

pytestmark = pytest.mark.peer
SECOND = 12.5
"""Frames of the model."""


def test_a_held_phones_slot_is_taken_by_another_and_it_is_talked_to_again_when_that_hangs_up(
    tmp_path: Path,
) -> None:
    write_checkpoint(tmp_path / "model", 3, SMALL_LM, SMALL_MIMI)
    settings = operated(MG_ENGINE__KIND="moshi", MG_ENGINE__MODEL=str(tmp_path / "model"))
    settings |= {"MG_ENGINE__SLOTS": "1", "MG_ENGINE__PARKED_CALLS": "1", "MG_ENGINE__PARK_AFTER_S": "0.2"}
    silence = np.zeros(60 * 8_000)
    with Gateway(tmp_path, **settings) as gateway:
        desk = Desk(gateway)
        with Softphone(tmp_path / "one", silence) as one, Softphone(tmp_path / "two", silence) as two:
            one.dial(gateway.uri)
            call = desk.until(state="answered")
            _pass(1.5)
            one.tell("hold")
            desk.until(held_by_caller=True)
            gateway.wait_for_slots(0, 15.0)
            two.dial(gateway.uri)
            gateway.wait_for_slots(1, 15.0)
            one.tell("resume")
            desk.until(held_by_caller=False)
            _pass(2.0)
            assert gateway.slots_used() == 1 and len(desk.ask("GET", "/calls")[1]["calls"]) == 2
            two.tell("hangup")
            two.wait_for("terminated", 5.0)
            _pass(3.0)
            assert gateway.slots_used() == 1, "it has the slot again"
            one.tell("hangup")
            gateway.wait_for_slots(0, 5.0)
        told = desk.told(call["id"])
    resumed = told.index({"type": "state", "state": "resumed"})
    before, after = (
        [m["frame"] for m in part if m["type"] == "text"] for part in (told[:resumed], told[resumed:])
    )
    assert before and len(after) >= 5
    assert 0 < after[0] - before[-1] < 2 * SECOND, "its time stood still while it was held and waited"


def _pass(seconds: float) -> None:
    """Of real time, while a call goes on."""
    threading.Event().wait(seconds)
