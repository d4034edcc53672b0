"""Calls that come in: every answer, retransmission and race of the server's side; time as an argument."""

import itertools

import pytest

from sip.agent import CallStateError
from sip.errors import PeerError
from sip.events import (
    CallCancelled,
    CallConfirmed,
    CallEnded,
    CallHeld,
    CallOffered,
    CallResumed,
    DtmfReceived,
    MediaChanged,
)
from sip.message import Request, Response
from sip.sdp import NoCommonCodec
from sip.settings import AgentSettings
from tests.sip_wire import OFFER, OURS, Agent, Script, answered_call, request


def offered(settings: AgentSettings | None = None, data: bytes | None = None) -> tuple[Script, str]:
    peer = Script(Agent(settings))
    peer.deliver(data or request())
    return peer, peer.agent.one(CallOffered).call


def forgotten(peer: Script) -> bool:
    """Nothing of any call is left: no transaction, dialog or alarm."""
    core, calls = peer.agent.ua._core, peer.agent.ua._calls
    return not (core.servers or core.clients or calls.by_id or calls.by_dialog or len(core.alarms))


def test_an_invite_is_trying_at_once_and_offered_with_everything_it_says() -> None:
    peer, call = offered(data=request(extra="Diversion: <sip:x@y>;reason=no-answer\r\nX-Id: 7\r\n"))
    assert peer.codes() == [100]
    event = peer.agent.one(CallOffered)
    assert (event.call, event.request_uri) == (call, "sip:moshi@192.0.2.10:5060")
    assert (event.caller.user, event.caller.host, event.caller.display_name) == (
        "ann",
        "198.51.100.20",
        "Ann",
    )
    assert event.offer == OFFER and event.source == peer.address and event.transport == "udp"
    assert event.header("diversion") == "<sip:x@y>;reason=no-answer" and event.header("x-id") == "7"


def test_a_retransmitted_invite_gets_the_same_answer_and_makes_no_second_call() -> None:
    peer, call = offered()
    peer.take()
    peer.deliver(request())
    assert peer.codes() == [100]
    peer.agent.ua.ring(call, peer.now)
    peer.take()
    peer.deliver(request())
    assert peer.codes() == [180]
    peer.agent.ua.accept(call, OURS, peer.now)
    first = peer.response()
    peer.deliver(request())
    assert peer.response().to_bytes() == first.to_bytes()
    assert len(peer.agent.of(CallOffered)) == 1


def test_an_invite_sent_again_over_a_new_connection_is_answered_there() -> None:
    peer = Script(Agent())
    first, second, elsewhere = ("192.0.2.10", 4_001), ("192.0.2.10", 4_002), ("192.0.2.66", 4_003)
    for address in (first, second, elsewhere):
        peer.address = address
        peer.deliver(request(), "tcp")
    ports = [destination.port for _, _, destination in peer.raw]
    assert ports == [4_001, 4_002, 4_002], "nobody else gets what is not his"


def test_a_2xx_is_resent_until_its_ack() -> None:
    peer, call = offered()
    peer.agent.ua.accept(call, OURS, peer.now)
    peer.take()
    peer.wait(3.6)  # T1 doubling: 0.5, 1.5, 3.5 s
    sent = peer.take()
    assert [m.code for m in sent if isinstance(m, Response)] == [200, 200, 200]
    peer.deliver(request("ACK", branch="z9hG4bK-a", to_tag=sent[0].to.tag or "", body=None))
    peer.wait(30)
    assert peer.take() == []
    assert peer.agent.one(CallConfirmed).media.codec == "PCMU"


def test_a_call_whose_ack_is_lost_gets_bye_after_64_t1() -> None:
    peer, call = offered()
    peer.agent.ua.accept(call, OURS, peer.now)
    peer.wait(31.9)
    assert not peer.agent.of(CallEnded)
    peer.take()
    peer.wait(0.2)
    assert peer.request("BYE").call_id == "call-1@peer"
    assert (peer.agent.one(CallEnded).by, peer.agent.one(CallEnded).code) == ("timeout", 408)
    peer.wait(40)
    assert forgotten(peer)


def test_cancel_gets_200_and_the_invite_487() -> None:
    peer, call = offered()
    peer.take()
    peer.deliver(request("CANCEL", extra="Reason: SIP;cause=200\r\n"))
    answers = [m for m in peer.take() if isinstance(m, Response)]
    assert [(m.code, m.cseq.method) for m in answers] == [(200, "CANCEL"), (487, "INVITE")]
    assert answers[0].to.tag == answers[1].to.tag != None  # noqa: E711
    assert peer.agent.one(CallCancelled).reason == "SIP;cause=200"
    assert peer.agent.kinds() == ["CallOffered", "CallCancelled", "CallEnded"]
    with pytest.raises(CallStateError):
        peer.agent.ua.accept(call, OURS, peer.now)
    peer.deliver(request("ACK", to_tag=answers[1].to.tag or "", body=None))
    peer.wait(60)
    assert forgotten(peer)


def test_the_487_is_resent_until_its_ack_and_no_longer_than_64_t1() -> None:
    peer, _ = offered()
    peer.deliver(request("CANCEL"))
    peer.take()
    peer.wait(100)
    times = [at for at, data, _ in peer.raw if b" 487 " in data[:20]]
    assert [round(b - a, 1) for a, b in itertools.pairwise(times)] == [0.5, 1, 2] + [4] * 7
    assert forgotten(peer)


def test_cancel_after_the_200_gets_200_and_has_no_effect() -> None:
    peer, _call, tag = answered_call()
    peer.deliver(request("CANCEL"))
    assert [(m.code, m.cseq.method) for m in peer.take() if isinstance(m, Response)] == [(200, "CANCEL")]
    assert not peer.agent.of(CallCancelled)
    peer.deliver(request("BYE", branch="z9hG4bK-b", to_tag=tag, cseq=2))
    assert peer.response().code == 200


def test_cancel_of_nothing_is_481() -> None:
    peer = Script(Agent())
    peer.deliver(request("CANCEL"))
    assert peer.response().code == 481


def test_cancel_on_the_heels_of_its_invite_ends_the_call_before_the_owner_looks() -> None:
    peer = Script(Agent())
    peer.agent.ua.receive_datagram(request(), peer.address, 0.0)
    peer.agent.ua.receive_datagram(request("CANCEL"), peer.address, 0.0)
    peer.collect()
    assert peer.agent.kinds() == ["CallOffered", "CallCancelled", "CallEnded"]
    peer.agent.ua.hang_up(peer.agent.events[0].call, 0.0)  # type: ignore[union-attr]


def test_bye_ends_the_call_once_and_its_retransmission_is_answered() -> None:
    peer, _, tag = answered_call()
    bye = request("BYE", branch="z9hG4bK-b", to_tag=tag, cseq=2, extra="Reason: Q.850;cause=16\r\n")
    peer.deliver(bye)
    peer.deliver(bye)
    assert peer.codes() == [200, 200]
    ended = peer.agent.one(CallEnded)
    assert (ended.by, ended.code, ended.reason) == ("peer", 200, "Q.850;cause=16")
    peer.wait(60)
    assert forgotten(peer)


def test_bye_before_the_ack_ends_an_accepted_call() -> None:
    peer, call = offered()
    peer.agent.ua.accept(call, OURS, peer.now)
    tag = peer.response().to.tag or ""
    peer.deliver(request("BYE", branch="z9hG4bK-b", to_tag=tag, cseq=2))
    assert peer.response().code == 200
    peer.wait(60)
    assert peer.take() == [] and peer.agent.one(CallEnded).by == "peer" and forgotten(peer)


def test_bye_in_an_early_dialog_ends_the_invite_with_487() -> None:
    peer, call = offered()
    peer.agent.ua.ring(call, peer.now)
    tag = next(m.to.tag for m in peer.take() if isinstance(m, Response) and m.code == 180) or ""
    peer.deliver(request("BYE", branch="z9hG4bK-b", to_tag=tag, cseq=2))
    assert sorted(peer.codes()) == [200, 487]
    assert peer.agent.one(CallEnded).by == "peer"


def test_hang_up_before_the_ack_waits_for_it() -> None:
    peer, call = offered()
    peer.agent.ua.accept(call, OURS, peer.now)
    tag = peer.response().to.tag or ""
    peer.agent.ua.hang_up(call, peer.now, "Q.850;cause=16")
    assert peer.take() == [] and peer.agent.one(CallEnded).by == "us"
    peer.deliver(request("ACK", branch="z9hG4bK-a", to_tag=tag, body=None))
    assert peer.request("BYE").headers.get("reason") == "Q.850;cause=16"


def test_a_lost_bye_is_resent_and_given_up() -> None:
    peer, call, _ = answered_call()
    peer.agent.ua.hang_up(call, peer.now)
    peer.wait(80)
    byes = [at for at, data, _ in peer.raw if data.startswith(b"BYE")]
    assert len(byes) == 11 and byes[-1] - byes[0] < 32
    assert forgotten(peer)


def test_crossing_byes_are_both_answered() -> None:
    peer, call, tag = answered_call()
    peer.agent.ua.hang_up(call, peer.now)
    peer.request("BYE")
    peer.deliver(request("BYE", branch="z9hG4bK-b", to_tag=tag, cseq=2))
    assert peer.response().code == 200
    assert len(peer.agent.of(CallEnded)) == 1


@pytest.mark.parametrize("code", [480, 486, 488, 503, 603])
def test_a_refusal_is_sent_with_its_headers_and_ends_the_call(code: int) -> None:
    peer, call = offered()
    peer.agent.ua.refuse(call, code, peer.now, headers=(("X-Why", "because"),))
    answer = peer.response()
    assert answer.code == code and answer.headers.get("x-why") == "because"
    assert (answer.headers.get("retry-after") == "5") is (code == 503)
    ended = peer.agent.one(CallEnded)
    assert (ended.by, ended.code) == ("us", code)


def test_a_header_of_the_owner_cannot_break_out_of_its_line() -> None:
    peer, call = offered()
    for headers in ((("X", "a\r\nVia: b"),), (("X: y\r\nVia", "b"),)):
        with pytest.raises(ValueError):
            peer.agent.ua.refuse(call, 486, peer.now, headers=headers)
    with pytest.raises(ValueError):
        peer.agent.ua.refuse(call, 486, peer.now, reason="a\r\nb: c")


def test_an_unanswered_call_is_480_after_the_ring_time() -> None:
    peer, _ = offered(AgentSettings(ring_timeout_s=30))
    peer.wait(31)
    assert 480 in peer.codes() and peer.agent.one(CallEnded).by == "timeout"


def test_no_codec_in_common_leaves_the_owner_to_refuse_with_488() -> None:
    peer, call = offered(data=request(body=OFFER.replace(b" 0 8 101", b" 18 101")))
    with pytest.raises(NoCommonCodec) as caught:
        peer.agent.ua.accept(call, OURS, peer.now)
    peer.agent.ua.refuse(call, caught.value.code, peer.now)
    assert peer.response().code == 488


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


def test_a_delayed_offer_is_ours_in_the_200_and_answered_in_the_ack() -> None:
    peer, call = offered(data=request(body=None))
    assert peer.agent.one(CallOffered).offer is None
    assert peer.agent.ua.accept(call, OURS, peer.now) is None
    answer = peer.response()
    assert b"m=audio 40000 RTP/AVP 0 8 101" in answer.body
    ack = request("ACK", branch="z9hG4bK-a", to_tag=answer.to.tag or "", body=OFFER.replace(b" 0 8", b" 8"))
    peer.deliver(ack)
    media = peer.agent.one(CallConfirmed).media
    assert (media.codec, media.remote_host, media.remote_port) == ("PCMA", "198.51.100.20", 50000)


@pytest.mark.parametrize("body", [None, b"rubbish", OFFER.replace(b"audio 50000", b"audio 0")])
def test_a_delayed_offer_without_a_usable_answer_ends_the_call(body: bytes | None) -> None:
    peer, call = offered(data=request(body=None))
    peer.agent.ua.accept(call, OURS, peer.now)
    tag = peer.response().to.tag or ""
    peer.deliver(request("ACK", branch="z9hG4bK-a", to_tag=tag, body=body))
    assert peer.request("BYE") and peer.agent.one(CallEnded).by == "error"
    assert not peer.agent.of(CallConfirmed)


def test_sdp_inside_multipart_is_found() -> None:
    body = (b"--b\r\nContent-Type: application/isup;version=itu\r\n\r\n\x01\x02\r\n--b\r\n"
            b"Content-Type: application/sdp\r\n\r\n" + OFFER + b"\r\n--b--\r\n")  # fmt: skip
    peer, call = offered(data=request(body=body, extra="Content-Type: multipart/mixed;boundary=b\r\n"))
    assert peer.agent.one(CallOffered).offer == OFFER
    media = peer.agent.ua.accept(call, OURS, peer.now)
    assert media is not None and media.remote_port == 50000


def reinvite(tag: str, cseq: int, body: bytes | None, method: str = "INVITE", extra: str = "") -> bytes:
    return request(method, branch=f"z9hG4bK-r{cseq}", to_tag=tag, cseq=cseq, body=body, extra=extra)


def ack(tag: str, cseq: int, body: bytes | None = None) -> bytes:
    return request("ACK", branch=f"z9hG4bK-a{cseq}", to_tag=tag, cseq=cseq, body=body)


HOLDS = [
    (OFFER + b"a=sendonly\r\n", b"a=recvonly"),
    (OFFER + b"a=inactive\r\n", b"a=inactive"),
    (OFFER.replace(b"c=IN IP4 198.51.100.20", b"c=IN IP4 0.0.0.0"), b"a=recvonly"),
]


@pytest.mark.parametrize(("hold", "direction"), HOLDS)
@pytest.mark.parametrize("method", ["INVITE", "UPDATE"])
def test_hold_and_resume_five_times(hold: bytes, direction: bytes, method: str) -> None:
    peer, _, tag = answered_call()
    cseq = 1
    for _ in range(5):
        for body, line in ((hold, direction), (OFFER, b"a=sendrecv")):
            cseq += 1
            peer.deliver(reinvite(tag, cseq, body, method))
            answer = peer.response()
            assert answer.code == 200 and line in answer.body
            if method == "INVITE":
                peer.deliver(ack(tag, cseq))
    assert len(peer.agent.of(CallHeld)) == len(peer.agent.of(CallResumed)) == 5
    assert not peer.agent.of(MediaChanged) and not peer.agent.of(CallEnded)


def test_codec_and_address_may_change_in_mid_call() -> None:
    peer, _, tag = answered_call()
    peer.deliver(
        reinvite(tag, 2, OFFER.replace(b" 0 8 101", b" 8").replace(b"198.51.100.20", b"203.0.113.77"))
    )
    assert b"m=audio 40000 RTP/AVP 8\r\n" in peer.response().body
    media = peer.agent.one(MediaChanged).media
    assert (media.codec, media.remote_host, media.dtmf_payload_type) == ("PCMA", "203.0.113.77", None)


def test_our_sdp_version_grows_only_with_a_change() -> None:
    peer, _, tag = answered_call()

    def origin(cseq: int, body: bytes) -> list[str]:
        peer.deliver(reinvite(tag, cseq, body))
        answer = peer.response()
        peer.deliver(ack(tag, cseq))
        return answer.body.split(b"\r\n")[1].decode().split()[1:3]

    first, same, changed = origin(2, OFFER), origin(3, OFFER), origin(4, OFFER + b"a=sendonly\r\n")
    assert first == same and changed[0] == same[0] and int(changed[1]) == int(same[1]) + 1


def test_a_reinvite_that_does_not_fit_is_488_and_leaves_the_call_as_it_was() -> None:
    peer, call, tag = answered_call()
    for cseq, body in ((2, OFFER.replace(b" 0 8 101", b" 18")), (3, OFFER.replace(b"RTP/AVP", b"RTP/SAVP"))):
        peer.deliver(reinvite(tag, cseq, body))
        assert peer.response().code == 488
        peer.deliver(request("ACK", branch=f"z9hG4bK-r{cseq}", to_tag=tag, cseq=cseq, body=None))
    peer.deliver(reinvite(tag, 4, b"v=0\r\nrubbish"))
    assert peer.response().code == 400
    assert peer.agent.ua._calls.find(call).exchange.agreed == peer.agent.one(CallConfirmed).media
    assert not peer.agent.of(MediaChanged) and not peer.agent.of(CallEnded)


def test_a_reinvite_without_sdp_gets_our_offer_and_the_answer_comes_with_the_ack() -> None:
    peer, _, tag = answered_call()
    peer.deliver(reinvite(tag, 2, None))
    answer = peer.response()
    assert answer.code == 200 and b"m=audio 40000 RTP/AVP 0 8 101" in answer.body
    peer.deliver(ack(tag, 2, OFFER.replace(b" 0 8 101", b" 8 101")))
    assert peer.agent.one(MediaChanged).media.codec == "PCMA"


def test_an_update_without_sdp_is_a_refresh() -> None:
    peer, _, tag = answered_call()
    peer.deliver(reinvite(tag, 2, None, "UPDATE"))
    answer = peer.response()
    assert answer.code == 200 and answer.body == b""


def test_an_old_cseq_is_500() -> None:
    peer, _, tag = answered_call()
    peer.deliver(reinvite(tag, 5, OFFER, "UPDATE"))
    peer.deliver(reinvite(tag, 4, OFFER, "UPDATE"))
    assert peer.codes() == [200, 500]


def test_a_reinvite_while_ours_is_open_is_491() -> None:
    peer, call, tag = answered_call()
    peer.agent.ua.hold(call, peer.now)
    ours = peer.request("INVITE")
    for cseq, method in ((2, "INVITE"), (3, "UPDATE")):
        peer.deliver(reinvite(tag, cseq, OFFER, method))
        assert peer.response().code == 491
    assert ours.headers.get(
        "to",
    ) and not peer.agent.of(CallEnded)


def test_a_request_before_our_final_answer_is_500_with_retry_after() -> None:
    peer, call = offered()
    peer.agent.ua.ring(call, peer.now)
    tag = next(m.to.tag for m in peer.take() if isinstance(m, Response) and m.code == 180) or ""
    for cseq, method in ((2, "INVITE"), (3, "UPDATE")):
        peer.deliver(reinvite(tag, cseq, OFFER, method))
        answer = peer.response()
        assert answer.code == 500 and 0 <= int(answer.headers.get("retry-after") or -1) <= 10


def test_a_reinvite_moves_the_remote_target() -> None:
    peer, call, tag = answered_call()
    moved = reinvite(tag, 2, OFFER).replace(b"<sip:ann@198.51.100.20:5070>", b"<sip:ann@198.51.100.20:5099>")
    peer.deliver(moved)
    peer.deliver(ack(tag, 2))
    peer.take()
    peer.agent.ua.hang_up(call, peer.now)
    assert peer.request("BYE").uri == "sip:ann@198.51.100.20:5099"


def test_a_lost_ack_of_a_reinvite_ends_the_call() -> None:
    peer, _, tag = answered_call()
    peer.deliver(reinvite(tag, 2, OFFER))
    peer.take()
    peer.wait(33)
    assert any(isinstance(m, Request) and m.method == "BYE" for m in peer.take())
    assert peer.agent.one(CallEnded).by == "timeout"


@pytest.mark.parametrize(
    ("kind", "body", "digit", "duration"),
    [
        ("application/dtmf-relay", b"Signal=5\r\nDuration=250\r\n", "5", 250),
        ("application/dtmf-relay", b"Signal= #\nDuration= 100", "#", 100),
        ("application/dtmf-relay", b"Signal=11\r\n", "#", 160),
        ("application/dtmf", b"*", "*", 160),
        ("application/dtmf", b"d\r\n", "D", 160),
    ],
)
def test_a_digit_by_info_is_heard_once(kind: str, body: bytes, digit: str, duration: int) -> None:
    peer, _, tag = answered_call()
    info = request(
        "INFO", branch="z9hG4bK-i", to_tag=tag, cseq=2, body=body, extra=f"Content-Type: {kind}\r\n"
    )
    peer.deliver(info)
    peer.deliver(info)
    assert peer.codes() == [200, 200]
    event = peer.agent.one(DtmfReceived)
    assert (event.digit, event.duration_ms) == (digit, duration)


@pytest.mark.parametrize(
    ("extra", "body", "code"),
    [
        ("Content-Type: application/dtmf-relay\r\n", b"Duration=5", 400),
        ("Content-Type: application/dtmf\r\n", b"55", 400),
        ("Content-Type: text/plain\r\n", b"5", 415),
        ("Info-Package: foo\r\nContent-Type: application/dtmf\r\n", b"5", 469),
        ("", None, 200),
    ],
)
def test_an_info_without_a_digit_gets_its_answer(extra: str, body: bytes | None, code: int) -> None:
    peer, _, tag = answered_call()
    peer.deliver(request("INFO", branch="z9hG4bK-i", to_tag=tag, cseq=2, body=body, extra=extra))
    assert peer.response().code == code and not peer.agent.of(DtmfReceived)


def test_a_peer_cannot_speak_in_another_ones_dialog() -> None:
    peer, _, tag = answered_call()
    peer.deliver(request("BYE", branch="z9hG4bK-x", to_tag=tag, from_tag="somebody-else", cseq=2))
    assert peer.response().code == 481 and not peer.agent.of(CallEnded)


def test_every_action_on_an_ended_call_says_so() -> None:
    peer, call, tag = answered_call()
    peer.deliver(request("BYE", branch="z9hG4bK-b", to_tag=tag, cseq=2))
    agent = peer.agent.ua
    for action in (
        lambda: agent.ring(call, 0.0),
        lambda: agent.accept(call, OURS, 0.0),
        lambda: agent.refuse(call, 486, 0.0),
        lambda: agent.hold(call, 0.0),
        lambda: agent.reinvite(call, OURS, 0.0),
    ):
        with pytest.raises(CallStateError):
            action()
    agent.hang_up(call, 0.0)


def test_the_owner_learns_of_a_broken_body_before_the_call_exists() -> None:
    peer, call = offered(data=request(body=b"v=0\r\nnot sdp"))
    with pytest.raises(PeerError) as caught:
        peer.agent.ua.accept(call, OURS, peer.now)
    assert caught.value.code == 400


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
