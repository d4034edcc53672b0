"""A bare RTP sender: loss, garbage, a caller that vanishes; and `moshi-gateway call` at a running gateway."""

import itertools
import re
import secrets
import socket
import struct
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.audio import align, gaps, level_dbfs, likeness, read_wav, steady_noise, write_wav
from tests.peers import LOOPBACK, ROOT, Gateway, StallWatch
from tests.rtp_caller import PACKET, RtpCaller, to_mulaw
from tests.softphone import Desk, operated
from tests.test_media_tones import pressed

pytestmark = pytest.mark.peer
RATE = 8_000


@pytest.fixture(scope="module")
def gateway(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Gateway]:
    with Gateway(tmp_path_factory.mktemp("gateway"), MG_MEDIA__RTP_TIMEOUT_S="2") as running:
        yield running


@pytest.fixture
def caller(gateway: Gateway) -> Iterator[RtpCaller]:
    """In a call."""
    with RtpCaller(gateway.sip_port) as bare:
        assert bare.invite().startswith("SIP/2.0 200")
        yield bare


def test_what_was_sent_comes_back(gateway: Gateway, caller: RtpCaller) -> None:
    with StallWatch() as machine:
        exchange = caller.stream(steady_noise(6.0, RATE))
    assert caller.bye().startswith("SIP/2.0 200")
    assert likeness(exchange.heard(), exchange.sent, RATE) >= 0.95
    # The delay that a call begins with is given back within its first two seconds.
    found = gaps(exchange.heard()[2 * RATE :], exchange.sent, RATE)
    assert [gap for gap in found if not machine.explains(2.0 + gap.at_s)] == [], machine.stalls
    sequences = [arrival.sequence for arrival in exchange.arrivals]
    assert all((b - a) & 0xFFFF == 1 for a, b in itertools.pairwise(sequences))
    gateway.wait_for_slots(0, 5.0)


def test_the_round_trip_is_the_same_after_one_lost_packet(caller: RtpCaller) -> None:
    exchange = caller.stream(steady_noise(8.0, RATE), lose={150})
    caller.bye()
    before, after = exchange.round_trip_s(1.0, 3.0), exchange.round_trip_s(5.0, 7.0)
    assert abs(after - before) <= 0.040, f"{before * 1e3:.0f} ms, then {after * 1e3:.0f} ms"


def test_five_percent_loss_costs_only_the_lost_packets(caller: RtpCaller) -> None:
    lost = set(range(20, 400, 20))
    with StallWatch() as machine:
        exchange = caller.stream(steady_noise(8.0, RATE), lose=lost)
    caller.bye()
    found = gaps(exchange.heard()[RATE // 5 :], exchange.sent, RATE)
    unexplained = [gap for gap in found if not machine.explains(0.2 + gap.at_s)]
    assert sum(gap.length_s for gap in unexplained) <= 0.045 * len(lost), "and the crossfades around them"
    assert exchange.round_trip_s(6.0, 8.0) <= exchange.round_trip_s(0.2, 1.0) + 0.060 or machine.stalls


def test_a_caller_who_vanishes_is_hung_up_on_and_his_slot_is_free(
    gateway: Gateway, caller: RtpCaller
) -> None:
    caller.stream(steady_noise(1.0, RATE))
    assert 1.0 <= caller.wait_for_bye(6.0) <= 4.0
    gateway.wait_for_slots(0, 2.0)


def test_a_caller_who_never_sends_is_hung_up_on_too(gateway: Gateway, caller: RtpCaller) -> None:
    assert caller.wait_for_bye(6.0) <= 4.0
    gateway.wait_for_slots(0, 2.0)


def test_garbage_on_the_sip_port_is_nothing_but_counted(gateway: Gateway) -> None:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as vandal:
        for size in (0, 1, 4, 12, 100, 1_400, 60_000):
            for _ in range(20):
                vandal.sendto(secrets.token_bytes(size), (LOOPBACK, gateway.sip_port))
        for text in (b"INVITE", b"INVITE sip:x SIP/2.0\r\n\r\n", b"SIP/2.0 200 OK\r\n\r\n", b"\r\n\r\n"):
            vandal.sendto(text, (LOOPBACK, gateway.sip_port))
    with RtpCaller(gateway.sip_port) as caller:
        assert caller.invite().startswith("SIP/2.0 200")
        assert caller.bye().startswith("SIP/2.0 200")
    assert "Traceback" not in gateway.text
    gateway.wait_for_slots(0, 5.0)


GARBAGE = [secrets.token_bytes(size) for size in (0, 1, 11, 12, 13, 172, 1_400)] * 20


def test_a_stranger_on_the_rtp_port_is_not_heard(gateway: Gateway, caller: RtpCaller) -> None:
    caller.stream(steady_noise(1.0, RATE))
    loud = to_mulaw(steady_noise(1.0, RATE, level_dbfs=-3))
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as stranger:
        for data in GARBAGE:
            stranger.sendto(data, caller.media)
        for sequence in range(50):
            header = struct.pack("!BBHII", 0x80, 0, sequence, sequence * PACKET, 1)
            stranger.sendto(header + loud[sequence * PACKET :][:PACKET], caller.media)
        stranger.setblocking(False)
        exchange = caller.stream(steady_noise(3.0, RATE, seed=5))
        with pytest.raises(BlockingIOError):
            stranger.recv(2_048)
    caller.bye()
    assert likeness(exchange.heard(), exchange.sent, RATE) >= 0.8
    assert abs(level_dbfs(exchange.heard()[RATE // 5 :]) + 20) < 1
    assert gateway.text.count("Traceback") == 0


def test_garbage_from_the_caller_himself_is_not_heard_either(gateway: Gateway, caller: RtpCaller) -> None:
    caller.stream(steady_noise(1.0, RATE))
    for data in GARBAGE:
        caller.rtp.sendto(data, caller.media)
    for _ in range(10):
        caller.send(to_mulaw(steady_noise(1.0, RATE, level_dbfs=-3))[:PACKET], payload_type=77)
    heard = (exchange := caller.stream(steady_noise(3.0, RATE, seed=5))).heard()[RATE:]
    caller.bye()
    assert gaps(heard, exchange.sent, RATE) == []
    assert abs(level_dbfs(heard) + 20) < 1
    assert gateway.text.count("Traceback") == 0


def test_an_offer_without_a_codec_we_know_is_488_and_no_slot_is_kept(gateway: Gateway) -> None:
    with RtpCaller(gateway.sip_port) as caller:
        assert caller.invite("18", "a=rtpmap:18 G729/8000\r\n").startswith("SIP/2.0 488")
    gateway.wait_for_slots(0, 2.0)


def called(uri: str, speech: Path, recording: Path, *options: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "gateway", "call", uri, "--in", str(speech), "--out", str(recording)]
    return subprocess.run([*command, *options], cwd=ROOT, capture_output=True, text=True, timeout=60)


def test_the_call_command_hears_the_echo_and_reports(gateway: Gateway, tmp_path: Path) -> None:
    speech = write_wav(tmp_path / "speech.wav", steady_noise(5.0, 16_000), 16_000)
    done = called(gateway.uri, speech, tmp_path / "answer.wav", "--tail", "1")
    assert done.returncode == 0, done.stderr
    assert re.search(r"setup\s+0\.\d+ s", done.stdout) and "loss     0 packets (0.00 %)" in done.stdout, (
        done.stdout
    )
    both, rate = read_wav(tmp_path / "answer.wav")
    said, heard = both[:, 0], both[:, 1]
    assert rate == 24_000 and len(both) >= 5.9 * rate
    assert likeness(heard[rate : 5 * rate], said, rate) >= 0.95
    assert 0 < 1 + align(heard[rate : 5 * rate], said).lag / rate < 0.5


def test_the_call_command_says_why_there_was_no_call(gateway: Gateway, tmp_path: Path) -> None:
    speech = write_wav(tmp_path / "speech.wav", steady_noise(1.0, RATE), RATE)
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as closed:
        closed.bind((LOOPBACK, 0))
        port = closed.getsockname()[1]
    done = called(f"sip:nobody@{LOOPBACK}:{port}", speech, tmp_path / "answer.wav", "--ring", "2")
    assert done.returncode == 1 and done.stdout.startswith("no call: "), done.stdout + done.stderr
    assert not (tmp_path / "answer.wav").exists()


def test_keys_pressed_as_tones_arrive_once_and_none_is_echoed(tmp_path: Path) -> None:
    with Gateway(tmp_path, **operated()) as gateway, RtpCaller(gateway.sip_port) as phone:
        desk = Desk(gateway)
        assert phone.invite().startswith("SIP/2.0 200"), "an offer without telephone-event"
        call = desk.until(state="answered")
        exchange = phone.stream(pressed("4711#", on_s=0.12, off_s=0.12, dbfs=-12.0))
        phone.bye()
        gateway.wait_for_slots(0, 5.0)
        assert [m["digit"] for m in desk.told(call["id"]) if m["type"] == "dtmf"] == list("4711#")
    assert level_dbfs(exchange.heard()[RATE // 2 :]) < -25, "of the echo little more than five onsets"
