"""Who is let in, and what the others learn: nothing."""

import random

import pytest

from sip.access import Gate
from sip.auth import Challenge, authorization, digest_response, parse_challenge, parse_digest
from sip.events import CallOffered
from sip.headers import MalformedHeader
from sip.message import Response, parse_message
from sip.settings import Access, AgentSettings, Credentials, Trunk
from tests.sip_wire import PEER, Agent, Script, request

CARRIER = Trunk("carrier", ("203.0.113.0/24", "2001:db8::/32"))
PBX = Trunk("pbx", (), Credentials("1000", "secret"))


def site(access: Access, address: tuple[str, int] = PEER) -> Script:
    return Script(Agent(AgentSettings(access=access)), address)


def bare(answer: Response) -> tuple[int, str, tuple[str, ...], bytes]:
    """What a stranger can compare: everything but the random parts and what he sent himself."""
    names = tuple(name for name, _ in answer.headers)
    return answer.code, answer.reason, names, answer.body


@pytest.mark.parametrize("source", ["203.0.113.7", "2001:db8::7", "::ffff:203.0.113.9"])
def test_a_trunk_is_known_by_its_address(source: str) -> None:
    peer = site(Access(open=False, trunks=(CARRIER,)), (source, 5060))
    peer.deliver(request())
    assert peer.agent.one(CallOffered).trunk == "carrier"


@pytest.mark.parametrize("method", ["INVITE", "OPTIONS", "REGISTER", "BYE", "CANCEL", "NEWMETHOD"])
def test_strangers_are_ignored_or_refused_by_setting(method: str) -> None:
    silent = site(Access(open=False, trunks=(CARRIER,)))
    for data in (
        request(method),
        request(method, to_tag="x", branch="z9hG4bK2"),
        request(method)[:-9] + b"xx",
    ):
        silent.deliver(data)
    assert silent.take() == [] and silent.agent.kinds() == []
    refused = site(Access(open=False, trunks=(CARRIER,), unknown="refuse"))
    refused.deliver(request(method))
    assert refused.response().code == 403


def test_an_open_port_takes_anybody() -> None:
    peer = site(Access())
    peer.deliver(request())
    assert peer.agent.one(CallOffered).trunk is None


def challenged(peer: Script, algorithm: str, number: int = 1) -> Challenge:
    peer.deliver(request(branch=f"z9hG4bK-c{number}", call_id=f"c{number}"))
    answer = peer.response()
    assert answer.code == 401
    found = [parse_challenge(value) for value in answer.headers.get_all("www-authenticate")]
    return next(item for item in found if item is not None and item.algorithm == algorithm)


def signed(
    challenge: Challenge,
    number: int,
    user: str = "1000",
    password: str = "secret",
    nc: int = 1,
    method: str = "INVITE",
) -> bytes:
    who, uri = Credentials(user, password), "sip:moshi@192.0.2.10:5060"
    value = authorization(challenge, who, method, uri, body=b"", nc=nc, cnonce="abc")
    return request(
        method, branch=f"z9hG4bK-s{number}", call_id=f"s{number}", extra=f"Authorization: {value}\r\n"
    )


@pytest.mark.parametrize("algorithm", ["MD5", "SHA-256"])
def test_the_right_digest_opens_the_door(algorithm: str) -> None:
    peer = site(Access(trunks=(PBX,)))
    peer.deliver(signed(challenged(peer, algorithm), 1))
    assert peer.agent.one(CallOffered).trunk == "pbx"


def test_sha_256_is_asked_for_first() -> None:
    peer = site(Access(trunks=(PBX,)))
    peer.deliver(request())
    values = peer.response().headers.get_all("www-authenticate")
    assert ["SHA-256" in value for value in values] == [True, False]


def test_a_wrong_password_and_a_user_that_is_none_get_the_same_answer() -> None:
    peer = site(Access(trunks=(PBX,), unknown="refuse"))
    answers = []
    for number, (user, password) in enumerate(
        (("1000", "guess"), ("9999", "guess"), ("9999", "no such user"))
    ):
        peer.deliver(signed(challenged(peer, "MD5", number), number, user, password))
        answers.append(bare(peer.response()))
    peer.deliver(request("REGISTER", branch="z9hG4bK-r", call_id="r", uri="sip:1000@192.0.2.10"))
    answers.append(bare(peer.response()))
    assert len(set(answers)) == 1 and answers[0][0] == 401 and not peer.agent.of(CallOffered)


def test_a_scanner_hears_nothing_and_a_stranger_who_calls_no_name() -> None:
    peer = site(Access(trunks=(PBX,)))
    for method in ("OPTIONS", "REGISTER", "SUBSCRIBE", "BYE", "NEWMETHOD"):
        peer.deliver(request(method, branch=f"z9hG4bK-{method}"))
    assert peer.take() == [] and peer.agent.ua.counters.blocked == 5
    peer.deliver(request())
    challenge = peer.response()
    assert challenge.code == 401 and "server" not in challenge.headers


def test_a_nonce_grows_stale_and_a_count_cannot_be_used_twice() -> None:
    peer = site(Access(trunks=(PBX,)))
    challenge = challenged(peer, "SHA-256")
    peer.deliver(signed(challenge, 1))
    peer.take()
    peer.deliver(signed(challenge, 2))  # overheard and sent again under another Call-ID
    again = peer.response()
    assert again.code == 401 and "stale=true" in (again.headers.get("www-authenticate") or "")
    peer.deliver(signed(challenge, 3, nc=2))
    peer.take()
    assert len(peer.agent.of(CallOffered)) == 2
    peer.wait(130)
    peer.take()
    peer.deliver(signed(challenge, 4, nc=3))
    assert "stale=true" in (peer.response().headers.get("www-authenticate") or "")


def test_two_phones_behind_one_address_get_a_nonce_each() -> None:
    peer = site(Access(trunks=(PBX,)))
    first, second = challenged(peer, "MD5", 1), challenged(peer, "MD5", 2)
    assert first.nonce != second.nonce
    for number, challenge in enumerate((first, second)):
        peer.deliver(signed(challenge, number))
    assert len(peer.agent.of(CallOffered)) == 2


def test_a_nonce_belongs_to_the_address_it_was_given_to() -> None:
    peer = site(Access(trunks=(PBX,)))
    challenge = challenged(peer, "MD5")
    peer.address = ("198.51.100.99", 5060)
    peer.deliver(signed(challenge, 1))
    assert peer.response().code == 401


def test_credentials_for_another_host_or_method_do_not_count() -> None:
    peer = site(Access(trunks=(PBX,)))
    data = signed(challenged(peer, "MD5"), 1)
    peer.deliver(data.replace(b"INVITE sip:moshi@192.0.2.10", b"INVITE sip:moshi@192.0.2.99"))
    assert peer.response().code == 401
    peer.deliver(signed(challenged(peer, "MD5", 2), 2, method="REGISTER").replace(b"REGISTER", b"INVITE"))
    assert peer.response().code == 401


def test_after_ten_failures_an_address_is_banned_for_a_while() -> None:
    peer = site(Access(trunks=(PBX,)))
    for number in range(10):
        peer.deliver(signed(challenged(peer, "MD5", number), number, password="guess"))
        assert peer.response().code == 401
        peer.wait(2)
        peer.take()
    peer.deliver(request(branch="z9hG4bK-x", call_id="x"))
    assert peer.take() == []
    peer.wait(601)
    peer.take()
    peer.deliver(signed(challenged(peer, "MD5", 99), 99))
    assert peer.agent.one(CallOffered).trunk == "pbx"


def test_questions_before_authentication_are_rationed_and_trunks_are_not() -> None:
    peer = site(Access(trunks=(PBX, CARRIER)))
    for number in range(100):
        peer.deliver(request(branch=f"z9hG4bK-{number}", call_id=f"{number}"))
    assert len(peer.codes()) == 20 and peer.agent.ua.counters.blocked == 80
    peer.address = ("203.0.113.1", 5060)
    for number in range(100):
        peer.deliver(request(branch=f"z9hG4bK-t{number}", call_id=f"t{number}"))
    assert len(peer.agent.of(CallOffered)) == 100


def test_a_flood_is_dropped_unparsed_and_the_allowance_comes_back() -> None:
    peer = site(Access(flood_per_s=10))
    for _ in range(50):
        peer.deliver(b"garbage")
    assert (peer.agent.ua.counters.malformed, peer.agent.ua.counters.blocked) == (20, 30)
    peer.wait(1)
    peer.deliver(request())
    assert peer.agent.one(CallOffered)


def test_long_messages_use_up_more_of_the_allowance() -> None:
    gate = Gate(Access(flood_per_s=10), bytes(32))
    assert sum(gate.admits("192.0.2.1", 0.0, 30_000) for _ in range(20)) == 1
    assert sum(gate.admits("192.0.2.2", 0.0, 900) for _ in range(40)) == 20


def test_the_memory_of_addresses_and_requests_is_bounded() -> None:
    gate = Gate(Access(open=False), bytes(32))
    for number in range(12_000):
        gate.admits(f"10.{number >> 16}.{number >> 8 & 255}.{number & 255}", 0.0)
    assert len(gate._sources) == 10_000
    peer = Script(Agent(AgentSettings(max_transactions=3)))
    for number in range(5):
        peer.deliver(request(branch=f"z9hG4bK-{number}", call_id=f"{number}"))
    assert len(peer.agent.of(CallOffered)) == 3 and peer.agent.ua.counters.blocked == 2


def test_no_authorization_header_breaks_the_gate() -> None:
    rng = random.Random(5)
    peer = site(Access(trunks=(PBX,), stranger_per_s=1e6, failures_before_ban=10**9, flood_per_s=1e6))
    good = signed(challenged(peer, "MD5"), 1)
    start, end = good.index(b"Authorization: "), good.index(b", algorithm=MD5")  # which may be left out
    for _ in range(300):
        data = bytearray(good)
        for _ in range(rng.randint(1, 6)):
            data[rng.randrange(start, end)] = rng.randrange(32, 127)
        if bytes(data[start:end]).replace(b" ", b"").lower() == good[start:end].replace(b" ", b"").lower():
            continue  # it says the same
        peer.deliver(bytes(data).replace(b"z9hG4bK-s1", b"z9hG4bK-%08x" % rng.getrandbits(32)))
    assert not peer.agent.of(CallOffered)


def test_what_is_sent_in_another_s_name_bans_nobody() -> None:
    """Guesses that show no nonce of ours prove nothing about who sent them."""
    peer = site(Access(trunks=(PBX,)))
    made_up = Challenge("moshi-gateway", "1-1.00000000000000000000000000000000", None, "MD5", "auth")
    for number in range(40):
        peer.deliver(signed(made_up, number, password="guess"))
        peer.wait(1)
    peer.take()
    peer.deliver(signed(challenged(peer, "MD5", 99), 99))
    assert peer.agent.one(CallOffered).trunk == "pbx"


def test_a_ban_outlives_a_flood_from_more_addresses_than_are_remembered() -> None:
    access = Access(trunks=(PBX,), failures_before_ban=1)
    peer = site(access)
    peer.deliver(signed(challenged(peer, "MD5"), 1, password="guess"))
    for number in range(10_100):
        peer.address = (f"10.{number >> 16}.{number >> 8 & 255}.{number & 255}", 5060)
        peer.agent.ua.receive_datagram(b"x", peer.address, peer.now)
    peer.take()
    peer.address = PEER
    peer.deliver(request(branch="z9hG4bK-again", call_id="again"))
    assert peer.take() == []


def test_one_ipv6_network_is_one_stranger() -> None:
    gate = Gate(Access(flood_per_s=5), bytes(32))
    assert sum(gate.admits(f"2001:db8:0:1::{number:x}", 0.0) for number in range(1, 100)) == 10
    assert gate.admits("2001:db8:0:2::1", 0.0)
    assert gate.admits("192.0.2.1", 0.0) and gate.admits("::ffff:192.0.2.1", 0.0)


def test_a_digest_that_was_not_asked_for_is_not_taken() -> None:
    peer = site(Access(trunks=(PBX,), algorithms=("SHA-256",)))
    challenge = challenged(peer, "SHA-256")
    for number, name in enumerate(("MD5", "MD5-sess", "SHA-512-256")):
        weaker = Challenge(challenge.realm, challenge.nonce, None, name, "auth")
        peer.deliver(signed(weaker, number))
        assert peer.response().code == 401
    peer.deliver(signed(challenge, 9))
    assert peer.agent.one(CallOffered).trunk == "pbx"


def test_a_flood_of_strangers_takes_no_room_and_is_answered_once_each() -> None:
    peer = Script(Agent(AgentSettings(access=Access(trunks=(PBX, CARRIER)), max_transactions=50)))
    for number in range(200):
        peer.address = (f"192.0.2.{number}", 5060)
        peer.deliver(request(branch=f"z9hG4bK-{number}", call_id=f"{number}"))
    peer.wait(40)
    assert peer.codes() == [401] * 200, "none is sent again"
    peer.address = ("203.0.113.1", 5060)
    peer.deliver(request(branch="z9hG4bK-trunk", call_id="trunk"))
    assert peer.agent.one(CallOffered).trunk == "carrier"


def test_the_answer_to_a_repeated_question_has_the_same_tag() -> None:
    peer = site(Access(trunks=(PBX,)))
    tags = []
    for _ in range(2):
        peer.deliver(request())
        tags.append(peer.response().to.tag)
    peer.deliver(request(branch="z9hG4bK-2"))
    assert tags[0] == tags[1] != peer.response().to.tag


def test_digest_has_the_values_of_the_rfcs() -> None:
    # RFC 7616 §3.9.1
    nonce = "7ypf/xlj9XXwfDPEoM4URrv/xwf94BcCAzFZH4GiTo0v"
    for algorithm, expected in (
        ("MD5", "8ca523f5e9506fed4657c9700eebdbec"),
        ("SHA-256", "753927fa0e85d155564e2e272a28d1802ca10daf4496794697cf8db5856cb6c1"),
    ):
        challenge = Challenge("http-auth@example.org", nonce, None, algorithm, "auth")
        cnonce = "f2/wE4q74E6zIJEtWaHKaf5wv/H5QzzpXusqGemxURZJ"
        assert digest_response(
            challenge, "Mufasa", "Circle of Life", "GET", "/dir/index.html", cnonce=cnonce
        ) == expected  # fmt: skip
    old = Challenge("biloxi.com", "dcd98b7102dd2f0e8b11d0f600bfb0c093")
    assert digest_response(old, "bob", "zanzibar", "INVITE", "sip:bob@biloxi.com") == (
        digest_response(old, "bob", "zanzibar", "INVITE", "sip:bob@biloxi.com", nc="9", cnonce="x")
    )


def test_a_digest_survives_quotes_and_commas() -> None:
    challenge = Challenge('a "quoted", realm', "n", 'o"p', "MD5", "auth")
    value = authorization(
        challenge, Credentials('u"\\', "p"), "INVITE", "sip:a@b", body=b"", nc=255, cnonce="c"
    )
    parsed = parse_digest(value)
    assert (parsed["username"], parsed["realm"], parsed["nc"]) == ('u"\\', 'a "quoted", realm', "000000ff")
    for bad in ("Basic x", "Digest a=b, a=c", "Digest a", 'Digest a="'):
        with pytest.raises(MalformedHeader):
            parse_digest(bad)
    assert isinstance(parse_message(request()), object)
