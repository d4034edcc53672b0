"""The tiny language model: its training graph and the engine's streaming runner say the same tokens."""

import hashlib
import random
from pathlib import Path

import numpy as np
import pytest
import sentencepiece
import torch

from engine.api import Persona
from engine.checkpoint import Checkpoint
from engine.generation import Generator
from engine.kv import PagedCache
from engine.model.config import LMConfig
from engine.model.lm import LM
from engine.model.tiny_codec import TinyNet
from engine.runner import ModelRunner, RunnerOptions
from engine.weights import Weights
from train import phrasings
from train import receptionist as script
from train.dialogue import (
    EPAD,
    HANGUP_AFTER,
    HANGUP_LATE,
    PAD,
    SETTLES,
    YIELD_AFTER,
    AgentLine,
    Heard,
    Scriptwriter,
    Strings,
)
from train.export import write_checkpoint
from train.lm import CALLER, MEANING, READ, Calls, misheard, tiny_config
from train.strings import write_tokenizer
from train.transformer import TrainedLM

CPU = torch.device("cpu")


def random_model(text_card: int = 40) -> tuple[LMConfig, TrainedLM]:
    torch.manual_seed(4)
    config = tiny_config(text_card)
    model = TrainedLM(config).eval()
    for table in model.emb[CALLER + 1 : MEANING]:
        torch.nn.init.zeros_(table.weight)
    return config, model


@torch.inference_mode()
def spoken_by_the_engine(config: LMConfig, model: TrainedLM, caller: torch.Tensor) -> torch.Tensor:
    """Greedy tokens (frames, 1 + dep_q) of the engine for the caller's codes (frames, 8)."""
    lm = LM(Weights.of(model.state_dict()), config)
    generator = Generator(lm, 1, 0, 8)
    cache = PagedCache(8, 1, config.context, 0, CPU)
    generator.sampler.set(0, 0, (0.0, 1), (0.0, 1))
    rows, slots, said = torch.zeros(1, dtype=torch.int64), np.zeros(1, np.int64), []
    for codes in caller:
        cache.reserve(slots)
        cache.push()
        step = generator.step(codes[None], rows, cache.tables, torch.full((1,), -1))
        cache.advance(slots)
        said.append(torch.cat([step.text, step.codes[0]]))
    return torch.stack(said)


def test_the_engine_says_what_the_training_graph_predicts_past_the_window() -> None:
    config, model = random_model()
    caller = torch.randint(0, config.card, (220, 8), generator=torch.Generator().manual_seed(1))
    said = spoken_by_the_engine(config, model, caller)
    text, agent = said[:, 0], said[:, 1:]
    empty = torch.zeros(1, len(said), dtype=torch.bool)
    past, before = (text[None], agent[None]), (torch.zeros(1).long(), torch.zeros(1, 8).long())
    calls = Calls(
        *past, *past, caller[None, :, 0], caller[None, :, 7], *[empty] * 4, torch.tensor([True]), *before
    )
    with torch.no_grad():
        hidden = model.hidden(model.embed(*calls.inputs(config), READ))[0]
        predicted = torch.cat(
            [
                model.text_linear(hidden).argmax(-1)[:, None],
                model.code_logits(hidden, text, agent).argmax(-1),
            ],
            1,
        )
    assert len(said) > config.context
    assert len(text.unique()) > 5
    # the first frame differs on purpose: the engine plays the initial token in every stream
    assert (predicted[1:] == said[1:]).float().mean() > 0.999


def test_an_exported_checkpoint_runs_in_the_model_runner(tmp_path: Path) -> None:
    torch.manual_seed(0)
    spm = write_tokenizer(list(script.SENTENCES.values()))
    size = sentencepiece.SentencePieceProcessor(model_proto=spm).get_piece_size()
    config, model = random_model(size)
    written = write_checkpoint(tmp_path, config, model.state_dict(), TinyNet(), spm)
    assert written < 20_000_000
    for line in (tmp_path / "SHA256SUMS").read_text().splitlines():
        digest, name = line.split()
        assert hashlib.sha256((tmp_path / name).read_bytes()).hexdigest() == digest
    runner = ModelRunner.load(Checkpoint.find(tmp_path), 2, RunnerOptions(device="cpu"))
    runner.open(0, Persona())
    heard = np.random.default_rng(0).normal(0, 0.05, (2, 1920)).astype(np.float32)
    for _ in range(4):
        result = runner.step(heard, np.array([True, False]))
    assert result.valid[0] and not result.valid[1]
    assert np.isfinite(result.pcm[0]).all() and result.pcm[0].any()
    pieces = {runner.piece(token) for token in range(size)}
    assert script.TRANSFER_TOKEN in pieces and script.HANGUP_TOKEN in pieces and " Hello," in pieces


def strings() -> Strings:
    """Strings of codes that tell what they are: 1 silence, 2 voice."""

    def line(name: str) -> AgentLine:
        text = np.full(31, PAD, np.int16)
        text[[1, 9, 20]] = (7, 8, 9)
        return AgentLine(name, np.full((31, 8), 5, np.int16), text, 11 if name in script.EVENTS else None)

    names = [*script.SENTENCES, *(f"{name}_slow" for name in script.SLOW)]
    voice = np.ones(24, np.int16)
    voice[4:15] = 2
    heard = [[Heard(voice, 4, 14, intent)] for intent in range(len(script.INTENTS))]
    lines = {name: line(name) for name in names}
    quiet, cough = np.ones(120, np.int16), np.full(5, 3, np.int16)
    return Strings(lines, np.zeros(8, np.int16), heard, [quiet], [cough], {})


def test_a_written_call_greets_answers_and_yields() -> None:
    answered = barged = 0
    for seed in range(40):
        writer = Scriptwriter(strings(), seed)
        call = writer.call(300)
        said = [(at, name.removeprefix("agent:")) for at, name in call.log if name.startswith("agent:")]
        assert said[0] == (3, script.GREETING)
        assert call.text[2] == EPAD
        for (end, intent), (at, name) in zip(
            [row for row in call.log if not row[1].startswith("agent:")],
            [row for row in said[1:] if row[1] not in (script.STILL_THERE, script.BACKCHANNEL)],
            strict=False,
        ):
            assert 4 <= at - end <= 6
            answered += name == intent
        voice = np.flatnonzero(call.caller == 2)
        for frame in voice[call.speaking[voice]]:
            if frame + YIELD_AFTER + 8 < 300 and (call.caller[frame : frame + YIELD_AFTER + 1] == 2).all():
                barged += 1
                assert not call.speaking[frame + YIELD_AFTER] or _backchannel(call.log, frame)
    assert answered > 40 and barged > 20


def test_a_goodbye_ends_the_call_only_if_nobody_speaks_before_the_line_is_dropped() -> None:
    ended = objected = 0
    for seed in range(300):
        call = Scriptwriter(strings(), seed).call(300)
        said = [at for at, name in call.log if name == "agent:goodbye" and at + 31 + HANGUP_AFTER < 300]
        dropped = np.flatnonzero(call.text == 11)
        for at in said:
            voice = (call.caller[at : at + 31 + HANGUP_AFTER] == 2).any()
            hung_up = at + 31 + HANGUP_AFTER in dropped
            assert hung_up != voice
            ended, objected = ended + hung_up, objected + (not hung_up)
    assert ended > 10 and objected > 3


def test_hanging_up_is_asked_for_until_she_has_done_it_and_never_again() -> None:
    late = 0
    for seed in range(300):
        call = Scriptwriter(strings(), seed).call(400)
        asked, done = np.flatnonzero(call.text == 11), np.flatnonzero(call.past_text == 11)
        if len(asked) > 1:
            late += 1
            assert (np.diff(asked) == 1).all() and done.tolist() == [asked[-1]]
            assert len(asked) <= HANGUP_LATE + 1 and not (call.caller[asked] == 2).any()
    assert late > 10


def test_the_answer_follows_the_meaning_and_not_the_words() -> None:
    differing = 0
    for seed in range(30):
        call = Scriptwriter(strings(), seed).call(300)
        for end, intent in [row for row in call.log if not row[1].startswith("agent:")]:
            if end + 4 < 300:
                assert set(call.meaning[end + SETTLES : end + 5]) == {1 + script.INTENTS.index(intent)}
                differing += 1
    assert differing > 60


def _backchannel(log: list[tuple[int, str]], frame: int) -> bool:
    return any(name == f"agent:{script.BACKCHANNEL}" and at <= frame + 8 <= at + 40 for at, name in log)


def test_no_phrasing_is_both_trained_on_and_held_out_and_there_are_enough() -> None:
    trained, held = set(), set()
    for intent in script.CALLERS:
        trained |= set(script.phrasings(intent, held_out=False))
        held |= set(script.phrasings(intent, held_out=True))
    assert not trained & held
    assert len(trained) >= 600 and len(script.INTENTS) >= 26
    assert not set(script.fallback_phrasings(False)) & set(script.fallback_phrasings(True))


@pytest.mark.slow
def test_training_says_nothing_that_is_held_out_and_every_intent_in_thirty_ways() -> None:
    held = phrasings.held_out()
    rng = random.Random(1)
    for intent in script.INTENTS:
        ways = set(phrasings.training_phrasings(intent))
        assert len(ways) >= 30 and not ways & held
        assert not {phrasings.one(intent, rng) for _ in range(300)} & held


def test_misheard_codes_are_mostly_the_same_and_the_initial_token_is_never_touched() -> None:
    codes = torch.randint(0, 50, (40, 40), generator=torch.Generator().manual_seed(2))
    codes[:, 0] = 50
    neighbours = (torch.arange(50)[:, None] + torch.arange(1, 7)) % 50
    heard = misheard(codes, neighbours)
    assert (heard[:, 0] == 50).all() and heard.max() <= 50
    assert 0.6 < (heard == codes).float().mean() < 0.85


def test_a_grammar_expands_to_every_branch() -> None:
    assert script.expand("~(a|b) c (d|)") == ["a c d", "a c", "b c d", "b c"]


def test_writing_is_repeatable() -> None:
    first, second = (Scriptwriter(strings(), 5).call(200) for _ in range(2))
    assert np.array_equal(first.text, second.text) and np.array_equal(first.caller, second.caller)
    assert random.Random(1).random() == random.Random(1).random()
