"""How many calls fit: by measured ticks, by pages, and who gives pages back under pressure."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from engine.forecast import PageForecast, relief, slots_within


@pytest.mark.parametrize(
    ("curve", "count", "expected"),
    [
        ({}, 8, 0),
        ({1: 61.0}, 8, 0),
        ({1: 20.0}, 8, 1),
        ({1: 10.0, 4: 40.0}, 4, 4),
        ({1: 10.0, 4: 40.0, 8: 80.0}, 8, 6),
        ({1: 10.0, 4: 40.0}, 20, 6),
        ({1: 20.0, 8: 20.0}, 16, 8),
        ({1: 30.0, 2: 28.0, 4: 59.0, 8: 140.0}, 8, 4),
    ],
)
def test_the_limit_is_where_the_measured_line_crosses_the_budget(
    curve: dict[int, float], count: int, expected: int
) -> None:
    assert slots_within(curve, count) == expected


def h200() -> PageForecast:
    """moshi.md §3: 116 calls of 3 minutes' mean, 1,656 live frames each, in bf16 pages of 64 frames."""
    return PageForecast(total=116 * 1_656 // 64, window=48)


def test_the_forecast_agrees_with_the_capacity_table_within_a_tenth() -> None:
    random = np.random.default_rng(3)
    forecast, admitted = h200(), []
    for _ in range(20):
        held: list[int] = []
        while True:
            age_s = random.exponential(180.0)
            if not forecast.admits(held, 1):
                break
            held.append(1 + min(47, int(age_s * 12.5 / 64)))
        admitted.append(len(held))
    assert 0.9 * 116 < np.mean(admitted) <= 116


def test_young_calls_are_counted_for_what_they_will_grow_to() -> None:
    full_windows = 10
    forecast = PageForecast(total=full_windows * 48, window=48)
    fits = next(n for n in range(1, 200) if not forecast.admits([1] * n, 1))
    assert 2 * full_windows < fits < 4 * full_windows


@given(st.lists(st.integers(1, 48), max_size=60))
def test_the_peak_is_at_least_what_is_held_and_at_most_every_window_full(held: list[int]) -> None:
    assert sum(held) - 1e-6 <= h200().peak(held) <= 48 * len(held) + 1e-6


def test_who_comes_back_comes_when_a_call_has_probably_ended() -> None:
    assert h200().retry_after_s(90) == pytest.approx(2.0)
    assert h200().retry_after_s(1) == 60.0 and h200().retry_after_s(1_000) == 1.0


@given(st.dictionaries(st.integers(0, 40), st.integers(1, 48), max_size=40), st.integers(0, 200))
def test_relief_takes_from_the_longest_only_and_just_enough(held: dict[int, int], needed: int) -> None:
    kept = relief(held, needed)
    after = held | kept
    freed = sum(held.values()) - sum(after.values())
    assert all(2 <= pages < held[slot] for slot, pages in kept.items())
    spare = sum(max(0, pages - 2) for pages in held.values())
    assert freed >= min(needed, spare)
    if kept:
        level = max(kept.values())
        assert min(kept.values()) == level
        assert all(pages <= level for slot, pages in held.items() if slot not in kept)
        one_more = sum(max(0, pages - level - 1) for pages in held.values())
        assert one_more < needed
