"""baresip, sipp, kamailio and sipvicious against the gateway's call control, trunks, accounts and TLS."""

from __future__ import annotations

import subprocess
import sys
import threading
from pathlib import Path

import numpy as np
import pytest

from tests import sipp
from tests.audio import likeness, steady_noise
from tests.kamailio import PASSWORD, USER, Kamailio
from tests.peers import LOOPBACK, Gateway
from tests.sipp_calls import Sipp, uac
from tests.softphone import Desk, Line, Softphone, free_tcp_port, operated, self_signed

pytestmark = pytest.mark.peer
RATE = 8_000


def test_a_phone_holds_and_resumes_five_times_and_talks_on(tmp_path: Path) -> None:
    with Gateway(tmp_path, **operated(MG_MEDIA__RTP_TIMEOUT_S="3")) as gateway:
        desk = Desk(gateway)
        with Softphone(tmp_path / "phone", steady_noise(60, RATE)) as phone:
            phone.dial(gateway.uri)
            for _ in range(5):
                phone.tell("hold")
                desk.until(held_by_caller=True)
                phone.tell("resume")
                call = desk.until(held_by_caller=False, state="answered")
            phone.tell("hold")
            desk.until(held_by_caller=True)
            _pass(5.0)
            assert desk.call()["state"] == "held", "no packet for longer than the time-out, which rests"
            phone.tell("resume")
            desk.until(held_by_caller=False)
            before = desk.call()["media"]["packets_received"]
            _pass(2.0)
            assert desk.call()["media"]["packets_received"] - before > 60, "he is heard again"
            phone.tell("hangup")
            gateway.wait_for_slots(0, 5.0)
            states = [m["state"] for m in desk.told(call["id"]) if m["type"] == "state"]
            assert states == ["answered", *("held", "resumed") * 6]


def test_we_hold_a_phone_and_take_it_back(tmp_path: Path) -> None:
    with Gateway(tmp_path, **operated()) as gateway:
        desk = Desk(gateway)
        with Softphone(tmp_path / "phone", steady_noise(30, RATE)) as phone:
            phone.dial(gateway.uri)
            call = desk.until(state="answered")
            for _ in range(3):
                assert desk.ask("POST", f"/calls/{call['id']}/hold") == (200, {"held": True})
                _pass(0.2)
                held = desk.call()["media"]["packets_received"]
                _pass(0.5)
                assert desk.call()["media"]["packets_received"] == held, "who is held sends nothing"
                assert desk.ask("POST", f"/calls/{call['id']}/resume") == (200, {"held": False})
                _pass(1.0)
                assert desk.call()["media"]["packets_received"] >= held + 25
            assert desk.call()["media"]["lost"] <= 3
            phone.tell("hangup")
            gateway.wait_for_slots(0, 5.0)


def test_a_caller_is_transferred_to_a_second_phone(tmp_path: Path) -> None:
    with Gateway(tmp_path, **operated()) as gateway:
        desk = Desk(gateway)
        with (
            Softphone(tmp_path / "colleague", steady_noise(60, RATE), Line(answers=True)) as colleague,
            Softphone(tmp_path / "phone", steady_noise(3, RATE)) as phone,
        ):
            phone.dial(gateway.uri)
            call = desk.until(state="answered")
            answer = desk.ask("POST", f"/calls/{call['id']}/transfer", {"to": colleague.uri})
            assert answer == (200, {"transferred": True})
            colleague.wait_for("Call established", 5.0)
            gateway.wait_for_slots(0, 5.0)
            told = desk.told(call["id"])
            assert {"type": "state", "state": "transferring"} in told
            assert told[-1]["type"] == "ended" and "transferred" in told[-1]["reason"]


def test_a_caller_whose_transfer_fails_is_still_with_the_agent(tmp_path: Path) -> None:
    with Gateway(tmp_path, **operated(MG_ENGINE__SLOTS="1")) as gateway:
        desk = Desk(gateway)
        noise = steady_noise(40, RATE)
        with Softphone(tmp_path / "phone", noise) as phone:
            phone.dial(gateway.uri)
            call = desk.until(state="answered")
            # The gateway itself is full, so it answers its own caller 503.
            status, told = desk.ask("POST", f"/calls/{call['id']}/transfer", {"to": gateway.uri})
            assert status == 502 and told["sip_code"] >= 400
            assert desk.until(state="answered")["id"] == call["id"]


def test_keys_arrive_once_each_and_in_order(tmp_path: Path) -> None:
    with Gateway(tmp_path, **operated()) as gateway:
        desk = Desk(gateway)
        noise = np.concatenate([steady_noise(1, RATE), np.zeros(60 * RATE)])
        with Softphone(tmp_path / "phone", noise) as phone:
            phone.dial(gateway.uri)
            call = desk.until(state="answered")
            _pass(2.5)  # its noise is over: from here it sends silence and keys alone
            for digit in "5518#":
                phone.tell("sndcode", digit)
                _pass(0.4)
                phone.tell("sndcode", "\x04")
                _pass(0.2)
            assert desk.ask("POST", f"/calls/{call['id']}/dtmf", {"digits": "42"})[0] == 202
            phone.wait_for(r"(?s)event: '4' .end=1.*event: '2' .end=1", 5.0)
            heard = phone.heard()
        gateway.wait_for_slots(0, 5.0)
        keys = [m["digit"] for m in desk.told(call["id"]) if m["type"] == "dtmf"]
        assert keys == list("5518#")
        assert abs(heard[-int(2.5 * RATE) :]).max() < 0.05, "what the engine heard of the keys is silence"
        assert "5518" not in gateway.text


def test_a_call_by_tls_is_encrypted_and_heard(tmp_path: Path) -> None:
    cert, key = self_signed(tmp_path)
    port = free_tcp_port()
    settings = operated(MG_SIP__TLS_CERT=str(cert), MG_SIP__TLS_KEY=str(key), MG_SIP__TLS_PORT=str(port))
    with Gateway(tmp_path, **settings) as gateway:
        desk = Desk(gateway)
        noise = steady_noise(30, RATE)
        secure = Line(parameters=";mediaenc=srtp-mand", transport="tls")
        with Softphone(tmp_path / "phone", noise, secure) as phone:
            phone.dial(f"sip:moshi@{LOOPBACK}:{port};transport=tls")
            assert desk.until(state="answered")["srtp"] == "AES_CM_128_HMAC_SHA1_80"
            _pass(4.0)
            heard = phone.heard()
        assert likeness(heard, noise, RATE) >= 0.95
        with Softphone(tmp_path / "plain", noise, Line(parameters=";mediaenc=srtp-mand")) as plain:
            plain.tell("dial", gateway.uri)
            plain.wait_for("488", 10.0)


@pytest.mark.parametrize("tool", ["svmap", "svwar", "svcrack"])
def test_a_scanner_finds_nothing(tmp_path: Path, tool: str) -> None:
    program = Path(sys.executable).parent / f"sipvicious_{tool}"
    if not program.exists():
        pytest.skip("sipvicious is not installed (dev extra)")
    trunk = {"MG_TRUNKS__CARRIER__ADDRESSES": "203.0.113.0/24"}
    with Gateway(tmp_path, **operated(**trunk)) as gateway:
        port = str(gateway.sip_port)
        command = {
            "svmap": ["-p", port, LOOPBACK],
            "svwar": ["-e", "100-120", "-m", "INVITE", "-p", port, "--force", LOOPBACK],
            "svcrack": ["-u", "100", "-r", "1-20", "-p", port, LOOPBACK],
        }[tool]
        run = subprocess.run(
            [program, *command], cwd=tmp_path, capture_output=True, text=True, timeout=60, check=False
        )
        said = run.stdout + run.stderr
        assert "moshi-gateway" not in said and "The password for" not in said and "reqauth" not in said, said
        assert gateway.metrics()['sip_messages_total{result="blocked"}'] > 0
        assert gateway.slots_used() == 0


def _pass(seconds: float) -> None:
    """Let a call go on."""
    threading.Event().wait(seconds)


def account_at(pbx: Kamailio) -> dict[str, str]:
    """The gateway as this PBX's extension."""
    return {
        "MG_ACCOUNTS__PBX__REGISTRAR": f"sip:{LOOPBACK}:{pbx.port}",
        "MG_ACCOUNTS__PBX__USER": USER,
        "MG_ACCOUNTS__PBX__PASSWORD": PASSWORD,
    }


def routed(scenario: str) -> str:
    """What follows the 200 goes along its Record-Route."""
    head, _, rest = scenario.replace("[service]", USER).partition('rrs="true"/>')
    return head + 'rrs="true"/>' + rest.replace("Max-Forwards: 70", "[routes]\nMax-Forwards: 70")


def test_kamailio_knows_us_and_stays_in_the_path_of_calls(tmp_path: Path) -> None:
    with Kamailio(tmp_path / "pbx") as pbx, Gateway(tmp_path, **operated(**account_at(pbx))) as gateway:
        gateway.wait_for("account pbx is up", 10.0)
        desk = Desk(gateway)
        assert gateway.metrics()['sip_account_registered{account="pbx"}'] == 1
        assert desk.ask("GET", "/trunks")[1]["accounts"][0]["registered"] is True
        result = Sipp(tmp_path / "sipp", routed(uac(hold_ms=500)), pbx.port, calls=4, rate=5).result()
        assert (result["SuccessfulCall(C)"], result["FailedCall(C)"]) == ("4", "0")
        gateway.wait_for_slots(0, 5.0)
        assert pbx.text.count("passed BYE") == 4
        with Softphone(tmp_path / "phone", steady_noise(20, RATE)) as phone:
            phone.dial(f"sip:{USER}@{LOOPBACK}:{pbx.port}")
            call = desk.until(state="answered")
            assert desk.ask("POST", f"/calls/{call['id']}/hangup") == (200, {"ended": True})
            phone.wait_for("terminated|session closed", 5.0)
            assert pbx.text.count("passed BYE") == 5, "our BYE takes the recorded route too"
        assert gateway.end() == 0
        pbx.wait_for(rf"(?s)bound {USER}.*bound {USER}", 5.0)  # we said goodbye to the registrar


def test_a_wrong_password_is_a_line_that_is_down(tmp_path: Path) -> None:
    with Kamailio(tmp_path / "pbx") as pbx:
        account = account_at(pbx) | {"MG_ACCOUNTS__PBX__PASSWORD": "not this"}
        with Gateway(tmp_path, **operated(**account)) as gateway:
            gateway.wait_for("account pbx is down", 10.0)
            assert Desk(gateway).ask("GET", "/trunks")[1]["accounts"][0]["registered"] is False
            assert f"bound {USER}" not in pbx.text and "not this" not in gateway.text


def test_an_operator_calls_a_phone_and_hangs_up(tmp_path: Path) -> None:
    out = {"MG_OUTBOUND__ENABLED": "true", "MG_OUTBOUND__PREFIXES": "phone", "MG_OUTBOUND__HOSTS": LOOPBACK}
    with Gateway(tmp_path, **operated(**out)) as gateway:
        desk = Desk(gateway)
        with Softphone(tmp_path / "phone", steady_noise(30, RATE), Line(answers=True)) as phone:
            status, placed = desk.ask("POST", "/calls", {"to": phone.uri})
            assert status == 202, placed
            call = desk.until(state="answered")
            assert call["direction"] == "outbound" and call["id"] == placed["id"]
            _pass(2.0)
            assert desk.call()["media"]["packets_received"] > 60
            assert desk.ask("POST", "/calls", {"to": f"sip:1900@{LOOPBACK}"})[1]["cap"] == "prefixes"
            assert desk.ask("POST", f"/calls/{call['id']}/hangup")[0] == 200
            phone.wait_for("terminated|session closed", 5.0)


def test_a_phone_that_stays_silent_is_hung_up_and_one_that_speaks_is_not(tmp_path: Path) -> None:
    limits = {"MG_LIMITS__CALLER_SILENCE_S": "1.5", "MG_LIMITS__MAX_CALL_S": "9"}
    with Gateway(tmp_path, **operated(**limits)) as gateway:
        with Softphone(tmp_path / "silent", np.zeros(60 * RATE)) as silent:
            silent.dial(gateway.uri)
            gateway.wait_for("ended by gateway: the caller is silent", 6.0)
            silent.wait_for("session closed|terminated", 3.0)
        with Softphone(tmp_path / "talker", steady_noise(60, RATE)) as talker:
            talker.dial(gateway.uri)
            _pass(5.0)
            assert gateway.slots_used() == 1, "he speaks"
            gateway.wait_for("ended by gateway: the call has lasted as long as it may", 8.0)
            talker.wait_for("session closed|terminated", 3.0)


async def sipp_calls(folder: Path, gateway: Gateway, steps: tuple[str, ...], *options: str) -> None:
    """Five calls after this scenario, all of which must go as written."""
    file = folder / "scenario.xml"
    file.write_text(sipp.scenario(*steps))
    target = f"{LOOPBACK}:{gateway.sip_port}"
    status, screen = await sipp.run_sipp(
        target,
        "-sf",
        file,
        "-i",
        LOOPBACK,
        "-m",
        "5",
        "-r",
        "5",
        "-timeout",
        "30",
        "-timeout_error",
        *options,
    )
    assert status == 0, screen
    gateway.wait_for_slots(0, 5.0)


ANSWERED = (sipp.expect(100, True), sipp.expect(180, True), sipp.expect(200))
GOODBYE = (sipp.message("BYE", 9, body="-"), sipp.expect(200))


async def test_a_caller_without_an_offer_gets_ours_and_a_call(tmp_path: Path) -> None:
    with Gateway(tmp_path, MG_ENGINE__SLOTS="8") as gateway:
        invite = sipp.message("INVITE", 1, tagged=False, body="-")
        ack = sipp.message("ACK", 1)
        await sipp_calls(tmp_path, gateway, (invite, *ANSWERED, ack, sipp.pause(300), *GOODBYE))
        assert gateway.metrics()['calls_total{direction="inbound",leg="sip",result="caller"}'] == 5


async def test_calls_over_tcp_change_codec_and_address_in_mid_call(tmp_path: Path) -> None:
    with Gateway(tmp_path, MG_ENGINE__SLOTS="8") as gateway:
        alaw = sipp.message("INVITE", 2).replace("m=audio 6000 RTP/AVP 0 8", "m=audio 6002 RTP/AVP 8")
        steps = (
            sipp.message("INVITE", 1, tagged=False),
            *ANSWERED,
            sipp.message("ACK", 1, body="-"),
            sipp.pause(200),
            alaw,
            sipp.expect(100, True),
            sipp.expect(200),
            sipp.message("ACK", 2, body="-"),
            sipp.pause(200),
            *GOODBYE,
        )
        await sipp_calls(tmp_path, gateway, steps, "-t", "t1")
        assert gateway.metrics()['sip_responses_total{code="200",method="BYE"}'] == 5


@pytest.mark.slow
def test_two_hundred_calls_at_twenty_a_second(tmp_path: Path) -> None:
    with Gateway(tmp_path, MG_ENGINE__SLOTS="100") as gateway:
        result = Sipp(tmp_path / "sipp", uac(hold_ms=2_000), gateway.sip_port, calls=200, rate=20).result()
        assert (result["SuccessfulCall(C)"], result["FailedCall(C)"]) == ("200", "0")
        assert int(result["Retransmissions(C)"]) <= 2
        gateway.wait_for_slots(0, 10.0)
