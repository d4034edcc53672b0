"""SileroNet gives what onnxruntime gives of the same file, and leaves alone what it does not understand."""

import logging
from pathlib import Path

import numpy as np
import pytest

from bench.echo_scenes import read_flac
from gateway.media.silero import SAMPLES, NotUnderstood, SileroNet, weights_in
from gateway.media.vad import Silero, _session, model_path

SPEECH = Path(__file__).parent / "data" / "speech" / "ast_en_far_8k.flac"
FRAME = 256


@pytest.fixture(scope="module")
def model() -> bytes:
    return model_path().read_bytes()


def test_probabilities_over_a_call_are_those_of_onnxruntime() -> None:
    """Half a thousand frames of speech at four levels, silence and noise, each row from another place; the
    state is each one's own, so that differences would add up."""
    voice, rng = read_flac(SPEECH)[0], np.random.default_rng(8)
    net, session = SileroNet.load(model_path()), _session(model_path())
    levels = np.array([1, 0.3, 0.03, 0.003, 0], np.float32).repeat(2)[:, None]
    states = [np.zeros((2, len(levels), 128), np.float32)] * 2
    heard = []
    for number in range(50):
        starts = np.arange(len(levels)) * 31_000 + number * FRAME
        frames = levels * np.stack([voice[at % (len(voice) - SAMPLES) :][:SAMPLES] for at in starts])
        frames = frames + 1e-4 * rng.standard_normal(frames.shape).astype(np.float32)
        ours, states[0] = net(frames, states[0])
        theirs, states[1] = session.run(
            None, {"input": frames, "state": states[1], "sr": np.array(8_000, np.int64)}
        )
        np.testing.assert_allclose(ours, theirs[:, 0], atol=1e-4)
        np.testing.assert_allclose(states[0], states[1], atol=1e-3)
        heard.append(ours)
    assert np.max(heard) > 0.9 and np.min(heard) < 0.1


def test_a_frame_is_judged_the_same_alone_as_among_two_hundred() -> None:
    net, rng = SileroNet.load(model_path()), np.random.default_rng(9)
    frames = (0.1 * rng.standard_normal((200, SAMPLES))).astype(np.float32)
    state = (0.1 * rng.standard_normal((2, 200, 128))).astype(np.float32)
    together, after = net(frames, state)
    for row in (0, 95, 96, 199):
        alone, mine = net(frames[row : row + 1], state[:, row : row + 1])
        np.testing.assert_allclose(alone[0], together[row], atol=1e-5)
        np.testing.assert_allclose(mine[:, 0], after[:, row], atol=1e-5)


def test_nobody_costs_nothing() -> None:
    probability, state = SileroNet.load(model_path())(
        np.zeros((0, SAMPLES), np.float32), np.zeros((2, 0, 128), np.float32)
    )
    assert probability.shape == (0,) and state.shape == (2, 0, 128)


def test_other_files_are_not_understood(model: bytes) -> None:
    for other in (b"", b"no model", bytes(100), model[:1_000], model[: len(model) // 2], model[7:]):
        with pytest.raises(NotUnderstood):
            weights_in(other)


def test_a_model_of_other_shapes_is_left_to_onnxruntime(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr("gateway.media.silero.SHAPES", {"decoder.rnn.weight_ih": (3, 3)})
    frames, state = np.zeros((2, SAMPLES), np.float32), np.zeros((2, 2, 128), np.float32)
    with caplog.at_level(logging.WARNING):
        probability, after = Silero()(frames, state)
    assert "onnxruntime runs it" in caplog.text
    assert probability.shape == (2,) and after.shape == state.shape
