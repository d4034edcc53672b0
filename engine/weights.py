"""Weights: the tensors of one file, taken by name and shape: nothing missing, extra or misshapen."""

from __future__ import annotations

from collections.abc import Callable, Iterable

import torch
from torch import Tensor

from engine.api import EngineError


class CheckpointError(EngineError):
    """A checkpoint cannot be used; the message names the file, what is wrong and what to do."""


class _Source:
    """Where tensors come from, which were taken, and what was wrong."""

    def __init__(self, names: Iterable[str], read: Callable[[str], Tensor], label: str) -> None:
        self.names = set(names)
        self.read = read
        self.label = label
        self.taken: set[str] = set()
        self.faults: list[str] = []


class Weights:
    """A view of a source under a prefix; `take` converts to the device and (if floating) the dtype."""

    def __init__(
        self,
        names: Iterable[str],
        read: Callable[[str], Tensor],
        label: str,
        device: torch.device,
        dtype: torch.dtype,
    ) -> None:
        self._source = _Source(names, read, label)
        self._prefix = ""
        self.float8 = False
        """Matrices are to be held as float8 with a scale a column."""
        self.device, self.dtype = device, dtype

    @classmethod
    def of(
        cls,
        tensors: dict[str, Tensor],
        label: str = "memory",
        device: torch.device | str = "cpu",
        dtype: torch.dtype = torch.float32,
    ) -> Weights:
        return cls(tensors, tensors.__getitem__, label, torch.device(device), dtype)

    def under(self, part: str) -> Weights:
        """The same source with a longer prefix."""
        child = object.__new__(Weights)
        child._source = self._source
        child._prefix = f"{self._prefix}{part}."
        child.device, child.dtype, child.float8 = self.device, self.dtype, self.float8
        return child

    def has(self, name: str) -> bool:
        return self._prefix + name in self._source.names

    def spelling(self, *names: str) -> str:
        """The first of the names that is there; the first one where none is."""
        return next((name for name in names if self.has(name)), names[0])

    def take(self, name: str, *shape: int, dtype: torch.dtype | None = None) -> Tensor:
        """The tensor of that name. A fault is remembered and an empty tensor returned: see `finish`."""
        full = self._prefix + name
        wanted = dtype or self.dtype
        if full not in self._source.names:
            self._source.faults.append(f"missing {full}, expected shape {shape}")
            return torch.empty(shape, device=self.device, dtype=wanted)
        self._source.taken.add(full)
        tensor = self._source.read(full)
        if tuple(tensor.shape) != shape:
            self._source.faults.append(f"{full} has shape {tuple(tensor.shape)}, expected {shape}")
            return torch.empty(shape, device=self.device, dtype=wanted)
        return tensor.to(device=self.device, dtype=wanted)

    def ignore(self, name: str) -> None:
        """Mark a tensor that inference does not need, if it is there."""
        self._source.taken.add(self._prefix + name)

    def ignore_under(self, part: str) -> None:
        """Mark every tensor below a prefix."""
        prefix = f"{self._prefix}{part}."
        self._source.taken |= {name for name in self._source.names if name.startswith(prefix)}

    def finish(self) -> None:
        """Raises CheckpointError naming every missing, misshapen or unknown tensor (the first ten)."""
        extra = [f"unknown tensor {name}" for name in sorted(self._source.names - self._source.taken)]
        faults = self._source.faults + extra
        if faults:
            listed = "; ".join(faults[:10]) + (f"; and {len(faults) - 10} more" if len(faults) > 10 else "")
            raise CheckpointError(
                f"{self._source.label} does not fit its config.json: {listed}. "
                "Check that config.json and the weights come from the same repository and revision."
            )
