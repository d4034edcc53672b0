"""What is said across the wall between signalling and media: what to open, what happened, what was counted.

Everything here is small and frozen, so that it may cross a thread's or a process's border. Nothing here
holds audio, a socket or an engine.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from engine.api import Pcm

Address = tuple[str, int]
"""(host, port); host is a numeric IPv4 or IPv6 address."""
LONGEST_ANNOUNCEMENT_S = 60


class Direction(StrEnum):
    """The direction attribute of our side of the stream (RFC 8866 §6.7)."""

    SENDRECV = "sendrecv"
    SENDONLY = "sendonly"
    RECVONLY = "recvonly"
    INACTIVE = "inactive"

    @property
    def sends(self) -> bool:
        return self in (Direction.SENDRECV, Direction.SENDONLY)

    @property
    def receives(self) -> bool:
        return self in (Direction.SENDRECV, Direction.RECVONLY)


@dataclass(frozen=True, slots=True)
class SrtpKeys:
    """The SDES crypto attributes of both sides (RFC 4568)."""

    profile: str
    """Such as `AES_CM_128_HMAC_SHA1_80`."""
    local: bytes
    """Master key and salt of what we send."""
    remote: bytes
    """Master key and salt of what we receive."""


@dataclass(frozen=True, slots=True)
class RtpMedia:
    """What an offer and its answer agreed on for one phone leg."""

    codec: str
    """`PCMU`, `PCMA`, `G722`, `opus` or `L16`; case is ignored."""
    payload_type: int
    remote: Address | None
    """Where the SDP says to send; None until it is known (nothing is sent unless the latch finds it)."""
    ssrc: int
    """Of what we send."""
    rate: int = 8_000
    """RTP clock of L16: 8,000, 16,000, 24,000 or 48,000. The other codecs' clocks are fixed."""
    dtmf_payload_type: int | None = None
    dtmf_rate: int | None = None
    """Hz in which telephone-events tell durations; None: the codec's clock."""
    ptime_ms: int = 20
    """Of what we send: 20, 40 or 60. What we receive may have any."""
    direction: Direction = Direction.SENDRECV
    latch: bool = True
    """Symmetric RTP (RFC 4961): send to where consistent packets come from, once, then locked."""
    srtp: SrtpKeys | None = None
    rtcp_remote: Address | None = None
    """None: rtcp-mux, or no RTCP at all until one arrives on the RTP port."""
    cname: str = ""
    """Of our RTCP reports; empty: no RTCP is sent."""


@dataclass(frozen=True, slots=True)
class OpusMedia:
    """A WebRTC leg's Opus stream; SRTP, RTCP and ICE stay with aiortc."""

    payload_type: int = 111
    fec: bool = True
    """The peer decodes in-band FEC (`useinbandfec=1`); it is switched on by measured loss."""
    bitrate: int = 32_000


@dataclass(frozen=True, slots=True)
class OpusPacket:
    """One encoded packet to send: 20 ms, 24 kHz mono inside, 48 kHz RTP clock outside (RFC 7587)."""

    payload: bytes
    timestamp: int
    """Multiple of 960, grows by what was elapsed, also over pauses."""
    marker: bool
    """First packet of a talkspurt."""


class SendOpus(Protocol):
    """Takes every WebRTC row's packets of one tick; called on the media thread, must not block."""

    def __call__(self, packets: list[tuple[int, OpusPacket]], /) -> None: ...


@dataclass(frozen=True, slots=True)
class MediaStats:
    """Counts of one row since it was opened. Samples are of the 24 kHz side unless named otherwise."""

    packets_received: int = 0
    packets_sent: int = 0
    octets_received: int = 0
    octets_sent: int = 0
    lost: int = 0
    """Expected less received (RFC 3550 §6.4.1); may shrink when one comes late."""
    late: int = 0
    """Arrived after their place had been concealed."""
    duplicated: int = 0
    reordered: int = 0
    unknown_payload: int = 0
    """Payload types never agreed on; counted, never heard."""
    malformed: int = 0
    rejected: int = 0
    """From an address or SSRC that is not the call's, or failing authentication."""
    resynced: int = 0
    """Changes of SSRC, timestamp jumps and overflows that started the buffer anew."""
    concealed_samples: int = 0
    recovered_samples: int = 0
    """Of lost packets, decoded from the FEC of the next (Opus)."""
    stretched_samples: int = 0
    """Put in by time-scaling, to gain delay."""
    squeezed_samples: int = 0
    """Taken out by time-scaling, to lose delay."""
    jitter_ms: float = 0.0
    """Interarrival jitter (RFC 3550 §6.4.1)."""
    delay_ms: float = 0.0
    """What the jitter buffer holds now."""
    target_ms: float = 0.0
    """What it wants to hold."""
    playout_ms: float = 0.0
    """Agent audio queued and not yet sent."""
    underrun_samples: int = 0
    """Comfort noise sent because the engine had nothing ready."""
    samples_in: int = 0
    """Written to `rows.heard`."""
    samples_out: int = 0
    """Sent, comfort noise included."""
    level_in_dbfs: float = -96.0
    level_out_dbfs: float = -96.0
    last_packet_age_s: float = 0.0
    remote: Address | None = None
    """Where packets go now: the SDP's address, or the latched one."""
    latched: bool = False
    remote_loss: float = 0.0
    """Fraction of ours lost on the way, as the peer reports (RTCP)."""
    round_trip_ms: float = 0.0
    """From RTCP; 0 until known."""


@dataclass(frozen=True, slots=True)
class MediaEvent:
    """Something the media path noticed."""

    row: int
    call: int
    """What open_rtp or open_opus returned: tells a row's present call from its last one."""
    at: int
    """24 kHz samples heard on this row when it happened."""


@dataclass(frozen=True, slots=True)
class FirstPacket(MediaEvent):
    """The first packet of agreed audio arrived."""


@dataclass(frozen=True, slots=True)
class Latched(MediaEvent):
    """Packets now go where the peer's come from."""

    remote: Address


@dataclass(frozen=True, slots=True)
class DtmfReceived(MediaEvent):
    """A key was pressed; once a key, at its end or when its end was lost (RFC 4733)."""

    digit: str
    duration_ms: int
    inband: bool = False
    """It came as tones in the audio."""


@dataclass(frozen=True, slots=True)
class Announced(MediaEvent):
    """The row's announcement has gone out to its last sample."""


@dataclass(frozen=True, slots=True)
class RtpTimedOut(MediaEvent):
    """No packet for `rtp_timeout_s` while the peer should have sent. Reported once until packets return."""

    silent_s: float


@dataclass(frozen=True, slots=True)
class MediaFailed(MediaEvent):
    """The row could not be opened or went wrong; it sends and hears nothing any more."""

    reason: str


@dataclass(frozen=True, slots=True)
class Closed(MediaEvent):
    """The row is free; no further event of this call follows."""

    stats: MediaStats


class Processing(Protocol):
    """What stands between the decoder and the engine, and between the engine and the encoder.

    Called on the media thread, each method once a tick and rate with all rows of that rate; `rows` are row
    numbers (n,). Arrays may be changed in place and returned. Blocks are always 20 ms: 160 samples at
    8 kHz, 320 at 16, 480 at 24, 960 at 48.
    """

    def opened(self, row: int, rate: int) -> None:
        """A call begins on this row; its leg runs at `rate` Hz."""
        ...

    def closed(self, row: int) -> None: ...

    def hear(self, rows: NDArray[np.intp], pcm: Pcm, rate: int, concealed: NDArray[np.int32]) -> Pcm:
        """What callers said, (n, rate / 50) at the leg's rate; `concealed` (n,): samples invented in it."""
        ...

    def heard(self, rows: NDArray[np.intp], pcm: Pcm, at: NDArray[np.int64]) -> Pcm:
        """The same after resampling, (n, 480) at 24 kHz, just before the engine sees it; `at` (n,) is the
        position of its first sample in `AudioRows.heard`."""
        ...

    def speak(self, rows: NDArray[np.intp], pcm: Pcm, at: NDArray[np.int64]) -> Pcm:
        """What the agent is about to say, (n, 480) at 24 kHz; `at` (n,) counts samples sent on the row.
        Duck, mute or replace here."""
        ...

    def sent(self, rows: NDArray[np.intp], pcm: Pcm, rate: int) -> None:
        """What goes to the encoder, (n, rate / 50) at the leg's rate: the echo canceller's reference. It
        reaches the wire at the start of the next tick."""
        ...


class Untouched:
    """The Processing that changes nothing."""

    def opened(self, row: int, rate: int) -> None:
        return None

    def closed(self, row: int) -> None:
        return None

    def hear(self, rows: NDArray[np.intp], pcm: Pcm, rate: int, concealed: NDArray[np.int32]) -> Pcm:
        return pcm

    def heard(self, rows: NDArray[np.intp], pcm: Pcm, at: NDArray[np.int64]) -> Pcm:
        return pcm

    def speak(self, rows: NDArray[np.intp], pcm: Pcm, at: NDArray[np.int64]) -> Pcm:
        return pcm

    def sent(self, rows: NDArray[np.intp], pcm: Pcm, rate: int) -> None:
        return None
