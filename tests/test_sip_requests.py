"""Requests of every kind: those we cannot take get their own answer, and each answer and each request of ours
goes where it should."""

import pytest

from sip.events import CallEnded, CallOffered
from sip.settings import AgentSettings
from tests.sip_wire import OURS, Agent, Script, answered_call, forgotten, offered, request


def test_options_tells_what_we_can_and_503_while_full_or_draining() -> None:
    peer = Script(Agent(AgentSettings(max_calls=1)))
    peer.deliver(request("OPTIONS"))
    answer = peer.response()
    assert answer.code == 200
    assert {"INVITE", "ACK", "BYE", "CANCEL", "OPTIONS"} <= {
        w.upper() for w in answer.headers.tokens("allow")
    }
    assert "application/sdp" in answer.headers.tokens("accept") and answer.headers.get("supported")
    peer.deliver(request(branch="z9hG4bK-2"))
    peer.take()
    for method, branch in (("OPTIONS", "z9hG4bK-3"), ("INVITE", "z9hG4bK-4")):
        peer.deliver(request(method, branch=branch, call_id="other", from_tag="o"))
        full = peer.response()
        assert (full.code, full.headers.get("retry-after")) == (503, "5")
    peer.agent.ua.hang_up(peer.agent.one(CallOffered).call, peer.now)
    peer.take()
    peer.agent.ua.refuse_new_calls(True)
    peer.deliver(request(branch="z9hG4bK-5", call_id="third"))
    assert peer.response().code == 503
    peer.agent.ua.refuse_new_calls(False)
    peer.deliver(request("OPTIONS", branch="z9hG4bK-6", call_id="fourth"))
    assert peer.response().code == 200


REFUSED = [
    (request("MESSAGE"), 405, "allow"),
    (request("REGISTER"), 405, "allow"),
    (request("NEWMETHOD"), 501, "allow"),
    (request(uri="nobodyKnowsThisScheme:x"), 416, None),
    (request(uri="sip:;;"), 400, None),
    (request(extra="Record-Route: <sip:;;lr>\r\n"), 400, None),
    (request(extra="Record-Route: <http://x;lr>\r\n"), 416, None),
    (request(extra="Require: nothingSupportsThis, 100rel\r\n"), 420, "unsupported"),
    (request(extra="Content-Type: text/plain\r\n"), 415, "accept"),
    (request(extra="Content-Type: application/sdp\r\nContent-Encoding: gzip\r\n"), 415, "accept-encoding"),
    (request(extra="Accept: text/nobodyKnowsThis\r\n"), 406, "accept"),
    (request(extra="Session-Expires: 30\r\nSupported: timer\r\n"), 422, "min-se"),
    (request(to_tag="unknown"), 481, None),
    (request("BYE", to_tag="unknown"), 481, None),
    (request("BYE"), 481, None),
    (request("UPDATE"), 481, None),
    (request("REFER", extra="Refer-To: <sip:x@y>\r\n"), 603, None),
    (request(extra="Replaces: nobody;to-tag=1;from-tag=2\r\n"), 481, None),
    (request().replace(b"Contact: <sip:ann@198.51.100.20:5070>\r\n", b""), 400, None),
    (request().replace(b"SIP/2.0\r\nVia", b"SIP/3.0\r\nVia"), 505, None),
    (request().replace(b"CSeq: 1 INVITE", b"CSeq: 4294967296 INVITE"), 400, None),
    (request().replace(b"To: ", b"To: <sip:x@y>\r\nTo: "), 400, None),
    (request().replace(b"Content-Length: ", b"Content-Length: -"), 400, None),
]


@pytest.mark.parametrize(("data", "code", "header"), REFUSED)
def test_a_request_we_cannot_take_gets_its_own_answer(data: bytes, code: int, header: str | None) -> None:
    peer = Script(Agent())
    peer.deliver(data)
    answer = peer.response()
    assert answer.code == code
    assert header is None or answer.headers.get(header)
    assert answer.to.tag and peer.agent.kinds() == []
    if data.startswith(b"INVITE"):
        peer.deliver(request("ACK", to_tag=answer.to.tag, body=None))
    peer.wait(60)
    assert forgotten(peer)


def test_a_420_names_only_what_is_not_understood() -> None:
    peer = Script(Agent())
    peer.deliver(request(extra="Require: foo, 100rel, bar\r\n"))
    assert peer.response().headers.get("unsupported") == "bar, foo"


def test_the_same_request_by_two_paths_is_482() -> None:
    peer, _ = offered()
    peer.take()
    peer.deliver(request(branch="z9hG4bK-by-another-proxy"))
    assert peer.response().code == 482
    assert len(peer.agent.of(CallOffered)) == 1


def test_garbage_is_counted_and_nothing_else() -> None:
    peer = Script(Agent())
    for data in (b"\xff\x00garbage", b"GET / HTTP/1.1\r\n\r\n", b"x" * 70_000, b"ACK sip:a@b SIP/2.0\r\n\r\n",
                 b"INVITE sip:a@b SIP/2.0\r\n\r\n", b"SIP/2.0 200 OK\r\n\r\n"):  # fmt: skip
        peer.deliver(data)
    for keepalive in (b"", b"\r\n\r\n", b"\0\0\0\0"):
        peer.deliver(keepalive)
    assert peer.take() == [] and peer.agent.kinds() == [] and forgotten(peer)
    assert peer.agent.ua.counters.malformed == 6


def test_a_stray_ack_or_response_is_counted() -> None:
    peer = Script(Agent())
    peer.deliver(request("ACK", to_tag="x", body=None))
    peer.deliver(b"SIP/2.0 200 OK\r\nVia: SIP/2.0/UDP 192.0.2.10;branch=z9hG4bKno\r\n"
        b"From: <sip:a@b>;tag=1\r\n"
                 b"To: <sip:a@b>;tag=2\r\nCall-ID: x\r\nCSeq: 1 INVITE\r\n\r\n")  # fmt: skip
    assert peer.take() == [] and peer.agent.ua.counters.stray == 2


def test_responses_go_to_rport_else_to_the_via_port_and_never_to_a_third_party() -> None:
    for old, new, port in (
        (b";rport", b";rport", 5070),
        (b";rport", b"", 4444),
        (b";rport", b";maddr=203.0.113.9", 4444),
    ):
        peer = Script(Agent())
        peer.deliver(request().replace(b"20:5070;branch", b"20:4444;branch").replace(old, new))
        destination = peer.raw[0][2]
        assert (destination.host, destination.port) == ("198.51.100.20", port)


def test_received_and_rport_are_filled_in() -> None:
    peer = Script(Agent(), ("203.0.113.5", 6000))
    peer.deliver(request())
    via = peer.take()[0].via
    assert (via.params["received"], via.params["rport"]) == ("203.0.113.5", "6000")
    assert peer.raw[0][2][:2] == ("203.0.113.5", 6000)


ROUTES = (
    "Record-Route: <sip:p2.example;lr>, <sip:p1.example;lr>\r\nRecord-Route: <sip:p0.example:5062;lr>\r\n"
)


def test_record_route_is_echoed_and_kept_in_order_for_our_requests() -> None:
    peer, call = offered(data=request(extra=ROUTES))
    peer.agent.ua.accept(call, OURS, peer.now)
    answer = peer.response()
    assert answer.headers.get_list("record-route") == [
        "<sip:p2.example;lr>", "<sip:p1.example;lr>", "<sip:p0.example:5062;lr>"
    ]  # fmt: skip
    peer.deliver(request("ACK", branch="z9hG4bK-a", to_tag=answer.to.tag or "", body=None))
    peer.agent.ua.hang_up(call, peer.now)
    bye = peer.request("BYE")
    assert bye.uri == "sip:ann@198.51.100.20:5070"
    assert bye.headers.get_list("route") == answer.headers.get_list("record-route")
    assert peer.raw[-1][2][:2] == ("p2.example", 5060)


def test_a_strict_router_gets_the_request_uri() -> None:
    peer, call = offered(data=request(extra="Record-Route: <sip:strict.example>\r\n"))
    peer.agent.ua.accept(call, OURS, peer.now)
    tag = peer.response().to.tag or ""
    peer.deliver(request("ACK", branch="z9hG4bK-a", to_tag=tag, body=None))
    peer.agent.ua.hang_up(call, peer.now)
    bye = peer.request("BYE")
    assert bye.uri == "sip:strict.example"
    assert bye.headers.get_list("route") == ["<sip:ann@198.51.100.20:5070>"]


def test_the_public_address_stands_in_contact_via_and_sdp() -> None:
    peer = Script(Agent(AgentSettings(public_host="203.0.113.1", public_port=6060)))
    peer.deliver(request())
    call = peer.agent.one(CallOffered).call
    peer.agent.ua.accept(call, OURS, peer.now)
    answer = peer.response()
    assert answer.headers.get("contact") == "<sip:moshi@203.0.113.1:6060>"
    peer.deliver(request("ACK", branch="z9hG4bK-a", to_tag=answer.to.tag or "", body=None))
    peer.agent.ua.hang_up(call, peer.now)
    assert (peer.request("BYE").via.host, peer.agent.ua.counters.malformed) == ("203.0.113.1", 0)


@pytest.mark.parametrize(
    ("contact", "source", "goes_to"),
    [
        ("192.168.1.7:5060", ("198.51.100.20", 41_000), ("198.51.100.20", 41_000)),
        ("203.0.113.7:5062", ("198.51.100.20", 41_000), ("203.0.113.7", 5062)),
        ("192.168.1.7:5060", ("192.168.1.1", 41_000), ("192.168.1.7", 5060)),
    ],
)
def test_a_phone_behind_nat_is_reached_where_it_called_from(
    contact: str, source: tuple[str, int], goes_to: tuple[str, int]
) -> None:
    peer = Script(Agent(), source)
    peer.deliver(request().replace(b"<sip:ann@198.51.100.20:5070>", f"<sip:ann@{contact}>".encode()))
    call = peer.agent.one(CallOffered).call
    peer.agent.ua.accept(call, OURS, peer.now)
    tag = peer.response().to.tag or ""
    peer.deliver(request("ACK", branch="z9hG4bK-a", to_tag=tag, body=None))
    peer.agent.ua.hang_up(call, peer.now)
    assert peer.request("BYE").uri == f"sip:ann@{contact}" and peer.raw[-1][2][:2] == goes_to


def test_a_peer_cannot_speak_in_another_ones_dialog() -> None:
    peer, _, tag = answered_call()
    peer.deliver(request("BYE", branch="z9hG4bK-x", to_tag=tag, from_tag="somebody-else", cseq=2))
    assert peer.response().code == 481 and not peer.agent.of(CallEnded)
