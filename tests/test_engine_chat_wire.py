"""What a remote Moshi says and how it is heard: messages, Ogg pages, the buffer between the two clocks."""

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from engine import chat_wire
from engine.api import FRAME
from engine.ogg import OggReader, OggWriter
from engine.opus import OpusDecoder, OpusEncoder
from engine.remote_voice import RemoteVoice

DATA = Path(__file__).parent / "data"


def test_a_stream_that_kyutais_own_writer_made_is_read_whole() -> None:
    reader, decoder = OggReader(), OpusDecoder()
    packets = reader.receive((DATA / "chat_sphn_tone_440hz.ogg").read_bytes())
    tone = np.concatenate([decoder.decode(packet) for packet in packets])
    assert len(tone) == 24_000 and reader.bad_pages == 0
    assert np.abs(np.fft.rfft(tone)).argmax() == 440


def test_kyutais_own_reader_reads_what_we_write() -> None:
    sphn = pytest.importorskip("sphn")
    reader, writer, encoder = sphn.OpusStreamReader(24_000), OggWriter(), OpusEncoder(application="audio")
    tone = (0.3 * np.sin(2 * np.pi * 440 * np.arange(24_000) / 24_000)).astype(np.float32)
    heard = [reader.append_bytes(writer.write(encoder.encode(part))) for part in tone.reshape(-1, 960)]
    assert np.abs(np.fft.rfft(np.concatenate(heard), 24_000)).argmax() == 440


@pytest.mark.parametrize(
    "message",
    [
        chat_wire.Handshake(),
        chat_wire.Audio(b"OggS\0"),
        chat_wire.Text(" für"),
        chat_wire.Control(2),
        chat_wire.Metadata({"a": [1]}),
        chat_wire.ServerError("full"),
        chat_wire.Ping(),
    ],
)
def test_every_message_comes_back_from_its_bytes(message: chat_wire.Message) -> None:
    assert chat_wire.parse(chat_wire.serialise(message)) == message


@given(st.binary(max_size=40))
def test_no_bytes_break_the_parser(data: bytes) -> None:
    message = chat_wire.parse(data)
    if isinstance(message, chat_wire.Unknown):
        with pytest.raises(ValueError):
            chat_wire.serialise(message)
    assert chat_wire.parse(b"\x07\x01blue") == chat_wire.Text("blue")


def packets(seconds: float, level: float = 0.2) -> list[bytes]:
    encoder = OpusEncoder(application="audio")
    t = np.arange(int(seconds * 24_000)) / 24_000
    tone = (level * np.sin(2 * np.pi * 300 * t)).astype(np.float32)
    return [encoder.encode(part) for part in tone.reshape(-1, 480)]


def test_nothing_is_taken_before_the_first_whole_frame() -> None:
    remote = RemoteVoice()
    for packet in packets(0.06):
        assert remote.take() is None
        remote.put(packet)
    assert remote.take() is None


def test_a_burst_over_240_ms_loses_its_oldest_and_counts_them() -> None:
    remote = RemoteVoice()
    for packet in packets(1.0):
        remote.put(packet)
    taken = remote.take()
    assert taken is not None and len(taken[0]) == FRAME and taken[1]
    assert remote.dropped_samples == 24_000 - FRAME - FRAME // 2


def test_shortage_is_concealed_a_while_and_then_silent() -> None:
    remote = RemoteVoice()
    for packet in packets(0.1):
        remote.put(packet)
    taken = [remote.take() for _ in range(8)]
    frames = [frame for frame in taken if frame is not None]
    assert [whole for _, whole in frames] == [True] + [False] * 7
    assert np.abs(frames[1][0][:1200]).max() > 0.02 and not frames[5][0].any()
    assert remote.concealed_frames == 7


def test_a_standing_surplus_is_given_back_in_a_quiet_moment() -> None:
    remote = RemoteVoice()
    loud, quiet = packets(20.0), packets(1.0, level=0.0)
    for packet in loud[:8]:
        remote.put(packet)
    for n in range(2, 240):
        for packet in loud[4 * n : 4 * n + 4]:
            remote.put(packet)
        assert remote.take() is not None
    assert remote.dropped_samples == 0
    for n in range(8):
        for packet in quiet[4 * n : 4 * n + 4]:
            remote.put(packet)
        remote.take()
    assert remote.dropped_samples == FRAME


def test_packets_that_are_none_are_counted_and_passed_over() -> None:
    remote = RemoteVoice()
    for packet in packets(0.08):
        remote.put(packet)
        remote.put(b"\xff\xff\xff")
    taken = remote.take()
    assert taken is not None and taken[1] and remote.bad_packets == 4


def test_text_waits_in_order_for_its_tick() -> None:
    remote = RemoteVoice()
    assert not remote.has_text
    remote.put_text(" a")
    remote.put_text(" b")
    assert remote.has_text and remote.take_text() == " a b" and not remote.has_text
