"""What every bench prints: a table for people, then one JSON line for programs.

    from report import Report, arguments

    options = arguments(__doc__)                 # --quick, --json FILE, and --speech DIR where asked for
    report = Report("media_load", options)
    report.row(calls=100, core_percent=0.06, late_p99_ms=0.4)
    report.finish(calibration_s=0.12)

`--quick` must end within 60 s. The JSON holds the rows, the totals and the machine; `--json FILE` writes
the same line to a file as well.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import sys
import time
from importlib import metadata
from pathlib import Path
from typing import Any

SPEECH = Path(__file__).resolve().parent.parent / "tests" / "data" / "speech"
"""The few recordings that the tests carry; a fuller folder has the same names."""
LIBRARIES = ("numpy", "torch", "numba", "aiortc", "av", "pipecat-ai")


def arguments(doc: str | None, speech: bool = False, **more: Any) -> argparse.Namespace:
    """The options of every bench, and its own: `calls=dict(type=int, default=4)` adds --calls."""
    parser = argparse.ArgumentParser(description=(doc or "").split("\n\n")[0])
    parser.add_argument("--quick", action="store_true", help="fewer and shorter runs, at most 60 s")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the JSON line here too")
    if speech:
        parser.add_argument(
            "--speech", type=Path, metavar="DIR", default=SPEECH, help="folder of speech files"
        )
    for name, settings in more.items():
        parser.add_argument(f"--{name.replace('_', '-')}", **settings)
    return parser.parse_args()


class Report:
    """Collects the rows of one bench and prints them when it is done."""

    def __init__(self, bench: str, options: argparse.Namespace) -> None:
        self.bench = bench
        self.options = options
        self.rows: list[dict[str, Any]] = []
        self._began = time.monotonic()

    def row(self, **values: Any) -> None:
        """One measured case; the names are the columns, with the unit at their end."""
        self.rows.append(values)
        shown = "  ".join(f"{name}={_shown(value)}" for name, value in values.items())
        print(f"  {shown}", file=sys.stderr)  # progress; the table follows at the end

    def finish(self, **totals: Any) -> None:
        """Print table and JSON line. `totals` are figures of the whole run."""
        print(table(self.rows))
        for name, value in totals.items():
            print(f"{name}: {_shown(value)}")
        result = {
            "bench": self.bench,
            "quick": self.options.quick,
            "rows": self.rows,
            **totals,
            "took_s": round(time.monotonic() - self._began, 1),
            "machine": machine(),
        }
        line = json.dumps(result, default=float)
        print(line)
        if self.options.json:
            self.options.json.write_text(line + "\n")


def table(rows: list[dict[str, Any]]) -> str:
    """Columns in the order in which they first appear, numbers to the right."""
    columns = list(dict.fromkeys(name for row in rows for name in row))
    cells = [columns, *([_shown(row.get(name, "")) for name in columns] for row in rows)]
    widths = [max(len(line[at]) for line in cells) for at in range(len(columns))]
    lines = ["  ".join(text.rjust(width) for text, width in zip(line, widths, strict=True)) for line in cells]
    return "\n".join([lines[0], "  ".join("-" * width for width in widths), *lines[1:]])


def machine() -> dict[str, Any]:
    """What figures depend on: processor, cores, load, memory, GPU, versions. Nothing that names a host."""
    return {
        "processor": _processor(),
        "cores": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
        "load_1m": round(os.getloadavg()[0], 2),
        "memory_gib": round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30, 1),
        "gpu": _gpu(),
        "system": f"{platform.system()} {platform.machine()}",
        "python": platform.python_version(),
        "versions": {name: version for name in LIBRARIES if (version := _version(name))},
    }


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor()
    return next((line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")), "unknown")


def _gpu() -> str | None:
    """Only where torch is loaded already: a media bench does not pay for importing it."""
    torch = sys.modules.get("torch")
    return torch.cuda.get_device_name(0) if torch is not None and torch.cuda.is_available() else None


def _version(name: str) -> str | None:
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return None


def _shown(value: Any) -> str:
    if isinstance(value, bool) or not isinstance(value, float):
        return str(value)
    return f"{value:.4g}" if abs(value) < 1 else f"{value:.4f}".rstrip("0").rstrip(".")
