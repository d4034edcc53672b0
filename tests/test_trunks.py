"""Trunks and accounts: what the configuration becomes, and what operators see of each."""

from gateway.config_phone import AccountSettings, TrunkSettings
from gateway.legs.trunks import LineState, Trunks, access, destination, domain
from sip.events import TrunkChanged
from sip.locate import SrvRecord
from sip.message import Request
from sip.settings import Destination
from tests.sip_wire import Agent, Script, request, respond
from tests.zone import Zone

CARRIER = TrunkSettings(addresses=("198.51.100.0/24",), server="198.51.100.20:5070")
PBX = AccountSettings(registrar="sip:198.51.100.20:5070", user="1000")


def lines(script: Script) -> Trunks:
    return Trunks({"carrier": CARRIER}, {"pbx": PBX}, script.agent.ua, script.collect)


def test_a_trunk_s_server_is_host_and_port_in_every_spelling() -> None:
    spelled = {
        "sip.example": Destination("sip.example", 5060, "udp"),
        "192.0.2.7:5070": Destination("192.0.2.7", 5070, "udp"),
        "[2001:db8::7]": Destination("2001:db8::7", 5060, "udp"),
        "[2001:db8::7]:5070": Destination("2001:db8::7", 5070, "udp"),
    }
    for text, wanted in spelled.items():
        assert destination(TrunkSettings(server=text)) == wanted
    assert destination(TrunkSettings(server="sip.example", transport="tls")).port == 5061


def test_the_port_is_open_only_while_no_trunk_is_configured() -> None:
    assert access({}, None, "ignore").open
    assert not access({"carrier": CARRIER}, None, "ignore").open
    assert access({"carrier": CARRIER}, True, "ignore").open


def test_a_started_gateway_registers_and_probes_and_a_stopped_one_says_goodbye() -> None:
    script = Script(Agent())
    trunks = lines(script)
    trunks.start(0.0)
    sent = {m.method: m for m in script.take() if isinstance(m, Request)}
    assert set(sent) == {"REGISTER", "OPTIONS"}
    assert trunks.states == {
        ("account", "pbx"): LineState(False, 0),
        ("trunk", "carrier"): LineState(False, 0),
    }
    for message in sent.values():
        script.deliver(respond(message, 200))
    for event in script.agent.events:
        trunks.receive(event)
    assert trunks.states["account", "pbx"] == LineState(True, 200)
    assert trunks.states["trunk", "carrier"] == LineState(True, 200)
    trunks.stop(1.0)
    goodbye = script.request("REGISTER")
    assert "0" in str(goodbye.headers.get("expires") or goodbye.headers.get("contact"))


def test_a_trunk_that_falls_silent_is_seen_down() -> None:
    script = Script(Agent())
    trunks = lines(script)
    trunks.receive(TrunkChanged("carrier", True, 200))
    trunks.receive(TrunkChanged("carrier", False, 408))
    assert trunks.states["trunk", "carrier"] == LineState(False, 408)


def test_with_a_trunk_strangers_get_nothing_and_the_trunk_gets_in() -> None:
    from sip.settings import AgentSettings

    settings = AgentSettings(access=access({"carrier": CARRIER}, None, "ignore"))
    stranger = Script(Agent(settings), ("203.0.113.9", 5060))
    stranger.deliver(request())
    assert stranger.take() == []
    known = Script(Agent(settings))
    known.deliver(request())
    assert known.agent.kinds() == ["CallOffered"]


CLUSTER = TrunkSettings(addresses=("198.51.100.0/24",), server="carrier.example", username="u")
ONE, TWO = Destination("192.0.2.1", 5070), Destination("192.0.2.2", 5080)


def zone(*targets: str) -> Zone:
    ranks = [SrvRecord(10 * at, 0, 5070 + 10 * at, target) for at, target in enumerate(targets)]
    return Zone({"a.x": ["192.0.2.1"], "b.x": ["192.0.2.2"]}, {"_sip._udp.carrier.example": ranks})


def test_a_server_is_a_domain_where_it_has_a_name_and_no_port() -> None:
    assert domain(CLUSTER) == "sip:carrier.example"
    secure = TrunkSettings(server="carrier.example", transport="tls")
    assert domain(secure) == "sip:carrier.example;transport=tls"
    for server in ("carrier.example:5060", "192.0.2.7", "[2001:db8::7]", "pbx"):
        assert domain(TrunkSettings(server=server)) is None


async def test_a_trunk_s_domain_is_watched_at_its_servers_and_followed_when_dns_changes() -> None:
    script = Script(Agent())
    trunks = Trunks({"carrier": CLUSTER}, {}, script.agent.ua, script.collect, zone("a.x", "b.x"))
    trunks.start(0.0)
    await trunks.look("trunk", "carrier", "sip:carrier.example")
    script.deliver(respond(script.request("OPTIONS"), 503))
    assert script.raw[-1][2] == TWO
    script.deliver(respond(script.request("OPTIONS"), 200))
    for event in script.agent.events:
        trunks.receive(event)
    assert trunks.states["trunk", "carrier"] == LineState(True, 200)
    uri, way = trunks.route("carrier", "+4930123")
    assert (uri, way.destination, way.alive) == ("sip:+4930123@carrier.example", None, TWO)
    trunks.lookup = zone("a.x")
    await trunks.look("trunk", "carrier", "sip:carrier.example")
    assert script.request("OPTIONS").uri == "sip:192.0.2.1:5070" and script.raw[-1][2] == ONE
    trunks.lookup = zone()
    await trunks.look("trunk", "carrier", "sip:carrier.example")
    assert script.take() == [], "a name server that knows nothing now takes nothing away"
    trunks.stop(1.0)


async def test_a_domain_that_leads_nowhere_is_seen_down_and_an_account_follows_its_registrar() -> None:
    script = Script(Agent())
    pbx = AccountSettings(registrar="sip:carrier.example", user="1000")
    trunks = Trunks({"carrier": CLUSTER}, {"pbx": pbx}, script.agent.ua, script.collect, Zone({}))
    trunks.start(0.0)
    await trunks.look("trunk", "carrier", "sip:carrier.example")
    await trunks.look("account", "pbx", "sip:carrier.example")
    assert trunks.states["trunk", "carrier"] == trunks.states["account", "pbx"] == LineState(False, 404)
    trunks.lookup = zone("b.x")
    await trunks.look("account", "pbx", "sip:carrier.example")
    register = script.request("REGISTER")
    assert register.uri == "sip:carrier.example" and script.raw[-1][2] == Destination("192.0.2.2", 5070)
    trunks.stop(1.0)
