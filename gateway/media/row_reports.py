"""RowReports: the RTCP of all rows, on the audio's port or on one of its own.

It joins each phone leg's `Reports` to the row's counters and to the wire. What a browser's peer reports is
told from outside (note()).
"""

from __future__ import annotations

import socket

import numpy as np

from gateway.media import columns as c
from gateway.media.messages import Address, RtpMedia
from gateway.media.receive import Receiver
from gateway.media.reports import Heard, Reports, Sent
from gateway.media.rtcp_wire import RtcpWire
from gateway.media.transmit import Transmitter
from gateway.media.udp_wire import UdpWire
from sip.rtp import MalformedRtp
from sip.srtp import BadSrtp


class RowReports:
    """One thread; `now` in seconds of the ticks' clock."""

    def __init__(self, count: int, receiver: Receiver, transmitter: Transmitter, wire: UdpWire) -> None:
        self._receiver, self._transmitter, self._wire = receiver, transmitter, wire
        self.remote_loss = np.zeros(count, np.float64)
        self.round_trip_ms = np.zeros(count, np.float64)
        self.last_report = np.zeros(count, np.float64)
        """Seconds, of the peer's last report; a muted phone may send nothing else."""
        self._reports: dict[int, Reports] = {}
        self._to: dict[int, Address | None] = {}
        """Where reports go that do not go where the audio goes."""
        self._own = RtcpWire()
        self._now = 0.0
        receiver.on_report = self._receive

    def open(self, row: int, media: RtpMedia | None, now: float) -> None:
        """A call begins; None: a browser's."""
        self.remote_loss[row] = self.round_trip_ms[row] = 0.0
        self.last_report[row] = now
        self._to[row] = media.rtcp_remote if media else None
        if media is not None and media.cname:
            self._reports[row] = Reports(media.ssrc, media.cname, now)

    def open_port(self, row: int, sock: socket.socket) -> None:
        """Take the row's second socket over."""
        self._own.open(row, sock)

    def change(self, row: int, media: RtpMedia) -> None:
        self._to[row] = media.rtcp_remote

    def close(self, row: int) -> None:
        """The call is over: say so, while its sockets are still there."""
        reports = self._reports.pop(row, None)
        if reports is not None and self._transmitter.packets_sent[row]:
            self._send(row, reports.goodbye())
        self._own.close(row)

    def close_all(self) -> None:
        self._own.close_all()

    def note(self, row: int, remote_loss: float, round_trip_ms: float) -> None:
        """The peer loses this share of ours."""
        self.remote_loss[row], self.round_trip_ms[row] = remote_loss, round_trip_ms
        self._transmitter.note_loss(row, remote_loss)

    def collect(self, now: float) -> None:
        """Take in what came on ports of their own."""
        self._now = now
        for row, datagram, source in self._own.receive():
            plain = self._admitted(row, datagram, source)
            if plain is None:
                self._receiver.r.n[row, c.REJECTED] += 1
                continue
            if self._to.get(row) is not None:
                self._to[row] = source  # as the audio does (RFC 4961)
            self._receive(row, plain)

    def send_due(self, row: int, tick: int, now: float) -> None:
        """Called once a second."""
        reports = self._reports.get(row)
        if reports is None or not reports.due(now):
            return
        sender, n = self._transmitter, self._receiver.r.n[row]
        sent = Sent(int(sender.packets_sent[row]), int(sender.octets_sent[row]), sender.timestamp(row, tick))
        heard = None
        if n[c.SEEN]:
            top, base = int(n[c.TOP]), int(n[c.BASE])
            jitter = float(self._receiver.r.f[row, c.JITTER])
            heard = Heard(int(n[c.SSRC]), top - base + 1, int(n[c.STREAM_RECEIVED]), top, jitter)
        self._send(row, reports.build(sent, heard, now, self._wire.wall(now)))

    def _admitted(self, row: int, datagram: bytes, source: Address) -> bytes | None:
        """A report in the clear, where it is of the peer's host and about his stream."""
        n, latch = self._receiver.r.n[row], self._receiver.latches.get(row)
        known = (latch.remote if latch else None, self._to.get(row))
        if all(address is None or address[0] != source[0] for address in known):
            return None
        if n[c.SEEN] and int.from_bytes(datagram[4:8], "big") != n[c.SSRC]:
            return None
        context = self._receiver.srtp.get(row)
        try:
            return datagram if context is None else context.unprotect_rtcp(datagram)
        except BadSrtp:
            return None

    def _receive(self, row: int, datagram: bytes) -> None:
        reports = self._reports.get(row)
        if reports is None:
            return
        try:
            goes_on = reports.receive(datagram, self._now, self._wire.wall(self._now))
        except MalformedRtp:
            self._receiver.r.n[row, c.MALFORMED] += 1
            return
        if goes_on:
            self.last_report[row] = self._now
        self.note(row, reports.remote_loss, reports.round_trip_s * 1000)

    def _send(self, row: int, datagram: bytes) -> None:
        context = self._transmitter.srtp.get(row)
        if context is not None:
            datagram = context.protect_rtcp(datagram)
        own = self._to.get(row)
        if own is not None and self._own.has(row):
            self._own.send(row, datagram, own)
            return
        to = own or self._transmitter.remotes.get(row)
        if to is not None or self._transmitter.sends[row]:
            self._wire.send(row, datagram, to)
