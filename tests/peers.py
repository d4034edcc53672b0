"""Drivers of real programs on the loopback: our own gateway, baresip (sipp: sipp_calls). Ports are picked by
the system, configuration lies in the test's folder, nothing outlives its `with`."""

from __future__ import annotations

import contextlib
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
import urllib.request
from pathlib import Path
from types import TracebackType
from typing import Self

import pytest

from tests.audio import Signal, read_wav, write_wav

ROOT = Path(__file__).resolve().parent.parent
LOOPBACK = "127.0.0.1"
ECHO = {"MG_ENGINE__KIND": "echo", "MG_ENGINE__ECHO_DELAY_S": "0", "MG_ENGINE__GREETING": "false"}
"""What comes in goes out at the next frame: the engine of the latency figures."""


Skipped = pytest.skip.Exception
"""Raised by need(): for those who ask outside of a test."""


def need(program: str, package: str) -> str:
    """The program's path; skips the test that asks where it is not installed."""
    path = shutil.which(program)
    if path is None:
        pytest.skip(f"{program} is not installed (Debian package {package})")
    return path


class StallWatch:
    """Notes when this machine stands still: gaps are not the gateway's then."""

    def __init__(self, longest_s: float = 0.015) -> None:
        self.began = time.monotonic()
        self.stalls: list[tuple[float, float]] = []
        """(seconds since the watch began, length in seconds)."""
        self._longest_s = longest_s
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join(5.0)

    def explains(self, at_s: float) -> bool:
        """A stall lies up to two seconds before this time, or just after it."""
        return any(-2.0 <= stall - at_s <= 0.5 for stall, _ in self.stalls)

    def _run(self) -> None:
        due = time.monotonic() + 0.01
        while not self._stop.wait(max(0.0, due - time.monotonic())):
            late = time.monotonic() - due
            if late > self._longest_s:
                self.stalls.append((due - self.began, late))
            due = time.monotonic() + 0.01


def free_udp_port() -> int:
    """A port nobody has now. Only for programs that cannot pick their own."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        probe.bind((LOOPBACK, 0))
        return int(probe.getsockname()[1])


class Program:
    """A child process whose output is read as it comes."""

    def __init__(
        self,
        command: list[str],
        cwd: Path,
        environment: dict[str, str] | None = None,
        commands: int = subprocess.DEVNULL,
    ) -> None:
        """`commands` is its standard input: nothing, or PIPE for a program that is told things there."""
        self.name = Path(command[0]).name
        self._text = ""
        self._changed = threading.Condition()
        self.process = subprocess.Popen(
            command,
            cwd=cwd,
            env=environment,
            stdin=commands,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
        )
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    @property
    def text(self) -> str:
        """All it has said so far."""
        return self._text

    def wait_for(self, pattern: str, within_s: float) -> re.Match[str]:
        """The first match in its output; fails the test when the time is over or the program has ended."""
        with self._changed:
            self._changed.wait_for(lambda: re.search(pattern, self._text) or self._ended(), within_s)
        found = re.search(pattern, self._text)
        assert found, f"{self.name} did not say {pattern!r} in {within_s} s:\n{self._text[-3000:]}"
        return found

    def end(self, number: signal.Signals = signal.SIGTERM, within_s: float = 15.0) -> int:
        """Signal it and wait; the exit code."""
        if self.process.poll() is None:
            self.process.send_signal(number)
        try:
            code = self.process.wait(within_s)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()
            raise AssertionError(f"{self.name} did not end on {number.name}:\n{self._text[-3000:]}") from None
        self._reader.join(5.0)
        return code

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self.process.poll() is None:
            with contextlib.suppress(AssertionError):
                self.end()

    def _ended(self) -> bool:
        return self.process.poll() is not None and not self._reader.is_alive()

    def _read(self) -> None:
        assert self.process.stdout is not None
        while chunk := os.read(self.process.stdout.fileno(), 65_536):
            with self._changed:
                self._text += chunk.decode("utf-8", "replace")
                self._changed.notify_all()
        with self._changed:
            self._changed.notify_all()


class Gateway(Program):
    """`moshi-gateway serve` on free ports of the loopback, ready for calls."""

    def __init__(self, folder: Path, **settings: str) -> None:
        """Settings are environment variables; by default the engine is an echo without delay."""
        environment = {name: value for name, value in os.environ.items() if not name.startswith("MG_")}
        environment |= ECHO | {
            "MG_HTTP__PORT": "0",
            "MG_SIP__HOST": LOOPBACK,
            "MG_SIP__PORT": "0",
            "MG_SIP__RTP_PORTS": "0,0",
            "PYTHONPATH": str(ROOT),
        }
        super().__init__([sys.executable, "-m", "gateway", "serve"], folder, environment | settings)
        ready = self.wait_for(r"is ready[^\n]*\n(?:.*\n)*?.*(http\S+)\n(?:.*\n)*?.*(sip:\S+)\n", 90.0)
        self.page, self.uri = ready[1], ready[2]
        self.sip_port = int(self.uri.rpartition(":")[2])

    def metrics(self) -> dict[str, float]:
        """Every sample of /metrics by its name with labels, such as `engine_slots{state="used"}`."""
        with urllib.request.urlopen(self.page + "metrics", timeout=10) as answer:
            lines = answer.read().decode().splitlines()
        return {name: float(value) for name, value in (ln.rsplit(" ", 1) for ln in lines if ln[:1] != "#")}

    def slots_used(self) -> int:
        return int(self.metrics()['engine_slots{state="used"}'])

    def wait_for_slots(self, used: int, within_s: float) -> float:
        """Until so many slots are used; the seconds it took."""
        began = time.monotonic()
        pause = threading.Event()
        while (now := self.slots_used()) != used:
            waited = time.monotonic() - began
            assert waited < within_s, (
                f"{now} slots are used after {waited:.1f} s, not {used}:\n{self.text[-3000:]}"
            )
            pause.wait(0.1)
        return time.monotonic() - began


BARESIP_CONFIG = """\
poll_method epoll
sip_listen {address}:0
net_interface {address}
audio_source aufile,{source}
audio_player aubridge,none
audio_alert aubridge,none
ausrc_srate {rate}
auplay_srate {rate}
ausrc_channels 1
auplay_channels 1
audio_buffer 20-160
jitter_buffer_delay {jitter}
module_path {modules}
module {codec}.so
module aufile.so
module aubridge.so
module sndfile.so
module_app account.so
module_app menu.so
opus_bitrate 64000
snd_path {recordings}
"""
CODECS = {
    "PCMU": ("g711", "PCMU/8000/1"),
    "PCMA": ("g711", "PCMA/8000/1"),
    "G722": ("g722", "G722/16000/1"),
    "opus": ("opus", "opus/48000/2"),
}
"""baresip's module and name for a codec."""


class Baresip(Program):
    """One baresip that dials a URI, says a signal, and records what it sent and what it received.

    Its recording is taken behind its decoder, packet by packet as they arrive: with `jitter` 0-0 nothing of
    its own stands between the wire and the file.
    """

    def __init__(
        self, folder: Path, uri: str, speech: Signal, rate: int = 8_000, codec: str = "PCMU"
    ) -> None:
        self.recordings = folder / "recordings"
        self.recordings.mkdir(parents=True)
        modules = next(
            Path(p)
            for p in ("/usr/lib/baresip/modules", "/usr/local/lib/baresip/modules")
            if Path(p).is_dir()
        )
        source = write_wav(folder / "speech.wav", speech, rate)
        module, name = CODECS[codec]
        (folder / "config").write_text(
            BARESIP_CONFIG.format(
                address=LOOPBACK,
                source=source,
                rate=rate,
                jitter="0-0",
                modules=modules,
                recordings=self.recordings,
                codec=module,
            )
        )
        (folder / "accounts").write_text(f"<sip:caller@{LOOPBACK}>;regint=0;audio_codecs={name}\n")
        (folder / "contacts").write_text("")
        program = need("baresip", "baresip-core")
        super().__init__([program, "-f", str(folder), "-e", f"/dial {uri}"], folder)

    def established(self, within_s: float = 15.0) -> Self:
        self.wait_for("Call established", within_s)
        return self

    def talk_for(self, seconds: float) -> Self:
        """Stay in the call; fails the test when it ends before."""
        with self._changed:
            ended = self._changed.wait_for(lambda: self._ended() or "terminated" in self._text, seconds)
        assert not ended, f"the call ended early:\n{self._text[-3000:]}"
        return self

    def hang_up(self) -> tuple[Signal, Signal]:
        """BYE, and the two recordings: what was sent and what was heard, both from the call's start."""
        self.end()
        (sent,) = self.recordings.glob("dump-*-enc.wav")
        (heard,) = self.recordings.glob("dump-*-dec.wav")
        return read_wav(sent)[0], read_wav(heard)[0]
