"""Export: state of training -> a checkpoint folder in Kyutai's layout that LocalEngine loads.

    python -m train.export --state DIR [--folder configs/tiny-moshi]

Writes config.json, model.safetensors and codec.safetensors (float16), tokenizer.model and SHA256SUMS.
`assemble_codec` also joins the codec's separately trained halves into STATE/codec.pt.
"""

from __future__ import annotations

import argparse
import hashlib
import json
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor

from engine.model.config import LMConfig
from engine.model.tiny_codec import TinyNet
from train.codec import load_acoustic
from train.lm import load_codec, tiny_config, tokenizer
from train.semantic import CONFIG

MODEL, CODEC, TOKENIZER = "model.safetensors", "codec.safetensors", "tokenizer.model"
LIMIT = 20_000_000
"""Bytes the committed folder may hold."""


_SHAPE = (
    "dim", "num_heads", "num_layers", "hidden_scale", "context", "max_period", "text_card", "n_q", "dep_q",
    "card", "depformer_dim", "depformer_dim_feedforward", "depformer_num_heads", "depformer_num_layers",
)  # fmt: skip


def assemble_codec(state: Path) -> TinyNet:
    """Acoustic half, semantic half and, where it was refined, the decoder; saved as STATE/codec.pt."""
    net = TinyNet(CONFIG)
    net.load_state_dict(load_acoustic(state).state_dict(), strict=False)
    semantic = torch.load(state / "semantic.pt", map_location="cpu", weights_only=True)["modules"]
    net.semantic.load_state_dict(_under(semantic, "tower."))
    assert net.meaning is not None
    net.meaning.load_state_dict(_under(semantic, "meaning."))
    net.codebook[0] = semantic["book"][0]
    refined = state / "decoder.pt"
    if refined.exists():
        net.decoder.load_state_dict(torch.load(refined, map_location="cpu", weights_only=True)["modules"])
    torch.save(net.state_dict(), state / "codec.pt")
    return net


def _under(tensors: dict[str, Tensor], prefix: str) -> dict[str, Tensor]:
    return {name.removeprefix(prefix): tensor for name, tensor in tensors.items() if name.startswith(prefix)}


def config_json(config: LMConfig, codec: dict[str, Any]) -> dict[str, Any]:
    """Kyutai's config.json with a `codec` section; sampling is greedy, as the agent's lines are canned."""
    shape = {key: getattr(config, key) for key in _SHAPE}
    fixed = {
        "gating": "silu", "norm": "rms_norm_f32", "positional_embedding": "rope", "causal": True,
        "layer_scale": None, "existing_text_padding_id": 3, "existing_text_end_padding_id": 0,
        "depformer_gating": "silu", "depformer_multi_linear": True, "depformer_weights_per_step": True,
        "depformer_pos_emb": "none",
    }  # fmt: skip
    return {
        "model_type": "moshi", "model_id": {"name": "tiny-moshi", "version": 1},
        "moshi_name": MODEL, "mimi_name": CODEC, "tokenizer_name": TOKENIZER, "codec": codec,
        "lm_gen_config": {"temp": 0.0, "temp_text": 0.0, "top_k": 1, "top_k_text": 1},
        **shape, **fixed, "delays": list(config.delays),
    }  # fmt: skip


def write_checkpoint(folder: Path, config: LMConfig, lm: dict[str, Tensor], net: TinyNet, spm: bytes) -> int:
    """Write the folder and its sums; returns the bytes of it. Raises ValueError past LIMIT."""
    folder.mkdir(parents=True, exist_ok=True)
    half = {name: tensor.half().contiguous() for name, tensor in lm.items()}
    save_file(half, folder / MODEL)
    save_file({name: tensor.half().contiguous() for name, tensor in net.state_dict().items()}, folder / CODEC)
    (folder / TOKENIZER).write_bytes(spm)
    (folder / "config.json").write_text(
        json.dumps(config_json(config, net.config.to_json()), indent=2) + "\n"
    )
    names = (MODEL, CODEC, TOKENIZER, "config.json")
    sums = [f"{hashlib.sha256((folder / name).read_bytes()).hexdigest()}  {name}\n" for name in names]
    (folder / "SHA256SUMS").write_text("".join(sums))
    size = sum((folder / name).stat().st_size for name in names)
    if size > LIMIT:
        raise ValueError(f"{folder} is {size} bytes, more than {LIMIT}")
    return size


def export(state: Path, folder: Path) -> int:
    """The newest state of training as a checkpoint; returns its bytes."""
    tokens = tokenizer(state)
    kept = torch.load(state / "lm.pt", map_location="cpu", weights_only=True)["modules"]
    config = tiny_config(len(tokens))
    return write_checkpoint(
        folder, config, _under(kept, "lm."), load_codec(state / "codec.pt"), tokens.serialized_model_proto()
    )


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--state", type=Path, required=True)
    parser.add_argument("--folder", type=Path, default=Path("configs/tiny-moshi"))
    parser.add_argument("--codec-only", action="store_true", help="join the codec's halves and stop")
    chosen = parser.parse_args()
    assemble_codec(chosen.state)
    if not chosen.codec_only:
        print(f"{chosen.folder}: {export(chosen.state, chosen.folder)} bytes")


if __name__ == "__main__":
    main()
