"""`moshi-gateway call`: reading files, playing a tape, recording in stereo, and measuring what came back."""

import wave
from pathlib import Path

import numpy as np
import pytest

from engine.api import FRAME, SAMPLE_RATE
from engine.rows import AudioRows
from engine.slots import SlotTable
from engine.tick import TickEngine
from gateway.audio_file import AudioFileError, StereoWav, read_audio, resampled
from gateway.call_report import CallReport, told
from gateway.dial import CannotDial, resolved
from gateway.media.messages import MediaStats
from gateway.tape import Tape
from gateway.turns import Levels, answer_latencies, utterances
from tests.audio import delay_of, read_wav, steady_noise, write_wav


def tone(hz: float, seconds: float, rate: int, amplitude: float = 0.25) -> np.ndarray:
    return amplitude * np.sin(2 * np.pi * hz * np.arange(int(seconds * rate)) / rate)


@pytest.mark.parametrize("rate", [8_000, 11_025, 16_000, 22_050, 24_000, 44_100, 48_000])
def test_any_rate_is_read_at_24_khz_without_a_change_of_pitch_level_or_place(
    tmp_path: Path, rate: int
) -> None:
    pcm = read_audio(write_wav(tmp_path / "tone.wav", tone(1_000, 1.0, rate), rate))
    assert pcm.dtype == np.float32 and len(pcm) == SAMPLE_RATE
    inner = slice(1_000, -1_000)
    assert np.abs(pcm - tone(1_000, 1.0, SAMPLE_RATE))[inner].max() < 2e-3


def test_what_does_not_fit_below_the_new_nyquist_frequency_is_gone() -> None:
    pcm = resampled(tone(20_000, 1.0, 48_000).astype(np.float32), 48_000, 24_000)
    assert np.abs(pcm[500:-500]).max() < 1e-3


def test_stereo_and_flac_are_read_too(tmp_path: Path) -> None:
    import av

    with av.open(str(tmp_path / "a.flac"), "w") as container:
        stream = container.add_stream("flac", rate=16_000, layout="stereo")
        left, right = tone(500, 1.0, 16_000), np.zeros(16_000)
        both = (np.stack([left, right], axis=1).reshape(1, -1) * 32_767).astype(np.int16)
        frame = av.AudioFrame.from_ndarray(both, format="s16", layout="stereo")
        frame.sample_rate = 16_000
        for packet in [*stream.encode(frame), *stream.encode(None)]:
            container.mux(packet)
    pcm = read_audio(tmp_path / "a.flac")
    assert len(pcm) == pytest.approx(SAMPLE_RATE, abs=24)
    assert np.abs(pcm[1_000:23_000]).max() == pytest.approx(0.125, rel=0.05)


def test_a_file_that_is_no_audio_is_named(tmp_path: Path) -> None:
    text = tmp_path / "notes.txt"
    text.write_text("not audio")
    for path in (text, tmp_path / "absent.wav"):
        with pytest.raises(AudioFileError, match=path.name):
            read_audio(path)


def test_the_recording_takes_its_name_when_it_is_complete(tmp_path: Path) -> None:
    path = tmp_path / "call.wav"
    wav = StereoWav(path)
    wav.write(np.full(480, 0.5, np.float32), np.full(480, -2.0, np.float32))
    assert not path.exists()
    wav.close()
    signal, rate = read_wav(path)
    assert rate == SAMPLE_RATE and signal.shape == (480, 2)
    assert signal[0] == pytest.approx([0.5, -1.0], abs=1e-3)
    assert list(tmp_path.iterdir()) == [path]


def test_a_recording_of_nothing_leaves_no_file(tmp_path: Path) -> None:
    StereoWav(tmp_path / "call.wav").discard()
    assert list(tmp_path.iterdir()) == []


@pytest.mark.filterwarnings("error")
def test_a_recording_that_cannot_be_written_is_refused_in_one_line(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"call\.wav"):
        StereoWav(tmp_path / "nowhere" / "call.wav")


async def test_a_tape_says_the_speech_once_and_records_both_sides() -> None:
    speech = steady_noise(0.5, SAMPLE_RATE).astype(np.float32)
    tape = Tape(speech)
    rows = AudioRows(1)
    engine = TickEngine("tape", tape, rows, SlotTable(1))
    engine.begin(0.0)
    await engine.open()
    answer = steady_noise(1.0, SAMPLE_RATE, seed=2).astype(np.float32)
    for tick in range(10):
        rows.write_heard(0, answer[tick * FRAME : (tick + 1) * FRAME])
        engine.run_due((tick + 1) * 0.08)
    said, heard = (np.concatenate(side) for side in zip(*tape.take(), strict=True))
    assert tape.finished and tape.played == 10
    assert np.array_equal(said[: len(speech)], speech) and not said[len(speech) :].any()
    assert np.array_equal(heard, answer[: 10 * FRAME])
    assert np.array_equal(rows.read_spoken(0, 0, len(speech)), speech)


def spoken(*stretches: tuple[float, float], seconds: float = 8.0, level: float = 0.1) -> Levels:
    """Levels of a channel that speaks from and to these seconds."""
    pcm = np.zeros(int(seconds * SAMPLE_RATE), np.float32)
    for start, end in stretches:
        pcm[int(start * SAMPLE_RATE) : int(end * SAMPLE_RATE)] = level
    levels = Levels()
    for at in range(0, len(pcm), FRAME):
        levels.add(pcm[at : at + FRAME])
    return levels


def test_utterances_are_joined_over_short_pauses_and_clicks_are_none() -> None:
    levels = spoken((1.0, 2.0), (2.3, 3.0), (5.0, 5.04), (6.0, 7.0))
    assert utterances(levels) == [pytest.approx((1.0, 3.0)), pytest.approx((6.0, 7.0))]
    assert utterances(spoken()) == [] and utterances(Levels()) == []


def test_the_answer_latency_runs_from_our_end_to_their_onset() -> None:
    caller = spoken((0.5, 1.0), (3.0, 4.0), (6.0, 6.5))
    agent = spoken((1.4, 2.0), (4.6, 5.5))
    assert answer_latencies(caller, agent) == pytest.approx([0.4, 0.6], abs=0.021)


def test_a_turn_talked_over_or_left_without_an_answer_has_no_latency() -> None:
    assert answer_latencies(spoken((0.5, 1.0), (3.0, 4.0)), spoken((0.8, 2.0))) == []
    assert answer_latencies(spoken((0.5, 1.0), (3.0, 4.0)), spoken((4.5, 5.0))) == pytest.approx(
        [0.5], abs=0.021
    )


def test_a_quiet_line_noise_is_not_an_answer() -> None:
    noisy = spoken((0.0, 8.0), level=10 ** (-60 / 20))
    assert answer_latencies(spoken((0.5, 1.0)), noisy) == []


def test_the_report_tells_setup_loss_jitter_and_latency() -> None:
    stats = MediaStats(packets_received=95, lost=5, jitter_ms=1.25)
    report = CallReport(200, "", "us", 0.012, 0.031, 12.0, "PCMU", stats, [0.2, 0.6, 0.4])
    text = told(report, Path("answer.wav"))
    assert "0.012 s" in text and "0.031 s" in text and "5 packets (5.00 %)" in text
    assert "0.40 s (3 turns, 0.20 to 0.60)" in text and "answer.wav" in text


def test_a_call_that_was_not_answered_says_why() -> None:
    assert told(CallReport(486, "Busy Here", "peer"), Path("a.wav")) == "no call: 486 Busy Here\n"


@pytest.mark.parametrize("uri", ["moshi@host", "tel:+49301234", "sip:", "http://127.0.0.1/", "sip:a@[::"])
async def test_what_cannot_be_dialled_is_refused_before_anything_is_opened(uri: str) -> None:
    with pytest.raises(CannotDial):
        await resolved(uri)


def channels(path: Path) -> tuple[np.ndarray, np.ndarray]:
    signal, _ = read_wav(path)
    return signal[:, 0], signal[:, 1]


def test_a_stereo_wav_of_many_seconds_opens_with_the_standard_library(tmp_path: Path) -> None:
    wav = StereoWav(tmp_path / "a.wav")
    noise = steady_noise(2.0, SAMPLE_RATE).astype(np.float32)
    for at in range(0, len(noise), FRAME):
        wav.write(noise[at : at + FRAME], np.roll(noise, 240)[at : at + FRAME])
    wav.close()
    with wave.open(str(tmp_path / "a.wav")) as file:
        assert (file.getnchannels(), file.getframerate(), file.getnframes()) == (
            2,
            SAMPLE_RATE,
            2 * SAMPLE_RATE,
        )
    left, right = channels(tmp_path / "a.wav")
    assert delay_of(right, left, longest=1_000)[0] == 240
