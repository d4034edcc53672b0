"""AudioWire: the one place that reaches into aiortc (1.15, 1.16) and aioice, for one audio stream a call.

aiortc keeps ICE, DTLS, the SRTP keys and the SDP. Its receiver and sender are replaced: its jitter buffer
adds 200 ms for the rest of a call after one lost packet, each receiver has a decoder thread, and whatever is
raised under its receive loop (an empty datagram is enough) closes the transport. Here a datagram is decrypted
where it arrives and handed on; a packet is encrypted and sent where it is made: no queue, task or thread a
call.

Private names used: RTCRtpTransceiver.__receiver, .__sender; RTCRtpReceiver/Sender: the attributes of
_NoReceiver and _NoSender; RTCDtlsTransport._rx_srtp, ._tx_srtp, ._get_stats; RTCIceTransport._connection;
aioice Connection.data_received, .request_received, .build_request, .remote_password, ._queue, ._nominated;
StunProtocol.transport, .request.
"""

from __future__ import annotations

import asyncio
import logging
import secrets
import time
import uuid
from collections.abc import Callable
from importlib.metadata import version
from typing import Any

import pylibsrtp
from aioice.stun import TransactionError
from aiortc import RTCPeerConnection, RTCRtpSender
from aiortc.rtp import is_rtcp
from aiortc.stats import RTCStatsReport

log = logging.getLogger(__name__)

SUPPORTED = ("1.15.", "1.16.")
"""Releases of aiortc whose private places were read."""
MAX_HANDSHAKE_QUEUE = 64
"""DTLS datagrams waiting for aiortc; more are dropped, and DTLS sends them again."""
MAX_UNSENT = 65_536
"""Bytes the system has not taken yet; more is dropped: audio that late is worth nothing."""

OnPacket = Callable[[bytes], None]


class UnsupportedAiortc(RuntimeError):
    """The installed aiortc is not one whose private places we know."""


def check_version() -> None:
    """Raises UnsupportedAiortc, saying what to install."""
    installed = version("aiortc")
    if not installed.startswith(SUPPORTED):
        raise UnsupportedAiortc(f"aiortc {installed} is not supported: pip install 'aiortc>=1.15,<1.17'")


class AudioWire:
    """The decrypted side of a connection's one audio stream.

    `on_rtp` and `on_rtcp` get each authenticated packet in the callback of its arrival; what they raise is
    logged once and ends nothing. Make it before the offer is set: it adds the connection's transceiver.
    """

    def __init__(self, connection: RTCPeerConnection, on_rtp: OnPacket, on_rtcp: OnPacket) -> None:
        self.rejected = 0
        """Datagrams that failed authentication or were neither DTLS, STUN nor SRTP."""
        self.unsent = 0
        """Packets dropped because there was no path, or the system did not take them."""
        self.failed = 0
        """Packets on which our own code raised."""
        self.last_heard_at = time.monotonic()
        """When the peer last gave a sign of life: a connectivity check, DTLS or SRTP; at first: now."""
        self._on_rtp, self._on_rtcp = on_rtp, on_rtcp
        self._probe: asyncio.Task[None] | None = None
        transceiver: Any = connection.addTransceiver("audio", direction="sendrecv")
        opus = [c for c in RTCRtpSender.getCapabilities("audio").codecs if c.mimeType == "audio/opus"]
        transceiver.setCodecPreferences(opus)
        self._dtls: Any = transceiver.receiver.transport
        self._ice: Any = self._dtls.transport._connection
        self._to_aiortc: Callable[[bytes, int], None] = self._ice.data_received
        self._checked: Callable[..., None] = self._ice.request_received
        sender = _NoSender(transceiver.sender, self._dtls)
        self.ssrc: int = sender._ssrc
        transceiver._RTCRtpTransceiver__receiver = _NoReceiver(self._dtls)
        transceiver._RTCRtpTransceiver__sender = sender
        self._ice.data_received = self._datagram_received
        self._ice.request_received = self._check_received

    @property
    def connected(self) -> bool:
        """Keys are agreed: packets can be sent."""
        return bool(self._dtls.state == "connected")

    def send(self, packet: bytes) -> bool:
        """Encrypt and send an RTP or RTCP packet now; False: dropped, for want of a path or of room."""
        pair = self._ice._nominated.get(1)
        if pair is None or not self.connected:
            self.unsent += 1
            return False
        transport = pair.protocol.transport
        waiting = getattr(transport, "get_write_buffer_size", int)()
        if waiting > MAX_UNSENT or transport.is_closing():
            self.unsent += 1
            return False
        srtp = self._dtls._tx_srtp
        sealed = srtp.protect_rtcp(packet) if is_rtcp(packet) else srtp.protect(packet)
        transport.sendto(sealed, pair.remote_addr)
        return True

    def probe(self) -> None:
        """Ask the peer for a sign of life (RFC 7675 §5.1), one question at a time; last_heard_at shows it."""
        pair = self._ice._nominated.get(1)
        if pair is not None and (self._probe is None or self._probe.done()):
            self._probe = asyncio.create_task(self._ask(pair), name="webrtc probe")

    def stop_probing(self) -> None:
        """Forget the question that is under way."""
        if self._probe is not None:
            self._probe.cancel()

    async def _ask(self, pair: Any) -> None:
        request = self._ice.build_request(pair, nominate=False)
        key = self._ice.remote_password.encode()
        try:
            await pair.protocol.request(request, pair.remote_addr, integrity_key=key, retransmissions=1)
        except TransactionError:
            return
        self.last_heard_at = time.monotonic()

    def _check_received(self, *request: Any) -> None:
        # Three arguments in aioice 0.13, four (the raw data too) in 0.10. Once a pair is in use strangers'
        # checks, which aioice has yet to authenticate, say nothing of the peer.
        pair = self._ice._nominated.get(1)
        if pair is None or request[1] == pair.remote_addr:
            self.last_heard_at = time.monotonic()
        self._checked(*request)

    def _datagram_received(self, data: bytes, component: int) -> None:
        """What is not STUN, sorted by its first byte (RFC 7983 §7)."""
        first = data[0] if data else 0
        if 128 <= first <= 191 and self._dtls._rx_srtp is not None:
            self._decrypt(data)
        elif 20 <= first <= 63 and self._ice._queue.qsize() < MAX_HANDSHAKE_QUEUE:
            if not self.connected:  # later nobody needs it, and anybody may have sent it
                self.last_heard_at = time.monotonic()
            self._to_aiortc(data, component)
        else:
            self.rejected += 1

    def _decrypt(self, data: bytes) -> None:
        srtp, rtcp = self._dtls._rx_srtp, is_rtcp(data)
        try:
            packet = srtp.unprotect_rtcp(data) if rtcp else srtp.unprotect(data)
        except pylibsrtp.Error:
            self.rejected += 1
            return
        self.last_heard_at = time.monotonic()
        try:
            (self._on_rtcp if rtcp else self._on_rtp)(packet)
        except Exception:
            self.failed += 1
            if self.failed == 1:
                log.exception("a received packet was not handled (said once a call)")


class _NoReceiver:
    """Stands where aiortc keeps an RTCRtpReceiver, and receives nothing."""

    def __init__(self, transport: Any) -> None:
        self.transport = transport
        self._enabled = True
        self._track: Any = None

    @property
    def track(self) -> Any:
        return self._track

    def setTransport(self, transport: Any) -> None:
        self.transport = transport

    def _set_rtcp_ssrc(self, ssrc: int) -> None:
        return None

    async def receive(self, parameters: Any) -> None:
        return None

    async def stop(self) -> None:
        return None

    async def getStats(self) -> RTCStatsReport:
        report: RTCStatsReport = self.transport._get_stats()
        return report


class _NoSender:
    """Stands where aiortc keeps an RTCRtpSender: it gives the SDP its names, and sends nothing."""

    def __init__(self, replaced: RTCRtpSender, transport: Any) -> None:
        self.kind = "audio"
        self.track = None
        self.transport = transport
        self._enabled = True
        self._ssrc = secrets.randbits(32)
        self._rtx_ssrc = secrets.randbits(32)
        self._stream_id = replaced._stream_id
        self._track_id = str(uuid.uuid4())

    def setTransport(self, transport: Any) -> None:
        self.transport = transport

    def replaceTrack(self, track: Any) -> None:
        return None

    async def send(self, parameters: Any) -> None:
        return None

    async def stop(self) -> None:
        return None

    async def getStats(self) -> RTCStatsReport:
        report: RTCStatsReport = self.transport._get_stats()
        return report


async def close(connection: RTCPeerConnection, limit_s: float = 3.0) -> None:
    """Close the connection; what aiortc raises or waits for beyond the limit is logged, not passed on."""
    try:
        await asyncio.wait_for(connection.close(), limit_s)
    except Exception:
        log.exception("closing a peer connection failed")
