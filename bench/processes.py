"""What the system says of a program and the processes it started: processor time, memory, open files."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

_TICK = os.sysconf("SC_CLK_TCK")


@dataclass(frozen=True)
class Process:
    """One reading of one process, or of several added up."""

    cpu_s: float
    """User and system time so far."""
    memory_mb: float
    """Proportional set size: what is shared is counted once."""
    files: int
    threads: int

    def __add__(self, other: Process) -> Process:
        return Process(
            self.cpu_s + other.cpu_s,
            self.memory_mb + other.memory_mb,
            self.files + other.files,
            self.threads + other.threads,
        )


def process(pid: int) -> Process:
    """A process alone. Raises OSError when it is gone."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    rollup = Path(f"/proc/{pid}/smaps_rollup").read_text()
    pss_kb = next(int(line.split()[1]) for line in rollup.splitlines() if line.startswith("Pss:"))
    files = len(os.listdir(f"/proc/{pid}/fd"))
    return Process((int(fields[11]) + int(fields[12])) / _TICK, pss_kb / 1_000, files, int(fields[17]))


def children(pid: int) -> list[int]:
    """Of all its threads, grandchildren not."""
    tasks = Path(f"/proc/{pid}/task").iterdir()
    return [int(child) for task in tasks for child in (task / "children").read_text().split()]


def family(pid: int) -> Process:
    """A program and its children together."""
    total = process(pid)
    for child in children(pid):
        total += process(child)
    return total
