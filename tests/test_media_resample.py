"""Resampling for all rows at once: exact counts, flat pass band, no images, the stated delay, no leak."""

import numpy as np
import pytest

from gateway.media.resample import HALF_BAND, THIRD_BAND, Resampler

WIDE = 24_000
PAIRS = [(8_000, WIDE), (16_000, WIDE), (48_000, WIDE), (WIDE, 8_000), (WIDE, 16_000), (WIDE, 48_000)]


def tone(rate: int, hertz: float, seconds: float) -> np.ndarray:
    return np.sin(2 * np.pi * hertz * np.arange(int(rate * seconds)) / rate).astype(np.float32)


def resampled(source: int, target: int, pcm: np.ndarray) -> np.ndarray:
    resampler, block = Resampler(3, source, target), source // 50
    row = np.array([1])
    pieces = [resampler.run(row, pcm[None, i : i + block])[0] for i in range(0, len(pcm), block)]
    return np.concatenate(pieces)


def spectrum_db(pcm: np.ndarray) -> np.ndarray:
    settled = pcm[len(pcm) // 4 :]
    window = np.kaiser(len(settled), 14)
    return 20 * np.log10(np.abs(np.fft.rfft(settled * window)) / (window.sum() / 2) + 1e-12)


@pytest.mark.parametrize(("source", "target"), PAIRS)
@pytest.mark.parametrize("share", [0.1, 0.5, 0.8])
def test_a_tone_in_the_pass_band_has_its_level_and_no_image(source: int, target: int, share: float) -> None:
    hertz = round(min(source, target) / 2 * share)
    levels = spectrum_db(resampled(source, target, tone(source, hertz, 1.0)))
    peak = int(np.argmax(levels))
    assert abs(peak * target / 2 / (len(levels) - 1) - hertz) < 3
    assert abs(levels[peak]) < 0.15
    aside = np.delete(levels, slice(max(0, peak - 12), peak + 13))
    assert aside.max() < -80


@pytest.mark.parametrize(("source", "target"), [(24_000, 8_000), (24_000, 16_000), (48_000, 24_000)])
def test_a_tone_above_the_new_nyquist_does_not_fold_back(source: int, target: int) -> None:
    folded = resampled(source, target, tone(source, target / 2 * 1.25, 1.0))
    assert spectrum_db(folded).max() < -80


@pytest.mark.parametrize(("source", "target"), PAIRS)
def test_the_delay_is_the_one_stated_and_under_two_milliseconds(source: int, target: int) -> None:
    resampler = Resampler(1, source, target)
    impulse = np.zeros((1, source // 50), np.float32)
    impulse[0, 0] = 1.0
    answer = resampler.run(np.array([0]), impulse)[0].astype(np.float64)
    centre = (answer * np.arange(len(answer))).sum() / answer.sum() / target
    assert centre == pytest.approx(resampler.group_delay_s, abs=2e-5)
    assert resampler.group_delay_s < 0.002


@pytest.mark.parametrize(("source", "target"), PAIRS)
def test_every_block_gives_exactly_its_share_and_rows_do_not_mix(source: int, target: int) -> None:
    rng = np.random.default_rng(7)
    pcm = rng.standard_normal((4, source // 5)).astype(np.float32)
    block, together, alone = source // 50, Resampler(8, source, target), Resampler(8, source, target)
    rows = np.array([6, 0, 3, 5])
    for at in range(0, pcm.shape[1], block):
        all_rows = together.run(rows, pcm[:, at : at + block])
        assert all_rows.shape == (4, target // 50)
        for i, row in enumerate(rows):
            only = alone.run(np.array([row]), pcm[i : i + 1, at : at + block])
            np.testing.assert_allclose(only[0], all_rows[i], atol=1e-5)


def test_the_taps_are_what_the_remez_exchange_gives() -> None:
    from scipy.signal import remez

    third = remez(48, [0, 3200, 4800, 12000], [1, 0], weight=[1, 150], fs=24000, maxiter=100)
    half = remez(32, [0, 9600, 14400, 24000], [1, 0], weight=[1, 150], fs=48000, maxiter=100)
    np.testing.assert_allclose(THIRD_BAND, third[:24], atol=1e-6)
    np.testing.assert_allclose(HALF_BAND, half[:16], atol=1e-6)


def test_rates_without_a_plan_are_refused() -> None:
    with pytest.raises(ValueError, match="11025"):
        Resampler(1, 11_025, 24_000)
