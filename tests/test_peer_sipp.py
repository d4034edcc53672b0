"""sipp calls the gateway: many at once, without a codec we know, more than there is room for, and a ping."""

from pathlib import Path

import pytest

from tests.peers import Gateway
from tests.sipp_calls import OPTIONS, Sipp, uac

pytestmark = pytest.mark.peer


def test_twenty_calls_at_ten_a_second_are_all_answered(tmp_path: Path) -> None:
    with Gateway(tmp_path, MG_ENGINE__SLOTS="20") as gateway:
        result = Sipp(tmp_path / "sipp", uac(hold_ms=3_000), gateway.sip_port, calls=20, rate=10).result()
        assert (result["SuccessfulCall(C)"], result["FailedCall(C)"]) == ("20", "0")
        assert result["Retransmissions(C)"] == "0"
        gateway.wait_for_slots(0, 5.0)
        assert gateway.metrics()['calls_total{direction="inbound",leg="sip",result="caller"}'] == 20


def test_an_offer_without_a_codec_we_know_gets_488(tmp_path: Path) -> None:
    with Gateway(tmp_path) as gateway:
        g729 = uac(final=488, payloads="18", attributes="a=rtpmap:18 G729/8000")
        result = Sipp(tmp_path / "sipp", g729, gateway.sip_port, calls=3).result()
        assert (result["SuccessfulCall(C)"], result["FailedCall(C)"]) == ("3", "0")
        gateway.wait_for_slots(0, 5.0)


def test_a_full_gateway_answers_503_with_retry_after_and_takes_calls_again(tmp_path: Path) -> None:
    with Gateway(tmp_path, MG_ENGINE__SLOTS="2") as gateway:
        port = gateway.sip_port
        with Sipp(tmp_path / "held", uac(hold_ms=4_000), port, calls=2) as held:
            gateway.wait_for_slots(2, 10.0)
            refused = uac(final=503).replace(
                '<recv response="503" rtd="setup" rrs="true"/>',
                '<recv response="503" rtd="setup"><action><ereg regexp="[0-9]+" search_in="hdr"'
                ' header="Retry-After:" check_it="true" assign_to="1"/></action></recv>',
            )
            refused = refused.replace("</scenario>", '<Reference variables="1"/></scenario>')
            result = Sipp(tmp_path / "refused", refused, port, calls=5).result()
            assert (result["SuccessfulCall(C)"], result["FailedCall(C)"]) == ("5", "0")
            assert held.result()["SuccessfulCall(C)"] == "2", "the calls that were there are not disturbed"
        gateway.wait_for_slots(0, 5.0)
        after = Sipp(tmp_path / "after", uac(hold_ms=500), port, calls=2).result()
        assert after["SuccessfulCall(C)"] == "2"


def test_a_ping_is_answered_with_what_we_can_do(tmp_path: Path) -> None:
    with Gateway(tmp_path) as gateway:
        result = Sipp(tmp_path / "sipp", OPTIONS, gateway.sip_port, calls=5).result()
        assert (result["SuccessfulCall(C)"], result["FailedCall(C)"]) == ("5", "0")
