"""Tensor files of a checkpoint as named tensors: plain safetensors, int8 dequantised, LoRA merged.

Each is a mapping name -> tensor that reads on demand, so loading never holds a model twice.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from engine.weights import CheckpointError, Weights

_SCALES = "_scb"


class SafetensorsFile(Mapping[str, Tensor]):
    """Raises CheckpointError for a file that is not safetensors or is cut short."""

    def __init__(self, path: Path) -> None:
        self.path = path
        try:
            self._file: Any = safe_open(str(path), "pt")
            names: Any = self._file.keys()  # type: ignore[no-untyped-call]
            self._names: list[str] = list(names)
            self._known = frozenset(self._names)
        except (SafetensorError, OSError) as error:
            raise CheckpointError(
                f"{path} is not a readable safetensors file ({error}). Delete it and download it again."
            ) from error

    def __getitem__(self, name: str) -> Tensor:
        if name not in self:
            raise KeyError(name)
        tensor: Tensor = self._file.get_tensor(name)
        return tensor

    def __contains__(self, name: object) -> bool:
        return name in self._known

    def __iter__(self) -> Iterator[str]:
        return iter(self._names)

    def __len__(self) -> int:
        return len(self._names)


class Dequantized(Mapping[str, Tensor]):
    """Row-wise int8 (`weight` with `weight_scb`, bitsandbytes): real = W * scb / 127."""

    def __init__(self, tensors: Mapping[str, Tensor]) -> None:
        self._tensors = tensors

    def __getitem__(self, name: str) -> Tensor:
        tensor = self._tensors[name]
        if tensor.dtype != torch.int8:
            return tensor
        if name + _SCALES not in self._tensors:
            raise CheckpointError(f"{name} is int8 but {name + _SCALES}, its row scales, is missing")
        scales = self._tensors[name + _SCALES].float()
        return tensor.float() * (scales.view(-1, 1) / 127.0)

    def __iter__(self) -> Iterator[str]:
        return (name for name in self._tensors if not name.endswith(_SCALES))

    def __len__(self) -> int:
        return sum(1 for _ in self)


class Merged(Mapping[str, Tensor]):
    """Base weights plus scaling * B @ A for each low-rank pair (arXiv 2106.09685, Kyutai modules/lora.py).

    The multi-step attention tensors may be fused in one file and split in the other.
    """

    def __init__(self, base: Mapping[str, Tensor], lora: Mapping[str, Tensor], scaling: float) -> None:
        self._base, self._lora, self._scaling = base, lora, scaling
        self._stems: dict[str, list[tuple[str, int | None]]] = {}
        for name in lora:
            if name.endswith(".lora_A.weight"):
                stem = name.removesuffix(".lora_A.weight")
                target, part = self._target(stem)
                self._stems.setdefault(target, []).append((stem, part))

    def _target(self, stem: str) -> tuple[str, int | None]:
        """The base tensor a pair belongs to, and which of its parts; raises CheckpointError where none."""
        split = re.fullmatch(r"(.*\.)(in|out)_projs\.(\d+)", stem)
        fused = re.fullmatch(r"(.*\.)(in|out)_proj", stem)
        names: list[tuple[str, int | None]] = [(f"{stem}.weight", None)]
        if split:
            head, side, part = split[1], split[2], int(split[3])
            names += [(f"{head}{side}_proj_weight", part), (f"{head}{side}_proj.weight", part)]
        if fused:
            names.append((f"{stem}_weight", None))
        for name, part_number in names:
            if name in self._base:
                return name, part_number
        raise CheckpointError(f"the LoRA file has {stem}, the model has not: it was tuned on another")

    def __getitem__(self, name: str) -> Tensor:
        tensor = self._base[name]
        pairs = self._stems.get(name)
        if pairs is None:
            return tensor
        merged = tensor.float().clone()
        for stem, part in pairs:
            change = self._change(stem)
            rows = (
                slice(None) if part is None else slice(part * change.shape[0], (part + 1) * change.shape[0])
            )
            if merged[rows].shape != change.shape:
                raise CheckpointError(
                    f"LoRA {stem} has shape {tuple(change.shape)}, {name} {tuple(tensor.shape)}"
                )
            merged[rows] += change
        return merged.to(tensor.dtype)

    def _change(self, stem: str) -> Tensor:
        try:
            a, b = self._lora[f"{stem}.lora_A.weight"].float(), self._lora[f"{stem}.lora_B.weight"].float()
        except KeyError as error:
            raise CheckpointError(f"the LoRA file has {stem}.lora_A.weight without lora_B.weight") from error
        rank = b.shape[1]
        if rank == 0 or a.shape[0] % rank:
            raise CheckpointError(f"LoRA {stem}: A {tuple(a.shape)} and B {tuple(b.shape)} do not multiply")
        parts = a.shape[0] // rank
        changes = torch.bmm(b.view(parts, -1, rank), a.view(parts, rank, -1))
        return changes.flatten(0, 1) * self._scaling

    def __iter__(self) -> Iterator[str]:
        return iter(self._base)

    def __len__(self) -> int:
        return len(self._base)


def open_weights(
    path: Path, device: torch.device, dtype: torch.dtype, lora: Path | None = None, scaling: float = 2.0
) -> Weights:
    """The tensors of a file, dequantised and merged, as the model takes them."""
    tensors: Mapping[str, Tensor] = Dequantized(SafetensorsFile(path))
    if lora is not None:
        tensors = Merged(tensors, SafetensorsFile(lora), scaling)
    return Weights(tensors, tensors.__getitem__, str(path), device, dtype)
