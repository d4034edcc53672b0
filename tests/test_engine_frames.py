"""Frames out of and into the rings: alignment, shortage, backlog, poison, and no mixing of rows."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from engine.api import FRAME
from engine.frames import RowFrames
from engine.rows import RING, AudioRows

ROWS = 5


def rows_frames() -> tuple[AudioRows, RowFrames]:
    rows = AudioRows(ROWS)
    return rows, RowFrames(rows)


def only(*which: int) -> np.ndarray:
    mask = np.zeros(ROWS, bool)
    mask[list(which)] = True
    return mask


def ramp(start: int, count: int) -> np.ndarray:
    """Samples that tell their own position."""
    return ((np.arange(start, start + count) % 100_003) / 100_003).astype(np.float32)


@pytest.mark.parametrize("first", [0, 480, 960, 1440, 7])
def test_blocks_of_20_ms_come_out_whole_whatever_tick_they_began_at(first: int) -> None:
    rows, frames = rows_frames()
    written = first
    rows.write_heard(2, ramp(0, first))
    assert np.array_equal(frames.take(only(2))[2, FRAME - first :], ramp(0, first))
    for _ in range(60):
        for _ in range(4):
            rows.write_heard(2, ramp(written, 480))
            written += 480
        assert np.array_equal(frames.take(only(2))[2], ramp(written - FRAME, FRAME))
    counters = frames.counters(2)
    assert (counters.short_samples, counters.dropped_samples) == (0, 0)


def test_frames_are_the_same_whether_all_rows_are_active_or_but_some() -> None:
    rows, frames = rows_frames()
    few = RowFrames(rows)
    for tick in range(60):
        for row in range(ROWS):
            rows.write_heard(row, ramp(7_000 * row + tick * FRAME, FRAME if tick + row else 1_440))
        whole = frames.take(only(*range(ROWS))).copy()
        assert np.array_equal(few.take(only(0, 1, 2, 4))[[0, 1, 2, 4]], whole[[0, 1, 2, 4]])
        frames.put(whole, only(*range(ROWS)))
        for row in range(ROWS):
            assert np.array_equal(rows.read_spoken(row, tick * FRAME, FRAME), whole[row])


def test_what_is_missing_is_silence_in_front_and_counted() -> None:
    rows, frames = rows_frames()
    rows.write_heard(0, ramp(1, FRAME))
    frames.take(only(0))
    rows.write_heard(0, ramp(1, 700))
    pcm = frames.take(only(0))[0]
    assert not pcm[: FRAME - 700].any() and np.array_equal(pcm[FRAME - 700 :], ramp(1, 700))
    assert frames.counters(0).short_samples == FRAME - 700
    assert not frames.take(only(0)).any()
    assert frames.counters(0).short_samples == 2 * FRAME - 700


def test_of_two_frames_or_more_the_oldest_go_and_are_counted() -> None:
    rows, frames = rows_frames()
    rows.write_heard(1, ramp(0, 4 * FRAME + 100))
    assert np.array_equal(frames.take(only(1))[1], ramp(3 * FRAME, FRAME))
    assert frames.counters(1).dropped_samples == 3 * FRAME
    rows.write_heard(1, ramp(4 * FRAME + 100, FRAME))
    assert np.array_equal(frames.take(only(1))[1], ramp(4 * FRAME, FRAME))
    assert frames.counters(1).dropped_samples == 3 * FRAME


def test_a_tick_that_runs_back_to_back_leaves_its_successors_frame() -> None:
    rows, frames = rows_frames()
    rows.write_heard(0, ramp(0, 2 * FRAME))
    assert np.array_equal(frames.take(only(0), behind=1)[0], ramp(0, FRAME))
    assert np.array_equal(frames.take(only(0))[0], ramp(FRAME, FRAME))
    assert frames.counters(0).dropped_samples == 0


def test_a_backlog_longer_than_the_ring_gives_the_newest_frame() -> None:
    rows, frames = rows_frames()
    for start in range(0, 3 * RING, FRAME):
        rows.write_heard(3, ramp(start, FRAME))
    assert np.array_equal(frames.take(only(3))[3], ramp(3 * RING - FRAME, FRAME))
    assert frames.counters(3).dropped_samples == 3 * RING - FRAME


def test_rows_that_are_not_active_give_silence_and_keep_their_audio() -> None:
    rows, frames = rows_frames()
    rows.write_heard(0, ramp(0, FRAME))
    rows.write_heard(1, ramp(500, FRAME))
    assert not frames.take(only(0))[1].any()
    assert np.array_equal(frames.take(only(1))[1], ramp(500, FRAME))


@pytest.mark.parametrize("poison", [np.nan, np.inf, -np.inf])
def test_nan_and_infinity_become_a_frame_of_silence_for_that_row_alone(poison: float) -> None:
    rows, frames = rows_frames()
    bad = ramp(0, FRAME)
    bad[77] = poison
    rows.write_heard(0, bad)
    rows.write_heard(1, ramp(0, FRAME))
    pcm = frames.take(only(0, 1))
    assert not pcm[0].any() and np.array_equal(pcm[1], ramp(0, FRAME))
    assert frames.bad_frames == 1 and frames.counters(0).short_samples == FRAME
    assert frames.counters(1).short_samples == 0


def test_clipped_audio_is_held_at_one() -> None:
    rows, frames = rows_frames()
    rows.write_heard(0, np.full(FRAME, 1e30, np.float32))
    assert (frames.take(only(0))[0] == 1.0).all()


def test_frames_go_to_the_rows_that_are_valid_and_to_no_other() -> None:
    rows, frames = rows_frames()
    for n in range(60):
        pcm = np.stack([ramp(1000 * row + n, FRAME) for row in range(ROWS)])
        frames.put(pcm, only(1, 4) if n % 3 else only(4))
    assert rows.spoken_end.tolist() == [0, 40 * FRAME, 0, 0, 60 * FRAME]
    assert np.array_equal(rows.read_spoken(4, 59 * FRAME, FRAME), ramp(4059, FRAME))
    assert np.array_equal(rows.read_spoken(1, 39 * FRAME, FRAME), ramp(1059, FRAME))
    assert not rows.spoken[[0, 2, 3]].any()
    assert frames.counters(4).frames == 60


def test_an_agent_that_says_nan_is_silent_for_that_frame() -> None:
    rows, frames = rows_frames()
    pcm = np.stack([ramp(0, FRAME)] * ROWS)
    pcm[2, 5] = np.nan
    frames.put(pcm, only(1, 2))
    assert not rows.spoken[2].any() and rows.spoken_end[2] == FRAME
    assert np.array_equal(rows.read_spoken(1, 0, FRAME), ramp(0, FRAME))


@settings(max_examples=60, deadline=None)
@given(st.lists(st.integers(0, 6_000), min_size=1, max_size=40), st.integers(0, 1))
def test_no_sample_is_lost_twice_or_comes_out_of_order(writes: list[int], behind: int) -> None:
    rows, frames = rows_frames()
    written, taken = 0, 0
    for size in writes:
        rows.write_heard(0, ramp(written, size))
        written += size
        before = frames.counters(0).dropped_samples
        pcm = frames.take(only(0), behind)[0]
        taken += frames.counters(0).dropped_samples - before
        got = min(FRAME, written - taken)
        assert np.array_equal(pcm[FRAME - got :], ramp(taken, got)) and not pcm[: FRAME - got].any()
        taken += got
        assert frames.heard_at[0] == taken and written - taken < (1 + behind) * FRAME
