"""The agent's voice as a telephone hears it: a gateway that serves SIP, callers who ask, what they record.

The gateway and the callers (`moshi-gateway call`) are processes of their own; calls take as long as calls do.
"""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
import time
import wave
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import soxr

from bench.tiny_speech import PHONE_RATE, RATE, Pcm, aligned
from tests.peers import Gateway

AT_ONCE = 2
GREETED_S = 5.2
"""By then the greeting has been said and a caller may ask."""
ANSWERED_S = 9.0
"""How long a caller listens after the question."""
PATIENCE, BUSY_S = 30, 2.0
"""A gateway that finds its machine busy takes fewer calls: try so often, so far apart."""


@dataclass(frozen=True, slots=True)
class Question:
    """What a caller says, and the line that is expected."""

    line: str
    pcm: Pcm
    """At 24 kHz, as a telephone has it."""


def served(folder: Path, greeting: Pcm, questions: list[Question], references: dict[str, Pcm]) -> list[Pcm]:
    """The greeting of the first call and then the answer to each question, (n,) at 8 kHz.

    `greeting` and `references` (24 kHz) are what the lines sound like at their best: they tell where in the
    recording a line lies.
    """
    with tempfile.TemporaryDirectory() as scratch:
        settings = {"MG_ENGINE__KIND": "moshi", "MG_ENGINE__MODEL": str(folder), "OMP_NUM_THREADS": "1"}
        settings["MG_ENGINE__SLOTS"] = str(AT_ONCE)
        with Gateway(Path(scratch), **settings) as gateway, ThreadPoolExecutor(AT_ONCE) as pool:
            calls = [
                pool.submit(_call, gateway.uri, question.pcm, Path(scratch) / f"{at}")
                for at, question in enumerate(questions)
            ]
            heard = [call.result() for call in calls]
    asked = round(GREETED_S * PHONE_RATE)
    ends = [asked + len(question.pcm) * PHONE_RATE // RATE for question in questions]
    answers = [
        _found(recording[end - PHONE_RATE // 4 :], references[question.line])
        for recording, end, question in zip(heard, ends, questions, strict=True)
    ]
    return [_found(heard[0][:asked], greeting), *answers]


def _call(uri: str, question: Pcm, stem: Path) -> Pcm:
    """Hold one call; what was heard from the moment of the answer, (n,) at 8 kHz."""
    quiet = np.random.default_rng(1).normal(0, 1e-3, round(GREETED_S * RATE)).astype(np.float32)
    said, recording = stem.with_suffix(".wav"), stem.with_suffix(".out.wav")
    _write(said, np.concatenate([quiet, question]))
    command = [sys.executable, "-m", "gateway", "call", uri, "--in", str(said), "--out", str(recording)]
    environment = {name: value for name, value in os.environ.items() if not name.startswith("MG_")}
    environment |= {"MG_SIP__HOST": "127.0.0.1", "MG_SIP__PORT": "0", "MG_SIP__RTP_PORTS": "0,0"}
    for _ in range(PATIENCE):
        done = subprocess.run(
            [*command, "--tail", str(ANSWERED_S)],
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            env=environment,
            timeout=90,
            check=False,
        )
        if b"no call: 503" not in done.stdout:
            break
        time.sleep(BUSY_S)
    if done.returncode:
        raise RuntimeError(f"a call to the gateway failed: {done.stdout.decode()[-500:]}")
    with wave.open(str(recording)) as stereo:
        raw, rate = np.frombuffer(stereo.readframes(stereo.getnframes()), np.int16), stereo.getframerate()
    heard = raw.reshape(-1, 2)[:, 1].astype(np.float32) / 32_768
    return np.asarray(soxr.resample(heard, rate, PHONE_RATE), np.float32)


def _found(recording: Pcm, reference: Pcm) -> Pcm:
    """The stretch of a recording in which a line of 24 kHz is said, with a little around it."""
    clean = np.asarray(soxr.resample(reference, RATE, PHONE_RATE), np.float32)
    return aligned(clean, np.pad(recording, (0, len(clean))))


def _write(path: Path, pcm: Pcm) -> None:
    with wave.open(str(path), "wb") as said:
        said.setnchannels(1)
        said.setsampwidth(2)
        said.setframerate(RATE)
        said.writeframes((np.clip(pcm, -1, 1) * 32_767).astype(np.int16).tobytes())
