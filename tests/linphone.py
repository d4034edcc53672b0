"""linphone as a phone: linphonec without a sound card, told what to do on its standard input."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

from tests.audio import Signal, read_wav, write_wav
from tests.peers import LOOPBACK, Program, free_udp_port, need

CONFIG = """\
[sip]
sip_port={port}
sip_tcp_port={port}
sip_tls_port=0
contact=sip:{user}@{address}
guess_hostname=0
default_proxy=-1
use_ipv6=0
[rtp]
audio_rtp_port=-1
[sound]
echocancellation=0
"""


class Linphone(Program):
    """One linphonec; it says `speech` in its calls and records what it hears in the last of them."""

    def __init__(self, folder: Path, user: str, speech: Signal, answers: bool = False) -> None:
        program = need("linphonec", "linphone-cli")
        (folder / ".local/share/linphone").mkdir(parents=True)
        self.port = free_udp_port()
        self.uri = f"sip:{user}@{LOOPBACK}:{self.port}"
        self._recording = folder / "heard.wav"
        config = folder / "config"
        config.write_text(CONFIG.format(port=self.port, user=user, address=LOOPBACK))
        command = [program, "-c", str(config), "-b", os.devnull, "-d", "0", *(["-a"] if answers else [])]
        super().__init__(command, folder, {**os.environ, "HOME": str(folder)}, commands=subprocess.PIPE)
        self.tell("soundcard use files")
        self.tell(f"play {write_wav(folder / 'speech.wav', speech, 8_000)}")
        self.tell(f"record {self._recording}")
        self.wait_for("record ", 15.0)

    def tell(self, command: str) -> None:
        """Give a command of its prompt, such as `call`, `pause`, `transfer`, `terminate`."""
        assert self.process.stdin is not None
        self.process.stdin.write(f"{command}\n".encode())
        self.process.stdin.flush()

    def dial(self, uri: str) -> None:
        self.tell(f"call {uri}")
        self.wait_for(f"Media streams established with {uri}", 15.0)

    def heard(self) -> Signal:
        """Hang up, end, and what was heard."""
        self.tell("terminate")
        self.wait_for("ended", 5.0)
        self.tell("quit")
        self.process.wait(10.0)
        return read_wav(self._recording)[0]
