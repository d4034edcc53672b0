"""What a gateway and an engine elsewhere say to each other: one message a tick, and the rest as text."""

from __future__ import annotations

import contextlib
import json

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from engine import worker_protocol as wire
from tests.workers import voice


def batch() -> wire.FrameBatch:
    pcm = np.stack([voice(n) for n in range(3)])
    return wire.FrameBatch(
        7, np.array([0x10002, 5, 0xFFFF0001], np.uint32), pcm, ((5, " grün"), (5, ""), (9, " b"))
    )


def test_a_batch_comes_back_from_its_bytes_within_half_a_step() -> None:
    sent = batch()
    got = wire.FrameBatch.decode(sent.encode())
    assert (got.tick, got.calls.tolist(), got.texts) == (7, sent.calls.tolist(), sent.texts)
    assert np.abs(got.pcm - sent.pcm).max() <= 0.5 / 32_767 + 1e-7
    again = wire.FrameBatch.decode(got.encode())
    assert np.array_equal(again.pcm, got.pcm)


def test_a_batch_cut_at_any_byte_is_an_error_of_its_own() -> None:
    data = batch().encode()
    for length in [*range(40), *range(40, len(data), 97), len(data) - 1]:
        with pytest.raises(wire.WorkerProtocolError):
            wire.FrameBatch.decode(data[:length])
    with pytest.raises(wire.WorkerProtocolError):
        wire.FrameBatch.decode(data + b"\0")


@given(st.binary(max_size=200))
def test_garbage_is_an_error_of_its_own(data: bytes) -> None:
    for read in (wire.FrameBatch.decode, lambda d: wire.parse(d.decode("latin-1"))):
        with contextlib.suppress(wire.WorkerProtocolError, wire.WorkerVersionError):
            read(data)


MESSAGES = [
    wire.Greeting(1, 12.5),
    wire.Welcome(1, "echo", True),
    wire.Open(3, {"name": "anna", "seed": 4}),
    wire.Opened(3),
    wire.Refused(3, "full", "no", 2.0),
    wire.Close(3),
    wire.Ended(3, "gone"),
    wire.Interrupt(3, 1920),
    wire.Release(3),
    wire.Inject(3, "hello"),
    wire.Load(8, 3, detail={"pages": 4.0}),
    wire.Draining(),
    wire.Fault("version", "no"),
]


@pytest.mark.parametrize("message", MESSAGES, ids=lambda m: type(m).__name__)
def test_every_control_message_comes_back_and_bears_new_keys(message: wire.Control) -> None:
    text = wire.serialise(message)
    assert wire.parse(text) == message
    assert wire.parse(json.dumps(json.loads(text) | {"new": 1})) == message


@pytest.mark.parametrize(
    "text",
    ["", "[]", "{}", '{"type":"dance"}', '{"type":"open","call":1}',
     '{"type":"open","call":"1","persona":{}}',
     '{"type":"open","call":true,"persona":{}}', '{"type":"load","slots":1.5,"used":0}', "[" * 100_000],
)  # fmt: skip
def test_control_messages_of_wrong_shape_are_errors_of_their_own(text: str) -> None:
    with pytest.raises(wire.WorkerProtocolError):
        wire.parse(text)
