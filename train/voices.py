"""Voices: flite and espeak-ng as programs that turn text into samples. Training only.

Terms: flite's CMU Arctic voices (slt, rms, awb), kal and festival's slt-hts are free software of Carnegie
Mellon University, festival's ked of the University of Edinburgh (both BSD-like); espeak-ng is GPL-3, which
covers the program and not what it speaks. None of them is needed to run the gateway.
"""

from __future__ import annotations

import random
import shutil
import subprocess
import tempfile
import wave
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import numpy as np
import soxr
from numpy.typing import NDArray

Pcm = NDArray[np.float32]

AGENT_VOICE = "rms"
FLITE = ("rms", "awb", "slt")
FESTIVAL = ("ked_diphone", "cmu_us_slt_arctic_hts")
"""Not in the data where festival or the voice is not installed."""
ACCENTS = (
    "en-us",
    "en-us",
    "en-us",
    "en-gb",
    "en-gb-x-rp",
    "en-us-nyc",
    "en-gb-x-gbclan",
    "en-gb-x-gbcwmd",
    "en-029",
)
VARIANTS = (
    "",
    "m1",
    "m2",
    "m3",
    "m4",
    "m7",
    "m8",
    "f1",
    "f2",
    "f3",
    "f4",
    "klatt",
    "klatt2",
    "klatt4",
    "Alex",
    "Alicia",
    "Andrea",
    "Andy",
    "Annie",
    "steph",
    "steph2",
    "adam",
    "antonio",
    "belinda",
    "benjamin",
    "boris",
    "caleb",
    "david",
    "ed",
    "edward",
    "gene",
    "Henrique",
    "Hugo",
    "john",
    "Lee",
    "marcelo",
    "max",
    "michel",
    "miguel",
    "mike",
    "paul",
    "pedro",
    "quincy",
    "rob",
    "robert",
    "sandro",
    "shelby",
    "travis",
    "victor",
    "zac",
    "anika",
    "grandma",
    "grandpa",
    "m5",
    "klatt3",
    "klatt5",
    "klatt6",
    "Denis",
    "Diogo",
    "Gene2",
    "Jacky",
    "Marco",
    "Mario",
    "Michael",
    "Nguyen",
    "Mr serious",
    "RicishayMax",
    "Storm",
    "Tweaky",
    "announcer",
    "aunty",
    "edward2",
    "gustave",
    "iven",
    "iven3",
    "kaukovalta",
    "pablo",
    "robosoft",
    "robosoft4",
    "steph3",
    "fast",
)
HELD_OUT = (
    "flite:kal16",
    "flite:kal",
    "espeak:en-gb-scotland+m3",
    "espeak:en-gb-scotland+f2",
    "espeak:en-us+f5",
    "espeak:en-us+m6",
    "espeak:en-gb+linda",
    "espeak:en-gb+norbert",
)
"""Voices no training step ever hears; in every form: kal's speaker, the accent, the variants."""


class VoiceMissing(RuntimeError):
    """A synthesiser is not installed or refused the text; the message says which package to install."""


@dataclass(frozen=True, slots=True)
class Manner:
    """How one utterance is spoken."""

    voice: str
    """`flite:slt`, `espeak:en-gb+f2`."""
    stretch: float = 1.0
    """Duration factor asked of the synthesiser."""
    pitch: int = 50
    """espeak-ng's pitch, 0 to 99."""
    shift: float = 1.0
    """Resampling factor: pitch and formants up by this much, duration down."""


def random_manner(rng: random.Random) -> Manner:
    """A training voice in a random manner: recorded people (flite, festival) and formants (espeak-ng)."""
    draw = rng.random()
    if draw < 0.36:
        voice = f"flite:{rng.choice(FLITE)}"
    elif draw < 0.56 and festival_voices():
        voice = f"festival:{rng.choice(festival_voices())}"
    else:
        variant = rng.choice(VARIANTS)
        voice = f"espeak:{rng.choice(ACCENTS)}" + (f"+{variant}" if variant else "")
    return Manner(voice, rng.uniform(0.85, 1.2), rng.randint(25, 75), rng.uniform(0.88, 1.14))


def speak(text: str, manner: Manner, rate: int) -> Pcm:
    """One utterance at `rate` Hz, float32, silence trimmed, peak 0.6. Raises VoiceMissing."""
    family, _, name = manner.voice.partition(":")
    speakers = {"flite": _flite, "espeak": _espeak, "festival": _festival}
    return _finished(*speakers[family](text, name, manner), manner, rate)


def _finished(pcm: Pcm, source_rate: int, manner: Manner, rate: int) -> Pcm:
    moved = soxr.resample(pcm, source_rate, rate / manner.shift).astype(np.float32)
    return trimmed(moved, rate)


def trimmed(pcm: Pcm, rate: int) -> Pcm:
    """The samples from 20 ms before the first audible one to 40 ms after the last, at peak 0.6."""
    loud = pcm / (np.abs(pcm).max() + 1e-9) * 0.6
    audible = np.flatnonzero(np.abs(loud) > 0.01)
    if not len(audible):
        return loud
    return loud[max(0, audible[0] - rate // 50) : audible[-1] + rate // 25]


def word_starts(text: str, voice: str = AGENT_VOICE) -> list[float]:
    """Seconds at which each word of a flite sentence begins, by counting the phones of each word."""
    timed = [p.split(":") for p in _run("flite", "-voice", voice, "-psdur", "-t", text, "-o", "none").split()]
    ends = [float(end) for _, end in timed]
    spoken = [i for i, (phone, _) in enumerate(timed) if phone != "pau"]
    counts = [
        max(
            1,
            sum(
                p.split(":")[0] != "pau"
                for p in _run("flite", "-voice", voice, "-psdur", "-t", word, "-o", "none").split()
            ),
        )
        for word in text.split()
    ]
    firsts = np.minimum(np.cumsum([0, *counts[:-1]]), len(spoken) - 1)
    return [ends[spoken[i] - 1] if spoken[i] else 0.0 for i in firsts]


def phones(word: str, voice: str = AGENT_VOICE) -> list[str]:
    """How flite pronounces a word: "bike" -> b, ay, k."""
    timed = _run("flite", "-voice", voice, "-psdur", "-t", word, "-o", "none").split()
    return [phone for phone in (entry.split(":")[0] for entry in timed) if phone != "pau"]


def speak_phones(phones: str, voice: str, rate: int) -> Pcm:
    """flite reading a string of phones, for sounds its letter rules do not know."""
    pcm, source_rate = _from_file(lambda path: ["flite", "-voice", voice, "-p", phones, "-o", path])
    return trimmed(soxr.resample(pcm, source_rate, rate).astype(np.float32), rate)


def _flite(text: str, name: str, manner: Manner) -> tuple[Pcm, int]:
    stretch = f"duration_stretch={manner.stretch:.3f}"
    return _from_file(lambda path: ["flite", "-voice", name, "--setf", stretch, "-t", text, "-o", path])


def _espeak(text: str, name: str, manner: Manner) -> tuple[Pcm, int]:
    speed = str(round(155 / manner.stretch))
    return _from_file(
        lambda path: ["espeak-ng", "-v", name, "-s", speed, "-p", str(manner.pitch), "-w", path, text]
    )


@cache
def festival_voices() -> tuple[str, ...]:
    """Those of FESTIVAL that this machine has."""
    if shutil.which("festival") is None:
        return ()
    known = _run("festival", "-b", "(print (voice.list))")
    return tuple(voice for voice in FESTIVAL if voice in known)


def _festival(text: str, name: str, manner: Manner) -> tuple[Pcm, int]:
    with tempfile.TemporaryDirectory() as folder:
        return _festival_all([(text, name, manner)], Path(folder))[0]


def speak_all(jobs: list[tuple[str, Manner]], rate: int) -> list[Pcm]:
    """As `speak` for each; festival, whose start takes longer than a sentence, is started once for all."""
    slow = [i for i, (_, manner) in enumerate(jobs) if manner.voice.startswith("festival:")]
    asked = [(jobs[i][0], jobs[i][1].voice.partition(":")[2], jobs[i][1]) for i in slow]
    with tempfile.TemporaryDirectory() as folder:
        raw = dict(zip(slow, _festival_all(asked, Path(folder)), strict=True))
    return [
        _finished(*raw[i], manner, rate) if i in raw else speak(text, manner, rate)
        for i, (text, manner) in enumerate(jobs)
    ]


def _festival_all(jobs: list[tuple[str, str, Manner]], folder: Path) -> list[tuple[Pcm, int]]:
    """One process for all sentences (text, voice, manner)."""
    if not jobs:
        return []
    lines = []
    for i, (text, name, manner) in enumerate(jobs):
        words = "".join(letter for letter in text if letter not in '"\\')
        stretch = f"(Parameter.set 'Duration_Stretch {manner.stretch:.3f})"
        made = f'(utt.save.wave (utt.synth (Utterance Text "{words}")) "{folder}/{i}.wav" \'riff)'
        lines += [f"(voice_{name})", stretch, made]
    (folder / "say.scm").write_text("\n".join(lines))
    _bytes("festival", "-b", str(folder / "say.scm"))
    return [_wave(folder / f"{i}.wav") for i in range(len(jobs))]


def _from_file(command: Callable[[str], list[str]]) -> tuple[Pcm, int]:
    """Run a program that writes 16-bit mono WAV to the path it is given."""
    with tempfile.TemporaryDirectory() as folder:
        path = str(Path(folder) / "said.wav")
        _bytes(*command(path))
        return _wave(Path(path))


def _wave(path: Path) -> tuple[Pcm, int]:
    with wave.open(str(path)) as said:
        rate, raw = said.getframerate(), said.readframes(said.getnframes())
    return np.frombuffer(raw, np.int16).astype(np.float32) / 32768.0, rate


def _run(*command: str) -> str:
    return _bytes(*command).decode()


def _bytes(*command: str) -> bytes:
    try:
        return subprocess.run(command, check=True, capture_output=True).stdout
    except FileNotFoundError as missing:
        raise VoiceMissing(f"{command[0]} is not installed: apt-get install flite espeak-ng") from missing
    except subprocess.CalledProcessError as refused:
        raise VoiceMissing(
            f"{command[0]} refused: {refused.stderr.decode(errors='replace')[-200:]}"
        ) from refused
