"""Trunks and accounts: what the configuration becomes, and what operators see of each."""

from gateway.config_phone import AccountSettings, TrunkSettings
from gateway.legs.trunks import LineState, Trunks, access, destination
from sip.events import TrunkChanged
from sip.message import Request
from sip.settings import Destination
from tests.sip_wire import Agent, Script, request, respond

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
