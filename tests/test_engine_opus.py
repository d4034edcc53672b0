"""Our libopus binding: real packets, losses, and bytes that are no packets."""

import ctypes

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from engine import opus
from engine.opus import OpusDecoder, OpusEncoder, OpusError, OpusMissing, packet_samples

RATE = 24_000


def voiced(seconds: float) -> np.ndarray:
    """A pulse train through moving formants: something a speech coder's predictor can follow."""
    t = np.arange(int(seconds * RATE)) / RATE
    phase = 2 * np.pi * np.cumsum(140 + 25 * np.sin(2 * np.pi * 2.1 * t)) / RATE
    tones = sum(np.sin(k * phase) / k for k in range(1, 18))
    return (0.15 * tones * (0.7 + 0.3 * np.sin(2 * np.pi * 4 * t))).astype(np.float32)


def snr_db(clean: np.ndarray, other: np.ndarray) -> float:
    return 10 * np.log10(float((clean**2).sum()) / float(((clean - other) ** 2).sum() + 1e-12))


@pytest.mark.parametrize("ms", [2.5, 5, 10, 20, 40, 60])
def test_a_packet_of_every_legal_length_comes_back_with_its_length(ms: float) -> None:
    samples = int(RATE * ms / 1000)
    packet = OpusEncoder(application="audio").encode(voiced(0.1)[:samples])
    assert packet_samples(packet) == samples
    assert packet_samples(packet, 48_000) == 2 * samples
    decoded = OpusDecoder().decode(packet)
    assert decoded.shape == (samples,) and decoded.dtype == np.float32


def test_speech_survives_the_coder_at_the_lag_it_declares() -> None:
    encoder, decoder = OpusEncoder(application="audio", bitrate=64_000), OpusDecoder()
    signal = voiced(1.0)
    out = np.concatenate([decoder.decode(encoder.encode(f)) for f in signal.reshape(-1, 480)])
    lag = int(np.argmax(np.correlate(out[4_800:14_400], signal[4_800:13_900], "valid")))
    assert abs(lag - encoder.lookahead) <= 2
    assert np.corrcoef(out[lag:], signal[: len(out) - lag])[0, 1] > 0.97


def test_fec_beats_concealment_and_concealment_beats_silence() -> None:
    encoder = OpusEncoder(bitrate=32_000)
    encoder.set_loss(20, fec=True)
    packets = [encoder.encode(f) for f in voiced(2.0).reshape(-1, 480)]
    whole = OpusDecoder()
    clean = [whole.decode(p) for p in packets]
    lost = range(20, len(packets) - 1, 10)
    error = {}
    for method in ("fec", "conceal"):
        decoder, made = OpusDecoder(), {}
        for at, packet in enumerate(packets):
            if at not in lost:
                decoder.decode(packet)
            else:
                made[at] = decoder.recover(packets[at + 1], 480) if method == "fec" else decoder.conceal(480)
        error[method] = snr_db(np.concatenate([clean[i] for i in lost]), np.concatenate(list(made.values())))
    assert error["fec"] > error["conceal"] + 2 > 2


def test_dtx_makes_packets_that_need_not_be_sent() -> None:
    encoder = OpusEncoder()
    encoder.set_dtx(True)
    sizes = [len(encoder.encode(np.zeros(480, np.float32))) for _ in range(50)]
    assert min(sizes[20:]) <= 2


def test_a_lower_bitrate_makes_smaller_packets() -> None:
    encoder = OpusEncoder(bitrate=64_000)
    before = np.mean([len(encoder.encode(f)) for f in voiced(0.5).reshape(-1, 480)])
    encoder.set_bitrate(12_000)
    after = np.mean([len(encoder.encode(f)) for f in voiced(0.5).reshape(-1, 480)])
    assert after < before / 2


def test_reset_starts_a_stream_afresh() -> None:
    encoder, decoder = OpusEncoder(), OpusDecoder()
    first = [encoder.encode(f) for f in voiced(0.2).reshape(-1, 480)]
    heard = [decoder.decode(p) for p in first]
    encoder.reset(), decoder.reset()
    assert [encoder.encode(f) for f in voiced(0.2).reshape(-1, 480)] == first
    assert np.array_equal(np.concatenate([decoder.decode(p) for p in first]), np.concatenate(heard))


def test_loud_audio_stays_inside_one() -> None:
    encoder, decoder = OpusEncoder(bitrate=12_000), OpusDecoder()
    square = np.sign(voiced(0.4)).astype(np.float32)
    out = np.concatenate([decoder.decode(encoder.encode(f)) for f in square.reshape(-1, 480)])
    assert np.abs(out).max() <= 1.0


@settings(max_examples=300, deadline=None)
@given(st.binary(max_size=200))
def test_garbage_raises_its_own_error_only(packet: bytes) -> None:
    decoder = OpusDecoder()
    for read in (packet_samples, decoder.decode, lambda p: decoder.recover(p, 480)):
        try:
            read(packet)
        except OpusError as error:
            assert error.code < 0


def test_truncation_at_every_byte_never_crashes() -> None:
    packet = OpusEncoder(bitrate=32_000).encode(voiced(0.02))
    decoder = OpusDecoder()
    for length in range(1, len(packet)):
        assert len(decoder.decode(packet[:length])) == 480
    with pytest.raises(OpusError):
        decoder.decode(b"")


def test_wrong_sizes_and_rates_are_refused() -> None:
    with pytest.raises(OpusError):
        OpusEncoder().encode(np.zeros(481, np.float32))
    with pytest.raises(OpusError):
        OpusEncoder(rate=44_100)
    with pytest.raises(OpusError):
        OpusDecoder().conceal(7)


def test_a_missing_library_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    def missing(name: str) -> ctypes.PyDLL:
        raise OSError(name)

    monkeypatch.setattr(opus.ctypes, "PyDLL", missing)
    with pytest.raises(OpusMissing, match="apt-get install libopus0"):
        opus.library.__wrapped__()
