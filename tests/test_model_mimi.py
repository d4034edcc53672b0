"""Mimi against Kyutai's own: codes, audio, and slots that are out of step."""

from dataclasses import replace

import pytest
import torch

from engine.model.config import MimiConfig
from engine.model.mimi import Mimi
from engine.seeded import TINY_MIMI, invent_mimi
from engine.weights import CheckpointError, Weights
from tests.oracle import kyutai_mimi


def pair(config: MimiConfig, slots: int, history: int = 0) -> tuple[Mimi, object]:
    mimi, tensors = invent_mimi(config, 8, 5)
    mimi.allocate(slots, history)
    return mimi, kyutai_mimi(config, tensors, 8)


def run_against_oracle(config: MimiConfig, slots: int, steps: int, busy: float) -> tuple[int, float, float]:
    """(codes that differ, largest difference of a sample, level of the audio)"""
    ours, theirs = pair(config, slots)
    random = torch.Generator().manual_seed(0)
    wrong, worst, level = 0, 0.0, 0.0
    with torch.inference_mode(), theirs.streaming(slots):  # type: ignore[attr-defined]
        for _ in range(steps):
            pcm = torch.randn(slots, 1920, generator=random) * 0.1
            mask, reset = (torch.rand(slots, generator=random) < chance for chance in (busy, 0.03))
            theirs.reset_streaming(reset)  # type: ignore[attr-defined]
            ours.reset(reset.nonzero()[:, 0].tolist())
            theirs.set_exec_mask(mask)  # type: ignore[attr-defined]
            codes = theirs.encode(pcm[:, None])  # type: ignore[attr-defined]
            audio = theirs.decode(codes)[:, 0]  # type: ignore[attr-defined]
            rows = mask.nonzero()[:, 0]
            if len(rows):
                mine = ours.encode_step(pcm[mask], rows)
                wrong += int((mine != codes[mask][:, :, 0]).sum())
                worst = max(worst, float((ours.decode_step(mine, rows) - audio[mask]).abs().max()))
                level = max(level, float(audio[mask].std()))
    return wrong, worst, level


def test_codes_and_audio_of_a_small_mimi_equal_kyutais_with_slots_out_of_step() -> None:
    wrong, worst, level = run_against_oracle(TINY_MIMI, 3, 40, busy=0.6)
    assert wrong == 0 and worst < 1e-5 and level > 0.03


def test_mimis_window_slides_as_kyutais_does() -> None:
    config = replace(TINY_MIMI, transformer=replace(TINY_MIMI.transformer, context=10))
    wrong, worst, _ = run_against_oracle(config, 1, 30, busy=1.0)
    assert wrong == 0 and worst < 1e-5


@pytest.mark.slow
def test_codes_and_audio_of_full_size_mimi_equal_kyutais_with_slots_out_of_step() -> None:
    wrong, worst, level = run_against_oracle(MimiConfig(), 2, 25, busy=0.7)
    assert wrong == 0 and worst < 1e-5 and level > 0.03


def test_a_slot_goes_on_from_its_snapshot_and_from_a_rewind() -> None:
    mimi, _ = invent_mimi(TINY_MIMI, 8, 5)
    mimi.allocate(2, history=6)
    random = torch.Generator().manual_seed(2)
    frames = torch.randn(30, 1, 1920, generator=random) * 0.1

    def run(slot: int, some: torch.Tensor) -> torch.Tensor:
        rows = torch.tensor([slot])
        return torch.stack([mimi.decode_step(mimi.encode_step(pcm, rows), rows) for pcm in some])

    with torch.inference_mode():
        run(0, frames[:20])
        state = mimi.snapshot(0)
        expected = run(0, frames[20:24])
        mimi.rewind(0, 4, 4)
        assert torch.equal(run(0, frames[20:24]), expected)
        mimi.restore(1, state)
        assert torch.equal(run(1, frames[20:24]), expected)
        mimi.rewind(0, 3, 0)  # ears only: the mouth goes on
        assert not torch.equal(run(0, frames[24:25]), expected[:1])
        with pytest.raises(ValueError, match="older"):
            mimi.rewind(0, 7, 0)


def test_old_codebook_names_load_and_a_wrong_shape_is_named() -> None:
    _, tensors = invent_mimi(TINY_MIMI, 8, 5)
    old = {name.replace("embedding_sum", "embed_sum").replace("cluster_usage", "cluster_size"): tensor
           for name, tensor in tensors.items()}  # fmt: skip
    weights = Weights.of(old)
    Mimi(weights, TINY_MIMI, 8)
    weights.finish()
    tensors["decoder.model.0.conv.conv.weight"] = torch.zeros(3)
    wrong = Weights.of(tensors, "mimi.safetensors")
    Mimi(wrong, TINY_MIMI, 8)
    with pytest.raises(
        CheckpointError, match=r"mimi.safetensors.*decoder.model.0.conv.conv.weight.*\(3,\).*\(64, 64, 7\)"
    ):
        wrong.finish()
