"""RFC 4475's 49 messages, by section, each with the answer it calls for from a user agent server.

The files hold the bytes of the archive in the RFC's Appendix A, save one: the archive's baddn lacks the
empty line after its headers, which section 3.1.2.15 prints. `None` for an answer: nothing may be sent (a
response, or bytes that cannot be answered); "call": the INVITE becomes a call.
"""

import hashlib
from pathlib import Path

import pytest

from sip.errors import PeerError
from sip.events import CallOffered
from sip.framing import BrokenStream, StreamFramer
from sip.message import Request, Response, check_message, parse_message
from sip.settings import Access, AgentSettings, Credentials, Trunk
from tests.sip_wire import OURS, Agent, Script

DATA = Path(__file__).parent / "data"
CASES: list[tuple[str, str, int | str | None]] = [
    # 3.1.1 valid messages
    ("3.1.1.1", "wsinv", 481),  # well-formed; its To tag names a dialog that we do not have
    ("3.1.1.2", "intmeth", 501),
    ("3.1.1.3", "esc01", "call"),
    ("3.1.1.4", "escnull", 405),  # a REGISTER, and we are no registrar
    ("3.1.1.5", "esc02", 501),  # RE%47IST%45R is not REGISTER
    ("3.1.1.6", "lwsdisp", 200),
    ("3.1.1.7", "longreq", "call"),
    ("3.1.1.8", "dblreq", 405),  # the second request in the datagram is ignored
    ("3.1.1.9", "semiuri", 200),
    ("3.1.1.10", "transports", 200),
    ("3.1.1.11", "mpart01", 405),
    ("3.1.1.12", "unreason", None),
    ("3.1.1.13", "noreason", None),
    # 3.1.2 invalid messages
    ("3.1.2.1", "badinv01", 400),
    ("3.1.2.2", "clerr", 400),
    ("3.1.2.3", "ncl", 400),
    ("3.1.2.4", "scalar02", 400),
    ("3.1.2.5", "scalarlg", None),
    ("3.1.2.6", "quotbal", 400),
    ("3.1.2.7", "ltgtruri", 400),
    ("3.1.2.8", "lwsruri", 400),
    ("3.1.2.9", "lwsstart", 400),
    ("3.1.2.10", "trws", 400),
    ("3.1.2.11", "escruri", 400),
    ("3.1.2.12", "baddate", "call"),  # Date says nothing to us, and may be ignored
    ("3.1.2.13", "regbadct", 400),
    ("3.1.2.14", "badaspec", 400),
    ("3.1.2.15", "baddn", 400),
    ("3.1.2.16", "badvers", 505),
    ("3.1.2.17", "mismatch01", 400),
    ("3.1.2.18", "mismatch02", 501),  # 400 is allowed too, but says that NEWMETHOD is known here
    ("3.1.2.19", "bigcode", None),
    # 3.2 transaction layer, 3.3 application layer, 3.4 backward compatibility
    ("3.2.1", "badbranch", 200),
    ("3.3.1", "insuf", 400),
    ("3.3.2", "unkscm", 416),
    ("3.3.3", "novelsc", 416),
    ("3.3.4", "unksm2", 405),
    ("3.3.5", "bext01", 420),
    ("3.3.6", "invut", 415),
    ("3.3.7", "regaut01", 405),
    ("3.3.8", "multi01", 400),
    ("3.3.9", "mcl01", 400),
    ("3.3.10", "bcast", None),
    ("3.3.11", "zeromf", 200),
    ("3.3.12", "cparam01", 405),
    ("3.3.13", "cparam02", 405),
    ("3.3.14", "regescrt", 405),
    ("3.3.15", "sdp01", 406),
    ("3.4.1", "inv2543", "call"),
]
# escruri is a valid message with a URI that may not stand there; two invalid responses get no answer
REFUSED = {name for _, name, answer in CASES if answer in (400, 505)} - {"escruri"} | {"mismatch02"}
INVALID = REFUSED | {"scalarlg", "bigcode"}


def message(name: str) -> bytes:
    return (DATA / f"rfc4475_{name}.sip").read_bytes()


def test_all_49_messages_are_here() -> None:
    assert len({name for _, name, _ in CASES}) == len(list(DATA.glob("rfc4475_*.sip"))) == 49


def test_their_bytes_are_those_of_the_rfcs_appendix() -> None:
    whole = hashlib.sha256()
    for _, name, _ in CASES:
        whole.update(hashlib.sha256(message(name)).digest())
    assert whole.hexdigest() == "9ea757b51f7195071c06948b94502e488eccadebf3ae1262c2c79ed82d37176c"


@pytest.mark.parametrize(("section", "name", "answer"), CASES, ids=[name for _, name, _ in CASES])
def test_the_answer_is_the_rfcs(section: str, name: str, answer: int | str | None) -> None:
    peer = Script(Agent())
    peer.deliver(message(name))
    responses = [m for m in peer.take() if isinstance(m, Response)]
    codes = [m.code for m in responses if m.code != 100]
    assert codes == ([] if answer in (None, "call") else [answer]), section
    assert (len(peer.agent.of(CallOffered)) == 1) is (answer == "call")
    for response in responses:
        parse_message(response.to_bytes())


@pytest.mark.parametrize("name", [name for _, name, _ in CASES])
def test_valid_ones_parse_and_survive_and_the_others_do_not(name: str) -> None:
    data = message(name)
    if name in INVALID:
        with pytest.raises(PeerError):
            check_message(parse_message(data))
        return
    first = parse_message(data)
    check_message(first)
    again = parse_message(first.to_bytes())
    check_message(again)
    assert again.start_line() == first.start_line() and again.body == first.body
    assert [h for h in again.headers if h[0] != "content-length"] == [
        h for h in first.headers if h[0] != "content-length"
    ]


@pytest.mark.parametrize("name", [name for _, name, answer in CASES if answer == "call"])
def test_what_becomes_a_call_can_be_accepted(name: str) -> None:
    peer = Script(Agent())
    peer.deliver(message(name))
    media = peer.agent.ua.accept(peer.agent.one(CallOffered).call, OURS, peer.now)
    assert media is not None and media.codec == "PCMU"
    assert peer.response().code == 200


@pytest.mark.parametrize("name", [name for _, name, _ in CASES])
def test_no_cut_of_a_torture_message_breaks_the_agent(name: str) -> None:
    data = message(name)
    peer = Script(Agent())
    for end in range(0, len(data), max(1, len(data) // 150)):
        peer.deliver(data[:end])


def test_the_tortuous_invite_says_what_the_rfc_says_it_says() -> None:
    invite = parse_message(message("wsinv"))
    assert isinstance(invite, Request)
    assert invite.from_.display_name == 'J Rosenberg \\"' and invite.from_.tag == "98asjd8"
    assert invite.to.tag == "1918181833n" and invite.cseq == (9, "INVITE")
    assert (invite.via.transport, invite.via.host, invite.via.branch) == ("UDP", "192.0.2.2", "390skdjuw")
    assert len(invite.headers.get_list("via")) == 3
    assert invite.headers.get("unknownheaderwithunusualvalue") == ";;,,;;,;"
    assert invite.headers.get("newfangledheader") == "newfangled value continued newfangled value"
    assert invite.headers.get("subject") == "" and len(invite.body) == 150


def test_a_420_lists_both_unknown_extensions() -> None:
    peer = Script(Agent())
    peer.deliver(message("bext01"))
    assert peer.response().headers.tokens("unsupported") == {
        "nothingsupportsthis",
        "nothingsupportsthiseither",
    }


BOUND = {
    # 3.1.1.4: two contacts, whose NULs end nothing
    "escnull": ["<sip:%00%00@host5.example.com>", "<sip:%00@host5.example.com>"],
    "dblreq": ["<sip:j.user@host.example.com>"],  # 3.1.1.8: the REGISTER alone
    "regaut01": [],  # 3.3.7: a registrar that does not ask who you are reads no Authorization
    "cparam01": ["<sip:+19725552222@gw1.example.net>"],  # 3.3.12: the parameter is not the URI's
    "cparam02": ["<sip:+19725552222@gw1.example.net;unknownparam>"],  # 3.3.13: here it is
    "regescrt": ["<sip:user@example.com?Route=%3Csip:sip.example.com%3E>"],  # 3.3.14
}


@pytest.mark.parametrize("name", BOUND)
def test_a_registrar_binds_what_the_rfc_says(name: str) -> None:
    peer = Script(Agent(AgentSettings(registrar=True)))
    peer.deliver(message(name))
    answer = peer.response()
    assert answer.code == 200 and not peer.agent.of(CallOffered)
    bound = [value.partition(">")[0] + ">" for value in answer.headers.get_list("contact")]
    assert sorted(bound) == BOUND[name]


@pytest.mark.parametrize("name", ["unksm2", "regbadct", "scalar02"])
def test_a_registrar_refuses_with_400_what_the_rfc_says(name: str) -> None:
    peer = Script(Agent(AgentSettings(registrar=True)))
    peer.deliver(message(name))
    assert peer.response().code == 400


def test_a_registrar_that_asks_who_you_are_challenges_an_unknown_scheme_anew() -> None:
    access = Access(trunks=(Trunk("phones", (), Credentials("1000", "secret")),))
    peer = Script(Agent(AgentSettings(registrar=True, access=access)))
    peer.deliver(message("regaut01"))
    answer = peer.response()
    assert answer.code == 401
    assert all(value.startswith("Digest ") for value in answer.headers.get_all("www-authenticate"))


@pytest.mark.parametrize("name", ["ncl", "mcl01"])
def test_over_a_stream_a_length_that_cannot_be_told_closes_the_connection(name: str) -> None:
    with pytest.raises(BrokenStream):
        StreamFramer(65_535).feed(message(name))


def test_over_a_stream_a_length_larger_than_the_message_waits_for_more() -> None:
    assert StreamFramer(65_535).feed(message("clerr")) == []


def test_the_longest_values_are_kept_whole() -> None:
    longest = parse_message(message("longreq"))
    assert isinstance(longest, Request) and longest.from_.tag == "12" + 50 * "982" + "424"
    assert len(longest.headers.get_list("via")) == 34


def test_a_binary_part_is_framed_by_its_length() -> None:
    multipart = parse_message(message("mpart01"))
    assert len(multipart.body) == 553 and multipart.body.count(b"\0") == 2
