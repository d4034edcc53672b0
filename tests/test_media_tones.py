"""Keys pressed in the audio itself: each heard once, none in speech, and nothing of them behind."""

from __future__ import annotations

import itertools
from pathlib import Path

import av
import numpy as np
import pytest

from gateway.media import g711
from gateway.media.messages import DtmfReceived
from gateway.media.tones import HIGH, KEYS, LOW, Tones
from tests.audio import Signal, level_dbfs
from tests.phone import Bench, Phone

SPEECH = sorted((Path(__file__).parent / "data" / "speech").glob("*.flac"))
ROW = 1


def tones(
    *frequencies: float, seconds: float, dbfs: float, rate: int = 8_000, twist_db: float = 0.0
) -> Signal:
    """The last of the frequencies is louder by `twist_db`."""
    t = np.arange(int(seconds * rate)) / rate
    parts = [np.sin(2 * np.pi * f * t + k) for k, f in enumerate(frequencies)]
    parts[-1] = parts[-1] * 10 ** (twist_db / 20)
    mixed = np.sum(parts, axis=0)
    return np.asarray(mixed * 10 ** (dbfs / 20) / np.sqrt(np.mean(mixed**2)))


def pressed(
    keys: str, on_s: float = 0.05, off_s: float = 0.05, off_tune: float = 1.0, **how: float
) -> Signal:
    """These keys after 0.2 s of silence."""
    rate = int(how.get("rate", 8_000))
    line = [np.zeros(rate // 5)]
    for key in keys:
        low, high = LOW[KEYS.index(key) // 4] * off_tune, HIGH[KEYS.index(key) % 4] * off_tune
        line += [tones(low, high, seconds=on_s, **how), np.zeros(int(off_s * rate))]  # type: ignore[arg-type]
    return np.concatenate([*line, np.zeros(rate // 2)])


def heard(line: Signal, rate: int = 8_000, lost: frozenset[int] = frozenset()) -> tuple[str, Signal]:
    """The keys found, and what is left of the audio; blocks in `lost` are silence instead."""
    found, out, block = "", [], rate // 50
    listener = Tones(2)
    listener.listen(ROW, True)
    for number in range(len(line) // block):
        pcm = line[number * block : (number + 1) * block].astype(np.float32)[None]
        gone = number in lost
        invented = np.array([block if gone else 0])
        left, keys = listener.hear(np.array([ROW]), 0 * pcm if gone else pcm, rate, invented)
        found += "".join(key for row, key, _ in keys if row == ROW)
        out.append(left[0])
    return found, np.concatenate(out)


@pytest.mark.parametrize("dbfs", [-10.0, -25.0, -33.0])
@pytest.mark.parametrize("twist_db", [-4.0, 0.0, 4.0])
@pytest.mark.parametrize("off_tune", [0.985, 1.0, 1.015])
def test_every_key_is_found_once_however_it_is_pressed(dbfs: float, twist_db: float, off_tune: float) -> None:
    line = pressed(KEYS + "1155", dbfs=dbfs, twist_db=twist_db, off_tune=off_tune)
    line += np.random.default_rng(1).standard_normal(len(line)) * 10 ** ((dbfs - 20) / 20)
    coded = g711.decode(g711.encode(np.rint(32_767 * np.clip(line, -1, 1)).astype(np.int16), 0), 0) / 32_768
    assert heard(coded)[0] == KEYS + "1155"


@pytest.mark.parametrize("rate", [16_000, 24_000])
def test_wider_legs_hear_them_too(rate: int) -> None:
    assert heard(pressed("0123456789", rate=rate, dbfs=-20.0), rate)[0] == "0123456789"


def test_a_key_held_for_long_is_one_and_a_pause_of_40_ms_makes_two() -> None:
    assert heard(pressed("7", on_s=3.0, dbfs=-20.0))[0] == "7"
    assert heard(pressed("77", on_s=0.04, off_s=0.04, dbfs=-20.0))[0] == "77"


def test_a_lost_packet_in_a_key_does_not_make_it_two() -> None:
    line = pressed("4", on_s=0.4, dbfs=-20.0)
    for block in range(11, 28):
        assert heard(line, lost=frozenset({block}))[0] == "4"


def test_a_key_in_which_the_packets_stop_is_told_soon_and_not_when_they_return() -> None:
    line = np.concatenate([pressed("5", on_s=0.1, dbfs=-20.0), np.zeros(8_000)])
    listener = Tones(2)
    listener.listen(ROW, True)
    told = []
    for number in range(len(line) // 160):
        pcm = line[number * 160 : (number + 1) * 160].astype(np.float32)[None]
        gone = 13 <= number < 80
        invented = np.array([160 if gone else 0])
        _, keys = listener.hear(np.array([ROW]), 0 * pcm if gone else pcm, 8_000, invented)
        told += [(number, key, held_ms) for _, key, held_ms in keys]
    ((at, key, held_ms),) = told
    assert key == "5" and at <= 13 + 6 and held_ms <= 160


def test_three_percent_of_loss_costs_a_key_now_and_then_and_makes_none_two() -> None:
    rng, found = np.random.default_rng(4), 0
    for _ in range(12):
        line = pressed("0123456789", on_s=0.1, off_s=0.1, dbfs=-20.0)
        lost = frozenset(np.flatnonzero(rng.random(len(line) // 160) < 0.03).tolist())
        keys = heard(line, lost=lost)[0]
        assert not any(a == b for a, b in itertools.pairwise(keys)), "none is told twice"
        found += len(keys)
    assert found >= 117


@pytest.mark.parametrize("path", SPEECH, ids=lambda path: path.stem)
def test_speech_presses_no_key_and_loses_nothing(path: Path) -> None:
    with av.open(str(path)) as file:
        frames = list(file.decode(audio=0))
    pcm = np.concatenate([frame.to_ndarray().reshape(-1) for frame in frames]) / 32_768
    found, left = heard(pcm, frames[0].sample_rate)
    assert found == ""
    np.testing.assert_array_equal(left, pcm[: len(left)].astype(np.float32))


LINE_TONES = [(425,), (440, 480), (350, 440), (480, 620), (1_100,), (2_100,), (262, 330, 392)]


@pytest.mark.parametrize("frequencies", LINE_TONES)
def test_a_line_s_own_tones_and_chords_are_no_keys(frequencies: tuple[float, ...]) -> None:
    assert heard(tones(*frequencies, seconds=2.0, dbfs=-15.0))[0] == ""


def test_a_row_hears_the_same_keys_alone_as_among_the_quiet() -> None:
    """Rows in which nothing can be a key are not looked at: what they leave out must change nothing."""
    lines = [pressed("159D", dbfs=-20.0), pressed("#0", dbfs=-33.0, on_s=0.2), 1e-4 * np.ones(4_000)]
    size = max(map(len, lines)) // 160 * 160
    pcm = np.stack([np.resize(np.append(line, np.zeros(size)), size) for line in lines]).astype(np.float32)
    everyone, rows = Tones(3), np.arange(3)
    for row in rows.tolist():
        everyone.listen(row, True)
    together, out = ["", "", ""], []
    for at in range(0, size, 160):
        left, keys = everyone.hear(rows, pcm[:, at : at + 160], 8_000, np.zeros(3, np.int64))
        out.append(left)
        for row, key, _ in keys:
            together[row] += key
    assert together == ["159D", "#0", ""]
    for row in rows.tolist():
        alone, left = heard(pcm[row].astype(np.float64))
        assert alone == together[row]
        np.testing.assert_array_equal(np.concatenate(out, axis=1)[row], left)


def test_what_is_left_of_a_key_is_a_moment_at_most() -> None:
    line = pressed("5", on_s=0.3, dbfs=-15.0)
    left = heard(line)[1]
    loud = np.flatnonzero(np.abs(left) > 0.001)
    assert len(loud) <= 0.02 * 8_000, "the block in which it began"


def test_a_phone_without_telephone_event_presses_keys_and_the_engine_hears_none() -> None:
    bench = Bench(compiled=True)
    phone = Phone((pressed("42#", on_s=0.1, off_s=0.1, dbfs=-15.0) * 32_767).astype(np.int16))
    bench.call(0, phone, dtmf_payload_type=None)
    bench.run(90)
    keys = [event for event in bench.events if isinstance(event, DtmfReceived)]
    bench.close()
    assert [event.digit for event in keys] == ["4", "2", "#"] and all(event.inband for event in keys)
    assert all(80 <= event.duration_ms <= 130 for event in keys)
    assert level_dbfs(phone.heard_pcm()[4_000:] / 32_768) < -28, "of the echo little more than three onsets"


def test_a_phone_that_agreed_on_telephone_event_presses_none_by_sound() -> None:
    bench = Bench(compiled=True)
    phone = Phone((pressed("42#", on_s=0.1, off_s=0.1, dbfs=-15.0) * 32_767).astype(np.int16))
    bench.call(0, phone)
    bench.run(90)
    bench.close()
    assert not [event for event in bench.events if isinstance(event, DtmfReceived)]
