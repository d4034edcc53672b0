"""How soon the agent falls silent for a caller, and what it does not fall silent for.

    python bench/barge_in.py [--quick] [--json FILE] [--speech DIR]

Three parts. Live: callers over SIP and WebRTC, in real time, of a whole gateway whose agent reads aloud
without a pause; times are of the wire: from the packet in which a caller's utterance begins (5 ms at -40
dBFS) to the packet with the last of the agent's samples above -50 dBFS. Stepped: the same through RTP, plane,
engine and floor in made-up time, exact and untouched by other load, 20 ms a step. Echo: calls in which
nobody speaks but the agent, whose voice comes back: the first seconds of many, and a few that last.

Utterances during which the machine stood still for 40 ms or more are left out of the live figures, and
counted as disturbed: run it on an idle machine. A stop is a cut (Interrupted): what was only lowered or held
back, and then went on, is counted apart.
"""

from __future__ import annotations

import argparse
import asyncio
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from bench import barge_scenes as scenes
from bench.barge_calls import LEGS, Record, SteppedCalls, live_call, served
from bench.barge_scenes import RATE, Said, Script, Voices, upsampled
from bench.echo_scenes import EchoPath, Pcm, default_folder
from bench.report import Report
from gateway.duplex import Ducked, Held, Interrupted, Policy
from tests.audio import align
from tests.peers import StallWatch

AUDIBLE = 10 ** (-50 / 20)
QUIET_S = 0.3
"""The agent has stopped when nothing audible comes for so long."""
LATE_S = 0.35
"""An event may be told so long after the last of the utterance: detector, floor, and what lies between."""
LEAD_S = 4.0
TALKS = (Policy.DUCK, Policy.CUT)
NO_ECHO = EchoPath(erl_db=None)
PATHS = {
    "clean": NO_ECHO,
    "echo -12 dB 120 ms": EchoPath(120, 12),
    "echo -20 dB 300 ms": EchoPath(300, 20),
    "3 % loss": EchoPath(erl_db=None, loss=0.03),
}
STEPPED_PATHS = {**PATHS, "echo -12 dB 40 ms": EchoPath(40, 12)}


@dataclass(frozen=True, slots=True)
class Stop:
    """What one utterance did to the agent, in seconds from its onset; None where it did not happen."""

    silent: float | None
    """The last audible sample, if the agent was cut."""
    ducked: float | None
    """The first packet at half its level or less."""
    back_early: bool
    """He was heard again while the caller was still speaking."""


def options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n\n")[0])
    parser.add_argument("--quick", action="store_true", help="fewer and shorter runs, at most 60 s")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the JSON line here too")
    parser.add_argument("--speech", type=Path, metavar="DIR", default=default_folder())
    parser.add_argument(
        "--only", nargs="+", choices=("live", "stepped", "echo"), help="some parts of the three"
    )
    return parser.parse_args()


# -- measures


def stop_of(record: Record, said: Said, agent: Pcm) -> Stop:
    """agent: his whole recording at the record's rate."""
    start, end = record.left_at(said.start), record.left_at(said.end)
    loud = [at for at, pcm in record.arrivals if np.max(np.abs(pcm)) > AUDIBLE]
    silent, back_early = None, False
    for at, after in zip(loud, [*loud[1:], np.inf], strict=True):
        if silent is None and after - at >= QUIET_S and after > start and at < end + LATE_S:
            silent = max(0.0, at - start)
        elif silent is not None and at < end:
            back_early = True
    cut = bool(events_in(record, said, Interrupted))
    return Stop(silent if cut else None, ducked_after(record, start, agent), cut and back_early)


def ducked_after(record: Record, start: float, agent: Pcm) -> float | None:
    """The agent's gain, packet by packet, against his recording, which is found under the 1.5 s before."""
    before = [pcm for at, pcm in record.arrivals if start - 1.5 <= at < start]
    after = [(at, pcm) for at, pcm in record.arrivals if start <= at < start + 0.6]
    if len(before) < 60 or not after:
        return None
    known = np.concatenate(before).astype(np.float64)
    found = align(known, np.concatenate([agent, agent[: len(known)]]).astype(np.float64))
    if found.correlation < 0.8:
        return None
    usual = float(np.dot(found.heard, found.sent) / np.dot(found.sent, found.sent))
    place = len(known) - round(found.lag)
    for at, pcm in after:
        said = agent[np.arange(place, place + len(pcm)) % len(agent)]
        place += len(pcm)
        if np.mean(said**2) > AUDIBLE**2 and np.dot(pcm, said) < 0.5 * usual * np.dot(said, said):
            return at - start
    return None


def events_in(record: Record, said: Said, kind: type) -> int:
    """Events of the utterance, told until LATE_S after its end."""
    start, end = record.left_at(said.start), record.left_at(said.end) + LATE_S
    return sum(isinstance(event, kind) and start <= at < end for at, event in record.events)


def false_stops(record: Record) -> int:
    """Cuts while the caller was not speaking, from the call's first sample on."""
    asked = sum(events_in(record, said, Interrupted) for said in record.script.said)
    return sum(isinstance(event, Interrupted) for _, event in record.events) - asked


def events_of(records: Sequence[Record], kind: type) -> int:
    """Events after the lead, in which cancellers converge."""
    return sum(
        isinstance(event, kind) and at >= record.departures[0] + LEAD_S - 0.5
        for record in records
        for at, event in record.events
    )


def quantile(values: Sequence[float | None], share: float) -> float | None:
    """In whole ms."""
    known = [value for value in values if value is not None]
    return round(1e3 * float(np.quantile(known, share))) if known else None


def stops_row(records: Sequence[Record], agents: dict[int, Pcm], policy: Policy) -> dict[str, object]:
    """The figures of all utterances in some calls of one policy."""
    told = [(r, said) for r in records for said in r.script.said]
    clear = [
        (r, said) for r, said in told if not r.disturbed(r.left_at(said.start) - 0.3, r.left_at(said.end))
    ]
    stops = [stop_of(r, said, agents[r.rate]) for r, said in clear]
    silent = [stop.silent for stop in stops]
    ducked = [stop.ducked for stop in stops]
    lowered = {"lowered_p50_ms": quantile(ducked, 0.5), "lowered_p95_ms": quantile(ducked, 0.95)}
    return {
        "spoken": len(stops),
        **({"disturbed": len(told) - len(clear)} if records[0].stalls else {}),
        "missed": sum(at is None for at in silent),
        "silent_p50_ms": quantile(silent, 0.5),
        "silent_p95_ms": quantile(silent, 0.95),
        **(lowered if policy is Policy.DUCK else {}),
        "back_early": sum(stop.back_early for stop in stops),
        "false_stops": sum(false_stops(record) for record in records),
    }


def false_row(records: Sequence[Record]) -> dict[str, object]:
    """The figures of calls in which the agent ought to go on."""
    sounds = [(r, said) for r in records for said in r.script.said]
    stopped = sum(events_in(r, said, Interrupted) > 0 for r, said in sounds)
    survived = {"sounds": len(sounds), "survived": round(1 - stopped / len(sounds), 3)} if sounds else {}
    minutes = sum((r.departures[-1] - r.departures[0] - LEAD_S) / 60 for r in records)
    return {
        **survived,
        "minutes": round(minutes, 1),
        "false_stops": events_of(records, Interrupted),
        "held": events_of(records, Held),
        "lowered": events_of(records, Ducked),
    }


# -- the parts


async def live(
    report: Report, voices: Voices, agents: dict[int, Pcm], count: int, paths: Sequence[str]
) -> None:
    """All paths over both legs at once, policy by policy."""
    cases = [(name, path) for name in LEGS for path in paths]
    for policy in TALKS:
        async with served(policy, agents[24_000], len(cases)) as app:
            door = asyncio.Lock()
            calls = []
            for at, (name, path) in enumerate(cases):
                leg, script = LEGS[name](app), scenes.interruptions(voices, count, 3 * at, LEAD_S)
                calls += [live_call(app, leg, script, PATHS[path], agents[leg.rate], door)]
            with StallWatch() as machine:
                records = await asyncio.gather(*calls)
        for (name, path), record in zip(cases, records, strict=True):
            record.stalls += [(machine.began + at, length) for at, length in machine.stalls]
            figures = stops_row([record], agents, policy)
            figures |= {"ended_s": record.ended} if record.ended is not None else {}
            report.row(part="live", case=f"{name}, {path}", policy=policy.value, **figures)


async def stepped(report: Report, voices: Voices, agents: dict[int, Pcm], count: int) -> None:
    """Interruptions, and what is none, through every path and policy in one run."""
    seconds = LEAD_S + 5.0 * count
    plans: list[tuple[str, str, Policy, Script, EchoPath]] = []
    for policy in TALKS:
        for at, (name, path) in enumerate(STEPPED_PATHS.items()):
            plans += [("stop", name, policy, scenes.interruptions(voices, count, 2 * at, LEAD_S), path)]
            short = scenes.backchannels(voices, 2 * count, 5 * at, -4.0 * (at % 3))
            plans += [("go on", "backchannels", policy, short, path)]
            plans += [("go on", "coughs", policy, scenes.coughs(3 * count // 2, at), path)]
        for at, path in enumerate((NO_ECHO, EchoPath(120, 12))):
            noise = scenes.office(voices, seconds, at)
            plans += [("go on", "office noise, 5 dB SNR", policy, Script(noise), path)]
            talk = scenes.interruptions(voices, count, 4 * at, LEAD_S)
            mixed = talk.pcm + np.resize(noise, len(talk.pcm))
            plans += [("stop", "over office noise, 5 dB SNR", policy, Script(mixed, talk.said), path)]
    calls = SteppedCalls(len(plans), agents)
    records = [await calls.call(policy, script, path) for _, _, policy, script, path in plans]
    await calls.run(max(len(script.pcm) for _, _, _, script, _ in plans) / RATE)
    calls.close()
    for kind, name, policy in dict.fromkeys(plan[:3] for plan in plans):
        chosen = [r for r, plan in zip(records, plans, strict=True) if plan[:3] == (kind, name, policy)]
        figures = stops_row(chosen, agents, policy) if kind == "stop" else false_row(chosen)
        report.row(part="stepped", case=name, policy=policy.value, **figures)


async def echo(report: Report, agents: dict[int, Pcm], seconds: float, delays: Sequence[float]) -> None:
    """Nobody speaks but the agent."""
    plans = [(policy, EchoPath(d, erl)) for policy in TALKS for erl in (12, 20) for d in delays]
    calls = SteppedCalls(len(plans), agents)
    listens = scenes.silence(LEAD_S + seconds)
    records = [await calls.call(policy, listens, path) for policy, path in plans]
    await calls.run(LEAD_S + seconds)
    calls.close()
    for policy in TALKS:
        for erl in (12, 20):
            chosen = [r for r, p in zip(records, plans, strict=True) if p[0] is policy and p[1].erl_db == erl]
            case = f"echo alone, -{erl} dB, {delays[0]:g}-{delays[-1]:g} ms"
            report.row(part="echo", case=case, policy=policy.value, **false_row(chosen))
            first = sum(
                isinstance(event, Interrupted) and at < r.departures[0] + LEAD_S - 0.5
                for r in chosen
                for at, event in r.events
            )
            report.rows[-1]["stops_before"] = first


async def beginnings(report: Report, agents: dict[int, Pcm], turns: int, delays: Sequence[float]) -> None:
    """The first seconds of many calls in which only the agent speaks, and cancellers have yet to converge."""
    paths = [EchoPath(delay, erl) for erl in (12, 20) for delay in delays for _ in range(turns)]
    for policy in TALKS:
        calls = SteppedCalls(len(paths), agents)
        records = [await calls.call(policy, scenes.silence(LEAD_S), path) for path in paths]
        await calls.run(LEAD_S)
        calls.close()
        for erl in (12, 20):
            chosen = [r for r, path in zip(records, paths, strict=True) if path.erl_db == erl]
            events = [event for record in chosen for _, event in record.events]
            report.row(
                part="echo",
                case=f"first {LEAD_S:g} s of {len(chosen)} calls, -{erl} dB",
                policy=policy.value,
                minutes=round(len(chosen) * LEAD_S / 60, 1),
                false_stops=sum(isinstance(event, Interrupted) for event in events),
                held=sum(isinstance(event, Held) for event in events),
                lowered=sum(isinstance(event, Ducked) for event in events),
            )


async def run(report: Report, chosen: argparse.Namespace) -> None:
    voices = scenes.load(chosen.speech)
    agents = {RATE: voices.agent, 24_000: upsampled(voices.agent, 3)}
    quick, parts = chosen.quick, chosen.only or ("live", "stepped", "echo")
    if "live" in parts:
        await live(report, voices, agents, 2 if quick else 10, list(PATHS)[: 2 if quick else None])
    if "stepped" in parts:
        await stepped(report, voices, agents, 1 if quick else 10)
    if "echo" in parts:
        delays = (40, 300) if quick else (40, 80, 120, 160, 200, 250, 300)
        await beginnings(report, agents, 1 if quick else 12, delays)
        await echo(report, agents, 10.0 if quick else 150.0, delays)


def main() -> None:
    chosen = options()
    report = Report("barge_in", chosen)
    asyncio.run(run(report, chosen))
    report.finish()


if __name__ == "__main__":
    main()
