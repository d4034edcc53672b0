"""Calibrate: how sure the codec must be of a meaning before it is believed.

    python -m train.calibrate --state DIR

Voices that training set aside ask everything over telephone lines. The common floor is the least at which
FALLBACK_SHARE of what would be answered wrongly is not understood instead. What ends a call or hands it on
has a floor of its own: at most EVENT_ERRORS of the utterances that mean something else may pass it.
"""

from __future__ import annotations

import argparse
import random
from pathlib import Path

import torch
from torch import Tensor

from train import receptionist as script
from train.callers import set_aside, vocabulary
from train.data import CallerStore
from train.loop import log, prepare
from train.semantic import SemanticStage, Trial, trials

FALLBACK_SHARE = 0.55
EVENT_ERRORS = 0.001
STEPS = [step / 50 for step in range(10, 48)]
CAUTIOUS = 0.5
"""Floor of a meaning that acts on the call, at least."""


def floors(found: list[Trial]) -> Tensor:
    """(meanings + 1,) from what was found in trials."""
    meant = torch.tensor([1 + said.intent for said, _ in found])
    sure, best = torch.stack([probabilities for _, probabilities in found]).max(-1)
    unsure = len(script.INTENTS)
    out = torch.zeros(unsure + 1)
    for step in STEPS:
        chosen = torch.where(sure < step, unsure, best)
        missed = chosen != meant
        out[1:unsure] = step
        if not bool(missed.any()) or float((chosen[missed] == unsure).float().mean()) >= FALLBACK_SHARE:
            break
    for name in script.EVENTS:
        code = 1 + script.INTENTS.index(name)
        wrong = sure[(best == code) & (meant != code)].sort(descending=True).values
        allowed = int(EVENT_ERRORS * len(found))
        out[code] = max(CAUTIOUS, float(wrong[allowed]) + 1e-4 if len(wrong) > allowed else 0.0)
    return out.clamp(max=0.995)


def calibrate(state: Path) -> None:
    """Write the floors into STATE/semantic.pt."""
    store = CallerStore(state, "train")
    kept, aside = set_aside(store.utterances)
    saved = torch.load(state / "semantic.pt", map_location="cpu", weights_only=True)
    stage = SemanticStage(len(vocabulary(kept)))
    stage.load_state_dict(saved["modules"])
    found = trials(stage, store, aside, line=random.Random(1))
    chosen = floors(found)
    saved["modules"]["meaning.floors"] = chosen
    torch.save(saved, state / "semantic.pt")
    events = {name: round(float(chosen[1 + script.INTENTS.index(name)]), 3) for name in script.EVENTS}
    log.info("%d utterances of %d voices set aside", len(found), len({said.voice for said, _ in found}))
    log.info("floor %.2f, of events %s", float(chosen[1]), events)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--state", type=Path, required=True)
    chosen = parser.parse_args()
    prepare(4)
    calibrate(chosen.state)


if __name__ == "__main__":
    main()
