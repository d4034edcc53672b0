"""Who calls in sip_load: sipp with scenarios good and bad, raw sockets, and the servers that are called."""

from __future__ import annotations

import os
import random
import secrets
import socket
import subprocess
import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from tests.audio import steady_noise, write_wav
from tests.peers import LOOPBACK, Gateway, Program, free_udp_port, need
from tests.rtp_caller import to_mulaw
from tests.sipp_calls import uac

RTP_TIMEOUT_S = 2
PCMU = "a=rtpmap:0 PCMU/8000"
CANCEL = """\
  <send><![CDATA[
CANCEL sip:[service]@[remote_ip]:[remote_port] SIP/2.0
Via: SIP/2.0/[transport] [local_ip]:[local_port];branch=[branch-2];rport
Max-Forwards: 70
From: <sip:sipp@[local_ip]:[local_port]>;tag=[pid]t[call_number]
To: <sip:[service]@[remote_ip]:[remote_port]>
Call-ID: [call_id]
CSeq: 1 CANCEL
Content-Length: 0

]]></send>
"""
BYE = '  <send retrans="500"><![CDATA[\nBYE'
TRYING = '  <recv response="100" optional="true"/>'
BAD_CALLS = {
    "cancelled at once": "CANCEL back to back with INVITE",
    "cancelled late": "CANCEL once 100 is here, crossing the 200",
    "no ACK": "the 200 is never acknowledged",
    "vanished": "acknowledged, then nothing: no audio, no BYE, no answer to ours",
    "fell silent": "a second of audio, then as above",
    "no codec": "an offer of G.729 alone, refused with 488",
    "hung up twice": "BYE, and the same BYE again under another branch",
}
"""What a caller does instead of a call as calls should be."""


@dataclass(frozen=True)
class Load:
    """One run of sipp."""

    calls: int
    rate: int
    scenario: str
    limit_s: float = 300.0


class Caller:
    """sipp against one server."""

    def __init__(self, folder: Path, port: int) -> None:
        self.folder, self.port = folder, port
        self.runs = 0
        folder.mkdir(exist_ok=True)

    def run(self, load: Load) -> dict[str, str]:
        """Place the calls; the last line of sipp's statistics."""
        self.runs += 1
        folder = self.folder / f"run{self.runs}"
        folder.mkdir()
        (folder / "scenario.xml").write_text(load.scenario)
        command = [need("sipp", "sip-tester"), f"{LOOPBACK}:{self.port}", "-i", LOOPBACK]
        command += ["-sf", "scenario.xml", "-s", "moshi", "-nostdin", "-p", str(free_udp_port())]
        command += ["-m", str(load.calls), "-r", str(load.rate), "-l", str(load.calls)]
        command += ["-mp", str(random.randrange(10_000, 15_000) * 2)]
        command += ["-trace_stat", "-stf", "statistics.csv", "-fd", "1", "-max_socket", "60000"]
        command += ["-timeout", str(int(load.limit_s))]
        quiet = subprocess.DEVNULL
        subprocess.run(
            command,
            cwd=folder,
            stdin=quiet,
            stdout=quiet,
            stderr=quiet,
            env={**os.environ, "TERM": "dumb"},
            timeout=load.limit_s + 30,
            check=False,
        )
        header, *lines = (folder / "statistics.csv").read_text().splitlines()
        return dict(zip(header.split(";"), lines[-1].split(";"), strict=False))


def gateway_for(folder: Path, slots: int) -> Gateway:
    folder.mkdir()
    return Gateway(
        folder,
        MG_ENGINE__SLOTS=str(slots),
        MG_MEDIA__RTP_TIMEOUT_S=str(RTP_TIMEOUT_S),
        MG_LOG__LEVEL="warning",
        OMP_NUM_THREADS="1",
    )


BARESIP = """\
poll_method epoll
call_max_calls {calls}
sip_listen {address}:{port}
net_interface {address}
audio_source aufile,{source}
audio_player aubridge,none
audio_alert aubridge,none
ausrc_srate 8000
auplay_srate 8000
ausrc_channels 1
auplay_channels 1
rtp_ports 16384-32766
module_path {modules}
module g711.so
module aufile.so
module aubridge.so
module_app account.so
module_app menu.so
"""


class BaresipServer(Program):
    """The peer: one baresip that answers whoever calls, with noise; it hangs up at its file's end."""

    def __init__(self, folder: Path, calls: int) -> None:
        folder.mkdir()
        self.sip_port = free_udp_port()
        folders = (Path("/usr/lib/baresip/modules"), Path("/usr/local/lib/baresip/modules"))
        program = need("baresip", "baresip-core")
        text = BARESIP.format(
            calls=calls,
            address=LOOPBACK,
            port=self.sip_port,
            source=write_wav(folder / "speech.wav", steady_noise(120, 8_000), 8_000),
            modules=next(path for path in folders if path.is_dir()),
        )
        (folder / "config").write_text(text)
        (folder / "accounts").write_text(f"<sip:moshi@{LOOPBACK}>;regint=0;answermode=auto\n")
        (folder / "contacts").write_text("")
        super().__init__([program, "-f", str(folder)], folder)
        self.wait_for("baresip is ready", 15.0)


def with_audio(folder: Path, hold_ms: int) -> str:
    """The scenario of a caller who speaks all the time."""
    speech = folder / "noise.ul"
    if not speech.exists():
        speech.write_bytes(to_mulaw(steady_noise(65, 8_000)))
    stream = f'<nop><action><exec rtp_stream="{speech},1,0,PCMU/8000"/></action></nop>'
    scenario = uac(hold_ms=hold_ms, payloads="0", attributes=PCMU)
    return scenario.replace("  <pause", f"  {stream}\n  <pause", 1)


def bad_call(kind: str, folder: Path) -> str:
    """The scenario of a caller who does not end his call as he should; see BAD_CALLS."""
    if kind == "no codec":
        return uac(final=488, payloads="18", attributes="a=rtpmap:18 G729/8000")
    head, _, tail = uac(hold_ms=100).partition(TRYING)
    if kind.startswith("cancelled"):
        head = head.replace(' start_rtd="setup"', "")
        heard = TRYING.replace(' optional="true"', "") if kind.endswith("late") else ""
        cancel = CANCEL if heard else CANCEL.replace("[branch-2]", "[branch-1]")
        return f"{head}{heard}\n{cancel}</scenario>\n"
    ringing, _, acknowledged = tail.partition("  <send><![CDATA[\nACK ")
    ack = "  <send><![CDATA[\nACK " + acknowledged.partition("  <pause")[0]
    if kind == "no ACK":
        return f"{head}{TRYING}{ringing}</scenario>\n"
    if kind == "vanished":
        return f"{head}{TRYING}{ringing}{ack}</scenario>\n"
    if kind == "fell silent":
        return (
            with_audio(folder, 1_000).partition('  <send retrans="500"><![CDATA[\nBYE')[0] + "</scenario>\n"
        )
    whole = uac(hold_ms=100)
    bye = '  <send retrans="500"><![CDATA[\nBYE' + whole.partition('<send retrans="500"><![CDATA[\nBYE')[2]
    again = bye.replace('<recv response="200"/>', '<recv response="481"/>').replace("CSeq: 2", "CSeq: 3")
    return whole.replace("</scenario>", again)


PACE_S = 0.05
"""Between two calls: faster, and the gateway takes it for a flood."""


def throw_garbage(port: int, count: int) -> None:
    """Datagrams of noise, and of messages cut anywhere."""
    rng = random.Random(7)
    whole = b"INVITE sip:moshi@127.0.0.1 SIP/2.0\r\nVia: SIP/2.0/UDP 127.0.0.1;branch=z9hG4bK1\r\n\r\n"
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as wire:
        for number in range(count):
            data = rng.randbytes(rng.randint(1, 1_200)) if number % 2 else whole[: rng.randint(1, len(whole))]
            wire.sendto(data, (LOOPBACK, port))


def tear_streams(port: int, count: int) -> None:
    """TCP connections that break off in the middle of a message, or once the INVITE is being answered."""
    for number in range(count):
        time.sleep(PACE_S)
        invite = over_tcp("INVITE", f"torn-{secrets.token_hex(6)}")
        with socket.create_connection((LOOPBACK, port), 5.0) as wire:
            wire.sendall(invite if number % 4 == 0 else invite[: len(invite) * (number % 4) // 4])
            if number % 4 == 0:
                wire.recv(1)
            wire.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, np.array([1, 0], np.int32).tobytes())


def cancel_in_one_breath(port: int, count: int) -> None:
    """INVITE and CANCEL in one piece, so that the CANCEL is there before any answer: 487."""
    for _ in range(count):
        time.sleep(PACE_S)
        call = f"breath-{secrets.token_hex(6)}"
        with socket.create_connection((LOOPBACK, port), 5.0) as wire:
            wire.sendall(over_tcp("INVITE", call) + over_tcp("CANCEL", call))
            heard = b""
            while b"SIP/2.0 487" not in heard and (data := wire.recv(4_096)):
                heard += data
            wire.sendall(over_tcp("ACK", call))


def over_tcp(method: str, call: str) -> bytes:
    """A request of a caller who needs no more than this."""
    body = ""
    if method == "INVITE":
        body = "v=0\r\no=- 1 1 IN IP4 127.0.0.1\r\ns=-\r\nc=IN IP4 127.0.0.1\r\nt=0 0\r\n"
        body += "m=audio 9 RTP/AVP 0\r\n"
    return (
        f"{method} sip:moshi@{LOOPBACK} SIP/2.0\r\nVia: SIP/2.0/TCP {LOOPBACK};branch=z9hG4bK-{call}\r\n"
        f"From: <sip:a@b>;tag={call}\r\nTo: <sip:moshi@{LOOPBACK}>\r\nCall-ID: {call}\r\n"
        f"CSeq: 1 {method}\r\nMax-Forwards: 70\r\nContact: <sip:a@{LOOPBACK}:9;transport=tcp>\r\n"
        f"Content-Type: application/sdp\r\nContent-Length: {len(body)}\r\n\r\n{body}"
    ).encode()
