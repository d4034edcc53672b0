"""A softphone that does as told while it is in a call: baresip with its control socket, and the gateway's
operators' API as a peer sees it."""

from __future__ import annotations

import datetime
import ipaddress
import json
import socket
import threading
import time
import urllib.error
import urllib.request
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec

from tests.audio import Signal, read_wav, write_wav
from tests.peers import LOOPBACK, Gateway, Program, free_udp_port, need

KEY = "an operator's key of the tests"
CONFIG = """\
poll_method epoll
sip_listen {address}:{port}
net_interface {address}
audio_source aufile,{source}
audio_player aubridge,none
audio_alert aubridge,none
ausrc_srate 8000
auplay_srate 8000
ausrc_channels 1
auplay_channels 1
audio_buffer 20-160
jitter_buffer_delay 0-0
rtp_stats yes
module_path {modules}
module g711.so
module aufile.so
module aubridge.so
module sndfile.so
module srtp.so
module_app account.so
module_app menu.so
module_app ctrl_tcp.so
ctrl_tcp_listen {address}:{control}
snd_path {recordings}
"""


@dataclass(frozen=True)
class Line:
    """How a softphone is set up."""

    answers: bool = False
    """Takes calls at once."""
    parameters: str = ""
    """Of its account, such as `;mediaenc=srtp-mand`."""
    transport: str = "udp"


class Softphone(Program):
    """One baresip that waits for commands."""

    def __init__(self, folder: Path, speech: Signal, line: Line = Line()) -> None:
        self.recordings = folder / "recordings"
        self.recordings.mkdir(parents=True)
        self.port, self._control_port = free_udp_port(), free_tcp_port()
        folders = (Path("/usr/lib/baresip/modules"), Path("/usr/local/lib/baresip/modules"))
        program = need("baresip", "baresip-core")
        text = CONFIG.format(
            address=LOOPBACK,
            port=self.port,
            source=write_wav(folder / "speech.wav", speech, 8_000),
            modules=next(path for path in folders if path.is_dir()),
            recordings=self.recordings,
            control=self._control_port,
        )
        (folder / "config").write_text(text)
        answer = ";answermode=auto" if line.answers else ""
        account = f"<sip:phone@{LOOPBACK};transport={line.transport}>;regint=0;audio_codecs=PCMU/8000/1"
        (folder / "accounts").write_text(f"{account}{answer}{line.parameters}\n")
        (folder / "contacts").write_text("")
        super().__init__([program, "-f", str(folder)], folder)
        self.wait_for("baresip is ready", 15.0)
        self._control = socket.create_connection((LOOPBACK, self._control_port), 10.0)

    @property
    def uri(self) -> str:
        return f"sip:phone@{LOOPBACK}:{self.port}"

    def tell(self, command: str, parameters: str = "") -> None:
        """Give a command of its menu, such as `dial`, `hold`, `resume`, `sndcode`, `hangup`."""
        body = json.dumps({"command": command, "params": parameters})
        self._control.sendall(f"{len(body)}:{body},".encode())

    def dial(self, uri: str) -> None:
        self.tell("dial", uri)
        self.wait_for("Call established", 20.0)

    def heard(self) -> Signal:
        """Hang up, end, and what was heard since the call began, or was resumed."""
        self.tell("hangup")
        self.wait_for("terminated", 5.0)
        self.end()
        return read_wav(max(self.recordings.glob("dump-*-dec.wav")))[0]


class Desk:
    """An operator's view of a gateway that was started with `operated()`."""

    def __init__(self, gateway: Gateway) -> None:
        port = gateway.wait_for(r"operators' API listens on \S+ port (\d+)", 10.0)[1]
        self.url = f"http://{LOOPBACK}:{port}/v1"

    def ask(self, method: str, path: str, body: object = None, within_s: float = 60.0) -> tuple[int, Any]:
        """The status and the JSON of the answer."""
        request = urllib.request.Request(self.url + path, method=method)
        request.add_header("Authorization", f"Bearer {KEY}")
        data = None
        if body is not None:
            data = json.dumps(body).encode()
            request.add_header("Content-Type", "application/json")
        try:
            with urllib.request.urlopen(request, data, timeout=within_s) as answer:
                return answer.status, json.load(answer)
        except urllib.error.HTTPError as error:
            return error.code, json.load(error)

    def call(self, number: int = 0) -> dict[str, Any]:
        """One of the live calls, oldest first."""
        return dict(self.ask("GET", "/calls")[1]["calls"][number])

    def until(self, within_s: float = 15.0, **wanted: object) -> dict[str, Any]:
        """The first live call once it shows these values."""
        deadline, pause = time.monotonic() + within_s, threading.Event()
        seen: object = None
        while time.monotonic() < deadline:
            calls = self.ask("GET", "/calls")[1]["calls"]
            seen = calls
            if calls and all(calls[0][name] == value for name, value in wanted.items()):
                return dict(calls[0])
            pause.wait(0.05)
        raise AssertionError(f"no call became {wanted}: {seen}")

    def told(self, call_id: str) -> list[dict[str, Any]]:
        """Every message of a call that is over, stats aside."""
        request = urllib.request.Request(f"{self.url}/calls/{call_id}/events")
        request.add_header("Authorization", f"Bearer {KEY}")
        with urllib.request.urlopen(request, timeout=10) as answer:
            lines = answer.read().decode().splitlines()
        messages = [json.loads(line[5:]) for line in lines if line.startswith("data:")]
        return [message for message in messages if message["type"] != "stats"]


def operated(**settings: str) -> dict[str, str]:
    """Settings of a gateway with an operators' API on a free port."""
    return {"MG_ADMIN__PORT": "0", "MG_ADMIN__KEY": KEY, **settings}


def free_tcp_port() -> int:
    """A port nobody has now. Only for programs that cannot pick their own."""
    with socket.socket() as probe:
        probe.bind((LOOPBACK, 0))
        return int(probe.getsockname()[1])


def self_signed(folder: Path) -> tuple[Path, Path]:
    """A certificate for the loopback and its key, as PEM files."""
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, LOOPBACK)])
    now = datetime.datetime.now(datetime.UTC)
    certificate = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - datetime.timedelta(days=1))
        .not_valid_after(now + datetime.timedelta(days=2))
        .add_extension(x509.SubjectAlternativeName([x509.IPAddress(ipaddress.ip_address(LOOPBACK))]), False)
        .sign(key, hashes.SHA256())
    )
    cert_file, key_file = folder / "cert.pem", folder / "key.pem"
    cert_file.write_bytes(certificate.public_bytes(serialization.Encoding.PEM))
    pem, pkcs8 = serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8
    key_file.write_bytes(key.private_bytes(pem, pkcs8, serialization.NoEncryption()))
    return cert_file, key_file
