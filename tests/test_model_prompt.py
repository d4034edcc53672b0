"""Prompts as PersonaPlex defines them: laid out, run in chunks, shared; and voices that cannot do harm."""

import io
import tarfile
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

from engine.api import EngineRefused, Persona
from engine.checkpoint import Checkpoint
from engine.model.config import LMConfig
from engine.prompt import SILENCE_FRAMES, Carrier, build_prompt, wrap_text
from engine.runner import ModelRunner, RunnerOptions
from engine.seeded import TINY_LM, TINY_MIMI, invent_lm, write_checkpoint
from engine.voices import Voice, load_voice, unpack_voices
from engine.weights import CheckpointError
from tests.oracle import kyutai_generator

SMALL_LM = replace(
    TINY_LM,
    dim=64,
    num_layers=2,
    context=60,
    depformer_dim=32,
    depformer_dim_feedforward=132,
    depformer_num_layers=1,
)
SMALL_MIMI = replace(TINY_MIMI, transformer=replace(TINY_MIMI.transformer, layers=1))
CARRIER = Carrier(torch.arange(8) + 20, torch.arange(8) + 60)


class PersonaPlexRing:
    """NVIDIA's cache of tokens, written position by position as its `prepare_step_input` does."""

    def __init__(self, config: LMConfig) -> None:
        self.config, self.offset = config, 0
        self.length = config.max_delay + 3
        self.cache = torch.full((config.n_q + 1, self.length), -2)
        self.initial = torch.full((config.n_q + 1,), config.card)
        self.initial[0] = config.text_card
        self.inputs: list[Tensor] = []

    def step(self, text: int, agent: Tensor, caller: Tensor) -> None:
        given = torch.cat((torch.tensor([text]), agent, caller))
        for stream, delay in enumerate(self.config.delays):
            self.cache[stream, (self.offset + delay) % self.length] = given[stream]
        for stream, delay in enumerate(self.config.delays):
            if self.offset <= delay:
                self.cache[stream, self.offset % self.length] = self.initial[stream]
        if self.offset == 0:
            self.cache[:, 0] = self.initial
        else:
            self.inputs.append(self.cache[:, (self.offset - 1) % self.length].clone())
        self.offset += 1


@pytest.mark.parametrize("delays", [TINY_LM.delays, (0,) * 17, (0, *(0, 2, 2, 2, 2, 2, 2, 2) * 2)])
def test_a_prompt_is_laid_out_as_personaplex_does(delays: tuple[int, ...]) -> None:
    config = replace(SMALL_LM, delays=delays)
    codes = torch.randint(0, 256, (9, 8), generator=torch.Generator().manual_seed(1))
    prompt = build_prompt(config, CARRIER, Voice(codes=codes), [7, 8, 9])
    ring = PersonaPlexRing(config)
    for frame in codes:
        ring.step(3, frame, CARRIER.tone)
    for text in [3] * SILENCE_FRAMES + [7, 8, 9] + [3] * SILENCE_FRAMES:
        ring.step(text, CARRIER.silence, CARRIER.tone)
    assert prompt.frames == len(ring.inputs) == 9 + 3 + 2 * SILENCE_FRAMES - 1
    assert torch.equal(prompt.tokens[:, : prompt.frames].t(), torch.stack(ring.inputs))
    after = ring.cache[:, (ring.offset - 1) % ring.length]
    assert torch.equal(prompt.tokens[:, prompt.frames], after)


def test_a_stored_voice_continues_as_the_recording_it_was_made_from() -> None:
    codes = torch.randint(0, 256, (9, 8), generator=torch.Generator().manual_seed(1))
    lm, _ = invent_lm(SMALL_LM, 4)
    ring = PersonaPlexRing(SMALL_LM)
    for frame in codes:
        ring.step(3, frame, CARRIER.tone)
    voice = Voice(embeddings=lm.embed(torch.stack(ring.inputs)), cache=ring.cache)
    stored = build_prompt(SMALL_LM, CARRIER, voice, [7])
    spoken = build_prompt(SMALL_LM, CARRIER, Voice(codes=codes), [7])
    assert stored.frames == spoken.frames and stored.embeddings is not None
    start = len(stored.embeddings)
    assert torch.equal(stored.tokens[:, start:], spoken.tokens[:, start:])
    torch.testing.assert_close(stored.embeddings, lm.embed(spoken.tokens[:, :start].t()))


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("persona")
    write_checkpoint(path, 4, SMALL_LM, SMALL_MIMI)
    (path / "voices").mkdir()
    codes = torch.randint(0, 256, (70, 8), generator=torch.Generator().manual_seed(2))
    save_file({"codes": codes}, path / "voices" / "anna.safetensors")
    torch.save(
        {"embeddings": torch.randn(20, 1, 1, 64), "cache": torch.zeros(1, 17, 4).long()},
        path / "voices" / "bo.pt",
    )
    return path


def load(folder: Path, **options: int) -> ModelRunner:
    return ModelRunner.load(Checkpoint.find(folder), 3, RunnerOptions(device="cpu", **options))  # type: ignore[arg-type]


def until_ready(engine: ModelRunner, slot: int) -> int:
    for step in range(200):
        if engine.ready(slot):
            return step
        engine.step(np.zeros((3, 1920), np.float32), np.zeros(3, bool))
    raise AssertionError("never ready")


def talk(engine: ModelRunner, slot: int, steps: int) -> list[int]:
    random, said = np.random.default_rng(1), []
    for _ in range(steps):
        pcm = np.zeros((3, 1920), np.float32)
        pcm[slot] = random.standard_normal(1920) * 0.1
        result = engine.step(pcm, np.arange(3) == slot)
        assert result.valid[slot]
        said += [int(result.text[slot]), int(result.pcm[slot].view(np.int32).sum())]
    return said


@pytest.mark.parametrize("voice", [None, "anna", "bo"])
def test_chunks_of_any_size_give_the_tokens_of_a_step_by_step_run(folder: Path, voice: str | None) -> None:
    persona = Persona(voice=voice, text_prompt="you are kind", seed=3)
    said = []
    for chunk in (1, 7, 48):
        engine = load(folder, prefill_frames=chunk)
        engine.open(1, persona)
        until_ready(engine, 1)
        said.append([token for token in talk(engine, 1, 12)[::2]])
    assert said[0] == said[1] == said[2]


@pytest.mark.slow
def test_tokens_after_a_prompt_equal_kyutais_generator_forced_through_it(folder: Path) -> None:
    engine = load(folder)
    greedy = Persona(voice="anna", text_prompt="hello", temperature=0.0, text_temperature=0.0)
    engine.open(0, greedy)
    until_ready(engine, 0)
    prompt = engine._casting.prompt(greedy)
    _, tensors = invent_lm(SMALL_LM, 4)
    theirs = kyutai_generator(SMALL_LM, tensors)
    generator, cache, heard = engine._generator, engine._cache, torch.Generator().manual_seed(8)
    with torch.inference_mode(), theirs.streaming(1):
        state = theirs._streaming_state
        length = state.cache.shape[2]
        for frame in range(prompt.frames + 1):
            state.cache[0, :9, frame % length] = prompt.tokens[:9, frame]
            caller = torch.stack([prompt.tokens[k, frame + SMALL_LM.delays[k]] for k in range(9, 17)])
            theirs.step(caller[None, :, None])
        rows = torch.tensor([0])
        for _ in range(30):
            codes = torch.randint(0, 256, (1, 8), generator=heard)
            engine._prompts.reserve(np.array([0]))
            said = generator.step(codes, rows, cache.tables, torch.tensor([-1]))
            cache.advance(np.array([0]))
            expected = theirs.step(codes[:, :, None])[0, :, 0]
            assert torch.equal(torch.cat((said.text, said.codes[0])), expected)


def test_the_second_call_of_a_persona_shares_the_first_ones_pages(folder: Path) -> None:
    engine = load(folder, context=600)
    persona = Persona(voice="anna", text_prompt="hello there", seed=3)
    before = engine.prompt_pages(persona)
    engine.open(0, persona)
    first = until_ready(engine, 0)
    expected = talk(engine, 0, 10)
    used = engine.pages.used
    assert engine.prompt_pages(persona) == 1 < before
    engine.open(2, persona)
    assert until_ready(engine, 2) < first
    assert engine.pages.used == used + 1
    assert talk(engine, 2, 10)[::2] == expected[::2]
    engine.close(0)
    engine.close(2)
    assert engine.pages.used == before  # the prompt itself stays


def test_many_callers_of_one_persona_wait_for_one_prefill(folder: Path) -> None:
    engine = load(folder)
    persona = Persona(voice="anna", text_prompt="hello there", seed=3)
    for slot in range(3):
        engine.open(slot, persona)
    alone = until_ready(engine, 0)
    assert engine.ready(2) or until_ready(engine, 2) <= 2
    assert alone <= 5
    texts = [talk(engine, slot, 6)[::2] for slot in range(3)]
    assert texts[0] == texts[1] == texts[2]


def test_kept_prompts_give_way_to_calls(folder: Path) -> None:
    engine = load(folder, pages=4)
    engine.open(0, Persona(voice="anna", seed=1))
    until_ready(engine, 0)
    engine.close(0)
    kept = engine.pages.used
    assert kept > 0
    for slot in range(3):
        engine.open(slot, Persona(seed=slot))
    random = np.random.default_rng(0)
    for _ in range(66):
        pcm = (random.standard_normal((3, 1920)) * 0.1).astype(np.float32)
        engine.step(pcm, np.array([True, True, False]))  # raises OutOfPages if the prompt kept them
    assert engine.pages.used == 4


def test_a_voice_is_a_name_and_never_a_path(folder: Path) -> None:
    engine = load(folder)
    for name in ("carl", "../voices/anna", "anna.safetensors", "/etc/passwd", ""):
        with pytest.raises(EngineRefused, match=r"anna, bo"):
            engine.check(Persona(voice=name))
    with pytest.raises(EngineRefused, match="longer"):
        engine.check(Persona(text_prompt="word " * 5_000))
    assert wrap_text(" be kind ") == "<system> be kind <system>" == wrap_text("<system> be kind <system>")


def test_a_voice_file_is_data_and_nothing_else(tmp_path: Path) -> None:
    class Evil:
        def __reduce__(self) -> tuple[object, tuple[str]]:
            return Path.touch, (str(tmp_path / "touched"),)

    torch.save({"embeddings": Evil(), "cache": 1}, tmp_path / "evil.pt")
    (tmp_path / "cut.safetensors").write_bytes(b"\x08\0\0\0\0\0\0\0{}")
    for name in ("evil.pt", "cut.safetensors", "none.pt"):
        with pytest.raises(CheckpointError, match="not a voice prompt"):
            load_voice(tmp_path / name)
    assert not (tmp_path / "touched").exists()


def test_voices_are_unpacked_by_base_name_alone(tmp_path: Path) -> None:
    archive = tmp_path / "voices.tgz"
    with tarfile.open(archive, "w:gz") as tar:
        for name in ("voices/NATF0.pt", "../../escape.pt", "voices/readme.txt", "/abs/NATM1.pt"):
            member = tarfile.TarInfo(name)
            member.size = 3
            tar.addfile(member, io.BytesIO(b"abc"))
    folder = unpack_voices(archive)
    assert sorted(path.name for path in folder.iterdir()) == ["NATF0.pt", "NATM1.pt", "escape.pt"]
    assert folder == tmp_path / "voices" and unpack_voices(archive) == folder
