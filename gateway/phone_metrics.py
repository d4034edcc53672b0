"""PhoneMetrics: what Prometheus is told of SIP: answers, trunks, accounts, how phone calls sounded. No label
names a caller or call; trunks and accounts are the owner's own names.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import fields

from prometheus_client import Histogram
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily
from prometheus_client.metrics_core import Metric
from prometheus_client.registry import Collector

from gateway.call import Call
from gateway.legs.trunks import Trunks
from gateway.quality import quality_of_call
from gateway.switchboard import Switchboard
from sip.agent import UserAgent

MOS_BUCKETS = (1.5, 2.0, 2.5, 3.0, 3.5, 3.8, 4.0, 4.2, 4.5)


class PhoneMetrics(Collector):
    """For the registry of gateway.metrics; `trunks` is None where SIP is switched off."""

    def __init__(self, switchboard: Switchboard, agent: UserAgent, trunks: Trunks | None) -> None:
        self.agent = agent
        self.trunks = trunks
        self._mos = Histogram(
            "call_mos",
            "E-model score of phone calls at their end, as the caller sounds here.",
            buckets=MOS_BUCKETS,
            registry=None,
        )
        switchboard.on_admitted(lambda call: call.on_ended(self._call_ended))

    def collect(self) -> Iterable[Metric]:
        """Read everything. Called by the registry at each scrape."""
        yield from self._mos.collect()
        yield from self._answers()
        yield from self._lines()

    def _answers(self) -> Iterator[Metric]:
        counters = self.agent.counters
        responses = CounterMetricFamily(
            "sip_responses", "Our answers to requests, retransmissions aside.", labels=("method", "code")
        )
        for (method, code), count in counters.responses.items():
            responses.add_metric((method, str(code)), count)
        yield responses
        messages = CounterMetricFamily(
            "sip_messages", "What became of received and sent SIP messages.", labels=("result",)
        )
        for field in fields(counters):
            if field.name != "responses":
                messages.add_metric((field.name,), getattr(counters, field.name))
        yield messages

    def _lines(self) -> Iterator[Metric]:
        up = GaugeMetricFamily("sip_trunk_up", "1: the trunk answers OPTIONS.", labels=("trunk",))
        registered = GaugeMetricFamily(
            "sip_account_registered", "1: the registrar knows us.", labels=("account",)
        )
        states = self.trunks.states if self.trunks is not None else {}
        for (kind, name), state in states.items():
            (up if kind == "trunk" else registered).add_metric((name,), float(state.up))
        yield from (up, registered)

    def _call_ended(self, call: Call) -> None:
        quality = quality_of_call(call)
        if quality is not None and call.final_stats is not None and call.final_stats.packets_received:
            self._mos.observe(quality.mos)
