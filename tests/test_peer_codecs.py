"""Real phones that speak wide-band codecs alone: nothing is configured for them."""

from pathlib import Path

import pytest

from tests.audio import likeness, steady_noise
from tests.peers import Baresip, Gateway

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
