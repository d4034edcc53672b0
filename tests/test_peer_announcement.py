"""Real phones at a route with an announcement, and the reports they send and get without rtcp-mux."""

from __future__ import annotations

import re
import socket
import struct
import threading
from pathlib import Path

import numpy as np
import pytest

from tests import sipp
from tests.audio import align, likeness, steady_noise, write_wav
from tests.peers import LOOPBACK, Gateway
from tests.rtp_caller import from_mulaw
from tests.sipp_calls import Sipp, uac
from tests.softphone import Desk, Softphone, operated

pytestmark = pytest.mark.peer
RATE = 8_000
NOTICE_S = 2.0


def announced(folder: Path) -> tuple[np.ndarray, dict[str, str]]:
    """The recording, and the settings of a gateway that plays it on the route 100."""
    notice = steady_noise(NOTICE_S, RATE, seed=7)
    file = write_wav(folder / "notice.wav", notice, RATE)
    route = {"MG_ROUTES__100__PERSONA": "default", "MG_ROUTES__100__ANNOUNCEMENT": str(file)}
    return notice, operated(**route)


def test_baresip_hears_the_announcement_before_the_answer_and_then_the_agent(tmp_path: Path) -> None:
    notice, settings = announced(tmp_path)
    speech = steady_noise(30, RATE)
    with Gateway(tmp_path, **settings) as gateway, Softphone(tmp_path / "phone", speech) as phone:
        phone.dial(f"sip:100@{LOOPBACK}:{gateway.sip_port}")
        assert "183 Session Progress" in phone.text
        call = Desk(gateway).until(state="answered")
        assert call["setup_s"] >= NOTICE_S, "the 200 waits for the end of the recording"
        threading.Event().wait(3.0)
        heard = phone.heard()
        before = align(heard[: int((NOTICE_S + 0.5) * RATE)], notice)
        assert before.correlation > 0.95 and before.lag < 0.3 * RATE
        after = heard[int((NOTICE_S + 1.0) * RATE) :]
        assert likeness(after, speech, RATE) > 0.9, "the echo of what he says"
        gateway.wait_for_slots(0, 5.0)


class Ear:
    """Two sockets for RTP and RTCP, beside a program that only signals."""

    def __init__(self) -> None:
        self.rtp = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        self.rtp.bind((LOOPBACK, 0))
        self.rtp.setblocking(False)
        self.port = int(self.rtp.getsockname()[1])

    def heard(self) -> np.ndarray:
        """What came, by timestamps; nothing is taken after."""
        packets = []
        while True:
            try:
                data = self.rtp.recv(2_048)
            except BlockingIOError:
                break
            if not 192 <= data[1] <= 223:
                packets.append((struct.unpack_from("!I", data, 4)[0], from_mulaw(data[12:])))
        self.rtp.close()
        first = packets[0][0]
        heard = np.zeros(max((at - first) % 2**32 for at, _ in packets) + 160)
        for at, samples in packets:
            heard[(at - first) % 2**32 :][: len(samples)] = samples
        return heard


PRACK = """<send retrans="500"><![CDATA[

PRACK [next_url] SIP/2.0
Via: SIP/2.0/[transport] [local_ip]:[local_port];branch=[branch];rport
Max-Forwards: 70
From: <sip:sipp@[local_ip]:[local_port]>;tag=[pid]t[call_number]
To: <sip:100@[remote_ip]:[remote_port]>[peer_tag_param]
Call-ID: [call_id]
CSeq: 2 PRACK
RAck: [$1] 1 INVITE
Content-Length: 0

]]></send>
<recv response="200"/>
"""


def reliable(scenario: str, port: int) -> str:
    """The caller's scenario with 100rel, at the route 100, and its audio at this port."""
    scenario = scenario.replace("[service]", "100").replace("[media_port]", str(port))
    scenario = scenario.replace("Max-Forwards: 70\n", "Max-Forwards: 70\nRequire: 100rel\n", 1)
    progress = (
        '<recv response="183" rrs="true"><action><ereg regexp="[0-9]+" search_in="hdr" header="RSeq:"'
        ' check_it="true" assign_to="1"/></action></recv>\n'
    )
    ringing = '<recv response="180" optional="true"/>\n'
    scenario = scenario.replace(ringing, progress + PRACK).replace("CSeq: 2 BYE", "CSeq: 3 BYE")
    return re.sub(r"\n +<recv response=\"100\"", '\n<recv response="100"', scenario)


def test_sipp_acknowledges_the_183_and_is_answered_when_the_recording_has_ended(tmp_path: Path) -> None:
    notice, settings = announced(tmp_path)
    ear = Ear()
    with Gateway(tmp_path, **settings) as gateway:
        result = Sipp(tmp_path / "sipp", reliable(uac(hold_ms=200), ear.port), gateway.sip_port).result()
        errors = [path.read_text() for path in (tmp_path / "sipp").glob("errors*")]
        assert (result["SuccessfulCall(C)"], result["FailedCall(C)"]) == ("1", "0"), errors
        heard = align(ear.heard(), notice)
        assert heard.correlation > 0.95 and 0 <= heard.lag < 0.3 * RATE
        gateway.wait_for_slots(0, 5.0)


def test_sipp_who_gives_up_during_the_recording_leaves_no_slot_behind(tmp_path: Path) -> None:
    _, settings = announced(tmp_path)
    ear = Ear()
    gives_up = sipp.scenario(
        sipp.message("INVITE", 1, tagged=False),
        '<recv response="100" optional="true"/>',
        '<recv response="183"/>',
        sipp.pause(500),
        sipp.message("CANCEL", 1, body="-", tagged=False).replace("[branch]", "[branch-4]"),
        '<recv response="200"/>',
        '<recv response="487"/>',
        sipp.message("ACK", 1, body="-", tagged=False).replace("[branch]", "[branch-7]"),
    ).replace("sip:moshi@", "sip:100@")
    with Gateway(tmp_path, **settings) as gateway:
        result = Sipp(tmp_path / "sipp", gives_up, gateway.sip_port).result()
        errors = [path.read_text() for path in (tmp_path / "sipp").glob("errors*")]
        assert (result["SuccessfulCall(C)"], result["FailedCall(C)"]) == ("1", "0"), errors
        gateway.wait_for_slots(0, 5.0)
        assert gateway.metrics()['calls_total{direction="inbound",leg="sip",result="unanswered"}'] == 1
    ear.rtp.close()


def test_sipp_who_wants_our_offer_is_answered_first_and_hears_it_before_the_agent(tmp_path: Path) -> None:
    notice, settings = announced(tmp_path)
    ear = Ear()
    delayed = sipp.scenario(
        sipp.message("INVITE", 1, body="-", tagged=False),
        '<recv response="100" optional="true"/>',
        sipp.expect(200),
        sipp.message("ACK", 1).replace("m=audio 6000", f"m=audio {ear.port}"),
        sipp.pause(int((NOTICE_S + 0.5) * 1_000)),
        sipp.message("BYE", 2, body="-"),
        sipp.expect(200),
    ).replace("sip:moshi@", "sip:100@")
    with Gateway(tmp_path, **settings) as gateway:
        result = Sipp(tmp_path / "sipp", delayed, gateway.sip_port).result()
        errors = [path.read_text() for path in (tmp_path / "sipp").glob("errors*")]
        assert (result["SuccessfulCall(C)"], result["FailedCall(C)"]) == ("1", "0"), errors
        heard = align(ear.heard(), notice)
        assert heard.correlation > 0.95 and 0 <= heard.lag < 0.3 * RATE
        gateway.wait_for_slots(0, 5.0)
        # He sends nothing: without a word of his the agent starts all the same, at the recording's end.
        assert gateway.metrics()['calls_total{direction="inbound",leg="sip",result="caller"}'] == 1


def test_baresip_without_rtcp_mux_exchanges_reports_on_the_ports_above(tmp_path: Path) -> None:
    """It takes reports on its second port only, and its table of the call tells what ours said."""
    with Gateway(tmp_path, **operated()) as gateway:
        desk = Desk(gateway)
        with Softphone(tmp_path / "phone", steady_noise(30, RATE)) as phone:
            phone.dial(gateway.uri)
            for _ in range(100):
                threading.Event().wait(0.2)
                media = desk.call()["media"]
                if media["round_trip_ms"] is not None:
                    break
            assert media["round_trip_ms"] < 50.0 and media["remote_loss"] == 0.0
            phone.heard()
            told = re.search(r"pkt\.report: +(\d+) +(\d+)", phone.text)
            assert told is not None and int(told[2]) > 100, "our sender report came"
