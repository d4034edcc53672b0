"""How well the echo goes and the caller stays: ours beside AEC3, Speex and nothing.

    python bench/echo.py [--quick] [--json FILE] [--speech DIR] [--voices ast_en,ast_it]

A table a scene, one of averages, then one line of JSON. Speech: see echo_scenes.py. AEC3 is
`pip install pywebrtc-audio`, Speex is Debian's libspeexdsp1; a column that is missing is left out.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Callable, Iterable
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from bench import echo_peers, echo_scenes
from bench.echo_measures import Marks, measure, total
from bench.echo_scenes import Scene
from bench.report import machine
from gateway.media.echo import EchoCanceller
from gateway.media.processing import DuplexProcessing

HERE = Path(__file__).resolve().parent
WARM = 450
"""Ticks before the measure of processor time begins: filters start, code compiles."""
Pcm = NDArray[np.float32]
Cancelled = tuple[Pcm, Pcm, Pcm]
"""Cleaned audio (scenes, samples); by blocks (scenes, blocks), the echo power that may remain in it, and the
line's own noise."""


def ours(scenes: list[Scene]) -> Cancelled:
    """All scenes as the rows of one canceller, stepped as the media plane does: hear, then prepare."""
    heard = np.stack([scene.heard for scene in scenes])
    sent = np.stack([scene.sent for scene in scenes])
    lost = np.stack([scene.concealed for scene in scenes])
    block = scenes[0].rate // 50
    count = heard.shape[1] // block
    rows = np.arange(len(scenes))
    canceller = EchoCanceller(len(scenes), scenes[0].rate)
    for row in rows:
        canceller.open(int(row))
    canceller.sent(rows, sent[:, :block])
    out = np.zeros_like(heard)
    left, noise = np.zeros((2, len(scenes), count), np.float32)
    for tick in range(count):
        at = slice(tick * block, (tick + 1) * block)
        following = np.zeros((len(scenes), block), np.float32)
        if tick + 1 < count:
            following = sent[:, at.stop : at.stop + block]
        out[:, at] = canceller.hear(rows, heard[:, at], lost[:, at].sum(axis=1).astype(np.int32))
        canceller.sent(rows, following)
        left[:, tick], noise[:, tick] = canceller.left(rows), canceller.noise(rows)
    return out, left, noise


def one_by_one(cancel: Callable[[Scene], Pcm]) -> Callable[[list[Scene]], Cancelled]:
    def run(scenes: list[Scene]) -> Cancelled:
        out = np.stack([cancel(scene) for scene in scenes])
        nothing = np.zeros((len(scenes), out.shape[1] // (scenes[0].rate // 50)), np.float32)
        return out, nothing, nothing

    return run


def columns() -> dict[str, Callable[[list[Scene]], Cancelled]]:
    """The cancellers this machine can run."""
    found: dict[str, Callable[[list[Scene]], Cancelled]] = {"ours": ours}
    if echo_peers.has_aec3():
        found["AEC3"] = one_by_one(echo_peers.aec3)
    if echo_peers.has_speex():
        found["Speex"] = one_by_one(echo_peers.speex)
    found["nothing"] = one_by_one(lambda scene: scene.heard)
    return found


def core_share(count: int, voice: tuple[Pcm, Pcm], seconds: float = 4.0) -> tuple[float, float]:
    """Percent of a core a call at 8 kHz: the echo canceller alone, then with detector and duplex.

    Every row has an echo and an agent who talks all the time, and a caller who talks for a third of it.
    Processor time of the thread.
    """
    far, near = voice
    ticks, block = int(seconds * 50), 160
    total = (ticks + WARM + 2) * block
    sent = np.stack([np.resize(np.roll(far, -row * 3_331), total) for row in range(count)])
    near = np.concatenate([near, np.zeros(2 * len(near), np.float32)])
    talk = np.stack([np.resize(np.roll(near, -row * 3_517), total) for row in range(count)])
    heard = 0.2 * np.roll(sent, 5 * block, axis=1) + talk
    rows, none = np.arange(count), np.zeros(count, np.int32)
    wide, at = np.zeros((count, 480), np.float32), np.zeros(count, np.int64)
    processing = DuplexProcessing(count)
    for row in rows:
        processing.opened(int(row), 8_000)
    alone = whole = 0.0
    for tick in range(ticks + WARM):
        here = slice(tick * block, (tick + 1) * block)
        times = [time.thread_time()]
        processing.hear(rows, heard[:, here], 8_000, none)
        times.append(time.thread_time())
        processing.heard(rows, wide, at)
        processing.speak(rows, wide, at)
        times.append(time.thread_time())
        processing.sent(rows, sent[:, here.stop : here.stop + block], 8_000)
        times.append(time.thread_time())
        if tick >= WARM:
            alone += times[1] - times[0] + times[3] - times[2]
            whole += times[3] - times[0]
    return 100 * alone / (ticks * 0.02) / count, 100 * whole / (ticks * 0.02) / count


def show(name: str, results: dict[str, dict[str, Marks]], scenes: list[str]) -> None:
    print(f"\n{name}")
    print(f"  {'':24}" + "".join(f"{column:^46}" for column in results))
    head = "false miss  cut%  PESQ  ERLE 0-1s 1-3s"
    print(f"  {'':24}" + "".join(f"{head:^46}" for _ in results))
    for scene in scenes:
        print(f"  {scene:24}" + "".join(f"{column[scene].line():^46}" for column in results.values()))


def table(
    voices: Iterable[tuple[str, list[Scene]]], chosen: dict[str, Callable[[list[Scene]], Cancelled]]
) -> dict[str, dict[str, float]]:
    """A table a voice, then its averages; those of each column."""
    everything: dict[str, list[Marks]] = {name: [] for name in chosen}
    for voice, scenes in voices:
        results = {}
        for name, run in chosen.items():
            results[name] = {mark.scene: mark for mark in measure(scenes, *run(scenes))}
            everything[name] += results[name].values()
        show(voice, results, [scene.name for scene in scenes])
    print("\nall", flush=True)
    sums = {name: total(marks) for name, marks in everything.items() if marks}
    for name, values in sums.items():
        print(f"  {name:8}", "  ".join(f"{key} {value}" for key, value in values.items()), flush=True)
    return sums


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="one voice, a third of the scenes, fewer calls")
    parser.add_argument("--json", type=Path, help="also write the JSON here")
    parser.add_argument("--speech", type=Path, default=echo_scenes.default_folder())
    parser.add_argument("--voices", default="ast_en,ast_it,ast_ru,esp")
    parser.add_argument("--wide", default="esp", help="16 kHz voices for the wide-band legs")
    parser.add_argument("--only", default="", help="columns to run, such as ours,AEC3")
    args = parser.parse_args()
    recipes = echo_scenes.quick() if args.quick else echo_scenes.RECIPES
    voices = args.voices.split(",")[: 1 if args.quick else None]
    chosen = {name: run for name, run in columns().items() if not args.only or name in args.only.split(",")}
    sums = table([(voice, echo_scenes.scenes_of(args.speech, voice, recipes)) for voice in voices], chosen)
    wide = {}
    for leg in echo_scenes.WIDE if not args.quick else ():
        wide[leg] = table(
            [
                (f"{voice} over {leg}", echo_scenes.wide_scenes_of(args.speech, voice, leg, recipes))
                for voice in args.wide.split(",")
                if voice
            ],
            chosen,
        )
    far, callers, _ = echo_scenes.load(args.speech, voices[0])
    voice = (far, np.concatenate(callers))
    shares = {count: core_share(count, voice) for count in ((1, 20) if args.quick else (1, 100, 200))}
    for count, (alone, whole) in shares.items():
        print(
            f"  core share a call at N={count}: {alone:.3f} % canceller, {whole:.3f} % with speech detection"
        )
    line = json.dumps(
        {
            "bench": "echo",
            "machine": machine(),
            "voices": voices,
            "columns": sums,
            "wide": wide,
            "core_percent_a_call": {str(n): round(share[0], 4) for n, share in shares.items()},
            "core_percent_with_detection": {str(n): round(share[1], 4) for n, share in shares.items()},
        }
    )
    print(line)
    if args.json:
        args.json.write_text(line + "\n")


if __name__ == "__main__":
    main()
