"""RTP ports: even, exclusive, rested after use."""

import socket

import pytest

from gateway.legs.rtp_ports import NoFreePort, RtpPorts


def free_even_range(pairs: int) -> tuple[int, int]:
    """A range of `pairs` even ports that were free a moment ago."""
    for first in range(42_000, 60_000, 2 * pairs):
        probes = []
        try:
            for port in range(first, first + 2 * pairs, 2):
                probe = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
                probes.append(probe)
                probe.bind(("127.0.0.1", port))
            return first, first + 2 * pairs - 1
        except OSError:
            continue
        finally:
            for probe in probes:
                probe.close()
    pytest.fail("no free range of UDP ports on this machine")


def test_ports_are_even_distinct_and_run_out_with_a_clear_error() -> None:
    first, last = free_even_range(3)
    ports = RtpPorts("127.0.0.1", first + 0, last)
    sockets = [ports.take(0.0) for _ in range(3)]
    numbers = [sock.getsockname()[1] for sock in sockets]
    assert len(set(numbers)) == 3 and all(number % 2 == 0 for number in numbers)
    with pytest.raises(NoFreePort, match="3 in use"):
        ports.take(0.0)
    for sock in sockets:
        sock.close()


def test_a_port_rests_after_its_call() -> None:
    first, last = free_even_range(1)
    ports = RtpPorts("127.0.0.1", first, last, rest_s=30.0)
    sock = ports.take(0.0)
    port = sock.getsockname()[1]
    sock.close()
    ports.give_back(port, 10.0)
    with pytest.raises(NoFreePort, match="1 resting"):
        ports.take(39.9)
    again = ports.take(40.0)
    assert again.getsockname()[1] == port
    again.close()


def test_a_port_that_another_program_holds_is_passed_over() -> None:
    first, last = free_even_range(2)
    other = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    other.bind(("127.0.0.1", first))
    ports = RtpPorts("127.0.0.1", first, last)
    with ports.take(0.0) as sock:
        assert sock.getsockname()[1] == first + 2
    other.close()


def test_the_port_above_is_taken_for_rtcp_and_a_pair_half_taken_is_passed_over() -> None:
    first, last = free_even_range(2)
    other = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    other.bind(("127.0.0.1", first + 1))
    rtp, rtcp = RtpPorts("127.0.0.1", first, last).take_pair(0.0)
    assert rtcp is not None
    assert (rtp.getsockname()[1], rtcp.getsockname()[1]) == (first + 2, first + 3)
    for sock in (rtp, rtcp, other):
        sock.close()


def test_ports_of_the_system_s_choice_come_in_pairs_too() -> None:
    rtp, rtcp = RtpPorts("127.0.0.1").take_pair(0.0)
    assert rtcp is not None and rtcp.getsockname()[1] == rtp.getsockname()[1] + 1
    rtp.close()
    rtcp.close()


def test_an_empty_range_is_refused() -> None:
    with pytest.raises(ValueError, match="5000-4000"):
        RtpPorts("127.0.0.1", 5000, 4000)
