"""ModelRunner from a checkpoint's files: the whole path against Kyutai's, and what a call may ask."""

import json
import pickle
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from engine.api import EngineRefused, Persona
from engine.checkpoint import Checkpoint
from engine.graphs import GraphStages
from engine.kv import OutOfPages
from engine.runner import ModelRunner, RunnerOptions
from engine.seeded import TINY_LM, TINY_MIMI, write_checkpoint
from tests.oracle import kyutai_generator, kyutai_mimi

SMALL_LM = replace(
    TINY_LM, dim=64, num_layers=2, depformer_dim=32, depformer_dim_feedforward=132, depformer_num_layers=1
)
SMALL_MIMI = replace(TINY_MIMI, transformer=replace(TINY_MIMI.transformer, layers=1))
GREEDY = Persona(temperature=0.0, text_temperature=0.0, seed=1)
SAMPLED = Persona(seed=5)


@pytest.fixture(scope="session")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("tiny")
    write_checkpoint(path, 3, SMALL_LM, SMALL_MIMI)
    return path


@pytest.fixture
def one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def runner(folder: Path, slots: int = 2, **options: object) -> ModelRunner:
    return ModelRunner.load(Checkpoint.find(folder), slots, RunnerOptions(device="cpu", **options))  # type: ignore[arg-type]


def speech(slots: int, seed: int = 0) -> np.random.Generator:
    return np.random.default_rng(seed)


def noise(random: np.random.Generator, slots: int) -> np.ndarray:
    return (random.standard_normal((slots, 1920)) * 0.1).astype(np.float32)


def talk(engine: ModelRunner, slot: int, frames: np.ndarray) -> list[tuple[int, bytes]]:
    """Step one slot alone; (text token, audio) of each frame."""
    said = []
    for frame in frames:
        pcm, active = np.zeros((engine.slots, 1920), np.float32), np.zeros(engine.slots, bool)
        pcm[slot], active[slot] = frame, True
        result = engine.step(pcm, active)
        said.append((int(result.text[slot]), result.pcm[slot].tobytes()))
    return said


@pytest.mark.slow
def test_audio_in_gives_kyutais_tokens_and_audio_out_with_slots_at_random(folder: Path) -> None:
    lm = load_file(folder / "model.safetensors")
    mimi = load_file(folder / "tokenizer-e351c8d8-checkpoint125.safetensors")
    mimi = {name: tensor for name, tensor in mimi.items() if not name.endswith("_initialized")}
    slots, random = 3, speech(3)
    ours, generator = runner(folder, slots), kyutai_generator(SMALL_LM, lm)
    ears, mouth = kyutai_mimi(SMALL_MIMI, mimi, 8), kyutai_mimi(SMALL_MIMI, mimi, 8)
    for slot in range(slots):
        ours.open(slot, GREEDY)
    compared = 0
    with torch.inference_mode(), generator.streaming(slots), ears.streaming(slots), mouth.streaming(slots):
        for _ in range(60):
            pcm, active = noise(random, slots), random.random(slots) < 0.6
            if not active.any():
                continue
            mask = torch.from_numpy(active)
            ears.set_exec_mask(mask)
            generator.set_exec_mask(mask)
            tokens = generator.step(ears.encode(torch.from_numpy(pcm)[:, None]))[:, :, 0]
            speaking = mask & (tokens[:, 1] >= 0)
            mouth.set_exec_mask(speaking)
            audio = mouth.decode(tokens[:, 1:, None].clamp(min=0))[:, 0].numpy()
            result = ours.step(pcm, active)
            assert result.valid.tolist() == speaking.tolist()
            np.testing.assert_array_equal(result.text[result.valid], tokens[speaking][:, 0].numpy())
            np.testing.assert_allclose(result.pcm[result.valid], audio[speaking.numpy()], atol=1e-5)
            compared += int(result.valid.sum())
    assert compared > 80


def test_a_slot_that_is_not_active_gives_nothing_and_keeps_its_state(folder: Path) -> None:
    engine, random = runner(folder), speech(2)
    frames = noise(random, 12)
    engine.open(0, SAMPLED)
    expected = talk(engine, 0, frames)
    engine.close(0)
    engine.open(0, SAMPLED)
    engine.open(1, GREEDY)
    said = talk(engine, 0, frames[:6])
    talk(engine, 1, noise(random, 5))
    result = engine.step(noise(random, 2), np.zeros(2, bool))
    assert not result.valid.any() and not result.pcm.any() and (result.text == -1).all()
    assert said + talk(engine, 0, frames[6:]) == expected


def test_a_closed_slot_gives_its_pages_back_and_the_next_call_starts_fresh(folder: Path) -> None:
    engine, frames = runner(folder), noise(speech(1), 10)
    engine.open(0, SAMPLED)
    expected = talk(engine, 0, frames)
    assert engine.pages.used == engine.slot_pages(0) == 1
    engine.close(0)
    engine.close(0)
    assert engine.pages.used == 0 and not engine.ready(0)
    engine.open(0, SAMPLED)
    assert talk(engine, 0, frames) == expected


def test_a_snapshot_goes_on_in_another_slot_of_another_runner(folder: Path) -> None:
    engine, frames = runner(folder), noise(speech(1), 90)
    engine.open(1, SAMPLED)
    talk(engine, 1, frames[:75])
    parked = pickle.dumps(engine.snapshot(1))
    expected = talk(engine, 1, frames[75:])
    other = runner(folder)
    other.restore(0, pickle.loads(parked))
    assert talk(other, 0, frames[75:]) == expected
    with pytest.raises(EngineRefused, match="snapshot is of"):
        runner(folder, context=100).restore(0, pickle.loads(parked))


def test_rewind_returns_to_what_was_heard_and_not_further_than_is_kept(folder: Path) -> None:
    engine, frames = runner(folder, history=10), noise(speech(1), 80)
    engine.open(0, SAMPLED)
    assert engine.rewind(0, 5) == 0
    talk(engine, 0, frames[:60])
    expected = talk(engine, 0, frames[60:68])
    assert engine.rewind(0, 8) == 8
    assert talk(engine, 0, frames[60:68]) == expected
    assert engine.rewind(0, 50) == 10
    assert engine.rewind(0, 1) == 0
    assert talk(engine, 0, frames[58:68])[2:] == expected


def test_interrupt_holds_the_text_at_padding_until_release(folder: Path) -> None:
    engine, frames = runner(folder), noise(speech(1), 30)
    padding = TINY_LM.existing_text_padding_id
    engine.open(0, SAMPLED)
    talk(engine, 0, frames[:10])
    engine.interrupt(0)
    held = [token for token, _ in talk(engine, 0, frames[10:20])]
    assert held[1:] == [padding] * 9
    engine.release(0)
    freed = [token for token, _ in talk(engine, 0, frames[20:30])]
    assert any(token != padding for token in freed[1:])


def test_injected_words_are_said_one_piece_a_frame(folder: Path) -> None:
    engine, frames = runner(folder), noise(speech(1), 30)
    engine.open(0, SAMPLED)
    talk(engine, 0, frames[:5])
    engine.inject(0, "hello there")
    pieces = [engine.piece(token) for token, _ in talk(engine, 0, frames[5:15])]
    assert " hello there" in "".join(piece or "" for piece in pieces)
    with pytest.raises(ValueError, match="512"):
        engine.inject(0, "word " * 600)
    engine.inject(0, "not this")
    engine.interrupt(0)
    assert all(engine.piece(token) is None for token, _ in talk(engine, 0, frames[15:20])[1:])


def test_bad_audio_of_one_slot_never_reaches_another(folder: Path) -> None:
    engine, frames = runner(folder), noise(speech(1), 8)
    engine.open(0, SAMPLED)
    expected = talk(engine, 0, frames)
    engine.close(0)
    engine.open(0, SAMPLED)
    engine.open(1, SAMPLED)
    said = []
    for frame in frames:
        pcm = np.stack([frame, np.full(1920, np.nan, np.float32)])
        pcm[1, ::2] = np.inf
        result = engine.step(pcm, np.ones(2, bool))
        assert np.isfinite(result.pcm).all()
        said.append((int(result.text[0]), result.pcm[0].copy()))
    assert [token for token, _ in said] == [token for token, _ in expected]
    for (_, pcm), (_, alone) in zip(said, expected, strict=True):
        np.testing.assert_allclose(pcm, np.frombuffer(alone, np.float32), atol=1e-5)


def test_wrong_shapes_and_misuse_are_told(folder: Path) -> None:
    engine = runner(folder)
    with pytest.raises(ValueError, match=r"\(2, 1920\)"):
        engine.step(np.zeros((2, 960), np.float32), np.ones(2, bool))
    engine.open(0, GREEDY)
    with pytest.raises(ValueError, match="already open"):
        engine.open(0, GREEDY)
    for wrong in (Persona(voice="../../etc/passwd"), Persona(temperature=float("nan")), Persona(top_k=-1)):
        with pytest.raises(EngineRefused):
            engine.open(1, wrong)
    assert engine.piece(-1) is None and engine.piece(10**9) is None and engine.piece(3) is None


def test_out_of_pages_advances_nobody_and_shrinking_a_long_call_helps(folder: Path) -> None:
    engine, random = runner(folder, pages=3), speech(2)
    engine.open(0, SAMPLED)
    talk(engine, 0, noise(random, 135))
    engine.open(1, SAMPLED)
    assert engine.pages.free == 0 and engine.forecast(1) >= 1
    before = engine.snapshot(0).frames
    with pytest.raises(OutOfPages):
        engine.step(noise(random, 2), np.ones(2, bool))
    assert engine.snapshot(0).frames == before
    assert engine.shrink(0, 2) >= 1
    assert engine.step(noise(random, 2), np.ones(2, bool)).valid[0]


def test_four_calls_of_the_tiny_model_take_a_fraction_of_a_tick_on_one_core(
    tmp_path: Path, one_thread: None
) -> None:
    write_checkpoint(tmp_path)
    engine, random = runner(tmp_path, 4), speech(4)
    for slot in range(4):
        engine.open(slot, Persona(seed=slot))
    spent = []
    for _ in range(40):
        pcm = noise(random, 4)
        begin = time.thread_time()
        engine.step(pcm, np.ones(4, bool))
        spent.append(time.thread_time() - begin)
    assert np.median(spent) < 0.040


def test_padded_batches_of_fixed_buffers_give_what_exact_batches_give(folder: Path) -> None:
    exact, padded = runner(folder, 5), runner(folder, 5)
    parts = padded._parts
    stages = GraphStages(parts.generator, parts.codec, parts.cache.tables, parts.casting.carrier.tone)
    with torch.inference_mode():
        stages.warm_up()
    padded._stages = stages
    assert stages.sizes == [1, 2, 4, 5]
    random = np.random.default_rng(6)
    for engine in (exact, padded):
        for slot, prompt in enumerate((None, "hello", None, "you are kind", None)):
            engine.open(slot, Persona(seed=slot, text_prompt=prompt))
    for _ in range(25):
        pcm, active = noise(random, 5), random.random(5) < 0.7
        left, right = exact.step(pcm, active), padded.step(pcm, active)
        np.testing.assert_array_equal(left.valid, right.valid)
        np.testing.assert_array_equal(left.text, right.text)
        np.testing.assert_allclose(left.pcm, right.pcm, atol=1e-5)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
def test_on_a_gpu_graphs_and_kernels_say_what_the_cpu_says(folder: Path) -> None:
    cpu = runner(folder, 3)
    gpu = ModelRunner.load(Checkpoint.find(folder), 3, RunnerOptions(device="cuda", dtype="float32"))
    random, agreed, total = np.random.default_rng(6), 0, 0
    for engine in (cpu, gpu):
        for slot, prompt in enumerate((None, "hello", None)):
            engine.open(slot, Persona(temperature=0.0, text_temperature=0.0, text_prompt=prompt))
    for _ in range(40):
        pcm, active = noise(random, 3), random.random(3) < 0.7
        left, right = cpu.step(pcm, active), gpu.step(pcm, active)
        np.testing.assert_array_equal(left.valid, right.valid)
        agreed += int((left.text == right.text).sum())
        total += 3
    assert agreed / total > 0.95


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
def test_on_a_gpu_the_embedded_model_says_what_it_says_on_a_cpu() -> None:
    weights = Path(__file__).parent.parent / "configs" / "tiny-moshi"
    engines = [
        ModelRunner.load(Checkpoint.find(weights), 2, RunnerOptions(device=device, dtype="float32"))
        for device in ("cpu", "cuda")
    ]
    for engine in engines:
        engine.open(0, GREEDY)
        engine.open(1, GREEDY)
    random = np.random.default_rng(3)
    for _ in range(60):
        pcm = noise(random, 2)
        left, right = (engine.step(pcm, np.ones(2, bool)) for engine in engines)
        np.testing.assert_array_equal(left.text, right.text)
        np.testing.assert_allclose(left.pcm, right.pcm, atol=1e-3)


def test_the_same_seed_writes_the_same_checkpoint(tmp_path: Path, folder: Path) -> None:
    write_checkpoint(tmp_path, 3, SMALL_LM, SMALL_MIMI)
    for name in (
        "model.safetensors",
        "tokenizer-e351c8d8-checkpoint125.safetensors",
        "tokenizer_spm_32k_3.model",
    ):
        assert (tmp_path / name).read_bytes() == (folder / name).read_bytes()
    assert json.loads((tmp_path / "config.json").read_text())["dim"] == 64
