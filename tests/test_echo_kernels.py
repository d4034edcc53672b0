"""The compiled loops of the echo canceller give what their numpy twins give."""

import sys

import numpy as np
import pytest

from gateway.media import delay, foresight, fourier, gains, kalman, power, reference, residual
from gateway.media.compiled import kernel

RNG = np.random.default_rng(3)


def normal(*shape: int) -> np.ndarray:
    return RNG.standard_normal(shape).astype(np.float32)


def spectra(*shape: int) -> np.ndarray:
    return (normal(*shape) + 1j * normal(*shape)).astype(np.complex64)


def both(pair: kernel, *args: object) -> tuple[list[np.ndarray], list[np.ndarray]]:
    """What each leaves in its array arguments."""
    left, right = [copied(arg) for arg in args], [copied(arg) for arg in args]
    pair(*left)
    pair.twin(*right)
    return arrays_in(left), arrays_in(right)


def copied(arg: object) -> object:
    if isinstance(arg, tuple):
        return type(arg)(*(array.copy() for array in arg))  # type: ignore[misc]
    return arg.copy() if isinstance(arg, np.ndarray) else arg


def arrays_in(args: list[object]) -> list[np.ndarray]:
    found: list[np.ndarray] = []
    for arg in args:
        found += arg if isinstance(arg, tuple) else [arg] if isinstance(arg, np.ndarray) else []
    return found


def same_both(pair: kernel, *args: object) -> None:
    for ours, twin in zip(*both(pair, *args), strict=True):
        np.testing.assert_allclose(ours, twin, rtol=1e-4, atol=1e-4)


ROWS = np.array([4, 0, 3])
NEWEST = np.array([1, 7, 3])


def state_of_five() -> foresight.State:
    spectra = (normal(5, 9, 33), normal(5, 9, 33), normal(5, 4, 33), normal(5, 4, 33))
    return foresight.State(*spectra, np.abs(normal(5, 4, 33)))


def sums_of_five() -> foresight.Sums:
    """Rows 4 and 3 are foreseen for their newest slots, the first but for part 2; row 0 is not."""
    sums = foresight.sums(5, 33)
    for array in (sums.re, sums.im, sums.s):
        array[:] = normal(5, 33)
    sums.slot[[4, 0, 3]], sums.later[4] = [1, 6, 3], 2
    return sums


def test_a_correction_is_the_same_compiled_or_not() -> None:
    given = (state_of_five(), sums_of_five(), spectra(3, 33), np.abs(normal(3, 33)) * 0.05)
    later = np.array([0, 3, 1])
    same_both(foresight.correct, ROWS, NEWEST, *given, np.float32(0.999), later)


def test_a_prediction_is_the_same_compiled_or_not() -> None:
    out = np.empty((3, 33), np.complex64), np.empty((3, 33), np.float32)
    same_both(foresight.predict, ROWS, NEWEST, state_of_five(), sums_of_five(), *out)


def test_learning_once_more_is_the_same_compiled_or_not() -> None:
    same_both(kalman.relearn, ROWS, NEWEST, *state_of_five(), spectra(3, 33), np.abs(normal(3, 33)) * 0.05)


def test_what_is_foreseen_of_a_prediction_changes_nothing_but_its_rounding() -> None:
    foreseeing, forgetful = kalman.KalmanRows(5, 40, 4, 6), kalman.KalmanRows(5, 40, 4, 6)
    rows, prior = np.array([4, 0, 3]), np.full((3, 4), 0.05, np.float32)
    sent, heard, past = 0.1 * normal(80, 3, 80), 0.1 * normal(80, 3, 40), 0.1 * normal(11 * 40)
    for each in (foreseeing, forgetful):
        each.start(rows, prior)
    for tick in range(80):
        found = []
        for each in (foreseeing, forgetful):
            each.push(rows, sent[tick])
            each.listen(rows, heard[tick], np.full(3, tick % 7 > 0))
            if tick == 30:
                each.load(3, past)
            if tick % 9 == 0:
                each.replay(rows[:2], np.array([1, 3]))
            if each is forgetful:
                each._next.slot[:] = foresight.UNKNOWN
            found.append(each.step(rows, heard[tick], np.full(3, tick % 7 > 0)))
        np.testing.assert_allclose(found[0].error, found[1].error, atol=1e-5)
        np.testing.assert_allclose(found[0].doubt, found[1].doubt, rtol=1e-3, atol=1e-6)
    np.testing.assert_allclose(foreseeing.wr, forgetful.wr, atol=1e-4)


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


def test_the_delay_finders_phases_and_scores_are_the_same_compiled_or_not() -> None:
    parts = normal(3, 12), normal(3, 12)
    same_both(delay.phase, spectra(3, 33), np.arange(4, 28, 2), *parts)
    weight = np.abs(normal(5, 8)) * 12
    for ours, twin in zip(
        *both(delay.grade, ROWS, normal(5, 8, 12), normal(5, 8, 12), weight, normal(3, 8)), strict=True
    ):
        np.testing.assert_allclose(ours, twin, rtol=1e-5)


def test_a_fractional_read_is_the_same_compiled_or_not() -> None:
    start = np.array([50.25, 3.0, 155.9999])
    args = (normal(5, 200), ROWS, start, reference.TABLE, np.empty((3, 90), np.float32))
    for ours, twin in zip(*both(reference.read, *args), strict=True):
        np.testing.assert_allclose(ours, twin, atol=1e-5)


def test_a_moving_filter_is_the_same_compiled_or_not() -> None:
    rows, new = np.array([4, 1, 0, 3]), normal(3, 32)
    args = (np.array([0, 2, 3]), rows, normal(4, 160), normal(5, 31), normal(5, 32), new)
    for ours, twin in zip(*both(residual.shape, *args), strict=True):
        np.testing.assert_allclose(ours, twin, atol=1e-4)


@pytest.mark.parametrize("loud", [0.3, 1.0, 30.0])
def test_the_gains_of_a_block_are_the_same_compiled_or_not(loud: float) -> None:
    rows, known = np.array([4, 1, 0, 3]), gains.bands(5, 4)
    for array in (known.ring, known.clean, known.leak, known.noise):
        array[:] = np.abs(normal(5, 4))
    known.seen[:] = [0, 3, 9, 20, 40]
    lost, most = np.array([False, True, False, False]), np.array([0.1, 1e9, 1e9, 1e9], np.float32)
    block = gains.Block(*(np.abs(normal(4, 33)) for _ in range(3)), lost, most)  # type: ignore[call-arg]
    block.echo[2:] *= np.float32(loud)
    same_both(gains.weigh, rows, known, block, np.empty((4, 4), np.float32))


def test_what_heard_error_and_echo_have_in_common_is_the_same_compiled_or_not() -> None:
    same_both(power.compare, normal(3, 40), normal(3, 80), normal(3, 80), np.empty((6, 3), np.float32))
    same_both(power.energy, normal(3, 40), np.empty(3, np.float32))
    wide = normal(3, 80)
    np.testing.assert_allclose(power.energy_of(wide[:, 40:]), np.sum(wide[:, 40:] ** 2, axis=1), rtol=1e-5)


def test_folding_by_matrices_gives_filters_of_minimum_phase_with_the_gains_wanted() -> None:
    gain = np.abs(normal(3, 20)) + np.float32(0.1)
    rows = residual.ResidualRows(1, 160)
    taps = rows._minimum_phase(gain)[:, ::-1]
    cepstra = np.fft.irfft(np.log(gain) @ residual._spread(20, 32), axis=1)
    cepstra[:, 1:32] *= 2
    cepstra[:, 33:] = 0
    expected = np.fft.irfft(np.exp(np.fft.rfft(cepstra, axis=1)), axis=1)[:, :32]
    np.testing.assert_allclose(taps, expected, atol=1e-5)


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
