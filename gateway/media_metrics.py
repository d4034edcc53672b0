"""MediaMetrics: what Prometheus is told of the media path's clocks, one a process."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Protocol

from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, SummaryMetricFamily
from prometheus_client.metrics_core import Metric
from prometheus_client.registry import Collector

from gateway.media.clock import Lateness


class Clocked(Protocol):
    """InlineMedia or MediaProcesses."""

    restarts: int

    def lateness(self) -> list[Lateness]: ...

    def missing(self) -> list[str]: ...


class MediaMetrics(Collector):
    """For the registry of gateway.metrics."""

    def __init__(self, media: Clocked) -> None:
        self.media = media

    def collect(self) -> Iterable[Metric]:
        """Read everything. Called by the registry at each scrape."""
        late = SummaryMetricFamily("media_tick_late_seconds", "How late 20 ms ticks began, of the last 10 s.")
        work = SummaryMetricFamily("media_tick_seconds", "What a 20 ms tick takes, of the last 10 s.")
        skipped = CounterMetricFamily(
            "media_ticks_skipped", "Ticks never run: the machine stood still.", labels=("process",)
        )
        failed = CounterMetricFamily("media_ticks_failed", "Ticks ended by an error.", labels=("process",))
        for index, found in enumerate(self.media.lateness()):
            process = str(index)
            for quantile, ms in (("0.5", found.p50_ms), ("0.99", found.p99_ms), ("1", found.max_ms)):
                labels = {"process": process, "quantile": quantile}
                late.add_sample("media_tick_late_seconds", labels, ms / 1_000)
            labels = {"process": process, "quantile": "0.99"}
            work.add_sample("media_tick_seconds", labels, found.work_p99_ms / 1_000)
            skipped.add_metric((process,), found.skipped)
            failed.add_metric((process,), found.failed)
        yield from (late, work, skipped, failed)
        yield CounterMetricFamily(
            "media_restarts", "Media processes that were lost and replaced.", value=self.media.restarts
        )
        yield GaugeMetricFamily(
            "media_up", "1: every media process runs.", value=float(not self.media.missing())
        )
