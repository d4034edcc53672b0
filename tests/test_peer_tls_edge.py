"""kamailio as TLS edge: phones speak TLS to it, it speaks UDP or TLS to us, and stays in the path."""

from __future__ import annotations

import threading
from pathlib import Path

import pytest

from tests.audio import likeness, read_wav, steady_noise
from tests.kamailio import TlsEdge
from tests.peers import LOOPBACK, Gateway
from tests.softphone import Desk, Line, Softphone, free_tcp_port, operated, self_signed

pytestmark = pytest.mark.peer
RATE = 8_000


@pytest.mark.parametrize("transport", ["udp", "tls"])
def test_a_phone_behind_a_tls_edge_is_held_heard_and_hung_up(tmp_path: Path, transport: str) -> None:
    cert, key = self_signed(tmp_path)
    ours = free_tcp_port()
    settings = operated(
        MG_SIP__TLS_CERT=str(cert),
        MG_SIP__TLS_KEY=str(key),
        MG_SIP__TLS_PORT=str(ours),
        SSL_CERT_FILE=str(cert),
        MG_SIP__SRTP="accept",  # the edge's UDP is a network of our own: the keys may be read there
    )
    with Gateway(tmp_path, **settings) as gateway:
        desk = Desk(gateway)
        behind = ours if transport == "tls" else gateway.sip_port
        secure = Line(parameters=";mediaenc=srtp-mand", transport="tls")
        noise = steady_noise(30, RATE)
        with (
            TlsEdge(tmp_path / "edge", (cert, key), behind, transport) as edge,
            Softphone(tmp_path / "phone", noise, secure) as phone,
        ):
            phone.dial(f"sip:moshi@{LOOPBACK}:{edge.tls_port};transport=tls")
            call = desk.until(state="answered")
            assert call["srtp"] == "AES_CM_128_HMAC_SHA1_80"
            threading.Event().wait(2.5)
            phone.tell("hold")
            desk.until(held_by_caller=True)
            phone.tell("resume")
            desk.until(held_by_caller=False)
            assert desk.ask("POST", f"/calls/{call['id']}/hold") == (200, {"held": True})
            assert desk.ask("POST", f"/calls/{call['id']}/resume") == (200, {"held": False})
            before = desk.call()["media"]
            threading.Event().wait(1.0)
            after = desk.call()["media"]
            assert after["packets_received"] - before["packets_received"] >= 40 and after["lost"] <= 3
            assert desk.ask("POST", f"/calls/{call['id']}/hangup") == (200, {"ended": True})
            phone.wait_for("terminated|session closed", 5.0)
            assert f"passed BYE from {transport}" in edge.text, "our requests take the recorded route too"
            phone.end()
            # This baresip records what it hears up to the first change of the call.
            heard = read_wav(min(phone.recordings.glob("dump-*-dec.wav")))[0][RATE:]
            assert likeness(heard, noise, RATE) >= 0.95
        gateway.wait_for_slots(0, 5.0)
