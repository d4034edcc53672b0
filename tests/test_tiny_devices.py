"""Training on a GPU, as far as a machine without one can tell: every tensor is born where it is needed.

The device here is torch's `meta`; a dispatch mode refuses what a GPU refuses, tensors of two devices meeting.
"""

import random
from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from engine.model.tiny_codec import TinyNet
from train import receptionist as script
from train import semantic, sounds
from train.callers import Batch, Callers, meaning_labels
from train.codec import EnvelopeLoss
from train.data import Utterance
from train.dialogue import Call
from train.lm import READ, Calls, LmStage, misheard, tiny_config
from train.loop import here, on
from train.semantic import CONFIG, Memory, SemanticStage, hidden_parts


class OneDevice(TorchDispatchMode):
    """Raises where tensors of two devices meet, but for copies and single numbers."""

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        given = [x for x in tree_leaves((args, kwargs or {})) if isinstance(x, torch.Tensor) and x.dim()]
        if len({x.device.type for x in given}) > 1 and "copy" not in func.name():
            raise RuntimeError(f"{func.name()}: tensors on two devices")
        return func(*args, **(kwargs or {}))


class SomeCallers:
    """Utterances of noise."""

    def __init__(self) -> None:
        self.utterances = [Utterance(0, 6_000 + 40 * i, i, "yes please", "nobody", True) for i in range(35)]

    def pcm(self, said: Utterance) -> np.ndarray:
        return np.random.default_rng(said.intent).normal(0, 0.1, said.length).astype(np.float32)


@pytest.fixture(scope="module")
def on_the_processor() -> tuple[SemanticStage, TinyNet]:
    """Modules, moved to the device afterwards: filter banks are computed from numbers, which meta has not."""
    return SemanticStage(5).to("meta"), TinyNet(CONFIG).to("meta")


@pytest.fixture
def elsewhere() -> Iterator[None]:
    torch.set_default_device("meta")
    with OneDevice():
        yield
    torch.set_default_device(None)


def a_batch() -> Batch:
    return next(iter(Callers(SomeCallers(), None, 6, 1)))  # type: ignore[arg-type]


def test_tensors_of_two_devices_do_not_meet(elsewhere: None) -> None:
    with pytest.raises(RuntimeError, match="two devices"):
        torch.nn.functional.linear(torch.zeros(2, 3), torch.zeros(4, 3, device="cpu"))
    assert on() == "meta" and here(np.zeros(3)).device.type == "meta"


def test_callers_are_mixed_and_heard_on_the_device(
    on_the_processor: tuple[SemanticStage, TinyNet], elsewhere: None
) -> None:
    stage, _ = on_the_processor
    batch, memory = a_batch(), Memory(CONFIG.meaning_width)
    mel = stage.features(batch.pcm, torch.randint(0, len(semantic.WARPS), (len(batch.pcm),)))
    features, middle = stage.climbed(hidden_parts(mel))
    state, fresh = memory.begin(len(batch.said))
    hidden, last = stage.meaning.recurrent(features, state)
    memory.keep(last[0])
    labels = meaning_labels(batch, torch.zeros(len(fresh), dtype=torch.bool, device="cpu"))
    said, sounded = stage.straight(features, middle)
    lexicon: Any = SimpleNamespace(words={"yes": 1, "please": 2})
    parts = [sounded, semantic.frame_loss(said, batch, lexicon), stage.meaning.head(hidden), labels]
    parts += semantic.held(stage, features, mel).values()
    parts += [sounds.coloured_noise((2, 640), 0.3), sounds.cough(random.Random(1))]
    assert {part.device.type for part in parts} == {"meta"}


def test_calls_are_learnt_and_speech_is_judged_on_the_device(
    on_the_processor: tuple[SemanticStage, TinyNet], elsewhere: None
) -> None:
    _, net = on_the_processor
    stage, config = LmStage(tiny_config(60), net), tiny_config(60)
    codes, streams, no = np.zeros(300, np.int16), np.zeros((300, 8), np.int16), np.zeros(300, bool)
    call = Call(codes, streams, codes, streams, codes, codes, no, codes, no, no)
    calls = Calls.of([call, call], [0, 20], 256)
    text, heard = calls.inputs(config)
    hidden = stage.lm.hidden(stage.lm.embed(text, heard, READ))
    logits = stage.lm.code_logits(hidden[0], calls.text[0], calls.agent[0])
    judged = EnvelopeLoss()(torch.randn(2, 48_000), torch.randn(2, 48_000))
    parts = [logits, judged, misheard(calls.caller, stage.neighbours)]
    assert {part.device.type for part in parts} == {"meta"}
    assert len(script.INTENTS) == stage.intent.out_features
