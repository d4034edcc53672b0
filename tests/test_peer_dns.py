"""A real name server: dnsmasq tells where a trunk is."""

from __future__ import annotations

import random
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from sip.dns import Dns
from sip.locate import NaptrRecord, SrvRecord, locate
from sip.settings import Destination
from sip.uri import parse_uri
from tests.peers import LOOPBACK, Program, free_udp_port, need

pytestmark = pytest.mark.peer
MANY = 40
RECORDS = [
    "naptr-record=carrier.test,50,50,s,SIP+D2T,,_sip._tcp.carrier.test",
    "naptr-record=carrier.test,90,50,s,SIP+D2U,,_sip._udp.carrier.test",
    "srv-host=_sip._tcp.carrier.test,one.carrier.test,5070,10,5",
    "srv-host=_sip._udp.carrier.test,one.carrier.test,5080,10,5",
    "srv-host=_sip._udp.carrier.test,two.carrier.test,5090,20,5",
    *(f"srv-host=_sip._udp.big.test,host-{n}.big.test,{5000 + n},{n},0" for n in range(MANY)),
]


class AtNameServer(Dns):
    """Addresses too come from the server under test and not from this machine's resolver."""

    async def addresses(self, name: str) -> list[str]:
        return {"one.carrier.test": ["192.0.2.1"], "two.carrier.test": ["192.0.2.2"]}.get(name, [])


@pytest.fixture(scope="module")
def lookup(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Dns]:
    folder, port = tmp_path_factory.mktemp("dns"), free_udp_port()
    program = need("dnsmasq", "dnsmasq-base")
    config = [
        f"port={port}",
        f"listen-address={LOOPBACK}",
        "bind-interfaces",
        "no-resolv",
        "no-hosts",
        "user=",
    ]
    (Path(folder) / "conf").write_text("\n".join([*config, *RECORDS]) + "\n")
    command = [program, "--keep-in-foreground", "--log-facility=-", "-C", str(folder / "conf"), "--pid-file"]
    with Program(command, folder) as server:
        server.wait_for("started", 10.0)
        threading.Event().wait(0.1)
        yield AtNameServer([(LOOPBACK, port)])


async def test_naptr_and_srv_of_a_real_name_server_lead_to_the_trunk(lookup: Dns) -> None:
    found = await lookup.naptr("carrier.test")
    assert sorted(found, key=lambda record: record.order) == [
        NaptrRecord(50, 50, "s", "SIP+D2T", "_sip._tcp.carrier.test"),
        NaptrRecord(90, 50, "s", "SIP+D2U", "_sip._udp.carrier.test"),
    ]
    assert await locate(parse_uri("sip:carrier.test"), lookup, random.Random(1)) == [
        Destination("192.0.2.1", 5070, "tcp"),
        Destination("192.0.2.1", 5080, "udp"),
        Destination("192.0.2.2", 5090, "udp"),
    ]
    assert await lookup.srv("_sip._udp.nowhere.test") == []


async def test_an_answer_too_long_for_a_datagram_comes_by_tcp(lookup: Dns) -> None:
    found = await lookup.srv("_sip._udp.big.test")
    assert sorted(found, key=lambda record: record.port) == [
        SrvRecord(n, 0, 5000 + n, f"host-{n}.big.test") for n in range(MANY)
    ]
