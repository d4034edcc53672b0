"""What a peer says of the caller reaches the owner as data, whatever it holds."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sip.events import CallOffered, Party
from sip.identity import asserted_identity, diversions, user_to_user, verdict, wants_privacy
from tests.sip_wire import Agent, Script, request


def offered(extra: str) -> CallOffered:
    peer = Script(Agent())
    peer.deliver(request(extra=extra))
    return peer.agent.one(CallOffered)


def test_every_header_of_the_caller_is_there() -> None:
    extra = "Reason: Q.850;cause=16\r\nX-Account: 7\r\nHistory-Info: <sip:a@b>;index=1\r\nIdentity: abc\r\n"
    event = offered(extra)
    for name, value in (("reason", "Q.850;cause=16"), ("X-ACCOUNT", "7"), ("Identity", "abc")):
        assert event.header(name) == value


def test_the_asserted_identity_is_the_sip_one() -> None:
    sip = "sip:+4930123@c.example;user=phone"
    event = offered(f'P-Asserted-Identity: <tel:+4930123>, "Ann" <{sip}>\r\n')
    assert asserted_identity(event) == Party(sip, "+4930123", "c.example", "Ann")
    alone = offered("P-Asserted-Identity: <tel:+4930123>\r\n")
    assert asserted_identity(alone) == Party("tel:+4930123", "+4930123", "")
    assert asserted_identity(offered("")) is None


def test_who_forwarded_the_call_is_known_by_diversion_or_history() -> None:
    event = offered('Diversion: <sip:b@x>;reason="user-busy", <sip:a@x>;reason=no-answer\r\n')
    steps = [(step.party.user, step.reason) for step in diversions(event)]
    assert steps == [("b", "user-busy"), ("a", "no-answer")]
    history = "History-Info: <sip:a@x>;index=1, <sip:b@x>;index=1.1, <sip:us@x>;index=1.1.1\r\n"
    assert [step.party.user for step in diversions(offered(history))] == ["b", "a"]
    assert diversions(offered("")) == []


@pytest.mark.parametrize(
    ("extra", "expected"),
    [
        ("P-Asserted-Identity: <sip:+1@c;verstat=TN-Validation-Passed>\r\n", "passed"),
        ("P-Asserted-Identity: <tel:+1;verstat=TN-Validation-Failed>\r\n", "failed"),
        ("P-Asserted-Identity: <tel:+1;verstat=No-TN-Validation>\r\n", "none"),
        ("", "none"),
    ],
)
def test_the_carriers_verdict_is_read(extra: str, expected: str) -> None:
    assert verdict(offered(extra)) == expected


def test_privacy_and_user_to_user_data_are_read() -> None:
    assert wants_privacy(offered("Privacy: id;critical\r\n"))
    assert not wants_privacy(offered("Privacy: none\r\n"))
    values = ("48692c;encoding=hex", "plain;purpose=x", "zz;encoding=hex")
    event = offered("".join(f"User-to-User: {value}\r\n" for value in values))
    assert user_to_user(event) == [b"Hi,", "plain", "zz"]


one_line = st.text(alphabet=st.characters(blacklist_characters="\r\n", blacklist_categories=("Cs",)))


@given(one_line)
def test_no_header_breaks_the_readers(text: str) -> None:
    names = ("P-Asserted-Identity", "Diversion", "History-Info", "User-to-User", "Privacy")
    party = Party("sip:a@b", "a", "b")
    headers = tuple((name, text) for name in names)
    event = CallOffered("1", "sip:a@b", party, party, headers, None, ("192.0.2.1", 5060), "udp")
    for read in (asserted_identity, diversions, user_to_user, verdict, wants_privacy):
        read(event)  # type: ignore[operator]
