"""Every form of a checkpoint loads to the same model, and what is wrong with one is named."""

import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from huggingface_hub import constants
from safetensors.torch import load_file, save_file
from torch import Tensor

from engine.api import EngineError
from engine.build import OutOfMemory, RunnerOptions, build, load_lm, must_multiply_float8
from engine.checkpoint import Checkpoint
from engine.model.config import LMConfig, MimiConfig
from engine.model.mimi import ring_view
from engine.model.transformer import Pool
from engine.seeded import TINY_LM, TINY_MIMI, invent_lm, mimi_json, write_checkpoint
from engine.weights import CheckpointError
from tests.oracle import require

CPU = torch.device("cpu")
SMALL_LM = replace(
    TINY_LM, dim=64, num_layers=1, depformer_dim=32, depformer_dim_feedforward=132, depformer_num_layers=1
)
SMALL_MIMI = replace(TINY_MIMI, transformer=replace(TINY_MIMI.transformer, layers=1))


@pytest.fixture(scope="module")
def original(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("original")
    write_checkpoint(path, 6, SMALL_LM, SMALL_MIMI)
    return path


@pytest.fixture
def folder(original: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(original, tmp_path / "copy"))


def configure(folder: Path, **changes: Any) -> None:
    path = folder / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def rewrite(folder: Path, tensors: dict[str, Tensor]) -> None:
    save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, folder / "model.safetensors")


def outputs(folder: Path) -> list[Tensor]:
    """Every weight of the model as it is used."""
    lm = load_lm(Checkpoint.find(folder), CPU, RunnerOptions(dtype="float32"))
    assert lm.depth is not None
    layers = [*lm.temporal.layers, *(layer for step in lm.depth.layers for layer in step)]
    parts = [part for layer in layers for part in (layer.qkv, layer.out, layer.up, layer.down)]
    return [lm.table, lm.text_head, lm.depth.input, *lm.depth.heads, *parts]


def same(left: list[Tensor], right: list[Tensor], tolerance: float = 0.0) -> bool:
    return all(float((a - b).abs().max()) <= tolerance for a, b in zip(left, right, strict=True))


def test_every_spelling_of_the_attention_is_the_same_model(original: Path, folder: Path) -> None:
    expected, tensors = outputs(original), load_file(original / "model.safetensors")
    rewrite(folder, {name.replace("in_proj_weight", "in_proj.weight"): t for name, t in tensors.items()})
    assert same(outputs(folder), expected)
    split: dict[str, Tensor] = {}
    for name, tensor in tensors.items():
        parts = 8 if name.startswith("depformer.layers") else 1
        for old, new in (("in_proj_weight", "in_projs"), ("out_proj.weight", "out_projs")):
            if name.endswith(old):
                for k, part in enumerate(tensor.chunk(parts)):
                    split[name.replace(old, f"{new}.{k}.weight")] = part
                break
        else:
            split[name] = tensor
    rewrite(folder, split)
    assert same(outputs(folder), expected)


def test_int8_weights_are_dequantised(original: Path, folder: Path) -> None:
    tensors, quantised = load_file(original / "model.safetensors"), {}
    for name, tensor in tensors.items():
        if tensor.dim() == 2 and "emb" not in name:
            scale = tensor.abs().amax(1)
            quantised[name] = (tensor / scale[:, None] * 127).round().to(torch.int8)
            quantised[f"{name}_scb"] = scale
        else:
            quantised[name] = tensor
    rewrite(folder, quantised)
    configure(folder, quantize=True)
    expected, got = outputs(original), outputs(folder)
    assert same(got, expected, 0.02) and not same(got, expected, 1e-4)
    del quantised["text_linear.weight_scb"]
    rewrite(folder, quantised)
    with pytest.raises(CheckpointError, match=r"text_linear\.weight_scb"):
        outputs(folder)


def test_float8_weights_speak_much_as_float32_ones_do(original: Path) -> None:
    exact = load_lm(Checkpoint.find(original), CPU, RunnerOptions())
    coarse = load_lm(Checkpoint.find(original), CPU, RunnerOptions(weight_dtype="float8"))
    tokens = torch.randint(0, 200, (40, 17), generator=torch.Generator().manual_seed(1))
    logits = []
    for lm in (exact, coarse):
        pool = Pool(lm.config.temporal, 2, CPU, torch.float32)
        position = torch.arange(40)[None]
        view = ring_view(torch.tensor([[1]]), position, position - 100)
        logits.append(lm.text_logits(lm.hidden(lm.embed(tokens)[None], pool, view)[0]))
    error = (logits[0] - logits[1]).norm() / logits[0].norm()
    assert 1e-4 < error < 0.1


def test_float8_weights_on_a_gpu_that_cannot_multiply_them_are_refused(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (8, 0))
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: "NVIDIA A100")
    with pytest.raises(EngineError, match=r"weight_dtype float8 needs an H100.*A100"):
        must_multiply_float8(torch.device("cuda"))
    must_multiply_float8(CPU)


def lora_of(tensors: dict[str, Tensor], rank: int = 4) -> dict[str, Tensor]:
    """Low-rank pairs as moshi-finetune saves them: one for each linear, multi-step ones split."""
    pairs: dict[str, Tensor] = {}
    random = torch.Generator().manual_seed(1)
    for name, tensor in tensors.items():
        if tensor.dim() != 2 or "emb" in name:
            continue
        parts = 8 if name.startswith("depformer.layers") and "self_attn" in name else 1
        stem = name.removesuffix(".weight").replace("in_proj_weight", "in_proj")
        for k in range(parts):
            part = stem.replace("in_proj", f"in_projs.{k}").replace("out_proj", f"out_projs.{k}")
            pairs[f"{part}.lora_A.weight"] = torch.randn(rank, tensor.shape[1], generator=random) * 0.1
            pairs[f"{part}.lora_B.weight"] = (
                torch.randn(tensor.shape[0] // parts, rank, generator=random) * 0.1
            )
    return pairs


@pytest.mark.slow
def test_lora_is_merged_as_kyutai_merges_it(original: Path, folder: Path) -> None:
    require()
    from moshi.models import loaders

    tensors = load_file(original / "model.safetensors")
    save_file(lora_of(tensors), folder / "lora.safetensors")
    configure(folder, lora=True, lora_rank=4, lora_scaling=1.5, lora_name="lora.safetensors")
    raw = json.loads((folder / "config.json").read_text())
    drop = ("mimi_config_name", "model_type", "lora_name")
    theirs = loaders.get_moshi_lm(
        folder / "model.safetensors", {k: v for k, v in raw.items() if k not in drop}, dtype=torch.float32,
        lora_weights=folder / "lora.safetensors", fuse_lora=True,
    )  # fmt: skip
    merged = {name: tensor for name, tensor in theirs.state_dict().items()}
    got = outputs(folder)
    assert not same(got, outputs(original), 1e-3)
    rewrite(folder, merged)
    configure(folder, lora=False, lora_name=None)
    assert same(got, outputs(folder), 1e-5)


def test_a_lora_of_another_model_is_named(folder: Path) -> None:
    save_file(
        {"transformer.layers.9.gating.linear_in.lora_A.weight": torch.ones(4, 64)},
        folder / "lora.safetensors",
    )
    configure(folder, lora_name="lora.safetensors")
    with pytest.raises(CheckpointError, match=r"transformer\.layers\.9\.gating\.linear_in"):
        outputs(folder)


def test_a_model_that_predicts_its_caller_keeps_half_its_depth_steps(tmp_path: Path) -> None:
    write_checkpoint(tmp_path, 1, replace(SMALL_LM, dep_q=16), SMALL_MIMI)
    built = build(Checkpoint.find(tmp_path), 1, RunnerOptions(device="cpu"))
    assert built.generator.lm.config.dep_q == 8 and built.codec.codebooks == 8


def test_names_may_point_to_other_files(original: Path, folder: Path) -> None:
    (folder / "model.safetensors").rename(folder / "other.safetensors")
    configure(
        folder, moshi_name="other.safetensors", tokenizer_name=f"file://{original}/tokenizer_spm_32k_3.model"
    )
    found = Checkpoint.find(folder)
    assert found.weights.name == "other.safetensors" and found.tokenizer.parent == original
    configure(folder, tokenizer_name="file:///nowhere/text.model")
    with pytest.raises(CheckpointError, match=r"/nowhere/text\.model is missing.*tokenizer_name"):
        Checkpoint.find(folder)


def test_without_config_json_it_is_taken_for_moshi_7b(folder: Path) -> None:
    (folder / "config.json").unlink()
    found = Checkpoint.find(folder)
    assert found.lm == LMConfig() and found.lm.dim == 4096 and found.lm.temporal.feed_forward == 11264
    assert found.lm.depth.feed_forward == 2816 and found.codec == {"type": "mimi"}


def fake_cache(root: Path, repo: str, source: Path) -> None:
    """A repository as huggingface_hub keeps it on disk."""
    store = root / f"models--{repo.replace('/', '--')}"
    snapshot = store / "snapshots" / ("0" * 40)
    (store / "refs").mkdir(parents=True)
    (store / "refs" / "main").write_text("0" * 40)
    shutil.copytree(source, snapshot)
    missing = store / ".no_exist" / ("0" * 40)
    missing.mkdir(parents=True)
    (missing / "voices.tgz").touch()


def test_a_repository_loads_from_the_cache_when_offline(
    original: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    fake_cache(tmp_path, "someone/small", original)
    found = Checkpoint.find("someone/small", revision="main")
    assert found.name == "someone/small" and found.lm.dim == 64
    with pytest.raises(CheckpointError, match="hf download someone/absent"):
        Checkpoint.find("someone/absent")
    configured = Path(shutil.copytree(original, tmp_path / "here"))
    configure(configured, moshi_name="hf://someone/small/model.safetensors")
    assert Checkpoint.find(configured).weights.name == "model.safetensors"


@pytest.mark.parametrize(
    ("name", "key"),
    [("model.safetensors", "moshi_name"), ("tokenizer_spm_32k_3.model", "tokenizer_name"),
     ("tokenizer-e351c8d8-checkpoint125.safetensors", "mimi_name"), ("mimi_config.json", "mimi_config_name")],
)  # fmt: skip
def test_a_missing_file_is_named_with_what_to_run(folder: Path, name: str, key: str) -> None:
    (folder / name).unlink()
    with pytest.raises(CheckpointError, match=rf"{name} is missing.*{key}.*hf download"):
        Checkpoint.find(folder)


def test_a_name_that_is_nothing_says_what_it_could_be() -> None:
    with pytest.raises(CheckpointError, match=r"owner/name.*engine\.seeded"):
        Checkpoint.find("/no/such/folder/anywhere")


def test_missing_extra_and_misshapen_tensors_are_named(folder: Path) -> None:
    tensors = load_file(folder / "model.safetensors")
    del tensors["out_norm.alpha"]
    tensors["text_linear.weight"] = torch.zeros(3, 64)
    tensors["linears.99.weight"] = torch.zeros(1)
    rewrite(folder, tensors)
    with pytest.raises(CheckpointError) as caught:
        outputs(folder)
    text = str(caught.value)
    assert "missing out_norm.alpha, expected shape (1, 1, 64)" in text
    assert "text_linear.weight has shape (3, 64), expected (200, 64)" in text
    assert "unknown tensor linears.99.weight" in text and "model.safetensors" in text


@pytest.mark.parametrize("cut", [0, 5, 100, 5000])
def test_a_cut_or_garbled_file_says_to_download_it_again(folder: Path, cut: int) -> None:
    path = folder / "model.safetensors"
    path.write_bytes(path.read_bytes()[:cut])
    with pytest.raises(CheckpointError, match=r"model\.safetensors.*download it again"):
        outputs(folder)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"frobnicate": 1}, "unknown keys frobnicate"),
        ({"delays": [0, 1]}, "delays has 2 entries, expected n_q \\+ 1 = 17"),
        ({"cross_attention": True}, "cross_attention is not supported"),
        ({"positional_embedding": "sin"}, "only rope"),
        ({"model_type": "tts"}, "is a tts model"),
        ({"num_heads": 7}, "does not divide"),
    ],
)
def test_a_configuration_this_engine_cannot_run_is_refused(
    folder: Path, changes: dict[str, Any], words: str
) -> None:
    configure(folder, **changes)
    with pytest.raises(CheckpointError, match=words):
        Checkpoint.find(folder)


def test_a_broken_json_tokenizer_or_codec_is_named(folder: Path) -> None:
    configure(folder, codec={"type": "opus"})
    with pytest.raises(EngineError, match=r"'opus'.*mimi"):
        build(Checkpoint.find(folder), 1, RunnerOptions(device="cpu"))
    configure(folder, codec={"type": "mimi"})
    (folder / "tokenizer_spm_32k_3.model").write_bytes(b"not a model")
    with pytest.raises(CheckpointError, match="not a sentencepiece model"):
        build(Checkpoint.find(folder), 1, RunnerOptions(device="cpu"))
    (folder / "config.json").write_text("{")
    with pytest.raises(CheckpointError, match=r"config\.json is not readable JSON"):
        Checkpoint.find(folder)


def test_too_many_slots_are_refused_with_a_figure(folder: Path) -> None:
    with pytest.raises(OutOfMemory, match=r"slots need [\d.]+ GiB"):
        build(Checkpoint.find(folder), 5_000_000, RunnerOptions(device="cpu", context=100_000))
    with pytest.raises(EngineError, match=r"no CUDA|not one of"):
        build(
            Checkpoint.find(folder),
            1,
            RunnerOptions(device="cuda:77" if not torch.cuda.is_available() else "tpu9"),
        )


def test_mimis_own_json_reads_back_to_the_same_configuration() -> None:
    for config in (MimiConfig(), TINY_MIMI):
        assert MimiConfig.read(mimi_json(config), "here") == config
    with pytest.raises(CheckpointError, match="24,000 Hz"):
        MimiConfig.read(mimi_json(MimiConfig()) | {"sample_rate": 16_000}, "here")
    with pytest.raises(CheckpointError, match="not a Mimi configuration"):
        MimiConfig.read({"seanet": 3}, "here")


@pytest.mark.slow
def test_the_7b_model_asks_for_kyutais_439_tensors() -> None:
    from engine.model.lm import LM
    from engine.weights import Weights

    class Asked(Weights):
        names: dict[str, tuple[int, ...]] = {}  # noqa: RUF012

        def under(self, part: str) -> Weights:
            child = object.__new__(Asked)
            child.__dict__.update(self.__dict__)
            child._prefix = f"{self._prefix}{part}."
            return child

        def take(self, name: str, *shape: int, dtype: torch.dtype | None = None) -> Tensor:
            self.names[self._prefix + name] = shape
            return torch.empty(shape, device="meta")

    LM(Asked((), {}.__getitem__, "none", torch.device("meta"), torch.bfloat16), LMConfig())
    names = Asked.names
    split = 6 * 2 * 7  # fused in the file, one tensor a step in a model
    assert len(names) + split == 439
    assert names["transformer.layers.31.self_attn.in_proj_weight"] == (12288, 4096)
    assert names["transformer.layers.0.gating.linear_in.weight"] == (22528, 4096)
    assert names["depformer.layers.5.self_attn.in_proj_weight"] == (8 * 3072, 1024)
    assert names["depformer.layers.5.gating.7.linear_out.weight"] == (1024, 2816)
    assert names["depformer_text_emb.weight"] == (32001, 1024)


@pytest.mark.slow
def test_the_seeded_checkpoint_opens_in_kyutais_own_loader(original: Path) -> None:
    require()
    from moshi.models import loaders

    raw = json.loads((original / "config.json").read_text())
    kwargs = {k: v for k, v in raw.items() if k not in ("mimi_config_name", "model_type")}
    theirs = loaders.get_moshi_lm(original / "model.safetensors", kwargs, dtype=torch.float32)
    mimi = json.loads((original / "mimi_config.json").read_text())
    loaders.get_mimi(original / "tokenizer-e351c8d8-checkpoint125.safetensors", mimi)
    _, tensors = invent_lm(SMALL_LM, 6)
    assert torch.equal(theirs.text_linear.weight, tensors["text_linear.weight"])
