"""The phone's port: UDP and TCP on one number, another where the system's choice is half taken."""

from __future__ import annotations

import asyncio
import random
import socket
from collections.abc import AsyncIterator, Iterator
from contextlib import ExitStack, contextmanager

import pytest

from gateway.listening import PORT_TRIES, CannotListen, open_phone_port
from sip.agent import UserAgent
from sip.endpoint import Endpoint
from sip.events import Address
from sip.settings import AgentSettings

HOST = "127.0.0.1"


class Crowded(Endpoint):
    """Another program takes the TCP port of the number that UDP got, so many times."""

    def __init__(self, times: int) -> None:
        super().__init__(UserAgent(AgentSettings(), random.SystemRandom()), lambda event: None)
        self.left = times
        self.tried: list[int] = []
        self.sockets: list[asyncio.DatagramTransport] = []
        self.others = ExitStack()

    def given_back(self) -> bool:
        """Every number but the last."""
        return all(transport.is_closing() for transport in self.sockets[:-1])

    async def open_udp(self, host: str = HOST, port: int = 0) -> Address:
        bound = await super().open_udp(host, port)
        self.tried.append(bound[1])
        self.sockets.append(self._udp[False])
        if self.left:
            self.left -= 1
            self.others.enter_context(listening(bound[1]))
        return bound


@contextmanager
def listening(port: int) -> Iterator[int]:
    with socket.socket() as other:
        other.bind((HOST, port))
        other.listen()
        yield other.getsockname()[1]


def is_free_for_udp(port: int) -> bool:
    with socket.socket(type=socket.SOCK_DGRAM) as probe:
        try:
            probe.bind((HOST, port))
        except OSError:
            return False
    return True


@pytest.fixture
async def opened() -> AsyncIterator[list[Crowded]]:
    made: list[Crowded] = []
    yield made
    for endpoint in made:
        endpoint.others.close()
        await endpoint.close()


@pytest.mark.parametrize("times", [0, 1, 5])
async def test_a_number_whose_tcp_port_is_taken_is_given_back_and_another_tried(
    opened: list[Crowded], times: int
) -> None:
    opened.append(endpoint := Crowded(times))
    port = await open_phone_port(endpoint, HOST, 0, tcp=True)
    assert len(endpoint.tried) == times + 1 and port == endpoint.tried[-1]
    assert endpoint.given_back() and not endpoint.sockets[-1].is_closing()
    with socket.create_connection((HOST, port), timeout=5):
        assert not is_free_for_udp(port)


async def test_it_is_not_tried_for_ever(opened: list[Crowded]) -> None:
    opened.append(endpoint := Crowded(PORT_TRIES))
    with pytest.raises(CannotListen, match=rf"none of {PORT_TRIES} ports .* set sip.port \(MG_SIP__PORT\)"):
        await open_phone_port(endpoint, HOST, 0, tcp=True)
    assert len(endpoint.tried) == PORT_TRIES and endpoint.given_back()


async def test_without_tcp_the_first_number_serves(opened: list[Crowded]) -> None:
    opened.append(endpoint := Crowded(1))
    assert await open_phone_port(endpoint, HOST, 0, tcp=False) == endpoint.tried[0]
    assert len(endpoint.tried) == 1


async def test_a_number_that_was_asked_for_is_not_exchanged(opened: list[Crowded]) -> None:
    opened.append(endpoint := Crowded(0))
    with listening(0) as port, pytest.raises(CannotListen, match=f"TCP port {port} on {HOST} is taken"):
        await open_phone_port(endpoint, HOST, port, tcp=True)
    assert endpoint.tried == [port]
