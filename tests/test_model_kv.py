"""Pages: never lost, never shared by mistake, never more than a window."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from engine.kv import PAGE, OutOfPages, PagedCache

CPU = torch.device("cpu")


def run(cache: PagedCache, slot: int, frames: int) -> None:
    rows = np.array([slot])
    for _ in range(frames):
        cache.reserve(rows)
        cache.advance(rows)


def held(cache: PagedCache) -> list[int]:
    return [page for slot in range(len(cache.frames)) for _, page in cache.pages_of(slot)]


def test_a_window_is_a_ring_of_pages() -> None:
    cache = PagedCache(20, 2, context=150, history=10, device=CPU)
    most = 0
    for _ in range(40):
        run(cache, 1, 17)
        most = max(most, cache.slot_pages(1))
        oldest = cache.pages_of(1)[0][0] * PAGE
        assert oldest <= max(0, int(cache.frames[1]) - 1 - 150 - 10 + 1)
    assert most <= cache.columns == 4
    cache.push()
    assert sorted(cache.tables[1].tolist()) == sorted(
        [0] * (4 - cache.slot_pages(1)) + [p for _, p in cache.pages_of(1)]
    )


def test_out_of_pages_leaves_everything_as_it_was() -> None:
    cache = PagedCache(2, 3, context=300, history=5, device=CPU)
    run(cache, 0, 70)
    with pytest.raises(OutOfPages) as caught:
        cache.reserve(np.array([0, 1, 2]))
    assert (caught.value.needed, caught.value.free) == (2, 0)
    assert cache.use.used == 2 and cache.slot_pages(1) == 0
    cache.clear(0)
    run(cache, 1, 1)
    assert cache.use.used == 1


def test_shrinking_frees_pages_and_holds_from_then_on() -> None:
    cache = PagedCache(20, 1, context=640, history=10, device=CPU)
    run(cache, 0, 700)
    before = cache.slot_pages(0)
    assert cache.shrink(0, 4) == before - cache.slot_pages(0) > 0
    for _ in range(5):
        run(cache, 0, 100)
        assert cache.slot_pages(0) <= 4


def test_the_forecast_is_never_too_low() -> None:
    cache = PagedCache(100, 3, context=200, history=10, device=CPU)
    for slot, frames in enumerate((1, 100, 500)):
        run(cache, slot, frames)
    for ahead in (1, 30, 64, 200, 1000):
        copy = PagedCache(100, 3, context=200, history=10, device=CPU)
        for slot, frames in enumerate((1, 100, 500)):
            run(copy, slot, frames)
        promised = cache.forecast(np.arange(3), ahead)
        before = copy.use.used
        for slot in range(3):
            run(copy, slot, ahead)
        assert copy.use.used - before <= promised <= copy.use.used - before + 3


@settings(max_examples=60, deadline=None)
@given(
    st.lists(
        st.tuples(
            st.sampled_from(["run", "clear", "rewind", "shrink"]), st.integers(0, 2), st.integers(1, 90)
        )
    )
)
def test_pages_are_never_lost_or_held_twice(actions: list[tuple[str, int, int]]) -> None:
    cache = PagedCache(12, 3, context=130, history=8, device=CPU)
    reach = [0, 0, 0]
    for action, slot, amount in actions:
        if action == "run":
            try:
                run(cache, slot, amount)
                reach[slot] = min(8, reach[slot] + amount)
            except OutOfPages:
                reach[slot] = 0
        elif action == "clear":
            cache.clear(slot)
            reach[slot] = 0
        elif action == "rewind":
            back = min(amount, reach[slot])
            cache.rewind(slot, back)
            reach[slot] -= back
        else:
            cache.shrink(slot, 2 + amount % 3)
        pages = held(cache)
        assert len(set(pages)) == len(pages) and 0 not in pages
        assert cache.use.used == sum(cache.slot_pages(s) for s in range(3)) >= len(pages)
    for slot in range(3):
        cache.clear(slot)
    assert cache.use.used == 0
