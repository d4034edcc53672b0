"""Parsing: round trips, truncation at every byte, and garbage that gets its own error only."""

import contextlib

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sip.errors import PeerError
from sip.headers import (
    Headers,
    MalformedHeader,
    parse_cseq,
    parse_name_addr,
    parse_params,
    split_list,
    split_outside,
)
from sip.message import MalformedMessage, Request, Response, check_message, parse_message
from sip.uri import MalformedUri, UnknownScheme, parse_uri, same_uri
from sip.via import parse_via, stamp_received
from tests.sip_wire import request

INVITE = request()


def test_a_message_survives_parsing_and_writing() -> None:
    first = parse_message(INVITE)
    again = parse_message(first.to_bytes())
    assert isinstance(again, Request)
    assert (again.method, again.uri, again.body) == ("INVITE", "sip:moshi@192.0.2.10:5060", first.body)
    # Content-Length is written last, whatever its place was
    assert [h for h in again.headers if h[0] != "content-length"] == [
        h for h in first.headers if h[0] != "content-length"
    ]
    check_message(again)


@pytest.mark.parametrize("end", range(len(INVITE)))
def test_a_message_cut_anywhere_is_malformed(end: int) -> None:
    with pytest.raises(MalformedMessage):
        parse_message(INVITE[:end])


@given(st.binary(max_size=300))
def test_garbage_is_malformed_and_nothing_else(data: bytes) -> None:
    with contextlib.suppress(PeerError):
        check_message(parse_message(data))


@settings(max_examples=300)
@given(st.lists(st.tuples(st.integers(0, len(INVITE) - 1), st.binary(max_size=4)), max_size=4))
def test_a_damaged_message_is_parsed_or_malformed(edits: list[tuple[int, bytes]]) -> None:
    data = bytearray(INVITE)
    for at, new in edits:
        data[at : at + len(new)] = new
    try:
        message = parse_message(bytes(data))
        check_message(message)
    except PeerError:
        return
    check_message(parse_message(message.to_bytes()))


def test_bytes_that_are_no_utf8_travel_through() -> None:
    data = INVITE.replace(b'"Ann"', b'"\xff\xfe"')
    assert b'"\xff\xfe"' in parse_message(data).to_bytes()


def test_compact_names_and_folded_lines_are_read() -> None:
    data = (
        b"OPTIONS sip:a@b SIP/2.0\r\nv: SIP/2.0/UDP c;branch=z9hG4bKx\r\nf: <sip:a@b>\r\n ;tag=1\r\n"
        b"t: <sip:a@b>\r\ni: 1\r\nCSeq: 7\r\n\tOPTIONS\r\nl: 0\r\n\r\n"
    )
    message = parse_message(data)
    check_message(message)
    assert (message.from_.tag, message.cseq, message.via.host) == ("1", (7, "OPTIONS"), "c")


def test_a_datagram_longer_than_its_content_length_is_cut() -> None:
    assert parse_message(INVITE + b"trailing").body == parse_message(INVITE).body


def test_a_line_break_inside_a_value_cannot_pass() -> None:
    for hole in (b"\n", b"\r"):
        with pytest.raises(MalformedMessage):
            parse_message(INVITE.replace(b"Max-Forwards: 70", b"Max-Forwards: 70" + hole + b"X: y"))


def test_header_count_and_size_are_bounded() -> None:
    with pytest.raises(MalformedMessage, match="too many headers"):
        parse_message(INVITE.replace(b"Max-Forwards: 70\r\n", b"X: y\r\n" * 300))
    with pytest.raises(MalformedMessage, match="too long"):
        parse_message(INVITE.replace(b"Max-Forwards: 70", b"X: " + b"y" * 40_000))


@pytest.mark.parametrize(
    ("old", "new"),
    [
        (b"CSeq: 1 INVITE", b"CSeq: 1 BYE"),
        (b"CSeq: 1 INVITE", b"CSeq: 2147483648 INVITE"),
        (b"CSeq: 1 INVITE", b"CSeq: x INVITE"),
        (b"Call-ID: call-1@peer", b"Call-ID: a\r\nCall-ID: b"),
        (b"Call-ID: call-1@peer\r\n", b""),
        (b"To: <sip:moshi@192.0.2.10>", b"To: <sip:a@b>\r\nTo: <sip:c@d>"),
        (b"Max-Forwards: 70", b"Max-Forwards: 256"),
        (b'From: "Ann"', b'From: "Ann'),
        (b"Via: SIP/2.0/UDP 198.51.100.20:5070", b"Via: SIP/2.0/UDP :5070"),
        (b"INVITE sip:moshi@192.0.2.10:5060 ", b"INVITE <sip:moshi@192.0.2.10:5060> "),
    ],
)
def test_what_every_request_must_have_is_demanded(old: bytes, new: bytes) -> None:
    assert old in INVITE
    with pytest.raises(PeerError) as caught:
        check_message(parse_message(INVITE.replace(old, new)))
    assert caught.value.code == 400


def test_another_sip_version_is_505() -> None:
    with pytest.raises(MalformedMessage) as caught:
        parse_message(INVITE.replace(b"SIP/2.0\r\nVia", b"SIP/7.0\r\nVia"))
    assert caught.value.code == 505 and caught.value.request is not None


@pytest.mark.parametrize("length", [b"-1", b"99999", b"1 2", b"0x10", b""])
def test_a_bad_content_length_is_malformed(length: bytes) -> None:
    body = parse_message(INVITE).body
    with pytest.raises(MalformedMessage):
        parse_message(INVITE.replace(b"Content-Length: %d" % len(body), b"Content-Length: " + length))


def test_a_response_is_parsed() -> None:
    message = parse_message(b"SIP/2.0 486 Busy\xc3\xa9 Here\r\nVia: SIP/2.0/UDP a\r\n\r\n")
    assert isinstance(message, Response)
    assert (message.code, message.reason) == (486, "Busyé Here")


NAMES = [
    ('"A \\"B\\" C" <sip:a@b>;tag=x', "sip:a@b", 'A "B" C', "x"),
    ("Ann Lee <sip:a@b;x=y?h=z>", "sip:a@b;x=y?h=z", "Ann Lee", None),
    ("sip:a@b;tag=q", "sip:a@b", "", "q"),
    ("<sip:a@b>;TAG=q;lr", "sip:a@b", "", "q"),
    ('"x;y,<z>"<sip:a@b>', "sip:a@b", "x;y,<z>", None),
]


@pytest.mark.parametrize(("text", "uri", "name", "tag"), NAMES)
def test_name_addr_round_trip(text: str, uri: str, name: str, tag: str | None) -> None:
    parsed = parse_name_addr(text)
    assert (parsed.uri, parsed.display_name, parsed.tag) == (uri, name, tag)
    assert parse_name_addr(str(parsed)) == parsed


@pytest.mark.parametrize(
    "text", ['"Ann <sip:a@b>', "Bell, A <sip:a@b>", "<sip:a@b", "< sip:a@b>", "<sip:a@b>x", "sip:a b@c",
             "<sip:a@b>;;lr", "<sip:a@b>;tag=1;tag=2", ""]
)  # fmt: skip
def test_a_broken_name_addr_is_malformed(text: str) -> None:
    with pytest.raises(MalformedHeader):
        parse_name_addr(text)


@given(st.text(max_size=60))
def test_no_text_breaks_the_header_parsers(text: str) -> None:
    for parse in (parse_name_addr, parse_cseq, parse_via, split_list, lambda t: parse_params(t.split(";"))):
        with contextlib.suppress(PeerError):
            parse(text)


def test_lists_split_outside_of_quotes_and_angles() -> None:
    assert split_list('"a,b" <sip:x,y@z>, <sip:c@d>') == ['"a,b" <sip:x,y@z>', "<sip:c@d>"]
    assert split_outside("a;b", ";") == ["a", "b"]
    with pytest.raises(MalformedHeader):
        split_list("a,,b")


def test_headers_are_found_by_any_spelling_and_keep_their_order() -> None:
    headers = Headers([("v", "1"), ("X-Foo", "2"), ("VIA", "3")])
    assert headers.get_all("via") == ["1", "3"]
    headers.set("via", "9")
    assert list(headers) == [("via", "9"), ("x-foo", "2")]
    assert headers.public() == (("Via", "9"), ("X-Foo", "2"))


URIS = [
    "sip:alice@atlanta.com",
    "sip:alice:secretword@atlanta.com;transport=tcp",
    "sips:alice@atlanta.com?subject=project%20x&priority=urgent",
    "sip:+1-212-555-1212:1234@gateway.com;user=phone",
    "sip:1212@[2001:db8::10]:5070",
    "sip:atlanta.com;method=REGISTER?to=alice%40atlanta.com",
    "sip:alice;day=tuesday@atlanta.com",
    "sip:user%40x@host;lr",
    "tel:+1-201-555-0123;phone-context=example.com",
]


@pytest.mark.parametrize("text", URIS)
def test_uri_round_trip(text: str) -> None:
    assert str(parse_uri(text)) == text


@pytest.mark.parametrize(
    "text",
    ["", "sip:", "sip:@x", "sip:a@", "sip:a@b:99999", "sip:a@b:x", "sip:a@b;;x", "sip:a b@c", "sip:a@[::1",
     "alice", "sip:a@b?", "tel:", "tel:abc-xyz"],
)  # fmt: skip
def test_a_broken_uri_is_malformed(text: str) -> None:
    with pytest.raises(MalformedUri):
        parse_uri(text)


def test_an_unknown_scheme_is_416() -> None:
    with pytest.raises(UnknownScheme) as caught:
        parse_uri("nobodyKnowsThisScheme:totallyopaquecontent")
    assert caught.value.code == 416


@given(st.text(max_size=80))
def test_any_text_is_a_uri_or_its_error(text: str) -> None:
    for candidate in (text, "sip:" + text, "tel:" + text):
        with contextlib.suppress(MalformedUri, UnknownScheme):
            assert parse_uri(str(parse_uri(candidate))) == parse_uri(candidate)


@pytest.mark.parametrize(
    ("a", "b", "same"),
    [
        # RFC 3261 §19.1.4's own examples
        ("sip:%61lice@atlanta.com;transport=TCP", "sip:alice@AtLanTa.CoM;Transport=tcp", True),
        ("sip:carol@chicago.com", "sip:carol@chicago.com;newparam=5", True),
        ("sip:carol@chicago.com;security=on", "sip:carol@chicago.com;newparam=5", True),
        ("sip:alice@atlanta.com?subject=project%20x&priority=urgent",
         "sip:alice@atlanta.com?priority=urgent&subject=project%20x", True),
        ("SIP:ALICE@AtLanTa.CoM;Transport=udp", "sip:alice@AtLanTa.CoM;Transport=UDP", False),
        ("sip:bob@biloxi.com", "sip:bob@biloxi.com:5060", False),
        ("sip:bob@biloxi.com", "sip:bob@biloxi.com;transport=udp", False),
        ("sip:bob@biloxi.com", "sip:bob@biloxi.com:6000;transport=tcp", False),
        ("sip:carol@chicago.com", "sip:carol@chicago.com?Subject=next%20meeting", False),
        ("sip:carol@chicago.com;security=on", "sip:carol@chicago.com;security=off", False),
    ],
)  # fmt: skip
def test_uris_compare_as_the_rfc_says(a: str, b: str, same: bool) -> None:
    assert same_uri(parse_uri(a), parse_uri(b)) is same


def test_via_notes_where_a_request_came_from() -> None:
    via = parse_via("SIP / 2.0 / UDP  first.example.com: 4000;ttl=16 ;branch=z9hG4bK776;rport")
    assert (via.transport, via.host, via.port, via.branch) == ("UDP", "first.example.com", 4000, "z9hG4bK776")
    stamped = stamp_received(via, "192.0.2.7", 6000)
    assert stamped.params["received"] == "192.0.2.7" and stamped.response_port() == 6000
    plain = parse_via("SIP/2.0/UDP 192.0.2.7:4000;branch=z9hG4bK1")
    assert stamp_received(plain, "192.0.2.7", 6000).response_port() == 4000
