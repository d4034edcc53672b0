"""Start: a committed checkpoint -> a state of training that goes on from its weights.

    python -m train.start --state DIR [--folder configs/tiny-moshi]

Optimisers and averages begin afresh; every stage then goes on as if it had been resumed at its first step.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import torch
from safetensors.torch import load_file
from torch import Tensor


def start(state: Path, folder: Path) -> None:
    """Write the tokenizer and the state of every stage, but for what exists."""
    state.mkdir(parents=True, exist_ok=True)
    codec = _floats(folder / "codec.safetensors")
    language = _floats(folder / "model.safetensors")
    acoustic = {f"net.{name}": tensor for name, tensor in codec.items() if not name.startswith("meaning.")}
    decoder = {name[8:]: tensor for name, tensor in codec.items() if name.startswith("decoder.")}
    if not (state / "tokenizer.model").exists():
        (state / "tokenizer.model").write_bytes((folder / "tokenizer.model").read_bytes())
    if not (state / "codec.pt").exists():
        torch.save(codec, state / "codec.pt")
    _begin(state / "acoustic.pt", acoustic)
    _begin(state / "decoder.pt", decoder)
    tower = {name[9:]: tensor for name, tensor in codec.items() if name.startswith("semantic.")}
    semantic = {f"{place}.{name}": tensor for place in ("tower", "teacher") for name, tensor in tower.items()}
    semantic |= {name: tensor for name, tensor in codec.items() if name.startswith("meaning.")}
    _begin(state / "semantic.pt", semantic | {"book": codec["codebook"][:1]})
    _begin(state / "lm.pt", {f"lm.{name}": tensor for name, tensor in language.items()})


def _floats(path: Path) -> dict[str, Tensor]:
    return {name: tensor.float() for name, tensor in load_file(path).items()}


def _begin(path: Path, modules: dict[str, Tensor]) -> None:
    """A checkpoint of train/loop.py that has weights and no past."""
    if not path.exists():
        torch.save({"modules": modules, "active_s": 0.0, "steps": 0}, path)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--state", type=Path, required=True)
    parser.add_argument("--folder", type=Path, default=Path("configs/tiny-moshi"))
    chosen = parser.parse_args()
    start(chosen.state, chosen.folder)


if __name__ == "__main__":
    main()
