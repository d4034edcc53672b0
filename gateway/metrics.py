"""Metrics: what Prometheus is told, read from the live objects when it asks. No label names a caller or call.

Counters of ended calls are kept here, as their rows are not; everything else is asked for at the scrape.
"""

from __future__ import annotations

import asyncio
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass

from prometheus_client import CollectorRegistry, Histogram
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, SummaryMetricFamily
from prometheus_client.metrics_core import Metric
from prometheus_client.registry import Collector

from gateway.call import Call
from gateway.media.messages import MediaStats
from gateway.switchboard import Switchboard

LAG_STEP_S = 0.1
LAG_WINDOW_S = 15.0
JITTER_BUCKETS = (0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2)
SETUP_BUCKETS = (0.05, 0.1, 0.2, 0.5, 1.0, 2.0, 5.0, 10.0)


@dataclass(slots=True)
class LegTotals:
    """Packets of one kind of leg."""

    received: int = 0
    sent: int = 0
    lost: int = 0
    late: int = 0
    one_way: int = 0

    def add(self, stats: MediaStats) -> None:
        self.received += stats.packets_received
        self.sent += stats.packets_sent
        self.lost += max(0, stats.lost)
        self.late += stats.late


class LoopLag:
    """How late the event loop runs what was due: the worst of the last LAG_WINDOW_S."""

    def __init__(self) -> None:
        self._worst: list[tuple[float, float]] = []

    async def run(self) -> None:
        """Measure until cancelled."""
        while True:
            due = time.monotonic() + LAG_STEP_S
            await asyncio.sleep(LAG_STEP_S)
            now = time.monotonic()
            kept = [(at, lag) for at, lag in self._worst if now - at < LAG_WINDOW_S and lag > now - due]
            self._worst = [*kept, (now, max(0.0, now - due))]

    def seconds(self) -> float:
        return max((lag for _, lag in self._worst), default=0.0)


class GatewayMetrics(Collector):
    """Everything the gateway tells, in a registry of its own (`registry`)."""

    def __init__(self, switchboard: Switchboard, not_ready: Callable[[], list[str]]) -> None:
        self.switchboard = switchboard
        self.not_ready = not_ready
        self.lag = LoopLag()
        self.registry = CollectorRegistry(auto_describe=False)
        self._ended: dict[str, LegTotals] = {}
        self._results: Counter[tuple[str, str, str]] = Counter()
        self._setup = Histogram(
            "call_setup_seconds",
            "From the admission of a call to its answer.",
            ("leg",),
            buckets=SETUP_BUCKETS,
            registry=self.registry,
        )
        self._jitter = Histogram(
            "jitter_seconds",
            "Interarrival jitter (RFC 3550) at the end of a call.",
            ("leg",),
            buckets=JITTER_BUCKETS,
            registry=self.registry,
        )
        self.registry.register(self)
        switchboard.on_admitted(lambda call: call.on_ended(self._call_ended))

    def _call_ended(self, call: Call) -> None:
        totals = self._ended.setdefault(call.leg_kind, LegTotals())
        result = call.ended_by if call.answered_at is not None else "unanswered"
        self._results[call.leg_kind, call.direction, result] += 1
        if call.answered_at is not None:
            self._setup.labels(call.leg_kind).observe(max(0.0, call.answered_at - call.admitted_at))
        if call.final_stats is not None:
            totals.add(call.final_stats)
            if call.final_stats.packets_received:
                self._jitter.labels(call.leg_kind).observe(call.final_stats.jitter_ms / 1000)
            totals.one_way += int(call.answered_at is not None and not call.final_stats.packets_received)

    def collect(self) -> Iterable[Metric]:
        """Read everything. Called by the registry at each scrape."""
        calls = list(self.switchboard.calls.values())
        stats = [
            (call.leg_kind, call.plane.stats(call.row)) for call in calls if call.media_number is not None
        ]
        yield from self._calls(calls)
        yield from self._packets(stats)
        yield from self._engine()
        yield GaugeMetricFamily("ready", "1: calls are taken.", value=float(not self.not_ready()))
        yield GaugeMetricFamily("event_loop_tasks", "Tasks of the event loop.", value=_tasks())
        yield GaugeMetricFamily(
            "event_loop_lag_seconds",
            f"Worst lateness of the event loop in {LAG_WINDOW_S:.0f} s.",
            value=self.lag.seconds(),
        )

    def _calls(self, calls: list[Call]) -> Iterator[Metric]:
        active = GaugeMetricFamily("calls_active", "Calls now.", labels=("leg", "direction"))
        for labels, count in Counter((call.leg_kind, call.direction) for call in calls).items():
            active.add_metric(labels, count)
        yield active
        total = CounterMetricFamily(
            "calls", "Ended calls by who ended them.", labels=("leg", "direction", "result")
        )
        for result, count in self._results.items():
            total.add_metric(result, count)
        yield total
        refused = CounterMetricFamily("calls_refused", "Callers not let in.", labels=("code",))
        for code, count in self.switchboard.refused.items():
            refused.add_metric((str(code),), count)
        yield refused

    def _packets(self, live: list[tuple[str, MediaStats]]) -> Iterator[Metric]:
        totals = {
            leg: LegTotals(t.received, t.sent, t.lost, t.late, t.one_way) for leg, t in self._ended.items()
        }
        for leg, stats in live:
            totals.setdefault(leg, LegTotals()).add(stats)
        packets = CounterMetricFamily("rtp_packets", "RTP packets.", labels=("leg", "direction"))
        lost = CounterMetricFamily("rtp_lost", "RTP packets that never came.", labels=("leg",))
        late = CounterMetricFamily("rtp_late", "RTP packets that came after their time.", labels=("leg",))
        one_way = CounterMetricFamily("one_way_calls", "Answered calls we heard nothing of.", labels=("leg",))
        for leg, total in totals.items():
            packets.add_metric((leg, "received"), total.received)
            packets.add_metric((leg, "sent"), total.sent)
            lost.add_metric((leg,), total.lost)
            late.add_metric((leg,), total.late)
            one_way.add_metric((leg,), total.one_way)
        yield from (packets, lost, late, one_way)

    def _engine(self) -> Iterator[Metric]:
        capacity = self.switchboard.engine.capacity()
        slots = GaugeMetricFamily("engine_slots", "Places for calls in the engine.", labels=("state",))
        slots.add_metric(("used",), capacity.used)
        slots.add_metric(("free",), capacity.free)
        yield slots
        ticks = SummaryMetricFamily("engine_tick_seconds", "What a tick of the engine takes.")
        for quantile, milliseconds in (("0.5", capacity.tick_p50_ms), ("0.99", capacity.tick_p99_ms)):
            ticks.add_sample("engine_tick_seconds", {"quantile": quantile}, milliseconds / 1000)
        yield ticks
        yield CounterMetricFamily(
            "engine_frames_late", "Ticks that ended after their time.", value=capacity.late_ticks
        )


def _tasks() -> int:
    """Of the running loop; 0 where who scrapes has none."""
    try:
        return len(asyncio.all_tasks())
    except RuntimeError:
        return 0
