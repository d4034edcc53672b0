"""Real phones that speak wide-band codecs alone: nothing is configured for them."""

import re
import socket
import threading
from pathlib import Path

import numpy as np
import pytest

from gateway.audio_file import resampled
from tests.audio import likeness, steady_noise
from tests.linphone import Linphone
from tests.peers import LOOPBACK, Baresip, Gateway
from tests.softphone import Desk, Line, Softphone, operated

pytestmark = pytest.mark.peer


@pytest.mark.parametrize(("codec", "rate"), [("G722", 16_000), ("opus", 48_000)])
def test_baresip_hears_itself_in_wide_band(tmp_path: Path, codec: str, rate: int) -> None:
    with Gateway(tmp_path) as gateway:
        phone = Baresip(tmp_path / "phone", gateway.uri, steady_noise(30, rate), rate, codec)
        sent, heard = phone.established().talk_for(5.0).hang_up()
        if codec == "opus":
            sent, heard = sent[:, 0], heard[:, 0]  # it records both channels
        gateway.wait_for(rf"line: codec={codec} ", 5.0)
        # Two passes of Opus leave noise, the hardest of signals, 0.92; G.722 0.999; another call's has 0.2.
        assert likeness(heard[rate:], sent, rate) >= 0.85


def test_linphone_hears_itself_by_opus_and_its_keys_are_as_long_as_it_pressed_them(tmp_path: Path) -> None:
    noise = steady_noise(30, 8_000)
    with (
        Gateway(tmp_path, MG_SIP__CODECS="opus", **operated()) as gateway,
        Linphone(tmp_path / "phone", "ann", noise) as phone,
    ):
        desk = Desk(gateway)
        phone.dial(gateway.uri)
        call = desk.until(state="answered")
        threading.Event().wait(4.0)
        phone.tell("5")
        threading.Event().wait(1.0)
        heard = resampled(phone.heard().astype(np.float32), 48_000, 8_000)  # it records at Opus's rate
        # Two passes of Opus, and its clock bent on the way: 0.76 to 0.9; what is not the echo has 0.2.
        assert likeness(heard[8_000:], noise, 8_000) >= 0.6
        gateway.wait_for_slots(0, 5.0)
        (key,) = [message for message in desk.told(call["id"]) if message["type"] == "dtmf"]
        assert (key["digit"], key["source"]) == ("5", "rtp") and 60 <= key["duration_ms"] <= 200


class OneSuite(threading.Thread):
    """Between us and a phone: takes every crypto line but those of one suite out of what we offer."""

    def __init__(self, suite: str, phone: tuple[str, int]) -> None:
        super().__init__(daemon=True)
        self.suite, self.phone = suite.encode(), phone
        self.sock = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        self.sock.bind((LOOPBACK, 0))
        self.start()

    @property
    def uri(self) -> str:
        return f"sip:phone@{LOOPBACK}:{self.sock.getsockname()[1]}"

    def run(self) -> None:
        us = None
        while True:
            data, source = self.sock.recvfrom(65_536)
            if source == self.phone:
                assert us is not None
                self.sock.sendto(data, us)
            else:
                us = source
                self.sock.sendto(self._changed(data), self.phone)

    def _changed(self, request: bytes) -> bytes:
        head, _, body = request.partition(b"\r\n\r\n")
        lines = body.splitlines(keepends=True)
        body = b"".join(ln for ln in lines if not ln.startswith(b"a=crypto") or self.suite in ln)
        head = re.sub(rb"(?im)^(Content-Length: *)\d+", rb"\g<1>%d" % len(body), head)
        return head + b"\r\n\r\n" + body


@pytest.mark.parametrize("suite", ["AEAD_AES_128_GCM", "AEAD_AES_256_GCM", "AES_CM_128_HMAC_SHA1_32"])
def test_baresip_hears_itself_in_every_suite_that_it_does_not_offer_itself(
    tmp_path: Path, suite: str
) -> None:
    out = {"MG_OUTBOUND__ENABLED": "true", "MG_OUTBOUND__PREFIXES": "phone", "MG_OUTBOUND__HOSTS": LOOPBACK}
    noise = steady_noise(30, 8_000)
    with (
        Gateway(tmp_path, MG_SIP__SRTP="require", **operated(**out)) as gateway,
        Softphone(tmp_path / "phone", noise, Line(answers=True, parameters=";mediaenc=srtp-mand")) as phone,
    ):
        desk = Desk(gateway)
        path = OneSuite(suite, (LOOPBACK, phone.port))
        assert desk.ask("POST", "/calls", {"to": path.uri})[0] == 202
        assert desk.until(state="answered")["srtp"] == suite
        threading.Event().wait(4.0)
        assert likeness(phone.heard()[8_000:], noise, 8_000) >= 0.95
