"""What operators see of a call and of a trunk, as JSON."""

from __future__ import annotations

import time

from gateway.admin_feed import AdminFeed
from gateway.legs.sip_leg import SipLeg
from gateway.legs.trunks import Trunks
from gateway.quality import quality_of_call


def call_view(feed: AdminFeed) -> dict[str, object]:
    """One call: who, what state, how long, and how its line is. Numbers are the caller's word only."""
    call = feed.call
    answered = call.answered_at
    over = call.ended_at if call.ended_at is not None else time.time()
    view: dict[str, object] = {
        "id": call.id,
        "leg": call.leg_kind,
        "direction": call.direction,
        "state": feed.state,
        "caller": call.caller,
        "callee": call.callee,
        "persona": call.persona.name,
        "admitted_at": round(call.admitted_at, 3),
        "answered_at": None if answered is None else round(answered, 3),
        "setup_s": None if answered is None else round(answered - call.admitted_at, 3),
        "duration_s": 0.0 if answered is None else round(over - answered, 3),
    }
    if isinstance(call.leg, SipLeg):
        agreed = call.leg.agreed
        view |= {
            "codec": None if agreed is None else agreed.codec,
            "srtp": None if agreed is None or agreed.srtp is None else agreed.srtp.suite,
            "held_by_us": call.leg.held_by_us,
            "held_by_caller": agreed is not None and agreed.held,
            "said": call.said,
        }
    if feed.over:
        view |= {"ended_by": call.ended_by, "reason": call.end_reason, "code": call.final_code or None}
    return view | {"media": _media(feed)}


def _media(feed: AdminFeed) -> dict[str, object] | None:
    call = feed.call
    if call.media_number is None or (feed.over and call.final_stats is None):
        return None
    stats = call.final_stats or call.plane.stats(call.row)
    media: dict[str, object] = {
        "packets_received": stats.packets_received,
        "packets_sent": stats.packets_sent,
        "lost": max(0, stats.lost),
        "late": stats.late,
        "jitter_ms": round(stats.jitter_ms, 2),
        "buffer_ms": round(stats.delay_ms, 1),
    }
    if (quality := quality_of_call(call)) is not None:
        media |= {
            "loss": round(quality.loss, 5),
            "remote_loss": round(quality.remote_loss, 5),
            "round_trip_ms": round(quality.round_trip_ms, 2) or None,
            "mos": round(quality.mos, 2),
            "remote_mos": round(quality.remote_mos, 2),
        }
    return media


def trunk_views(trunks: Trunks | None) -> dict[str, object]:
    """Every trunk and account by name; `up` is None for a trunk that is not watched."""
    if trunks is None:
        return {"trunks": [], "accounts": []}
    states = trunks.states
    watched = {name: states.get(("trunk", name)) for name in trunks.trunks}
    accounts = {name: states.get(("account", name)) for name in trunks.accounts}
    return {
        "trunks": [
            {
                "name": name,
                "server": trunks.trunks[name].server,
                "up": None if state is None or not state.code else state.up,
                "code": (state.code if state is not None else 0) or None,
            }
            for name, state in watched.items()
        ],
        "accounts": [
            {
                "name": name,
                "registered": state is not None and state.up,
                "code": (state.code if state is not None else 0) or None,
            }
            for name, state in accounts.items()
        ],
    }
