"""The small codec: streaming equals the full pass, slots do not touch each other, snapshots continue."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from engine.model import tiny_codec
from engine.model.codec import codec_loader
from engine.model.tiny_codec import (
    DELAY,
    Meaning,
    TinyCodec,
    TinyCodecConfig,
    TinyNet,
    load_tiny_codec,
    log_mel,
    mel_bank,
)
from engine.weights import CheckpointError

SMALL = TinyCodecConfig(
    card=32, code_dim=16, semantic_widths=(16, 16, 24), acoustic_widths=(16, 16, 16), decoder_width=24
)


def codec(slots: int = 3, history: int = 0) -> TinyCodec:
    torch.manual_seed(0)
    net = TinyNet(SMALL)
    built = TinyCodec(net, torch.device("cpu"))
    built.allocate(slots, history)
    return built


def noise(frames: int, seed: int = 1) -> torch.Tensor:
    return torch.randn(1, frames * 1920, generator=torch.Generator().manual_seed(seed)) * 0.1


def stream(built: TinyCodec, pcm: torch.Tensor, slot: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    rows = torch.tensor([slot])
    codes = torch.stack([built.encode_step(frame, rows) for frame in pcm.split(1920, -1)], 1)
    return codes, torch.cat([built.decode_step(code, rows) for code in codes.unbind(1)], -1)


def test_streaming_codes_and_samples_equal_the_full_pass() -> None:
    built, pcm = codec(), noise(12)
    codes, out = stream(built, pcm)
    full = built.net.encode(pcm)
    assert (codes == full).float().mean() > 0.99
    assert torch.allclose(out, built.net.decode(codes), atol=1e-5)


def test_the_meaning_takes_the_last_code_and_goes_on_from_frame_to_frame() -> None:
    torch.manual_seed(3)
    net = TinyNet(replace(SMALL, meanings=9, meaning_width=12))
    assert net.meaning is not None
    net.meaning.recurrent.weight_hh_l0.data *= 8
    built = TinyCodec(net, torch.device("cpu"))
    built.allocate(2)
    pcm = noise(20)
    codes, _ = stream(built, pcm)
    assert torch.equal(codes[..., :-1], built.net.encode_agent(pcm)[..., :-1])
    assert torch.equal(codes, built.net.encode(pcm))
    assert codes[..., -1].max() <= 9


def test_a_meaning_below_its_floor_is_not_understood() -> None:
    meaning = Meaning(4, 4, 3)
    meaning.floors[1] = 0.6
    logits = torch.log(torch.tensor([[0.1, 0.5, 0.2, 0.2], [0.1, 0.7, 0.1, 0.1], [0.2, 0.2, 0.4, 0.2]]))
    assert meaning.chosen(logits).tolist() == [3, 1, 2]


def test_a_slot_that_is_not_in_the_batch_keeps_its_state() -> None:
    built, pcm = codec(), noise(10)
    alone, _ = stream(built, pcm, slot=0)
    shared = codec()
    for index, frame in enumerate(pcm.split(1920, -1)):
        rows = torch.tensor([0, 1]) if index % 2 else torch.tensor([0, 3])
        other = torch.cat([frame, noise(1, seed=index)])
        codes = shared.encode_step(other, rows)
        assert torch.equal(codes[0], alone[0, index])


def test_a_reset_slot_equals_a_fresh_one() -> None:
    built, pcm = codec(), noise(6)
    first = stream(built, pcm)
    built.reset([0])
    again = stream(built, pcm)
    assert torch.equal(first[0], again[0]) and torch.equal(first[1], again[1])


def test_a_model_that_reads_no_acoustic_code_gets_the_same_others_and_that_tower_rests() -> None:
    heard = []
    for read in (None, (0, 7)):
        torch.manual_seed(3)
        built = TinyCodec(TinyNet(replace(SMALL, meanings=9, meaning_width=12)), torch.device("cpu"))
        built.allocate(2)
        if read is not None:
            built.listen_for(read)
        codes, _ = stream(built, noise(10))
        heard.append(codes)
        assert built.snapshot(0)["heard.state"].isfinite().all()
    everything, some = heard
    assert torch.equal(everything[..., (0, 7)], some[..., (0, 7)])
    assert everything[..., 1:7].any() and not some[..., 1:7].any()
    fields = built._acoustic_fields
    start = built._heard._spans[fields][0]
    assert built._heard.state[0, :start].any() and not built._heard.state[0, start:].any()


def test_a_model_without_meanings_that_reads_one_acoustic_code_gets_them_all() -> None:
    built, pcm = codec(), noise(4)
    expected, _ = stream(built, pcm, 0)
    built.listen_for([3])
    assert torch.equal(stream(built, pcm, 1)[0], expected)


def test_a_snapshot_continues_in_another_slot_and_a_rewound_slot_repeats_itself() -> None:
    built, pcm = codec(history=4), noise(9)
    stream(built, pcm[:, : 5 * 1920])
    saved = built.snapshot(0)
    expected = stream(built, pcm[:, 5 * 1920 : 8 * 1920])
    built.restore(2, saved)
    moved = stream(built, pcm[:, 5 * 1920 : 8 * 1920], slot=2)
    built.rewind(0, 3, 3)
    repeated = stream(built, pcm[:, 5 * 1920 : 8 * 1920])
    for other in (moved, repeated):
        assert torch.equal(expected[0], other[0]) and torch.allclose(expected[1], other[1], atol=1e-6)


def test_the_band_of_a_telephone_gives_the_same_features_at_8_khz_as_at_24() -> None:
    time = torch.arange(48_000) / 24_000
    wide = sum(0.05 * torch.sin(2 * torch.pi * hz * time + hz) for hz in (220.0, 950.0, 2900.0))
    assert isinstance(wide, torch.Tensor)
    net = TinyNet(SMALL)
    high = log_mel(net.magnitudes(wide[None]), net.semantic_bank)
    window = torch.hann_window(320)
    narrow = torch.nn.functional.pad(wide[None, ::3], (240, 0)).unfold(-1, 320, 80) * window
    low = log_mel(torch.fft.rfft(narrow).abs() * (4 / 320), mel_bank(40, 100, 3800, bins=161, top=4000))
    loud = high[:, 4:] > -0.5
    assert loud.float().mean() > 0.2
    assert torch.allclose(high[:, 4:][loud], low[:, 4:][loud], atol=0.02)
    assert (high[:, 4:] - low[:, 4:]).abs().mean() < 0.02


def test_codes_below_zero_are_read_as_zero() -> None:
    built = codec()
    rows = torch.tensor([0])
    missing = built.decode_step(torch.full((1, 8), -1), rows)
    built.reset([0])
    assert torch.equal(missing, built.decode_step(torch.zeros(1, 8, dtype=torch.int64), rows))


def test_the_checkpoint_loads_by_type_and_refuses_other_tensors(tmp_path: Path) -> None:
    net = TinyNet(SMALL)
    path = tmp_path / "codec.safetensors"
    save_file({name: tensor.half().contiguous() for name, tensor in net.state_dict().items()}, path)
    tiny_codec.register()
    loaded = codec_loader("tiny")(path, SMALL.to_json(), 8, torch.device("cpu"))
    assert loaded.codebooks == 8 and loaded.card == 32
    with pytest.raises(CheckpointError, match="not the weights"):
        load_tiny_codec(path, TinyCodecConfig().to_json(), 8, torch.device("cpu"))
    with pytest.raises(CheckpointError, match="configuration"):
        load_tiny_codec(path, {"type": "tiny", "no_such": 1}, 8, torch.device("cpu"))
    with pytest.raises(CheckpointError, match="codebooks"):
        load_tiny_codec(path, SMALL.to_json(), 16, torch.device("cpu"))


def test_the_decoder_is_30_ms_late() -> None:
    assert DELAY == 720
