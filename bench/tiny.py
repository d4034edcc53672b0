"""How well the embedded model speaks, listens and takes turns: the figures its model card promises.

    python bench/tiny.py [--quick] [--json FILE] [--speech DIR] [--folder configs/tiny-moshi]

Callers are voices and phrasings that training never saw, on a telephone band with noise 20 dB below speech.
Runs the same ModelRunner as the gateway, on one thread, in lockstep without a clock. DIR holds rendered
speech (train/data.py writes it); without it flite and espeak-ng render it.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from bench.report import machine
from bench.tiny_calls import Outcome, Switch
from bench.tiny_served import Question, served
from bench.tiny_speech import FRAME, RATE, Speech, telephone, voice_quality
from engine.runner import SlotSnapshot
from train import receptionist as script
from train.data import Utterance

ROOT = Path(__file__).resolve().parent.parent
SLOTS = 8
Figures = dict[str, float | str | None]

GOALS: dict[str, str] = {
    "frame_ms_median": "<= 20", "frame_ms_p99": "<= 35", "four_calls_ms_p99": "<= 80",
    "wer": "<= 0.25", "stoi": ">= 0.87", "pesq_nb": ">= 2.2",
    "intents_unseen_voices": ">= 0.85", "intents_unseen_phrasings": ">= 0.60",
    "misses_by_fallback": ">= 0.50", "acted_by_mistake": "<= 0.005",
    "answer_s_median": "<= 0.6", "answer_s_p90": "<= 0.9",
    "stopped": ">= 0.95", "stop_s_median": "<= 0.6", "stop_s_p90": "<= 1.0",
    "words_in_60_s_of_silence": "<= 0", "words_in_10_min_of_noise": "<= 1",
    "greeting_through_coughs": ">= 0.95", "greeting_through_echo": ">= 0.95",
    "late_share_of_fresh_accuracy": ">= 0.95",
}  # fmt: skip


class Bench:
    """One checkpoint under test."""

    def __init__(self, folder: Path, speech: Speech, quick: bool) -> None:
        self.folder, self.speech, self.quick = folder, speech, quick
        self.switch = Switch(folder, SLOTS)
        self.ready: SlotSnapshot = self.switch.greeted()
        self.rng = np.random.default_rng(1)

    def some(self, full: int, quick: int) -> int:
        return quick if self.quick else full

    # -- time ----------------------------------------------------------------------------------------

    def timing(self) -> Figures:
        """Milliseconds of a whole frame (encode, LM, decode) on one thread; other programs disturb it."""
        alone, four = self._timed(1), self._timed(4)
        return {
            "frame_ms_median": float(np.median(alone)), "frame_ms_p99": float(np.percentile(alone, 99)),
            "four_calls_ms_median": float(np.median(four)),
            "four_calls_ms_p99": float(np.percentile(four, 99)),
        }  # fmt: skip

    def _timed(self, calls: int) -> list[float]:
        switch = Switch(self.folder, calls)
        frames = self.some(400, 100)
        heard = self.rng.normal(0, 0.05, (calls, FRAME)).astype(np.float32)
        for slot in range(calls):
            switch.runner.open(slot, switch.persona(slot))
        spent = []
        for _ in range(frames):
            start = time.perf_counter()
            switch.runner.step(heard, np.ones(calls, bool))
            spent.append((time.perf_counter() - start) * 1e3)
        return spent[10:]

    # -- speaking ------------------------------------------------------------------------------------

    def voice(self) -> Figures:
        """The agent's lines as a SIP caller hears them, beside the voice she was trained on."""
        questions = self._questions(self.some(29, 7))
        lines = [script.GREETING, *(question.line for question in questions)]
        references = [self.speech.line(name) for name in lines]
        heard = served(self.folder, references[0], questions, dict(zip(lines, references, strict=True)))
        pairs = zip((script.SENTENCES[name] for name in lines), references, heard, strict=True)
        return dict(voice_quality(pairs))

    def _questions(self, wanted: int) -> list[Question]:
        """Questions that are understood, each with another answer: this is about her voice."""
        found: dict[str, Question] = {}
        for said, (outcome, end) in self._asked(self.speech.utterances(wanted * 8, seed=3), 75):
            name = outcome.line(end)
            if name in script.ANSWERS and name not in found and name == script.INTENTS[said.intent]:
                found[name] = Question(name, telephone(self.speech.callers.pcm(said), self.rng))
        return list(found.values())[:wanted]

    # -- listening -----------------------------------------------------------------------------------

    def _asked(self, utterances: list[Utterance], after: int) -> list[tuple[Utterance, tuple[Outcome, int]]]:
        """Each utterance to an agent that has just greeted; with the frame in which the caller ends."""
        pcms, ends = [], []
        for said in utterances:
            silence = self.rng.integers(FRAME * 4, FRAME * 6)
            clean = np.concatenate(
                [np.zeros(silence // 3), self.speech.callers.pcm(said), np.zeros(after * FRAME // 3)]
            )
            pcms.append(telephone(clean.astype(np.float32), self.rng))
            ends.append(silence + 3 * said.length)
        outcomes = self.switch.call(pcms, self.ready)
        frames = [end // FRAME for end in ends]
        self._ends = ends
        return list(zip(utterances, zip(outcomes, frames, strict=True), strict=True))

    def listening(self) -> Figures:
        """Which line answers which intent, and how long after the caller's last sound."""
        utterances = self.speech.utterances(self.some(900, 96))
        right: dict[bool, list[bool]] = {True: [], False: []}
        misses, waits, events, mistakes = [], [], [], []
        for at, (said, (outcome, end)) in enumerate(self._asked(utterances, 58)):
            wanted, line = script.INTENTS[said.intent], outcome.line(end)
            expected = {wanted, script.GREETING} if wanted == script.REPEAT else {wanted}
            correct = line in expected
            right[said.seen_phrasing].append(correct)
            if not correct:
                misses.append(line == script.FALLBACK)
            onset = outcome.onset(end + 1)
            if onset is not None and line is not None:
                waits.append((onset - self._ends[at]) / RATE)
            (events if wanted in script.EVENTS and correct else mistakes).append(outcome.acted)
        return {
            "intents_unseen_voices": _mean(right[True]), "intents_unseen_phrasings": _mean(right[False]),
            "misses_by_fallback": _mean(misses), "answered": len(waits) / len(utterances),
            "answer_s_median": _quantile(waits, 50), "answer_s_p90": _quantile(waits, 90),
            "events_emitted": _mean(events), "acted_by_mistake": _mean(mistakes),
            "utterances": len(utterances),
        }  # fmt: skip

    # -- taking turns --------------------------------------------------------------------------------

    def interruptions(self) -> Figures:
        """Callers who speak into the greeting: does she stop, and how soon."""
        waits, stopped = [], []
        utterances = [said for said in self.speech.utterances(400, seed=9) if said.length > 6_000]
        utterances = utterances[: self.some(96, 24)]
        starts = [
            int(self.rng.integers(12, 26)) * FRAME + int(self.rng.integers(0, FRAME)) for _ in utterances
        ]
        pcms = [
            telephone(
                np.concatenate([np.zeros(start // 3), self.speech.callers.pcm(said), np.zeros(8_000)]).astype(
                    np.float32
                ),
                self.rng,
            )
            for start, said in zip(starts, utterances, strict=True)
        ]
        for start, outcome in zip(starts, self.switch.call(pcms), strict=True):
            if not outcome.loud[start // FRAME - 2 : start // FRAME + 1].any():
                continue
            quiet = _first_quiet(outcome, start)
            stopped.append(quiet is not None and quiet - start < 1.6 * RATE)
            if stopped[-1]:
                waits.append((quiet - start) / RATE)
        return {"stopped": _mean(stopped), "stop_s_median": _quantile(waits, 50),
                "stop_s_p90": _quantile(waits, 90),
                "interruptions": len(stopped)}  # fmt: skip

    def composure(self) -> Figures:
        """Words nobody asked for, and a greeting through coughs and her own echo."""
        silence = [np.zeros(self.some(60, 20) * RATE, np.float32)]
        seconds = self.some(600, 40)
        noise = [
            self.rng.normal(0, 10 ** (-level / 20), seconds * RATE).astype(np.float32)
            for level in (40, 50, 60)
        ]
        quiet = self.switch.call(silence, self.ready)
        noisy = self.switch.call(noise[: self.some(3, 1)], self.ready)
        return {
            "words_in_60_s_of_silence": float(sum(len(o.words()) for o in quiet)),
            "words_in_10_min_of_noise": float(np.mean([len(o.words()) for o in noisy])) * 600 / seconds,
            **self._greetings(),
        }

    def _greetings(self) -> Figures:
        count = self.some(48, 16)
        greeting = self.speech.line(script.GREETING)
        size = 60 * FRAME
        coughs, echoes = [], []
        for _ in range(count):
            pcm = self.rng.normal(0, 1e-3, size).astype(np.float32)
            for at in self.rng.integers(6 * FRAME, 40 * FRAME, 3):
                burst = self.rng.normal(0, 0.12, int(self.rng.integers(2_400, 7_200)))
                burst *= np.exp(-np.arange(len(burst)) / RATE * self.rng.uniform(5, 20))
                pcm[at : at + len(burst)] += burst.astype(np.float32)
            coughs.append(pcm)
            echo = self.rng.normal(0, 1e-3, size).astype(np.float32)
            at = 3 * FRAME + int(self.rng.integers(1_000, 7_000))
            echo[at : at + len(greeting)] += greeting * 10 ** (-25 / 20)
            echoes.append(echo)
        whole = script.SENTENCES[script.GREETING].split()
        return {
            f"greeting_through_{name}": _mean(
                [o.words(0, 50)[: len(whole)] == whole for o in self.switch.call(pcms)]
            )
            for name, pcms in (("coughs", coughs), ("echo", echoes))
        }

    def endurance(self) -> Figures:
        """One call of ten minutes, a question every 10 s: its last third against the same asked afresh."""
        asked = [
            said
            for said in self.speech.utterances(900, seed=4)
            if said.seen_phrasing and said.length < 24_000
        ]
        asked = [
            said
            for said in asked
            if script.INTENTS[said.intent] not in (*script.EVENTS, script.REPEAT, script.SLOWER)
        ]
        turns, period = self.some(60, 9), 10 * RATE
        parts, ends = [], []
        for turn, said in enumerate(asked[:turns]):
            voice = telephone(self.speech.callers.pcm(said), self.rng)
            quiet = self.rng.normal(0, 1e-3, period).astype(np.float32)
            quiet[5 * FRAME : 5 * FRAME + len(voice)] = voice
            parts.append(quiet)
            ends.append((turn * period + 5 * FRAME + len(voice)) // FRAME)
        outcome = self.switch.call([np.concatenate(parts)], self.ready)[0]
        hits = [
            outcome.line(end, end + 40) == script.INTENTS[said.intent]
            for end, said in zip(ends, asked, strict=False)
        ]
        fresh = [
            o.line(end) == script.INTENTS[said.intent] for said, (o, end) in self._asked(asked[:turns], 32)
        ]
        third = max(1, turns // 3)
        late, same = _mean(hits[-third:]) or 0.0, _mean(fresh[-third:]) or 0.0
        return {"late_accuracy": late, "same_questions_fresh": same,
                "late_share_of_fresh_accuracy": late / same if same else None}  # fmt: skip


def _first_quiet(outcome: Outcome, start: int) -> int | None:
    """The first sample after `start` that begins half a second without the agent, if any."""
    loud = np.flatnonzero(outcome.loud)
    first = start // FRAME + 1
    later = loud[loud >= first]
    gaps = np.flatnonzero(np.diff(later) > 6)
    if not len(later):
        return first * FRAME
    last = later[gaps[0]] if len(gaps) else later[-1]
    return None if last >= len(outcome.loud) - 2 else int(last + 1) * FRAME


def _mean(values: list[bool]) -> float | None:
    return float(np.mean(values)) if values else None


def _quantile(values: list[float], percent: float) -> float | None:
    return float(np.percentile(values, percent)) if values else None


def verdict(name: str, value: float | str | None) -> str:
    """`yes`, `no` or nothing: does the figure reach its goal."""
    if name not in GOALS or not isinstance(value, int | float):
        return ""
    sign, goal = GOALS[name].split()
    return "yes" if (value <= float(goal) if sign == "<=" else value >= float(goal)) else "no"


def write(path: Path, figures: Figures, quick: bool, whole: bool) -> None:
    """The figures with the machine; those of a part replace only their like in an existing file."""
    earlier = {} if whole or not path.exists() else json.loads(path.read_text())["figures"]
    found = {"bench": "tiny", "quick": quick, "figures": earlier | figures, "machine": machine()}
    path.write_text(json.dumps(found, indent=2) + "\n")


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--quick", action="store_true", help="a tenth of the material")
    parser.add_argument("--json", type=Path)
    parser.add_argument("--speech", type=Path)
    parser.add_argument("--folder", type=Path, default=ROOT / "configs" / "tiny-moshi")
    parser.add_argument(
        "--only", nargs="*", help="parts: timing voice listening interruptions composure endurance"
    )
    chosen = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        bench = Bench(chosen.folder, Speech.at(chosen.speech or Path(scratch)), chosen.quick)
        parts: dict[str, Callable[[], Figures]] = {
            part: getattr(bench, part)
            for part in ("timing", "voice", "listening", "interruptions", "composure", "endurance")
            if not chosen.only or part in chosen.only
        }
        figures: Figures = {}
        for measure in parts.values():
            for name, value in measure().items():
                figures[name] = round(value, 4) if isinstance(value, float) else value
                print(
                    f"{name:32} {figures[name]!s:>10}  {GOALS.get(name, ''):>9}  {verdict(name, value)}",
                    flush=True,
                )
    if chosen.json:
        write(chosen.json, figures, chosen.quick, whole=not chosen.only)


if __name__ == "__main__":
    main()
