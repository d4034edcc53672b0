"""Speech is found where it is and nowhere else, over many rows at once."""

from pathlib import Path

import numpy as np
import pytest

from bench.barge_scenes import without_pauses
from bench.echo_scenes import read_flac
from gateway.media import gate, vad
from gateway.media.vad import BLOCK, ModelMissing, Silero, SpeechDetector, SpeechSettings

SPEECH = Path(__file__).parent / "data" / "speech"
RATE = 8_000


@pytest.fixture(scope="module")
def silero() -> Silero:
    return Silero()


@pytest.fixture(scope="module")
def voice() -> np.ndarray:
    return read_flac(SPEECH / "ast_en_near2_8k.flac")[0][: 3 * RATE]


def noise(samples: int, dbfs: float, seed: int = 1) -> np.ndarray:
    return (np.random.default_rng(seed).standard_normal(samples) * 10 ** (dbfs / 20)).astype(np.float32)


def call(voice: np.ndarray, level_dbfs: float = -22.0, noise_dbfs: float = -62.0) -> np.ndarray:
    """A second of noise, the utterance, a second of noise."""
    pause = np.zeros(RATE, np.float32)
    pcm = np.concatenate([pause, voice * 10 ** ((level_dbfs + 22) / 20), pause])
    return pcm + noise(len(pcm), noise_dbfs)


def listen(
    silero: Silero, calls: list[np.ndarray], echo: float = 0.0, settings: SpeechSettings | None = None
) -> tuple[np.ndarray, SpeechDetector]:
    """Speech in the talkspurt, (calls, blocks), as it is known after each block."""
    count = len(calls)
    detector, rows = SpeechDetector(count, settings or SpeechSettings(), silero), np.arange(count)
    for row in rows:
        detector.open(int(row))
    pcm = np.stack(calls)
    speech = []
    for at in range(0, pcm.shape[1] - BLOCK + 1, BLOCK):
        detector.hear(rows, pcm[:, at : at + BLOCK], np.full(count, echo, np.float32))
        speech.append(detector.speech.copy())
    return np.array(speech).T, detector


def onset(voice: np.ndarray) -> int:
    """First 20 ms block of the call in which the utterance is within 25 dB of its level."""
    power = np.mean(voice[: len(voice) // BLOCK * BLOCK].reshape(-1, BLOCK) ** 2, axis=1)
    return 50 + int(np.argmax(power > 10**-2.5 * power.mean()))


@pytest.mark.parametrize("level", [-22.0, -32.0, -40.0])
def test_a_caller_is_heard_within_160_ms_however_quiet(
    silero: Silero, voice: np.ndarray, level: float
) -> None:
    speech, _ = listen(silero, [call(voice, level)])
    begun = int(np.argmax(speech[0] > 0))
    assert 0 <= begun - onset(voice) <= 8


def test_a_voice_is_loud_at_once_and_the_line_is_not(silero: Silero, voice: np.ndarray) -> None:
    pcm = call(voice)
    detector, row = SpeechDetector(1, silero=silero), np.array([0])
    detector.open(0)
    loud = []
    for at in range(0, len(pcm) - BLOCK + 1, BLOCK):
        detector.hear(row, pcm[None, at : at + BLOCK], np.zeros(1, np.float32))
        loud.append(bool(detector.loud[0]))
    assert not any(loud[:50])
    assert abs(loud.index(True) - onset(voice)) <= 2


def test_speech_ends_after_the_hangover_and_not_in_a_breath(silero: Silero, voice: np.ndarray) -> None:
    speech, _ = listen(silero, [call(voice)])
    assert speech[0, :45].max() == 0
    assert speech[0, -20:].max() == 0
    assert speech[0].max() > 1.0 * RATE


@pytest.mark.parametrize("dbfs", [-60.0, -40.0, -25.0])
def test_steady_noise_is_not_speech(silero: Silero, dbfs: float) -> None:
    speech, _ = listen(silero, [noise(5 * RATE, dbfs)])
    assert speech.max() == 0


def room(samples: int, dbfs: float) -> np.ndarray:
    """Eight talkers at once, as a phone in an office hears them."""
    talk = np.concatenate([read_flac(path)[0] for path in sorted(SPEECH.glob("ast_en_near*_8k.flac"))])
    rng = np.random.default_rng(3)
    reverberation = rng.standard_normal(RATE // 2) * np.exp(-np.arange(RATE // 2) / (0.1 * RATE))
    babble = sum(np.roll(talk, int(rng.integers(len(talk)))) for _ in range(8))
    babble = np.resize(np.convolve(babble, reverberation)[: len(talk)], samples)
    return (babble * 10 ** (dbfs / 20) / np.sqrt(np.mean(babble**2))).astype(np.float32)


def test_a_room_of_talkers_is_not_the_caller_from_its_first_second_on(silero: Silero) -> None:
    speech, _ = listen(silero, [room(10 * RATE, -27.0)])
    assert speech.max() * 1_000 < 100 * RATE


def test_a_caller_5_db_over_a_room_of_talkers_is_heard_through_to_his_words_ends(
    silero: Silero, voice: np.ndarray
) -> None:
    fluent = without_pauses(voice)
    alone = np.zeros(9 * RATE, np.float32)
    alone[4 * RATE : 4 * RATE + len(fluent)] = fluent
    speech, _ = listen(silero, [alone + room(len(alone), -27.0), alone])
    assert speech[0].max() > 0.8 * speech[1].max()
    assert speech[0][-50:].max() == 0


@pytest.mark.parametrize("pair", [(697, 1_209), (941, 1_633), (350, 440), (425, 425), (1_400, 1_400)])
def test_tones_and_keys_are_not_speech(silero: Silero, pair: tuple[int, int]) -> None:
    time = np.arange(3 * RATE) / RATE
    tone = sum(0.1 * np.sin(2 * np.pi * hertz * time) for hertz in pair) * (time % 0.5 < 0.25)
    speech, _ = listen(silero, [tone.astype(np.float32) + noise(len(tone), -60)])
    assert speech.max() == 0


def test_coughs_are_not_taken_for_an_interruption(silero: Silero) -> None:
    rng = np.random.default_rng(4)
    pcm = noise(4 * RATE, -60)
    for start in (1.0, 1.9, 2.8):
        length = int(rng.uniform(0.15, 0.35) * RATE)
        burst = np.convolve(rng.standard_normal(length), np.hanning(9), "same")
        burst *= 0.2 * np.exp(-4 * np.arange(length) / length) / burst.std()
        pcm[int(start * RATE) : int(start * RATE) + length] += burst.astype(np.float32)
    speech, _ = listen(silero, [pcm])
    assert speech.max() * 1_000 < 180 * RATE


def test_what_may_be_echo_is_not_the_callers_speech(silero: Silero, voice: np.ndarray) -> None:
    speech, _ = listen(silero, [call(voice, -40.0)], echo=10 ** (-40 / 10))
    assert speech.max() == 0
    loud, _ = listen(silero, [call(voice, -22.0)], echo=10 ** (-40 / 10))
    assert loud.max() > 0.5 * RATE


def test_noise_that_was_turned_down_and_comes_back_is_neither_loud_nor_asked_about(silero: Silero) -> None:
    pcm = noise(4 * RATE, -52)
    pcm[: 3 * RATE] *= 0.1
    told, untold = SpeechDetector(1, silero=silero), SpeechDetector(1, silero=silero)
    row, none, hiss = np.array([0]), np.zeros(1, np.float32), np.full(1, 10**-5.2, np.float32)
    loud = [0, 0]
    for detector in (told, untold):
        detector.open(0)
    for at in range(0, len(pcm), BLOCK):
        told.hear(row, pcm[None, at : at + BLOCK], none, hiss)
        untold.hear(row, pcm[None, at : at + BLOCK], none)
        loud[0] += int(told.loud[0])
        loud[1] += int(untold.loud[0])
    assert loud[0] == 0 < loud[1]


def test_far_below_his_own_voice_a_caller_is_someone_else_in_the_room(
    silero: Silero, voice: np.ndarray
) -> None:
    whisper = call(voice, -52.0, noise_dbfs=-75.0)
    both = np.concatenate([call(voice, -22.0, noise_dbfs=-75.0), whisper])
    speech, detector = listen(silero, [both])
    assert speech[0, len(both) // BLOCK - len(whisper) // BLOCK + 20 :].max() == 0
    assert -30 < 10 * np.log10(detector.voice[0]) < -15


def test_a_row_hears_the_same_alone_as_among_others(silero: Silero, voice: np.ndarray) -> None:
    calls = [call(voice), noise(5 * RATE, -50), call(voice, -35.0)]
    together, many = listen(silero, calls)
    alone, one = listen(silero, calls[:1])
    np.testing.assert_array_equal(together[0], alone[0])
    assert many.probability[0] == pytest.approx(one.probability[0], abs=1e-4)


def test_rows_complete_their_frames_at_different_ticks(silero: Silero) -> None:
    detector, rows = SpeechDetector(64, silero=silero), np.arange(64)
    for row in rows:
        detector.open(int(row))
    blocks = np.zeros((64, BLOCK), np.float32)
    ready = [len(detector.hear(rows, blocks, np.zeros(64, np.float32))) for _ in range(80)]
    assert max(ready) <= 48
    assert sum(ready) == pytest.approx(64 * 80 * BLOCK / 256, rel=0.03)


def test_silence_costs_no_inference(voice: np.ndarray) -> None:
    class Counting(Silero):
        asked = 0

        def __call__(self, frames: np.ndarray, state: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
            self.asked += len(frames)
            return super().__call__(frames, state)

    counting = Counting()
    listen(counting, [noise(4 * RATE, -65)])
    assert counting.asked == 0
    listen(counting, [call(voice)])
    assert counting.asked > 40


def test_the_gate_is_the_same_compiled_or_not() -> None:
    rng = np.random.default_rng(6)
    limits, sides = vad._limits(SpeechSettings()), [gate.heard(9) for _ in "ab"]
    for side in sides:
        side.filled[:] = np.arange(9) * 32 % 256
    asked = loud = 0
    for tick in range(150):
        rows = np.sort(rng.choice(9, 5, replace=False))
        level = 10 ** rng.uniform(-3.5, -0.5, (5, 1))
        pcm = (rng.standard_normal((5, BLOCK)) * level).astype(np.float32)
        left = (10 ** rng.uniform(-9, -3, 5)).astype(np.float32)
        speech, silence = 256 * (tick % 3), 256 * (tick % 7)
        voice, hiss = (10 ** rng.uniform(-5, -2, 9) for _ in "ab")
        found = []
        for passed, side in zip((gate.pass_on, gate.pass_on.twin), sides, strict=True):
            side.speech[:], side.silence[:], side.voice[:], side.hiss[:] = speech, silence, voice, 0.1 * hiss
            out = np.zeros(5, np.intp), np.zeros(5, np.float32), np.zeros(5, np.bool_)
            count = passed(rows, pcm, left, side, limits, *out)
            found.append([array[:count] for array in out])
        for ours, twin in zip(found[0] + list(sides[0]), found[1] + list(sides[1]), strict=True):
            np.testing.assert_allclose(ours, twin, rtol=1e-5)
        asked, loud = asked + int(found[0][2].sum()), loud + int(sides[0].loud[rows].sum())
    assert asked > 50
    assert loud > 50


def test_a_reopened_row_has_no_memory(silero: Silero, voice: np.ndarray) -> None:
    _, detector = listen(silero, [call(voice)[: 2 * RATE]])
    assert detector.voice[0] > 0
    detector.open(0)
    assert detector.voice[0] == detector.speech[0] == detector.probability[0] == 0


def test_without_the_model_the_error_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(vad.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ModelMissing, match="pip install"):
        vad.model_path()
