"""What the gateway says about itself: banner, doctor's findings, log lines."""

import io
import json
import logging
import socket
from collections.abc import Iterator

import pytest

from gateway.banner import StartUp, banner, notes, page_url, sip_uri
from gateway.config import EngineSettings, HttpSettings, LogSettings, Settings, SipSettings
from gateway.doctor import Finding, Verdict, examine, report
from gateway.logs import JsonLines, TextLines, configure


def found(settings: Settings, topic: str) -> list[Finding]:
    return [finding for finding in examine(settings) if finding.topic == topic]


def settings(**sip: object) -> Settings:
    return Settings(
        http=HttpSettings(port=0),
        sip=SipSettings.model_validate({"host": "127.0.0.1", "port": 0, "rtp_ports": (0, 0)} | sip),
        engine=EngineSettings(kind="echo"),
    )


def test_the_banner_tells_page_uri_engine_and_why() -> None:
    start = StartUp(
        "http://localhost:8080/", "sip:moshi@192.0.2.7", "echo", "no CUDA GPU", 4, notes("echo", "::1", False)
    )
    lines = banner(start).splitlines()
    assert "ready" in lines[0]
    assert [line.split()[0] for line in lines[1:]] == ["browser", "phone", "engine", "why", "note"]
    assert "4 calls at once" in lines[3] and "no CUDA GPU" in lines[4] and "your own voice" in lines[5]


def test_the_banner_leaves_out_what_is_switched_off() -> None:
    text = banner(StartUp(None, None, "moshi", "as configured", 1))
    assert "browser" not in text and "phone" not in text and "1 call at a time" in text


def test_addresses_are_ones_that_people_can_use() -> None:
    assert page_url("127.0.0.1", 8080, False, "192.0.2.7") == "http://localhost:8080/"
    assert page_url("0.0.0.0", 443, True, "192.0.2.7") == "https://192.0.2.7/"
    assert page_url("::", 80, False, "2001:db8::7") == "http://[2001:db8::7]/"
    assert sip_uri("0.0.0.0", 5060, "192.0.2.7") == "sip:moshi@192.0.2.7"
    assert sip_uri("2001:db8::7", 5070, "") == "sip:moshi@[2001:db8::7]:5070"


def test_the_banner_warns_of_microphones_that_stay_shut_and_of_open_origins() -> None:
    assert any("https" in note for note in notes("moshi", "0.0.0.0", False))
    assert not notes("moshi", "0.0.0.0", True)
    assert any("origins" in note for note in notes("moshi", "::1", False, ["*"]))
    assert any("demo" in note for note in notes("tiny", "::1", False))


def test_doctor_finds_nothing_wrong_with_free_ports_and_the_libraries() -> None:
    findings = examine(settings())
    assert {f.topic for f in findings} >= {
        "python",
        "http",
        "sip",
        "rtp",
        "address",
        "libopus",
        "numba",
        "torch",
        "engine",
    }
    assert [f for f in findings if f.verdict is Verdict.FAIL] == []
    assert "libopus 1." in found(settings(), "libopus")[0].fact


def test_doctor_says_which_udp_port_is_taken_and_how_to_find_its_owner() -> None:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as taken:
        taken.bind(("127.0.0.1", 0))
        port = taken.getsockname()[1]
        (sip, _) = found(settings(port=port), "sip")
    assert sip.verdict is Verdict.FAIL and f"127.0.0.1:{port}" in sip.fact
    assert f"sport = :{port}" in sip.fix and "MG_SIP__PORT" in sip.fix


def test_doctor_counts_the_calls_that_the_rtp_range_holds() -> None:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as taken:
        taken.bind(("127.0.0.1", 0))
        low = taken.getsockname()[1] // 2 * 2
        low = min(low, 65_534)
        (rtp,) = found(settings(rtp_ports=(low, low + 1)), "rtp")
        even_is_taken = taken.getsockname()[1] == low
    assert rtp.verdict is (Verdict.FAIL if even_is_taken else Verdict.WARN)
    assert "of 4 calls" in rtp.fact and "MG_SIP__RTP_PORTS" in rtp.fix


def test_doctor_knows_an_address_that_is_not_ours() -> None:
    findings = examine(settings(host="203.0.113.9"))
    sip = next(f for f in findings if f.topic == "sip")
    assert sip.verdict is Verdict.FAIL and "MG_SIP__HOST" in sip.fix


def test_doctor_tells_which_weights_are_missing_and_what_to_run(tmp_path: object) -> None:
    moshi = Settings(engine=EngineSettings(kind="moshi", model=str(tmp_path)))
    (weights,) = found(moshi, "weights")
    assert weights.verdict is Verdict.FAIL
    assert "model.safetensors" in weights.fact and "hf download" in weights.fix


def test_doctor_tries_the_remote_engine() -> None:
    with socket.socket() as listening:
        listening.bind(("127.0.0.1", 0))
        listening.listen()
        port = listening.getsockname()[1]
        url = f"ws://127.0.0.1:{port}/api/chat"
        chat = Settings(engine=EngineSettings(kind="chat", url=url))
        assert [f.verdict for f in found(chat, "remote")] == [Verdict.GOOD, Verdict.WARN]
    (refused, _) = found(chat, "remote")
    assert refused.verdict is Verdict.FAIL and str(port) in refused.fact


def test_the_report_puts_the_fix_under_what_it_mends() -> None:
    text = report([Finding("a", Verdict.GOOD, "well"), Finding("b", Verdict.FAIL, "broken", "mend it")])
    assert [line.split() for line in text.splitlines()] == [
        ["good", "a", "well"],
        ["FAIL", "b", "broken"],
        ["fix:", "mend", "it"],
    ]


@pytest.fixture
def restored_logging() -> Iterator[None]:
    root = logging.getLogger()
    handlers, level = list(root.handlers), root.level
    yield
    root.handlers, root.level = handlers, level
    logging.captureWarnings(False)


def line_of(formatter: logging.Formatter, message: str, *arguments: object, **fields: object) -> str:
    return formatter.format(logging.LogRecord("gateway.call", logging.INFO, "f", 1, message, arguments, None))


def test_json_lines_carry_the_call_id() -> None:
    fields = json.loads(line_of(JsonLines(), "call %s ended by %s", "3f2a", "caller"))
    assert fields["call_id"] == "3f2a" and fields["message"] == "call 3f2a ended by caller"
    assert (
        fields["level"] == "info" and fields["logger"] == "gateway.call" and fields["ts"].endswith("+00:00")
    )
    assert "call_id" not in json.loads(line_of(JsonLines(), "the %s is ready", "engine"))


def test_a_peers_line_breaks_cannot_forge_a_log_line() -> None:
    hostile = "x\r\n12:00:00 error forged\x1b[2J"
    assert "\n" not in line_of(TextLines(), "reason %s", hostile)
    assert "\x1b" not in line_of(TextLines(), "reason %s", hostile)
    assert json.loads(line_of(JsonLines(), "reason %s", hostile))["message"].endswith("[2J")


def test_a_traceback_stays_in_its_record(restored_logging: None, monkeypatch: pytest.MonkeyPatch) -> None:
    written = io.StringIO()
    monkeypatch.setattr("sys.stderr", written)
    configure(LogSettings(format="json"))
    configure(LogSettings(format="json", level="warning"))
    try:
        raise ValueError("broken")
    except ValueError:
        logging.getLogger("gateway.call").exception("call %s failed", "3f2a")
    logging.getLogger("gateway.call").info("not at this level")
    (line,) = written.getvalue().splitlines()
    fields = json.loads(line)
    assert fields["call_id"] == "3f2a" and "ValueError: broken" in fields["exception"]
