"""CallQuality: what a phone call's line is like, from its packets: the figures operators look at."""

from __future__ import annotations

from dataclasses import dataclass

from gateway.call import Call
from gateway.legs.sip_leg import SipLeg
from gateway.media.messages import MediaStats
from sip.quality import mos, r_factor

PACKET_MS = 20.0
TICK_MS = 20.0
"""One packet's filling and the tick it waits for: delay before the wire."""


@dataclass(frozen=True, slots=True)
class CallQuality:
    """Both directions of one call."""

    loss: float
    """Fraction of the caller's packets that never came or came too late."""
    remote_loss: float
    """Fraction of ours that he misses, as he reports."""
    jitter_ms: float
    round_trip_ms: float
    """0 until RTCP has told."""
    mos: float
    """How the caller sounds here (E-model, ITU-T G.107); 1 to 4.5."""
    remote_mos: float
    """How we sound there."""


def quality_of(stats: MediaStats, codec: str = "PCMU") -> CallQuality:
    """From the counters of a row."""
    expected = stats.packets_received + max(0, stats.lost)
    missing = max(0, stats.lost) + stats.late
    loss = min(1.0, missing / expected) if expected else 0.0
    network_ms = stats.round_trip_ms / 2
    here = r_factor(network_ms + PACKET_MS + stats.delay_ms, loss, codec)
    there = r_factor(network_ms + PACKET_MS + TICK_MS, stats.remote_loss, codec)
    return CallQuality(loss, stats.remote_loss, stats.jitter_ms, stats.round_trip_ms, mos(here), mos(there))


def quality_of_call(call: Call) -> CallQuality | None:
    """None before there is media, and for legs that are no phone's."""
    if call.media_number is None or not isinstance(call.leg, SipLeg):
        return None
    codec = call.leg.agreed.codec if call.leg.agreed is not None else "PCMU"
    return quality_of(call.final_stats or call.plane.stats(call.row), codec)
