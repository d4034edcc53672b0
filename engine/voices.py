"""Voice prompts: the agent's first frames as PersonaPlex stores them.

A voice is `embeddings` (T, 1, 1, dim), the model's input of its first T frames, and `cache`
(1, n_q + 1, max_delay + 3), the ring of tokens after them (NVIDIA personaplex moshi/models/lm.py
`_step_voice_prompt_core`); or `codes` (T, dep_q), the codec's tokens of a recording.
"""

from __future__ import annotations

import pickle
import tarfile
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from engine.weights import CheckpointError

_MAX_VOICES = 1_000
_MAX_BYTES = 256 * 2**20


@dataclass(frozen=True, slots=True)
class Voice:
    """Either `codes` or `embeddings` with `cache`."""

    codes: Tensor | None = None
    """(T, agent codebooks) int64"""
    embeddings: Tensor | None = None
    """(T, dim)"""
    cache: Tensor | None = None
    """(n_q + 1, max_delay + 3) int64"""


def load_voice(path: Path) -> Voice:
    """Raises CheckpointError for anything but tensors of those names. Nothing in the file is executed."""
    try:
        if path.suffix == ".safetensors":
            state = load_file(str(path))
        else:
            state = torch.load(path, map_location="cpu", weights_only=True)
        if "codes" in state:
            return Voice(codes=state["codes"].long())
        embeddings = state["embeddings"]
        return Voice(None, embeddings.reshape(embeddings.shape[0], -1), state["cache"][0].long())
    except (
        OSError,
        RuntimeError,
        KeyError,
        TypeError,
        AttributeError,
        SafetensorError,
        pickle.UnpicklingError,
    ) as error:
        raise CheckpointError(f"voice {path.stem}: not a voice prompt ({type(error).__name__})") from error


def unpack_voices(archive: Path) -> Path:
    """Unpack voices.tgz beside itself once; only its plain .pt and .safetensors files, by base name."""
    folder = archive.with_name("voices")
    if folder.is_dir():
        return folder
    partial = archive.with_name("voices.partial")
    partial.mkdir(exist_ok=True)
    with tarfile.open(archive) as tar:
        for member in tar.getmembers()[:_MAX_VOICES]:
            name = Path(member.name).name
            source = tar.extractfile(member) if member.isfile() and member.size <= _MAX_BYTES else None
            if (
                source is not None
                and Path(name).suffix in (".pt", ".safetensors")
                and not name.startswith(".")
            ):
                (partial / name).write_bytes(source.read())
    partial.rename(folder)
    return folder
