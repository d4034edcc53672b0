"""The committed tiny Moshi: its sums, its size, and one call with a recorded question, offline.

The questions are 8 kHz µ-law of espeak-ng voices that training never heard.
"""

import hashlib
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from bench.tiny_calls import Outcome, Switch
from gateway.media import g711

ROOT = Path(__file__).resolve().parent.parent
FOLDER = ROOT / "configs" / "tiny-moshi"
FRAME = 1_920
GREETING = ["Hello,", "this", "is", "Riverside", "Bicycles.", "How", "can", "I", "help", "you?"]

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not (FOLDER / "config.json").exists(), reason="no weights in this checkout"),
]


@pytest.fixture(scope="module")
def switch() -> Switch:
    return Switch(FOLDER, 1)


def question(name: str) -> NDArray[np.float32]:
    """24 kHz float32 of a recorded question."""
    raw = np.frombuffer((ROOT / "tests" / "data" / name).read_bytes(), np.uint8)
    wide = np.interp(np.arange(len(raw) * 3) / 3, np.arange(len(raw)), decoded(raw))
    return wide.astype(np.float32)


def decoded(raw: NDArray[np.uint8]) -> NDArray[np.float32]:
    """G.711 µ-law octets -> float32."""
    return (g711.decode(raw, 0) / 32_768).astype(np.float32)


def call(switch: Switch, *parts: NDArray[np.float32]) -> Outcome:
    return switch.call([np.concatenate(parts)])[0]


def silence(seconds: float) -> NDArray[np.float32]:
    return np.zeros(int(seconds * 24_000), np.float32)


def test_the_files_are_the_ones_that_were_measured_and_fit_in_a_repository() -> None:
    total = 0
    for line in (FOLDER / "SHA256SUMS").read_text().splitlines():
        digest, name = line.split()
        data = (FOLDER / name).read_bytes()
        total += len(data)
        assert hashlib.sha256(data).hexdigest() == digest, name
    assert total <= 20_000_000


def test_it_greets_and_then_keeps_quiet_while_nobody_speaks(switch: Switch) -> None:
    outcome = call(switch, silence(16))
    assert outcome.words(0, 60) == GREETING
    assert outcome.words(60) == []
    assert outcome.loud[:60].mean() > 0.4
    assert not outcome.loud[70:].any()


def test_it_answers_a_question_within_a_second(switch: Switch) -> None:
    asked = question("tiny_hours.ulaw")
    lead = silence(4.8)
    outcome = call(switch, lead, asked, silence(4))
    end = (len(lead) + len(asked)) // FRAME
    onset = outcome.onset(end + 1)
    assert outcome.line(end) == "hours"
    assert onset is not None and onset - (len(lead) + len(asked)) < 24_000


def test_it_stops_when_spoken_over(switch: Switch) -> None:
    asked = question("tiny_hours.ulaw")
    outcome = call(switch, silence(1.6), asked, silence(3))
    stop = int(1.6 * 12.5) + 13
    assert outcome.loud[:20].any()
    assert not outcome.loud[stop : stop + 4].any()
    assert outcome.words(0, stop) != GREETING


def test_a_goodbye_asks_the_gateway_to_hang_up(switch: Switch) -> None:
    outcome = call(switch, silence(4.8), question("tiny_goodbye.ulaw"), silence(5))
    pieces = [piece for frame in outcome.pieces for piece in frame]
    first = pieces.index("<hangup>")
    assert pieces[first - 1] == " Goodbye."
    assert set(pieces[first:]) == {
        "<hangup>"
    }  # said again until the gateway, which acts on the first, has acted


def test_who_speaks_on_after_goodbye_is_not_hung_up_on(switch: Switch) -> None:
    asked = question("tiny_hours.ulaw")
    outcome = call(switch, silence(4.8), question("tiny_goodbye.ulaw"), silence(2.2), asked, silence(5))
    assert "goodbye" in str(outcome.line(60, 100))
    assert not outcome.acted
