"""What was sent is found again in what is heard, whatever its path; another voice is not."""

from pathlib import Path

import numpy as np
import pytest
from scipy.signal import resample_poly

from bench.echo_scenes import EchoPath, echo_of, read_flac
from gateway.media import echo, reference
from gateway.media.likeness import likeness

SPEECH = Path(__file__).parent / "data" / "speech"
MOST_S = 1.2


def agent(rate: int) -> np.ndarray:
    narrow, recorded = read_flac(SPEECH / "ast_en_far_8k.flac")
    return resample_poly(narrow[26 * recorded : 32 * recorded], rate // recorded, 1).astype(np.float32)


def windows(
    heard: np.ndarray, sent: np.ndarray, rate: int, seconds: float
) -> list[tuple[np.ndarray, np.ndarray]]:
    """(heard, sent up to its end) every 0.37 s, where there is something to be heard."""
    found, length = [], int(seconds * rate)
    for end in range(int(1.6 * rate), len(heard), int(0.37 * rate)):
        window = heard[end - length : end]
        if np.mean(window**2) > 1e-6:
            found.append((window, sent[end - length - int(MOST_S * rate) : end]))
    return found


@pytest.mark.parametrize("rate", [8_000, 16_000, 24_000])
@pytest.mark.parametrize("delay_ms", [40.0, 700.0])
def test_the_echo_of_a_line_is_all_explained_and_its_delay_is_found(rate: int, delay_ms: float) -> None:
    sent = agent(rate)
    heard = echo_of(sent, EchoPath(delay_ms, 12), rate, np.random.default_rng(3))
    found = [likeness(*pair, rate) for pair in windows(heard, sent, rate, 0.2)]
    assert min(one.share for one in found) > 0.9
    off_ms = [1_000 * one.lag / rate - delay_ms for one in found]
    assert -3 < np.median(off_ms) < 15


def test_the_echo_of_a_clipping_loudspeaker_in_a_room_is_mostly_explained() -> None:
    sent = agent(8_000)
    heard = echo_of(sent, EchoPath(140, 6, room_s=0.35, clip=0.35), 8_000, np.random.default_rng(3))
    shares = [likeness(*pair, 8_000).share for pair in windows(heard, sent, 8_000, 0.2)]
    assert min(shares) > 0.4


def test_another_voice_is_less_and_less_explained_the_longer_it_speaks() -> None:
    sent = agent(8_000)
    voice, _ = read_flac(SPEECH / "ast_en_near2_8k.flac")
    heard = np.resize(voice, len(sent))
    medians = []
    for seconds in (0.14, 0.32):
        shares = [likeness(*pair, 8_000).share for pair in windows(heard, sent, 8_000, seconds)]
        medians.append(float(np.median(shares)))
    assert 0.45 > medians[0] > medians[1] and medians[1] < 0.3


def test_silence_is_like_nothing() -> None:
    assert likeness(np.zeros(1_600, np.float32), agent(8_000)[:12_000], 8_000).share == 0
    assert likeness(agent(8_000)[:1_600], np.zeros(12_000, np.float32), 8_000).share < 0.01


def test_a_first_question_compiles_nothing_once_the_canceller_is_warm() -> None:
    echo.warm()
    compiled = getattr(reference.read._chosen, "signatures", None)  # None: the twin runs, nothing is compiled
    before = len(compiled) if compiled else 0
    canceller, rows = echo.EchoCanceller(1), np.zeros(1, np.intp)
    canceller.open(0)
    for _ in range(20):
        canceller.sent(rows, np.full((1, canceller.block), 0.1, np.float32))
        canceller.hear(rows, np.full((1, canceller.block), 0.01, np.float32), np.zeros(1, np.int32))
    canceller.likeness(0, 8)
    after = len(reference.read._chosen.signatures) if compiled else 0  # type: ignore[union-attr]
    assert after == before
