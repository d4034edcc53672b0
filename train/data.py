"""Data: renders every voice once and keeps it as two arrays with an index.

    python -m train.data --state DIR [--per-phrase 8] [--fallback 3000]

Callers are kept at 8 kHz int16 (nothing of a telephone's band is lost), the agent at 24 kHz float32.
A part that is on disk is not rendered again.
"""

from __future__ import annotations

import argparse
import json
import random
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from train import phrasings as more
from train import receptionist as script
from train.voices import (
    AGENT_VOICE,
    HELD_OUT,
    Manner,
    random_manner,
    speak,
    speak_all,
    speak_phones,
    trimmed,
    word_starts,
)

CALLER_RATE = 8_000
AGENT_RATE = 24_000
SLOW_STRETCH = 1.35
BACKCHANNEL_PHONES = "pau m m hh m m pau"
OTHER_TEXT = 160
"""Sentences in the agent's voice that she never says in a call, so that the codec is more than a table."""


@dataclass(frozen=True, slots=True)
class Utterance:
    """One caller's utterance: columns [at, at + length) of the 8 kHz store."""

    at: int
    length: int
    intent: int
    words: str
    voice: str
    seen_phrasing: bool


@dataclass(frozen=True, slots=True)
class Line:
    """One of the agent's canned sentences: samples of the 24 kHz store and where its words begin."""

    name: str
    text: str
    at: int
    length: int
    starts: tuple[float, ...]


class CallerStore:
    """All utterances of one split in memory order; `pcm(u)` gives float32 at 8 kHz."""

    def __init__(self, state: Path, split: str) -> None:
        self.samples: NDArray[np.int16] = np.load(state / f"callers-{split}.npy", mmap_mode="r")
        rows = json.loads((state / f"callers-{split}.json").read_text())
        self.utterances = [Utterance(**row) for row in rows]

    def pcm(self, said: Utterance) -> NDArray[np.float32]:
        return self.samples[said.at : said.at + said.length].astype(np.float32) / 32768.0


class AgentStore:
    """The canned lines by name, and other sentences in the same voice."""

    def __init__(self, state: Path) -> None:
        self.samples: NDArray[np.float32] = np.load(state / "agent.npy")
        index = json.loads((state / "agent.json").read_text())
        self.lines = {row["name"]: Line(**{**row, "starts": tuple(row["starts"])}) for row in index["lines"]}
        self.others: list[tuple[int, int]] = [(at, length) for at, length in index["others"]]

    def pcm(self, line: Line) -> NDArray[np.float32]:
        return self.samples[line.at : line.at + line.length]


Job = tuple[str, int, str, bool, Manner]  # split, intent, phrase, seen, manner


def caller_jobs(per_phrase: float, fallback: int, test_each: int, rng: random.Random) -> Iterator[Job]:
    """What to render: training voices over training phrasings, and the held-out voices over both kinds."""
    tester = random.Random(7)
    for index, intent in enumerate(script.INTENTS):
        fallback_one = intent == script.FALLBACK
        kinds = [
            script.fallback_phrasings(held) if fallback_one else script.phrasings(intent, held)
            for held in (False, True)
        ]
        for _ in range(fallback if fallback_one else round(per_phrase * 25)):
            yield _training_job(index, intent, rng)
        seen, held = kinds
        odd = min(len(seen), 64)
        for voice in HELD_OUT:
            for phrase in tester.sample(seen[:odd], min(test_each, odd)):
                yield "test", index, phrase, True, _held_manner(voice, tester)
            for phrase in tester.sample(held, min(test_each, len(held))):
                yield "test", index, phrase, False, _held_manner(voice, tester)


def _training_job(index: int, intent: str, rng: random.Random) -> Job:
    """A training voice and phrasing; some odd sentences are in other languages, by their own voices."""
    if intent == script.FALLBACK and rng.random() < 0.08:
        language = rng.choice(list(more.FOREIGN))
        manner = replace(random_manner(rng), voice=f"espeak:{language}")
        return "train", index, rng.choice(more.FOREIGN[language]), True, manner
    pick = more.one(intent, rng)
    lead = rng.choice(script.LEAD_INS) + " " if rng.random() < 0.2 else ""
    if lead + pick in more.held_out():
        lead = ""
    return "train", index, lead + pick, True, random_manner(rng)


def _held_manner(voice: str, rng: random.Random) -> Manner:
    return Manner(voice, rng.uniform(0.9, 1.15), rng.randint(35, 65), 1.0)


def _render(jobs: list[Job]) -> list[NDArray[np.int16]]:
    spoken = speak_all([(job[2], job[4]) for job in jobs], CALLER_RATE)
    return [(pcm * 32767).astype(np.int16) for pcm in spoken]


@dataclass(frozen=True, slots=True)
class Amounts:
    """How much is rendered."""

    per_phrase: float = 8.0
    fallback: int = 3_000
    test_each: int = 2


def render_callers(state: Path, amounts: Amounts, workers: int, seed: int = 7) -> None:
    """Write callers-{train,test}.{npy,json}."""
    rng = random.Random(seed)
    jobs = list(caller_jobs(amounts.per_phrase, amounts.fallback, amounts.test_each, rng))
    random.Random(seed).shuffle(jobs)
    kept: dict[str, list[NDArray[np.int16]]] = {"train": [], "test": []}
    rows: dict[str, list[Utterance]] = {"train": [], "test": []}
    ends = {"train": 0, "test": 0}
    with ProcessPoolExecutor(workers) as pool:
        groups = [jobs[at : at + 64] for at in range(0, len(jobs), 64)]
        for group, pcms in zip(groups, pool.map(_render, groups), strict=True):
            for (split, intent, phrase, seen, manner), pcm in zip(group, pcms, strict=True):
                rows[split].append(Utterance(ends[split], len(pcm), intent, phrase, manner.voice, seen))
                kept[split].append(pcm)
                ends[split] += len(pcm)
    for split, parts in kept.items():
        np.save(state / f"callers-{split}.npy", np.concatenate([np.zeros(0, np.int16), *parts]))
        (state / f"callers-{split}.json").write_text(json.dumps([asdict(row) for row in rows[split]]))


def agent_texts() -> dict[str, tuple[str, float]]:
    """Text and stretch of every canned line, the slow renderings included as `<name>_slow`."""
    texts = {name: (text, 1.0) for name, text in script.SENTENCES.items()}
    return texts | {f"{name}_slow": (script.SENTENCES[name], SLOW_STRETCH) for name in script.SLOW}


def render_agent(state: Path, others: int = OTHER_TEXT, seed: int = 3) -> None:
    """Write agent.npy and agent.json."""
    rng = random.Random(seed)
    lines: list[Line] = []
    parts: list[NDArray[np.float32]] = []
    end = 0
    for name, (text, stretch) in agent_texts().items():
        pcm, starts = _agent_line(text, stretch)
        lines.append(Line(name, text, end, len(pcm), starts))
        parts.append(pcm)
        end += len(pcm)
    spans: list[tuple[int, int]] = []
    for text in rng.sample(script.fallback_phrasings(False), others):
        pcm = speak(text, Manner(f"flite:{AGENT_VOICE}", rng.uniform(0.9, 1.1)), AGENT_RATE)
        spans.append((end, len(pcm)))
        parts.append(pcm)
        end += len(pcm)
    np.save(state / "agent.npy", np.concatenate(parts).astype(np.float32))
    (state / "agent.json").write_text(
        json.dumps({"lines": [asdict(line) for line in lines], "others": spans})
    )


def _agent_line(text: str, stretch: float) -> tuple[NDArray[np.float32], tuple[float, ...]]:
    if text == script.SENTENCES[script.BACKCHANNEL]:
        return speak_phones(BACKCHANNEL_PHONES, AGENT_VOICE, AGENT_RATE), (0.02,)
    pcm = speak(text, Manner(f"flite:{AGENT_VOICE}", stretch), AGENT_RATE)
    starts = word_starts(text)
    lead = starts[0]
    return trimmed(pcm, AGENT_RATE), tuple((start - lead) * stretch + 0.02 for start in starts)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--state", type=Path, required=True)
    parser.add_argument("--per-phrase", type=float, default=8.0, help="renderings of each phrasing")
    parser.add_argument("--fallback", type=int, default=3000)
    parser.add_argument(
        "--test-each", type=int, default=2, help="held-out renderings by intent, voice and kind"
    )
    parser.add_argument("--workers", type=int, default=1)
    chosen = parser.parse_args()
    chosen.state.mkdir(parents=True, exist_ok=True)
    if not (chosen.state / "agent.json").exists():
        render_agent(chosen.state)
    if not (chosen.state / "callers-train.json").exists():
        amounts = Amounts(chosen.per_phrase, chosen.fallback, chosen.test_each)
        render_callers(chosen.state, amounts, chosen.workers)


if __name__ == "__main__":
    main()
