"""The measures that the peer tests rely on, on signals whose answer is known."""

from pathlib import Path

import numpy as np
import pytest

from tests.audio import align, delay_of, gaps, level_dbfs, likeness, read_wav, steady_noise, write_wav

NOISE = steady_noise(4.0)


@pytest.mark.parametrize("delay", [0, 1, 160, 7_999])
def test_a_delay_is_found_to_the_sample(delay: int) -> None:
    heard = np.concatenate([np.zeros(delay), NOISE])[: len(NOISE)]
    lag, correlation = delay_of(heard, NOISE)
    assert lag == delay and correlation > 0.999


def test_a_fraction_of_a_sample_is_a_delay_too() -> None:
    spectrum = np.fft.rfft(NOISE, 2 * len(NOISE))
    heard = np.fft.irfft(spectrum * np.exp(-2j * np.pi * np.fft.rfftfreq(2 * len(NOISE)) * 40.5))
    found = align(heard, NOISE)
    assert found.lag == 40.5 and found.correlation > 0.999
    assert delay_of(heard, NOISE)[1] < 0.95, "half a sample matters"


def test_a_signal_that_leads_has_a_negative_delay() -> None:
    assert delay_of(NOISE[400:], NOISE)[0] == -400
    assert delay_of(NOISE[400:], NOISE, longest=100)[0] != -400


def test_another_signal_does_not_correlate() -> None:
    assert abs(delay_of(steady_noise(4.0, seed=2), NOISE)[1]) < 0.1


def test_added_noise_lowers_the_correlation_as_it_should() -> None:
    noisy = NOISE + steady_noise(4.0, seed=2)  # 0 dB
    assert delay_of(noisy, NOISE)[1] == pytest.approx(np.sqrt(0.5), abs=0.02)


@pytest.mark.parametrize("filling", ["silence", "the frame before", "repetition", "other noise"])
@pytest.mark.parametrize("offset", [0, 20, 77, 80, 140])
def test_a_lost_packet_is_a_gap_wherever_it_lies_and_whatever_fills_it(filling: str, offset: int) -> None:
    heard = NOISE.copy()
    start = 16_000 + offset
    heard[start : start + 160] = {
        "silence": np.zeros(160),
        "the frame before": NOISE[start - 160 : start],
        "repetition": np.tile(NOISE[start - 60 : start], 3)[:160],
        "other noise": steady_noise(1.0, seed=3)[:160],
    }[filling]
    (gap,) = gaps(heard, NOISE)
    assert abs(gap.at_s * 8_000 - start) <= 81 and gap.length_s < 0.041


def test_an_intact_signal_has_no_gap_even_through_a_slow_clock() -> None:
    assert gaps(NOISE, NOISE) == []
    slow = np.interp(np.arange(len(NOISE)) * (1 + 50e-6), np.arange(len(NOISE)), NOISE)
    assert gaps(slow, NOISE) == []


def test_a_delay_that_changes_is_no_gap_but_a_hole_is() -> None:
    heard = np.concatenate([NOISE[:8_000], NOISE[8_100:]])  # 12 ms taken out by time-scaling
    assert gaps(heard, NOISE) == []
    heard = np.concatenate([NOISE[:8_000], np.zeros(480), NOISE[8_000:]])
    (gap,) = gaps(heard, NOISE)
    assert abs(gap.at_s - 1.0) < 0.01 and gap.length_s <= 0.2


def test_a_delay_that_settled_before_the_end_is_found_at_the_start() -> None:
    heard = np.concatenate([np.zeros(640), NOISE[:4_000], NOISE[4_100:8_000], NOISE[8_150:]])[800:]
    lag, _ = delay_of(heard, NOISE)
    assert lag == 640 - 250 - 800
    assert gaps(heard, NOISE) == []


def test_likeness_bears_a_changing_delay_but_no_noise() -> None:
    moved = np.concatenate([np.zeros(300), NOISE[:8_000], NOISE[8_100:20_000], NOISE[20_150:]])
    assert likeness(moved, NOISE) > 0.99
    assert delay_of(moved, NOISE)[1] < 0.8
    assert likeness(NOISE + steady_noise(4.0, seed=2), NOISE) == pytest.approx(np.sqrt(0.5), abs=0.02)


def test_noise_has_the_level_asked_for() -> None:
    assert level_dbfs(steady_noise(1.0, level_dbfs=-30)) == pytest.approx(-30, abs=0.1)


def test_a_wav_comes_back_as_it_was_written(tmp_path: Path) -> None:
    signal, rate = read_wav(write_wav(tmp_path / "a.wav", NOISE, 8_000))
    assert rate == 8_000 and np.abs(signal - NOISE).max() < 1e-4
