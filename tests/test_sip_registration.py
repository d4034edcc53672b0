"""Accounts kept registered and trunks watched; time as an argument."""

from dataclasses import replace

import pytest

from sip.events import Registered, RegistrationLost, TrunkChanged
from sip.message import Request
from sip.settings import Account, Credentials, Destination
from tests.sip_wire import Agent, Script, respond

ACCOUNT = Account(
    "desk", "sip:198.51.100.20:5070", "sip:1000@pbx.example", Credentials("1000", "secret"), 600
)
CHALLENGE = 'WWW-Authenticate: Digest realm="pbx", nonce="n1", qop="auth"\r\n'


def registering(account: Account = ACCOUNT) -> tuple[Script, Request]:
    peer = Script(Agent())
    peer.agent.ua.register(account, peer.now)
    return peer, peer.request("REGISTER")


def contact(expires: int, user: str = "1000") -> str:
    return f"Contact: <sip:x@y>;expires=9, <sip:{user}@192.0.2.10:5060>;expires={expires}\r\n"


def test_a_register_says_who_where_and_how_long() -> None:
    peer, register = registering()
    assert register.uri == "sip:198.51.100.20:5070" and register.to.uri == "sip:1000@pbx.example"
    assert register.headers.get("contact") == "<sip:1000@192.0.2.10:5060>"
    assert register.headers.get("expires") == "600" and peer.raw[0][2][:2] == ("198.51.100.20", 5070)


def test_a_challenge_is_answered_and_the_registration_refreshed_in_time() -> None:
    peer, register = registering()
    peer.deliver(respond(register, 401, extra=CHALLENGE))
    second = peer.request("REGISTER")
    assert second.headers.get("authorization") and second.call_id == register.call_id
    assert second.cseq.number == 2
    peer.deliver(respond(second, 200, extra=contact(300)))
    assert peer.agent.one(Registered).expires_s == 300
    peer.wait(239)
    assert peer.take() == []
    refresh = peer.wait_for("REGISTER", 32)
    assert refresh.call_id == register.call_id and refresh.cseq.number == 3


@pytest.mark.parametrize(
    ("extra", "granted"),
    [
        (contact(300), 300),
        ("Contact: <sip:1000@192.0.2.10:5060>\r\nExpires: 120\r\n", 120),
        ("Contact: <sip:1000@192.0.2.10:5060>\r\n", 600),
        ("Contact: <<broken\r\nExpires: 90\r\n", 90),
        (contact(1), 30),
    ],
)
def test_the_time_granted_is_found_wherever_it_stands(extra: str, granted: float) -> None:
    peer, register = registering()
    peer.deliver(respond(register, 200, extra=extra))
    assert peer.agent.one(Registered).expires_s == granted


def test_an_interval_too_brief_is_raised() -> None:
    peer, register = registering()
    peer.deliver(respond(register, 423, extra="Min-Expires: 1800\r\n"))
    assert peer.request("REGISTER").headers.get("expires") == "1800"


def test_failures_are_told_and_tried_again_ever_more_slowly() -> None:
    peer, register = registering()
    pauses = []
    for _ in range(9):
        peer.deliver(respond(register, 403))
        pauses.append(peer.agent.of(RegistrationLost)[-1].retry_after_s)
        peer.take()
        peer.wait(pauses[-1] + 0.01)
        register = peer.request("REGISTER")
    for number, pause in enumerate(pauses):
        longest = min(1_800, 30 * 2**number)
        assert longest / 2 <= pause <= longest
    peer.deliver(respond(register, 200))
    assert peer.agent.of(Registered)
    peer.deliver(respond(peer.wait_for("REGISTER", 600), 500))
    assert peer.agent.of(RegistrationLost)[-1].retry_after_s <= 30


def test_retry_after_and_silence_are_heeded() -> None:
    peer, register = registering()
    peer.deliver(respond(register, 503, extra="Retry-After: 400 (maintenance)\r\n"))
    assert peer.agent.one(RegistrationLost).retry_after_s == 400
    peer.take()
    peer.wait(401 + 33)
    assert [event.code for event in peer.agent.of(RegistrationLost)] == [503, 408]


def test_wrong_credentials_do_not_hammer_the_registrar() -> None:
    peer, register = registering()
    peer.deliver(respond(register, 401, extra=CHALLENGE))
    peer.deliver(respond(peer.request("REGISTER"), 401, extra=CHALLENGE.replace("n1", "n2")))
    assert peer.take() == [] and peer.agent.one(RegistrationLost).code == 401


def test_an_account_given_up_is_unregistered_once() -> None:
    peer, register = registering()
    peer.deliver(respond(register, 200, extra=contact(300)))
    peer.agent.ua.unregister("desk", peer.now)
    peer.agent.ua.unregister("desk", peer.now)
    goodbye = peer.request("REGISTER")
    assert goodbye.headers.get("expires") == "0"
    peer.deliver(respond(goodbye, 200))
    peer.wait(4_000)
    assert peer.take() == [] and len(peer.agent.ua._core.alarms) == 0


def test_several_accounts_live_side_by_side() -> None:
    peer, _ = registering()
    other = Account("lobby", "sip:198.51.100.20:5070", "sip:2000@pbx.example")
    peer.agent.ua.register(other, peer.now)
    register = peer.request("REGISTER")
    peer.deliver(respond(register, 200, extra=contact(300, "2000")))
    assert peer.agent.one(Registered).account == "lobby"
    with pytest.raises(ValueError):
        peer.agent.ua.register(Account("bad", "nonsense", "sip:x@y"), peer.now)


def test_a_trunk_goes_down_and_comes_back() -> None:
    peer = Script(Agent())
    peer.agent.ua.watch_trunk("carrier", Destination("198.51.100.20", 5070), now=peer.now, interval_s=30)
    options = peer.request("OPTIONS")
    assert options.uri == "sip:198.51.100.20:5070"
    peer.deliver(respond(options, 405))
    assert peer.agent.one(TrunkChanged) == TrunkChanged("carrier", True, 405)
    for code in (200, 503, 503, 200):
        peer.deliver(respond(peer.wait_for("OPTIONS", 30.1), code))
    assert [(e.up, e.code) for e in peer.agent.of(TrunkChanged)] == [(True, 405), (False, 503), (True, 200)]
    peer.wait(30 + 33)
    assert peer.agent.of(TrunkChanged)[-1] == TrunkChanged("carrier", False, 408)
    peer.agent.ua.unwatch_trunk("carrier")
    peer.take()
    peer.wait(100)
    assert not [m for m in peer.take() if isinstance(m, Request)]


ONE, TWO = Destination("192.0.2.1", 5070), Destination("192.0.2.2", 5080)


def test_a_trunk_of_two_servers_is_up_while_one_of_them_answers() -> None:
    peer = Script(Agent())
    ua = peer.agent.ua
    ua.watch_trunk("carrier", ONE, TWO, now=peer.now, interval_s=30)
    first = peer.request("OPTIONS")
    assert (peer.raw[-1][2], first.uri) == (ONE, "sip:192.0.2.1:5070")
    peer.deliver(respond(first, 503))
    second = peer.request("OPTIONS")
    assert (peer.raw[-1][2], second.uri) == (TWO, "sip:192.0.2.2:5080")
    peer.deliver(respond(second, 200))
    assert peer.agent.one(TrunkChanged) == TrunkChanged("carrier", True, 200)
    assert ua.answering("carrier") == TWO
    again = peer.wait_for("OPTIONS", 30.1)
    assert again.uri == first.uri, "the preferred server is asked first each time"
    peer.deliver(respond(again, 503))
    peer.deliver(respond(peer.request("OPTIONS"), 503))
    assert peer.agent.of(TrunkChanged)[-1] == TrunkChanged("carrier", False, 503)
    assert ua.answering("carrier") is None and ua.answering("nobody") is None


def test_an_account_is_registered_at_the_next_server_where_one_is_dead_and_rests_when_all_are() -> None:
    peer = Script(Agent())
    peer.agent.ua.register(replace(ACCOUNT, servers=(ONE, TWO)), peer.now)
    peer.deliver(respond(peer.request("REGISTER"), 503))
    assert peer.raw[-1][2] == TWO and not peer.agent.of(RegistrationLost)
    peer.deliver(respond(peer.request("REGISTER"), 200, extra=contact(300)))
    assert peer.agent.one(Registered)
    refresh = peer.wait_for("REGISTER", 300)
    assert peer.raw[-1][2] == TWO, "what answered is stayed with"
    peer.deliver(respond(refresh, 503))
    assert peer.raw[-1][2] == ONE
    peer.deliver(respond(peer.request("REGISTER"), 503))
    assert peer.agent.one(RegistrationLost).code == 503
    peer.agent.ua.move_account("desk", (TWO,))
    peer.wait_for("REGISTER", 60)
    assert peer.raw[-1][2] == TWO
