"""The bad network does what it is asked, and the same for the same seed."""

from __future__ import annotations

import socket

import numpy as np
import pytest

from tests.network import Conditions, Link, Relay


def passed(conditions: Conditions, count: int = 20_000, seed: int = 3) -> list[list[float]]:
    link = Link(conditions, seed)
    return [link.pass_through(i * 0.02, 200) for i in range(count)]


@pytest.mark.parametrize("burst", [1.0, 4.0])
def test_loss_has_the_mean_and_the_run_length_asked_for(burst: float) -> None:
    lost = np.array([not times for times in passed(Conditions(loss=0.1, burst=burst))])
    assert lost.mean() == pytest.approx(0.1, abs=0.02)
    starts = np.flatnonzero(lost & ~np.roll(lost, 1))
    assert lost.sum() / len(starts) == pytest.approx(burst if burst > 1 else 1.1, rel=0.15)


def test_delay_and_jitter_are_as_asked_and_order_is_kept_unless_given_up() -> None:
    kept = np.array([times[0] for times in passed(Conditions(delay_ms=80, jitter_ms=10))])
    assert np.median(kept - np.arange(len(kept)) * 0.02) == pytest.approx(0.080, abs=0.003)
    assert (np.diff(kept) > 0).all()
    mixed = np.array([times[0] for times in passed(Conditions(delay_ms=80, jitter_ms=20, reorder=True))])
    assert (np.diff(mixed) < 0).any()
    assert np.std(mixed - np.arange(len(mixed)) * 0.02) == pytest.approx(0.020, rel=0.1)


def test_doubles_rate_and_stalls() -> None:
    doubled = [len(times) for times in passed(Conditions(duplicate=0.05))]
    assert np.mean(doubled) == pytest.approx(1.05, abs=0.01)
    slow = passed(Conditions(rate_bps=40_000))
    assert 0.4 < np.mean([not times for times in slow]) < 0.6
    link = Link()
    link.stall(0.0, 0.2)
    out = [link.pass_through(i * 0.02, 200)[0] for i in range(15)]
    assert out[0] == pytest.approx(0.2) and out[9] < 0.2001
    assert (np.diff(out) > 0).all()


def test_the_same_seed_gives_the_same_network() -> None:
    rough = Conditions(delay_ms=40, jitter_ms=15, loss=0.05, burst=2, duplicate=0.02, reorder=True)
    assert passed(rough, 500) == passed(rough, 500)
    assert passed(rough, 500) != passed(rough, 500, seed=4)


def test_datagrams_go_both_ways_and_from_a_new_port_after_a_rebind() -> None:
    target, client = (socket.socket(socket.AF_INET, socket.SOCK_DGRAM) for _ in range(2))
    for sock in (target, client):
        sock.bind(("127.0.0.1", 0))
        sock.settimeout(5)
    with Relay(target.getsockname(), Link(Conditions(delay_ms=5))) as relay:
        client.sendto(b"out", relay.address)
        data, through = target.recvfrom(100)
        assert data == b"out"
        target.sendto(b"back", through)
        assert client.recv(100) == b"back"
        relay.rebind()
        client.sendto(b"again", relay.address)
        assert target.recvfrom(100)[1] != through
    target.close()
    client.close()
