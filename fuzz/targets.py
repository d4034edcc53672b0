"""What is fuzzed, each as a function of bytes: it returns, or the input is a finding.

A parser may raise its own error (PeerError) and nothing else; what it accepts must survive being written and
read again. `tests/test_fuzz_targets.py` runs every target over the seeds and over past findings, so none of
this needs atheris to be kept working.
"""

from __future__ import annotations

import contextlib
import random
import re
from collections.abc import Callable, Iterable
from pathlib import Path

from fuzz.peer import play
from sip import (
    access,
    auth,
    bodies,
    dns_message,
    dtmf,
    headers,
    identity,
    info,
    refer,
    rtcp,
    rtp,
    sdes,
    sdp,
    uri,
    via,
)
from sip.description import parse_description
from sip.dialog import destination_of
from sip.errors import PeerError
from sip.events import CallOffered
from sip.framing import StreamFramer
from sip.message import Request, check_message, parse_message
from sip.settings import Access, Credentials, Trunk
from tests.sip_wire import OFFER, OURS, Agent, Script, request

DATA = Path(__file__).resolve().parent.parent / "tests" / "data"
CLAIMS = (b"P-Asserted-Identity", b"Diversion", b"History-Info", b"User-to-User", b"Privacy", b"Reason")
LOCAL = sdp.LocalMedia("192.0.2.10", 40_000, codecs=("opus", "G722", "PCMU", "PCMA"), srtp="accept")


def message(data: bytes) -> None:
    """A datagram, and all that looks into its headers."""
    with contextlib.suppress(PeerError):
        first = parse_message(data)
        check_message(first)
        again = parse_message(first.to_bytes())
        assert again.start_line() == first.start_line() and again.body == first.body
        for copy in (first, again):
            copy.headers.remove("content-length")
        assert list(again.headers) == list(first.headers)
        identity.party_of(first.from_)
        bodies.sdp_of(first)
        if isinstance(first, Request):
            refer.parse_refer_to(first)


HEADER_PARSERS: tuple[Callable[[str], object], ...] = (
    lambda text: str(headers.parse_name_addr(text)),
    lambda text: str(via.stamp_received(via.parse_via(text), "192.0.2.1", 5060)),
    lambda text: headers.parse_cseq(text),
    lambda text: headers.params_text(headers.parse_params(text.split(";"))),
    lambda text: headers.split_list(text),
    lambda text: auth.parse_challenge(text),
    lambda text: auth.parse_digest(text),
    lambda text: sdes.parse_crypto(text),
    lambda text: destination_of(uri.parse_uri(text), "udp", None),
    lambda text: uri.parse_uri(str(uri.parse_uri(text))),
    lambda text: info.parse_digit("application/dtmf-relay", text.encode("utf-8", "surrogateescape")),
)


def header(data: bytes) -> None:
    """One header's value: the first byte says which."""
    if not data:
        return
    text = data[1:].decode("utf-8", "surrogateescape")
    with contextlib.suppress(PeerError):
        HEADER_PARSERS[data[0] % len(HEADER_PARSERS)](text)


def description(data: bytes) -> None:
    """An offer that we answer, and the same bytes as the answer to an offer of ours."""
    ours = None
    with contextlib.suppress(PeerError):
        ours = sdp.answer(data, LOCAL, seed=bytes(32))
    if ours is not None:  # what we say ourselves has no excuse
        lines = parse_description(ours.answer).media
        assert len(lines) == len(parse_description(data).media) and sum(line.port > 0 for line in lines) == 1
    with contextlib.suppress(PeerError):
        sdp.accept_answer(sdp.offer(LOCAL, seed=bytes(32)), data, LOCAL)


def media(data: bytes) -> None:
    """A datagram at an RTP port: RTP, telephone events, RTCP."""
    with contextlib.suppress(PeerError):
        if rtp.is_rtcp(data):
            packets = rtcp.parse_rtcp(data)
            rtcp.parse_rtcp(rtcp.build_rtcp(packets))
            return
        packet = rtp.parse_rtp(data)
        again = rtp.parse_rtp(packet.to_bytes())
        assert (again.payload, again.sequence, again.ssrc) == (packet.payload, packet.sequence, packet.ssrc)
        dtmf.parse_event(packet.payload)


def resolver(data: bytes) -> None:
    """A name server's answer."""
    for kind in (33, 35):
        with contextlib.suppress(PeerError):
            dns_message.parse_answer(data, 7, kind)


def stream(data: bytes) -> None:
    """Bytes of a TCP connection, cut where the first byte says; however cut, the same messages."""
    if not data:
        return
    step, rest = data[0] + 1, data[1:]
    assert _framed([rest[at : at + step] for at in range(0, len(rest), step)]) == _framed([rest])


def _framed(pieces: Iterable[bytes]) -> list[bytes] | None:
    """The messages; None where the stream breaks."""
    framer = StreamFramer(65_535)
    found: list[bytes] = []
    try:
        for piece in pieces:
            found += framer.feed(piece)
    except PeerError:
        return None
    return found


def gate(data: bytes) -> None:
    """A stranger's Authorization header, which never opens the door."""
    trunk = Trunk("pbx", (), Credentials("1000", "secret"))
    guard = access.Gate(Access(trunks=(trunk,)), bytes(32))
    text = data.decode("utf-8", "surrogateescape")
    try:
        asked = parse_message(request(extra="X: y\r\n"))
        assert isinstance(asked, Request)
        asked.headers.set("authorization", text)
        guard.check(asked, "198.51.100.20", 1.0)
    except PeerError:
        return
    raise AssertionError("let in")


def caller(data: bytes) -> None:
    """What a caller claims to be: identity, diversions, user-to-user."""
    peer = Script(Agent())
    lines = re.sub(rb"[\r\n]", b" ", data).split(b"\0")[: len(CLAIMS)]
    claims = b"".join(name + b": " + line + b"\r\n" for name, line in zip(CLAIMS, lines, strict=False))
    peer.deliver(request(extra="X: y\r\n").replace(b"X: y\r\n", claims))
    for offered in peer.agent.of(CallOffered):
        identity.asserted_identity(offered)
        identity.wants_privacy(offered)
        identity.diversions(offered)
        identity.user_to_user(offered)
        identity.verdict(offered)


def agent(data: bytes) -> None:
    """A whole user agent, its owner and its clock, against a peer who says anything at any moment."""
    play(data)


TARGETS: dict[str, Callable[[bytes], None]] = {
    target.__name__: target
    for target in (message, header, description, media, resolver, stream, gate, caller, agent)
}


def seeds(name: str) -> list[bytes]:
    """Where the fuzzer begins: the tests' golden data, and past findings of this target."""
    torture = [path.read_bytes() for path in sorted(DATA.glob("rfc4475_*.sip"))]
    found = [path.read_bytes() for path in sorted(DATA.glob(f"fuzz_{name}_*.bin"))]
    sessions = [path.read_bytes() for path in sorted(DATA.glob("*.sdp"))] + [OFFER]
    values = [value.encode() for value in HEADER_SEEDS]
    rng = random.Random(1)
    by_target = {
        "message": torture,
        "header": [bytes([kind]) + value for kind in range(len(HEADER_PARSERS)) for value in values],
        "description": [*sessions, sdp.offer(OURS, seed=bytes(32)), sdp.offer(LOCAL, seed=bytes(32))],
        "media": MEDIA_SEEDS,
        "resolver": [dns_message.build_query(7, "_sip._udp.example.com", kind) for kind in (33, 35)],
        "stream": [bytes([step]) + b"".join(rng.sample(torture, 3)) for step in (0, 6, 200)],
        "gate": [value for value in values if value.startswith(b"Digest")],
        "caller": [b"\0".join(value for value in values[:6])],
        "agent": [bytes(64), bytes(range(256)), *(rng.randbytes(200) for _ in range(8))],
    }
    return by_target[name] + found


HEADER_SEEDS = (
    '"Bell, A" <sip:a.g.bell@example.com;lr?Subject=x>;tag=43;q=0.5',
    "SIP/2.0/UDP [2001:db8::9]:5060;branch=z9hG4bKas3;rport;received=192.0.2.1",
    "314159 INVITE",
    'Digest username="1000", realm="moshi-gateway", nonce="1-1.00", uri="sip:x@y", response="0", nc=1',
    "1 AES_CM_128_HMAC_SHA1_80 inline:NysXWUtxEFUENTGStdMIz1WoTeEmNtoWa7pJod9h|2^20|1:4",
    "sips:user:pw%40@[2001:db8::1]:5061;transport=tcp;maddr=192.0.2.1?a=b&c=d",
    "tel:+1-201-555-0123;phone-context=example.com",
    "Signal=5\r\nDuration=160\r\n",
)
MEDIA_SEEDS = [
    rtp.RtpPacket(0, 7, 160, 0x1234, b"\xff" * 160).to_bytes(),
    bytes.fromhex("b2e5000100000002000000030000000400000005bede000110aa000005a00640a1a2a302"),
    rtcp.build_rtcp(
        [
            rtcp.SenderReport(1, 2, 3, 4, 5, (rtcp.ReportBlock(9, 1, 2, 3, 4, 5, 6),)),
            rtcp.SourceDescription(1, "name"),
            rtcp.Goodbye((1,)),
        ]
    ),
]
