"""A small random checkpoint in Kyutai's layout: `python -m engine.seeded DIR [--seed N]`.

The whole Moshi architecture at dimension 128: config.json, model.safetensors, Mimi's safetensors with its
own JSON, and a sentencepiece model trained on a handful of words. What it says means nothing; it is there to
run the real engine where no weights are. `invent` serves the benches at any size.
"""

from __future__ import annotations

import argparse
import io
import json
import math
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor

from engine.model.config import LMConfig, MimiConfig, SeanetConfig, TransformerConfig
from engine.model.lm import LM
from engine.model.mimi import Mimi
from engine.weights import Weights

TINY_LM = LMConfig(
    dim=128,
    num_heads=4,
    num_layers=4,
    context=250,
    text_card=200,
    card=256,
    depformer_dim=64,
    depformer_dim_feedforward=264,
    depformer_num_heads=4,
    depformer_num_layers=2,
)
TINY_MIMI = MimiConfig(
    SeanetConfig(dimension=64, n_filters=4),
    TransformerConfig(64, 4, 2, 128, 250, "layer_norm", "none", layer_scale=True),
    quantizer_dim=32,
    quantizer_levels=8,
    bins=256,
)
_WORDS = (
    "a about all and are at be but by call can come could day do find for from get give go good had "
    "have he hello her here him his how I if in into is it its just know like look made make many may "
    "me more my name no not now number of on one or other out over people phone said say see she so "
    "some take than thank that the their them then there they this time to two up use was water way "
    "we week were what when where which who will with word would write yes you your please sorry help "
    "order table today tomorrow morning evening "
)


class Invented(Weights):
    """Weights that answer every name with random numbers of the right shape, and remember them in `made`."""

    def __init__(
        self,
        seed: int,
        device: torch.device | str = "cpu",
        dtype: torch.dtype = torch.float32,
        remember: bool = True,
    ) -> None:
        super().__init__((), dict[str, Tensor]().__getitem__, "invented", torch.device(device), dtype)
        self.made: dict[str, Tensor] = {}
        self._random = torch.Generator(device).manual_seed(seed)
        self._remember = remember

    def under(self, part: str) -> Weights:
        child = object.__new__(Invented)
        child.__dict__.update(self.__dict__)
        child._prefix = f"{self._prefix}{part}."
        return child

    def take(self, name: str, *shape: int, dtype: torch.dtype | None = None) -> Tensor:
        tensor = self._invent(self._prefix + name, shape).to(dtype or self.dtype)
        if self._remember:
            self.made[self._prefix + name] = tensor
        return tensor.clone() if self._remember else tensor

    def _invent(self, name: str, shape: tuple[int, ...]) -> Tensor:
        last = name.rsplit(".", 1)[-1]
        if last in ("alpha", "cluster_usage") or (len(shape) == 1 and last == "weight"):
            return torch.ones(shape, device=self.device)
        if last == "bias":
            return torch.zeros(shape, device=self.device)
        if last == "scale":
            return torch.full(shape, 0.3, device=self.device)
        width = 1 if "emb" in name else math.prod(shape[1:])
        numbers = torch.randn(shape, device=self.device, dtype=self.dtype, generator=self._random)
        return numbers * (1.0 / math.sqrt(max(1, width)))

    def finish(self) -> None:
        """Nothing can be missing."""


def invent_lm(config: LMConfig, seed: int) -> tuple[LM, dict[str, Tensor]]:
    """A random model and its tensors by Kyutai's names."""
    weights = Invented(seed)
    return LM(weights, config), weights.made


def invent_mimi(config: MimiConfig, codebooks: int, seed: int) -> tuple[Mimi, dict[str, Tensor]]:
    """A random codec whose speech has a level one can hear, and its tensors."""
    weights = Invented(seed)
    mimi = Mimi(weights, config, codebooks)
    mimi.allocate(1)
    random = torch.Generator().manual_seed(seed)
    rows = torch.zeros(1, dtype=torch.int64)
    with torch.inference_mode():
        codes = torch.randint(0, config.bins, (30, 1, codebooks), generator=random)
        level = torch.stack([mimi.decode_step(frame, rows) for frame in codes])[10:].std()
    last = max((name for name in weights.made if name.startswith("decoder.")), key=_depth)
    weights.made[last] *= 0.1 / level
    tensors = dict(weights.made)
    fresh = Weights.of(tensors, "invented Mimi")
    return Mimi(fresh, config, codebooks), tensors


def _depth(name: str) -> tuple[int, bool]:
    return int(name.split(".")[2]), name.endswith("weight")


def write_tokenizer(path: Path, size: int) -> None:
    """A sentencepiece model of at most `size` pieces with Moshi's specials: unknown 0, 1, 2, padding 3."""
    import sentencepiece

    words = _WORDS.split()
    lines = [" ".join(words[i:] + words[:i]) for i in range(0, len(words), 3)]
    model = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(lines),
        model_writer=model,
        vocab_size=size,
        model_type="bpe",
        character_coverage=1.0,
        unk_id=0,
        bos_id=1,
        eos_id=2,
        pad_id=3,
        minloglevel=2,
        num_threads=1,
    )
    path.write_bytes(model.getvalue())


def lm_json(config: LMConfig) -> dict[str, Any]:
    """The keys Kyutai's own loader understands."""
    plain = {key: value for key, value in asdict(config).items() if value is not None}
    return plain | {"delays": list(config.delays), "causal": True, "layer_scale": None}


def mimi_json(config: MimiConfig) -> dict[str, Any]:
    """Mimi's configuration as `mimi_config_name` holds it."""
    seanet, tower = config.seanet, config.transformer
    return {
        "sample_rate": 24_000,
        "channels": 1,
        "frame_rate": 12.5,
        "seanet": {
            "channels": seanet.channels,
            "dimension": seanet.dimension,
            "causal": True,
            "n_filters": seanet.n_filters,
            "n_residual_layers": seanet.n_residual_layers,
            "activation": "ELU",
            "compress": seanet.compress,
            "dilation_base": seanet.dilation_base,
            "disable_norm_outer_blocks": 0,
            "kernel_size": seanet.kernel_size,
            "residual_kernel_size": seanet.residual_kernel_size,
            "last_kernel_size": seanet.last_kernel_size,
            "norm": "none",
            "pad_mode": "constant",
            "ratios": list(seanet.ratios),
            "true_skip": True,
        },
        "transformer": {
            "d_model": tower.dim,
            "num_heads": tower.heads,
            "num_layers": tower.layers,
            "causal": True,
            "layer_scale": 0.01,
            "context": tower.context,
            "conv_layout": True,
            "max_period": tower.max_period,
            "gating": tower.gating,
            "norm": tower.norm,
            "positional_embedding": "rope",
            "dim_feedforward": tower.feed_forward,
            "input_dimension": tower.dim,
            "output_dimensions": [tower.dim],
        },
        "quantizer": {
            "dimension": config.quantizer_dim,
            "n_q": config.quantizer_levels,
            "bins": config.bins,
            "input_dimension": seanet.dimension,
            "output_dimension": seanet.dimension,
        },
    }


def with_file_extras(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """What Kyutai's files hold beside the weights: a flag for each codebook."""
    books = [name for name in tensors if name.endswith("cluster_usage")]
    flags = {name.replace("cluster_usage", "_initialized"): torch.ones(1) for name in books}
    return {name: tensor.contiguous() for name, tensor in tensors.items()} | flags


def write_checkpoint(
    folder: Path, seed: int = 0, lm: LMConfig = TINY_LM, mimi: MimiConfig = TINY_MIMI
) -> None:
    """Write a whole checkpoint; the same seed gives the same files."""
    folder.mkdir(parents=True, exist_ok=True)
    write_tokenizer(folder / "tokenizer_spm_32k_3.model", lm.text_card)
    save_file(invent_lm(lm, seed)[1], folder / "model.safetensors")
    codec = with_file_extras(invent_mimi(mimi, min(lm.codebooks, mimi.quantizer_levels), seed + 1)[1])
    save_file(codec, folder / "tokenizer-e351c8d8-checkpoint125.safetensors")
    (folder / "mimi_config.json").write_text(json.dumps(mimi_json(mimi), indent=2))
    config = {"model_type": "moshi", "mimi_config_name": "mimi_config.json", **lm_json(lm)}
    (folder / "config.json").write_text(json.dumps(config, indent=2))


def main() -> None:
    parser = argparse.ArgumentParser(
        prog="python -m engine.seeded", description="Write a small random Moshi."
    )
    parser.add_argument("folder", type=Path)
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    write_checkpoint(arguments.folder, arguments.seed)
    print(f"A random Moshi is in {arguments.folder}")


if __name__ == "__main__":
    main()
