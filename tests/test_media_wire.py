"""The sockets of phone legs: compiled and plain, connected and not, give the same datagrams."""

from __future__ import annotations

import time
from collections.abc import Iterator

import numpy as np
import pytest

from gateway.media.udp_wire import LARGEST, PER_ROW, UdpWire
from tests.phone import bound_socket


@pytest.fixture(params=[False, True], ids=["plain", "compiled"])
def wire(request: pytest.FixtureRequest) -> Iterator[UdpWire]:
    wire = UdpWire(8, compiled=request.param)
    yield wire
    wire.close_all()


def test_datagrams_come_with_row_length_source_and_a_recent_time(wire: UdpWire) -> None:
    ours, peer, late = bound_socket(), bound_socket(), bound_socket()
    wire.open(3, ours)
    peer.sendto(b"one", ours.getsockname())
    came = wire.receive(0.0)
    assert came.rows.tolist() == [3]
    assert came.data[0, : came.sizes[0]].tobytes() == b"one"
    assert came.sources == [peer.getsockname()]
    assert abs(came.arrivals[0] - time.monotonic()) < 1.0
    assert wire.connect(3, peer.getsockname())
    for i in range(5):
        peer.sendto(bytes([i]) * (i + 1), ours.getsockname())
    late.sendto(b"spray", ours.getsockname())
    came = wire.receive(0.0)
    heard = [came.data[k, : came.sizes[k]].tobytes() for k in range(5)]
    assert heard == [bytes([i]) * (i + 1) for i in range(5)]
    assert came.sources is None
    assert abs(came.arrivals - time.monotonic()).max() < 1.0


def test_after_disconnecting_anyone_is_heard_again(wire: UdpWire) -> None:
    ours, peer, other = bound_socket(), bound_socket(), bound_socket()
    wire.open(0, ours)
    address = ours.getsockname()
    wire.connect(0, peer.getsockname())
    wire.disconnect(0)
    other.sendto(b"x", address)
    came = wire.receive(0.0)
    assert came.sources == [other.getsockname()]


def test_packets_of_many_rows_are_sent_out_of_one_array(wire: UdpWire) -> None:
    peers = [bound_socket() for _ in range(8)]
    packets = np.arange(8 * LARGEST, dtype=np.int64).astype(np.uint8).reshape(8, LARGEST)
    for row, peer in enumerate(peers):
        wire.open(row, bound_socket())
        wire.connect(row, peer.getsockname())
    rows = np.array([5, 1, 7])
    assert wire.send_rows(rows, packets, np.array([10, 20, 172])).all()
    for row, size in ((5, 10), (1, 20), (7, 172)):
        assert peers[row].recv(2000) == packets[row, :size].tobytes()
    with pytest.raises(BlockingIOError):
        peers[0].recv(2000)


def test_a_peer_whose_port_is_closed_costs_nothing_but_a_count(wire: UdpWire) -> None:
    ours, peer = bound_socket(), bound_socket()
    wire.open(0, ours)
    wire.connect(0, peer.getsockname())
    peer.close()
    rows, packets, sizes = np.array([0]), np.zeros((1, LARGEST), np.uint8), np.array([172])
    for _ in range(10):
        wire.send_rows(rows, packets, sizes)
        wire.send_rows(rows, packets, sizes)
        assert len(wire.receive(0.0).rows) == 0
    assert wire.send_errors > 0


def test_a_flood_on_one_row_is_taken_in_bounded_portions(wire: UdpWire) -> None:
    ours, peer = bound_socket(), bound_socket()
    wire.open(0, ours)
    for _ in range(3 * PER_ROW):
        peer.sendto(b"flood", ours.getsockname())
    assert len(wire.receive(0.0).rows) <= PER_ROW
