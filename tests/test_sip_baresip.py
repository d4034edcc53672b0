"""baresip over TLS with mandatory SRTP: a call, hold and resume five times, and the good-bye."""

import asyncio
import contextlib
import json
import math
import shutil
import ssl
import struct
import subprocess
import wave
from collections.abc import AsyncIterator
from dataclasses import replace
from pathlib import Path

import pytest
import pytest_asyncio

from sip.arrival import StreamReception
from sip.events import CallConfirmed, CallEnded, CallHeld, CallOffered, CallResumed, Event
from sip.rtp import parse_rtp
from sip.srtp import SrtpContext
from tests.sipp import MEDIA, Site, free_port

pytestmark = [
    pytest.mark.peer,
    pytest.mark.skipif(shutil.which("baresip") is None, reason="baresip is not installed"),
]
MODULES = "/usr/lib/baresip/modules"
CONFIG = """poll_method epoll
sip_listen 127.0.0.1:0
sip_certificate {folder}/both.pem
sip_cafile {folder}/cert.pem
net_interface 127.0.0.1
audio_source aufile,{folder}/tone.wav
audio_player aubridge,nobody
audio_alert aubridge,nobody
module_path {modules}
module g711.so
module aufile.so
module aubridge.so
module srtp.so
module_tmp account.so
module_app menu.so
module_app ctrl_tcp.so
ctrl_tcp_listen 127.0.0.1:{control}
"""
ACCOUNT = "<sip:bob@127.0.0.1;transport=tls>;regint=0;mediaenc=srtp-mand;audio_codecs=PCMU/8000/1\n"


class EchoLeg(asyncio.DatagramProtocol):
    """Sends back whatever is authentic, and counts it."""

    def __init__(self) -> None:
        self.srtp: SrtpContext | None = None
        self.heard: StreamReception | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = transport

    def datagram_received(self, data: bytes, addr: tuple[str, int]) -> None:
        assert self.srtp is not None, "audio before its keys"
        plain = self.srtp.unprotect(data)
        packet = parse_rtp(plain)
        assert (packet.payload_type, len(packet.payload)) == (0, 160)
        if self.heard is None:
            self.heard = StreamReception(packet.ssrc, 8_000)
        self.heard.take(packet.sequence, packet.timestamp, asyncio.get_running_loop().time())
        self._transport.sendto(self.srtp.protect(plain), addr)  # type: ignore[attr-defined]

    @property
    def count(self) -> int:
        return self.heard.received if self.heard is not None else 0


class Baresip:
    """The program, and its control port."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.control = free_port()
        (folder / "config").write_text(CONFIG.format(folder=folder, modules=MODULES, control=self.control))
        (folder / "accounts").write_text(ACCOUNT)
        (folder / "contacts").write_text("")
        with wave.open(str(folder / "tone.wav"), "wb") as tone:
            tone.setnchannels(1)
            tone.setsampwidth(2)
            tone.setframerate(8_000)
            samples = (int(8_000 * math.sin(2 * math.pi * 440 * at / 8_000)) for at in range(160_000))
            tone.writeframes(b"".join(struct.pack("<h", sample) for sample in samples))
        names = ["-keyout", folder / "key.pem", "-out", folder / "cert.pem", "-subj", "/CN=127.0.0.1"]
        subprocess.run(
            ["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes",
             "-days", "2", "-addext", "subjectAltName=IP:127.0.0.1", *names],
            check=True, capture_output=True,
        )  # fmt: skip
        (folder / "both.pem").write_bytes(
            (folder / "key.pem").read_bytes() + (folder / "cert.pem").read_bytes()
        )

    async def start(self, dial: str) -> None:
        nothing = asyncio.subprocess.DEVNULL
        self.process = await asyncio.create_subprocess_exec(
            "baresip",
            "-f",
            str(self.folder),
            "-e",
            f"/dial {dial}",
            stdin=nothing,
            stdout=nothing,
            stderr=nothing,
        )

    async def command(self, name: str) -> None:
        reader, writer = await asyncio.open_connection("127.0.0.1", self.control)
        text = json.dumps({"command": name}).encode()
        writer.write(b"%d:%s," % (len(text), text))
        await asyncio.wait_for(reader.read(64), 5)
        writer.close()

    async def stop(self) -> None:
        with contextlib.suppress(ProcessLookupError):
            self.process.kill()
        await self.process.wait()


@pytest_asyncio.fixture
async def stage(tmp_path: Path) -> AsyncIterator[tuple[Site, EchoLeg, Baresip]]:
    site, baresip = Site(), Baresip(tmp_path)
    transport, leg = await asyncio.get_running_loop().create_datagram_endpoint(
        EchoLeg, local_addr=("127.0.0.1", 0)
    )
    media = replace(MEDIA, port=transport.get_extra_info("sockname")[1], srtp="require")

    def answer(event: Event) -> None:
        if isinstance(event, CallOffered):
            agreed = site.agent.accept(event.call, media, site.endpoint.now())
            assert agreed is not None and agreed.srtp is not None
            leg.srtp = SrtpContext(agreed.srtp)

    site.act = answer
    server = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    server.load_cert_chain(tmp_path / "cert.pem", tmp_path / "key.pem")
    client = ssl.create_default_context(cafile=str(tmp_path / "cert.pem"))
    _, port = await site.endpoint.open_tls("127.0.0.1", 0, server, client)
    await baresip.start(f"sip:moshi@127.0.0.1:{port}")
    yield site, leg, baresip
    await baresip.stop()
    await site.endpoint.close()
    transport.close()


async def test_a_call_over_tls_and_srtp_is_held_resumed_and_ended(
    stage: tuple[Site, EchoLeg, Baresip],
) -> None:
    site, leg, baresip = stage
    await site.until(lambda: site.count(CallConfirmed) == 1 and leg.count > 25)
    for number in range(1, 6):
        await baresip.command("hold")
        await site.until(lambda number=number: site.count(CallHeld) == number)  # type: ignore[misc]
        await baresip.command("resume")
        await site.until(lambda number=number: site.count(CallResumed) == number)  # type: ignore[misc]
        heard = leg.count
        await site.until(lambda heard=heard: leg.count > heard + 10)  # type: ignore[misc]
    assert site.count(CallEnded) == 0 and leg.heard is not None and leg.heard.lost == 0
    await baresip.command("hangup")
    await site.until(lambda: site.count(CallEnded) == 1)
    assert site.agent.counters.malformed == 0
