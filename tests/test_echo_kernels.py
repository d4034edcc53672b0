"""The compiled loops of the echo canceller give what their numpy twins give."""

import sys

import numpy as np
import pytest

from gateway.media import delay, fourier, kalman, reference, residual
from gateway.media.compiled import kernel

RNG = np.random.default_rng(3)


def normal(*shape: int) -> np.ndarray:
    return RNG.standard_normal(shape).astype(np.float32)


def spectra(*shape: int) -> np.ndarray:
    return (normal(*shape) + 1j * normal(*shape)).astype(np.complex64)


def both(pair: kernel, *args: object) -> tuple[list[np.ndarray], list[np.ndarray]]:
    """What each leaves in its array arguments."""
    left = [arg.copy() if isinstance(arg, np.ndarray) else arg for arg in args]
    right = [arg.copy() if isinstance(arg, np.ndarray) else arg for arg in args]
    pair(*left)
    pair.twin(*right)
    return ([a for a in side if isinstance(a, np.ndarray)] for side in (left, right))  # type: ignore[return-value]


ROWS = np.array([4, 0, 3])
NEWEST = np.array([1, 7, 3])


@pytest.mark.parametrize("keep", [0.0, 0.999])
def test_a_correction_is_the_same_compiled_or_not(keep: float) -> None:
    state = [normal(5, 9, 33), normal(5, 9, 33), normal(5, 4, 33), normal(5, 4, 33), np.abs(normal(5, 4, 33))]
    given = [spectra(3, 33), np.abs(normal(3, 33)) * 0.05]
    for ours, twin in zip(*both(kalman.correct, ROWS, NEWEST, *state, *given, np.float32(keep)), strict=True):
        np.testing.assert_allclose(ours, twin, rtol=1e-4, atol=1e-5)


def test_a_prediction_is_the_same_compiled_or_not() -> None:
    state = [normal(5, 9, 33), normal(5, 9, 33), normal(5, 4, 33), normal(5, 4, 33), np.abs(normal(5, 4, 33))]
    out = [np.empty((3, 33), np.complex64), np.empty((3, 33), np.float32)]
    for ours, twin in zip(*both(kalman.predict, ROWS, NEWEST, *state, *out), strict=True):
        np.testing.assert_allclose(ours, twin, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("learn", [True, False])
def test_the_trust_in_an_error_is_the_same_compiled_or_not(learn: bool) -> None:
    given = (spectra(3, 33), spectra(3, 33), np.abs(normal(3, 33)), np.array([True, False, True]))
    out = [np.empty((3, 33), np.float32) for _ in range(4)]
    noise = np.abs(normal(5, 33))
    for ours, twin in zip(*both(kalman.trust, ROWS, *given, noise, learn, *out), strict=True):
        np.testing.assert_allclose(ours, twin, rtol=1e-4, atol=1e-5)


def test_spectra_are_picked_and_put_back_the_same_compiled_or_not() -> None:
    real, imaginary, column = normal(5, 4, 33), normal(5, 4, 33), np.array([2, 0, 3])
    for picked, twin in zip(*both(kalman.pick, ROWS, column, real, imaginary, spectra(3, 33)), strict=True):
        np.testing.assert_array_equal(picked, twin)
    for stored, twin in zip(*both(kalman.put, ROWS, column, real, imaginary, spectra(3, 33)), strict=True):
        np.testing.assert_array_equal(stored, twin)


def test_the_delay_finders_sums_are_the_same_compiled_or_not() -> None:
    args = [
        normal(5, 8, 12),
        normal(5, 8, 12),
        normal(3, 12),
        normal(3, 12),
        normal(5, 8, 12),
        normal(5, 8, 12),
    ]
    for ours, twin in zip(*both(delay.gather, ROWS, NEWEST, *args, np.float32(0.98)), strict=True):
        np.testing.assert_allclose(ours, twin, rtol=1e-4, atol=1e-5)


def test_a_fractional_read_is_the_same_compiled_or_not() -> None:
    start = np.array([50.25, 3.0, 155.9999])
    args = (normal(5, 200), ROWS, start, reference.TABLE, np.empty((3, 90), np.float32))
    for ours, twin in zip(*both(reference.read, *args), strict=True):
        np.testing.assert_allclose(ours, twin, atol=1e-5)


def test_a_moving_filter_is_the_same_compiled_or_not() -> None:
    args = (normal(3, 160), normal(3, 31), normal(3, 32), normal(3, 32), np.empty((3, 160), np.float32))
    for ours, twin in zip(*both(residual.shape, *args), strict=True):
        np.testing.assert_allclose(ours, twin, atol=1e-4)


def test_without_numba_the_twin_is_called(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MOSHI_NUMBA", "0")
    chosen = kernel(lambda: "loop", lambda: "twin")
    assert chosen() == "twin"


def test_a_reference_is_read_between_samples_as_if_it_had_been_sampled_there() -> None:
    rows = reference.SentRows(1, 8_000)
    tone = np.sin(2 * np.pi * 2_400 / 8_000 * np.arange(8_000)).astype(np.float32)
    for at in range(0, 8_000, 160):
        rows.write(np.array([0]), tone[None, at : at + 160])
        rows.advance()
    got = rows.at(np.array([0]), np.array([4_000.37]), 160)[0]
    expected = np.sin(2 * np.pi * 2_400 / 8_000 * (4_000.37 + np.arange(160)))
    assert np.mean((got - expected) ** 2) < 1e-6 * np.mean(expected**2)


def test_silence_is_read_for_a_tick_in_which_nothing_was_sent() -> None:
    rows = reference.SentRows(2, 8_000)
    for _ in range(400):  # more than the ring holds, so that an old block would come back
        rows.write(np.array([0, 1]), np.ones((2, 160), np.float32))
        rows.advance()
    rows.write(np.array([0]), np.ones((1, 160), np.float32))
    rows.advance()
    last = rows.at(np.array([0, 1]), np.full(2, rows.now - 140.0), 120)
    np.testing.assert_allclose(last[0], 1, atol=1e-3)
    np.testing.assert_allclose(last[1], 0, atol=1e-3)


def test_a_shift_between_two_signals_is_found_to_the_sample_in_both_directions() -> None:
    voice = normal(4_000)
    for shift in (-480, -1, 0, 37, 900):
        heard = voice[2_000 - shift : 2_800 - shift]
        found, match = delay.shift_between(heard, voice[2_000 - 960 : 2_800], 320)
        assert found == shift
        assert match > 0.99
    _, match = delay.shift_between(normal(800), voice[1_040:2_800], 320)
    assert match < 0.5


@pytest.mark.parametrize("missing", ["scipy.fft._pocketfft.pypocketfft", "scipy.fft"])
def test_with_another_scipy_or_none_the_transforms_are_the_same(
    monkeypatch: pytest.MonkeyPatch, missing: str
) -> None:
    rows = normal(7, 320)
    expected = fourier.rfft(rows)
    back = fourier.irfft(expected)
    monkeypatch.setattr(fourier, "_chosen", [])
    monkeypatch.setitem(sys.modules, missing, None)
    if missing == "scipy.fft":
        monkeypatch.setitem(sys.modules, "scipy.fft._pocketfft.pypocketfft", None)
    np.testing.assert_allclose(fourier.rfft(rows), expected, atol=1e-4)
    np.testing.assert_allclose(fourier.irfft(expected), back, atol=1e-5)
    np.testing.assert_allclose(back, rows, atol=1e-5)
    real = np.abs(normal(3, 161))  # a spectrum without phase
    np.testing.assert_allclose(fourier.irfft(real), np.fft.irfft(real, axis=1), atol=1e-5)
