"""tshark watches a call on the loopback: the stream as it is on the wire, not as we count it."""

import threading
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest

from tests.audio import steady_noise
from tests.capture import Capture
from tests.peers import Gateway
from tests.softphone import Softphone

pytestmark = pytest.mark.peer
RATE = 8_000


def test_our_stream_is_one_packet_every_twenty_milliseconds(
    tmp_path: Path, record_property: Callable[[str, object], None]
) -> None:
    with Gateway(tmp_path) as gateway, Capture(tmp_path) as wire:
        with Softphone(tmp_path / "phone", steady_noise(30, RATE)) as phone:
            phone.dial(gateway.uri)
            port = int(phone.wait_for(r"receiving from [\d.]+:(\d+)", 5.0)[1])
            threading.Event().wait(8.0)
            phone.tell("hangup")
            phone.wait_for("terminated", 5.0)
        packets = wire.stop().rtp_from(port)
    assert len(packets) > 390
    assert {(p.ssrc, p.kind, p.size) for p in packets} == {(packets[0].ssrc, 0, 160)}
    assert [p.marker for p in packets] == [True] + [False] * (len(packets) - 1)
    for before, after in pairwise(packets):
        assert (after.sequence - before.sequence) % 2**16 == 1
        assert (after.timestamp - before.timestamp) % 2**32 == 160
    at = np.array([p.at for p in packets])
    spacing = np.diff(at) * 1_000
    late = np.abs(at - at[0] - 0.020 * np.arange(len(at))) * 1_000
    record_property("spacing_p99_ms", round(float(np.percentile(np.abs(spacing - 20), 99)), 2))
    print(
        f"spacing: mean {spacing.mean():.3f} ms, deviation p50 {np.median(np.abs(spacing - 20)):.2f}, "
        f"p99 {np.percentile(np.abs(spacing - 20), 99):.2f}, worst {np.abs(spacing - 20).max():.2f} ms"
    )
    # A busy machine may delay packets; it may not make the clock drift, nor most packets late.
    assert abs(spacing.mean() - 20) < 0.2 and np.median(np.abs(spacing - 20)) < 5
    assert np.median(late[-50:]) < 40
