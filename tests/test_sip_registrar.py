"""Phones that register with us (RFC 3261 §10.3)."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sip.auth import authorization, parse_challenge
from sip.message import Response
from sip.settings import Access, AgentSettings, Credentials, Destination, Trunk
from tests.sip_wire import Agent, Script, request

PHONE = "<sip:bob@198.51.100.20:5070>"


def register(
    contact: str, cseq: int = 1, expires: str = "Expires: 300\r\n", call_id: str = "r", extra: str = ""
) -> bytes:
    data = request(
        "REGISTER", branch=f"z9hG4bK-{call_id}{cseq}", cseq=cseq, call_id=call_id, extra=expires + extra
    )
    data = data.replace(b"To: <sip:moshi@192.0.2.10>", b"To: <sip:bob@192.0.2.10>")
    replaced = f"Contact: {contact}\r\n".encode() if contact else b""
    return data.replace(b"Contact: <sip:ann@198.51.100.20:5070>\r\n", replaced)


def registrar() -> Script:
    return Script(Agent(AgentSettings(registrar=True)))


def answered(peer: Script, data: bytes) -> Response:
    peer.deliver(data)
    return peer.response()


def phones(peer: Script) -> list[str]:
    return [contact for contact, _ in peer.agent.ua.phones_of("bob", peer.now)]


def test_a_phone_is_bound_refreshed_and_expires() -> None:
    peer = registrar()
    assert answered(peer, register(PHONE)).headers.get_list("contact") == [f"{PHONE};expires=300"]
    assert peer.agent.ua.phones_of("bob", peer.now) == [
        ("sip:bob@198.51.100.20:5070", Destination("198.51.100.20", 5070, "udp"))
    ]
    peer.wait(200)
    peer.take()
    answered(peer, register(PHONE, cseq=2))
    peer.wait(200)
    assert len(phones(peer)) == 1
    peer.wait(101)
    assert phones(peer) == []


def test_contacts_have_their_own_time_and_zero_removes() -> None:
    peer = registrar()
    two = f"{PHONE};expires=100, <sip:bob@198.51.100.21>"
    assert len(answered(peer, register(two)).headers.get_list("contact")) == 2
    assert len(answered(peer, register("", cseq=2)).headers.get_list("contact")) == 2
    assert len(answered(peer, register(f"{PHONE};expires=0", cseq=3)).headers.get_list("contact")) == 1
    assert answered(peer, register("*", cseq=4, expires="Expires: 0\r\n")).headers.get_list("contact") == []
    assert phones(peer) == []


@pytest.mark.parametrize(
    ("contact", "expires", "code"),
    [
        (PHONE, "Expires: 10\r\n", 423),
        ("*", "Expires: 300\r\n", 400),
        (f"*, {PHONE}", "Expires: 0\r\n", 400),
        ("<sip:;;>", "Expires: 300\r\n", 400),
        ("<http://x>", "Expires: 300\r\n", 416),
        ("<tel:+123>", "Expires: 300\r\n", 400),
    ],
)
def test_what_cannot_be_bound_changes_nothing(contact: str, expires: str, code: int) -> None:
    peer = registrar()
    answered(peer, register("<sip:old@198.51.100.99>", call_id="old"))
    refused = answered(peer, register(contact, expires=expires))
    assert refused.code == code and (refused.headers.get("min-expires") == "60") is (code == 423)
    assert phones(peer) == ["sip:old@198.51.100.99"]


def test_an_old_request_that_comes_late_changes_nothing() -> None:
    peer = registrar()
    answered(peer, register(PHONE, cseq=5))
    assert answered(peer, register(f"{PHONE};expires=0", cseq=4)).code == 500
    assert len(phones(peer)) == 1


def test_contacts_and_users_are_bounded() -> None:
    peer = registrar()
    many = ", ".join(f"<sip:bob@198.51.100.{n}>" for n in range(1, 50))
    assert len(answered(peer, register(many)).headers.get_list("contact")) == 8


def test_only_who_is_let_in_may_register() -> None:
    trunks = tuple(Trunk(user, (), Credentials(user, "secret")) for user in ("bob", "mallory"))
    peer = Script(Agent(AgentSettings(registrar=True, access=Access(trunks=trunks))))
    assert answered(peer, register(PHONE)).code == 401 and phones(peer) == []
    for number, (user, code) in enumerate((("mallory", 403), ("bob", 200))):
        challenge = parse_challenge(
            answered(peer, register(PHONE, call_id=f"c{number}")).headers.get("www-authenticate") or ""
        )
        assert challenge is not None
        who, uri = Credentials(user, "secret"), "sip:moshi@192.0.2.10:5060"
        value = authorization(challenge, who, "REGISTER", uri, body=b"", nc=1, cnonce="x")
        data = register(PHONE, call_id=f"s{number}", extra=f"Authorization: {value}\r\n")
        assert answered(peer, data).code == code and len(phones(peer)) == number
    off = Script(Agent())
    assert answered(off, register(PHONE)).code == 405


@given(
    st.text(alphabet=st.characters(blacklist_characters="\r\n", blacklist_categories=("Cs",)), max_size=50)
)
def test_no_contact_breaks_the_registrar(text: str) -> None:
    peer = registrar()
    peer.deliver(register(text))
    assert len(peer.codes()) == 1
