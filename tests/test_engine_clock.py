"""The absolute frame clock, stepped by hand."""

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from engine.api import TICK_S
from engine.clock import FrameClock, TickTimes


def begun(phase: float = 0.0, now: float = 100.0) -> FrameClock:
    clock = FrameClock(phase)
    clock.begin(now)
    return clock


def test_no_tick_is_due_before_the_clock_begins_or_before_its_deadline() -> None:
    clock = FrameClock()
    assert clock.take(1e9) is None
    clock.begin(100.0)
    assert clock.take(clock.deadline - 1e-6) is None


@given(st.floats(0, 1e3), st.floats(0, 1e6))
def test_deadlines_are_a_whole_number_of_periods_from_the_phase(phase: float, now: float) -> None:
    clock = begun(phase, now)
    assert now < clock.deadline + 1e-6 and clock.deadline - now <= TICK_S + 1e-6
    periods = (clock.deadline - phase) / TICK_S
    assert math.isclose(periods, round(periods), abs_tol=1e-4)


def test_a_day_of_ticks_drifts_by_nothing() -> None:
    clock = begun(0.013)
    first = clock.deadline
    for n in range(100_000):
        assert clock.take(clock.deadline) is not None
        assert abs(clock.deadline - (first + (n + 1) * TICK_S)) < 1e-6
    assert (clock.late_ticks, clock.skipped_ticks) == (0, 0)


def test_a_little_late_counts_and_changes_nothing_else() -> None:
    clock = begun()
    tick = clock.take(clock.deadline + 0.03)
    assert tick is not None and (tick.behind, tick.skipped) == (0, 0)
    assert clock.late_ticks == 1


def test_one_period_late_runs_two_ticks_back_to_back() -> None:
    clock = begun()
    now = clock.deadline + 0.085
    first, second = clock.take(now), clock.take(now + 0.005)
    assert first is not None and (first.behind, first.skipped) == (1, 0)
    assert second is not None and (second.behind, second.skipped) == (0, 0)
    assert clock.take(now + 0.006) is None


def test_the_next_frame_written_just_before_its_deadline_is_no_backlog() -> None:
    clock = begun()
    tick = clock.take(clock.deadline + TICK_S - 0.004)
    assert tick is not None and tick.behind == 1
    assert clock.take(clock.deadline - 0.001) is None
    assert clock.take(clock.deadline) is not None


def test_three_periods_late_drops_the_oldest_and_catches_up_once() -> None:
    clock = begun()
    due = clock.deadline
    tick = clock.take(due + 3 * TICK_S + 0.001)
    assert tick is not None and (tick.behind, tick.skipped) == (1, 2)
    assert tick.deadline == pytest.approx(due + 2 * TICK_S)
    assert clock.skipped_ticks == 2


def test_steps_longer_than_the_period_drop_frames_and_never_fall_further_behind() -> None:
    clock = begun()
    now, ran = clock.deadline, 0
    start = now
    while now < start + 20.0:
        tick = clock.take(now)
        if tick is None:
            now = clock.deadline
            continue
        assert now - tick.deadline < 2 * TICK_S
        ran += 1
        now += 0.100
    assert ran == pytest.approx(200, abs=2)
    assert clock.skipped_ticks == pytest.approx(50, abs=2)


def test_a_machine_that_slept_an_hour_skips_in_one_go() -> None:
    clock = begun()
    tick = clock.take(clock.deadline + 3600.0)
    assert tick is not None and tick.skipped == 45_000 - 1 and tick.behind == 1
    assert clock.take(clock.deadline + 1.0) is not None


def test_percentiles_are_of_the_last_ticks_only() -> None:
    times = TickTimes(size=100)
    assert times.percentile_ms(99) == 0.0
    for _ in range(100):
        times.add(1.0)
    for n in range(100):
        times.add(n / 1000)
    assert times.percentile_ms(50) == pytest.approx(49.5)
    assert times.percentile_ms(99) == pytest.approx(98.01)
    assert times.recent_ms(50, ticks=10) == pytest.approx(94.5)
    assert times.recent_ms(50, ticks=1000) == 0.0
