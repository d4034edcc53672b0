"""tshark on the loopback: what really was on the wire, and when."""

from __future__ import annotations

import os
import subprocess
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Self

import pytest

from tests.peers import Program, need

HEADER_BYTES = 24
"""A capture file's own header; dumpcap writes it once it listens."""


@dataclass(frozen=True)
class Packet:
    """One RTP packet on the wire."""

    at: float
    """Seconds."""
    sequence: int
    timestamp: int
    marker: bool
    ssrc: str
    kind: int
    """Payload type."""
    size: int
    """Bytes of payload."""


class Capture(Program):
    """All UDP of the loopback from now on; skips the test where this user may not capture."""

    def __init__(self, folder: Path) -> None:
        self.file = folder / "wire.pcap"
        command = [need("tshark", "tshark"), "-q", "-i", "lo", "-f", "udp", "-F", "pcap"]
        command += ["-w", str(self.file)]
        super().__init__(command, folder, {**os.environ, "HOME": str(folder)})
        deadline = time.monotonic() + 15.0
        while not (self.file.exists() and self.file.stat().st_size >= HEADER_BYTES):
            if self.process.poll() is not None or time.monotonic() > deadline:
                self.end()
                pytest.skip(f"tshark may not capture here: {self.text.strip()[-200:]}")
            time.sleep(0.05)

    def stop(self) -> Self:
        """Nothing is added after this."""
        self.end()
        return self

    def rtp_from(self, port: int) -> list[Packet]:
        """What was sent from a UDP port as RTP, in order."""
        names = ("seq", "timestamp", "marker", "ssrc", "p_type")
        fields = ["frame.time_epoch", *(f"rtp.{name}" for name in names), "udp.length"]
        rows = self._fields(f"udp.srcport=={port} && rtp", f"udp.port=={port},rtp", fields)
        return [
            Packet(float(at), int(seq), int(ts), mark in ("1", "True"), ssrc, int(kind), int(size) - 8 - 12)
            for at, seq, ts, mark, ssrc, kind, size in rows
        ]

    def _fields(self, wanted: str, decode: str, fields: list[str]) -> list[list[str]]:
        command = ["tshark", "-r", str(self.file), "-Y", wanted, "-d", decode, "-T", "fields"]
        command += [word for name in fields for word in ("-e", name)]
        run = subprocess.run(command, capture_output=True, text=True, timeout=60, check=True)
        return [line.split("\t") for line in run.stdout.splitlines()]
