"""RTCP on a port of its own, where the peer does not multiplex (RFC 3550, RFC 3605)."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from gateway.media.messages import SrtpKeys
from sip.rtcp import Goodbye, ReceiverReport, ReportBlock, SenderReport, build_rtcp, middle_of, parse_rtcp
from sip.sdes import SrtpKeys as SdesKeys
from sip.srtp import SrtpContext
from tests.phone import Bench, Phone, bound_socket, speech


@pytest.fixture
def bench() -> Iterator[Bench]:
    bench = Bench(count=1)
    yield bench
    bench.close()


class TwoPorts(Phone):
    """A phone whose reports come and go on a second socket; the plane's second one is `above`."""

    def __init__(self, bench: Bench, **changes: object) -> None:
        super().__init__(speech())
        self.rtcp, ours = bound_socket(), bound_socket()
        self.above = ours.getsockname()
        self.own_reports: list[bytes] = []
        sock = bound_socket()
        self.peer = sock.getsockname()
        bench.phones[0] = self
        media = bench.media(self, cname="agent", rtcp_remote=self.rtcp.getsockname(), **changes)
        bench.plane.open_rtp(0, sock, media, ours)
        bench.plane.start(0)

    def listen(self, step: int) -> None:
        super().listen(step)
        while True:
            try:
                self.own_reports.append(self.rtcp.recv(2_000))
            except BlockingIOError:
                return


def answer(phone: TwoPorts, report: SenderReport) -> bytes:
    return build_rtcp([ReceiverReport(phone.ssrc, (ReportBlock(77, 64, 9, 5, 0, middle_of(report.ntp), 0),))])


def test_reports_go_to_the_port_above_and_are_heard_from_there(bench: Bench) -> None:
    phone = TwoPorts(bench)
    bench.run(250)
    assert phone.reports == [] and phone.own_reports
    first = parse_rtcp(phone.own_reports[0])[0]
    assert isinstance(first, SenderReport) and first.reports[0].ssrc == phone.ssrc
    phone.rtcp.sendto(answer(phone, first), phone.above)
    bench.run(2)
    stats = bench.plane.stats(0)
    assert stats.remote_loss == pytest.approx(0.25) and stats.round_trip_ms > 0
    bench.plane.close(0)
    bench.step(talk=False)
    assert any(isinstance(part, Goodbye) for part in parse_rtcp(phone.own_reports[-1]))


def test_reports_follow_a_peer_whose_second_port_a_nat_changed(bench: Bench) -> None:
    phone = TwoPorts(bench)
    bench.run(150)
    first = parse_rtcp(phone.own_reports[0])[0]
    assert isinstance(first, SenderReport)
    phone.rtcp.close()
    phone.rtcp = bound_socket()
    phone.rtcp.sendto(answer(phone, first), phone.above)
    seen = len(phone.own_reports)
    bench.run(300)
    assert len(phone.own_reports) > seen


def test_reports_of_other_streams_and_garbage_are_counted_and_nothing_else(bench: Bench) -> None:
    phone = TwoPorts(bench)
    bench.run(150)
    first = parse_rtcp(phone.own_reports[0])[0]
    assert isinstance(first, SenderReport)
    phone.ssrc += 1
    forged = answer(phone, first)
    phone.ssrc -= 1
    stranger = bound_socket()
    for bad in (forged, b"", b"\x80", b"\x80\xc9\x00\x07" + phone.ssrc.to_bytes(4, "big")):
        stranger.sendto(bad, phone.above)
        bench.step()
    stats = bench.plane.stats(0)
    assert stats.remote_loss == 0 and stats.rejected == 3 and stats.malformed == 1
    stranger.close()


def test_with_keys_only_authentic_reports_count(bench: Bench) -> None:
    ours, theirs = bytes(range(30)), bytes(range(30, 60))
    keys = SrtpKeys("AES_CM_128_HMAC_SHA1_80", ours, theirs)
    context = SrtpContext(SdesKeys("AES_CM_128_HMAC_SHA1_80", theirs, ours))
    phone = TwoPorts(bench, srtp=keys)
    for _ in range(150):
        phone.sock.sendto(context.protect(phone.packet()), phone.peer)
        bench.step(talk=False)
    first = parse_rtcp(context.unprotect_rtcp(phone.own_reports[0]))[0]
    assert isinstance(first, SenderReport)
    phone.rtcp.sendto(answer(phone, first), phone.above)
    bench.step(talk=False)
    assert bench.plane.stats(0).remote_loss == 0
    phone.rtcp.sendto(context.protect_rtcp(answer(phone, first)), phone.above)
    bench.step(talk=False)
    assert bench.plane.stats(0).remote_loss == pytest.approx(0.25)
